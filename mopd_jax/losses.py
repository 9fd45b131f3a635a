"""Objectives over the tokens of a batch: distillation (MOPD, OPD, SDPO) and GRPO.

Every loss is `sum(weight * token_loss)`. The weights carry the whole normalisation and are made
once for the whole batch (`token_weights`), so that splitting it into micro-batches or over
devices cannot change the result.
"""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp

from mopd_jax.config import Aggregation, Divergence
from mopd_jax.kernels import TokenStats, linear_divergence
from mopd_jax.shapes import check_shapes

# exp() of a log-ratio is taken inside these bounds, so that it cannot overflow.
_LOG_RATIO_BOUND = 20.0


def token_weights(mask: jax.Array, *, aggregation: Aggregation) -> jax.Array:
    """Weights f32[N, T] that turn token losses into one number by a weighted sum.

    With k the mask bool[N, T] and n the number of rows with any token (method.md 3.7):

        token-mean                k / sum(k)
        seq-mean-token-mean       k / (n * sum_t k)
        seq-mean-token-sum        k / n          (the paper's sum over tokens)
        seq-mean-token-sum-norm   k / T

    A mask without tokens gives weights of 0. Call it on the whole batch, before any split.
    """
    check_shapes(mask=(mask, "N T"))
    if aggregation not in get_args(Aggregation):
        raise ValueError(
            f"aggregation {aggregation!r} is none of {', '.join(get_args(Aggregation))}"
        )
    k = mask.astype(jnp.float32)
    tokens = jnp.sum(k, axis=1, keepdims=True)
    sequences = jnp.sum(tokens > 0, dtype=jnp.float32)
    # Each maximum acts only where the numerator is 0 as well.
    if aggregation == "token-mean":
        return k / jnp.maximum(jnp.sum(k), 1.0)
    if aggregation == "seq-mean-token-mean":
        return k / jnp.maximum(tokens, 1.0) / jnp.maximum(sequences, 1.0)
    if aggregation == "seq-mean-token-sum":
        return k / jnp.maximum(sequences, 1.0)
    return k / mask.shape[1]


def importance_ratio(logp: jax.Array, behaviour_logp: jax.Array) -> jax.Array:
    """exp(logp - behaviour_logp), f32 of the same shape, the exponent held within +-20."""
    difference = jnp.clip(logp - behaviour_logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    return jnp.exp(difference)


def distill_loss(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    divergence: Divergence = "jsd",
    alpha: float | None = None,
    temperature: float = 1.0,
    behaviour_logp: jax.Array | None = None,
    importance_cap: float | None = None,
    chunk_tokens: int = 2048,
) -> tuple[jax.Array, TokenStats]:
    """Exact full-vocabulary distillation loss from hidden states, without [N, T, V] logits.

        loss = sum_nt weights * min(p / p_behaviour, cap) * D(student || teacher)

    Gradients flow to `student_hidden` and `student_head` only; ratio and weights are constants.

    Args:
        student_hidden, teacher_hidden: [N, T, D] and [N, T, E], the states that predict each
            target. The teacher's may have read another prompt and have another width.
        student_head, teacher_head: [V, D] and [V, E]; logits are hidden @ head.T in float32.
        targets: i32[N, T], the response tokens.
        mask: bool[N, T]; elsewhere nothing is read, not even a NaN.
        weights: f32[N, T], by default `token_weights(mask, aggregation="token-mean")`. With
            gradient accumulation or sharded rows, make them from the whole batch.
        divergence: "jsd" (alpha on the teacher, default 0.5), "forward_kl", "reverse_kl".
        behaviour_logp: f32[N, T] nats of the targets when they were sampled; with
            `importance_cap` it weighs tokens that have become more or less likely since.

    Returns:
        loss f32[] and the per-token statistics (divergence, logp, teacher_logp, entropy).

    Raises:
        ValueError: shapes, dtypes or options that do not fit, naming the argument.
    """
    if (importance_cap is None) != (behaviour_logp is None):
        raise ValueError(
            "importance_cap and behaviour_logp belong together: give both, or neither"
        )
    stats = linear_divergence(
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        targets,
        mask,
        kind=divergence,
        alpha=alpha,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
    )
    if weights is None:
        weights = token_weights(mask, aggregation="token-mean")
    per_token = stats.divergence
    if importance_cap is not None:
        check_shapes(mask=(mask, "N T"), behaviour_logp=(behaviour_logp, "N T"))
        now = jax.lax.stop_gradient(stats.logp)
        ratio = importance_ratio(now, jnp.where(mask, behaviour_logp, 0.0))
        per_token = per_token * jnp.minimum(ratio, importance_cap)
    return jnp.sum(weights * per_token), stats


def grpo_loss(
    logp: jax.Array,
    behaviour_logp: jax.Array,
    advantage: jax.Array,
    weights: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Clipped policy-gradient loss of GRPO with clip-higher and dual clip (method.md 3.8).

    Per token, with r = p / p_behaviour: max(-A r, -A clip(r, 1 - low, 1 + high)), and where
    A < 0 at most -dual_clip * A.

    Args:
        logp, behaviour_logp: f32[N, T] nats, 0 where masked. Gradient flows to `logp`.
        advantage: f32[N].
        weights: f32[N, T] of `token_weights`.

    Returns:
        loss f32[], and bool[N, T] where clipping took the gradient away.
    """
    check_shapes(
        logp=(logp, "N T"),
        behaviour_logp=(behaviour_logp, "N T"),
        advantage=(advantage, "N"),
        weights=(weights, "N T"),
    )
    # A token without weight is masked: what stands there, NaN included, must not be read.
    used = weights != 0
    a = advantage[:, None]
    ratio = importance_ratio(jnp.where(used, logp, 0.0), jnp.where(used, behaviour_logp, 0.0))
    free = -a * ratio
    clipped = -a * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    per_token = jnp.maximum(free, clipped)
    bounded = jnp.where(a < 0, jnp.minimum(per_token, -dual_clip * a), per_token)
    stopped = (clipped > free) | (bounded < per_token)
    return jnp.sum(weights * jnp.where(used, bounded, 0.0)), stopped & used
