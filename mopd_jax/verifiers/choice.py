"""Multiple choice: the letter in the last <answer> tag against the gold letter.

    the response says                policy
    -------------------------------  -----------------------------------------------------------
    several answer tags              the last opening tag counts, up to its closing tag
    a tag that is not closed         read up to the end of the response; not the asked format
    text behind the closing tag      ignored
    a tag opened where it should     read up to there; not the asked format
    close: <answer>B<answer>
    no tag                           its last line `Answer: B` or `The answer is B`; no answer
                                     where what follows claims another letter. Where that line
                                     ends at `Answer:`, the next one with text; where there is
                                     no letter, the last \\boxed{} behind it. Without such a
                                     line all of it, where it is nothing but the answer; a
                                     letter in a first paragraph of its own, unless the rest
                                     retracts it; its last \\boxed{}; a last line that ends with
                                     "the answer is B" or says "option B is right", if no other
                                     letter was claimed. Not the asked format, but the line is
                                     where `meta["format"]` is "line"
    a \\boxed{ that is not closed    no answer
    thoughts                         not read: up to the last </think>, or from an unclosed
                                     <think> on; without a tag also up to </reasoning>
    a letter that no option has      no answer
    options of the same text         each is right where one of them is
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
                                     wait, choose, option, answer is; with its own option's
                                     text; or as right or wrong (`C: true`). A capital elsewhere
                                     is prose or a symbol. Letters are those of the options,
                                     else A to H
    the answer is B, option B,       the letter
    B is right, B because ...
    text (B)                         the letter where the text is that option's own
    the text of one option alone     its letter, where `meta["options"]` has the texts. Case may
                                     differ in words, but not in symbols, formulas and units
    C. elegans                       no answer as C where an option's text begins so
    I, ...; i.e.                     a pronoun; a letter only before its option's own text
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
from collections.abc import Mapping

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
# A letter that running text claims, and all that stands behind the claim's verb on its line.
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
# A last line that gives one option right.
_RIGHT = re.compile(
    r"(?i:(?:so|therefore|thus|hence|finally|overall|conclusion)[,:]? +)?"
    r"(?i:(?:option|choice|answer) +)?[*_]{0,3}[(\[]?([A-Z])[)\]]?[*_]{0,3}"
    r" is (?:the )?(?:right|correct|best)(?: (?:answer|option|choice|one))?\W*"
)
_FIRST = re.compile(r"\s*[*_`]*[(\[]?([A-Z])[*_`]*[.:)\]]")

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
    return Verdict(float(letter in _equal(gold, options)), format_ok=place == asked)


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
    others = [c for c in (sorted(options) or "ABCD") if c not in _equal(gold, options)]
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
    # Where two options differ in marks alone, as CC and *CC* do, the marks stay.
    texts = {k.strip().upper(): " ".join(v.split()) for k, v in options.items()}
    options = {k: choice_letter.plain(v) for k, v in texts.items()}
    marked = {
        a
        for a in texts
        if any(options[a] == options[b] and texts[a] != texts[b] for b in texts)
    }
    options |= {k: texts[k] for k in marked}
    if asked not in FORMATS:
        wrong = f"meta['format'] is {asked!r}; it must be one of {', '.join(FORMATS)}"
        asked = "tag"
    if len(gold) != 1 or gold not in string.ascii_uppercase:
        wrong = f"the gold answer {problem.answer[:40]!r} is no letter"
    elif options and gold not in options:
        wrong = f"the gold answer {gold} is none of the options {', '.join(sorted(options))}"
    return options, asked, gold, wrong


def _equal(letter: str, options: Mapping[str, str]) -> set[str]:
    """The letter and those of options that say the same: each is as right as the others."""
    return {letter} | {c for c, text in options.items() if text == options.get(letter)}


def _find(response: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    """(letter, where it stood: "tag", "line" or ""); letters without an option are none."""
    letter, place = _said(answer_part(response), options)
    known = letter is not None and (not options or letter in options)
    return (letter, place) if known else (None, "")


def _said(response: str, options: Mapping[str, str]) -> tuple[str | None, str]:
    tags = list(_OPEN.finditer(response))
    if tags:
        start = tags[-1].end()
        close = _CLOSE.search(response, start)
        text = response[start : close.start() if close else len(response)]
        if len(tags) > 1 and not close and not text.strip():
            # An opening tag that stands where the closing one should.
            between = response[tags[-2].end() : tags[-1].start()]
            return None if _CLOSE.search(between) else choice_letter.read(between, options), ""
        if not close:
            text = _CUT_TAG.sub("", text)
        return choice_letter.read(text, options), "tag" if close else ""
    before, closed, behind = response.rpartition("</reasoning>")
    cut = not closed and "<reasoning>" in behind
    response = behind  # The prompts' own tag of thoughts, which are not read either.
    if lines := _lines(response):
        said, behind = lines[-1][1], response[lines[-1].end() :]
        if letter := choice_letter.read("answer " + said.strip().lstrip(":*_ \t"), options):
            if cut and behind.strip():
                return None, ""
            known = set(options or "ABCDEFGH")
            others = {c[2] for c in _CLAIM.finditer(behind) if not _hedged(behind, c)}
            others |= {
                choice_letter.one_letter(line) for line in behind.split("\n") if line.isupper()
            }
            others = others & known | {_last_box(behind, options)}
            return (letter, "line") if others <= {letter, "", None} else (None, "")
        ends = said.strip(choice_letter.EDGES).lower() in ("", "is")
        if ends and (letter := _next_line(behind, options)):
            return letter, ""
        return _last_box(said + behind, options), ""
    if letter := choice_letter.read(response, options, labels=False) or _first_line(
        response, options
    ):
        return letter, ""
    if (letter := _last_box(response, options)) or cut:
        return letter, ""  # Thoughts that were cut claim nothing.
    return _last_claim(response, options), ""


def _lines(text: str) -> list[re.Match[str]]:
    """Lines that give an answer, and do not deny one; `should be` and the like count where no
    other line does."""
    lines = [m for m in _LINE.finditer(text) if not _DENIES.match(m[1])]
    plain = [line for line in lines if _PLAIN_LINE.match(line[1])]
    return plain or lines


def _hedged(text: str, claim: re.Match[str]) -> bool:
    """Whether the sentence of a claim asks, denies or supposes it."""
    # What a reason denies, as in "it is not C, so the answer is B", is another matter.
    start = max(text.rfind(mark, 0, claim.start()) for mark in _STARTS)
    said = text[start + 1 : claim.start()]
    return bool(_HEDGE.search(said)) or claim[1].rstrip(" *_").endswith("?")


def _first_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that has a paragraph of its own at the start, if no later one retracts it."""
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
        said = claims[-1][1].strip().lstrip(":*_ \t")
        letter = choice_letter.read("answer is " + said, options, labels=False)
    else:
        return None
    return letter if {c[2] for c in claims if not _hedged(text, c)} <= {letter} else None


def _last_box(text: str, options: Mapping[str, str]) -> str | None:
    _, box, inside = text.rpartition("\\boxed{")
    depth = 1 if box else 0
    for brace in _BRACE.finditer(inside):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return choice_letter.read(inside[: brace.start()], options)
    return None


def _next_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the first line with text, if it does not open a list of the options."""
    lines = [line for line in text.split("\n") if line.strip()][:2]
    letter = choice_letter.read(lines[0], options) if lines else None
    if letter and len(lines) > 1 and (listed := _FIRST.match(lines[1])) and listed[1] != letter:
        return None
    return letter
