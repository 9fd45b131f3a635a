"""The objective of each method: the loss and metrics of the rows of one micro-batch.

A response is scored under the student and the teacher, and the scores are reduced to one number
by a weighted sum. All normalisation is in the weights, which `train_step.weigh` makes from the
whole update, so the losses of the parts add up to that of the update, and so do their metrics.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypedDict, cast

import jax
import jax.numpy as jnp

from mopd_jax import losses
from mopd_jax.config import Config, LossConfig
from mopd_jax.kernels import (
    HeadSharding,
    Hidden,
    Stored,
    TokenLogprob,
    linear_divergence_loss,
    linear_logprob,
    linear_topk,
)
from mopd_jax.models import scoring, sharding
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params
from mopd_jax.update import means
from mopd_jax.update.means import Metrics, Ratio
from mopd_jax.update.teacher import Models, teacher_output

# |log p_base - sampled log-prob|; `log_name` has the name it is logged under.
SAMPLED_LOGP_GAP = "sampled_logp_gap"


@dataclasses.dataclass(frozen=True)
class UpdateInputs:
    """Inputs of an update besides its rows and the student's weights; the same for all rows."""

    cfg: Config
    models: Models
    teacher: Params  # `TrainState.teacher`


class PreparedRows(NamedTuple):
    """N rows with the arrays computed once per step, before its first update."""

    batch: Batch
    # f32[N, T] nats, of the policy that the importance ratio is relative to. None: of the
    # student as it is, so that the ratio is 1.
    base_logp: jax.Array | None
    stored: Stored | None  # In place of the teacher's forward pass.


class UpdateRows(NamedTuple):
    """N rows as an objective reads them."""

    batch: Batch
    weights: jax.Array  # f32[N, T], with the whole normalisation in them
    base_logp: jax.Array | None = None  # As in `PreparedRows`.
    stored: Stored | None = None  # As in `PreparedRows`.


# (student, rows, inputs) -> (loss f32[], metrics)
Objective = Callable[[Params, UpdateRows, UpdateInputs], tuple[jax.Array, Metrics]]


def objective(
    params: Params, rows: UpdateRows, inputs: UpdateInputs
) -> tuple[jax.Array, Metrics]:
    """Loss f32[] of `loss.method` on the rows, and metrics; differentiable in `params`."""
    return OBJECTIVES[inputs.cfg.loss.method](params, rows, inputs)


def log_name(name: str, cfg: Config) -> str:
    """The name under which a run logs the metric `name` of its updates.

    The gap between trainer and sampler is numerics only on the student's own rollouts
    (`sampler_scorer_gap`); on those of a file or of the teacher it is `off_policy_gap`.
    """
    if name != SAMPLED_LOGP_GAP:
        return name
    own = cfg.rollout.file is None and cfg.rollout.policy == "student"
    return "sampler_scorer_gap" if own else "off_policy_gap"


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


class HeadOptions(TypedDict):
    """How the ops of `mopd_jax.kernels` compute logits in a run."""

    temperature: float
    chunk_tokens: int | None
    sharding: HeadSharding | None


def head_options(cfg: Config) -> HeadOptions:
    """The run's settings of every op that reads a head; call it while tracing."""
    return {
        "temperature": cfg.rollout.temperature,
        "chunk_tokens": cfg.model.head_chunk,
        "sharding": sharding.head_sharding(),
    }


def student_output(params: Params, batch: Batch, model: DecoderConfig) -> Hidden:
    """Hidden states [N, T, D] that predict each response token after the plain prompt; head."""
    return scoring.response_output(
        params, batch.prompt, batch.prompt_mask, batch.response, batch.mask, cfg=model
    )


def logprob(output: Hidden, batch: Batch, cfg: Config) -> TokenLogprob:
    """Log-prob and entropy f32[N, T] of each response token, 0 where masked."""
    return linear_logprob(output, batch.response, batch.mask, **head_options(cfg))


def student_logp(
    params: Params, batch: Batch, cfg: Config, model: DecoderConfig
) -> TokenLogprob:
    """TokenLogprob f32[N, T] of each response token after the plain prompt."""
    return logprob(student_output(params, batch, model), batch, cfg)


def stored_teacher(params: Params, batch: Batch, inputs: UpdateInputs) -> Stored:
    """The teacher's `top_k` likeliest tokens at each response token, after its context."""
    cfg = inputs.cfg
    output = _teacher_output(params, batch, inputs)
    # `teacher.cache` is refused with a support that chooses no tokens.
    top_k = cast(int, cfg.loss.divergence.chosen)
    return linear_topk(output, batch.mask, top_k, **head_options(cfg))


def _teacher_output(params: Params, batch: Batch, inputs: UpdateInputs) -> Hidden:
    return teacher_output(
        inputs.teacher, params, batch, cfg=inputs.cfg.teacher, models=inputs.models
    )


def _distill(
    params: Params, rows: UpdateRows, inputs: UpdateInputs
) -> tuple[jax.Array, Metrics]:
    batch, cfg = rows.batch, inputs.cfg
    student = student_output(params, batch, inputs.models.student)
    teacher = _teacher_output(params, batch, inputs) if rows.stored is None else rows.stored
    # Without base log-probs the first ratio is 1, and the one cap is that of the second.
    base_logp, cap, weights = batch.sampled_logp, cfg.loss.rollout_cap, rows.weights
    if rows.base_logp is not None:
        base_logp, cap = rows.base_logp, cfg.loss.importance_cap
        constant = losses.truncated_ratio(base_logp, batch.sampled_logp, cfg.loss.rollout_cap)
        weights = weights * jnp.where(batch.mask, constant, 0.0)
    loss, stats = losses.distill_loss(
        student,
        teacher,
        batch.response,
        batch.mask,
        weights=weights,
        sampled_logp=None if cap is None else base_logp,
        importance_cap=cap,
        divergence=cfg.loss.divergence,
        **head_options(cfg),
    )
    # None without targets only.
    logp, teacher_logp = cast(jax.Array, stats.logp), cast(jax.Array, stats.teacher_logp)
    logged = _common_metrics(loss, logp, stats.entropy, rows, cfg)
    logged |= _ratio_metrics(logp, rows, cfg)
    divergence = stats.divergence
    if cfg.loss.divergence.support == "sampled":
        # Do not log the estimator's value; the value here is the KL on average.
        divergence = logp - teacher_logp
    logged["divergence"] = means.masked(divergence, batch.mask)
    # A stored teacher has the log-prob of the target only where it is among the stored tokens.
    known = batch.mask & ~jnp.isnan(teacher_logp)
    logged["teacher_minus_student_logp"] = means.masked(teacher_logp - logp, known)
    return loss, logged


def _grpo(params: Params, rows: UpdateRows, inputs: UpdateInputs) -> tuple[jax.Array, Metrics]:
    batch, cfg, model = rows.batch, inputs.cfg, inputs.models.student
    stats = student_logp(params, batch, cfg, model)
    base_logp = rows.base_logp
    if base_logp is None:
        base_logp = jax.lax.stop_gradient(stats.logp)
    constant = losses.truncated_ratio(base_logp, batch.sampled_logp, cfg.loss.rollout_cap)
    weights = jnp.where(batch.mask, rows.weights * constant, 0.0)
    loss, clipped = losses.grpo_loss(
        stats.logp,
        base_logp,
        batch.advantage,
        weights,
        clip_low=cfg.loss.clip_low,
        clip_high=cfg.loss.clip_high,
        dual_clip=cfg.loss.dual_clip,
    )
    logged: Metrics = {}
    if cfg.loss.kl_coef:
        reference = jax.lax.stop_gradient(student_logp(inputs.teacher, batch, cfg, model))
        each = losses.k3_kl(stats.logp, reference.logp)
        loss = loss + cfg.loss.kl_coef * jnp.sum(rows.weights * each)
        logged["reference_kl"] = means.masked(each, batch.mask)
    logged |= _common_metrics(loss, stats.logp, stats.entropy, rows, cfg)
    logged |= _ratio_metrics(stats.logp, rows, cfg)
    logged["ratio_clipped"] = means.masked(clipped, batch.mask)
    return loss, logged


def _likelihood(
    sign: float, params: Params, rows: UpdateRows, inputs: UpdateInputs
) -> tuple[jax.Array, Metrics]:
    """sign * sum(weights * logp): SFT, and the gradient of a preference loss."""
    batch, cfg = rows.batch, inputs.cfg
    student = student_output(params, batch, inputs.models.student)
    loss, stats = linear_divergence_loss(
        _logp,
        student,
        None,
        batch.response,
        batch.mask,
        sign * rows.weights,
        **head_options(cfg),
    )
    logp = cast(jax.Array, stats.logp)  # None without targets only.
    return loss, _common_metrics(loss, logp, stats.entropy, rows, cfg)


def _logp(stats: TokenLogprob, aux: None) -> jax.Array:
    del aux
    return stats.logp


OBJECTIVES: dict[str, Objective] = {
    "distill": _distill,
    "grpo": _grpo,
    "dpo": functools.partial(_likelihood, 1.0),
    "simpo": functools.partial(_likelihood, 1.0),
    "sft": functools.partial(_likelihood, -1.0),
}


def _ratio_metrics(logp: jax.Array, rows: UpdateRows, cfg: Config) -> Metrics:
    """How often each cap was active, as a share of the trained tokens."""
    batch = rows.batch
    logged: Metrics = {}
    base_logp = logp if rows.base_logp is None else rows.base_logp
    if cfg.loss.rollout_cap is not None:
        ratio = losses.importance_ratio(base_logp, batch.sampled_logp)
        logged["rollout_capped"] = means.masked(ratio > cfg.loss.rollout_cap, batch.mask)
    if rows.base_logp is not None and cfg.loss.importance_cap is not None:
        ratio = losses.importance_ratio(logp, base_logp)
        capped = ratio > cfg.loss.importance_cap
        logged["importance_capped"] = means.masked(capped, batch.mask)
    return logged


def _common_metrics(
    loss: jax.Array, logp: jax.Array, entropy: jax.Array, rows: UpdateRows, cfg: Config
) -> Metrics:
    batch = rows.batch
    logged = {
        # The weights already normalise the loss: parts of it add up, and `train_step.apply`
        # counts the sum as one.
        "loss": Ratio(loss, jnp.zeros(())),
        "entropy": means.masked(entropy, batch.mask),
    }
    # Of the student before the step's first update, where its log-probs are known.
    before = logp if cfg.optimizer.updates == 1 else rows.base_logp
    if before is not None and (cfg.optimizer.updates == 1 or cfg.loss.ratio_base == "trainer"):
        gap = jnp.abs(before - batch.sampled_logp)
        logged[SAMPLED_LOGP_GAP] = means.masked(gap, batch.mask)
    return logged
