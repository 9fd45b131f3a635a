"""The data sets by name."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from mopd_jax.config_dict import unknown
from mopd_jax.datasets import jsonl, sciknoweval, tooluse
from mopd_jax.datasets.rows import DataError, Format

FORMATS: dict[str, Format] = {
    **{f"sciknoweval_{d}": sciknoweval.of_domain(d) for d in sciknoweval.DOMAINS},
    "tooluse": tooluse.FORMAT,
    "jsonl": jsonl.FORMAT,
}


def find(name: str) -> Format:
    """The format of a name; raises DataError with the nearest one if there is none."""
    if name not in FORMATS:
        raise DataError(unknown(f"data set {name!r}", name, FORMATS))
    return FORMATS[name]


def options(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The options of a data set: its defaults, and the texts that were given in their place.

    Raises:
        DataError: there is no such option, or the value has another type than the default.
    """
    made = dict(find(name).options)
    for key, text in given.items():
        if key not in made:
            raise DataError(unknown(f"--option.{key} of {name}", key, list(made) or ["none"]))
        made[key] = _typed(text, made[key], key)
    return made


def _typed(text: str, default: Any, key: str) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"--option.{key}={text}: no {type(default).__name__}") from error
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise DataError(f"--option.{key}={text}: it must be {type(default).__name__}")
    return value
