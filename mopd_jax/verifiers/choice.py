"""Multiple choice: the letter in the last <answer> tag against the gold letter.

    the response says                policy
    -------------------------------  -----------------------------------------------------------
    several answer tags              the last opening tag counts, up to its closing tag
    a tag that is not closed         read up to the end of the response; not the asked format
    text behind the closing tag      ignored
    no tag                           its last line `Answer: B` or `The answer is B`; where that
                                     line ends at `Answer:`, the next one with text; where there
                                     is no letter, the last \\boxed{} behind it. Without such a
                                     line all of it, where it is nothing but the answer, else
                                     its last \\boxed{}. Not the asked format, but the line is
                                     where `meta["format"]` is "line"
    thoughts                         not read: up to the last </think>, or from an unclosed
                                     <think> on
    b, B., B!, (B), [B], **B**, `B`  the letter, in either case, whatever the options say
    \\(B\\), $B$, \\boxed{\\text{B}}    the letter
    B. text, (B) text, B: text,      the letter where the text is that option's own, before any
    B) text, B - text, also with a   rule below; no answer where it is another option's; else
    long dash                        the letter, unless the text retracts it
    ... a text retracts its letter   it is only another letter; it begins with wrong, incorrect
                                     or not (`not C` alone speaks for B, and so does a `not`
                                     that the option's own text begins with); or it names
                                     another letter: in brackets, as a line begins with its
                                     option, or behind a word such as and, or, but, maybe,
                                     choose, option, answer is. A capital elsewhere is prose or
                                     a symbol. Letters are those of the options, else A to H
    the answer is B, option B        the letter
    the text of one option alone     its letter, where `meta["options"]` has the texts; case
                                     counts only where options differ in nothing else
    a value, A value                 no answer: an article is no letter
    A and B, A or B, A/B, AB         no answer, unless it is the text of an option
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
_NESTED = 4  # Wrappers in wrappers are opened up to this depth.
_MATH = re.compile(r"\\[()\[\]]")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
# What may stand round a letter and says nothing.
_EDGES = " \t\r\n*_`'\"()[]{}.,:;!$<>\u201c\u201d\u2018\u2019"
_MARKS = r"*_`'\"$ \u201c\u201d\u2018\u2019"
_LABELLED = re.compile(
    rf"[{_MARKS}]{{0,8}}[(\[]?[{_MARKS}]{{0,8}}([A-Za-z])"
    rf"(?:[{_MARKS}]{{0,8}}[)\].:,;]|\s+[-\u2013]\s|\s*\u2014|[{_MARKS}]{{0,8}}\s*\n)\s*(.+)",
    re.DOTALL,
)
_BARE_PREFIX = re.compile(rf"[{_MARKS}]{{0,8}}([A-Za-z])[{_MARKS}]{{0,8}}\s+(.+)", re.DOTALL)
# What may stand between a label and its text besides: `(B): text`, `(B) - text`.
_JOINT = re.compile(r"(?:[.:,;]|[-\u2013\u2014](?=\s))\s*")
# Other letters that a text names as options.
_NAMED = re.compile(
    r"(?:^|\n)[ \t]*[(\[]?([A-Z])[.:)\]]"  # A line that begins as an option does.
    r"|[(\[]([A-Z])[)\]]"
    r"|(?:^|\s)(?:and|or|&|\+|/|,)\s*[(\[]?([A-Z])[)\]]?(?=$|[\s.,;:!?/])",
)
# The same in a text whose spaces are single. Bounds keep a row of such words linear.
_POINTED = re.compile(
    r"\b(?i:choos(?:e|ing)|pick|select|take|answer|option|choice|letter|one(?= is)|maybe"
    r"|perhaps|possibly|probably|rather|instead|actually|but|no(?=[,;:])|and|or)\b"
    r"(?: (?:is|be|was|should|must|option|answer|letter|choice|the|rather|maybe)\b){0,4}"
    r"(?: |: ?|[,;] )[*_`'\"$(\[]{0,4}"
    # Behind a stop, `A` and a word may be an article and its noun.
    r"((?<=[:,;] )A(?! [a-z])|(?<![:,;] )A|[B-Z])(?![\w'-])"
)
_DENIED = re.compile(
    r"(?:(?:is )?(?:wrong|incorrect)\b|(?:is|was) (?:not\b|false\b)|isn't\b|is no\b"
    r"|not\b(?! (?:option )?[(\[]?(?-i:[A-Z])\b)"
    r"|(?:this|that|it|which)(?: (?:one|option|choice|answer))? (?:is|was|seems|looks)"
    r" (?:wrong|incorrect|not (?:the )?(?:right|correct|answer)))",
    re.IGNORECASE,
)
_FIRST = re.compile(r"\s*[*_`]*[(\[]?([A-Z])[*_`]*[.:)\]]")
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
    """Responses that must score 0: other letters, also with their texts, none, an article."""
    options, asked, gold, _ = _item(problem)
    others = [c for c in (sorted(options) or "ABCD") if c != gold]
    form = FORMATS[asked][1]
    given = [form.format(letter=c) for c in others]
    given += [form.format(letter=f"{c}. {options[c]}") for c in others if c in options]
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
    if lines := list(_LINE.finditer(response)):
        said, behind = lines[-1][1], response[lines[-1].end() :]
        if letter := read("answer " + said.strip(), options):
            return letter, "line"
        ends = said.strip(_EDGES).lower() in ("", "is")
        if ends and (letter := _next_line(behind, options)):
            return letter, ""
        return _last_box(said + behind, options), ""
    if letter := read(response, options, labels=False):
        return letter, ""
    return _last_box(response, options), ""


def _last_box(text: str, options: Mapping[str, str]) -> str | None:
    boxes = _BOXED.findall(text)
    return read(boxes[-1], options) if boxes else None


def _next_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the first line with text, if it does not open a list of the options."""
    lines = [line for line in text.split("\n") if line.strip()][:2]
    letter = read(lines[0], options) if lines else None
    if letter and len(lines) > 1 and (listed := _FIRST.match(lines[1])) and listed[1] != letter:
        return None
    return letter


def read(text: str, options: Mapping[str, str], *, labels: bool = True) -> str | None:
    """The one letter that a text answers, or None.

    Args:
        options: letter -> text as `_plain` leaves it; may be empty.
        labels: `B. any text` is an answer. A response that begins so may be a discussion of the
            options that was cut; then only the option's own text may stand behind the letter.
    """
    text = _unwrapped(text).strip()
    forms = [text]
    for _ in range(3):
        if not (match := _PHRASE.match(text.lstrip(" *_"))):
            break
        text = text.lstrip(" *_")[match.end() :].strip()
        if text.rstrip(".") == "a" and "is" in match[0].split():
            return None  # An article whose noun is missing.
        forms.append(text)
    for form in forms:
        if (match := _LABELLED.match(form)) and _own(match[1].upper(), match[2], options):
            return match[1].upper()
    if letter := _one_letter(text):
        return letter
    for form in forms:
        if letters := _letters(form, options):
            return letters[0] if len(letters) == 1 else None
    pieces = [p.strip(_EDGES) for p in _SEPARATORS.split(text)]
    pieces = [p.upper() for p in pieces if p]
    if pieces and all(len(p) == 1 and p in string.ascii_uppercase for p in pieces):
        return pieces[0] if len(set(pieces)) == 1 else None
    if match := _LABELLED.match(text):
        letter = match[1].upper()
        return letter if labels and not _retracts(letter, match[2], options) else None
    if (match := _BARE_PREFIX.match(text)) and _own(match[1].upper(), match[2], options):
        return match[1].upper()
    return None


def _one_letter(text: str) -> str:
    """The letter that a text is but for marks round it, else ""."""
    core = text.strip(_EDGES).upper()
    return core if len(core) == 1 and core in string.ascii_uppercase else ""


def _own(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the text behind a label is that of its option."""
    if letter in _letters(rest, options):
        return True
    joint = _JOINT.match(rest)
    return bool(joint) and letter in _letters(rest[joint.end() :], options)


def _retracts(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether the text behind a labelled letter, not its option's own, speaks against it."""
    if _letters(rest, options):
        return True
    others = {*(options or "ABCDEFGH")} - {letter}
    if (only := _one_letter(rest)) and only != letter:
        return True
    flat = " ".join(rest.split())
    if _DENIED.match(flat.lstrip(_EDGES)) and not _DENIED.match(options.get(letter, "")):
        return True
    named = ("".join(groups) for groups in _NAMED.findall(rest))
    return any(c in others for c in named) or any(c in others for c in _POINTED.findall(flat))


def _letters(text: str, options: Mapping[str, str]) -> list[str]:
    """The options that have this text; those that differ in case only where no other does."""
    if not options:
        return []
    text = _plain(text)
    same = [letter for letter, option in options.items() if option == text]
    text = text.casefold()
    # Formulas of molecules may differ in case only.
    return same or [letter for letter, option in options.items() if option.casefold() == text]


def _unwrapped(text: str) -> str:
    """Without LaTeX commands that say nothing; full-width letters and brackets made plain."""
    text = _RAISED.sub(r"^\g<0>", text)  # Else 10 to the 2nd would become 102.
    text = _MATH.sub("$", unicodedata.normalize("NFKC", text))
    for _ in range(_NESTED):
        text, found = _WRAPPER.subn(r" \1 ", text)
        if not found:
            break
    return text


def _plain(text: str) -> str:
    """An option's text for comparison: no wrappers, emphasis, outer marks or extra space."""
    text = " ".join(_unwrapped(text).split())
    return " ".join(text.strip("*_` ").rstrip(".").split()) or text
