"""Source files as rows: JSON, JSON lines, CSV and Parquet, with checksums."""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mopd_jax.datasets.rows import DataError, Row

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_LONGEST_CELL = 1 << 28  # Characters; the CSV reader's own limit is 128 KiB.


def find(source: pathlib.Path, only: Sequence[str] = ("*",)) -> list[pathlib.Path]:
    """The files of a source: itself, or every one of a known ending below it, sorted.

    Args:
        only: patterns, of which a file's path below the source must match one; `*` is any text.

    Raises:
        DataError: there is no such file.
    """
    if source.is_file():
        if source.suffix not in ENDINGS:
            raise DataError(f"{source} ends in none of {', '.join(ENDINGS)}")
        return [source]
    if not source.is_dir():
        raise DataError(f"--source {source} does not exist; give a file, a folder, or 'hub'")
    found = sorted(p for p in source.rglob("*") if p.suffix in ENDINGS and p.is_file())
    # A hub's local copy keeps records of its own in hidden folders.
    found = [
        p for p in found if not any(s.startswith(".") for s in p.relative_to(source).parts)
    ]
    found = [
        p
        for p in found
        if any(fnmatch.fnmatchcase(p.relative_to(source).as_posix(), o) for o in only)
    ]
    if not found:
        raise DataError(f"{source} holds no file that ends in one of {', '.join(ENDINGS)}")
    return found


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows(path: pathlib.Path, *, start: int = 0) -> Iterator[Row | DataError]:
    """The rows of a file; in place of one that cannot be read stands its error.

    Args:
        start: number of the first row among those of all files.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    try:
        for i, (place, fields) in enumerate(readers[path.suffix](path)):
            where = f"{path}, row {place}"
            if isinstance(fields, DataError):
                yield DataError(f"{where}: {fields}")
            elif not isinstance(fields, Mapping):
                yield DataError(f"{where}: a {type(fields).__name__}, not an object")
            else:
                yield Row(fields, where, path.stem, start + i)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    # Lines end at newlines only: JSON may hold other line ends as they are.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, DataError(f"not JSON ({error}); one object per line")


def _json(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0]
        if first.startswith("{") and first.rstrip().endswith("}"):
            yield from _jsonl(path)  # JSON lines under another name.
            return
        raise DataError(f"{path} is not JSON ({error})") from error
    if isinstance(value, dict):
        # One object may be the only row, or hold the list of rows under one name.
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise DataError(f"{path} holds a {type(value).__name__}; it must be a list of objects")
    yield from enumerate(value, start=1)


def _csv(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    yield number, DataError("it has more or fewer cells than the header")
                else:
                    yield number, fields
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
        finally:
            csv.field_size_limit(before)


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow: pip install 'mopd_jax[data]'") from error
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for fields in batch.to_pylist():
                number += 1
                yield number, fields
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file that can be read ({error})") from error
