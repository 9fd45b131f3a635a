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

from mopd_jax import losses
from mopd_jax.config import Config, LossConfig
from mopd_jax.kernels import (
    HiddenTeacher,
    StoredTeacher,
    Support,
    TokenLogprob,
    TopK,
    linear_divergence_loss,
    linear_logprob,
    linear_topk,
)
from mopd_jax.models import decoder, scoring, sharding
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params
from mopd_jax.update import means, teacher
from mopd_jax.update.means import Ratio


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
    stored: StoredTeacher | None = None  # In place of the teacher's forward pass.


# (student, teacher, rows, cfg, models) -> (loss f32[], metrics)
Objective = Callable[[Params, Params, Rows, Config, Models], tuple[jax.Array, dict[str, Ratio]]]


def token_weights(batch: Batch, cfg: LossConfig) -> jax.Array:
    """Weights f32[N, T] of the tokens of an update, all its rows together."""
    totals = losses.batch_totals(batch.mask, every_row=cfg.every_row)
    weights = losses.token_weights(
        batch.mask, aggregation=cfg.aggregation, totals=totals, steps=batch.steps
    )
    return weights if batch.row_weight is None else weights * batch.row_weight[:, None]


def distill_options(cfg: Config) -> dict[str, Any]:
    """What a run's settings are to `losses.distill_loss`, the ratios and weights apart."""
    return {
        "divergence": cfg.loss.divergence,
        "alpha": cfg.loss.alpha,
        "continuous": cfg.loss.continuous,
        "clip": cfg.loss.pointwise_clip,
        "support": _support(cfg.loss),
        "temperature": cfg.rollout.temperature,
    }


def student_logp(params: Params, batch: Batch, cfg: Config, model: DecoderConfig):
    """TokenLogprob f32[N, T] of each response token after the plain prompt."""
    hidden = _student_states(params, batch, model)
    return _logprob(hidden, params, batch, cfg)


def stored_teacher(
    state_teacher: Params, student: Params, batch: Batch, cfg: Config, models: Models
) -> StoredTeacher:
    """The teacher's `loss.top_k` likeliest tokens at each response token, after its context."""
    found = _taught(state_teacher, student, batch, cfg, models)
    return linear_topk(
        found.hidden,
        found.head,
        batch.mask,
        cfg.loss.top_k,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )


def _taught(state_teacher, student, batch, cfg, models) -> HiddenTeacher:
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
    taught, head = rows.stored, None
    if taught is None:
        taught, head = vars(_taught(state_teacher, params, batch, cfg, models)).values()
    # Without a base the student is its own: what is left of both ratios is that to the sampler.
    base, cap, constant = batch.behaviour_logp, cfg.loss.rollout_cap, None
    if rows.base_logp is not None:
        base, cap = rows.base_logp, cfg.loss.importance_cap
        constant = losses.truncated_ratio(base, batch.behaviour_logp, cfg.loss.rollout_cap)
    loss, stats = losses.distill_loss(
        student,
        decoder.head(params).astype(student.dtype),
        taught,
        head,
        batch.response,
        batch.mask,
        weights=rows.weights,
        rollout_weights=constant,
        behaviour_logp=None if cap is None else base,
        importance_cap=cap,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
        **distill_options(cfg),
    )
    logged = _common_metrics(loss, stats, rows, cfg) | _ratio_metrics(stats, rows, cfg)
    apart = stats.divergence
    if cfg.loss.support == "sampled":  # Its own value means nothing; this is the KL on average.
        apart = stats.logp - stats.teacher_logp
    logged["divergence"] = means.masked(apart, batch.mask)
    # Of a stored teacher, where it knows the target.
    known = batch.mask & ~jnp.isnan(stats.teacher_logp)
    logged["teacher_minus_student_logp"] = means.masked(stats.teacher_logp - stats.logp, known)
    return loss, logged


def _support(cfg: LossConfig) -> Support:
    if cfg.support in ("full", "sampled"):
        return cfg.support
    return TopK(cfg.top_k, cfg.support, cfg.tail)


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
        logged["reference_kl"] = means.masked(each, batch.mask)
    logged |= _common_metrics(loss, stats, rows, cfg) | _ratio_metrics(stats, rows, cfg)
    logged["ratio_clipped"] = means.masked(clipped, batch.mask)
    return loss, logged


def _likelihood(sign, params, state_teacher, rows, cfg, models):
    """sign * sum(weights * logp): SFT, and the gradient of a preference loss."""
    del state_teacher
    hidden = _student_states(params, rows.batch, models.student)
    loss, stats = linear_divergence_loss(
        _logp,
        hidden,
        decoder.head(params).astype(hidden.dtype),
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
        hidden,
        decoder.head(params).astype(hidden.dtype),
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
        logged["rollout_capped"] = means.masked(ratio > cfg.loss.rollout_cap, batch.mask)
    if rows.base_logp is not None and cfg.loss.importance_cap is not None:
        ratio = losses.importance_ratio(stats.logp, base)
        capped = ratio > cfg.loss.importance_cap
        logged["importance_capped"] = means.masked(capped, batch.mask)
    return logged


def _common_metrics(loss, stats, rows, cfg) -> dict[str, Any]:
    mask = rows.batch.mask
    logged = {
        # The weights already normalise the loss: parts of it add up, and `train_step` counts
        # the sum as one.
        "loss": Ratio(loss, jnp.zeros(())),
        "entropy": means.masked(stats.entropy, mask),
    }
    # Of the student before the step's first update, where its log-probs are known.
    before = stats.logp if cfg.optimizer.updates == 1 else rows.base_logp
    if before is not None and (cfg.optimizer.updates == 1 or cfg.loss.ratio_base == "trainer"):
        own = cfg.rollout.file is None and cfg.rollout.policy == "student"
        gap = jnp.abs(before - rows.batch.behaviour_logp)
        name = "sampler_scorer_gap" if own else "off_policy_gap"
        logged[name] = means.masked(gap, mask)
    return logged
