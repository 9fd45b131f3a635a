"""The run folder: metrics (JSONL and TensorBoard), and files that a kill never leaves in part.

A resumed run first drops the records of steps that it is going to repeat, so that every step
stands in the files once.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from mopd_jax.files import dumps, write_lines

METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts"  # A folder: one file a step, as `rollout_file.py` writes it.


class Logbook:
    """Writes one run's records under `folder`. Step s is the s-th update, from 1."""

    def __init__(self, folder: pathlib.Path, *, step: int):
        """Opens the folder after `step` updates; later records in it are dropped."""
        from tensorboardX import SummaryWriter

        (folder / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        kept = [r for r in read(folder) if r["step"] <= step]
        if step == 0:
            kept = []
        write_lines(folder / METRICS, map(dumps, kept))
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
