"""How far the teacher has moved from the student, and what its context changes.

All on the rollouts of a step. A self-teacher that follows the student too closely or too
loosely shows in the first number, contexts that say nothing in the second.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from mopd_jax import metrics, scoring, sharding, teacher, train_step
from mopd_jax.config import Config
from mopd_jax.kernels import Divergence, Hidden, TokenStats, linear_divergence
from mopd_jax.metrics import Ratio
from mopd_jax.models import decoder
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, TrainState


def drift(
    state: TrainState,
    batch: Batch,
    *,
    cfg: Config,
    model: DecoderConfig,
    teacher_model: DecoderConfig | None = None,
) -> dict[str, Ratio]:
    """Means over the trained tokens of N rows, in nats.

    Returns:
        drift_plain_kl: KL(student || teacher), both after the plain prompt.
        drift_context_kl: KL(teacher with its context || teacher after the plain prompt).
        teacher_entropy: of the teacher with its context.
        drift_distance: |teacher - student| / |student| of all weights; not of an external
            teacher, nor of one that is the student.
    """
    other = model if teacher_model is None else teacher_model
    taught = functools.partial(
        teacher.taught, cfg=cfg.teacher, student_model=model, model=other
    )

    def compare(first: Hidden, second: Hidden, part: Batch) -> TokenStats:
        return linear_divergence(
            first,
            second,
            part.response,
            part.mask,
            divergence=Divergence("reverse_kl"),
            temperature=cfg.rollout.temperature,
            chunk_tokens=cfg.model.head_chunk,
            sharding=sharding.head_sharding(),
        )

    def each(part: Batch):
        states = scoring.response_states(
            state.params, part.prompt, part.prompt_mask, part.response, part.mask, cfg=model
        )
        student = Hidden(states, decoder.head(state.params).astype(states.dtype))
        informed = taught(state.teacher, state.params, part)
        plain = taught(state.teacher, state.params, part, plain=True)
        moved = compare(student, plain, part).divergence
        changed = compare(informed, plain, part)
        return {
            "drift_plain_kl": metrics.masked(moved, part.mask),
            "drift_context_kl": metrics.masked(changed.divergence, part.mask),
            "teacher_entropy": metrics.masked(changed.entropy, part.mask),
        }

    parts = train_step.split(batch, cfg.optimizer.mini_batches * cfg.optimizer.micro_batches)
    found = jax.tree.map(functools.partial(jnp.sum, axis=0), jax.lax.map(each, parts))
    if teacher.kept(cfg) == "copy":
        apart = jax.tree.map(jnp.subtract, state.teacher, state.params)
        distance = optax.tree.norm(apart) / optax.tree.norm(state.params)
        found["drift_distance"] = Ratio(distance, jnp.ones(()))
    return found


def make_drift(
    cfg: Config,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    teacher_model: DecoderConfig | None = None,
):
    """`drift` jitted for a mesh: (state, batch) -> metrics."""
    state = train_step.state_shardings(cfg, model, mesh, teacher_model)
    return jax.jit(
        functools.partial(drift, cfg=cfg, model=model, teacher_model=teacher_model),
        in_shardings=(state, sharding.rows(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
