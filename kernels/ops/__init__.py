"""The public ops: log-probs and divergences computed from hidden states and heads.

Ops take and return arrays, without a model or configuration. Each checks its arguments while
tracing, chooses the implementation and calls it. The token dimensions, written [N, T] as in the
legend of `mopd_jax/records.py`, may be any, also [M] packed tokens; E is the teacher's width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mopd_jax.kernels import checks, dispatch, old_calls
from mopd_jax.kernels.checks import Call, Options
from mopd_jax.kernels.dispatch import Implementation
from mopd_jax.kernels.linear_divergence import (
    chunked,
    pallas_tpu,
    reference,
    token_losses,
    token_stats,
    topk,
)
from mopd_jax.kernels.linear_divergence.divergence import Divergence, DivergenceKind, Support
from mopd_jax.kernels.linear_divergence.options import HeadSharding
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Logits, Stored
from mopd_jax.kernels.linear_divergence.pallas_gpu import RowKernels
from mopd_jax.kernels.linear_divergence.records import TokenLogprob, TokenStats
from mopd_jax.kernels.linear_divergence.token_losses import TokenLoss
from mopd_jax.kernels.linear_divergence.tuning import Blocks

__all__ = [
    "Blocks",
    "Divergence",
    "DivergenceKind",
    "HeadSharding",
    "Hidden",
    "Implementation",
    "Logits",
    "RowKernels",
    "Stored",
    "Support",
    "TokenLogprob",
    "TokenLoss",
    "TokenStats",
    "linear_divergence",
    "linear_divergence_loss",
    "linear_logprob",
    "linear_topk",
]


def __getattr__(name: str) -> Any:
    if name in old_calls.GONE:
        raise ImportError(f"mopd_jax.kernels has no {name}; use {old_calls.GONE[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@old_calls.answered(4, "linear_divergence(student, teacher, targets, mask)")
def linear_divergence(
    student: Hidden | Logits,
    teacher: Hidden | Logits | Stored,
    targets: jax.Array | None,
    mask: jax.Array,
    *,
    divergence: Divergence = Divergence(),  # noqa: B008  (frozen)
    temperature: float | jax.Array = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> TokenStats:
    """Divergence of teacher and student, log-probs and entropy at each token.

    The statistics are differentiable; the backward pass computes the logits again. Where the
    loss is a sum over tokens of a function known in advance, `linear_divergence_loss` saves a
    third of the matrix products.

    Args:
        student: `Hidden` states [N, T, D] and head [V, D] of any floating dtype but float16, at
            the positions that predict `targets`; or `Logits` [N, T, V].
        teacher: the same of width E, or `Stored` log-probs [N, T, K]; constant, and float16 is
            allowed. Where the target was not stored `teacher_logp` is NaN.
        targets: i32[N, T], in [0, V) where the mask is true, or the log-probs there are NaN;
            anything elsewhere. None: `logp` and `teacher_logp` are None.
        mask: bool[N, T]. Outputs where it is false, NaN included, reach neither a value nor a
            gradient.
        divergence: its kind, alpha and support.
        temperature: > 0; divides the logits of both. A Python float is compiled in; a JAX
            scalar is an operand, a constant without a gradient, NaN in the results where it is
            not positive.
        vocab_size: static; columns of heads and logits from there on are padding, impossible
            for both models, and either side may have more of it. None: every column is a token,
            and the two sides must have equally many.
        chunk_tokens: static, tokens a device whose logits exist at once; None suits the
            platform. Read by "chunked" and "pallas_gpu".
        sharding: where the arrays lie on a mesh. None computes on one device, or inside a
            `shard_map` on each device's own.
        implementation: None lets `dispatch.resolve` choose. `Blocks` are "pallas_tpu" and
            `RowKernels` "pallas_gpu" with other settings than the device's own, or interpreted.

    Returns:
        TokenStats of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to the
        student's arrays; all else is constant.

    Raises:
        TypeError: a call as it was spelled before.
        ValueError: shapes, sizes of the vocabularies, dtypes or options that do not fit.
    """
    options = Options(
        divergence=divergence,
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation=implementation,
    )
    call = checks.make_call(student, teacher, targets, mask, options)
    return _statistics(call, *_settle(call, options))


@old_calls.answered(3, "linear_logprob(model, targets, mask)")
def linear_logprob(
    model: Hidden | Logits,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> TokenLogprob:
    """Log-prob of one token per position, and the entropy there.

    Args:
        model: `Hidden` or `Logits`, at the positions that predict `targets`.
        targets, mask and the options: as in `linear_divergence`.

    Returns:
        TokenLogprob of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to
        the model's arrays.

    Raises:
        TypeError: a call as it was spelled before.
        ValueError: shapes, dtypes or options that do not fit.
    """
    options = Options(
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation=implementation,
    )
    call = checks.make_call(model, None, targets, mask, options, name="model")
    return _statistics(call, *_settle(call, options))


@old_calls.answered(
    7, "linear_divergence_loss(token_loss, student, teacher, targets, mask, weights, aux)"
)
def linear_divergence_loss(
    token_loss: TokenLoss,
    student: Hidden | Logits,
    teacher: Hidden | Logits | Stored | None,
    targets: jax.Array | None,
    mask: jax.Array,
    weights: jax.Array,
    aux: Any = None,
    *,
    divergence: Divergence | None = None,
    temperature: float | jax.Array = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> tuple[jax.Array, TokenStats | TokenLogprob]:
    """sum(weights * token_loss(statistics, aux)), its gradients made in the forward pass.

    4 matrix products of tokens x width x vocabulary for value and gradients, where
    `linear_divergence` takes 6; for that the loss must be a sum over tokens.

    Args:
        token_loss: (TokenStats f32[C] or TokenLogprob, aux of the same tokens) -> f32[C], a
            pure function of jax.numpy, called on any C tokens at a time. It closes over nothing
            that is traced: what varies goes into `aux`. Stop gradients inside it as needed.
        student, teacher, targets, mask and the options: as in `linear_divergence`; a teacher of
            None is for a loss of log-prob and entropy.
        weights: f32[N, T], with the whole normalisation in them.
        aux: pytree of [N, T, ...], or None.
        divergence: must be given with a teacher and only then.

    Returns:
        The loss f32[], over all devices of `sharding`, and the statistics [N, T] for logging,
        which carry no gradient. The loss is differentiable in the student's arrays, weights and
        the floating leaves of `aux`.

    Raises:
        TypeError: a call as it was spelled before.
        ValueError: as `linear_divergence`, and for a `token_loss` of another shape.
    """
    options = Options(
        divergence=divergence,
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation=implementation,
    )
    call = checks.make_call(student, teacher, targets, mask, options)
    weights, aux = jnp.asarray(weights), jax.tree.map(jnp.asarray, aux)
    checks.check_weights(weights, aux, call.operands.mask)
    checks.check_unsharded(sharding, implementation, weights=weights, aux=aux)
    name, settings = _settle(call, options)
    if name in ("chunked", "pallas_gpu"):
        rows = settings or token_stats.token_statistics
        loss, stats = chunked.loss_with_gradients(
            call.spec, rows, token_loss, call.student, call.operands, weights, aux
        )
    else:
        stats = _statistics(call, name, settings)
        loss = token_losses.weighted_sum(token_loss, stats, call.operands.mask, weights, aux)
    return loss, jax.lax.stop_gradient(stats)


@old_calls.answered(3, "linear_topk(model, mask, k)")
def linear_topk(
    model: Hidden | Logits,
    mask: jax.Array,
    k: int,
    *,
    temperature: float | jax.Array = 1.0,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
) -> Stored:
    """The k likeliest tokens of a teacher at each position, to keep instead of the teacher.

    Args:
        model: `Hidden` or `Logits`, float16 too; mask bool[N, T]; options: see
            `linear_divergence`.

    Returns:
        Stored of i32[N, T, k] ids and f32[N, T, k] log-probs under the full softmax, largest
        first, zeros outside the mask. No gradient flows.

    Raises:
        TypeError: a call as it was spelled before.
        ValueError: shapes, dtypes or options that do not fit.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be at least 1, an int, got {k!r}")
    options = Options(
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
        implementation="chunked",
    )
    # Log-probs without a target.
    targets = jnp.zeros(jnp.shape(mask), jnp.int32)
    call = checks.make_call(model, None, targets, mask, options, name="model", constant=True)
    if k > call.spec.vocab_size:
        raise ValueError(f"k={k} is more than the vocabulary of {call.spec.vocab_size}")
    model, operands = jax.lax.stop_gradient((call.student, call.operands))
    return topk.token_topk(call.spec, k, model, operands.mask, operands.dials)


def _settle(call: Call, options: Options) -> tuple[Implementation, Any]:
    """Which implementation runs, and with which settings."""
    return dispatch.settle(options.implementation, call.student, call.operands)


def _statistics(call: Call, name: Implementation, settings: Any) -> Any:
    if name == "reference":
        return reference.token_statistics(call.spec, call.student, call.operands)
    if name == "pallas_tpu":
        return pallas_tpu.differentiable_statistics(
            call.spec, settings, call.student, call.operands
        )
    rows = settings or token_stats.token_statistics
    return chunked.differentiable_statistics(call.spec, rows, call.student, call.operands)
