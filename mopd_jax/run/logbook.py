"""Writes a run's metrics to its folder, as JSON lines and for TensorBoard, and reads them back.

A resumed run first drops the records of the steps that it will repeat, so that the files have
every step once.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.errors import InputError
from mopd_jax.files import dumps, write_lines
from mopd_jax.run.sinks import Sinks

METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts"  # A folder: one file a step, written by `rollouts.storage`.


class Logbook:
    """Writes one run's records under `folder`; step s is the s-th training step, from 1."""

    def __init__(self, folder: pathlib.Path, *, step: int, sinks: Sinks | None = None):
        """Opens the folder after `step` steps, and drops the records of later ones.

        Args:
            sinks: services that get the records too; closed with the logbook.
        """
        from tensorboardX import SummaryWriter

        self._sinks = Sinks({}) if sinks is None else sinks
        (folder / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        kept = [r for r in read(folder) if r["step"] <= step]
        if step == 0:
            kept = []
        write_lines(folder / METRICS, map(dumps, kept))
        self._kept = {(r["kind"], r["step"]) for r in kept}
        self._metrics = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else 0
        )

    def has(self, kind: str, step: int) -> bool:
        """Whether the folder had a record of this kind and step when it was opened."""
        return (kind, step) in self._kept

    def scalars(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One record {"step", "kind", ...values}; numbers go to TensorBoard as kind/name."""
        record = {"step": step, "kind": kind, **values}
        self._metrics.write(dumps(record) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()
        self._sinks.scalars(step, kind, values)

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of an evaluation's samples for the services; the run folder has all of them
        in `rollouts/` and `evaluations/`."""
        self._sinks.samples(step, rows)

    def close(self) -> None:
        """Closes the files, and the services after them."""
        self._metrics.close()
        self._board.close()
        self._sinks.close()


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without a last line that a kill cut short."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    # Every whole record ends with a newline; the rest after the last newline is not whole.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            record["kind"], record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number}, is not a record of a run ({type(error).__name__}); "
                "the file is damaged: remove that line and the lines after it"
            ) from error
        records.append(record)
    return records
