"""Prepared data sets on disk: TFDS with ArrayRecord files, without tensorflow, and a manifest.

A data set is a folder `<root>/<name>/<version>`. Texts come back as bytes and nested values
have no schema, so messages and meta are stored as JSON and decoded here. TFDS is imported when
it is used: the import costs most of a second.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.datasets.rows import DataError
from mopd_jax.logbook import write_text
from mopd_jax.records import Problem

VERSION = "1.0.0"  # Of the rows' layout and of the prompts; a change of either raises it.
MANIFEST = "manifest.json"
_FIELDS = ("id", "messages", "answer", "verifier", "meta", "solution")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_name(name: str) -> str:
    """The name, if a data set can be called so; raises DataError if not."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"a data set cannot be called {name!r}; use lower-case letters, digits and _"
        )
    return name


def folder(root: pathlib.Path, name: str) -> pathlib.Path:
    """Where a data set of this version lies."""
    return root / check_name(name) / VERSION


def write(
    root: pathlib.Path,
    name: str,
    splits: Mapping[str, Sequence[Problem]],
    manifest: Mapping[str, Any],
) -> pathlib.Path:
    """Writes a data set and returns its folder; a kill leaves none, or all of it.

    Raises:
        DataError: it is there already, every split is empty, or TFDS is not installed.
    """
    target = folder(root, name)
    if target.exists():
        raise DataError(f"{target} exists; remove it, or give another --out or --as")
    if not any(splits.values()):
        raise DataError(f"{name} would have no problems; see what was left out and why")
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    made = _builder(name, splits, partial)
    # It speaks of downloads, and there is none.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made.download_and_prepare()
    inner = pathlib.Path(made.data_dir)
    write_manifest(inner, manifest)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(inner, target)
    shutil.rmtree(partial)
    return target


def write_manifest(where: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest of the data set in a folder."""
    write_text(where / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_manifest(root: pathlib.Path, name: str) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        DataError: it has not been prepared there, with this version; names those that are.
    """
    path = folder(root, name) / MANIFEST
    if not path.is_file():
        others = sorted(p.parent.parent.name for p in root.glob(f"*/{VERSION}/{MANIFEST}"))
        raise DataError(
            f"{folder(root, name)} has no prepared data set; run `mopd data prepare {name} "
            f"--source=PATH --out={root}`"
            + (f" (prepared there: {', '.join(others)})" if others else "")
        )
    return json.loads(path.read_text(encoding="utf-8"))


def excluded(manifest: Mapping[str, Any], split: str) -> list[int]:
    """Places in a split of the items that the last check excluded."""
    return manifest.get("check", {}).get("excluded", {}).get(split, [])


class Stored(Sequence[Problem]):
    """The problems of one split, read from disk when they are asked for."""

    def __init__(
        self, root: pathlib.Path, name: str, split: str, *, with_excluded: bool = False
    ):
        """Opens a split, without the items that `mopd data check` excluded unless asked to.

        Raises:
            DataError: no such data set or split, or TFDS is not installed.
        """
        self.manifest = read_manifest(root, name)
        known = self.manifest["splits"]
        if split not in known:
            raise DataError(f"{name} has no split {split!r}; it has {', '.join(sorted(known))}")
        out = set() if with_excluded else set(excluded(self.manifest, split))
        self._places = [i for i in range(known[split]) if i not in out]
        self._rows: Any = ()
        if known[split]:
            made = _tfds().builder_from_directory(str(folder(root, name)))
            self._rows = made.as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return _decoded(self._rows[self._places[place]])


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


def _tfds():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            "prepared data sets need tensorflow-datasets (no tensorflow): "
            "pip install 'mopd_jax[data]'"
        ) from error
    return tensorflow_datasets


def _builder(name: str, splits: Mapping[str, Sequence[Problem]], data_dir: pathlib.Path):
    """A TFDS builder of these problems, in their order."""
    tfds = _tfds()

    class Problems(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Verifiable problems."""

        def _info(self):
            # `dataset_info_from_configs` would want a package folder beside this module.
            return tfds.core.DatasetInfo(
                builder=self,
                description="Verifiable problems; manifest.json says from where.",
                features=tfds.features.FeaturesDict(
                    {field: tfds.features.Text() for field in _FIELDS}
                ),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # Nothing is downloaded.
            # TFDS fails on a split without rows; the manifest has it.
            return {split: self._examples(rows) for split, rows in splits.items() if rows}

        def _examples(self, rows):
            yield from ((i, _encoded(problem)) for i, problem in enumerate(rows))

        def _generate_examples(self):
            raise NotImplementedError  # `_split_generators` gives every split its own.

    Problems.name = name
    Problems.VERSION = tfds.core.Version(VERSION)
    return Problems(data_dir=str(data_dir), file_format=tfds.core.FileFormat.ARRAY_RECORD)
