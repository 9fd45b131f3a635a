"""`mopd data prepare`: source files -> checked problems, without duplicates, with counts.

Every row ends in one of four places, and the manifest counts each: a problem, left out (it does
not belong to the data set, with the reason), rejected (it cannot be used, with file and row) or
removed as a duplicate.
"""

from __future__ import annotations

import collections
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mopd_jax import verifiers
from mopd_jax.datasets import catalogue, files, jsonl, splits, store
from mopd_jax.datasets.rows import DataError, Format, LeftOut, Options, Parsed
from mopd_jax.records import Problem

BadRows = Literal["error", "exclude"]
_SHOWN = 20
_LISTED = 100  # Of the rows that are left out for one reason.


def prepare(
    name: str,
    source: pathlib.Path,
    root: pathlib.Path,
    *,
    options: Options,
    called: str | None = None,
    bad_rows: BadRows = "error",
    origin: Mapping[str, Any] | None = None,
    only: Sequence[str] = ("*",),
) -> dict[str, Any]:
    """Prepares a data set under `root` and returns its manifest.

    Args:
        name: in the catalogue; what is written is called `called`, by default the same.
        source: a file, or a folder with files.
        options: all of the format's, as `catalogue.options` makes them.
        bad_rows: "error" writes nothing if a row cannot be used; "exclude" leaves such rows out
            and lists them in the manifest.
        origin: where the files came from, for the manifest.
        only: patterns of the files to read (`files.find`).

    Raises:
        DataError: a file or (by default) a row that cannot be used, an empty result, or a data
            set that is there already.
    """
    if bad_rows not in ("error", "exclude"):
        raise DataError(f"--bad-rows={bad_rows}; it must be error or exclude")
    form = catalogue.find(name)
    called = store.check_name(called or name)
    if store.folder(root, called).exists():  # Known before the files are read.
        raise DataError(
            f"{store.folder(root, called)} exists; remove it, or give another --out or --as"
        )
    found = files.find(source, only)
    parsed, left_out, rejected, counted = _parsed(found, form, options)
    if rejected and bad_rows == "error":
        raise DataError(_complaint(rejected, sum(counted)))
    made = form.split(parsed, options)
    duplicates: dict[str, list[str]] = {}
    if not form.shared(options):
        made, duplicates = splits.without_duplicates(made)
    _check_ids(made)
    base = source if source.is_dir() else source.parent
    manifest = {
        "name": called,
        "format": name,
        "version": store.VERSION,
        "licence": form.licence,
        "options": dict(options),
        "origin": dict(origin or {"kind": "files"}),
        "files": [
            {"name": str(path.relative_to(base)), "sha256": files.checksum(path), "rows": rows}
            for path, rows in zip(found, counted, strict=True)
        ],
        "bad_rows": bad_rows,
        "rejected": rejected,
        "left_out": {
            why: {"count": len(rows), "first": rows[:_LISTED]}
            for why, rows in sorted(left_out.items())
        },
        "duplicates": duplicates,
        "splits": {split: len(problems) for split, problems in made.items()},
        "content": _content(made),
    }
    store.write(root, called, made, manifest)
    return manifest


def _parsed(
    found: Sequence[pathlib.Path], form: Format, options: Options
) -> tuple[list[Parsed], dict[str, list[str]], list[str], list[int]]:
    """(problems, rows left out by reason, errors, rows of each file)."""
    parsed: list[Parsed] = []
    left_out: dict[str, list[str]] = {}
    rejected: list[str] = []
    counted: list[int] = []
    for path in found:
        count = 0
        for row in files.rows(path, start=sum(counted)):
            count += 1
            if isinstance(row, DataError):
                rejected.append(str(row))
                continue
            try:
                problems = form.parse(row, options)
                # The other formats check what they make of a row.
                if form is jsonl.FORMAT and (wrong := verifiers.unusable(problems[0])):
                    raise row.error(wrong)
            except LeftOut as reason:
                left_out.setdefault(str(reason), []).append(f"{path.name}, row {count}")
            except DataError as error:
                rejected.append(str(error))
            else:
                parsed += [Parsed(problem, row.part) for problem in problems]
        counted.append(count)
    return parsed, left_out, rejected, counted


def _check_ids(made: splits.Splits) -> None:
    for split, problems in made.items():
        ids = collections.Counter(problem.id for problem in problems)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise DataError(
                f"{len(twice)} ids stand in {split} more than once, {twice[0]!r} for one; "
                "give every row its own id, or none"
            )


def _content(made: splits.Splits) -> str:
    """SHA-256 of every problem of every split, in order."""
    digest = hashlib.sha256()
    for split in sorted(made):
        digest.update(split.encode())
        for problem in made[split]:
            digest.update(_line(problem).encode())
    return digest.hexdigest()


def _line(problem: Problem) -> str:
    said = [dict(message) for message in problem.messages]
    fields = (problem.id, said, problem.answer, problem.verifier, problem.solution)
    return json.dumps([*fields, dict(problem.meta)], sort_keys=True)


def _complaint(rejected: Sequence[str], total: int) -> str:
    lines = [f"{len(rejected)} of {total} rows cannot be used:"]
    lines += [f"  {error}" for error in rejected[:_SHOWN]]
    if len(rejected) > _SHOWN:
        lines.append(f"  and {len(rejected) - _SHOWN} more")
    lines.append("repair them, or give --bad-rows=exclude, which lists them in the manifest")
    return "\n".join(lines)


def summary(manifest: Mapping[str, Any]) -> str:
    """What became of every row, in a few lines."""
    counts = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    lines = [
        f"{manifest['name']} {manifest['version']}: {counts} problems from "
        f"{sum(file['rows'] for file in manifest['files'])} rows; "
        f"licence: {manifest['licence']}"
    ]
    for why, rows in manifest["left_out"].items():
        lines.append(f"  left out, {why}: {rows['count']}")
    lines += [f"  rejected: {error}" for error in manifest["rejected"][:_SHOWN]]
    if len(manifest["rejected"]) > _SHOWN:
        lines.append(f"  and {len(manifest['rejected']) - _SHOWN} more (see the manifest)")
    words = {
        "train_in_test": "removed from train, also in test",
        "train_repeated": "removed from train, repeated",
        "train_contradicted": "removed from train, one question with several answers",
        "test_repeated": "repeated in test, kept",
    }
    for what, ids in manifest["duplicates"].items():
        if ids:
            more = ", ..." if len(ids) > 5 else ""
            lines.append(f"  {words[what]}: {len(ids)} ({', '.join(ids[:5])}{more})")
    return "\n".join(lines)
