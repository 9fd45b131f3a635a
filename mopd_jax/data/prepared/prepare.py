"""`mopd data prepare`: turns source files into checked problems without duplicates.

Every row ends in one of four ways, and the manifest counts each: as a problem, left out (it
does not belong to the data set, with the reason), rejected (it cannot be used, with file and
row), or removed as a duplicate. Files and tests that are not read are counted, too.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.data.prepared import catalogue, files, jsonl, splits, store, usable
from mopd_jax.data.prepared.rows import (
    DataError,
    Format,
    LeftOut,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    WrongFile,
)
from mopd_jax.records import Problem

_SHOWN = 20  # Errors that a message lists.
_LISTED = 100  # Rows left out for one reason that the manifest lists.
# Counts in a problem's `meta` of tests that it does not have, and how a report puts them.
_TESTS = {
    "tests_left_out": "tests left out, JSON cannot express them",
    "tests_not_drawn": "tests not drawn, above max_tests",
}


def check_request(name: str, root: pathlib.Path, called: str | None, bad_rows: str) -> str:
    """The data set's name, after checks that need no rows: call it before a download.

    Args:
        called: the name; None: the catalogue's, `name`.

    Raises:
        DataError: the name or folder cannot be used, the data set exists, or `bad_rows` is not
            a policy.
    """
    if bad_rows not in ("error", "exclude"):
        raise DataError(f"--bad-rows={bad_rows}; it must be error or exclude")
    called = store.check_name(name if called is None else called)
    store.check_target(root, called)
    return called


def prepare(
    name: str,
    source: pathlib.Path,
    root: pathlib.Path,
    *,
    options: Options,
    called: str | None = None,
    bad_rows: str = "error",
    origin: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prepares a data set under `root` and returns its manifest.

    Args:
        name: in the catalogue.
        source: a file, or a folder with files.
        options: all of the format's, as `catalogue.options` makes them.
        called: the name to write it under; by default `name`.
        bad_rows: "error" writes nothing if a row cannot be used; "exclude" leaves such rows out
            and lists them in the manifest.
        origin: where the files came from, for the manifest.
        only: patterns of the files to read (`files.find`). By default those of the hub, so that
            a copy of its repository is read as the hub is; if none matches, all files.

    Raises:
        DataError: a file or (by default) a row cannot be used, no problem is left, or the data
            set exists.
    """
    form = catalogue.find(name)
    called = check_request(name, root, called, bad_rows)
    wanted = form.hub.files if form.hub else ("*",)
    read = files.find(source, only or wanted, strict=only is not None)
    parsed, left_out, rejected, row_counts = _parsed(read.paths, form, options)
    if rejected and bad_rows == "error":
        raise DataError(_complaint(rejected, sum(row_counts)))
    problems = form.split(parsed, options)
    duplicates: dict[str, list[str]] = {}
    if not form.shared(options):
        problems, duplicates = splits.without_duplicates(problems, by_system=form.by_system)
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
            for path, rows in zip(read.paths, row_counts, strict=True)
        ],
        "skipped": read.skipped,
        "bad_rows": bad_rows,
        "rejected": rejected,
        "left_out": {
            why: {"count": len(rows), "first": rows[:_LISTED]}
            for why, rows in sorted(left_out.items())
        },
        "duplicates": duplicates,
        "tests": _tests(problems),
        "splits": {split: len(of) for split, of in problems.items()},
        "content": store.content_hash(problems),
    }
    if not any(problems.values()):
        head = f"{called} would have no problems from {sum(row_counts)} rows"
        raise DataError("\n".join([head, *_outcome(manifest)]))
    store.write(root, called, problems, manifest)
    return manifest


def _parsed(
    paths: Sequence[pathlib.Path], form: Format, options: Options
) -> tuple[list[ParsedProblem], dict[str, list[str]], list[str], list[int]]:
    """(problems, rows left out by reason, errors, rows of each file)."""
    parsed: list[ParsedProblem] = []
    left_out: dict[str, list[str]] = {}
    rejected: list[str] = []
    row_counts: list[int] = []
    ids: dict[tuple[str | None, str], tuple[str, Problem]] = {}
    for path in paths:
        count = 0
        for row in files.rows(path, start=sum(row_counts)):
            count += 1
            if isinstance(row, DataError):
                rejected.append(str(row))
                continue
            try:
                problems = _problems(row, form, options, ids)
            except WrongFile:
                raise
            except LeftOut as reason:
                left_out.setdefault(str(reason), []).append(f"{path.name}, row {count}")
            except DataError as error:
                rejected.append(str(error))
            else:
                kind = str(row.fields.get("kind", ""))
                parsed += [ParsedProblem(p, row.stem, kind, row.where) for p in problems]
        row_counts.append(count)
    return parsed, left_out, rejected, row_counts


def _problems(
    row: SourceRow,
    form: Format,
    options: Options,
    ids: dict[tuple[str | None, str], tuple[str, Problem]],
) -> Sequence[Problem]:
    """The problems of a row, checked to be usable and to have new ids.

    Args:
        ids: {(split in the file's name, id): (row, problem)} of the problems so far; those of
            this row are added. It has the files' splits, not the final ones, so that chance
            does not decide which rows are refused.

    Raises:
        DataError, LeftOut: the row cannot be used, or is the same as an earlier one.
    """
    problems = form.parse(row, options)
    split = splits.split_of(row.stem)
    for problem in problems:
        # The gold formulas of a public set take minutes to read: `mopd data check` reads them.
        # The user's own are read here, since a run may read such rows without a check.
        if wrong := usable.unusable(problem, formulas=form is jsonl.FORMAT):
            raise row.error(wrong)
        if (split, problem.id) in ids and ids[split, problem.id][1] != problem:
            raise row.error(
                f"the id {problem.id!r} is that of {ids[split, problem.id][0]}, too; give "
                "every row its own id, or none"
            )
    if problems and all((split, problem.id) in ids for problem in problems):
        raise LeftOut("the same row again")
    ids.update(((split, problem.id), (row.where, problem)) for problem in problems)
    return problems


def _tests(problems: Splits) -> dict[str, int]:
    """Totals, over both splits, of the tests that problems do not have."""
    metas = [problem.meta for of in problems.values() for problem in of]
    counts = {key: [meta[key] for meta in metas if key in meta] for key in _TESTS}
    # A user's own meta may have anything under these keys.
    totals = {key: sum(n for n in ns if type(n) is int) for key, ns in counts.items()}
    return {key: total for key, total in totals.items() if total}


def _complaint(rejected: Sequence[str], total: int) -> str:
    lines = [f"{len(rejected)} of {total} rows cannot be used:"]
    lines += [f"  {error}" for error in rejected[:_SHOWN]]
    if len(rejected) > _SHOWN:
        lines.append(f"  and {len(rejected) - _SHOWN} more")
    lines.append("repair them, or give --bad-rows=exclude, which lists them in the manifest")
    return "\n".join(lines)


def summary(manifest: Mapping[str, Any]) -> str:
    """A report of a few lines on what became of the rows."""
    counts = ", ".join(f"{count} {split}" for split, count in manifest["splits"].items())
    head = (
        f"{manifest['name']} {manifest['version']}: {counts} problems from "
        f"{sum(file['rows'] for file in manifest['files'])} rows; "
        f"licence: {manifest['licence']}"
    )
    return "\n".join([head, *_outcome(manifest)])


def _outcome(manifest: Mapping[str, Any]) -> list[str]:
    """A line for each way in which rows, files or tests did not become part of a problem."""
    lines = []
    for why, rows in manifest["left_out"].items():
        lines.append(f"  left out, {why}: {rows['count']}")
    lines += [f"  rejected: {error}" for error in manifest["rejected"][:_SHOWN]]
    if len(manifest["rejected"]) > _SHOWN:
        lines.append(f"  and {len(manifest['rejected']) - _SHOWN} more (see the manifest)")
    reasons = {
        "train_in_test": "removed from train, also in test",
        "train_repeated": "removed from train, repeated",
        "train_contradicted": "removed from train, one question with several answers",
        "test_repeated": "repeated in test, kept",
    }
    for what, ids in manifest["duplicates"].items():
        if ids:
            more = ", ..." if len(ids) > 5 else ""
            lines.append(f"  {reasons[what]}: {len(ids)} ({', '.join(ids[:5])}{more})")
    for what, total in manifest["tests"].items():
        lines.append(f"  {_TESTS[what]}: {total}")
    if manifest["skipped"]:
        counts = ", ".join(f"{count} {what}" for what, count in manifest["skipped"].items())
        lines.append(f"  other files, not read: {counts}")
    return lines
