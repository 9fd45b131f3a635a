"""Tests of programs in the form that the verifier `code` reads, for all code data sets.

A test is {"input", "output", "testtype"}. The input of a function test is its arguments, each
as one line of JSON, and its output is JSON; docs/data.md says what JSON cannot express.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mopd_jax.data.prepared.rows import SourceRow

CLOSING = (
    "Answer with one fenced Python block that holds the whole program, with imports of the "
    "standard library only. Each test may use {seconds:g} seconds of CPU time."
)
LONGEST_TEST = 1 << 26  # Characters of a test's input or output.


def json_value(value: Any) -> Any:
    """A Python value in JSON's types, with tuples as lists.

    Raises:
        ValueError: JSON cannot express it: a set, bytes, a complex or infinite number, or a
            mapping whose keys are not strings.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: json_value(item) for key, item in value.items()}
    raise ValueError(f"JSON has no {type(value).__name__} such as {str(value)[:40]!r}")


def call(arguments: Sequence[Any], result: Any) -> dict[str, str]:
    """A test of a function; raises ValueError if JSON cannot express a value."""
    lines = [json.dumps(json_value(argument)) for argument in arguments]
    return {
        "input": "\n".join(lines),
        "output": json.dumps(json_value(result)),
        "testtype": "functional",
    }


def checked(row: SourceRow, tests: Any, function: str | None) -> list[dict[str, str]]:
    """A row's tests in the form that the verifier reads.

    Args:
        function: name of the function that function tests call.

    Raises:
        DataError: they are not a list of tests, or one of them cannot be read.
    """
    if not isinstance(tests, list) or not tests:
        raise row.error("there is no test")
    checked_tests = []
    for i, test in enumerate(tests, start=1):
        if not isinstance(test, dict):
            raise row.error(f"test {i} is of type {type(test).__name__}; it must be an object")
        text, output = test.get("input"), test.get("output")
        if not isinstance(text, str) or not isinstance(output, str):
            raise row.error(f"test {i}: 'input' and 'output' must be texts")
        if max(len(text), len(output)) > LONGEST_TEST:
            raise row.error(f"test {i} has more than {LONGEST_TEST:,} characters")
        kind = test.get("testtype", "functional" if function else "stdin")
        if kind not in ("stdin", "functional"):
            raise row.error(f"test {i}: testtype {kind!r} is neither stdin nor functional")
        if kind == "functional":
            _check_call(row, i, text, output, function)
        checked_tests.append({"input": text, "output": output, "testtype": kind})
    return checked_tests


def _check_call(row: SourceRow, i: int, text: str, output: str, function: str | None) -> None:
    if not isinstance(function, str) or not function.isidentifier():
        raise row.error(f"test {i} calls a function, but its name is {function!r}")
    try:
        for line in text.split("\n"):
            if line.strip():
                json.loads(line)
        json.loads(output)
    except (ValueError, RecursionError) as error:
        raise row.error(f"test {i}: an argument or the output is not JSON ({error})") from error


def spread(tests: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the tests, evenly spaced, with the first among them."""
    if len(tests) <= most:
        return list(tests)
    places = np.arange(most) * len(tests) // most
    return [tests[i] for i in places.tolist()]
