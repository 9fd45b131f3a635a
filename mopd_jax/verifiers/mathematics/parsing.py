r"""The structure of a mathematical answer: its box, number, unit, name, and outermost shape.

Pure functions on strings; `rules.py` compares what they return. A cleaned text is one that
`spelling.clean` has made.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import NamedTuple

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
_LONGEST_NUMBER = 400  # Characters; a longer text is not read as a number.

_PERCENT = re.compile(rf" ?(?:\\?%|{_TEXT}\{{ ?percent ?\}}|percent)$")
_CURRENCY = re.compile(r"^(-?) ?(?:\\\$|[\u20ac\u00a3\u00a5])(?= ?[-0-9.\\(])")
_UNIT_WORD = (
    r"(?:mm|cm|dm|km|kg|mg|ml|lbs?|ft|yd|mi|hrs?|sec|min|mph|inch|inches|foot|feet|yards?|miles?|"
    r"met(?:er|re)s?|grams?|lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|"
    r"dollars?|cents?|degrees?|radians?|units?|square|cubic|sq)(?![A-Za-z])\.?"
)
_BARE_UNIT = re.compile(rf"(?<=[0-9}}) ]) ?((?:{_UNIT_WORD} ?(?:\^ ?\{{?[0-9]\}}?)?)+)$")
# Bold and italic letters are vectors and variables. A blank can match in one place only, so the
# search takes linear time.
_WRAPPED_PART = (
    r"(?: ?(?:/|\\cdot|\\times))? ?\\(?:text(?:rm)?|mathrm|mbox) ?\{[^{}]*\}"
    r"(?: ?\^ ?\{?-?[0-9]\}?)?"
)
_WRAPPED_UNIT = re.compile(rf"((?:{_WRAPPED_PART})+) ?$")
# Words in bold or italics, which are units only where the unit is listed.
_STYLED_PART = (
    r"(?: ?(?:/|\\cdot|\\times))? ?\\(?:text(?:bf|it|sf|tt)|operatorname) ?\{[^{}]*\}"
    r"(?: ?\^ ?\{?-?[0-9]\}?)?"
)
_STYLED_UNIT = re.compile(rf"((?:{_STYLED_PART})+) ?$")
_NO_QUANTITY = ("^", "_", "+", "-", "*", "=", "<", ">")
_DEGREES = re.compile(rf" ?\^ ?\\circ ?(?:(?:{_TEXT} ?)?\{{? ?([CF]) ?\}}?)?$")
# In the argument of these functions a degree sign is part of the formula.
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_RELATION = re.compile(
    r"(?<!\\not)(?<!\\not )(?:\\in(?![A-Za-z])|\\approx(?![A-Za-z])|(?<![<>!:\\])=)"
)
_NAME = re.compile(r"[A-Za-z\\(|][A-Za-z0-9\\(),_{}' |]*")
# The brackets of P(X=2), \Pr[X>1] and E[X^2], and those of f(-2).
_EVENT = re.compile(
    r"\([^()]*(?:[=<>]|\\[lgn]et?(?![A-Za-z])|\\(?:cap|cup|mid|in)(?![A-Za-z]))[^()]*\)"
    r"|(?<=[A-Za-z}])\[[^\[\]]*\]|(?<=[fghFGHP])\(-?[0-9./]*\)"
)
# Commands of formulas that are numbers.
_OF_NUMBERS = re.compile(
    r"\\(?:[dt]?frac|sqrt|log|ln|lg|exp|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|pi|cdot|times|div|"
    r"binom|circ|overline)(?![A-Za-z])|(?<![A-Za-z\\])e(?![A-Za-z])"
)
_MATRIX = re.compile(r"\\begin|\\frac|\\sqrt|\\int|\\sum")


class Box(NamedTuple):
    """The last box of a response."""

    content: str
    closed: bool  # Its braces balance.
    plain: bool  # It is a \\boxed with braces, the form that prompts ask for.


def last_box(text: str) -> Box | None:
    r"""The last outermost `\boxed{...}`, `\fbox{...}` or `\boxed 5`; None without any.

    Braces balance as in TeX, where `\{` and `\}` do not count. The content of a box without
    braces ends at a space or dollar sign.
    """
    if not (matches := list(_BOX.finditer(text))):
        return None
    pairs = _braces(text)
    box, bare, end = None, 0, 0
    for match in matches:
        if match.start() < end:
            continue
        start = match.end()
        while start < len(text) and text[start] in " \t\r\n":
            start += 1
        if start < len(text) and text[start] == "{":
            close = pairs.get(start)
            content = text[start + 1 : close] if close is not None else ""
            box = Box(content.strip(), close is not None, match[1] == "boxed")
            end = close + 1 if close is not None else match.end()
        else:
            box, bare = None, start
    return box or Box(_unbraced(text[bare : bare + 4000]), True, False)


def _braces(text: str) -> dict[int, int]:
    """{place of an opening brace: place of its closing brace}, of braces that are closed."""
    pairs: dict[int, int] = {}
    stack: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            pairs[stack.pop()] = match.start()
    return pairs


def _unbraced(text: str) -> str:
    """The content of a box without braces, from the text behind `\\boxed`."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth < 0 or (depth == 0 and (c.isspace() or c == "$")):
            text = text[:i]
            break
    return re.sub(r"(?:\\[)\]]|[.,;:])+$", "", text)


@dataclasses.dataclass(frozen=True)
class Number:
    """An exact rational number."""

    value: Fraction
    decimals: int = 0  # Digits behind the decimal point, as it was written.


def number(text: str) -> Number | None:
    r"""The number that a cleaned text is: 1,000, -3.5, 1/2, \frac{1}{2}, 1 1/2, 2e-3,
    0.\overline{3}. None for all else."""
    text = text.strip(" ")
    if len(text) > _LONGEST_NUMBER:
        return None
    while text.startswith("(") and spelling.closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip(" ")
        if "," in text:
            return None  # (0,100) is a pair, not the number 0,100.
    sign = 1
    if text[:1] in ("+", "-"):
        sign, text = (-1 if text[0] == "-" else 1), text[1:].lstrip(" ")
    size = _unsigned(text)
    return size and Number(sign * size.value, size.decimals)


def _unsigned(text: str) -> Number | None:
    """The number that a cleaned text without a sign is; None for all else."""
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
        numerator, denominator = number(match[1]), number(match[2])
        if numerator is None or denominator is None or not denominator.value:
            return None
        return Number(numerator.value / denominator.value)
    if match := _REPEATING.fullmatch(text):
        integer, fixed, again = match.groups()
        base = Fraction(int(integer + fixed or "0"), 10 ** len(fixed))
        return Number(base + Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed)))
    return None


def times(a: Number, b: Number) -> Number:
    """The product, with the decimals of the first."""
    return Number(a.value * b.value, a.decimals)


def equal(a: Number, b: Number) -> bool:
    """Whether two numbers are equal, or one is a rounding of a number such as 1/3."""
    if a.value == b.value:
        return True
    # Six decimals or more may be a rounding of 1/3, but not of 1/2, which 0.5 is exactly.
    exact, rounded = sorted((a, b), key=lambda n: n.decimals)
    if rounded.decimals < 6 or exact.decimals or _terminates(exact.value):
        return False
    near = abs(a.value - b.value) <= Fraction(1, 10**6) * max(abs(a.value), abs(b.value))
    return near and round(a.value, 6) == round(b.value, 6)


def _terminates(value: Fraction) -> bool:
    """Whether the number has finitely many decimals."""
    return 10 ** value.denominator.bit_length() % value.denominator == 0


def take_percent(text: str) -> tuple[str, bool]:
    """A cleaned text without a percent sign at its end, and whether it had one."""
    rest = _PERCENT.sub("", text)
    return (rest.strip(" "), True) if rest != text and rest.strip(" ") else (text, False)


def take_unit(text: str) -> tuple[str, str]:
    """A cleaned text without its unit, and the unit's name, "" where it has none.

    A unit is a currency sign in front, or behind a quantity a degree sign, wrapped text such as
    \\text{cm}^2 or a listed word. Single bare letters are variables.
    """
    if match := _CURRENCY.match(text):
        sign = text[match.start() : match.end()].lstrip("- ").lstrip("\\")
        return (match[1] + text[match.end() :]).strip(" "), sign
    for pattern in (_DEGREES, _WRAPPED_UNIT, _STYLED_UNIT, _BARE_UNIT):
        if not (match := pattern.search(text)):
            continue
        rest = text[: match.start()].strip(" ")
        if rest and not rest.endswith(_NO_QUANTITY):
            if pattern is _WRAPPED_UNIT and not units.is_unit(_unwrapped(match[1])):
                return text, ""
            if pattern is _STYLED_UNIT and not units.is_listed(_unwrapped(match[1])):
                continue
            name = f"deg{match[1] or ''}" if pattern is _DEGREES else _unit_name(match[1])
            return (text, "") if name == "deg" and _TRIG.search(rest) else (rest, name)
    return text, ""


def says_more(text: str) -> bool:
    r"""Whether the words behind a quantity are not its unit, as in `5\text{ million}`."""
    if not (match := _WRAPPED_UNIT.search(text)):
        return False
    rest = text[: match.start()].strip(" ")
    if not rest or rest.endswith(_NO_QUANTITY):
        return False
    words = _unwrapped(match[1])
    return not units.is_unit(words) and not units.is_letter(words)


def _unwrapped(text: str) -> str:
    """The words in `\\text{...}` and the like, without commands and braces."""
    return spelling.WRAPPED.sub(r" \1 ", text).replace("{", "").replace("}", "")


def _unit_name(text: str) -> str:
    """The name under which units are compared: singular, without blanks."""
    bare = spelling.WRAPPED.sub(r"\1", text).replace("{", "").replace("}", "")
    words = [w.strip(".") for w in bare.replace("^", " ^").split()]
    words = [w[:-1] if len(w) > 2 and w.endswith("s") and w[-2] != "/" else w for w in words]
    words = [units.NAMES.get(w, w) for w in words]
    # "square units" names no unit at all.
    return "" if "unit" in words else "".join(words)


def assignment(text: str) -> tuple[str, str]:
    """(name, value) of `x = 5`, `f(x) = x^2`, `(x, y) = (1, 2)` or `x \\in S`.

    Of `2+3 = 5` it is ("", "5"), and of a chain `x = 2+3 = 5` the last value. Of all else it is
    ("", text).
    """
    parts = sides(text)
    name, value = parts[0], parts[-1]
    if len(parts) == 1 or not value or (len(parts) > 2 and len(_split(text)) > 1):
        return "", text
    if is_constant(name):
        return "", value
    if len(numerals.ratio(name)) == len(numerals.ratio(value)) > 1:
        plain = name.replace(":", " ")
    else:
        plain = _EVENT.sub("()", name)
    if _NAME.fullmatch(plain) and not _MATRIX.search(plain) and _depth(plain) == 0:
        return spelling.squash(name), value
    return "", text


def sides(text: str) -> tuple[str, ...]:
    """The sides of a cleaned equation or chain of such, between the relations `=`, `\\approx`
    and `\\in` outside of brackets; the text alone where it has none."""
    parts, start = [], 0
    for match in _RELATION.finditer(text):
        if _depth(text[: match.start()]) == 0:
            parts.append(text[start : match.start()].strip(" "))
            start = match.end()
    return (*parts, text[start:].strip(" "))


def is_constant(text: str) -> bool:
    """Whether a cleaned text is a formula of numbers alone, such as `\\log(0.01)`; the letter e
    alone is a name."""
    if not text or text == "e":
        return False
    return not any(c.isalpha() for c in _OF_NUMBERS.sub("", take_unit(text)[0]))


def readings(text: str) -> tuple[str, ...]:
    r"""A cleaned text with each of its values: `x = \pi`, `x = 3.14` of `x = \pi \approx 3.14`.

    Only where an `\approx` follows a value; all else is returned alone.
    """
    head, sign, tail = text.partition(r"\approx")
    if not sign or tail.lstrip(" ")[:1].isalpha() or len(_split(text)) > 1 or _depth(head):
        return (text,)
    before = sides(head)
    value = sides(tail)[-1]
    if not is_constant(before[-1]):
        return (f"{head}={value}",)
    name = assignment(head)[0]
    last = f"{name}={value}" if name else value
    # Only a rounding that is a number can be checked against the value before it.
    return (head.strip(" "), last) if is_constant(value) else (last,)


def is_relation(text: str) -> bool:
    """Whether a cleaned text has a relation `=` or `\\in`."""
    return _RELATION.search(text) is not None


def _depth(text: str) -> int:
    """Opening minus closing brackets."""
    return sum((c in "([{") - (c in ")]}") for c in text)


class Shape(NamedTuple):
    """The outermost structure of a text, and its parts."""

    kind: str  # "scalar", "list", "set", or the brackets of a tuple or interval, such as "[)".
    parts: tuple[str, ...]


def shape(text: str) -> Shape:
    """Whether a cleaned text is a set, a tuple or interval, a bare list or one thing.

    1,000 is a number and `1, 000` a list. Parentheses round one thing only group it.
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
    """The parts between commas and semicolons outside of brackets; () of an empty text."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if depth == 0 and c in ",;":
            parts.append(text[start:i].strip(" "))
            start = i + 1
    parts.append(text[start:].strip(" "))
    return () if parts == [""] else tuple(parts)


def _both_signs(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""The parts with `a \pm b` replaced by `a + b` and `a - b`."""
    both: list[str] = []
    for part in parts:
        if part.count(r"\pm") == 1 and r"\mp" not in part:
            both += [part.replace(r"\pm", sign).strip(" +") for sign in "+-"]
        else:
            both.append(part)
    return tuple(both)
