"""Computes the divergence in chunks of valid tokens, without an [N, T, V] array, also backward.

`run` is the only loop. It visits the chunks that hold a valid token, computes a chunk's logits
and reads its statistics. For gradients, a loss per token gives the cotangents of the
statistics; they become the gradient of the logits, and that at once becomes the gradients of
the hidden states and the head. Two functions use the loop:

- `loss_with_gradients` has the loss as an argument: it computes the gradients in the forward
  pass and keeps them: 4 matrix products (logits of both, both gradients), the fewest possible;
- `differentiable_statistics` returns the statistics for any later use: its backward pass runs
  the loop again, with the inner product with the cotangents as the loss. 6 products.

Products take the dtype of their operands and give float32: logits in bfloat16 are 0.125 apart
at 16, which ruins the gradient of a small divergence. Only the gradient of the logits is
rounded, once, to the dtype of the operands. The head's gradient is summed in float32.

Both are written in differentiable operations, so that a gradient can be differentiated: forward
over reverse always, in reverse only where the number of live chunks is not a tracer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import logits, sharded, token_losses
from mopd_jax.kernels.linear_divergence.options import Dials, Spec
from mopd_jax.kernels.linear_divergence.outputs import Logits, Output, Stored, Teacher
from mopd_jax.kernels.linear_divergence.partition import partition, put, take
from mopd_jax.kernels.linear_divergence.records import (
    FusedRowStatistics,
    Part,
    RowStatistics,
    Stats,
    TokenLogprob,
    TokenStats,
)
from mopd_jax.kernels.linear_divergence.token_losses import TokenLoss


class Operands(NamedTuple):
    """Operands without a gradient; [...] are the dimensions of the tokens."""

    teacher: Teacher | None
    targets: jax.Array | None  # i32[...]
    mask: jax.Array  # bool[...]
    dials: Dials = Dials()


class Gradients(NamedTuple):
    """Of a weighted loss."""

    student: Any  # Like the student: Hidden of [..., D] and [V, D], or Logits of [..., V]
    weights: jax.Array  # f32[...]
    aux: Any  # its floating leaves, in order


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable_statistics(
    spec: Spec, row_statistics: RowStatistics, student: Output, operands: Operands
) -> Stats:
    """Statistics f32[...], 0 outside the mask; differentiable in the student's arrays."""
    return run(spec, row_statistics, None, student, operands)[1]


def _statistics_forward(
    spec: Spec, row_statistics: RowStatistics, student: Output, operands: Operands
) -> tuple[Stats, Any]:
    stats = run(spec, row_statistics, None, student, operands)[1]
    return stats, (student, operands)


def _statistics_backward(
    spec: Spec, row_statistics: RowStatistics, residuals: Any, cotangents: Stats
) -> tuple[Output, None]:
    student, operands = residuals
    ones = jnp.ones(operands.mask.shape, jnp.float32)
    grads = run(spec, row_statistics, _inner, student, operands, ones, cotangents)[2]
    return jax.tree.map(sharded.reduced, grads.student, student), None


def _inner(stats: Stats, cotangents: Stats) -> jax.Array:
    products = jax.tree.leaves(jax.tree.map(jnp.multiply, stats, cotangents))
    return functools.reduce(jnp.add, products)


differentiable_statistics.defvjp(_statistics_forward, _statistics_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def loss_with_gradients(
    spec: Spec,
    row_statistics: RowStatistics,
    token_loss: TokenLoss,
    student: Output,
    operands: Operands,
    weights: jax.Array,
    aux: Any,
) -> tuple[jax.Array, Stats]:
    """sum(weights * token_loss(stats, aux)) f32[], and the statistics, without gradient.

    Differentiable in the student's arrays, weights and the floating leaves of aux.
    """
    stats = run(spec, row_statistics, None, student, operands)[1]
    return token_losses.weighted_sum(token_loss, stats, operands.mask, weights, aux), stats


def _loss_forward(
    spec: Spec,
    row_statistics: RowStatistics,
    token_loss: TokenLoss,
    student: Output,
    operands: Operands,
    weights: jax.Array,
    aux: Any,
) -> tuple[Any, Any]:
    loss, stats, grads = run(spec, row_statistics, token_loss, student, operands, weights, aux)
    # Arrays of no size carry types and shapes into the backward pass.
    empty = jax.tree.map(lambda x: x[..., :0], student)
    return (loss, stats), (grads, empty, weights, aux)


def _loss_backward(
    spec: Spec,
    row_statistics: RowStatistics,
    token_loss: TokenLoss,
    residuals: Any,
    cotangents: Any,
) -> tuple[Any, None, jax.Array, Any]:
    del spec, row_statistics, token_loss
    grads, student, weights, aux = residuals
    by = cotangents[0]

    def scaled(grad: jax.Array, primal: jax.Array) -> jax.Array:
        grad = (by * grad.astype(by.dtype)).astype(grad.dtype)
        return sharded.reduced(grad, primal)

    leaves, tree = jax.tree.flatten(aux)
    floating = iter(grads.aux)
    to_aux = [
        scaled(next(floating), x) if token_losses.is_floating(x) else None for x in leaves
    ]
    return (
        jax.tree.map(scaled, grads.student, student),
        None,
        scaled(grads.weights, weights),
        jax.tree.unflatten(tree, to_aux) if any(x is not None for x in to_aux) else None,
    )


loss_with_gradients.defvjp(_loss_forward, _loss_backward)


def run(
    spec: Spec,
    row_statistics: RowStatistics,
    token_loss: TokenLoss | None,
    student: Output,
    operands: Operands,
    weights: jax.Array | None = None,
    aux: Any = None,
) -> tuple[Any, Any, Any]:
    """Statistics; with `token_loss`, also the weighted loss and its gradients.

    Args:
        row_statistics: `token_stats.token_statistics`, or a function with the same result.
        token_loss: if None, weights and aux must be None as well.

    Returns:
        The loss f32[] or None, the statistics f32[...], and Gradients or None.
    """
    local = functools.partial(_run, spec, row_statistics, token_loss)
    arguments = (student, operands, weights, aux)
    if spec.sharding is None:
        return local(*arguments)
    tokens: Any  # In records, specs take the places of arrays.
    tokens, _ = sharded.specs(spec.sharding)
    everywhere: Any = jax.sharding.PartitionSpec()
    mine = sharded.output_specs(student, spec.sharding)
    theirs = sharded.output_specs(operands.teacher, spec.sharding)
    outputs: Any = (None, tokens, None)
    if token_loss is not None:
        outputs = (everywhere, tokens, Gradients(mine, tokens, tokens))
    return sharded.over_mesh(
        local,
        spec.sharding,
        inputs=(mine, Operands(theirs, tokens, tokens, everywhere), tokens, tokens),
        outputs=outputs,
    )(*arguments)


class _Tokens(NamedTuple):
    """Arrays with a row for each token: the M of a device, or the C of a chunk."""

    student: jax.Array  # states [M, D] or logits [M, V]
    teacher: jax.Array | Stored | None
    targets: jax.Array | None
    weights: Any  # f32[M], None where only statistics are wanted
    aux: Any


class _Sums(NamedTuple):
    """The sums that the loop carries, besides the statistics."""

    loss: jax.Array  # f32[]
    to_student: jax.Array  # [M, D] or [M, V]
    to_head: Any  # f32[V, D], None where the student is Logits
    to_weights: jax.Array  # f32[M]
    to_aux: list[jax.Array]


class _Fixed(NamedTuple):
    """Inputs that every chunk reads."""

    spec: Spec
    row_statistics: RowStatistics
    part: Part
    head: jax.Array | None  # the student's, as `sharded.gather` gives it
    teacher_head: jax.Array | None


def _run(
    spec: Spec,
    row_statistics: RowStatistics,
    token_loss: TokenLoss | None,
    student: Output,
    operands: Operands,
    weights: jax.Array | None,
    aux: Any,
) -> tuple[Any, Any, Any]:
    """`run` on one device's share."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((student, operands.teacher)))
    spec = spec.before_loops(operands.dials, dtype)
    part = sharded.vocabulary(logits.columns(student), spec)
    lead, tokens = operands.mask.ndim, operands.mask.size
    mine, theirs = (logits.side(x, lead, part, spec) for x in (student, operands.teacher))
    flat = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[lead:]), (operands.targets, weights, aux)
    )
    every = _Tokens(mine.by_token, theirs.by_token, *flat)
    fixed = _Fixed(spec, row_statistics, part, mine.head, theirs.head)
    size = min(spec.chunk_tokens, tokens)
    order, live = partition(operands.mask.reshape(-1), size)

    def chunk(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        stats, sums = carry
        places = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        some = jax.tree.map(lambda x: take(x, places), every)
        if token_loss is None:
            new = _score(fixed, some)
        else:
            new, sums = _train(fixed, token_loss, some, places, tokens, sums)
        return jax.tree.map(lambda all_, x: put(all_, places, x), stats, new), sums

    carry = _start(spec, token_loss, every, mine.head)
    like = jax.tree.leaves((every, mine.head, theirs.head, operands.dials))
    carry = jax.tree.map(lambda x: sharded.varying(x, *like), carry)
    stats, sums = jax.lax.fori_loop(0, sharded.most(live, spec), chunk, carry)
    shape = operands.mask.shape
    stats = jax.tree.map(lambda x: x.reshape(shape), stats)
    if token_loss is None:
        return None, stats, None
    grads = Gradients(
        student=_to_student(student, sums, part, spec),
        weights=sums.to_weights.reshape(shape),
        aux=[x.reshape(*shape, *x.shape[1:]) for x in sums.to_aux],
    )
    return sharded.sum_tokens(sums.loss, spec), stats, grads


def _to_student(student: Output, sums: _Sums, part: Part, spec: Spec) -> Output:
    """The sums of the loop as gradients of the student's own arrays."""
    if isinstance(student, Logits):
        return Logits(sums.to_student.reshape(student.values.shape))
    return dataclasses.replace(
        student,
        states=sums.to_student.reshape(student.states.shape),
        head=sharded.scatter(sums.to_head, student.head, part, spec),
    )


def _logits_of(fixed: _Fixed, some: _Tokens) -> tuple[jax.Array, Any, jax.Array | None]:
    """(student's logits, teacher's logits or stored log-probs, targets) of a chunk."""
    spec, part = fixed.spec, fixed.part
    teacher = logits.of_tokens(some.teacher, fixed.teacher_head, part, spec)
    return logits.logits(some.student, fixed.head, part, spec), teacher, some.targets


def _score(fixed: _Fixed, some: _Tokens) -> Stats:
    """Statistics f32[C] of a chunk."""

    def statistics(*models: Any) -> Stats:
        return fixed.row_statistics(*models, spec=fixed.spec, part=fixed.part)[0]

    return token_losses.by_rows(statistics, _logits_of(fixed, some), fixed.part)


def _train(
    fixed: _Fixed,
    token_loss: TokenLoss,
    some: _Tokens,
    places: jax.Array,
    tokens: int,
    sums: _Sums,
) -> tuple[Stats, _Sums]:
    """Statistics f32[C] of a chunk, and the sums with its part."""
    valid = places < tokens
    states, head, rows = some.student, fixed.head, fixed.row_statistics
    narrow = jnp.result_type(states, *jax.tree.leaves(head))
    weighted = functools.partial(token_losses.weighted, token_loss)
    at_once: Callable[..., Any] = functools.partial(token_losses.losses_of_rows, rows)
    if isinstance(rows, FusedRowStatistics) and rows.fuses(some.aux):
        at_once = rows.losses
    stats, each, to_aux, grad = at_once(
        weighted,
        *_logits_of(fixed, some),
        some.weights,
        some.aux,
        valid,
        spec=fixed.spec,
        part=fixed.part,
        dtype=narrow,
    )
    to_head, to_states = None, grad
    if head is not None:
        product = logits.product("cv,vd->cd", grad, head)
        to_states = sharded.sum_vocabulary(product, fixed.part)
        to_head = sums.to_head + logits.product("cv,cd->vd", grad, states)
    else:  # The columns that `logits.logits` cut.
        to_states = jnp.pad(grad, ((0, 0), (0, states.shape[-1] - grad.shape[-1])))
    loss = sums.loss + jnp.sum(jnp.where(valid, some.weights * each, 0))
    pairs = zip(sums.to_aux, to_aux, strict=True)
    return stats, _Sums(
        loss=loss.astype(sums.loss.dtype),
        to_student=put(sums.to_student, places, to_states),
        to_head=to_head,
        to_weights=put(sums.to_weights, places, each),
        to_aux=[put(x, places, new) for x, new in pairs],
    )


def _start(
    spec: Spec, token_loss: TokenLoss | None, every: _Tokens, head: jax.Array | None
) -> tuple[Stats, _Sums | None]:
    """Zeros to start the loop's sums from."""
    states, weights = every.student, every.weights
    dtype = jnp.result_type(jnp.float32, states, *jax.tree.leaves(head))
    zeros = jnp.zeros(states.shape[:1], dtype)
    of_target = None if every.targets is None else zeros
    stats: Stats = TokenLogprob(zeros, zeros)
    if spec.divergence is not None:
        stats = TokenStats(zeros, of_target, of_target, zeros)
    if token_loss is None or weights is None:
        return stats, None
    return stats, _Sums(
        loss=jnp.zeros((), jnp.result_type(dtype, weights)),
        to_student=jnp.zeros_like(states),
        to_head=None if head is None else jnp.zeros(head.shape, dtype),
        to_weights=jnp.zeros_like(weights),
        to_aux=[
            jnp.zeros_like(x) for x in jax.tree.leaves(every.aux) if token_losses.is_floating(x)
        ],
    )
