"""Writes and reads the folder of an evaluation: judged responses, and tables made of them.

    responses.jsonl   a header {"format", "version", ...}, then one response a line
    table.md, table.json

A comparison reads the responses and not the table, so that a value such as the token budget can
be chosen from both evaluations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.errors import InputError
from mopd_jax.evaluation.scores import Response
from mopd_jax.files import dumps, write_text
from mopd_jax.run import saved_config

FORMAT = "mopd-responses"
VERSION = 3  # 2: no `tests_skipped`. 1: `question` was of prompt and answer alone.
_FILE = "responses.jsonl"
# The fields of a header that a table or a comparison reads.
_HEADER = {"problems": int, "samples": int, "ks": list, "threshold": float}
_MOST = sys.float_info.max
_RANGES = {"reward": (-_MOST, _MOST), "test_fraction": (0, 1), "tokens": (0, math.inf)}


class ResponseError(InputError):
    """An evaluation's folder cannot be used; the message names folder, line and remedy."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """An evaluation as read from its folder; responses are [P][n]."""

    name: str
    header: dict[str, Any]
    responses: list[list[Response]]


def make(folder: pathlib.Path) -> None:
    """Makes the folder; called first, so that a failure does not come after hours of sampling.

    Raises:
        ResponseError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResponseError(
            f"--out={folder} cannot be made ({error.strerror}); name another folder"
        ) from error


def check_free(folder: pathlib.Path) -> None:
    """Raises ResponseError if the folder holds an evaluation already, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise ResponseError(f"--out={folder} is a file; name a folder")
    for name in (_FILE, "config.json"):
        if (folder / name).exists():
            raise ResponseError(f"--out={folder} has a {name} already; name another folder")


def write(
    folder: pathlib.Path, header: Mapping[str, Any], responses: Sequence[Sequence[Response]]
) -> None:
    """Writes responses [P][n] under their header, all or nothing."""
    rows = [{"format": FORMAT, "version": VERSION, **header}]
    rows += [dataclasses.asdict(response) for row in responses for response in row]
    make(folder)
    write_text(folder / _FILE, "".join(dumps(row) + "\n" for row in rows))


def write_table(
    folder: pathlib.Path, stem: str, markdown: str, document: Mapping[str, Any]
) -> None:
    """Writes `<stem>.md` and `<stem>.json`; undefined numbers are null in the latter."""
    make(folder)
    write_text(folder / f"{stem}.md", markdown + "\n")
    write_text(folder / f"{stem}.json", dumps(document, indent=2) + "\n")


def read(folder: pathlib.Path) -> Saved:
    """Reads an evaluation back.

    Raises:
        ResponseError: a file that is missing or of another format or version, a row that cannot
            be used, or problems with missing, repeated or too many responses.
        ConfigError: the folder has another format than this version reads.
    """
    if (folder / saved_config.FILE).exists():
        saved_config.check(folder)
    path = folder / _FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResponseError(
            f"{path} cannot be read ({type(error).__name__}); name a folder that "
            "`mopd eval --out=FOLDER` has written"
        ) from error
    # Not splitlines: a JSON string may contain other line ends.
    lines = text.split("\n")
    header = _header(path, lines[0])
    groups: dict[str, list[Response]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            response = _response(path, number, line)
            row = groups.setdefault(response.problem, [])
            if row and response.question != row[0].question:
                raise ResponseError(
                    f"{path}, line {number}: problem {response.problem!r} asks for something "
                    "else than in the lines before; evaluate again"
                )
            if response.sample != len(row):
                raise ResponseError(
                    f"{path}, line {number}: problem {response.problem!r} has sample "
                    f"{response.sample} where {len(row)} is due; evaluate again"
                )
            row.append(response)
    due = (header["problems"], header["problems"] * header["samples"])
    have = (len(groups), sum(map(len, groups.values())))
    if have != due or any(len(row) != header["samples"] for row in groups.values()):
        raise ResponseError(
            f"{path} has {have[1]} responses to {have[0]} problems, and its header says "
            f"{due[1]} to {due[0]}; evaluate again"
        )
    return Saved(str(folder), header, list(groups.values()))


def _header(path: pathlib.Path, line: str) -> dict[str, Any]:
    header = _object(path, 1, line)
    if header.get("format") != FORMAT:
        raise ResponseError(
            f"{path} is not of format {FORMAT!r}; `mopd eval` writes such files"
        )
    if header.get("version") != VERSION:
        raise ResponseError(
            f"{path} is of version {header.get('version')!r}, and this is for {VERSION}; "
            "evaluate again, or use the mopd that wrote it"
        )
    for name, kind in _HEADER.items():
        value = header.get(name)
        if isinstance(value, bool) or not isinstance(
            value, (kind, int) if kind is float else kind
        ):
            raise ResponseError(f"{path}, line 1: {name}={value!r} must be {kind.__name__}")
    if min(header["problems"], header["samples"]) < 1:
        raise ResponseError(f"{path}, line 1: no problems or no samples; evaluate again")
    for k in header["ks"]:
        if type(k) is not int or not 1 <= k <= header["samples"]:
            raise ResponseError(
                f"{path}, line 1: ks has {k!r}; each k must be from 1 to samples"
            )
    return header


def _response(path: pathlib.Path, number: int, line: str) -> Response:
    row = _object(path, number, line)
    hints = typing.get_type_hints(Response)
    for name, hint in hints.items():
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        value = row.get(name)
        whole = float in kinds and type(value) is int
        if name not in row or not (type(value) in kinds or whole):
            raise ResponseError(
                f"{path}, line {number}: {name}={value!r} must be "
                f"{' or '.join(kind.__name__ for kind in kinds)}"
            )
    for name, (low, high) in _RANGES.items():
        value = row[name]
        if value is not None and not low <= value <= high:  # True for NaN, too.
            raise ResponseError(
                f"{path}, line {number}: {name}={value!r} must be in [{low}, {high}]"
            )
    return Response(**{name: row[name] for name in hints})


def _object(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ResponseError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ResponseError(f"{path}, line {number}: a {type(row).__name__}, not an object")
    return row
