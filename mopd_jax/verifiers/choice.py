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
import unicodedata
from collections.abc import Mapping

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

_OPEN = re.compile(r"<answer>", re.IGNORECASE)
_CLOSE = re.compile(r"</\s{0,9}answer\s{0,9}>", re.IGNORECASE)
_ANSWER = r"(?:(?:final|correct|best|right|my|most likely) +){0,3}(?:answer|option|choice)"
_IS = r"(?:is|(?:would|should|must) be)\b(?: (?:definitely|clearly|therefore|thus|indeed)\b)?"
_LINE = re.compile(
    r"^[ \t>*_#-]*(?:(?:so|therefore|thus|hence|finally|overall|in conclusion)[, ]+)?"
    rf"(?:the +)?{_ANSWER}[*_ \t]*((?::|\b{_IS}).*|)$",
    re.IGNORECASE | re.MULTILINE,
)
# A letter that running text claims, and all that stands behind the claim's verb on its line.
_CLAIM = re.compile(
    rf"\b(?i:(?:{_ANSWER}|correct one)(?: {_IS}| ?:)|it (?:should|must) be\b|correction:)"
    r"(?=([^\n]*))[ :*_`'\"$(\[]{1,6}(?i:(?:option|choice) )?[(*_]{0,3}(A(?! [a-z])|[B-Z])"
    r"(?![\w'-])"
)
_BRACE = re.compile(r"[{}]")
# A last line that gives one option right.
_RIGHT = re.compile(
    r"(?i:(?:so|therefore|thus|hence|finally|overall|conclusion)[,:]? +)?"
    r"(?i:(?:option|choice|answer) +)?[*_]{0,3}[(\[]?([A-Z])[)\]]?[*_]{0,3}"
    r" is (?:the )?(?:right|correct|best)(?: (?:answer|option|choice|one))?\W*"
)
_PHRASE = re.compile(
    rf"(?:the +)?(?:{_ANSWER}|letter)"
    rf"(?: +{_IS}(?= |:))?(?: *[:=-])? +(?=\S)|(?:the +)?answer:",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\\(?:boxed|text(?:bf|it)?|math(?:rm|bf))\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
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
# A letter and a reason, or a verdict on it, without a mark between them.
_BECAUSE = re.compile(
    rf"[{_MARKS}]{{0,8}}[(\[]?([A-Z])[)\]]?[{_MARKS}]{{0,8}}\s+"
    r"((?i:because|since|as|due to|is (?:the )?(?:right|correct|best|answer))\b.*)",
    re.DOTALL,
)
_BARE_PREFIX = re.compile(rf"[{_MARKS}]{{0,8}}([A-Za-z])[{_MARKS}]{{0,8}}\s+(.+)", re.DOTALL)
# What may stand between a label and its text besides: `(B): text`, `(B) - text`.
_JOINT = re.compile(r"(?:[.:,;]|[-\u2013\u2014](?=\s))\s*")
# Other letters that a text names as options.
_NAMED = re.compile(
    r"(?:^|\n)[ \t]*[(\[]?([A-Z])[.:)\]]"  # A line that begins as an option does.
    r"|(?:^|\s)([A-Z])(?:: ?|\s(?:is|seems|looks|would be) (?:(?:also|the|a|more) )*)"
    r"(?i:right|wrong|correct|incorrect|true|false|yes|no|better|best|answer)\b"
    r"|(?:^|\s)[*_]{0,2}[(\[]([A-Z])[)\]]"
    r"|(?:^|\s)(?:and|or|&|\+|/|,)\s*[(\[]?([A-Z])[)\]]?(?=$|[\s.,;:!?/])",
)
# The same in a text whose spaces are single. Bounds keep a row of such words linear.
_POINTED = re.compile(
    r"\b(?i:choos(?:e|ing)|pick|select|take|answer|option|choice|letter|one(?= is)|maybe"
    r"|perhaps|possibly|probably|rather|instead|actually|but|no(?=[,;:])|and|or"
    r"|wait|hmm|sorry|nope|correction|alternatively|however|also|mean|versus|vs|well as"
    r"|it's|thought|edit|wrong,)\b"
    r"(?: (?:is|be|was|should|must|option|answer|letter|choice|the|rather|maybe)\b){0,4}"
    r"(?: |: ?|[,;] )[*_`'\"$(\[]{0,4}"
    # Behind a stop, `A` and a word may be an article and its noun.
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
_PRONOUN = re.compile(r"\W{0,8}(?:I,|[Ii]\.[Ee]\b)")
_BULLET = re.compile(r"[-\u2022]\s+(?=[(\[*]{0,3}[A-Z]\b)")
_LETTER_LAST = re.compile(r"[(\[]([A-Z])[)\]][*_`.]{0,4}\Z")
# Brackets and marks without width, which NFKC leaves alone.
_CORNERS = str.maketrans("\u3010\u3011\u3014\u3015", "[][]", "\u200b\u200e\u2060\ufeff")
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
    options = {k.strip().upper(): _plain(v) for k, v in options.items()}
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
            return None if _CLOSE.search(between) else read(between, options), ""
        return read(text, options), "tag" if close else ""
    before, closed, behind = response.rpartition("</reasoning>")
    cut = not closed and "<reasoning>" in behind
    response = behind  # The prompts' own tag of thoughts, which are not read either.
    if lines := list(_LINE.finditer(response)):
        said, behind = lines[-1][1], response[lines[-1].end() :]
        if letter := read("answer " + said.strip().lstrip(":*_ \t"), options):
            if cut and behind.strip():
                return None, ""
            others = {c[2] for c in _CLAIM.finditer(behind)} | {_last_box(behind, options)}
            others |= {_one_letter(line) for line in behind.split("\n") if line.isupper()}
            return (letter, "line") if others <= {letter, "", None} else (None, "")
        ends = said.strip(_EDGES).lower() in ("", "is")
        if ends and (letter := _next_line(behind, options)):
            return letter, ""
        return _last_box(said + behind, options), ""
    if letter := read(response, options, labels=False) or _first_line(response, options):
        return letter, ""
    return _last_box(response, options) or _last_claim(response, options), ""


def _first_line(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that has a paragraph of its own at the start, if no later one retracts it."""
    first, _, rest = text.strip().partition("\n\n")
    letter = _one_letter(first) if first.strip(_EDGES).isupper() else ""
    return letter if letter and not _retracts(letter, rest, options) else None


def _last_claim(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of "..., so the answer is B." or "Option B is right." at the end, if no other
    was claimed before."""
    text = text.rstrip()
    claims = list(_CLAIM.finditer(text))
    if match := _RIGHT.fullmatch(text.rpartition("\n")[2].strip(" \t>*_#-")):
        letter = match[1]
    elif claims and "\n" not in text[claims[-1].end() :]:
        said = claims[-1][1].strip().lstrip(":*_ \t")
        letter = read("answer is " + said, options, labels=False)
    else:
        return None
    return letter if {c[2] for c in claims} <= {letter} else None


def _last_box(text: str, options: Mapping[str, str]) -> str | None:
    _, box, inside = text.rpartition("\\boxed{")
    depth = 1 if box else 0
    for brace in _BRACE.finditer(inside):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return read(inside[: brace.start()], options)
    return None


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
    text = _BULLET.sub("", text, count=1) if _BULLET.match(text) else text
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
            return letters[0] if len({options[c] for c in letters}) == 1 else None
    pieces = [p.strip(_EDGES) for p in _SEPARATORS.split(text)]
    pieces = [p.upper() for p in pieces if p]
    if pieces and all(len(p) == 1 and p in string.ascii_uppercase for p in pieces):
        return pieces[0] if len(set(pieces)) == 1 else None
    if match := _LABELLED.match(text) or _BECAUSE.match(text):
        letter = match[1].upper()
        if _PRONOUN.match(text) or _begins_as_another(text, options):
            return None  # `C. elegans` may be the text of B.
        return letter if labels and not _retracts(letter, match[2], options) else None
    if match := _BARE_PREFIX.match(text):
        rest = match[2].rstrip("*_`. ")
        bracketed = rest[1:-1] if rest[:1] + rest[-1:] in ("()", "[]") else ""
        if any(_own(match[1].upper(), t, options) for t in (match[2], bracketed) if t):
            return match[1].upper()
    if (match := _LETTER_LAST.search(text)) and _own(match[1], text[: match.start()], options):
        return match[1]
    return None


def _begins_as_another(text: str, options: Mapping[str, str]) -> bool:
    """Whether a text begins with that of an option which itself looks like a label."""
    start = _plain(text).casefold()
    labels = (option.casefold() for option in options.values() if _LABELLED.match(option))
    return any(start.startswith(label) for label in labels)


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
    own = r"\s+".join(map(re.escape, options.get(letter, "").split()))
    if own and (match := re.match(rf"[*_`\s]*{own}(?!\w)", rest)):
        rest = rest[match.end() :]
    others = {*(options or "ABCDEFGH")} - {letter}
    if (only := _one_letter(rest)) and only != letter:
        return True
    flat = " ".join(rest.split())
    shown = _plain(rest).casefold()
    for c in others & options.keys():
        if any(f" {c.lower()}{mark} {options[c].casefold()}" in f" {shown}" for mark in ".):"):
            return True
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
    return same or [letter for letter, option in options.items() if _same_words(option, text)]


def _same_words(a: str, b: str) -> bool:
    """Whether two texts differ in the case of words only, and not in that of symbols: mV is
    not MV, nor c1ccccc1 C1CCCCC1."""
    if a.casefold() != b.casefold():
        return False
    pairs = [(x, y) for x, y in zip(a.split(), b.split(), strict=True) if x != y]
    return all(_is_word(x) and (len(x) > 3 or x[1:] == y[1:]) for x, y in pairs)


def _is_word(text: str) -> bool:
    core = text.strip(",;:.!?()'\"").replace("-", "")
    return core.isalpha() and (len(core) > 3 or core[1:].islower() or core in "aA")


def _unwrapped(text: str) -> str:
    """Without LaTeX commands that say nothing; full-width letters and brackets made plain."""
    text = _RAISED.sub(r"^\g<0>", text)  # Else 10 to the 2nd would become 102.
    text = _MATH.sub("$", unicodedata.normalize("NFKC", text).translate(_CORNERS))
    for _ in range(_NESTED):
        text, found = _WRAPPER.subn(r" \1 ", text)
        if not found:
            break
    return text


def _plain(text: str) -> str:
    """An option's text for comparison: no wrappers, emphasis, outer marks or extra space."""
    text = " ".join(_unwrapped(text).split())
    return " ".join(text.lstrip("*_` ").rstrip("*_`. ").split()) or text
