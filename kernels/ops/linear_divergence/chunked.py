"""The divergence in chunks of valid tokens, so that no [N, T, V] exists in either direction.

One loop does everything. `run` goes over the chunks that hold a valid token, makes the logits
of one, reads its statistics and, where gradients are wanted, takes the cotangents of the
statistics from a loss per token, turns them into the gradient of the logits, and that at once
into those of the hidden states and the head. Two users:

- `loss_first` is given the loss beforehand: gradients are made in the forward pass and kept,
  which takes 4 matrix products (logits of both, both gradients), the fewest possible;
- `statistics_first` returns the statistics for any later use: its backward pass is the loop
  once more, the loss being the inner product with the cotangents. 6 products.

Products take the dtype of their operands and give float32: logits in bfloat16 are 0.125 apart
at 16, which ruins the gradient of a small divergence. Only the gradient of the logits is
rounded, once, to the dtype of the operands. The head's gradient is summed in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import sharded
from mopd_jax.kernels.linear_divergence.options import HiddenTeacher, Spec, StoredTeacher
from mopd_jax.kernels.linear_divergence.partition import partition, put, take
from mopd_jax.kernels.linear_divergence.statistics import Part, TokenLogprob, TokenStats

Teacher = HiddenTeacher | StoredTeacher | None
Stats = TokenStats | TokenLogprob
# (statistics f32[C], aux of the same tokens [C, ...]) -> f32[C].
TokenLoss = Callable[[Stats, Any], jax.Array]


class Operands(NamedTuple):
    """What is not differentiated; [...] stands for the dimensions of the tokens."""

    teacher: Teacher
    targets: jax.Array  # i32[...]
    mask: jax.Array  # bool[...]


class Gradients(NamedTuple):
    """Of a weighted loss."""

    hidden: jax.Array  # [..., D]
    head: jax.Array | None  # [V, D]
    weights: jax.Array  # f32[...]
    aux: Any  # its floating leaves, in order


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def statistics_first(
    spec: Spec, rows: Callable, hidden: jax.Array, head: jax.Array | None, operands: Operands
) -> Stats:
    """Statistics f32[...], 0 outside the mask; differentiable in hidden and head.

    Without heads, the states of both models are their logits [..., V].
    """
    return run(spec, rows, None, hidden, head, operands)[1]


def _statistics_forward(spec, rows, hidden, head, operands):
    stats = run(spec, rows, None, hidden, head, operands)[1]
    return stats, (hidden, head, operands)


def _statistics_backward(spec, rows, residuals, cotangents):
    hidden, head, operands = residuals
    ones = jnp.ones(operands.mask.shape, jnp.float32)
    grads = run(spec, rows, _inner, hidden, head, operands, ones, cotangents)[2]
    return *jax.tree.map(sharded.reduced, grads[:2], (hidden, head)), None


def _inner(stats, cotangents):
    products = jax.tree.map(jnp.multiply, stats, cotangents)
    return sum(jax.tree.leaves(products))


statistics_first.defvjp(_statistics_forward, _statistics_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def loss_first(
    spec: Spec,
    rows: Callable,
    token_loss: TokenLoss,
    hidden: jax.Array,
    head: jax.Array,
    operands: Operands,
    weights: jax.Array,
    aux: Any,
) -> tuple[jax.Array, Stats]:
    """sum(weights * token_loss(stats, aux)) f32[], and the statistics, without gradient.

    Differentiable in hidden, head, weights and the floating leaves of aux, once.
    """
    stats = run(spec, rows, None, hidden, head, operands)[1]
    return weighted_sum(token_loss, stats, operands.mask, weights, aux), stats


def weighted_sum(
    token_loss: TokenLoss, stats: Stats, mask: jax.Array, weights: jax.Array, aux: Any
) -> jax.Array:
    """sum(weights * token_loss(stats, aux)) under the mask, by plain means: -> f32[]."""

    def shown(x):
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)

    flat = jax.tree.map(
        lambda x: shown(x).reshape(-1, *x.shape[mask.ndim :]), (stats, weights, aux)
    )
    each, *_ = _weighted(token_loss, flat[0], flat[2], flat[1])
    dtype = jnp.result_type(stats.logp, weights)
    return jnp.sum(jnp.where(mask.reshape(-1), flat[1] * each, 0)).astype(dtype)


def _loss_forward(spec, rows, token_loss, hidden, head, operands, weights, aux):
    loss, stats, grads = run(spec, rows, token_loss, hidden, head, operands, weights, aux)
    # Arrays of no size carry types and shapes into the backward pass.
    return (loss, stats), (grads, hidden[..., :0], head[:, :0], weights, aux)


def _loss_backward(spec, rows, token_loss, residuals, cotangents):
    del spec, rows, token_loss
    grads, hidden, head, weights, aux = residuals
    by = cotangents[0]

    def scaled(grad, primal):
        grad = (by * grad.astype(by.dtype)).astype(grad.dtype)
        return sharded.reduced(grad, primal)

    leaves, tree = jax.tree.flatten(aux)
    floating = iter(grads.aux)
    to_aux = [scaled(next(floating), x) if is_floating(x) else None for x in leaves]
    return (
        scaled(grads.hidden, hidden),
        scaled(grads.head, head),
        None,
        scaled(grads.weights, weights),
        jax.tree.unflatten(tree, to_aux) if any(x is not None for x in to_aux) else None,
    )


loss_first.defvjp(_loss_forward, _loss_backward)


def run(
    spec: Spec,
    rows: Callable,
    token_loss: TokenLoss | None,
    hidden: jax.Array,
    head: jax.Array,
    operands: Operands,
    weights: jax.Array | None = None,
    aux: Any = None,
) -> tuple[jax.Array | None, Stats, Gradients | None]:
    """Statistics; with `token_loss`, also the weighted loss and its gradients.

    Args:
        rows: `statistics.token_statistics`, or what does the same.
        token_loss: None, and then weights and aux are too.
    """
    local = functools.partial(_run, spec, rows, token_loss)
    arguments = (hidden, head, operands, weights, aux)
    if spec.sharding is None:
        return local(*arguments)
    tokens, heads = sharded.specs(spec.sharding)
    taught = sharded.teacher_specs(operands.teacher, spec.sharding)
    outputs = (None, tokens, None)
    if token_loss is not None:
        everywhere = jax.sharding.PartitionSpec()
        outputs = (everywhere, tokens, Gradients(tokens, heads, tokens, tokens))
    return sharded.over_mesh(
        local,
        spec.sharding,
        inputs=(tokens, heads, Operands(taught, tokens, tokens), tokens, tokens),
        outputs=outputs,
    )(*arguments)


class _Sums(NamedTuple):
    """What the loop carries beside the statistics."""

    loss: jax.Array  # f32[]
    grads: Gradients  # over M tokens, the head's in f32


def _run(spec, rows, token_loss, hidden, given, operands, weights, aux):
    """`run` on one device's share."""
    if given is None:
        head, part = None, Part(padded=hidden.shape[-1] > spec.vocab_size)
    else:
        part = sharded.vocabulary(given, spec)
        head = sharded.gather(given, part, spec)
    lead = operands.mask.shape
    arrays = (hidden, operands.teacher, operands.targets, weights, aux)
    by_hidden = isinstance(operands.teacher, HiddenTeacher)
    if by_hidden:
        other = operands.teacher.head
        other = None if other is None else sharded.gather(other, part, spec)
        arrays = (hidden, operands.teacher.hidden, *arrays[2:])
    arrays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), arrays)
    tokens = operands.mask.size
    size = min(spec.chunk_tokens, tokens)
    order, live = partition(operands.mask.reshape(-1), size)

    def chunk(i, carry):
        stats, sums = carry
        places = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        states, taught, targets, weight, extra = jax.tree.map(lambda x: take(x, places), arrays)
        if by_hidden:
            taught = _logits(taught, other)
        logits = _logits(states, head)
        models = (logits, taught, targets)
        if token_loss is None:
            found = _by_rows(
                lambda *models: rows(*models, spec=spec, part=part)[0], models, part
            )
            return _put_all(stats, places, found), sums
        valid = places < tokens
        narrow = jnp.result_type(states, *jax.tree.leaves(head))
        weighted = functools.partial(_weighted, token_loss)
        # Rows may offer all of it at once, for an aux that suits them.
        fuses = getattr(rows, "fuses", lambda aux: False)
        at_once = rows.losses if fuses(extra) else functools.partial(_losses, rows)
        found, each, to_aux, grad = at_once(
            weighted, *models, weight, extra, valid, spec=spec, part=part, dtype=narrow
        )
        stats = _put_all(stats, places, found)
        to_hidden, to_head = grad, None
        if head is not None:
            to_hidden = sharded.sum_vocabulary(product("cv,vd->cd", grad, head), part)
            to_head = sums.grads.head + product("cv,cd->vd", grad, states)
        grads = Gradients(
            hidden=put(sums.grads.hidden, places, to_hidden),
            head=to_head,
            weights=put(sums.grads.weights, places, each),
            aux=[put(x, places, new) for x, new in zip(sums.grads.aux, to_aux, strict=True)],
        )
        loss = sums.loss + jnp.sum(jnp.where(valid, weight * each, 0))
        return stats, _Sums(loss.astype(sums.loss.dtype), grads)

    carry = _start(spec, token_loss, arrays, head)
    carry = jax.tree.map(lambda x: sharded.varying(x, *jax.tree.leaves((arrays, head))), carry)
    stats, sums = jax.lax.fori_loop(0, sharded.most(live, spec), chunk, carry)
    stats = jax.tree.map(lambda x: x.reshape(lead), stats)
    if token_loss is None:
        return None, stats, None
    grads = Gradients(
        hidden=sums.grads.hidden.reshape(hidden.shape),
        head=None if head is None else sharded.scatter(sums.grads.head, given, part, spec),
        weights=sums.grads.weights.reshape(lead),
        aux=[x.reshape(*lead, *x.shape[1:]) for x in sums.grads.aux],
    )
    return sharded.sum_tokens(sums.loss, spec), stats, grads


def _losses(rows, weighted, *arrays, spec, part, dtype):
    """Statistics and losses f32[C], gradients to floating aux [C, ...] and logits [C, V].

    Args:
        weighted: `_weighted` of a token loss.
        arrays: logits f32[C, V], the teacher's side, targets, weights, aux, and bool[C], where
            a token is.
    """

    def whole(logits, taught, targets, weights, aux, valid):
        found, pull = rows(logits, taught, targets, spec=spec, part=part)
        each, to_stats, to_aux = weighted(found, aux, weights)
        # Where no token is, a loss of zeros need not have a derivative.
        to_stats = {name: jnp.where(valid, x, 0) for name, x in vars(to_stats).items()}
        grad = pull(*(to_stats.get(name) for name in _PULLED)).astype(dtype)
        return found, each, to_aux, grad

    return _by_rows(whole, arrays, part)


# f32 arrays of a block of tokens on a CPU: a dozen of them should lie in its caches.
_BLOCK_LOGITS = 2**18


def _by_rows(function, arrays, part):
    """`function(*arrays)` of [C, ...], which treats tokens apart; on a CPU few at a time.

    XLA's loops over a whole chunk would there be bound by memory, a dozen of them in turn.
    """
    tokens, columns = arrays[0].shape
    most = max(_BLOCK_LOGITS // columns, 2)
    size = max(n for n in range(1, min(most, tokens) + 1) if tokens % n == 0)
    # A count without a fitting divisor is left whole: blocks that are too small cost more.
    if part.axis is not None or size == tokens or 4 * size < most:
        return function(*arrays)

    def blocks(*arrays):
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
        found = jax.lax.map(lambda block: function(*block), split)
        return jax.tree.map(lambda x: x.reshape(tokens, *x.shape[2:]), found)

    return jax.lax.platform_dependent(*arrays, cpu=blocks, default=function)


def _put_all(stats, places, new):
    return jax.tree.map(lambda all_, x: put(all_, places, x), stats, new)


_PULLED = ("divergence", "logp", "entropy")  # The statistics that are differentiable.


def _start(spec, token_loss, arrays, head):
    """Zeros for what the loop carries."""
    hidden, _, targets, weights, aux = arrays
    dtype = jnp.result_type(jnp.float32, hidden, *jax.tree.leaves(head))
    kind = TokenLogprob if spec.measure is None else TokenStats
    stats = kind(*[jnp.zeros(targets.shape, dtype) for _ in dataclasses.fields(kind)])
    if token_loss is None:
        return stats, None
    aux = [jnp.zeros_like(x) for x in jax.tree.leaves(aux) if is_floating(x)]
    to_head = None if head is None else jnp.zeros(head.shape, dtype)
    grads = Gradients(jnp.zeros_like(hidden), to_head, jnp.zeros_like(weights), aux)
    return stats, _Sums(jnp.zeros((), jnp.result_type(dtype, weights)), grads)


def _weighted(token_loss, stats, aux, weights):
    """Losses f32[C], and the gradients of their weighted sum to statistics and floating aux."""
    leaves, tree = jax.tree.flatten(aux)

    def losses(stats, floating):
        floating = iter(floating)
        both = [next(floating) if is_floating(x) else x for x in leaves]
        return token_loss(stats, jax.tree.unflatten(tree, both))

    each, back = jax.vjp(losses, stats, [x for x in leaves if is_floating(x)])
    if each.shape != weights.shape:
        raise ValueError(
            f"token_loss must return one number a token, of shape {weights.shape}, as the"
            f" statistics it is given; got {each.shape}"
        )
    return each, *back(weights.astype(each.dtype))


def is_floating(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _logits(states, head):
    if head is None:
        return states.astype(jnp.promote_types(jnp.float32, states.dtype))
    return product("cd,vd->cv", states, head)


def product(dims: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in the dtype of its operands, accumulated in and returned as f32."""
    dtype = jnp.promote_types(left.dtype, right.dtype)
    # Float32 operands mean float32 products on TPU and GPU too; the default has fewer bits.
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    wide = jnp.promote_types(jnp.float32, dtype)
    return jnp.einsum(dims, left, right, preferred_element_type=wide, precision=precision)
