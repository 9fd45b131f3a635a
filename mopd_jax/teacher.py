"""Which weights the teacher has. It always reads the peers' context; the student never does."""

from __future__ import annotations

import jax

from mopd_jax.config import TeacherConfig
from mopd_jax.records import Params


def ema(teacher: Params, student: Params, *, rate: float) -> Params:
    """(1 - rate) * teacher + rate * student, leaf by leaf in float32."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), teacher, student)


def update(teacher: Params, student: Params, cfg: TeacherConfig) -> Params:
    """The teacher after a step whose update was applied."""
    if cfg.kind == "frozen":
        return teacher
    return ema(teacher, student, rate=cfg.rate)
