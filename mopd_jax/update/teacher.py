"""The teacher: whose weights it has, how they move, and its output on a batch.

The teacher reads the context of a row; the student reads the plain prompt alone.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mopd_jax.config import Config, TeacherConfig
from mopd_jax.kernels import Hidden
from mopd_jax.models import scoring
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params, TrainState

TeacherSlot = Literal["nothing", "copy", "external"]


def teacher_slot(cfg: Config) -> TeacherSlot:
    """What `TrainState.teacher` holds in a run: nothing, a copy of the student, or a model.

    A copy starts as the student: as teacher, or as the reference of DPO or of GRPO's KL.
    """
    reads = cfg.loss.method == "distill" or cfg.rollout.policy == "teacher"
    if reads and cfg.teacher.kind == "external":
        return "external"
    refers = cfg.loss.method == "dpo" or cfg.loss.kl_coef > 0
    if refers or (reads and cfg.teacher.kind != "student"):
        return "copy"
    return "nothing"


@dataclasses.dataclass(frozen=True)
class Models:
    """A run's model architectures, and the kind of weights in `TrainState.teacher`."""

    student: DecoderConfig
    teacher: DecoderConfig  # The student's own, except for an external teacher.
    teacher_slot: TeacherSlot

    @classmethod
    def of(
        cls, cfg: Config, student: DecoderConfig, external: DecoderConfig | None = None
    ) -> Models:
        """Those of a run with `cfg`; `external` is the architecture of an external teacher."""
        return cls(student, student if external is None else external, teacher_slot(cfg))


def without_external(state: TrainState, slot: TeacherSlot) -> TrainState:
    """The state without an external teacher, which never moves and is read from its path."""
    return dataclasses.replace(state, teacher={}) if slot == "external" else state


def ema(teacher: Params, student: Params, *, rate: float) -> Params:
    """(1 - rate) * teacher + rate * student, leaf by leaf in float32."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), teacher, student)


def update(teacher: Params, student: Params, cfg: TeacherConfig, step: jax.Array) -> Params:
    """The teacher's weights after step i32[] (from 1), with the student as it is then."""
    if cfg.kind == "ema":
        return ema(teacher, student, rate=cfg.rate)
    if cfg.kind == "periodic":
        due = step % cfg.every == 0
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), teacher, student)
    return teacher


def teacher_output(
    teacher: Params,
    student: Params,
    batch: Batch,
    *,
    cfg: TeacherConfig,
    models: Models,
    plain: bool = False,
) -> Hidden:
    """Hidden states [N, T, E] and head [V, E] whose logits are the teacher's; constant.

    Args:
        teacher: `TrainState.teacher`; not read where the student is the teacher.
        student: the student's weights.
        plain: the teacher reads the student's prompt in place of its own.
    """
    prompt, mask = batch.teacher_prompt, batch.teacher_prompt_mask
    if plain:
        prompt, mask = batch.prompt, batch.prompt_mask

    def output(params: Params, model: DecoderConfig) -> Hidden:
        return scoring.response_output(
            params, prompt, mask, batch.response, batch.mask, cfg=model
        )

    if cfg.kind == "student":
        result = output(student, models.student)
    elif cfg.kind == "trust_region":
        # (1 - r) h W + r h' W' is one product, of states and heads side by side.
        old, new = output(teacher, models.teacher), output(student, models.teacher)
        states = jnp.concatenate([(1 - cfg.rate) * old.states, cfg.rate * new.states], axis=-1)
        result = Hidden(states, jnp.concatenate([old.head, new.head], axis=-1))
    else:
        result = output(teacher, models.teacher)
    return jax.lax.stop_gradient(result)
