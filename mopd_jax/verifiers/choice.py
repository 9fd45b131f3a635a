"""Multiple choice: the letter in the last <answer> tag against the gold letter.

    the response says                policy
    -------------------------------  -----------------------------------------------------------
    several answer tags              the last opening tag counts, up to its closing tag
    a tag that is not closed         read up to the end of the response; not the asked format
    text behind the closing tag      ignored
    no tag                           its last line `Answer: B` or `The answer is B`, else all of
                                     it where it is nothing but the answer, else its last
                                     \\boxed{}; not the asked format, but the first is where
                                     `meta["format"]` is "line"
    thoughts                         not read: up to the last </think>, or from an unclosed
                                     <think> on
    b, B., B!, (B), [B], **B**, `B`  the letter, in either case
    B. text, (B) text, B: text,      the letter, unless the text is that of another option, or
    B - text, also with a long dash  names another letter
    the answer is B, option B        the letter
    the text of one option alone     its letter, where `meta["options"]` has the texts
    a value, A value                 no answer: an article is no letter
    A and B, A or B, A/B, AB         no answer
    the same letter twice            the letter
    anything else                    no answer

`meta`, all optional: "options", a mapping from letter to text; "format", "tag" (default) or
"line", the form that the prompt asks for, on which `format_ok` depends. Gold is the letter in
`problem.answer`. A wrong answer has no feedback: among two options it would tell the gold.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_CLOSE = re.compile(r"</answer>", re.IGNORECASE)
_LINE = re.compile(
    r"^[ \t>*_#-]*(?:so[, ]+|therefore[, ]+|thus[, ]+)?(?:the +)?"
    r"(?:(?:final|correct|best|right) +)?(?:answer|option|choice)[*_ \t]*((?::|\bis\b).*)$",
    re.IGNORECASE | re.MULTILINE,
)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]{0,400}\}){1,400})\}")
_PHRASE = re.compile(
    r"(?:the +)?(?:(?:final|correct|best|right|my) +)?(?:answer|option|choice|letter)"
    r"(?: +is(?= |:))?(?: *[:=-])? +(?=\S)|(?:the +)?answer:",
    re.IGNORECASE,
)
_WRAPPER = re.compile(r"\\(?:boxed|text(?:bf|it)?|math(?:rm|bf))\{([^{}]*)\}")
# What may stand round a letter and says nothing.
_EDGES = " \t\r\n*_`'\"()[]{}.,:;!$<>\u201c\u201d\u2018\u2019"
_LABELLED = re.compile(
    r"[(\[]?([A-Za-z])(?:[)\]]|[.:,;]|\s+[-\u2013]\s|\s*\u2014|\s*\n)\s*(.+)", re.DOTALL
)
_BARE_PREFIX = re.compile(r"([A-Za-z])\s+(.+)", re.DOTALL)
# Other letters that a text names as options.
_NAMED = re.compile(
    r"(?:^|\n)[ \t]*[(\[]?([A-Z])[.:)\]]"  # A line that begins as an option does.
    r"|[(\[]([A-Z])[)\]]"
    r"|(?:^|\s)(?:and|or|&|\+|/|,)\s*[(\[]?([A-Z])[)\]]?(?=$|[\s.,;:!?/])",
)
_SEPARATORS = re.compile(r"[\s,;/&+=]+|\b(?:and|or)\b")

FORMATS = {
    "tag": (
        "No answer was found: put the letter of one option between <answer> and </answer>.",
        "<answer>\n{letter}\n</answer>",
    ),
    "line": (
        "No answer was found: end with a line 'Answer: ' and the letter of one option.",
        "Answer: {letter}",
    ),
}


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the response answers the gold letter by the table above, else 0."""
    options, asked, gold, wrong = _item(problem)
    if wrong:
        return Verdict(0.0, error=wrong)
    letter, place = _find(response, options)
    if letter is None:
        return Verdict(0.0, feedback=FORMATS[asked][0], format_ok=False)
    return Verdict(float(letter == gold), format_ok=place == asked)


def answer(problem: Problem, response: str) -> str:
    """The letter that is answered, "" for none."""
    return _find(response, _item(problem)[0])[0] or ""


def gold_response(problem: Problem) -> str:
    """The gold letter in the asked format."""
    _, asked, gold, wrong = _item(problem)
    return wrong or FORMATS[asked][1].format(letter=gold)


def mutated(problem: Problem) -> tuple[str, ...]:
    """Responses that must score 0: the other letters, no letter, and an article."""
    options, asked, gold, _ = _item(problem)
    others = [c for c in (sorted(options) or "ABCD") if c != gold]
    form = FORMATS[asked][1]
    given = [form.format(letter=c) for c in others]
    both = [form.format(letter=f"{others[0]} and {gold}")] if others else []
    return (*given, *both, form.format(letter=""), "We get a value in the end.")


def _item(problem: Problem) -> tuple[dict[str, str], str, str, str]:
    """(normalised options, asked format, gold letter, what is wrong with the item)."""
    options = problem.meta.get("options", {})
    asked = problem.meta.get("format", "tag")
    gold = problem.answer.strip().upper()
    wrong = ""
    if not isinstance(options, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in options.items()
    ):
        options, wrong = {}, "meta['options'] must map letters to texts"
    options = {k.strip().upper(): _plain(v) for k, v in options.items()}
    if asked not in FORMATS:
        wrong = f"meta['format'] is {asked!r}; it must be one of {', '.join(FORMATS)}"
        asked = "tag"
    if len(gold) != 1 or gold not in string.ascii_uppercase:
        wrong = f"the gold answer {problem.answer[:40]!r} is no letter"
    elif options and gold not in options:
        wrong = f"the gold answer {gold} is none of the options {', '.join(sorted(options))}"
    return options, asked, gold, wrong


def _find(response: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, where it stood: "tag", "line" or "")."""
    response = answer_part(response)
    tags = list(_OPEN.finditer(response))
    if tags:
        start = tags[-1].end()
        close = _CLOSE.search(response, start)
        text = response[start : close.start() if close else len(response)]
        return read(text, options), "tag" if close else ""
    if lines := _LINE.findall(response):
        return read("answer " + lines[-1].strip(), options), "line"
    if letter := read(response, options, labels=False):
        return letter, ""
    boxes = _BOXED.findall(response)
    return (read(boxes[-1], options) if boxes else None), ""


def read(text: str, options: Mapping[str, str], *, labels: bool = True) -> str | None:
    """The one letter that a text answers, or None.

    Args:
        options: letter -> text as `_plain` leaves it; may be empty.
        labels: `B. any text` is an answer. A response that begins so may be a discussion of the
            options that was cut; then only the option's own text may stand behind the letter.
    """
    # Full-width letters and brackets are read as plain ones.
    text = unicodedata.normalize("NFKC", text)
    text = _WRAPPER.sub(r" \1 ", text).strip()
    for _ in range(3):
        if not (match := _PHRASE.match(text.lstrip(" *_"))):
            break
        text = text.lstrip(" *_")[match.end() :].strip()
        if text.rstrip(".") == "a" and "is" in match[0].split():
            return None  # An article whose noun is missing.
    if (same := _plain(text)) and len(same) > 1:
        letters = [letter for letter, option in options.items() if option == same]
        if letters:
            return letters[0] if len(letters) == 1 else None
    pieces = [p.strip(_EDGES) for p in _SEPARATORS.split(text)]
    pieces = [p.upper() for p in pieces if p]
    if pieces and all(len(p) == 1 and p in string.ascii_uppercase for p in pieces):
        return pieces[0] if len(set(pieces)) == 1 else None
    text = text.lstrip("*_`'\"$ \u201c\u2018")
    bare = text.replace("**", "").replace("__", "").replace("`", "")
    if match := _LABELLED.match(bare):
        letter, rest = match[1].upper(), match[2]
        if not labels:
            return letter if options.get(letter) == _plain(rest) else None
        return letter if _agrees(letter, rest, options) else None
    if (match := _BARE_PREFIX.match(bare)) and options:
        letter = match[1].upper()
        return letter if options.get(letter) == _plain(match[2]) else None
    return None


def _agrees(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the text behind a labelled letter speaks for it."""
    plain = _plain(rest)
    if options.get(letter) == plain:
        return True
    if plain in options.values():
        return False
    return all(letter in named for named in _NAMED.findall(rest))


def _plain(text: str) -> str:
    """An option's text for comparison: no emphasis, case, outer marks or extra space."""
    text = unicodedata.normalize("NFKC", text).strip().strip("*_`").rstrip(".")
    return " ".join(text.split()).casefold()
