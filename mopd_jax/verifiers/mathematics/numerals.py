"""Special forms of answers: numerals with a base, ratios, times, inequalities, option labels.

Also text round a value, as in `\\text{42 cm}`. Pure functions on strings.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_NUMERAL = re.compile(r"\(?([0-9A-Z]+)\)? ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))")
TEXT = (
    r"\\(?:text(?:rm|bf|it|normal|sf|tt|up|sl|md)?|math(?:rm|bf|it|sf|tt)|[mh]box|operatorname)"
)
_CLOCK = re.compile(r"[0-9]{1,2}(?::[0-5][0-9]){1,2}")

_TIME = re.compile(
    rf"([0-9]{{1,2}}(?::[0-5][0-9]){{1,2}}) ?(?:{TEXT} ?)?\{{? ?([AaPp])\.? ?[Mm]\.? ?\}}?"
)
_LABEL = re.compile(rf"{TEXT} ?\{{ ?\([A-Z]\) ?\}} ?(?=[-+0-9.$(A-Za-z\\])(?!\\cdot|\\times)")
_LABEL_INSIDE = re.compile(rf"({TEXT} ?\{{) ?\([A-Z]\) (?=[^{{}}]*\}}$)")
_NO_LABEL = re.compile(r"\) *(?:is|wrong|not|no|or|and)\b")
_OPTION = re.compile(rf"(?:{TEXT} ?\{{ ?)?(\()?([A-Z])\)?(?: ?\}})?")
_FIGURE = (
    r"[-+]?(?:\\?\$ ?)?(?:[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)(?:[:/][0-9]+)*(?: ?\\?%)?"
)
# A figure does not end in a comma, and a comma with a space separates two of them, so a text
# matches in one way only and in linear time.
_FIGURES = re.compile(
    rf"{TEXT} ?\{{ ?({_FIGURE}(?:(?:, (?:and |or )?| and | or ){_FIGURE})*)\.? ?\}}"
)
_FIGURE_AND_WORDS = re.compile(
    rf"{TEXT} ?\{{ ?({_FIGURE}) ([A-Za-z][A-Za-z./ -]*?) ?(\^ ?(?:[0-9]|\{{[0-9]\}}))?\.? ?\}}"
)

_BOUND = r"((?:(?!\\le|\\ge)[^<>=,;])+)"
_INEQUALITY = re.compile(rf"{_BOUND}(<|>|\\[lg]e(?![A-Za-z])){_BOUND}")
_CHAIN = re.compile(
    rf"{_BOUND}(<|>|\\[lg]e(?![A-Za-z])){_BOUND}(<|>|\\[lg]e(?![A-Za-z])){_BOUND}"
)
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_LOGIC = re.compile(rf" *,? *(?:{TEXT} ?\{{ *(and|or) *\}}|(?<= )(and|or)(?= )|,) *")


class Numeral(NamedTuple):
    """Digits that are written with their base."""

    digits: str
    base: int


def numeral(text: str) -> Numeral | None:
    r"""The numeral `43_6`, `1F_{16}` or `(43)_6`, without leading zeros; None for all else.

    Where a digit is too large for the base, the text is a variable, as `A_1` is.
    """
    if not (match := _NUMERAL.fullmatch(text.strip(" "))):
        return None
    digits, base = match[1], int(match[2] or match[3])
    if not 2 <= base <= 36 or not any(c.isdigit() for c in digits):
        return None
    if any(int(c, 36) >= base for c in digits):
        return None
    return Numeral(digits.lstrip("0") or "0", base)


def ratio(text: str) -> tuple[str, ...]:
    """The terms between colons outside of brackets; () without a colon or a term."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c == ":":
            parts.append(text[start:i].strip(" "))
            start = i + 1
    parts.append(text[start:].strip(" "))
    return tuple(parts) if len(parts) > 1 and all(parts) else ()


def proportional(a: list[Fraction], b: list[Fraction]) -> bool:
    """Whether one list is the other times a factor other than 0; both have one length."""
    i = next((i for i, value in enumerate(a) if value), None)
    if i is None or not b[i]:
        return a == b
    return all(p * b[i] == q * a[i] for p, q in zip(a, b, strict=True))


def is_clock(text: str) -> bool:
    """Whether the text may be a time of day or a duration, such as `12:30`."""
    return _CLOCK.fullmatch(text.replace(" ", "")) is not None


def time_of_day(text: str) -> tuple[str, str]:
    """("8:00", "a") of `8:00 AM`; ("", "") of a text without AM or PM."""
    match = _TIME.fullmatch(text)
    return (match[1], match[2].lower()) if match else ("", "")


def without_text(text: str) -> str:
    r"""Takes a value out of the text round it, and drops an option's letter in front.

    `\text{42 cm}` becomes `42\text{ cm}`, and `\textbf{(B) }42` becomes `42`. All else stays.
    """
    text = text.strip(" ")
    text = _LABEL_INSIDE.sub(r"\1", text) if _LABEL_INSIDE.match(text) else text
    if (match := _LABEL.match(text)) is not None:
        text = text[match.end() :]
    whole = text.removesuffix(".")
    if match := _FIGURES.fullmatch(whole):
        return match[1]
    if match := _FIGURE_AND_WORDS.fullmatch(whole):
        return rf"{match[1]}\text{{ {match[2]}}}{match[3] or ''}"
    return text


def solution_set(text: str) -> str:
    r"""Several inequalities of one variable as the set that they describe.

    `x<-1\text{ or }x>1` becomes `x \in (-\infty,-1) \cup (1,\infty)`, `x>-1\text{ and }x<2`
    becomes `x \in (-1,2)`, and `3 > x > 1` becomes `x \in (1,3)`; parts of a union may be such
    chains. A comma means "and" where a number can satisfy both sides, else "or". All else,
    inequalities of several variables too, is returned as it is.
    """
    chain = _CHAIN.fullmatch(text)
    if chain and chain[2] in (">", r"\ge") and (turned := _interval(text)):
        return rf"{turned[0]} \in {turned[1]}"
    parts = _LOGIC.split(text)
    joints = {
        word or other or "," for word, other in zip(parts[1::3], parts[2::3], strict=True)
    }
    if joints == {"or"} and any(map(_CHAIN.fullmatch, parts[::3])):
        pieces = [piece for part in parts[::3] if (piece := _interval(part))]
        if len(pieces) < len(parts[::3]) or len({name for name, _ in pieces}) != 1:
            return text
        return rf"{pieces[0][0]} \in " + r" \cup ".join(interval for _, interval in pieces)
    rays = [ray for part in parts[::3] if (ray := _ray(part))]
    if len(joints) != 1 or len(rays) < len(parts[::3]) or len({ray.name for ray in rays}) != 1:
        return text
    joint = joints.pop()
    lower = [ray for ray in rays if ray.sign in (">", r"\ge")]
    upper = [ray for ray in rays if ray.sign in ("<", r"\le")]
    opposite = len(lower) == len(upper) == 1
    if joint == ",":
        if not opposite:
            return text
        try:
            joint = "and" if Fraction(lower[0].bound) < Fraction(upper[0].bound) else "or"
        except (ValueError, ZeroDivisionError):
            return text
    head = rf"{rays[0].name} \in "
    if joint == "or":
        return head + r" \cup ".join([*map(_below, upper), *map(_above, lower)])
    return f"{head}{_above(lower[0], upper[0])}" if opposite else text


class _Ray(NamedTuple):
    """The values of a variable on one side of a bound: `x < 1`."""

    name: str
    sign: str
    bound: str


def _below(ray: _Ray) -> str:
    """The interval of a ray with an upper bound."""
    return rf"(-\infty,{ray.bound}{')' if ray.sign == '<' else ']'}"


def _above(ray: _Ray, end: _Ray | None = None) -> str:
    """The interval of a ray with a lower bound, up to the ray `end` if there is one."""
    stop = r"\infty)" if end is None else f"{end.bound}{')' if end.sign == '<' else ']'}"
    return f"{'(' if ray.sign == '>' else '['}{ray.bound},{stop}"


def _interval(text: str) -> tuple[str, str] | None:
    r"""("x", "[0,1)") of `0 \le x < 1`, and the like of `3 > x > 1` and `x < 1`."""
    if match := _CHAIN.fullmatch(text.strip(" ")):
        low, first, name, second, high = (group.strip(" ") for group in match.groups())
        if first in (">", r"\ge"):
            low, first, second, high = high, _TURNED[second], _TURNED[first], low
        rises = {first, second} <= {"<", r"\le"}
        bounds = re.sub(r"\\[A-Za-z]+", "", low + high)
        if not rises or len(name) != 1 or not name.isalpha() or re.search("[A-Za-z]", bounds):
            return None
        start, stop = "(" if first == "<" else "[", ")" if second == "<" else "]"
        return name, f"{start}{low},{high}{stop}"
    if not (ray := _ray(text)):
        return None
    return ray.name, _below(ray) if ray.sign in ("<", r"\le") else _above(ray)


def label(text: str) -> str:
    r"""The option's letter in `\textbf{(B) }42` or `\text{(B) 42}`; "" where there is none."""
    letters = set(re.findall(r"\(([A-Z])\)", text))
    match = _LABEL.match(text) or _LABEL_INSIDE.match(text)
    return letters.pop() if match and len(letters) == 1 and not _NO_LABEL.search(text) else ""


def option(text: str) -> tuple[str, bool]:
    """(letter, whether in brackets) of a gold answer that may be the letter of an option;
    ("", False) of all else."""
    match = _OPTION.fullmatch(text)
    return (match[2], match[1] is not None) if match else ("", False)


def _ray(text: str) -> _Ray | None:
    """The ray of an inequality such as `x < 1` or `1 > x`; None of all else."""
    if not (match := _INEQUALITY.fullmatch(text.strip(" "))):
        return None
    left, sign, right = (group.strip(" ") for group in match.groups())
    if not (len(left) == 1 and left.isalpha()):
        left, right = right, left
        sign = _TURNED[sign]
    if not (len(left) == 1 and left.isalpha()) or left in re.sub(r"\\[A-Za-z]+", "", right):
        return None
    return _Ray(left, sign, right)
