"""Helpers of the tests of data sets."""

import json

import wants

from mopd_jax import cli
from mopd_jax.data.prepared import catalogue
from mopd_jax.data.prepared.rows import SourceRow

needs_tfds = wants.module("tensorflow_datasets")


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parsed(name, *rows, part="rows", **options):
    """The problems that a format makes of rows."""
    form = catalogue.find(name)
    made = []
    for i, fields in enumerate(rows):
        row = SourceRow(fields, f"{part}.jsonl, row {i + 1}", part, i)
        made += form.parse(row, {**form.options, **options})
    return made


def mopd(*argv, status=0):
    assert cli.main(["data", *map(str, argv)]) == status
