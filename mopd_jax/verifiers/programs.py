"""Which text of a response is its program, and which output of a program is right.

Pure functions of the code verifier. None runs or parses model text as Python: only the sandbox
does.
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
_LONGEST_NUMBER = 400  # Characters; a longer word is text.
_PADDED = re.compile(r"[+-]?0[0-9]")
_MAX_DEPTH = 250  # Levels of a value that comparisons follow.

TOLERANCE = 1e-6  # Absolute below 1, relative above.


class Extracted(NamedTuple):
    """The program of a response."""

    source: str | None  # None where the response has no program.
    well_formed: bool  # Its block is closed.


def extract(response: str) -> Extracted:
    """The program that a response answers with.

    It is the last non-empty block whose tag says Python, or without any the last without a
    tag. Blocks of other languages never count. The last is chosen and not the longest, because
    answers come last, and a draft or an input file may be longer. A block that is not closed
    ends with the response and is not well formed. The indentation of a fence is removed from
    its lines. Thoughts are not read (`thinking.answer_part`).
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
        text = text.removeprefix("\ufeff")  # A byte order mark is not part of the program.
        tag = opening.tag
        word = re.split(r"[\s,:]", tag.strip("{}. \t").lower(), maxsplit=1)[0]
        if text.strip() and _PYTHON.fullmatch(word):
            tagged.append((text, closed))
        elif text.strip() and not tag:
            plain.append((text, closed))
    blocks = tagged or plain
    return Extracted(*blocks[-1]) if blocks else Extracted(None, False)


class _Fence(NamedTuple):
    """A line that opens or closes a block."""

    indent: int
    mark: str
    length: int
    tag: str


def _fence(line: str) -> _Fence | None:
    """A run of three or more backticks or tildes at the start of a line, with its tag.

    By hand, because a regular expression with two stars takes quadratic time on hostile text.
    """
    text = line.lstrip(" \t")
    mark = text[:1]
    length = len(text) - len(text.lstrip(mark)) if mark in ("`", "~") else 0
    tag = text[length:].strip()
    if length < 3 or "`" in tag:
        return None
    return _Fence(len(line) - len(text), mark, length, tag)


def _outdented(line: str, most: int) -> str:
    """The line without at most so many of the blanks that it begins with."""
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(blanks, most) :]


def same_output(printed: str, expected: str, *, tolerance: float = TOLERANCE) -> bool:
    """Whether what a program printed is right, line by line.

    Ignored are blank lines at both ends, blanks at line ends, the kind of line ends, and blanks
    that the first line begins with, because data sets strip expected outputs as a whole. Blanks
    that other lines begin with count. A line with a number that differs as text is right if it
    has as many words as expected and each is equal as text or as a number (`same_word`).

    Args:
        tolerance: of numbers that are expected with a point or an exponent, absolute below 1
            and relative above; 0 asks for equal values.
    """
    ours, gold = _lines(printed), _lines(expected)
    return len(ours) == len(gold) and all(
        a == b or same_words(a, b, tolerance=tolerance) for a, b in zip(ours, gold, strict=True)
    )


def _lines(text: str) -> list[str]:
    """The lines that are compared, without what `same_output` ignores."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    first = next((i for i, line in enumerate(lines) if line), 0)
    return [line.lstrip() if i == first else line for i, line in enumerate(lines)][first:]


def same_words(printed: str, expected: str, *, tolerance: float) -> bool:
    """Whether two lines have equal words, with at least one number expected."""
    ours, gold = printed.split(), expected.split()
    # In a line without a number, blanks are part of the text.
    if len(ours) != len(gold) or not any(_NUMBER.fullmatch(word) for word in gold):
        return False
    return all(same_word(a, b, tolerance=tolerance) for a, b in zip(ours, gold, strict=True))


def same_word(printed: str, expected: str, *, tolerance: float) -> bool:
    """Whether two words are equal as text, or both numbers and close enough.

    A number expected without point and exponent needs the same value (`3.0` is 3). A word with
    padding zeros, such as 007, is a text.
    """
    if printed == expected:
        return True
    if max(len(printed), len(expected)) > _LONGEST_NUMBER or any(
        _NUMBER.fullmatch(word) is None or _PADDED.match(word) for word in (printed, expected)
    ):
        return False
    a, b = Decimal(printed), Decimal(expected)
    if a == b:
        return True
    exact = re.search(r"[.eE]", expected) is None
    return not exact and abs(a - b) <= Decimal(tolerance) * max(Decimal(1), abs(b))


def same_value(returned: Any, expected: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Whether two JSON values, of plain types only, are equal.

    Numbers compare by value, so 1, 1.0 and true are equal, as in Python and in the judges of
    the data sets; where a float is expected, to the tolerance. Texts are never numbers.
    """
    if isinstance(expected, list):
        return (
            isinstance(returned, list)
            and len(returned) == len(expected)
            and all(
                same_value(a, b, tolerance=tolerance)
                for a, b in zip(returned, expected, strict=True)
            )
        )
    if isinstance(expected, dict):
        return (
            isinstance(returned, dict)
            and returned.keys() == expected.keys()
            and all(same_value(returned[k], expected[k], tolerance=tolerance) for k in expected)
        )
    if isinstance(expected, int | float) and isinstance(returned, int | float):
        if returned == expected:
            return True
        if not isinstance(expected, float) or not math.isfinite(expected):
            return False
        try:
            return abs(returned - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:  # An int that no float can hold.
            return False
    return type(returned) is type(expected) and returned == expected


def read_result(line: bytes) -> tuple[bool, Any]:
    """(True, value) of what a function call wrote; (False, None) if it is not one JSON value.

    It must be one whole line, without nan and infinity, nested less than 250 deep.
    """

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    if not line.endswith(b"\n") or line.count(b"\n") != 1:
        return False, None
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=refuse)
        return (True, value) if _shallow(value) else (False, None)
    except (ValueError, RecursionError):
        return False, None


def _shallow(value: Any) -> bool:
    """Whether a value is nested less than 250 deep, so that comparisons can recurse into it."""
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
