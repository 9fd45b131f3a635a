"""Helpers of the tests of data sets: writes rows, parses rows, runs `mopd data`."""

import json
import pathlib
from typing import Any

import wants

from mopd_jax import cli
from mopd_jax.data.prepared import catalogue
from mopd_jax.data.prepared.rows import SourceRow
from mopd_jax.records import Problem

needs_tfds = wants.module("tensorflow_datasets")


def lines(path: pathlib.Path, *rows: Any) -> pathlib.Path:
    """Writes rows to a file as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parsed(name: str, *rows: dict[str, Any], **options: Any) -> list[Problem]:
    """The problems that a data set's format makes of rows."""
    form = catalogue.find(name)
    problems: list[Problem] = []
    for i, fields in enumerate(rows):
        row = SourceRow(fields, f"rows.jsonl, row {i + 1}", "rows", i)
        problems += form.parse(row, {**form.options, **options})
    return problems


def mopd(*argv: object, status: int = 0) -> None:
    """Runs `mopd data ARGV` and checks its exit status."""
    assert cli.main(["data", *map(str, argv)]) == status
