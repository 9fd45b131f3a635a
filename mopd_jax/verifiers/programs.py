"""Pure parts of the code verifier: which text is the program, which output is right.

Nothing here runs or parses model text as Python: that happens in the sandbox only.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any, NamedTuple

from mopd_jax.thinking import answer_part

_PYTHON = re.compile(r"(?:python|py|pypy)[0-9]*(?:\.[0-9]+)*")
# Plain decimal notation: no nan, no inf, no `1_000`, no digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_LONGEST_NUMBER = 400
_PADDED = re.compile(r"[+-]?0[0-9]")
_MAX_DEPTH = 250

TOLERANCE = 1e-6


class Extracted(NamedTuple):
    """A program, None if there is none; and whether it stood where it was asked for."""

    source: str | None
    well_formed: bool


def extract(response: str) -> Extracted:
    """The program that a response answers with.

    The last non-empty block whose tag says Python; if there is none, the last without a tag.
    Blocks of other languages are never taken. The last, and not the longest, because answers
    come last and a draft or an input file may be longer. A block that is not closed ends with
    the response and counts as badly formed. The indentation of a fence is taken off its lines.
    Thoughts are not read (`thinking.answer_part`).
    """
    tagged: list[tuple[str, bool]] = []
    plain: list[tuple[str, bool]] = []
    lines = answer_part(response).split("\n")
    at = 0
    while at < len(lines):
        opening = _fence(lines[at])
        at += 1
        if opening is None:
            continue
        first, closed = at, False
        while at < len(lines) and not closed:
            closing = _fence(lines[at])
            closed = (
                closing is not None
                and closing.mark == opening.mark
                and closing.length >= opening.length
                and not closing.tag
            )
            at += 1
        body = lines[first : at - 1 if closed else at]
        text = "\n".join(_outdented(line.removesuffix("\r"), opening.indent) for line in body)
        text = text.removeprefix("\ufeff")  # A mark of the byte order is no program text.
        tag = opening.tag
        word = re.split(r"[\s,:]", tag.strip("{}. \t").lower(), maxsplit=1)[0]
        if text.strip() and _PYTHON.fullmatch(word):
            tagged.append((text, closed))
        elif text.strip() and not tag:
            plain.append((text, closed))
    found = tagged or plain
    return Extracted(*found[-1]) if found else Extracted(None, False)


class _Fence(NamedTuple):
    indent: int
    mark: str
    length: int
    tag: str


def _fence(line: str) -> _Fence | None:
    """A run of three or more backticks or tildes at the start of a line, with its tag.

    By hand and in linear time: an expression with two stars is a trap for hostile text.
    """
    text = line.lstrip(" \t")
    mark = text[:1]
    length = len(text) - len(text.lstrip(mark)) if mark in ("`", "~") else 0
    tag = text[length:].strip()
    if length < 3 or "`" in tag:
        return None
    return _Fence(len(line) - len(text), mark, length, tag)


def _outdented(line: str, most: int) -> str:
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(blanks, most) :]


def same_output(found: str, expected: str, *, tolerance: float = TOLERANCE) -> bool:
    """Whether what a program printed is right, line by line.

    Blank lines at both ends and blanks at line ends do not count, nor how lines end, nor
    blanks that the first line begins with: data sets strip expected outputs as a whole. Blanks
    that other lines begin with do count. A line
    with a number that is not equal as text is right if it has as many words as expected and
    each is equal as text or as a number (`same_word`).

    Args:
        tolerance: of numbers that are expected with a point or an exponent, absolute below 1
            and relative above; 0 asks for equal values.
    """
    mine, gold = _lines(found), _lines(expected)
    return len(mine) == len(gold) and all(
        a == b or same_words(a, b, tolerance=tolerance) for a, b in zip(mine, gold, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line), 0)
    return [line.lstrip() if i == first else line for i, line in enumerate(lines)][first:]


def same_words(found: str, expected: str, *, tolerance: float) -> bool:
    """Two lines of numbers and words, with at least one number expected."""
    mine, gold = found.split(), expected.split()
    if len(mine) != len(gold) or not any(_NUMBER.fullmatch(word) for word in gold):
        return False
    # Without a number, blanks within a line are part of a text.
    return all(same_word(a, b, tolerance=tolerance) for a, b in zip(mine, gold, strict=True))


def same_word(found: str, expected: str, *, tolerance: float) -> bool:
    """Equal as text, or both numbers and near enough.

    A number expected without point and exponent needs the same value (`3.0` is 3). A word with
    padding zeros, such as 007, is a text.
    """
    if found == expected:
        return True
    if max(len(found), len(expected)) > _LONGEST_NUMBER or any(
        _NUMBER.fullmatch(word) is None or _PADDED.match(word) for word in (found, expected)
    ):
        return False
    a, b = Decimal(found), Decimal(expected)
    if a == b:
        return True
    exact = re.search(r"[.eE]", expected) is None
    return not exact and abs(a - b) <= Decimal(tolerance) * max(Decimal(1), abs(b))


def same_value(found: Any, expected: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Whether two JSON values are equal; both hold plain types only.

    Numbers compare by value, so that 1, 1.0 and true are equal, as Python and the judges have
    it; where a float is expected, to the tolerance. Texts are never numbers.
    """
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(
                same_value(a, b, tolerance=tolerance)
                for a, b in zip(found, expected, strict=True)
            )
        )
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(same_value(found[k], expected[k], tolerance=tolerance) for k in expected)
        )
    if isinstance(expected, int | float) and isinstance(found, int | float):
        if found == expected:
            return True
        if not isinstance(expected, float) or not math.isfinite(expected):
            return False
        try:
            return abs(found - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:  # An int that no float can hold.
            return False
    return type(found) is type(expected) and found == expected


def read_result(line: bytes) -> tuple[bool, Any]:
    """(True, value) of what a function call wrote, (False, None) if that is not one JSON value.

    One line that ends where it should, without nan and infinity, not nested too deep.
    """

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no number")

    if not line.endswith(b"\n") or line.count(b"\n") != 1:
        return False, None
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=refuse)
        return (True, value) if _depth(value) else (False, None)
    except (ValueError, RecursionError):
        return False, None


def _depth(value: Any) -> bool:
    """Whether a value is nested no deeper than comparisons follow, found without recursion."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False
