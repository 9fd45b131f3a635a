"""The result of a self check: it passed, or does not apply; a failure is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NoReturn

from mopd_jax.errors import InputError


class SelfCheckError(InputError):
    """A self check failed; the message has its name, the cause and the remedy in one line."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A check that did not fail.

    numbers: what was measured.
    skipped: why it does not apply, or "" if it passed.
    """

    name: str
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped: str = ""


def fail(name: str, message: str) -> NoReturn:
    """Raises SelfCheckError of the check `name`; the message has cause and remedy."""
    raise SelfCheckError(f"self check '{name}': {message}")
