"""Numerals with a base, `43_6`, and ratios, `3:4`. Pure functions on strings."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMERAL = re.compile(r"\(?([0-9A-Z]+)\)? ?_ ?(?:\{ ?([0-9]{1,2}) ?\}|([0-9]))")
_CLOCK = re.compile(r"[0-9]{1,2}(?::[0-5][0-9]){1,2}")


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


def is_clock(text: str) -> bool:
    """Whether a ratio may be a time of day or a duration, such as `12:30`."""
    return _CLOCK.fullmatch(text.replace(" ", "")) is not None
