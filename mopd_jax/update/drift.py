"""Metrics of the teacher's distance from the student, and of its context's effect.

All are measured on the rollouts of a step. `drift_plain_kl` shows whether a self-teacher
follows the student too closely or too loosely; `drift_context_kl` is near 0 where contexts do
not change what the teacher predicts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mopd_jax.config import Config
from mopd_jax.kernels import Divergence, Hidden, TokenStats, linear_divergence
from mopd_jax.models import sharding
from mopd_jax.records import Batch, TrainState
from mopd_jax.update import means, objectives, train_step
from mopd_jax.update.means import Metrics, Ratio
from mopd_jax.update.teacher import Models, teacher_output


def drift(state: TrainState, batch: Batch, *, cfg: Config, models: Models) -> Metrics:
    """Means over the trained tokens of N rows, in nats.

    Returns:
        drift_plain_kl: KL(student || teacher), both after the plain prompt.
        drift_context_kl: KL(teacher with its context || teacher after the plain prompt).
        teacher_entropy: of the teacher with its context.
        drift_distance: |teacher - student| / |student| of all weights; only where the state
            has a copy of the student.
    """

    def compare(first: Hidden, second: Hidden, part: Batch) -> TokenStats:
        return linear_divergence(
            first,
            second,
            part.response,
            part.mask,
            divergence=Divergence("reverse_kl"),
            **objectives.head_options(cfg),
        )

    def each(part: Batch) -> Metrics:
        output = functools.partial(
            teacher_output, state.teacher, state.params, part, cfg=cfg.teacher, models=models
        )
        student = objectives.student_output(state.params, part, models.student)
        informed, plain = output(), output(plain=True)
        moved = compare(student, plain, part).divergence
        changed = compare(informed, plain, part)
        return {
            "drift_plain_kl": means.masked(moved, part.mask),
            "drift_context_kl": means.masked(changed.divergence, part.mask),
            "teacher_entropy": means.masked(changed.entropy, part.mask),
        }

    parts = train_step.split(batch, cfg.optimizer.mini_batches * cfg.optimizer.micro_batches)
    logged = jax.tree.map(functools.partial(jnp.sum, axis=0), jax.lax.map(each, parts))
    if models.teacher_slot == "copy":
        gap = jax.tree.map(jnp.subtract, state.teacher, state.params)
        distance = optax.tree.norm(gap) / optax.tree.norm(state.params)
        logged["drift_distance"] = Ratio(distance, jnp.ones(()))
    return logged


def make_drift(
    cfg: Config, models: Models, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], Metrics]:
    """`drift` jitted for a mesh: (state, batch) -> metrics."""
    state = train_step.state_shardings(cfg, models, mesh)
    return jax.jit(
        functools.partial(drift, cfg=cfg, models=models),
        in_shardings=(state, sharding.rows(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
