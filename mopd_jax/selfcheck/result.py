"""What a self check says: that it passed, why it does not apply, or why it failed."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

from mopd_jax.errors import InputError


class SelfCheckError(InputError):
    """A self check failed: the message has its name, the cause in one line, and a remedy."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A check that did not fail.

    skipped: why it does not apply, or "" where it passed.
    numbers: what was measured.
    """

    name: str
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: str = ""


def fail(name: str, message: str) -> NoReturn:
    """Raises SelfCheckError of the check `name`; the message has cause and remedy."""
    raise SelfCheckError(f"self check '{name}': {message}")
