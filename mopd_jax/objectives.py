"""The objective of each method on the rows of one micro-batch, with its metrics.

All normalisation is in the weights, which were made from the whole batch (`train_step.py`), so
the objectives of the parts add up to that of the batch, and so do their metrics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax import losses, metrics, scoring, sharding, teacher
from mopd_jax.config import Config, LossConfig
from mopd_jax.kernels import (
    Hidden,
    Stored,
    TokenLogprob,
    linear_divergence_loss,
    linear_logprob,
    linear_topk,
)
from mopd_jax.metrics import Ratio
from mopd_jax.models import decoder
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params


class Models(NamedTuple):
    """Architectures of the student and of the weights that stand beside it."""

    student: DecoderConfig
    teacher: DecoderConfig


class Rows(NamedTuple):
    """What an objective reads of its N rows."""

    batch: Batch
    weights: jax.Array  # f32[N, T], with the whole normalisation in them
    # f32[N, T] nats, of the policy that the importance ratio is relative to. None: of the
    # student as it is, so that the ratio is 1.
    base_logp: jax.Array | None = None
    stored: Stored | None = None  # In place of the teacher's forward pass.


# (student, teacher, rows, cfg, models) -> (loss f32[], metrics)
Objective = Callable[[Params, Params, Rows, Config, Models], tuple[jax.Array, dict[str, Ratio]]]


def token_weights(batch: Batch, cfg: LossConfig) -> jax.Array:
    """Weights f32[N, T] of the tokens of an update, all its rows together."""
    by_length = cfg.aggregation == "seq-mean-token-sum-norm"
    weights = losses.token_weights(
        batch.mask,
        aggregation=cfg.aggregation,
        totals=losses.batch_totals(batch.mask, every_row=cfg.every_row),
        scale=batch.mask.shape[1] if by_length else None,
        steps=batch.steps,
    )
    return weights if batch.row_weight is None else weights * batch.row_weight[:, None]


def student_logp(params: Params, batch: Batch, cfg: Config, model: DecoderConfig):
    """TokenLogprob f32[N, T] of each response token after the plain prompt."""
    hidden = _student_states(params, batch, model)
    return _logprob(hidden, params, batch, cfg)


def stored_teacher(
    state_teacher: Params, student: Params, batch: Batch, cfg: Config, models: Models
) -> Stored:
    """The teacher's `top_k` likeliest tokens at each response token, after its context."""
    return linear_topk(
        _taught(state_teacher, student, batch, cfg, models),
        batch.mask,
        cfg.loss.divergence.chosen,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )


def _taught(state_teacher, student, batch, cfg, models) -> Hidden:
    return teacher.taught(
        state_teacher,
        student,
        batch,
        cfg=cfg.teacher,
        student_model=models.student,
        model=models.teacher,
    )


def _distill(params, state_teacher, rows, cfg, models):
    batch = rows.batch
    student = _student_states(params, batch, models.student)
    taught = rows.stored
    if taught is None:
        taught = _taught(state_teacher, params, batch, cfg, models)
    # Without a base the student is its own: what is left of both ratios is that to the sampler.
    base, cap, weights = batch.behaviour_logp, cfg.loss.rollout_cap, rows.weights
    if rows.base_logp is not None:
        base, cap = rows.base_logp, cfg.loss.importance_cap
        constant = losses.truncated_ratio(base, batch.behaviour_logp, cfg.loss.rollout_cap)
        weights = weights * jnp.where(batch.mask, constant, 0.0)
    loss, stats = losses.distill_loss(
        Hidden(student, decoder.head(params).astype(student.dtype)),
        taught,
        batch.response,
        batch.mask,
        weights=weights,
        sampled_logp=None if cap is None else base,
        importance_cap=cap,
        divergence=cfg.loss.divergence,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )
    logged = _common_metrics(loss, stats, rows, cfg) | _ratio_metrics(stats, rows, cfg)
    apart = stats.divergence
    if cfg.loss.divergence.support == "sampled":
        # Its own value means nothing; this is the KL on average.
        apart = stats.logp - stats.teacher_logp
    logged["divergence"] = metrics.masked(apart, batch.mask)
    # Of a stored teacher, where it knows the target.
    known = batch.mask & ~jnp.isnan(stats.teacher_logp)
    logged["teacher_minus_student_logp"] = metrics.masked(
        stats.teacher_logp - stats.logp, known
    )
    return loss, logged


def _grpo(params, reference, rows, cfg, models):
    batch = rows.batch
    stats = student_logp(params, batch, cfg, models.student)
    base = jax.lax.stop_gradient(stats.logp) if rows.base_logp is None else rows.base_logp
    constant = losses.truncated_ratio(base, batch.behaviour_logp, cfg.loss.rollout_cap)
    weights = jnp.where(batch.mask, rows.weights * constant, 0.0)
    loss, clipped = losses.grpo_loss(
        stats.logp,
        base,
        batch.advantage,
        weights,
        clip_low=cfg.loss.clip_low,
        clip_high=cfg.loss.clip_high,
        dual_clip=cfg.loss.dual_clip,
    )
    logged = {}
    if cfg.loss.kl_coef:
        at_start = jax.lax.stop_gradient(student_logp(reference, batch, cfg, models.student))
        each = losses.k3_kl(stats.logp, at_start.logp)
        loss = loss + cfg.loss.kl_coef * jnp.sum(rows.weights * each)
        logged["reference_kl"] = metrics.masked(each, batch.mask)
    logged |= _common_metrics(loss, stats, rows, cfg) | _ratio_metrics(stats, rows, cfg)
    logged["ratio_clipped"] = metrics.masked(clipped, batch.mask)
    return loss, logged


def _likelihood(sign, params, state_teacher, rows, cfg, models):
    """sign * sum(weights * logp): SFT, and the gradient of a preference loss."""
    del state_teacher
    hidden = _student_states(params, rows.batch, models.student)
    loss, stats = linear_divergence_loss(
        _logp,
        Hidden(hidden, decoder.head(params).astype(hidden.dtype)),
        None,
        rows.batch.response,
        rows.batch.mask,
        sign * rows.weights,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )
    return loss, _common_metrics(loss, stats, rows, cfg)


def _logp(stats, aux):
    del aux
    return stats.logp


OBJECTIVES: dict[str, Objective] = {
    "distill": _distill,
    "grpo": _grpo,
    "dpo": functools.partial(_likelihood, 1.0),
    "simpo": functools.partial(_likelihood, 1.0),
    "sft": functools.partial(_likelihood, -1.0),
}


def _student_states(params, batch, model):
    return scoring.response_states(
        params, batch.prompt, batch.prompt_mask, batch.response, batch.mask, cfg=model
    )


def _logprob(hidden, params, batch, cfg) -> TokenLogprob:
    return linear_logprob(
        Hidden(hidden, decoder.head(params).astype(hidden.dtype)),
        batch.response,
        batch.mask,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )


def _ratio_metrics(stats, rows, cfg) -> dict[str, Ratio]:
    """How often the caps of the two ratios act."""
    batch, logged = rows.batch, {}
    base = stats.logp if rows.base_logp is None else rows.base_logp
    if cfg.loss.rollout_cap is not None:
        ratio = losses.importance_ratio(base, batch.behaviour_logp)
        logged["rollout_capped"] = metrics.masked(ratio > cfg.loss.rollout_cap, batch.mask)
    if rows.base_logp is not None and cfg.loss.importance_cap is not None:
        ratio = losses.importance_ratio(stats.logp, base)
        capped = ratio > cfg.loss.importance_cap
        logged["importance_capped"] = metrics.masked(capped, batch.mask)
    return logged


def _common_metrics(loss, stats, rows, cfg) -> dict[str, Any]:
    mask = rows.batch.mask
    logged = {
        # The weights already normalise the loss: parts of it add up, and `train_step` counts
        # the sum as one.
        "loss": Ratio(loss, jnp.zeros(())),
        "entropy": metrics.masked(stats.entropy, mask),
    }
    # Of the student before the step's first update, where its log-probs are known.
    before = stats.logp if cfg.optimizer.updates == 1 else rows.base_logp
    if before is not None and (cfg.optimizer.updates == 1 or cfg.loss.ratio_base == "trainer"):
        own = cfg.rollout.file is None and cfg.rollout.policy == "student"
        gap = jnp.abs(before - rows.batch.behaviour_logp)
        name = "sampler_scorer_gap" if own else "off_policy_gap"
        logged[name] = metrics.masked(gap, mask)
    return logged
