"""Whose weights the teacher has. It reads the peers' context; the student never does."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mopd_jax import scoring
from mopd_jax.config import Config, TeacherConfig
from mopd_jax.kernels import Hidden
from mopd_jax.models import decoder
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params, TrainState

Kept = Literal["nothing", "copy", "external"]


def kept(cfg: Config) -> Kept:
    """What the state of a run holds beside the student.

    `copy` starts as the student: as teacher, or as the reference of DPO or of GRPO's KL.
    """
    reads = cfg.loss.method == "distill" or cfg.rollout.policy == "teacher"
    if reads and cfg.teacher.kind == "external":
        return "external"
    refers = cfg.loss.method == "dpo" or cfg.loss.kl_coef > 0
    if refers or (reads and cfg.teacher.kind != "student"):
        return "copy"
    return "nothing"


def without_external(state: TrainState, cfg: Config) -> TrainState:
    """What a checkpoint holds: an external teacher never moves, and is read from its path."""
    outside = kept(cfg) == "external"
    return dataclasses.replace(state, teacher={}) if outside else state


def ema(teacher: Params, student: Params, *, rate: float) -> Params:
    """(1 - rate) * teacher + rate * student, leaf by leaf in float32."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), teacher, student)


def update(teacher: Params, student: Params, cfg: TeacherConfig, step: jax.Array) -> Params:
    """The teacher after step i32[] (from 1), with the student as it is then."""
    if cfg.kind == "ema":
        return ema(teacher, student, rate=cfg.rate)
    if cfg.kind == "periodic":
        due = step % cfg.every == 0
        return jax.tree.map(lambda old, new: jnp.where(due, new, old), teacher, student)
    return teacher


def taught(
    teacher: Params,
    student: Params,
    batch: Batch,
    *,
    cfg: TeacherConfig,
    student_model: DecoderConfig,
    model: DecoderConfig,
    plain: bool = False,
) -> Hidden:
    """Hidden states [N, T, E] and head [V, E] whose logits are the teacher's; constant.

    Args:
        teacher: what `kept` says; empty where the student is the teacher.
        model: of the teacher's weights.
        plain: let it read the student's prompt in place of its own.
    """
    prompt, mask = batch.teacher_prompt, batch.teacher_prompt_mask
    if plain:
        prompt, mask = batch.prompt, batch.prompt_mask

    def output(params: Params, model: DecoderConfig) -> Hidden:
        states = scoring.response_states(
            params, prompt, mask, batch.response, batch.mask, cfg=model
        )
        return Hidden(states, decoder.head(params).astype(states.dtype))

    if cfg.kind == "student":
        result = output(student, student_model)
    elif cfg.kind == "trust_region":
        # (1 - r) h W + r h' W' is one product, of states and heads side by side.
        old, new = output(teacher, model), output(student, model)
        states = jnp.concatenate([(1 - cfg.rate) * old.states, cfg.rate * new.states], axis=-1)
        result = Hidden(states, jnp.concatenate([old.head, new.head], axis=-1))
    else:
        result = output(teacher, model)
    return jax.lax.stop_gradient(result)
