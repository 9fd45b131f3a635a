"""Answers in words: `yes`, `no solution`, `\\text{ellipse}`, and products of letters.

Pure functions on strings.
"""

from __future__ import annotations

import re

from mopd_jax.verifiers.mathematics import spelling

# Words that are not a product of variables, though they are short.
_WORDS = re.compile(
    "yes|no|true|false|odd|even|none|all|both|one|two|red|blue|prime|composite|always|never|"
    "undefined|infinite|finite|converges|diverges|increasing|decreasing"
)


def words(text: str) -> tuple[str, bool] | None:
    """(words, whether they are bare letters and may be a product of variables) of a cleaned
    text; None of a text that holds anything but words."""
    unwrapped = spelling.WRAPPED.sub(r" \1 ", text)
    plain = re.sub(r"[\s.,;:!?]+", " ", unwrapped).strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", plain):
        return None
    single = all(len(word) == 1 for word in plain.split(" "))
    return plain, plain == text and (plain.isalpha() or single)


def bare(text: str) -> str:
    """A cleaned text in lower case and without `\\text{}`, for comparison."""
    return " ".join(spelling.WRAPPED.sub(r" \1 ", text).split()).casefold()


def is_ranking(parts: tuple[str, ...]) -> bool:
    """Whether the parts are single capitals, not in the alphabet's order: `B, D, A, C`."""
    single = len(parts) > 2 and all(len(p) == 1 and p.isupper() for p in parts)
    return single and list(parts) != sorted(parts) and len(set(parts)) == len(parts)


def same(gold: str, answer: str) -> bool | None:
    """Whether two cleaned texts are the same words; None where one is not words alone."""
    a, b = words(gold), words(answer)
    if a is None or b is None:
        return None
    (a_text, a_bare), (b_text, b_bare) = a, b
    if a_text == b_text:
        return True
    if len(a_text) > 1 and a_text.casefold() == b_text.casefold():
        # Bare letters may be a product of variables, so ab is not AB, though Yes is yes.
        first_only = len(a_text) > 3 and a_text[1:] == b_text[1:]
        spelled = not (a_bare and b_bare) or first_only
        return spelled or _WORDS.fullmatch(a_text.casefold()) is not None
    several = " " in a_text or " " in b_text
    if several and _plain(a_text) == _plain(b_text):
        return True
    a_letters, b_letters = (text.replace(" ", "") for text in (a_text, b_text))
    # Three or more capitals are a ranking or a word, other bare letters a product.
    product = len(a_letters) < 3 or not a_letters.isupper()
    if not (a_bare and b_bare and product) or {a_text, b_text} & {"no", "on"}:
        return False
    return sorted(a_letters) == sorted(b_letters)


def _plain(text: str) -> str:
    """Several words in lower case, without an article in front or the s of "solutions"; DNE is
    written out."""
    if text.casefold() == "dne":
        return "does not exist"
    if all(len(word) == 1 for word in text.split(" ")):
        return text  # A product of letters: the a of `a x` is not an article.
    return re.sub(r"(?<= solution)s$", "", re.sub(r"^(?:an?|the) ", "", text.casefold()))
