"""Saves, loads and prunes checkpoints of the whole state, with a checksum of every array.

A save by orbax is atomic: a kill leaves the checkpoint before it. Checksums are compared on
loading, because the storage format does not notice a flipped bit.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import re
import shutil
import zlib
from typing import Any

import jax
import numpy as np

from mopd_jax.errors import InputError
from mopd_jax.records import Params, TrainState

_REMOVED = ".removed"
_UNFINISHED = "*.orbax-checkpoint-tmp*"


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message names its folder and the remedy."""


def save(folder: pathlib.Path, state: TrainState, meta: dict[str, Any], *, keep: int) -> None:
    """Writes `<folder>/<step>`, then removes all but the newest `keep`.

    Args:
        meta: JSON values that belong to the state, such as the data position.

    Raises:
        OSError: there is no room, or the system refuses to write for another reason. What was
            written of the checkpoint is removed, to give its room free.
    """
    from orbax.checkpoint import v1 as ocp

    tree = _as_dict(state)
    whole = {"checksums": _checksums(tree), **meta}
    target = folder.absolute() / str(int(state.step))
    folder.mkdir(exist_ok=True)  # Not its parents: a run folder that is gone stays gone.
    # A save that runs out of room leaves threads behind, and each reports it. Floats hardly
    # compress.
    if sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    try:
        ocp.save_checkpointables(target, {"state": tree, "meta": whole})
    except Exception as error:  # orbax and tensorstore raise errors of many types.
        number = _system_error(error)
        if number is None:
            raise
        for part in folder.glob(_UNFINISHED):
            shutil.rmtree(part, ignore_errors=True)
        raise OSError(number, os.strerror(number), str(target)) from error
    prune(folder, keep=keep)


def _system_error(error: BaseException | None) -> int | None:
    """The number of the system's error among an error's causes, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        # tensorstore raises ValueErrors that only their text tells apart.
        if stated := re.search(r"os_error_code='(\d+)'", str(error)):
            return int(stated[1])
        error = error.__cause__ or error.__context__
    return None


def prune(folder: pathlib.Path, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, and half-finished ones."""
    for old in steps(folder)[:-keep]:
        # Renamed first: a half-deleted folder must not look like a finished checkpoint.
        (folder / str(old)).rename(folder / f"{old}{_REMOVED}")
    for pattern in (f"*{_REMOVED}", _UNFINISHED):
        for part in folder.glob(pattern):
            shutil.rmtree(part)


def set_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Renames a damaged checkpoint, so that it is no longer one; returns its new path."""
    aside = folder / f"{step}.damaged"
    if aside.exists():
        shutil.rmtree(aside)
    return (folder / str(step)).rename(aside)


def steps(folder: pathlib.Path) -> list[int]:
    """Steps that have a finished checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def load(
    folder: pathlib.Path, step: int, like: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into the shapes, dtypes and shardings of `like` (ShapeDtypeStructs).

    Raises:
        CheckpointError: a file is missing or cannot be read, or a checksum differs.
    """
    tree, meta = _read(folder.absolute() / str(step), _as_dict(like), partial=False)
    return TrainState(**tree), meta


def load_params(folder: pathlib.Path, step: int, like: Params) -> Params:
    """Reads the student's parameters alone, at most a third of a checkpoint; as `load`."""
    return load_part(folder, step, {"params": like})["params"]


def load_part(folder: pathlib.Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """Reads the parts of a state's tree that `like` has, and no others; as `load`."""
    return _read(folder.absolute() / str(step), like, partial=True)[0]


def _read(
    path: pathlib.Path, like: dict[str, Any], *, partial: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state's parts in `like`, and meta, with checksums compared.

    Args:
        partial: `like` may leave out parts of the state.
    """
    from orbax.checkpoint import v1 as ocp

    remedy = f"remove {path} to use the checkpoint before it"
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            saved = ocp.load_checkpointables(path, {"state": like, "meta": None})
        tree, meta = saved["state"], saved["meta"]
        due = meta.pop("checksums")
    except Exception as error:  # orbax raises errors of many types.
        cause: BaseException = error
        while cause.__cause__ is not None:  # The innermost names the file, the outer the tree.
            cause = cause.__cause__
        text = f"{type(cause).__name__}: {cause}".split("\n")[0][:300]
        raise CheckpointError(f"{path} cannot be read ({text}); {remedy}") from error
    have = _checksums(tree)
    names = have if partial else due
    differ = [name for name in names if due.get(name) != have.get(name)]
    if differ:
        raise CheckpointError(f"{path} is corrupt: {differ[0]} has changed on disk; {remedy}")
    return tree, meta


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _checksums(tree: Any) -> dict[str, int]:
    """{path of a leaf: CRC-32 of its bytes}."""

    def checksum(x: jax.Array) -> int:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        flat = np.ascontiguousarray(np.asarray(x)).view(np.uint8).reshape(-1)
        return zlib.crc32(flat.data)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): checksum(x) for path, x in leaves}
