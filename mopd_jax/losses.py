"""Objectives over the tokens of a batch: distillation (MOPD, OPD, SDPO) and GRPO.

Every loss is `sum(weight * token_loss)`. The weights carry the whole normalisation and are made
once for the whole batch (`token_weights`), so that splitting it into micro-batches or over
devices cannot change the result.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from mopd_jax.config.update import Aggregation, Divergence
from mopd_jax.kernels import (
    Blocks,
    HeadSharding,
    HiddenTeacher,
    Implementation,
    RowKernels,
    StoredTeacher,
    Support,
    TokenStats,
    linear_divergence_loss,
)
from mopd_jax.shapes import check_shapes

# exp() of a log-ratio is taken inside these bounds, so that it cannot overflow.
_LOG_RATIO_BOUND = 20.0


class Totals(NamedTuple):
    """What a whole batch has, over all its micro-batches and devices: see `batch_totals`."""

    tokens: jax.Array  # f32[], in the mask
    sequences: jax.Array  # f32[], rows of the mean over sequences


def batch_totals(
    mask: jax.Array, *, context_mask: jax.Array | None = None, every_row: bool = False
) -> Totals:
    """Denominators of the batch with mask bool[N, T], to be made before any split.

    `context_mask` bool[N] is that of `distill_loss`: rows it leaves out are not counted.
    `every_row` counts rows without a token as sequences too: what a sum divided by the size of
    the batch does.
    """
    mask = _both_masks(mask, context_mask)
    rows = jnp.ones(len(mask), bool) if every_row else jnp.any(mask, axis=1)
    return Totals(jnp.sum(mask, dtype=jnp.float32), jnp.sum(rows, dtype=jnp.float32))


def _both_masks(mask, context_mask):
    mask = jnp.asarray(mask)
    check_shapes(mask=(mask, "N T"))
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected bool, got {mask.dtype}; write mask != 0")
    if context_mask is None:
        return mask
    context_mask = jnp.asarray(context_mask)
    check_shapes(mask=(mask, "N T"), context_mask=(context_mask, "N"))
    if context_mask.dtype != jnp.bool_:
        raise ValueError(f"context_mask: expected bool, got {context_mask.dtype}")
    return mask & context_mask[:, None]


def token_weights(
    mask: jax.Array,
    *,
    aggregation: Aggregation,
    totals: Totals | None = None,
    scale: float | None = None,
    steps: jax.Array | None = None,
) -> jax.Array:
    """Weights f32[N, T] that turn token losses into one number by a weighted sum.

    With k the mask bool[N, T], and the totals those of the whole batch:

        token-mean                k / tokens
        seq-mean-token-mean       k / (sequences * sum_t k)
        seq-mean-token-sum        k / sequences          (the paper's sum over tokens)
        seq-mean-token-sum-norm   k / scale
        seq-mean-step-mean        k / (sequences * steps of the row * tokens of the step)

    A mask without tokens gives weights of 0. The loss of a batch is the sum over its parts: a
    trainer that averages over K of them (`optax.MultiSteps`, `pmean`) needs K times these.

    Args:
        totals: by default those of this mask. Of a part of a batch, `batch_totals` of the
            whole, so that the parts add up to the loss of the batch.
        scale: of seq-mean-token-sum-norm only, by default T.
        steps: i32[N, T] in [0, T), of seq-mean-step-mean only: which step of its response a
            token belongs to (`steps.step_ids`). A long step weighs no more than a short one.
    """
    mask = _both_masks(mask, None)
    if aggregation not in get_args(Aggregation):
        raise ValueError(
            f"aggregation {aggregation!r} is none of {', '.join(get_args(Aggregation))}"
        )
    if scale is not None and (aggregation != "seq-mean-token-sum-norm" or not scale > 0):
        raise ValueError(
            f"scale={scale} with aggregation={aggregation!r}: it is the positive divisor of"
            " seq-mean-token-sum-norm, and of no other"
        )
    if (steps is not None) != (aggregation == "seq-mean-step-mean"):
        raise ValueError(
            f"steps={'given' if steps is not None else None} with aggregation={aggregation!r}: "
            "seq-mean-step-mean needs them, and no other reads them"
        )
    totals = batch_totals(mask) if totals is None else totals
    k = mask.astype(jnp.float32)
    # Each maximum acts only where the numerator is 0 as well.
    sequences = jnp.maximum(totals.sequences, 1.0)
    if aggregation == "token-mean":
        return k / jnp.maximum(totals.tokens, 1.0)
    if aggregation == "seq-mean-token-mean":
        return k / jnp.maximum(jnp.sum(k, axis=1, keepdims=True), 1.0) / sequences
    if aggregation == "seq-mean-token-sum":
        return k / sequences
    if aggregation == "seq-mean-step-mean":
        return k / _step_sizes(k, steps) / sequences
    return k / (mask.shape[1] if scale is None else scale)


def _step_sizes(k, steps):
    """f32[N, T], at each token: steps of its row times tokens of its step, at least 1."""
    steps = jnp.asarray(steps)
    check_shapes(mask=(k, "N T"), steps=(steps, "N T"))

    def row(k, steps):
        tokens = jnp.zeros(k.shape).at[steps].add(k)
        return jnp.maximum(tokens[steps] * jnp.sum(tokens > 0), 1.0)

    return jax.vmap(row)(k, steps)


def importance_ratio(logp: jax.Array, behaviour_logp: jax.Array) -> jax.Array:
    """exp(logp - behaviour_logp), f32 of the same shape, the exponent held within +-20."""
    difference = jnp.clip(logp - behaviour_logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    return jnp.exp(difference)


def distill_loss(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array | StoredTeacher,
    teacher_head: jax.Array | None,
    targets: jax.Array,
    mask: jax.Array,
    *,
    context_mask: jax.Array | None = None,
    weights: jax.Array | None = None,
    aggregation: Aggregation | None = None,
    totals: Totals | None = None,
    scale: float | None = None,
    steps: jax.Array | None = None,
    rollout_weights: jax.Array | None = None,
    behaviour_logp: jax.Array | None = None,
    importance_cap: float | None = None,
    divergence: Divergence = "jsd",
    alpha: float | None = None,
    continuous: bool = False,
    clip: float | None = None,
    support: Support = "full",
    temperature: float = 1.0,
    soft_cap: float | None | tuple[float | None, float | None] = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> tuple[jax.Array, TokenStats]:
    """Distillation loss from hidden states and heads, exact and without [N, T, V] logits.

        loss = sum_nt weights * rollout_weights * min(p / p_behaviour, cap) * divergence

    Gradients flow to `student_hidden` and `student_head` only; ratio and weights are constants.

    Args:
        student_hidden, teacher_hidden: [N, T, D] and [N, T, E], the states that predict each
            target. The teacher's may have read another prompt and have another width. In
            place of its states a `kernels.StoredTeacher`, with head None and the support of
            that.
        student_head, teacher_head: [V, D] and [V, E]; logits are hidden @ head.T in float32.
        targets: i32[N, T], the response tokens. One that is no token, such as -100, under a
            true mask has the log-prob NaN, and with an importance cap the loss is NaN.
        mask: bool[N, T]; elsewhere nothing is read, not even a NaN.
        context_mask: bool[N], rows whose teacher had something to read; the others are masked.
        weights: f32[N, T] with the whole normalisation in them. Instead of them:
        aggregation: how token losses become one number, see `token_weights`; "token-mean" if
            nothing is said.
        totals: the denominators, by default of what both masks leave here; with gradient
            accumulation or rows split over devices, `batch_totals` of the whole batch.
        scale: the divisor of "seq-mean-token-sum-norm", by default T; to be given with totals,
            since a part of a batch may be cut shorter.
        steps: i32[N, T] of "seq-mean-step-mean", see `token_weights`.
        rollout_weights: f32[N, T], constant factors, such as the truncated ratio of trainer to
            sampler.
        behaviour_logp: f32[N, T] nats of the targets when they were sampled; with
            `importance_cap` it weighs tokens that have become more or less likely since.
        divergence: "jsd" (alpha on the teacher, default 0.5), "forward_kl", "reverse_kl".
        alpha, continuous, clip, support ... implementation: as in
            `mopd_jax.kernels.linear_divergence`.

    Returns:
        loss f32[] and the per-token statistics (divergence, logp, teacher_logp, entropy), which
        carry no gradient and are 0 outside both masks.

    Raises:
        ValueError: shapes, dtypes or options that do not fit, naming the argument.
    """
    if (importance_cap is None) != (behaviour_logp is None):
        raise ValueError(
            "importance_cap and behaviour_logp belong together: give both, or neither"
        )
    if importance_cap is not None and not importance_cap > 0:
        raise ValueError(f"importance_cap must be positive, got {importance_cap}")
    if weights is not None and not aggregation is totals is scale is steps is None:
        raise ValueError(
            "weights have the normalisation in them: give them, or aggregation, totals, scale,"
            " steps"
        )
    per_token = {
        "rollout_weights": rollout_weights,
        "behaviour_logp": behaviour_logp,
        "weights": weights,
    }
    per_token = {k: x if x is None else jnp.asarray(x) for k, x in per_token.items()}
    rollout_weights, behaviour_logp, weights = per_token.values()
    given = {name: (x, "N T") for name, x in per_token.items() if x is not None}
    mask = _both_masks(mask, context_mask)
    check_shapes(mask=(mask, "N T"), **given)
    if weights is None:
        weights = _part_weights(mask, aggregation or "token-mean", totals, scale, steps)
    if rollout_weights is not None:
        weights = weights * jnp.where(mask, rollout_weights, 0.0)
    return linear_divergence_loss(
        functools.partial(_capped_divergence, cap=importance_cap),
        student_hidden,
        student_head,
        _teacher(teacher_hidden, teacher_head),
        targets,
        mask,
        *jax.lax.stop_gradient((weights, behaviour_logp)),
        kind=divergence,
        alpha=alpha,
        continuous=continuous,
        clip=clip,
        support=support,
        temperature=temperature,
        soft_cap=soft_cap,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation=implementation,
    )


def _part_weights(mask, aggregation, totals, scale, steps):
    """`token_weights` of what may be a part of a batch."""
    if totals is not None and not isinstance(totals, Totals):
        raise ValueError(f"totals: expected `batch_totals(mask)`, got {type(totals).__name__}")
    if totals is not None and aggregation == "seq-mean-token-sum-norm" and scale is None:
        raise ValueError(
            "seq-mean-token-sum-norm divides by scale, by default the length T of this part;"
            " with totals of a whole batch give its length too, scale=..."
        )
    return token_weights(mask, aggregation=aggregation, totals=totals, scale=scale, steps=steps)


def _teacher(hidden, head):
    stored = isinstance(hidden, StoredTeacher)
    if stored != (head is None):
        raise ValueError(
            f"teacher_hidden is a {type(hidden).__name__} and teacher_head "
            f"{'None' if head is None else 'given'}: hidden states need a head, a "
            "StoredTeacher has none"
        )
    return hidden if stored else HiddenTeacher(hidden, head)


def _capped_divergence(stats: TokenStats, behaviour_logp: jax.Array | None, *, cap):
    if cap is None:
        return stats.divergence
    ratio = importance_ratio(jax.lax.stop_gradient(stats.logp), behaviour_logp)
    return stats.divergence * jnp.minimum(ratio, cap)


def truncated_ratio(logp: jax.Array, behaviour_logp: jax.Array, cap: float | None) -> jax.Array:
    """Constant min(p / p_behaviour, cap) of each token; 1 where the cap is None.

    Repairs, up to the cap, that what sampled a token is not quite what trains on it.
    """
    if cap is None:
        return jnp.ones_like(behaviour_logp)
    ratio = importance_ratio(jax.lax.stop_gradient(logp), behaviour_logp)
    return jnp.minimum(ratio, cap)


def k3_kl(logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    """q/p - log(q/p) - 1 >= 0 of each sampled token, p the policy and q the reference.

    Its mean over tokens drawn from p is KL(p || q), as value; its gradient is that of the
    estimator, as GRPO has it (arXiv 2402.03300). The exponent is held within +-20.
    """
    gap = jnp.clip(reference_logp - logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    return jnp.exp(gap) - gap - 1


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
    """Clipped policy-gradient loss of GRPO with clip-higher and dual clip.

    Sources: GRPO arXiv 2402.03300, clip-higher arXiv 2503.14476, dual clip arXiv 1912.09729.

    Per token, with r = p / p_behaviour: max(-A r, -A clip(r, 1 - low, 1 + high)), and where
    A < 0 at most -dual_clip * A.

    Args:
        logp, behaviour_logp: f32[N, T] nats, 0 where masked; the second of the policy that
            the ratio is relative to. Gradient flows to `logp`.
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
