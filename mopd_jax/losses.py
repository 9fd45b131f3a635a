"""Losses over the tokens of a batch: distillation (MOPD, OPD, SDPO) and GRPO.

Every loss is `sum(weight * token_loss)`. The weights carry the whole normalisation and are made
once for the whole batch (`token_weights`), so that splitting it into micro-batches or over
devices cannot change the result.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp

from mopd_jax.choices import Aggregation
from mopd_jax.kernels import (
    Blocks,
    Divergence,
    HeadSharding,
    Hidden,
    Implementation,
    Logits,
    RowKernels,
    Stored,
    TokenStats,
    checks,
    linear_divergence_loss,
    old_calls,
)
from mopd_jax.shapes import check_shapes

# exp() of a log-ratio is taken inside these bounds, so that it cannot overflow.
_LOG_RATIO_BOUND = 20.0
# A stored log-prob may be this much above 0: by rounding, where the softmax was in bfloat16.
_LOG_PROB_ROUNDING = 1e-2

_BY_WEIGHTS = "weights=token_weights(mask, {}=...)"
# Arguments of `distill_loss` before 0.1.
_RENAMED = old_calls.RENAMED | {
    "behaviour_logp": "sampled_logp=...",
    "rollout_weights": "weights=token_weights(mask) * rollout_weights",
    "context_mask": "mask=mask & context_mask[:, None]",
    **{x: _BY_WEIGHTS.format(x) for x in ("aggregation", "totals", "scale", "steps")},
}


class Totals(NamedTuple):
    """Token and row counts of a whole batch, over all its micro-batches and devices."""

    tokens: jax.Array  # f32[], in the mask
    sequences: jax.Array  # f32[], rows of the mean over sequences


@old_calls.answered(
    1, "batch_totals(mask)", {"context_mask": "batch_totals(mask & context_mask[:, None])"}
)
def batch_totals(mask: jax.Array, *, every_row: bool = False) -> Totals:
    """Denominators of the batch with mask bool[..., T], to be made before any split.

    A row is all that the last dimension holds; packed tokens [M] are one row. `every_row`
    counts rows without a token as sequences too, as dividing by the size of the batch does.
    """
    mask = _bool(mask)
    rows = jnp.ones(mask.shape[:-1], bool) if every_row else jnp.any(mask, axis=-1)
    return Totals(jnp.sum(mask, dtype=jnp.float32), jnp.sum(rows, dtype=jnp.float32))


def _bool(mask: Any) -> jax.Array:
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected bool, got {mask.dtype}; write mask != 0")
    if not mask.ndim:
        raise ValueError("mask: expected one entry a token, got a scalar")
    return mask


def token_weights(
    mask: jax.Array,
    *,
    aggregation: Aggregation = "token-mean",
    totals: Totals | None = None,
    scale: float | None = None,
    steps: jax.Array | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Weights f32[..., T] whose weighted sum of token losses is the loss.

    With k the mask bool[..., T], and the totals those of the whole batch:

        token-mean                k / tokens
        seq-mean-token-mean       k / (sequences * sum_t k)
        seq-mean-token-sum        k / sequences          (the paper's sum over tokens)
        seq-mean-token-sum-norm   k / scale
        seq-mean-step-mean        k / (sequences * steps of the row * tokens of the step)

    A mask without tokens gives weights of 0. The loss of a batch is the sum over its parts: a
    trainer that averages over K of them (`optax.MultiSteps`, `pmean`) needs K times these.
    Packed tokens [M] are one row, so for them only "token-mean" is meaningful.

    Args:
        totals: by default those of this mask. Of a part of a batch, `batch_totals` of the
            whole, so that the parts add up to the loss of the batch.
        scale: of seq-mean-token-sum-norm only, by default T; to be given with totals, since a
            part of a batch may be cut shorter.
        steps: i32[..., T] in [0, T), of seq-mean-step-mean only: which step of its response a
            token belongs to (`update.reasoning_steps.step_ids`). Long and short steps weigh
            the same.
        dtype: of the weights; float64 for a loss in float64.

    Raises:
        ValueError: an unknown aggregation, or an option that the aggregation does not read.
    """
    mask = _bool(mask)
    _check_aggregation(aggregation, totals, scale, steps)
    totals = batch_totals(mask) if totals is None else totals
    k = mask.astype(dtype)
    # `maximum` only avoids 0 / 0.
    sequences = jnp.maximum(totals.sequences, 1.0).astype(dtype)
    if aggregation == "token-mean":
        return k / jnp.maximum(totals.tokens, 1.0).astype(dtype)
    if aggregation == "seq-mean-token-mean":
        return k / jnp.maximum(jnp.sum(k, axis=-1, keepdims=True), 1.0) / sequences
    if aggregation == "seq-mean-token-sum":
        return k / sequences
    if aggregation == "seq-mean-step-mean":
        return k / _step_sizes(k, steps) / sequences
    return k / (mask.shape[-1] if scale is None else scale)


def _check_aggregation(aggregation: Any, totals: Any, scale: Any, steps: Any) -> None:
    if aggregation not in get_args(Aggregation):
        raise ValueError(
            f"aggregation {aggregation!r} is not one of {', '.join(get_args(Aggregation))}"
        )
    if totals is not None and not isinstance(totals, Totals):
        raise ValueError(f"totals: expected `batch_totals(mask)`, got {type(totals).__name__}")
    if totals is not None and aggregation == "seq-mean-token-sum-norm" and scale is None:
        raise ValueError(
            "seq-mean-token-sum-norm divides by scale, by default the length T of this mask;"
            " with totals of a whole batch give its length too, scale=..."
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


def _step_sizes(k: jax.Array, steps: Any) -> jax.Array:
    """f32[..., T], at each token: steps of its row times tokens of its step, at least 1."""
    steps = jnp.asarray(steps)
    checks.check_by_token(k, steps=steps)

    def row(k: jax.Array, steps: jax.Array) -> jax.Array:
        tokens = jnp.zeros(k.shape, k.dtype).at[steps].add(k)
        return jnp.maximum(tokens[steps] * jnp.sum(tokens > 0), 1.0)

    length = k.shape[-1]
    sizes = jax.vmap(row)(k.reshape(-1, length), steps.reshape(-1, length))
    return sizes.reshape(k.shape)


def importance_ratio(logp: jax.Array, sampled_logp: jax.Array) -> jax.Array:
    """exp(logp - sampled_logp), f32 of the same shape, the exponent held within +-20."""
    difference = jnp.clip(logp - sampled_logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    return jnp.exp(difference)


@old_calls.answered(4, "distill_loss(student, teacher, targets, mask)", _RENAMED)
def distill_loss(
    student: Hidden | Logits,
    teacher: Hidden | Logits | Stored,
    targets: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    weights: jax.Array | None = None,
    sampled_logp: jax.Array | None = None,
    importance_cap: float | None = None,
    divergence: Divergence = Divergence(),  # noqa: B008  (frozen)
    temperature: float | jax.Array = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> tuple[jax.Array, TokenStats]:
    """Distillation loss from the outputs of two models, exact and without [N, T, V] logits.

        loss = sum_nt weights * min(p / p_sampled, cap) * divergence    (without a cap: times 1)

    Gradients flow to the student's arrays only; ratio and weights are constants. The dimensions
    of the tokens, written [N, T], may be any, [M] of packed tokens too.

    Args:
        student: `Hidden(states, head)` of [N, T, D] and [V, D], at the positions that predict
            each target; or `Logits` [N, T, V], which costs their memory.
        teacher: `Hidden` of [N, T, E] and [V, E], `Logits` [N, T, V], or `Stored` log-probs of
            K tokens [N, T, K]. It may have read another prompt, have another width, and be
            float16. A stored log-prob above 0 is an error; inside `jit` the loss is NaN.
        targets: i32[N, T], the response tokens; below 0 (-100, -1) where a position does not
            count. None: `logp` and `teacher_logp` are None; a support of "sampled" and an
            importance cap need targets. An id beyond the vocabulary has the log-prob NaN, which
            reaches the loss where a cap or the support "sampled" reads it.
        mask: bool[N, T]; elsewhere nothing is read, not even a NaN. None is `targets >= 0`, and
            without targets every position: then padding counts as tokens do. A label below 0
            under a true mask is an error; inside `jit`, which cannot raise it, the loss is NaN.
        weights: f32[N, T] with the whole normalisation in them, as `token_weights` makes them;
            None is the mean over the tokens of the mask. For a part of a batch give
            `token_weights(mask, totals=batch_totals(mask of the whole batch))`.
        sampled_logp: f32[N, T] nats of the targets when they were sampled; with
            `importance_cap` it weighs tokens that have become more or less likely since.
        divergence: its kind, alpha and support; by default the jsd at 0.5 over the vocabulary.
        temperature ... implementation: as in `mopd_jax.kernels.linear_divergence`.

    Returns:
        loss f32[] (f64 if the student or the weights are) and the per-token statistics
        (divergence, logp, teacher_logp, entropy), which carry no gradient and are 0 outside
        the mask.

    Raises:
        TypeError: a call as it was spelled before 0.1, with the spelling of today.
        ValueError: shapes, dtypes or options that do not fit, naming the argument.
    """
    _check_importance(targets, sampled_logp, importance_cap)
    mask = _mask(student, targets, mask)
    if sampled_logp is not None:
        sampled_logp = jnp.asarray(sampled_logp)
        checks.check_by_token(mask, sampled_logp=sampled_logp)
        checks.check_unsharded(sharding, implementation, sampled_logp=sampled_logp)
    if weights is None:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(student))
        weights = token_weights(mask, dtype=dtype)
    weights = jnp.asarray(weights)
    if targets is not None:
        weights = _without_ignored(weights, jnp.asarray(targets), mask)
    if isinstance(teacher, Stored):
        weights = _with_log_probs(weights, teacher, mask)
    loss, stats = linear_divergence_loss(
        functools.partial(_capped_divergence, cap=importance_cap),
        student,
        teacher,
        targets,
        mask,
        *jax.lax.stop_gradient((weights, sampled_logp)),
        divergence=divergence,
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation=implementation,
    )
    return loss, cast(TokenStats, stats)  # There is a teacher.


def _check_importance(targets: Any, sampled_logp: Any, importance_cap: float | None) -> None:
    if (importance_cap is None) != (sampled_logp is None):
        raise ValueError(
            "importance_cap and sampled_logp belong together: give both, or neither"
        )
    if importance_cap is not None and not isinstance(importance_cap, float | int):
        raise ValueError(
            f"importance_cap={importance_cap!r} is a {type(importance_cap).__name__}; it is"
            " static, give a Python float"
        )
    if importance_cap is not None and not importance_cap > 0:
        raise ValueError(f"importance_cap must be positive, got {importance_cap}")
    if importance_cap is not None and targets is None:
        raise ValueError("targets: importance_cap weighs the sampled tokens; give targets")


def _mask(student: Any, targets: Any, mask: Any) -> jax.Array:
    """The caller's mask, or by default `targets >= 0`, or every position."""
    if mask is not None:
        return _bool(mask)
    if targets is not None:
        return jnp.asarray(targets) >= 0
    first, *_ = jax.tree.leaves(student)
    # Like the student's array, so that it lies on a mesh as that does.
    return jnp.ones_like(jnp.asarray(first)[..., 0], bool)


def _without_ignored(weights: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights, NaN where a target is below 0 and the mask is true; raises outside `jit`."""
    checks.check_by_token(mask, targets=targets)
    checks.check_weights(weights, None, mask)
    return _nan_where(
        mask & (targets < 0),
        weights,
        mask,
        "targets: {} have a label below 0, which means that they do not count; leave mask out,"
        " or give mask & (targets >= 0)",
    )


def _with_log_probs(weights: jax.Array, teacher: Stored, mask: jax.Array) -> jax.Array:
    """Weights, NaN where a stored log-prob is above 0 and its token counts; raises outside
    `jit`."""
    logp = jnp.asarray(teacher.logp)
    if logp.shape[:-1] != mask.shape:
        return weights  # The operator refuses the shape, with both arrays' names.
    return _nan_where(
        mask & jnp.any(logp > _LOG_PROB_ROUNDING, axis=-1),
        weights,
        mask,
        "teacher.logp: {} have one above 0; give log-probs in nats under the full softmax,"
        " neither probabilities nor logits",
    )


def _nan_where(wrong: jax.Array, weights: jax.Array, mask: jax.Array, error: str) -> jax.Array:
    """Weights, NaN where `wrong`, bool[N, T]; where it is known, outside `jit`, raises."""
    if not isinstance(wrong, jax.core.Tracer) and (count := int(jnp.sum(wrong))):
        raise ValueError(error.format(f"{count} of {int(jnp.sum(mask))} tokens of the mask"))
    return jnp.where(wrong, jnp.nan, weights)


def _capped_divergence(
    stats: TokenStats, sampled_logp: jax.Array | None, *, cap: float | None
) -> jax.Array:
    if cap is None or stats.logp is None or sampled_logp is None:
        return stats.divergence
    ratio = importance_ratio(jax.lax.stop_gradient(stats.logp), sampled_logp)
    return stats.divergence * jnp.minimum(ratio, cap)


def truncated_ratio(logp: jax.Array, sampled_logp: jax.Array, cap: float | None) -> jax.Array:
    """Constant min(p / p_sampled, cap) of each token; 1 where the cap is None.

    Corrects, up to the cap, for the difference between sampler and trainer.
    """
    if cap is None:
        return jnp.ones_like(sampled_logp)
    ratio = importance_ratio(jax.lax.stop_gradient(logp), sampled_logp)
    return jnp.minimum(ratio, cap)


def k3_kl(logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    """q/p - log(q/p) - 1 >= 0 of each sampled token, p the policy and q the reference.

    Its mean over tokens drawn from p estimates KL(p || q). Its gradient is not the gradient of
    that KL; GRPO uses it all the same (arXiv 2402.03300). The exponent is held within +-20.
    """
    gap = jnp.clip(reference_logp - logp, -_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    return jnp.exp(gap) - gap - 1


def grpo_loss(
    logp: jax.Array,
    sampled_logp: jax.Array,
    advantage: jax.Array,
    weights: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> tuple[jax.Array, jax.Array]:
    """Clipped policy-gradient loss of GRPO with clip-higher and dual clip.

    Sources: GRPO arXiv 2402.03300, clip-higher arXiv 2503.14476, dual clip arXiv 1912.09729.

    Per token, with r = p / p_sampled: max(-A r, -A clip(r, 1 - low, 1 + high)), and where
    A < 0 at most -dual_clip * A.

    Args:
        logp, sampled_logp: f32[N, T] nats, 0 where masked; the second of the policy that
            the ratio is relative to. Gradient flows to `logp`.
        advantage: f32[N].
        weights: f32[N, T] of `token_weights`.

    Returns:
        loss f32[], and bool[N, T] where clipping took the gradient away.
    """
    check_shapes(
        logp=(logp, "N T"),
        sampled_logp=(sampled_logp, "N T"),
        advantage=(advantage, "N"),
        weights=(weights, "N T"),
    )
    # A token of weight 0 is masked: its values may be NaN and must not be read.
    used = weights != 0
    a = advantage[:, None]
    ratio = importance_ratio(jnp.where(used, logp, 0.0), jnp.where(used, sampled_logp, 0.0))
    free = -a * ratio
    clipped = -a * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    per_token = jnp.maximum(free, clipped)
    bounded = jnp.where(a < 0, jnp.minimum(per_token, -dual_clip * a), per_token)
    stopped = (clipped > free) | (bounded < per_token)
    return jnp.sum(weights * jnp.where(used, bounded, 0.0)), stopped & used
