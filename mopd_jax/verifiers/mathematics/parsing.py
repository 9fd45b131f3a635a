"""Mathematical answers as text: boxes, numbers, units, shapes.

Pure functions on strings. `math.py` has the rules that are made of them.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import Literal, NamedTuple

from mopd_jax.verifiers.mathematics import numerals, spelling, units

_BOX = re.compile(r"\\(boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_TEXT = numerals.TEXT
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_PLAIN = rf"(?:{_INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
_DECIMAL = re.compile(rf"({_PLAIN})(?:[eE]([+-]?[0-9]{{1,3}}))?")
_SCIENTIFIC = re.compile(
    rf"({_PLAIN}) ?(?:\\times|\\cdot|\*) ?10 ?\^ ?(?:\{{ ?([+-]?[0-9]{{1,3}}) ?\}}|([0-9]))"
)
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")
_SLASH = re.compile(rf"({_PLAIN}) ?/ ?({_PLAIN})")
_FRACTION = re.compile(r"\\frac ?\{ ?([^{}]*?) ?\} ?\{ ?([^{}]*?) ?\}")
_MIXED = re.compile(r"([0-9]+) ?\\frac ?\{ ?([0-9]+) ?\} ?\{ ?([0-9]+) ?\}")
_MIXED_SLASH = re.compile(r"([0-9]+) ([0-9]+) ?/ ?([0-9]+)")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline ?\{([0-9]+)\}")
_LONGEST_NUMBER = 400

_PERCENT = re.compile(rf" ?(?:\\?%|{_TEXT}\{{ ?percent ?\}}|percent)$")
_CURRENCY = re.compile(r"^(-?) ?(?:\\\$|[\u20ac\u00a3\u00a5])(?= ?[-0-9.\\(])")
_UNIT_WORD = (
    r"(?:mm|cm|dm|km|kg|mg|ml|lbs?|ft|yd|mi|hrs?|sec|min|mph|inch|inches|foot|feet|yards?|miles?|"
    r"met(?:er|re)s?|grams?|lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|"
    r"dollars?|cents?|degrees?|radians?|units?|square|cubic|sq)(?![A-Za-z])\.?"
)
_BARE_UNIT = re.compile(rf"(?<=[0-9}}) ]) ?((?:{_UNIT_WORD} ?(?:\^ ?\{{?[0-9]\}}?)?)+)$")
# Bold and italic letters are vectors and variables. A blank has one place to be matched in, so
# that no text can be read in many ways.
_WRAPPED_PART = (
    r"(?: ?(?:/|\\cdot|\\times))? ?\\(?:text(?:rm)?|mathrm|mbox) ?\{[^{}]*\}"
    r"(?: ?\^ ?\{?-?[0-9]\}?)?"
)
_WRAPPED_UNIT = re.compile(rf"((?:{_WRAPPED_PART})+) ?$")
_NO_QUANTITY = ("^", "_", "+", "-", "*", "=", "<", ">")
_DEGREES = re.compile(rf" ?\^ ?\\circ ?(?:(?:{_TEXT} ?)?\{{? ?([CF]) ?\}}?)?$")
# Behind a function the sign is part of its argument.
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_RELATION = re.compile(r"(?<!\\not)(?<!\\not )(?:\\in(?![A-Za-z])|(?<![<>!:\\])=)")
_NAME = re.compile(r"[A-Za-z\\(|][A-Za-z0-9\\(),_{}' |]*")
_MATRIX = re.compile(r"\\begin|\\frac|\\sqrt|\\int|\\sum")


class Box(NamedTuple):
    """The last box of a response."""

    content: str
    closed: bool  # Its braces balance.
    plain: bool  # It is a \\boxed with braces, and no other form.


def last_box(text: str) -> Box | None:
    r"""The last `\boxed{...}` that stands in no other, also `\boxed 5` and `\fbox{...}`.

    Braces balance as TeX counts them: `\{` and `\}` are no braces. The content of a box without
    braces ends at a space or dollar sign.
    """
    if not (matches := list(_BOX.finditer(text))):
        return None
    pairs = _braces(text)
    found, bare, end = None, 0, 0
    for match in matches:
        if match.start() < end:
            continue
        start = match.end()
        while start < len(text) and text[start] in " \t\r\n":
            start += 1
        if start < len(text) and text[start] == "{":
            close = pairs.get(start)
            content = text[start + 1 : close] if close is not None else ""
            found = Box(content.strip(), close is not None, match[1] == "boxed")
            end = close + 1 if close is not None else match.end()
        else:
            found, bare = None, start
    return found or Box(_unbraced(text[bare : bare + 4000]), True, False)


def _braces(text: str) -> dict[int, int]:
    """{place of an opening brace: place of the closing one}, for those that have one."""
    pairs, stack = {}, []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            pairs[stack.pop()] = match.start()
    return pairs


def _unbraced(text: str) -> str:
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth < 0 or (depth == 0 and (c.isspace() or c == "$")):
            text = text[:i]
            break
    return re.sub(r"(?:\\[)\]]|[.,;:])+$", "", text)


@dataclasses.dataclass(frozen=True)
class Number:
    """An exact rational number, and how many decimals it was written with, if with any."""

    value: Fraction
    decimals: int = 0


def number(text: str) -> Number | None:
    r"""The number that a cleaned text is: 1,000, -3.5, 1/2, \frac{1}{2}, 1 1/2, 2e-3,
    0.\overline{3}. None for all else."""
    text = text.strip(" ")
    if len(text) > _LONGEST_NUMBER:
        return None
    while text.startswith("(") and spelling.closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip(" ")
        if "," in text:
            return None  # A pair: (0,100) is not 0,100.
    sign = 1
    if text[:1] in ("+", "-"):
        sign, text = (-1 if text[0] == "-" else 1), text[1:].lstrip(" ")
    found = _unsigned(text)
    return found and Number(sign * found.value, found.decimals)


def _unsigned(text: str) -> Number | None:
    if match := _DECIMAL.fullmatch(text) or _SCIENTIFIC.fullmatch(text):
        digits = match[1].replace(",", "")
        exponent = int(next(filter(None, match.groups()[1:]), 0))
        return Number(
            Fraction(digits.rstrip(".")) * Fraction(10) ** exponent,
            max(0, len(digits.partition(".")[2]) - exponent),
        )
    if _HEX.fullmatch(text):
        return Number(Fraction(int(text, 16)))
    if match := _MIXED.fullmatch(text) or _MIXED_SLASH.fullmatch(text):
        whole, top, bottom = map(int, match.groups())
        return Number(whole + Fraction(top, bottom)) if bottom else None
    if match := _SLASH.fullmatch(text) or _FRACTION.fullmatch(text):
        top, bottom = number(match[1]), number(match[2])
        if top is None or bottom is None or not bottom.value:
            return None
        return Number(top.value / bottom.value)
    if match := _REPEATING.fullmatch(text):
        whole, fixed, again = match.groups()
        base = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
        return Number(base + Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed)))
    return None


def times(a: Number, b: Number) -> Number:
    """Their product, with the decimals of the first."""
    return Number(a.value * b.value, a.decimals)


def equal(a: Number, b: Number) -> bool:
    """Whether they are equal, or one is a rounding of what can be no decimal."""
    if a.value == b.value:
        return True
    # Six decimals are a rounding only of what no decimal can be.
    exact, rounded = sorted((a, b), key=lambda n: n.decimals)
    if rounded.decimals < 6 or exact.decimals or _terminates(exact.value):
        return False
    near = abs(a.value - b.value) <= Fraction(1, 10**6) * max(abs(a.value), abs(b.value))
    return near and round(a.value, 6) == round(b.value, 6)


def _terminates(value: Fraction) -> bool:
    """Whether a finite decimal is this number."""
    return 10 ** value.denominator.bit_length() % value.denominator == 0


def take_percent(text: str) -> tuple[str, bool]:
    """A cleaned text without a percent sign at its end, and whether there was one."""
    rest = _PERCENT.sub("", text)
    return (rest.strip(" "), True) if rest != text and rest.strip(" ") else (text, False)


def take_unit(text: str) -> tuple[str, str]:
    """A cleaned text without its unit, and the unit's name; "" where there is none.

    A unit is a currency sign in front, a degree sign, wrapped text such as \\text{cm}^2, or one
    of a list of words, at the end behind a quantity. Single bare letters are variables.
    """
    if match := _CURRENCY.match(text):
        sign = text[match.start() : match.end()].lstrip("- ").lstrip("\\")
        return (match[1] + text[match.end() :]).strip(" "), sign
    for pattern in (_DEGREES, _WRAPPED_UNIT, _BARE_UNIT):
        match = pattern.search(text)
        rest = text[: match.start()].strip(" ") if match else ""
        if rest and not rest.endswith(_NO_QUANTITY):
            if pattern is _WRAPPED_UNIT and not units.is_unit(_unwrapped(match[1])):
                return text, ""
            name = f"deg{match[1] or ''}" if pattern is _DEGREES else _unit_name(match[1])
            return (text, "") if name == "deg" and _TRIG.search(rest) else (rest, name)
    return text, ""


def says_more(text: str) -> bool:
    r"""Whether words behind a quantity are no unit of it, as in `5\text{ million}`."""
    match = _WRAPPED_UNIT.search(text)
    rest = text[: match.start()].strip(" ") if match else ""
    if not rest or rest.endswith(_NO_QUANTITY):
        return False
    words = _unwrapped(match[1])
    return not units.is_unit(words) and not units.is_letter(words)


def _unwrapped(text: str) -> str:
    return spelling.WRAPPED.sub(r" \1 ", text).replace("{", "").replace("}", "")


def _unit_name(text: str) -> str:
    bare = spelling.WRAPPED.sub(r"\1", text).replace("{", "").replace("}", "")
    words = [w.strip(".") for w in bare.replace("^", " ^").split()]
    words = [w[:-1] if len(w) > 2 and w.endswith("s") and w[-2] != "/" else w for w in words]
    words = [units.NAMES.get(w, w) for w in words]
    # "square units" says no more than nothing.
    return "" if "unit" in words else "".join(words)


def assignment(text: str) -> tuple[str, str]:
    """(name, value) of `x = 5`, `f(x) = x^2`, `(x, y) = (1, 2)`, `x \\in S`; of `2+3 = 5` the
    name is ""; of all else, too. A chain `x = 2 + 3 = 5` has its last value."""
    parts = _RELATION.split(text)
    name, value = parts[0].strip(" "), parts[-1].strip(" ")
    if len(parts) == 1 or not value or (len(parts) > 2 and len(_split(text)) > 1):
        return "", text
    if not any(c.isalpha() for c in name) and name:
        return "", value
    if _NAME.fullmatch(name) and not _MATRIX.search(name) and _depth(name) == 0:
        return spelling.squash(name), value
    return "", text


def is_relation(text: str) -> bool:
    """Whether a cleaned text says that something equals, or is in, something."""
    return _RELATION.search(text) is not None


def _depth(text: str) -> int:
    """Opening minus closing brackets."""
    return sum((c in "([{") - (c in ")]}") for c in text)


Kind = Literal["scalar", "list", "set", "()", "[]", "(]", "[)"]


class Shape(NamedTuple):
    """What a text is at its outermost level, and its parts."""

    kind: Kind
    parts: tuple[str, ...]


def shape(text: str) -> Shape:
    """Set, tuple or interval, bare list, or one thing, of a cleaned text.

    1,000 is a number and `1, 000` a list; parentheses round one thing only group it.
    """
    while text.startswith("(") and spelling.closing(text, 0) == len(text) - 1:
        inner = text[1:-1].strip(" ")
        if len(_split(inner)) != 1:
            break
        text = inner
    if "\\begin" in text or number(take_unit(take_percent(text)[0])[0]) is not None:
        return Shape("scalar", (text,))
    head = "{" if text.startswith(r"\{") else text[:1]
    if head in ("{", "(", "["):
        opening = 1 if text.startswith("\\") else 0
        if spelling.closing(text, opening) == len(text) - 1:
            inner = text[opening + 1 : -2 if text.endswith(r"\}") else -1]
            parts = _split(inner)
            if head == "{":
                return Shape("set", _both_signs(parts))
            if len(parts) > 1:
                return Shape(head + text[-1], parts)
            return Shape("scalar", (text,))
    parts = _both_signs(_split(text))
    return Shape("list", parts) if len(parts) > 1 else Shape("scalar", parts)


def _split(text: str) -> tuple[str, ...]:
    """Parts between the commas (or semicolons) that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c in ",;":
            parts.append(text[start:i].strip(" "))
            start = i + 1
    parts.append(text[start:].strip(" "))
    return () if parts == [""] else tuple(parts)


def _both_signs(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""With `a \pm b` as the two things that it stands for."""
    found: list[str] = []
    for part in parts:
        if part.count(r"\pm") == 1 and r"\mp" not in part:
            found += [part.replace(r"\pm", sign).strip(" +") for sign in "+-"]
        else:
            found.append(part)
    return tuple(found)
