"""The run folder: frozen config, metrics (JSONL and TensorBoard), rollouts a person can read.

A resumed run first drops the records of steps that it is going to repeat, so that every step
stands in the files once.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

METRICS = "metrics.jsonl"


class Logbook:
    """Writes one run's records under `folder`. Step s is the s-th update, from 1."""

    def __init__(self, folder: pathlib.Path, *, step: int):
        """Opens the folder after `step` updates; later records in it are dropped."""
        from tensorboardX import SummaryWriter

        self._folder = folder
        (folder / "rollouts").mkdir(parents=True, exist_ok=True)
        kept = [r for r in read(folder) if r["step"] <= step]
        if step == 0:
            kept = []
        _replace(folder / METRICS, kept)
        self._metrics = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else 0
        )

    def scalars(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One record {"step", "kind", ...values}; numbers go to TensorBoard as kind/name."""
        record = {"step": step, "kind": kind, **values}
        self._metrics.write(dumps(record) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()

    def rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """One file a step, one row a rollout."""
        _replace(self._folder / "rollouts" / f"step_{step:06d}.jsonl", rows)

    def close(self) -> None:
        self._metrics.close()
        self._board.close()


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # Every whole record ends with a newline, so what follows the last one is not whole.
    return [json.loads(line) for line in lines[:-1]]


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _replace(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(dumps(row) + "\n" for row in rows))


def dumps(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON with null for what is not finite: nan is no JSON."""

    def clean(value):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    return json.dumps(clean(record), ensure_ascii=False, allow_nan=False, indent=indent)
