"""The verifier `choice`: the letter that a response answers against the gold letter.

docs/verifiers.md has the policy, one row a way to answer. This module finds the text that gives
the answer: the last <answer> tag, or without one an answer line, a box or a closing claim.
`choice_letter.py` reads the letter from that text.

`meta`, all optional: "options", a mapping from letter to text; "format", "tag" (default) or
"line", the form that the prompt asks for, on which `format_ok` depends. Gold is the letter in
`problem.answer`. A wrong answer gets no feedback: with two options it would reveal the gold.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import NamedTuple

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part
from mopd_jax.verifiers import choice_letter

_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_CLOSE = re.compile(r"</\s{0,9}answer\s{0,9}>", re.IGNORECASE)
_CUT_TAG = re.compile(r"</?a?n?s?w?e?r?\s*\Z", re.IGNORECASE)
_LINE = re.compile(
    r"^[ \t>*_#-]*(?:(?:so|therefore|thus|hence|finally|overall|in conclusion)[, ]+)?"
    rf"(?:the +)?{choice_letter.ANSWER}[*_ \t]*((?::|\b{choice_letter.IS}).*|)$",
    re.IGNORECASE | re.MULTILINE,
)
_DENIES = re.compile(r"is not\b", re.IGNORECASE)
_PLAIN_LINE = re.compile(r":|is\b", re.IGNORECASE)
# A letter that running text claims. Group 1: the rest of the line behind the claim's verb.
_CLAIM = re.compile(
    rf"\b(?i:(?:{choice_letter.ANSWER}|correct one)(?: {choice_letter.IS}| ?:)"
    r"|it (?:should|must) be\b|correction:)"
    r"(?=([^\n]*))[ :*_`'\"$(\[]{1,6}(?i:(?:option|choice) )?[(*_]{0,3}(A(?! [a-z])|[B-Z])"
    r"(?![\w'-])"
)
_HEDGE = re.compile(
    r"\b(?:if|unless|whether|might|not|never|cannot|can't|don't|doubt|unsure|suppose|assume|guess"
    r"|mistake|wrong|claims?|says?|thinks?|nobody|why|how)\b",
    re.IGNORECASE,
)
_STARTS = (". ", "! ", "? ", "; ", "\n", ", so ", " therefore", " thus", " hence", " meaning ")
_BRACE = re.compile(r"[{}]")
# A line that calls one option right: `Therefore, option B is correct.`
_RIGHT = re.compile(
    r"(?i:(?:so|therefore|thus|hence|finally|overall|conclusion)[,:]? +)?"
    r"(?i:(?:option|choice|answer) +)?[*_]{0,3}[(\[]?([A-Z])[)\]]?[*_]{0,3}"
    r" is (?:the )?(?:right|correct|best)(?: (?:answer|option|choice|one))?\W*"
)
# A line that begins as an option does.
_FIRST = re.compile(r"\s*[*_`]*[(\[]?([A-Z])[*_`]*[.:)\]]")

# Asked format -> (feedback on a response without an answer, the format itself).
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
    """1 if the response answers the gold letter, by docs/verifiers.md, else 0."""
    item = _item(problem)
    letter, place = _find(response, item.options)
    if item.fault:
        return Verdict(0.0, error=item.fault, answer=letter)
    if letter is None:
        return Verdict(0.0, feedback=FORMATS[item.asked][0], format_ok=False)
    right = letter in _equal(item.gold, item.options)
    return Verdict(float(right), format_ok=place == item.asked, answer=letter)


def gold_response(problem: Problem) -> str:
    """The gold letter in the asked format; of an unusable item, what is wrong with it."""
    item = _item(problem)
    return item.fault or FORMATS[item.asked][1].format(letter=item.gold)


def mutated(problem: Problem) -> tuple[str, ...]:
    """Wrong responses, which must score 0: another letter, alone and with its option's text,
    two letters, none, and an article."""
    options, asked, gold, _ = _item(problem)
    form = FORMATS[asked][1]
    others = [c for c in (sorted(options) or "ABCD") if c not in _equal(gold, options)]
    letters = [form.format(letter=c) for c in others]
    letters += [form.format(letter=f"{c}. {options[c]}") for c in others if c in options]
    both = [form.format(letter=f"{others[0]} and {gold}")] if others else []
    return (*letters, *both, form.format(letter=""), "We get a value in the end.")


class _Item(NamedTuple):
    """What a problem says of its options."""

    options: dict[str, str]  # Letter -> text as `choice_letter.plain` leaves it.
    asked: str  # A key of FORMATS.
    gold: str
    fault: str  # Why the item is unusable, or "".


def _item(problem: Problem) -> _Item:
    raw = problem.meta.get("options", {})
    asked = problem.meta.get("format", "tag")
    gold = problem.answer.strip().upper()
    fault = ""
    if not isinstance(raw, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in raw.items()
    ):
        raw, fault = {}, "meta['options'] must map letters to texts"
    texts = {k.strip().upper(): " ".join(v.split()) for k, v in raw.items()}
    options = {k: choice_letter.plain(v) for k, v in texts.items()}
    # Where two options differ in marks alone, as CC and *CC* do, the marks stay.
    marked = {
        a
        for a in texts
        if any(options[a] == options[b] and texts[a] != texts[b] for b in texts)
    }
    options |= {k: texts[k] for k in marked}
    if asked not in FORMATS:
        fault = f"meta['format'] is {asked!r}; it must be one of {', '.join(FORMATS)}"
        asked = "tag"
    if len(gold) != 1 or gold not in string.ascii_uppercase:
        fault = f"the gold answer {problem.answer[:40]!r} is not one letter from A to Z"
    elif options and gold not in options:
        fault = f"the gold answer {gold} is none of the options {', '.join(sorted(options))}"
    return _Item(options, asked, gold, fault)


def _equal(letter: str, options: Mapping[str, str]) -> set[str]:
    """The letter and the letters of options with the same text, which are as right."""
    return {letter} | {c for c, text in options.items() if text == options.get(letter)}


def _find(response: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """The letter that a response answers, and its place: "tag", "line", or "" for another.

    (None, "") without an answer, and for a letter that no option has.
    """
    letter, place = _read(answer_part(response), options)
    known = letter is not None and (not options or letter in options)
    return (letter, place) if known else (None, "")


def _read(response: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """As `_find`, of a response without thoughts, and with letters that no option has."""
    tags = list(_OPEN.finditer(response))
    if tags:
        start = tags[-1].end()
        close = _CLOSE.search(response, start)
        text = response[start : close.start() if close else len(response)]
        if len(tags) > 1 and not close and not text.strip():
            # `<answer>B<answer>`: the last tag should have been a closing one.
            between = response[tags[-2].end() : tags[-1].start()]
            return None if _CLOSE.search(between) else choice_letter.read(between, options), ""
        if not close:
            text = _CUT_TAG.sub("", text)
        return choice_letter.read(text, options), "tag" if close else ""
    before, closed, behind = response.rpartition("</reasoning>")
    cut = not closed and "<reasoning>" in behind
    response = behind  # Some prompts ask for thoughts in this tag; they are not read either.
    if lines := _lines(response):
        claim, behind = lines[-1][1], response[lines[-1].end() :]
        if letter := choice_letter.read("answer " + claim.strip().lstrip(":*_ \t"), options):
            if cut and behind.strip():
                return None, ""
            known = set(options or "ABCDEFGH")
            others = {c[2] for c in _CLAIM.finditer(behind) if not _hedged(behind, c)}
            others |= {
                choice_letter.one_letter(line) for line in behind.split("\n") if line.isupper()
            }
            others = others & known | {_last_box(behind, options)}
            return (letter, "line") if others <= {letter, "", None} else (None, "")
        ends = claim.strip(choice_letter.EDGES).lower() in ("", "is")
        if ends and (letter := _next_line(behind, options)):
            return letter, ""
        return _last_box(claim + behind, options), ""
    if letter := choice_letter.read(response, options, labels=False) or _first_line(
        response, options
    ):
        return letter, ""
    if (letter := _last_box(response, options)) or cut:
        return letter, ""  # Thoughts that were cut are not searched for a claim.
    return _last_claim(response, options), ""


def _lines(text: str) -> list[re.Match[str]]:
    """Lines that give an answer and do not deny one. Lines with `should be` and the like count
    only where no plainer line is."""
    lines = [m for m in _LINE.finditer(text) if not _DENIES.match(m[1])]
    plain = [line for line in lines if _PLAIN_LINE.match(line[1])]
    return plain or lines


def _hedged(text: str, claim: re.Match[str]) -> bool:
    """Whether the sentence of a claim asks, denies or supposes it."""
    # A denial in the reason before the claim does not count: "it is not C, so the answer is B".
    start = max(text.rfind(mark, 0, claim.start()) for mark in _STARTS)
    lead = text[start + 1 : claim.start()]
    return bool(_HEDGE.search(lead)) or claim[1].rstrip(" *_").endswith("?")


def _first_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that is the whole first paragraph, unless later ones retract it."""
    first, _, rest = text.strip().partition("\n\n")
    letter = (
        choice_letter.one_letter(first) if first.strip(choice_letter.EDGES).isupper() else ""
    )
    return letter if letter and not choice_letter.retracts(letter, rest, options) else None


def _last_claim(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of "..., so the answer is B." or "Option B is right." at the end, if no other
    was claimed before."""
    text = text.rstrip()
    claims = list(_CLAIM.finditer(text))
    if match := _RIGHT.fullmatch(text.rpartition("\n")[2].strip(" \t>*_#-")):
        letter = match[1]
        rights = {
            m[1] for line in text.split("\n") if (m := _RIGHT.fullmatch(line.strip(" \t>*_#-")))
        }
        if rights != {letter}:
            return None
    elif claims and "\n" not in text[claims[-1].end() :] and not _hedged(text, claims[-1]):
        claim = claims[-1][1].strip().lstrip(":*_ \t")
        letter = choice_letter.read("answer is " + claim, options, labels=False)
    else:
        return None
    return letter if {c[2] for c in claims if not _hedged(text, c)} <= {letter} else None


def _last_box(text: str, options: Mapping[str, str]) -> str | None:
    """The letter in the last \\boxed{}, if its braces balance."""
    _, box, inside = text.rpartition("\\boxed{")
    depth = 1 if box else 0
    for brace in _BRACE.finditer(inside):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return choice_letter.read(inside[: brace.start()], options)
    return None


def _next_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the first line with text, unless that line begins a list of the options."""
    lines = [line for line in text.split("\n") if line.strip()][:2]
    letter = choice_letter.read(lines[0], options) if lines else None
    if letter and len(lines) > 1 and (listed := _FIRST.match(lines[1])) and listed[1] != letter:
        return None
    return letter
