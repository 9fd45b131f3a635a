r"""Undefined forms: `0/0`, `1/0`, `0^0`, `\infty-\infty`, and other arithmetic with infinity.

Pure functions on cleaned strings. sympy gives such forms a value (`2\infty` is `\infty`).
"""

from __future__ import annotations

import re

_ZERO = r"[({ ]*0+(?:\.0*)?[)} ]*(?![0-9.])"
_DIVIDED = re.compile(
    rf"/ ?{_ZERO}(?![\^!])"
    rf"|\\frac ?(?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}) ?\{{{_ZERO}(?=$|[^\^!])"
)
_POWER = re.compile(rf"(?<![0-9.])0+(?:\.0*)?[)}} ]*\^ ?{_ZERO}")
# Bounds of sums, integrals and limits may be infinite, and so may what an arrow points to.
_SCRIPTS = re.compile(r"[_^] ?(?:\\infty|\{(?:[^{}]|\{[^{}]*\})*\})|\\to ?[-+]?\\infty")
_ALONE = re.compile(r"[({] ?([-+]?\\infty) ?[)}]")
_MAY_PRECEDE = re.compile(
    r"(?:^|[,;:=<>(\[{]|\\(?:[lg]e|in|ne|approx|cup|cap|setminus)|\\\{)"
    r"[ (]*(?:[-+]|\\pm|\\mp)?[ ({]*$"
)
_MAY_FOLLOW = re.compile(
    r"[)} ]*(?:$|[,;:=<>)\]]|\\(?:[lg]e|in|ne|approx|cup|cap|setminus|\}|text)(?![A-Za-z]))"
)


def holds(text: str) -> bool:
    """Whether a cleaned answer divides by zero or calculates with infinity."""
    if _DIVIDED.search(text) or _POWER.search(text):
        return True
    bare = _SCRIPTS.sub(" ", text)
    bare = _ALONE.sub(r"\1", bare)
    if re.search(r"\\frac ?\{[^{}]*\\infty|\} ?\{[^{}]*\\infty", bare):
        return True
    for match in re.finditer(r"\\infty(?![A-Za-z])", bare):
        if not _MAY_PRECEDE.search(bare[: match.start()]):
            return True
        if not _MAY_FOLLOW.match(bare[match.end() :]):
            return True
    return False
