"""One spelling of mathematical answers: LaTeX commands, Unicode signs, blanks, brackets.

Pure functions on strings.
"""

from __future__ import annotations

import re

from mopd_jax.verifiers.mathematics import numerals

_TEXT = numerals.TEXT
# Unicode signs in LaTeX.
_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u00f7": "/",
    "\u2215": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u221a": r"\sqrt ",
    "\u00b0": r"^\circ ",
    "\u2248": r"\approx ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u2205": r"\emptyset ",
    "\u00b1": r"\pm ",
    "\u211d": r"\mathbb{R}",
    "\u00b2": "^{2}",
    "\u00b3": "^{3}",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u2153": r"\frac{1}{3}",
    "\u2154": r"\frac{2}{3}",
    "\u2019": "'",
    "\u2026": r"\ldots ",
    "\u22ef": r"\ldots ",
    "\u03b3": r"\gamma ",
    "\u0393": r"\Gamma ",
    "\u03b5": r"\epsilon ",
    "\u03f5": r"\epsilon ",
    "\u2236": ":",
    "\uff1a": ":",
    "\u00a0": r"\ ",
    "\u202f": r"\ ",
    "\u2009": r"\ ",
    "\u2007": r"\ ",
    "\uff0c": ",",
}
_UNICODE = str.maketrans(_SIGNS)
_DELIMITER = re.compile(r"(?<!\\)(?:\\[()\[\]]|\$)")
_NOISE = re.compile(
    r"\\(?:left|right|[bB]ig{1,2}[lrm]?|displaystyle|textstyle|limits|boxed|fbox)(?![A-Za-z])\.?"
    r"|\\(?:boldsymbol|bold|bm|underline|emph|bf|rm|large|Large|normalsize|hfill|therefore)(?![A-Za-z])"
    r"|\\(?:text)?color ?\{[a-zA-Z]*\}|\\hspace ?\{[^{}]*\}|\\mathbf(?= ?\{ ?[-0-9\\])"
    r"|\\text ?\{ ?(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is)?:? ?\}"
    r"|\\(?:checkmark|square|blacksquare) *$"
    r"|^\*\*|\*\*$|(?<!\\)\\$"  # The last is the rest of a `\ ` at the end.
)
# Thin spaces and braced commas that separate thousands.
_THOUSANDS = re.compile(
    r"(?<=[0-9])(?:\{,\}|\\text\{,\}|,?\\!|\\[,;:]|~) ?(?=[0-9]{3}(?![0-9]))"
)
# A whole number in groups behind blanks: 10 080, 10\ 080. A fraction's whole part is no group.
_GROUPS = re.compile(
    r"(?<![0-9.,^_/}\\])(?<![0-9.,^_/}\\] )[1-9][0-9]{0,2}(?:(?: |\\ ) ?[0-9]{3})+"
    r"(?![0-9]|\.[0-9]{0,2}\.| ?(?:/|\\[dt]?frac)|\\? [0-9])"
)
# Digits with commas in front of letters or a command: 1,000\pi.
_THOUSANDS_OF = re.compile(
    r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+"
    r"(?= ?(?:\\(?!\}|rbrace|rangle)|(?!(?:and|or)\b)[A-Za-z]))"
)
# Runs of blanks become one blank, because patterns below would be slow on runs.
_SPACE = re.compile(r"(?:(?<!\\)\\[,!;:> ]|\\q?quad(?![A-Za-z])|(?<!\\)~|\s)+")
_SYNONYMS = (
    (re.compile(r"\\(?:simeq|thickapprox|approxeq)(?![A-Za-z])"), r"\\approx"),
    (re.compile(r"^ *\\approx(?![A-Za-z])"), ""),
    (re.compile(r"\\varepsilon(?![A-Za-z])"), r"\\epsilon"),
    (re.compile(r"\\(?:c?dots[cbmio]?|ldots)(?![A-Za-z])|\.\.\."), r"\\ldots"),
    (re.compile(r"\\(?:textnormal|textup|textsl|textmd|hbox)(?= ?\{)"), r"\\text"),
    (re.compile(r"\\textsuperscript ?\{ ?(st|nd|rd|th) ?\}"), r"\\text{\1}"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r" ?\*\* ?"), "^"),
    (re.compile(r"\\(?:mathrm|text) ?\{ ?([eid]) ?\}"), r"\1"),
    (
        re.compile(
            r"\\(?:operatorname\*?|mathrm|text) ?\{ ?(?:(arcsin|arccos|arctan|sinh|cosh|tanh"
            r"|sin|cos|tan|cot|csc|ln|log|exp|gcd|lcm) ?\}"
            # \text{sec} is seconds, unless an argument follows.
            r"|(sec) ?\}(?= ?(?:\^ ?\{?-?[0-9]\}? ?)?[(\\A-Za-z]))"
        ),
        lambda match: rf"\{match[1] or match[2]} ",
    ),
    (re.compile(r"\\log ?_ ?(?:\{ ?e ?\}|e)(?![A-Za-z])"), r"\\ln "),
    (
        re.compile(r"\\([lr])brace(?![A-Za-z])"),
        lambda match: r"\{" if match[1] == "l" else r"\}",
    ),
    (re.compile(r"\{ ?([0-9a-z]+) ?\\choose ?([0-9a-z]+) ?\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<=[0-9.])\\(?:bar|dot) ?(?:([0-9])|\{([0-9]+)\})"), r"\\overline{\1\2}"),
    (re.compile(r"(?<=[0-9])\{:\}(?=[0-9])"), ":"),
    (re.compile(rf"{_TEXT} ?\{{ ?\^\\circ ?\}}"), r"^\\circ"),
    (
        re.compile(r"\^ ?(?:\{ ?(?:\\prime ?)+\}|\\prime(?: ?\\prime)*(?![A-Za-z]))"),
        lambda match: "'" * match[0].count("prime"),
    ),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\leq(?:slant)?(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])|\\not ?="), r"\\ne "),
    (re.compile(r"\\not ?\\in(?![A-Za-z])"), r"\\notin "),
    (re.compile(r"\\(bar|hat|dot|vec|tilde|overline) ?([A-Za-z])"), r"\\\1{\2}"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\degree(?![A-Za-z])|\^ ?\{ ?\\circ ?\}"), r"^\\circ"),
    (re.compile(r"\\frac *([0-9]) *([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac *([0-9]) *\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac *(\{[^{}]*\}) *([0-9])"), r"\\frac\1{\2}"),
    (re.compile(r"\\sqrt *([0-9A-Za-z]|\\[A-Za-z]+)"), r"\\sqrt{\1}"),
)
_JOINTS = (
    (re.compile(rf"{_TEXT}\{{ *,? *(?:and|or) *\}}"), ", "),
    # Behind a comma only in front of a value or a letter, because prose has such commas too.
    (re.compile(r"[,;] *(?:and|or)(?: +(?=[A-Za-z](?![A-Za-z]))| *(?=[-+\\0-9(\[]))"), ", "),
    (re.compile(r"(?<=[0-9}) ]) +(?:and|or) +(?=[-+\\0-9(A-Za-z])"), ", "),
    (re.compile(r"(?<=[0-9})\]]) *(?:and|or)(?: +(?=[A-Za-z] ?=)| *(?=[-+\\0-9(\[]))"), ", "),
    (re.compile(r"[,;] *, *"), ", "),
)
_FUNCTIONS = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp|"
    r"sec(?= ?[(^\\]| [A-Za-z])|sqrt|pi|infinity|infty)(?![A-Za-z])"
)
_ROMAN = re.compile(r"\{ ?\\rm(?![A-Za-z]) ?([^{}\\]*)\}|\\rm ?\{([^{}\\]*)\}")
# An option's sentence: \text{The answer is 12}.
_SENTENCE = re.compile(r"(\\text ?\{) ?(?:The|the) (?:final )?answer is:? (?=[-+0-9.\\$])")
_ORDINAL = re.compile(
    rf"(?<![A-Za-z0-9.,^_/}}])([0-9]+)(?:(?: ?\^ ?\{{?)? ?{_TEXT} ?\{{ ?(st|nd|rd|th) ?\}}\}}?"
    rf"|(st|nd|rd|th))(?= ?(?:$|[,;)\]]))"
)
_ORDINAL_OF = re.compile(
    rf"([0-9]+(?: ?\^ ?\{{?)? ?{_TEXT} ?\{{ ?(?:st|nd|rd|th) ?\}}\}}?|[0-9]+(?:st|nd|rd|th)) ?"
    rf"(?:{_TEXT} ?\{{ ?([a-z]{{3,}}) ?\}}|([a-z]{{3,}}))"
)
WRAPPED = re.compile(rf"{_TEXT} ?\{{([^{{}}]*)\}}")


def clean(text: str) -> str:
    """The answer with LaTeX signs, without delimiters and decoration, with single spaces.

    Blanks between digits stay, because `1 1/2` is not `11/2`.
    """
    text = text.translate(_UNICODE)
    text = _DELIMITER.sub(" ", text)
    text = _ROMAN.sub(lambda match: rf"\mathrm{{{match[1] or match[2]}}}", text)
    text = _GROUPS.sub(lambda match: re.sub(r"[ \\]", "", match[0]), text)
    text = _NOISE.sub(" ", text)
    text = _THOUSANDS.sub("", text)
    text = _without_commas(text)
    text = numerals.without_text(_SENTENCE.sub(r"\1", _SPACE.sub(" ", text)))
    for pattern, synonym in (*_SYNONYMS, *_JOINTS):
        if pattern is _JOINTS[0][0]:
            text = numerals.solution_set(text)
        text = pattern.sub(synonym, text)
    text = _without_ordinals(text)
    if not WRAPPED.search(text):
        text = _FUNCTIONS.sub(r"\\\1", text).replace(r"\infinity", r"\infty")
    text = _grouped(text, r"\sqrt")
    text = _grouped(text, "^")
    text = text.strip(" ").removesuffix(".").strip(" ")
    while text.startswith("{") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip(" ")
    return text


def _without_ordinals(text: str) -> str:
    """`12th` and `12^{\\text{th}}` as `12`, where the ending is that of the number."""
    if match := _ORDINAL_OF.fullmatch(text.strip(" ")):
        number = _ORDINAL.sub(_cardinal, match[1])
        return rf"{number}\text{{ {match[2] or match[3]}}}" if number.isdigit() else text
    return _ORDINAL.sub(_cardinal, text)


def _cardinal(match: re.Match[str]) -> str:
    """The number of an ordinal; the text itself where the ending is another's, as in `2th`."""
    number = match[1]
    teens = number[-2:] in ("11", "12", "13")
    ending = "th" if teens else {"1": "st", "2": "nd", "3": "rd"}.get(number[-1], "th")
    return number if (match[2] or match[3]) == ending else match[0]


def _without_commas(text: str) -> str:
    """`1,000\\pi` as `1000\\pi`, if no other comma is in the text and no bracket is open."""
    numbers = list(_THOUSANDS_OF.finditer(text))
    if len(numbers) != 1 or numbers[0][0].count(",") != text.count(","):
        return text
    head, tail = text[: numbers[0].start()], text[numbers[0].end() :]
    is_open = sum(map(head.count, "([")) > sum(map(head.count, ")]"))
    if is_open or r"\{" in head or r"\langle" in head or r"\lbrace" in head:
        return text
    return head + numbers[0][0].replace(",", "") + tail


def _grouped(text: str, command: str) -> str:
    """`\\sqrt(...)` and `^(...)` with braces round the parentheses, which LaTeX requires."""
    pieces, start = [], 0
    while (at := text.find(command, start)) >= 0:
        opening = at + len(command)
        while opening < len(text) and text[opening] == " ":
            opening += 1
        close = closing(text, opening) if text[opening : opening + 1] == "(" else None
        if close is None:
            pieces.append(text[start:opening])
            start = opening
        else:
            pieces.append(text[start:opening] + "{(")
            # The part in parentheses may hold the command again.
            inner = text[opening + 1 : close]
            text = inner + ")}" + text[close + 1 :]
            start = 0
    return "".join(pieces) + text[start:]


def closing(text: str, opening: int) -> int | None:
    """Where the bracket at `opening` closes, or None. Any kind closes any, as in `[0, 1)`."""
    depth = 0
    for i in range(opening, len(text)):
        c = text[i]
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth == 0:
                return i
    return None


def squash(text: str) -> str:
    """The text without spaces that separate nothing, for comparison as text."""
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", text)
    return re.sub(r"([_^])\{([A-Za-z0-9])\}", r"\1\2", text)
