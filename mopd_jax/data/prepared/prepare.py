"""`mopd data prepare`: source files -> checked problems, without duplicates, with counts.

Every row ends in one of four places, and the manifest counts each: a problem, left out (it does
not belong to the data set, with the reason), rejected (it cannot be used, with file and row) or
removed as a duplicate. Files and tests that are not read are counted, too.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mopd_jax.data.prepared import catalogue, files, jsonl, splits, store, usable
from mopd_jax.data.prepared.rows import (
    DataError,
    Format,
    LeftOut,
    Options,
    Parsed,
    Row,
    Splits,
    WrongFile,
)
from mopd_jax.records import Problem

BadRows = Literal["error", "exclude"]
_SHOWN = 20
_LISTED = 100  # Of the rows that are left out for one reason.
# Counts in `meta` of tests that a problem does not have, and what they say.
_TESTS = {
    "tests_left_out": "tests left out, JSON cannot say them",
    "tests_not_drawn": "tests not drawn, above max_tests",
}


def check_request(name: str, root: pathlib.Path, called: str | None, bad_rows: str) -> str:
    """What the data set will be called; asked before anything is read or fetched.

    Raises:
        DataError: it cannot be called or placed so, or is there already; or `bad_rows` is no
            policy.
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
    bad_rows: BadRows = "error",
    origin: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prepares a data set under `root` and returns its manifest.

    Args:
        name: in the catalogue; what is written is called `called`, by default the same.
        source: a file, or a folder with files.
        options: all of the format's, as `catalogue.options` makes them.
        bad_rows: "error" writes nothing if a row cannot be used; "exclude" leaves such rows out
            and lists them in the manifest.
        origin: where the files came from, for the manifest.
        only: patterns of the files to read (`files.find`); by default those that are read from
            the hub, so that a copy of its repository is read as the hub is, or all files where
            none matches.

    Raises:
        DataError: a file or (by default) a row that cannot be used, an empty result, or a data
            set that is there already.
    """
    form = catalogue.find(name)
    called = check_request(name, root, called, bad_rows)
    wanted = form.hub.files if form.hub else ("*",)
    found = files.find(source, only or wanted, strict=only is not None)
    parsed, left_out, rejected, counted = _parsed(found.paths, form, options)
    if rejected and bad_rows == "error":
        raise DataError(_complaint(rejected, sum(counted)))
    made = form.split(parsed, options)
    duplicates: dict[str, list[str]] = {}
    if not form.shared(options):
        made, duplicates = splits.without_duplicates(made, by_system=form.by_system)
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
            for path, rows in zip(found.paths, counted, strict=True)
        ],
        "skipped": found.skipped,
        "bad_rows": bad_rows,
        "rejected": rejected,
        "left_out": {
            why: {"count": len(rows), "first": rows[:_LISTED]}
            for why, rows in sorted(left_out.items())
        },
        "duplicates": duplicates,
        "tests": _tests(made),
        "splits": {split: len(problems) for split, problems in made.items()},
        "content": store.content(made),
    }
    if not any(made.values()):
        head = f"{called} would have no problems from {sum(counted)} rows"
        raise DataError("\n".join([head, *_outcome(manifest)]))
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
    ids: dict[tuple[str | None, str], tuple[str, Problem]] = {}
    for path in found:
        count = 0
        for row in files.rows(path, start=sum(counted)):
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
                parsed += [Parsed(problem, row.part, kind, row.where) for problem in problems]
        counted.append(count)
    return parsed, left_out, rejected, counted


def _problems(
    row: Row,
    form: Format,
    options: Options,
    ids: dict[tuple[str | None, str], tuple[str, Problem]],
) -> Sequence[Problem]:
    """The problems of a row, which can be used and have ids of their own.

    Args:
        ids: (split that the file names, id) of the problems so far -> their rows and they;
            those of this row are added. That is before the splits are made, so that what is
            refused does not depend on chance.
    """
    problems = form.parse(row, options)
    split = splits.named(row.part)
    for problem in problems:
        # A set's gold formulas take minutes to read: the check of the data set reads them. The
        # user's own are read here, as a run may read such rows without any check.
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


def _tests(made: Splits) -> dict[str, int]:
    """Totals of the tests that problems do not have, of test and train together."""
    metas = [problem.meta for problems in made.values() for problem in problems]
    # A user's meta may have anything under these names.
    found = {key: [meta[key] for meta in metas if key in meta] for key in _TESTS}
    totals = {key: sum(n for n in ns if type(n) is int) for key, ns in found.items()}
    return {key: total for key, total in totals.items() if total}


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
    head = (
        f"{manifest['name']} {manifest['version']}: {counts} problems from "
        f"{sum(file['rows'] for file in manifest['files'])} rows; "
        f"licence: {manifest['licence']}"
    )
    return "\n".join([head, *_outcome(manifest)])


def _outcome(manifest: Mapping[str, Any]) -> list[str]:
    """What was not made a problem, a line each."""
    lines = []
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
    for what, total in manifest["tests"].items():
        lines.append(f"  {_TESTS[what]}: {total}")
    if manifest["skipped"]:
        said = ", ".join(f"{count} {what}" for what, count in manifest["skipped"].items())
        lines.append(f"  not read beside the files of the data set: {said}")
    return lines
