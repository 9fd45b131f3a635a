"""The letter that a short text answers, for multiple choice, by docs/verifiers.md.

Pure functions on strings. `choice.py` says which part of a response is that text.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping

ANSWER = r"(?:(?:final|correct|best|right|my|most likely) +){0,3}(?:answer|option|choice)"
IS = r"(?:is|(?:would|should|must) be)\b(?: (?:definitely|clearly|therefore|thus|indeed)\b)?"
_PHRASE = re.compile(
    rf"(?:the +)?(?:{ANSWER}|letter)"
    rf"(?: +{IS}(?= |:))?(?: *[:=-])? +(?=\S)|(?:the +)?answer:",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\\(?:boxed|text(?:bf|it)?|math(?:rm|bf))\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_NESTED = 4  # How many wrappers round a letter are removed.
_MATH = re.compile(r"\\[()\[\]]")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
# Marks round a letter, which mean nothing.
EDGES = " \t\r\n*_`'\"()[]{}.,:;!$<>\u201c\u201d\u2018\u2019"
_MARKS = r"*_`'\"$ \u201c\u201d\u2018\u2019"
_LABELLED = re.compile(
    rf"[{_MARKS}]{{0,8}}[(\[]?[{_MARKS}]{{0,8}}([A-Za-z])"
    rf"(?:[{_MARKS}]{{0,8}}[)\].:,;]|\s+[-\u2013]\s|\s*\u2014|[{_MARKS}]{{0,8}}\s*\n)\s*(.+)",
    re.DOTALL,
)
# A letter with a reason or a verdict behind it, without a mark between: `B because ...`.
_BECAUSE = re.compile(
    rf"[{_MARKS}]{{0,8}}[(\[]?([A-Z])[)\]]?[{_MARKS}]{{0,8}}\s+"
    r"((?i:because|since|due to|is (?:the )?(?:right|correct|best|answer))\b.*)",
    re.DOTALL,
)
_BARE_PREFIX = re.compile(rf"[{_MARKS}]{{0,8}}([A-Za-z])[{_MARKS}]{{0,8}}\s+(.+)", re.DOTALL)
# Further marks between a label and its text: `(B): text`, `(B) - text`.
_JOINT = re.compile(r"(?:[.:,;]|[-\u2013\u2014](?=\s))\s*")
# Other letters that a text names as options.
_NAMED = re.compile(
    r"(?:^|\n)[ \t]*[(\[]?([A-Z])[.:)\]]"  # A line that begins as an option does.
    r"|(?:^|\s)([A-Z])(?:: ?|\s(?:is|seems|looks|would be) (?:(?:also|the|a|more) )*)"
    r"(?i:right|correct|true|yes|better|best|answer)\b"
    r"|(?:^|\s)[*_]{0,2}[(\[]([A-Z])[)\]]"
    r"|(?:^|\s)(?:and|or|&|\+|/|,)\s*[(\[]?([A-Z])[)\]]?(?=$|[\s.,;:!?/])",
)
# The same behind a pointing word, in a text whose spaces are single. The bounds on repeats keep
# the search linear in a row of such words.
_POINTED = re.compile(
    r"\b(?i:choos(?:e|ing)|pick|select|take|answer|option|choice|letter|one(?= is)|maybe"
    r"|perhaps|possibly|probably|rather|instead|actually|but|no(?=[,;:])|and|or"
    r"|wait|hmm|sorry|nope|correction|alternatively|however|also|mean|versus|vs|well as"
    r"|it's|thought|edit|wrong,)\b"
    r"(?: (?:is|be|was|should|must|option|answer|letter|choice|the|rather|maybe)\b){0,4}"
    r"(?: |: ?|[,;] )[*_`'\"$(\[]{0,4}"
    # Behind a mark, `A` and a word may be an article and its noun.
    r"((?<=[:,;] )A(?! [a-z])|(?<![:,;] )A|[B-Z])(?![\w'-])"
)
_DENIED = re.compile(
    r"(?:(?:is |which is )?(?:the )?(?:wrong|incorrect)\b|(?:cannot|can't) be (?:right|correct)"
    r"|(?:is|was) (?:not\b|false\b)|isn't\b|is no\b"
    r"|(?:no|false)[\s.,;!]*\Z"
    r"|not\b(?! (?:option )?[(\[]?(?-i:[A-Z])\b)"
    r"|(?:this|that|it|which)(?: (?:one|option|choice|answer))?(?: (?:is|was|seems|looks)|'s)"
    r" (?:wrong|incorrect|false|not (?:the )?(?:right|correct|answer)))",
    re.IGNORECASE,
)
# The same behind the option's own text, where `not the nucleus` denies something else.
_DENIED_TEXT = re.compile(
    r"(?:(?:is |which is |that's |it's "
    r"|(?:this|that|it)(?: (?:one|option|choice|answer))? (?:is |seems |looks ))?"
    r"(?:the )?(?:wrong|incorrect|false|not (?:the )?(?:right|correct|true|answer))\b"
    r"|isn't (?:the )?(?:right|correct|true|answer)\b|(?:cannot|can't) be (?:right|correct)"
    r"|(?:no|not)[\s.,;!]*\Z)",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\W{0,8}(?:I,|[Ii]\.[Ee]\b)")
_BULLET = re.compile(r"[-\u2022]\s+(?=[(\[*]{0,3}[A-Z]\b)")
_LETTER_LAST = re.compile(r"[(\[]([A-Z])[)\]][*_`.]{0,4}\Z")
# Brackets and zero-width marks, which NFKC normalisation does not change.
_CORNERS = str.maketrans("\u3010\u3011\u3014\u3015", "[][]", "\u200b\u200e\u2060\ufeff")
# Words whose case means nothing, though they are short.
_SMALL_WORDS = frozenset(
    "a an and at by for from in is it no not of on or pH the to yes".lower().split()
)
_FORMULA = frozenset("BCFHINOPS")  # Letters of SMILES.
_SEPARATORS = re.compile(r"[\s,;/&+=]+|\b(?:and|or)\b")


def read(text: str, options: Mapping[str, str], *, labels: bool = True) -> str | None:
    """The one letter that a text answers, or None.

    Args:
        options: letter -> text as `plain` leaves it; may be empty.
        labels: whether `B. any text` answers B. False for a whole response, which may be a cut
            discussion of the options: then only the option's own text may follow the letter.
    """
    text = _unwrapped(text).strip()
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
    forms = [text]
    for _ in range(3):
        if not (match := _PHRASE.match(text.lstrip(" *_"))):
            break
        text = text.lstrip(" *_")[match.end() :].strip()
        if text.rstrip(".") == "a" and "is" in match[0].split():
            return None  # The article of a noun that was cut.
        forms.append(text)
    for form in forms:
        if (match := _LABELLED.match(form)) and _own(match[1].upper(), match[2], options):
            return match[1].upper()
    if letter := one_letter(text):
        return letter
    for form in forms:
        if letters := _letters(form, options):
            return letters[0] if len({options[c] for c in letters}) == 1 else None
    if own := _bare_own(text, options):
        return own
    pieces = [p.strip(EDGES) for p in _SEPARATORS.split(text)]
    pieces = [p.upper() for p in pieces if p]
    if pieces and all(len(p) == 1 and p in string.ascii_uppercase for p in pieces):
        return pieces[0] if len(set(pieces)) == 1 else None
    if match := _LABELLED.match(text) or _BECAUSE.match(text):
        letter = match[1].upper()
        if _PRONOUN.match(text) or _begins_as_another(text, options):
            return None  # `C. elegans` may be the text of option B.
        return letter if labels and not retracts(letter, match[2], options) else None
    if (match := _LETTER_LAST.search(text)) and _own(match[1], text[: match.start()], options):
        return match[1]
    return None


def _bare_own(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of `B own text` and `B (own text)`."""
    if not (match := _BARE_PREFIX.match(text)):
        return None
    rest = match[2].rstrip("*_`. ")
    bracketed = rest[1:-1] if rest[:1] + rest[-1:] in ("()", "[]") else ""
    own = any(_own(match[1].upper(), t, options) for t in (match[2], bracketed) if t)
    return match[1].upper() if own else None


def _begins_as_another(text: str, options: Mapping[str, str]) -> bool:
    """Whether a text begins with that of an option which itself looks like a label."""
    start = plain(text).casefold()
    labels = (option.casefold() for option in options.values() if _LABELLED.match(option))
    return any(start.startswith(label) for label in labels)


def one_letter(text: str) -> str:
    """The letter that a text consists of, marks round it aside; else ""."""
    core = text.strip(EDGES).upper()
    return core if len(core) == 1 and core in string.ascii_uppercase else ""


def _own(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the text behind a label is the text of that letter's option."""
    if letter in _letters(rest, options):
        return True
    joint = _JOINT.match(rest)
    return joint is not None and letter in _letters(rest[joint.end() :], options)


def retracts(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the text behind a labelled letter speaks against that letter.

    Args:
        rest: not the text of the letter's own option, though it may begin with it.
    """
    if _letters(rest, options):
        return True
    text = r"\s+".join(map(re.escape, options.get(letter, "").split()))
    own = re.match(rf"[*_`\s]*{text}(?!\w)", rest) if text else None
    if own:
        rest = rest[own.end() :]
    others = {*(options or "ABCDEFGH")} - {letter}
    if (only := one_letter(rest)) and only != letter:
        return True
    flat = " ".join(rest.split())
    shown = plain(rest).casefold()
    for c in others & options.keys():
        if any(f" {c.lower()}{mark} {options[c].casefold()}" in f" {shown}" for mark in ".):"):
            return True
    denied = _DENIED_TEXT if own else _DENIED
    if denied.match(flat.lstrip(EDGES)) and not _DENIED.match(options.get(letter, "")):
        return True
    named = ("".join(groups) for groups in _NAMED.findall(rest))
    return any(c in others for c in named) or any(c in others for c in _POINTED.findall(flat))


def _letters(text: str, options: Mapping[str, str]) -> list[str]:
    """The letters of options with this text; texts that differ in case are a last resort."""
    if not options:
        return []
    raw, text = " ".join(text.split()), plain(text)
    same = [letter for letter, option in options.items() if option == raw]
    same = same or [letter for letter, option in options.items() if option == text]
    return same or [letter for letter, option in options.items() if _same_words(option, text)]


def _same_words(a: str, b: str) -> bool:
    """Whether two texts differ at most in the case of words. The case of symbols counts: mV is
    not MV, and c1ccccc1 is not C1CCCCC1."""
    if a.casefold() != b.casefold():
        return False
    return all(map(_same_word, a.split(), b.split()))


def _same_word(a: str, b: str) -> bool:
    """The same of a word `a` of an option and a word `b` with the same letters."""
    core = a.strip(",;:.!?()'\"").replace("-", "")
    if a == b or core.casefold() in _SMALL_WORDS:
        return True
    if not core.isalpha() or len(core) < 3:
        return len(core) == 2 and core.isalpha() and core[1:].islower() and a[1:] == b[1:]
    # A word, or an abbreviation such as DNA, which is not the formula of a molecule.
    return len(core) > 3 or core[1:].islower() or (core.isupper() and bool({*core} - _FORMULA))


def _unwrapped(text: str) -> str:
    """Removes LaTeX wrappers, and makes full-width letters and brackets plain."""
    text = _RAISED.sub(r"^\g<0>", text)  # Without this, 10 squared would become 102.
    text = _MATH.sub("$", unicodedata.normalize("NFKC", text).translate(_CORNERS))
    for _ in range(_NESTED):
        text, count = _WRAPPER.subn(r" \1 ", text)
        if not count:
            break
    return text


def plain(text: str) -> str:
    """An option's text for comparison: without wrappers, emphasis, outer marks, extra space."""
    text = " ".join(_unwrapped(text).split())
    return " ".join(text.lstrip("*_` ").rstrip("*_`. ").split()) or text
