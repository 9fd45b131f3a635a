"""Reads LiveCodeBench (arXiv 2403.07974), the problems of a window of contest dates.

Rows are the hub's: question_content, question_id, platform, contest_date, starter_code,
difficulty, public_test_cases (JSON), private_test_cases, metadata (JSON, may name a function).
Private tests are JSON, or base64 of zlib of a pickle of one text, which is JSON. Nothing is
ever unpickled: `packed_text` reads the one text and refuses every other pickle.

There are two ways to split. `problem` (default) puts each problem into one split. `tests`, the
paper's, puts the same problems into both, with half of their tests in train: it measures
training on the test problems.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mopd_jax.data.prepared import programs, splits
from mopd_jax.data.prepared.rows import (
    DataError,
    Format,
    HubSource,
    LeftOut,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    chat,
)
from mopd_jax.records import Problem

MOST_PACKED = 1 << 30  # Bytes of the private tests of one problem, unpacked.
_HALVES = 0x1CB  # Separates this use of the seed from others.
# The one way to write a date that is read here; Python's own reader accepts others.
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].+)?")
# The opcodes that a pickled text needs; none builds an object. (operand bytes, meaning)
_PICKLE = {
    0x80: (1, "skip"),  # protocol
    0x95: (8, "skip"),  # frame
    0x94: (0, "skip"),  # memoize
    0x71: (1, "skip"),  # put, short
    0x72: (4, "skip"),  # put, long
    0x8C: (1, "text"),
    0x58: (4, "text"),
    0x8D: (8, "text"),
    0x2E: (0, "stop"),
}


def packed_text(packed: str, *, most: int = MOST_PACKED) -> str:
    """The text in base64 of zlib of a pickle of that text alone.

    Raises:
        ValueError: it is anything else, or more than `most` bytes unpacked.
    """
    try:
        squeezed = base64.b64decode(packed, validate=True)
        reader = zlib.decompressobj()
        data = reader.decompress(squeezed, most)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"neither JSON nor base64 of zlib ({error})") from error
    if reader.unconsumed_tail or not reader.eof:
        raise ValueError(f"cut short, or more than {most:,} bytes")
    if reader.unused_data:
        raise ValueError(f"{len(reader.unused_data):,} bytes follow its end")
    return _pickled_text(data)


def _pickled_text(data: bytes) -> str:
    place, text = 0, None
    while place < len(data):
        size, meaning = _PICKLE.get(data[place], (0, "other"))
        operand = data[place + 1 : place + 1 + size]
        place += 1 + size
        if meaning == "text" and text is None:
            length = int.from_bytes(operand, "little")
            # If bytes are missing, the stop opcode is missing too, and the loop ends below.
            text = data[place : place + length].decode("utf-8")
            place += length
        elif meaning == "stop" and text is not None and place == len(data):
            return text
        elif meaning != "skip":
            break
    raise ValueError("a pickle of more or other than one text; it is not unpickled")


def _parse(row: SourceRow, options: Options) -> list[Problem]:
    start, end = window(options)
    if not start <= _date(row) < end:
        raise LeftOut("outside of the window of dates")
    meta = row.json("metadata") or {}
    if not isinstance(meta, dict):
        raise row.error(f"'metadata' is of type {type(meta).__name__}; it must be an object")
    function = meta.get("func_name")
    tests = programs.checked(row, _private(row), function)
    if options["public"]:
        tests = programs.checked(row, row.json("public_test_cases"), function) + tests
    starter = row.fields.get("starter_code") or ""
    if not isinstance(starter, str):
        raise row.error(f"'starter_code' is of type {type(starter).__name__}; it must be text")
    text = row.text("question_content").strip()
    if function:
        text += f"\n\nWrite the function `{function}`. It starts so:\n```python\n{starter}\n```"
    else:
        text += "\n\nRead from standard input and write to standard output."
    text += "\n\n" + programs.CLOSING.format(seconds=options["seconds"])
    name = {"fn_name": function} if function else {}
    return [
        Problem(
            id=f"livecodebench-{row.text('question_id')}",
            messages=chat("", text),
            answer="",
            verifier="code",
            meta={"tests": tests, "time_limit": options["seconds"], **name},
        )
    ]


def _date(row: SourceRow) -> datetime.date:
    value = row.fields.get("contest_date")
    if isinstance(value, datetime.datetime):  # Parquet has dates of these types.
        return value.date()
    if isinstance(value, datetime.date):
        return value
    text = row.text("contest_date")
    try:
        if not _DATE.fullmatch(text):
            raise ValueError("write it as 2025-03-01 or 2025-03-01T00:00:00")
        return datetime.datetime.fromisoformat(text).date()
    except ValueError as error:
        raise row.error(f"'contest_date' is not a date: {text[:40]!r} ({error})") from error


def window(options: Options) -> tuple[datetime.date, datetime.date]:
    """(first day, day after the last); raises DataError unless they are dates in order."""
    try:
        start, end = (datetime.date.fromisoformat(options[key]) for key in ("start", "end"))
    except ValueError as error:
        raise DataError(f"--option.start and --option.end must be dates ({error})") from error
    if start >= end:
        raise DataError(f"--option.start={start} is not before --option.end={end}")
    return start, end


def _private(row: SourceRow) -> Any:
    value = row.fields.get("private_test_cases")
    if isinstance(value, list):
        return value
    text = row.text("private_test_cases", longest=MOST_PACKED)
    try:
        return json.loads(text if text.lstrip().startswith("[") else packed_text(text))
    except (ValueError, RecursionError) as error:
        raise row.error(f"'private_test_cases' cannot be read: {error}") from error


def _split(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    if options["split"] == "problem":
        return splits.permuted(parsed, share=options["test_share"], seed=options["seed"])
    if options["split"] != "tests":
        raise DataError(f"--option.split={options['split']}; it must be problem or tests")
    problems = [row.problem for row in parsed]
    return {
        "train": [_half(p, i, options["seed"]) for i, p in enumerate(problems)],
        "test": problems,
    }


def _half(problem: Problem, number: int, seed: int) -> Problem:
    """The problem with a random half of its tests (rounded down, at least one), in order."""
    tests = problem.meta["tests"]
    rng = np.random.default_rng([_HALVES, seed, number])
    chosen = np.sort(rng.permutation(len(tests))[: max(1, len(tests) // 2)])
    half = [tests[i] for i in chosen.tolist()]
    return dataclasses.replace(problem, meta={**problem.meta, "tests": half})


FORMAT = Format(
    parse=_parse,
    split=_split,
    licence="stated as 'cc'",
    options={
        "split": "problem",
        "start": "2025-02-01",
        "end": "2025-05-01",
        "public": False,
        "seconds": 6.0,
        "test_share": 0.25,
        "seed": 0,
    },
    hub=HubSource("livecodebench/code_generation_lite", "refs/pr/6", ("*.parquet", "*.jsonl")),
    shared=lambda options: options["split"] == "tests",
)
