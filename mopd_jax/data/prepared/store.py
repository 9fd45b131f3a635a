"""Writes and reads prepared data sets: TFDS with ArrayRecord files and a manifest.

A data set is a folder `<root>/<name>/<version>`. TFDS returns texts as bytes and needs a schema
for nested values, so messages and meta are stored as JSON and decoded here. Tensorflow is not
needed. TFDS is imported when it is used, since the import takes most of a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mopd_jax.data.on_demand import ProblemsOnDemand
from mopd_jax.data.prepared.rows import DataError
from mopd_jax.files import write_text
from mopd_jax.records import Problem

VERSION = "1.0.0"  # Of stored fields and prompt texts; raise it when either changes.
MANIFEST = "manifest.json"
_FIELDS = ("id", "messages", "answer", "verifier", "meta", "solution")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_name(name: str) -> str:
    """The name itself; raises DataError if a data set cannot be called so."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"a data set cannot be called {name!r}; use lower-case letters, digits and _"
        )
    return name


def folder(root: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of a data set of this version."""
    return root / check_name(name) / VERSION


def check_target(root: pathlib.Path, name: str) -> pathlib.Path:
    """The folder that a data set can be written to.

    Raises:
        DataError: it already exists, or cannot be made.
    """
    target = folder(root, name)
    try:
        if target.exists():
            raise DataError(f"{target} exists; remove it, or give another --out or --as")
        above = next(path for path in target.parents if path.exists())
        if not above.is_dir():
            raise DataError(f"{above} is a file; {target} cannot be made, give another --out")
    except OSError as error:
        raise _unwritable(target, error) from error
    _check_writable(above)
    return target


def check_folder(root: pathlib.Path, name: str) -> None:
    """Raises DataError if the manifest of a data set could not be replaced."""
    _check_writable(folder(root, name))


def _check_writable(where: pathlib.Path) -> None:
    if not os.access(where, os.W_OK | os.X_OK):
        raise DataError(f"{where} cannot be written: no permission; change that, or copy it")


def _unwritable(path: pathlib.Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or path} cannot be written: {error.strerror or error}")


def content_hash(splits: Mapping[str, Sequence[Problem]]) -> str:
    """SHA-256 of every problem of every split, in order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(split.encode())
        for problem in splits[split]:
            digest.update(_line(problem).encode())
    return digest.hexdigest()


def _line(problem: Problem) -> str:
    messages = [dict(message) for message in problem.messages]
    fields = (problem.id, messages, problem.answer, problem.verifier, problem.solution)
    return json.dumps([*fields, dict(problem.meta)], sort_keys=True)


def write(
    root: pathlib.Path,
    name: str,
    splits: Mapping[str, Sequence[Problem]],
    manifest: Mapping[str, Any],
) -> pathlib.Path:
    """Writes a data set and returns its folder. If killed, it leaves all of it or nothing.

    Args:
        splits: with one problem or more in total.

    Raises:
        DataError: the data set exists, cannot be written, or TFDS is not installed.
    """
    target = check_target(root, name)
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    builder = _builder(name, splits, partial)
    quiet = io.StringIO()  # TFDS reports downloads; nothing is downloaded.
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            builder.download_and_prepare()
        inner = pathlib.Path(builder.data_dir)
        write_manifest(inner, manifest)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(inner, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def write_manifest(where: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest of the data set in a folder; raises DataError if it cannot."""
    try:
        write_text(where / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise _unwritable(where / MANIFEST, error) from error


def read_manifest(root: pathlib.Path, name: str) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        DataError: the data set was not prepared under `root` with this version (names those
            that were), is damaged, or cannot be read.
    """
    where = folder(root, name)
    try:
        if not where.is_dir():
            raise DataError(_absent(root, name))
        manifest = json.loads((where / MANIFEST).read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise _damaged(where, f"it has no {MANIFEST}") from error
    except OSError as error:
        raise DataError(
            f"{error.filename or where} cannot be read: {error.strerror or error}"
        ) from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"{MANIFEST}: {error}") from error
    if wrong := _manifest_fault(manifest):
        raise _damaged(where, f"{MANIFEST}: {wrong}")
    return manifest


def _absent(root: pathlib.Path, name: str) -> str:
    message = (
        f"{folder(root, name)} has no prepared data set; run `mopd data prepare {name} "
        f"--source=PATH --out={root}`"
    )
    if older := sorted(p.parent.name for p in (root / name).glob(f"*/{MANIFEST}")):
        message += f" (there is version {', '.join(older)}, but this code reads {VERSION})"
    if others := sorted(p.parent.parent.name for p in root.glob(f"*/{VERSION}/{MANIFEST}")):
        message += f" (prepared there: {', '.join(others)})"
    return message


def _damaged(where: pathlib.Path, why: str) -> DataError:
    return DataError(
        f"{where} is damaged ({why}); remove it and prepare it again with `mopd data prepare`"
    )


def _manifest_fault(manifest: Any) -> str:
    """What makes a manifest unreadable; "" if it has every field that this package reads."""
    if not isinstance(manifest, dict):
        return "it is not an object"
    if manifest.get("version") != VERSION:
        return f"it is of version {manifest.get('version')!r}, not {VERSION}"
    if not isinstance(manifest.get("content"), str):
        return "it has no 'content'"
    splits = manifest.get("splits")
    whole = isinstance(splits, dict) and all(type(n) is int and n >= 0 for n in splits.values())
    if not whole or not splits:
        return "'splits' are not numbers of problems"
    check = manifest.get("check", {"splits": {}, "excluded": {}})
    if not isinstance(check, dict):
        return "'check' is not an object"
    judged, out = check.get("splits"), check.get("excluded")
    keys = ("kept", "ceiling", "ceiling_of_kept")
    if not isinstance(judged, dict) or not all(
        isinstance(of, dict) and all(key in of for key in keys) for of in judged.values()
    ):
        return "the result of its check is not complete"
    if not isinstance(out, dict) or not all(
        isinstance(rows, list)
        and all(type(i) is int and 0 <= i < splits.get(split, 0) for i in rows)
        for split, rows in out.items()
    ):
        return "what its check excluded is not in its splits"
    return ""


def excluded(manifest: Mapping[str, Any], split: str) -> list[int]:
    """Places in a split of the items that the last check excluded."""
    return manifest.get("check", {}).get("excluded", {}).get(split, [])


class StoredProblems(ProblemsOnDemand):
    """The problems of one split of a prepared data set, read from disk on demand."""

    def __init__(
        self, root: pathlib.Path, name: str, split: str, *, with_excluded: bool = False
    ):
        """Opens a split.

        Args:
            with_excluded: include the problems that the last `mopd data check` excluded.

        Raises:
            DataError: no such data set or split, it is damaged, or TFDS is not installed.
        """
        self._where = folder(root, name)
        self.manifest = read_manifest(root, name)
        counts = self.manifest["splits"]
        if split not in counts:
            splits = ", ".join(sorted(counts))
            raise DataError(f"{name} has no split {split!r}; it has {splits}")
        out = set() if with_excluded else set(excluded(self.manifest, split))
        self._places = [i for i in range(counts[split]) if i not in out]
        self._rows: Any = ()
        if counts[split]:
            tfds = _tfds()
            with self._errors_as_damage():
                builder = tfds.builder_from_directory(str(self._where))
                self._rows = builder.as_data_source(split=split)
        if len(self._rows) != counts[split]:
            raise _damaged(
                self._where,
                f"{MANIFEST} says {counts[split]} problems in {split}, but there are "
                f"{len(self._rows)}",
            )

    def __len__(self) -> int:
        return len(self._places)

    def problem(self, place: int) -> Problem:
        row = self._places[place]
        with self._errors_as_damage():
            return _decoded(self._rows[row])

    @contextlib.contextmanager
    def _errors_as_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # The boundary to a library with many error classes.
            raise _damaged(self._where, f"{type(error).__name__}: {error}") from error


def check_content(root: pathlib.Path, name: str) -> None:
    """Raises DataError if the problems on disk differ from those that were written."""
    manifest = read_manifest(root, name)
    splits = {s: StoredProblems(root, name, s, with_excluded=True) for s in manifest["splits"]}
    if content_hash(splits) != manifest["content"]:
        raise _damaged(folder(root, name), "its problems are not those that were written")


def _encoded(problem: Problem) -> dict[str, str]:
    return {
        "id": problem.id,
        "messages": json.dumps([dict(m) for m in problem.messages], ensure_ascii=False),
        "answer": problem.answer,
        "verifier": problem.verifier,
        "meta": json.dumps(dict(problem.meta), ensure_ascii=False, sort_keys=True),
        "solution": problem.solution,
    }


def _decoded(row: Mapping[str, bytes]) -> Problem:
    text = {name: row[name].decode("utf-8") for name in _FIELDS}
    return Problem(
        id=text["id"],
        messages=tuple(json.loads(text["messages"])),
        answer=text["answer"],
        verifier=text["verifier"],
        meta=json.loads(text["meta"]),
        solution=text["solution"],
    )


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            "prepared data sets need tensorflow-datasets (no tensorflow): "
            "pip install tensorflow-datasets importlib_resources"
        ) from error
    return tensorflow_datasets


def _builder(name: str, splits: Mapping[str, Sequence[Problem]], data_dir: pathlib.Path) -> Any:
    """A TFDS builder that writes these problems, in their order."""
    tfds = _tfds()
    base: Any = tfds.core.GeneratorBasedBuilder

    class Problems(base, skip_registration=True):  # type: ignore[call-arg]  # TFDS is untyped.
        """Verifiable problems."""

        def _info(self) -> Any:
            # `dataset_info_from_configs` would need a package folder next to this module.
            return tfds.core.DatasetInfo(
                builder=self,
                description="Verifiable problems; manifest.json says where they are from.",
                features=tfds.features.FeaturesDict(
                    {field: tfds.features.Text() for field in _FIELDS}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # Nothing is downloaded.
            # TFDS fails on an empty split, so only the manifest has those.
            return {split: self._examples(rows) for split, rows in splits.items() if rows}

        def _examples(self, rows: Sequence[Problem]) -> Iterator[tuple[int, dict[str, str]]]:
            yield from ((i, _encoded(problem)) for i, problem in enumerate(rows))

        def _generate_examples(self) -> None:
            raise NotImplementedError  # Abstract in TFDS; `_split_generators` does not call it.

    Problems.name = name
    Problems.VERSION = tfds.core.Version(VERSION)
    return Problems(data_dir=str(data_dir), file_format=tfds.core.FileFormat.ARRAY_RECORD)
