"""The data sets by name, and their options."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from mopd_jax.data.prepared import (
    evalplus,
    gpqa,
    jsonl,
    livecodebench,
    maths,
    sciknoweval,
    tooluse,
)
from mopd_jax.data.prepared.rows import DataError, Format
from mopd_jax.errors import unknown

_MATHARENA = "CC BY-NC-SA 4.0 (MathArena)"
FORMATS: dict[str, Format] = {
    **{f"sciknoweval_{d}": sciknoweval.of_domain(d) for d in sciknoweval.DOMAINS},
    "tooluse": tooluse.FORMAT,
    "livecodebench": livecodebench.FORMAT,
    "deepmath": maths.DEEPMATH,
    "aime24": maths.contest("aime24", "math-ai/aime24", "not stated"),
    "aime25": maths.contest("aime25", "math-ai/aime25", "not stated"),
    "hmmt_feb25": maths.contest("hmmt_feb25", "MathArena/hmmt_feb_2025", _MATHARENA),
    "hmmt_nov25": maths.contest("hmmt_nov25", "MathArena/hmmt_nov_2025", _MATHARENA),
    "gsm8k": maths.GSM8K,
    "humanevalplus": evalplus.HUMANEVAL,
    "mbppplus": evalplus.MBPP,
    "gpqa": gpqa.FORMAT,
    "jsonl": jsonl.FORMAT,
}

# Limits and choices of options, the same in every data set that has the option.
_RANGES = {
    "test_share": (0, 1),
    "seed": (0, 2**32),
    "max_tests": (1, 100_000),
    "seconds": (0.1, 3600),
}
_CHOICES = {"order": ("any", "exact"), "split": ("problem", "tests")}


def find(name: str) -> Format:
    """The format of a data set; raises DataError with the nearest name if there is none."""
    if name not in FORMATS:
        raise DataError(unknown(f"data set {name!r}", name, FORMATS))
    return FORMATS[name]


def options(name: str, flags: Mapping[str, str]) -> dict[str, Any]:
    """The options of a data set: the values of flags (option -> text), defaults for the rest.

    Raises:
        DataError: the data set has no such option, or the option cannot have the value.
    """
    values = dict(find(name).options)
    for key, text in flags.items():
        if key not in values:
            raise DataError(unknown(f"--option.{key} of {name}", key, list(values) or ["none"]))
        values[key] = _typed(text, values[key], key)
        _check(key, values[key])
    if "start" in values:
        livecodebench.window(values)
    return values


def _typed(text: str, default: Any, key: str) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise DataError(
            f"--option.{key}={text}: it must be {type(default).__name__}"
        ) from error
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise DataError(f"--option.{key}={text}: it must be {type(default).__name__}")
    return value


def _check(key: str, value: Any) -> None:
    least, most = _RANGES.get(key, (None, None))
    if least is not None and not least <= value <= most:
        raise DataError(f"--option.{key}={value}: it must be between {least:g} and {most:g}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise DataError(f"--option.{key}={value}: {unknown(repr(value), value, _CHOICES[key])}")
