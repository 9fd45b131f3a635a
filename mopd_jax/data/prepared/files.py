"""Reads the rows of source files (JSON, JSON lines, CSV, Parquet) and their checksums."""

from __future__ import annotations

import codecs
import collections
import csv
import dataclasses
import fnmatch
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from mopd_jax.data.prepared.rows import DataError, SourceRow

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_LONGEST_CELL = 1 << 28  # Characters; Python's CSV reader allows 128 Ki unless told.


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files of a source, and counts of the other files, which are not read.

    skipped: {ending of the files, "hidden" or "linked folder": count}.
    """

    paths: list[pathlib.Path]
    skipped: dict[str, int]


def find(
    source: pathlib.Path, only: Sequence[str] = ("*",), *, strict: bool = True
) -> SourceFiles:
    """The files of a source: itself if it is a file, else the files below it, sorted.

    Args:
        only: patterns for a file's path below the source, which must match one; `*` is any
            text. Files must also have one of `ENDINGS`.
        strict: if no file matches, raise; else take all files with one of `ENDINGS`.

    Raises:
        DataError: there is no file, or part of the source cannot be read.
    """
    try:
        if source.is_file():
            if source.suffix not in ENDINGS:
                raise DataError(f"{source} must end in one of {', '.join(ENDINGS)}")
            return SourceFiles([source], {})
        if not source.is_dir():
            raise DataError(
                f"--source {source} does not exist; give a file, a folder, or 'hub'"
            )
        every, skipped = _walk(source)
        # Not pipes and devices. A broken link counts: opening it gives an error with its name.
        known = [p for p in every if p.suffix in ENDINGS and (p.is_file() or p.is_symlink())]
    except OSError as error:
        raise unreadable(error.filename or source, error) from error
    paths = [p for p in known if _matches(p.relative_to(source).as_posix(), only)]
    if not paths and not strict:
        paths = known
    if not paths:
        raise DataError(f"{source} holds no file that ends in one of {', '.join(ENDINGS)}")
    chosen = set(paths)
    skipped.update(p.suffix or "without ending" for p in every if p not in chosen)
    return SourceFiles(paths, dict(sorted(skipped.items())))


def _walk(source: pathlib.Path) -> tuple[list[pathlib.Path], collections.Counter[str]]:
    """(files below a folder, sorted; counts of hidden names and linked folders)."""

    def stop(error: OSError) -> NoReturn:
        raise error

    paths: list[pathlib.Path] = []
    skipped: collections.Counter[str] = collections.Counter()
    for where, folders, names in os.walk(source, onerror=stop):
        here = pathlib.Path(where)
        # Hidden folders of a copy from the hub have files of its client, not rows.
        skipped["hidden"] += sum(name.startswith(".") for name in [*folders, *names])
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Links are not followed: one may lead back to a folder above it.
        skipped["linked folder"] += sum((here / name).is_symlink() for name in folders)
        folders[:] = [name for name in folders if not (here / name).is_symlink()]
        paths += [here / name for name in names if not name.startswith(".")]
    return sorted(paths), +skipped


def _matches(path: str, only: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in only)


def unreadable(path: Any, error: OSError) -> DataError:
    """The error of a path that the system does not let us read, with its reason."""
    return DataError(f"{path} cannot be read: {error.strerror or error}")


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hex; raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def rows(path: pathlib.Path, *, start: int = 0) -> Iterator[SourceRow | DataError]:
    """The rows of a file; a row that cannot be read is replaced by its error.

    Args:
        start: the number of the file's first row among the rows of all files.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    readers = {".jsonl": json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    try:
        for i, (number, fields) in enumerate(readers[path.suffix](path)):
            where = f"{path}, row {number}"
            if isinstance(fields, DataError):
                yield DataError(f"{where}: {fields}")
            elif not isinstance(fields, Mapping):
                yield DataError(f"{where}: a {type(fields).__name__}, not an object")
            else:
                yield SourceRow(
                    fields, where, path.stem, start + i, path.absolute().parent.name
                )
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    except OSError as error:
        raise unreadable(path, error) from error


def json_lines(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that is not blank.

    The value of a line that cannot be read is a DataError.

    Raises:
        OSError: the file cannot be read.
    """
    # Lines end at newlines only: JSON text may have Unicode's other line ends in it.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, _loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
            except UnicodeDecodeError as error:
                yield (
                    number,
                    DataError(f"not UTF-8 text ({error.reason} at byte {error.start + 1})"),
                )
            except RecursionError:
                yield number, DataError("its JSON is nested too deeply")
            except ValueError as error:
                yield number, DataError(f"not JSON ({error}); one object per line")


def _loads(text: str) -> Any:
    """A JSON value; a DataError takes the place of an outermost object with a fault in it.

    Faults that Python's reader accepts: a repeated key, of which it would drop one value, and
    numbers that JSON does not have. In a list, only the faulty rows become errors.
    """
    value = json.loads(
        text, object_pairs_hook=_object, parse_float=_number, parse_constant=_constant
    )
    return value if isinstance(value, list) else _fault(value) or value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | DataError:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = collections.Counter(key for key, _ in pairs)
        return DataError(f"the key {keys.most_common(1)[0][0]!r} is given twice; give it once")
    for value in fields.values():
        if wrong := _fault(value):
            return wrong
    return fields


def _fault(value: Any) -> DataError | None:
    """The error in a value, if any. An object with a fault is an error already (`_object`)."""
    if isinstance(value, DataError):
        return value
    if isinstance(value, list):
        return next((wrong for item in value if (wrong := _fault(item))), None)
    return None


def _number(text: str) -> float | DataError:
    value = float(text)
    return value if math.isfinite(value) else DataError(f"{text[:40]} is out of range")


def _constant(text: str) -> DataError:
    return DataError(f"{text} is not a number in JSON; write null or text")


def _json(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        value = _loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        first = data.lstrip().partition(b"\n")[0]
        if first.startswith(b"{") and first.rstrip().endswith(b"}"):
            yield from json_lines(path)  # JSON lines in a file that ends in .json.
            return
        if isinstance(error, UnicodeDecodeError):
            raise
        raise DataError(f"{path} is not JSON ({error})") from error
    if isinstance(value, DataError):
        raise DataError(f"{path}: {value}")
    if isinstance(value, dict):
        # One object is the only row, unless its only field is the list of rows.
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(value) == 1 and lists else [value]
    if not isinstance(value, list):
        raise DataError(f"{path} holds a {type(value).__name__}; it must be a list of objects")
    # Of a list within the list `_loads` leaves the error inside; it is this row's.
    yield from ((i, _fault(row) or row) for i, row in enumerate(value, start=1))


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
        raise DataError(f"{path} needs pyarrow: pip install pyarrow") from error
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for fields in batch.to_pylist():
                number += 1
                yield number, fields
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error})") from error
