"""Numerals with a base, `43_6`, ratios, `3:4`, times of day, and text round a value. Pure
functions on strings."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_NUMERAL = re.compile(r"\(?([0-9A-Z]+)\)? ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))")
TEXT = r"\\(?:text(?:rm|bf|it|normal|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname)"
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
# A figure ends in no comma, and a comma with a space parts two of them, so that no text can be
# read in many ways.
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
    """Digits that were written with their base."""

    digits: str
    base: int


def numeral(text: str) -> Numeral | None:
    r"""`43_6`, `1F_{16}`, `(43)_6`; None for all else, and where a digit is too large for its
    base, as in the variable `A_1`. Leading zeros mean nothing."""
    if not (match := _NUMERAL.fullmatch(text.strip(" "))):
        return None
    digits, base = match[1], int(match[2] or match[3])
    if not 2 <= base <= 36 or not any(c.isdigit() for c in digits):
        return None
    if any(int(c, 36) >= base for c in digits):
        return None
    return Numeral(digits.lstrip("0") or "0", base)


def ratio(text: str) -> tuple[str, ...]:
    """The terms between the colons that stand in no bracket; () where there is no colon."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c == ":":
            parts.append(text[start:i].strip(" "))
            start = i + 1
    parts.append(text[start:].strip(" "))
    return tuple(parts) if len(parts) > 1 and all(parts) else ()


def proportional(a: list[Fraction], b: list[Fraction]) -> bool:
    """Whether one is the other times a factor that is not 0."""
    i = next((i for i, value in enumerate(a) if value), None)
    if i is None or not b[i]:
        return a == b
    return all(p * b[i] == q * a[i] for p, q in zip(a, b, strict=True))


def is_clock(text: str) -> bool:
    """Whether a ratio may be a time of day or a duration, such as `12:30`."""
    return _CLOCK.fullmatch(text.replace(" ", "")) is not None


def time_of_day(text: str) -> tuple[str, str]:
    """`8:00` and "a" of `8:00 AM`, and ("", "") of all that is no such time."""
    match = _TIME.fullmatch(text)
    return (match[1], match[2].lower()) if match else ("", "")


def without_text(text: str) -> str:
    r"""`\text{42 cm}` as `42\text{ cm}` and `\textbf{(B) }42` as 42: text round a value, and
    the letter of an option in front of it. All else stays."""
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
    r"""`x \in (-\infty,-1)\cup(1,\infty)` of `x<-1\text{ or }x>1`, and `x \in (-1,2)` of
    `x>-1\text{ and }x<2`; a comma means "and" where a number can be both, else "or".

    `3 > x > 1` is `x \in (1,3)`, and a union may have such parts. Of all else, and of
    inequalities of several variables, the text itself.
    """
    chain = _CHAIN.fullmatch(text)
    if chain and chain[2] in (">", r"\ge") and (turned := _interval(text)):
        return rf"{turned[0]} \in {turned[1]}"
    parts = _LOGIC.split(text)
    joints = {
        word or other or "," for word, other in zip(parts[1::3], parts[2::3], strict=True)
    }
    if joints == {"or"} and any(map(_CHAIN.fullmatch, parts[::3])):
        pieces = [_interval(part) for part in parts[::3]]
        if None in pieces or len({name for name, _ in pieces}) != 1:
            return text
        return rf"{pieces[0][0]} \in " + r" \cup ".join(interval for _, interval in pieces)
    rays = [_ray(part) for part in parts[::3]]
    if len(joints) != 1 or None in rays or len({ray.name for ray in rays}) != 1:
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
    """The numbers on one side of a bound."""

    name: str
    sign: str
    bound: str


def _below(ray: _Ray) -> str:
    return rf"(-\infty,{ray.bound}{')' if ray.sign == '<' else ']'}"


def _above(ray: _Ray, end: _Ray | None = None) -> str:
    stop = r"\infty)" if end is None else f"{end.bound}{')' if end.sign == '<' else ']'}"
    return f"{'(' if ray.sign == '>' else '['}{ray.bound},{stop}"


def _interval(text: str) -> tuple[str, str] | None:
    r"""The variable of `0 \le x < 1`, `3 > x > 1` or `x < 1`, and where it lies."""
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
    r"""The letter of an option in front of a value, of `\textbf{(B) }42` or `\text{(B) 42}`."""
    letters = set(re.findall(r"\(([A-Z])\)", text))
    match = _LABEL.match(text) or _LABEL_INSIDE.match(text)
    return letters.pop() if match and len(letters) == 1 and not _NO_LABEL.search(text) else ""


def option(text: str) -> tuple[str, bool]:
    """(letter, whether in brackets) of a gold answer that is the letter of an option, or may
    be; ("", False) of all else."""
    match = _OPTION.fullmatch(text)
    return (match[2], match[1] is not None) if match else ("", False)


def _ray(text: str) -> _Ray | None:
    """What an inequality such as `x < 1` says of one variable."""
    if not (match := _INEQUALITY.fullmatch(text.strip(" "))):
        return None
    left, sign, right = (group.strip(" ") for group in match.groups())
    if not (len(left) == 1 and left.isalpha()):
        left, right = right, left
        sign = _TURNED[sign]
    if not (len(left) == 1 and left.isalpha()) or left in re.sub(r"\\[A-Za-z]+", "", right):
        return None
    return _Ray(left, sign, right)
