"""Errors of wrong input and the checks that raise them: the value, the limit, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """What a user gave cannot be used; the message says what, where and the remedy."""


class ConfigError(InputError):
    """A setting is wrong; the message names it, its value and a remedy."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(owner: Any, minimum: float, *names: str) -> None:
    """Every named field of a config is None or at least `minimum`."""
    for name in names:
        value = getattr(owner, name)
        require(
            value is None or value >= minimum,
            f"{type(owner).__name__}.{name} is {value}; it must be at least {minimum}",
        )


def unknown(where: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is none of `known`."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{where} does not exist; {hint}"
