"""Errors for wrong input, and the checks that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input that cannot be used; the message has the value, its place and the remedy."""


class RunError(RuntimeError):
    """A command could not end its work for a reason outside its input; the message says it."""


class ConfigError(InputError):
    """A setting is wrong; the message names it, its value and a remedy."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(owner: Any, minimum: float, *names: str) -> None:
    """Raises ConfigError unless every named field of a config is None or at least `minimum`."""
    for name in names:
        value = getattr(owner, name)
        require(
            value is None or value >= minimum,
            f"{type(owner).__name__}.{name} is {value}; it must be at least {minimum}",
        )


def unknown(where: str, name: str, known: Iterable[str]) -> str:
    """The error message for a name outside `known`."""
    known = [*known]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"known: {', '.join(sorted(known)) or 'none'}"
    if near:
        hint = f"did you mean {', '.join(near)}?"
    return f"{where} does not exist; {hint}"
