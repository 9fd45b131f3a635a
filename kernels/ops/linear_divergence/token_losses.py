"""Value and gradients of a loss of each token's statistics, a few tokens at a time on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.records import Part, RowStatistics, Stats, Weighted

# (statistics f32[C], aux of the same tokens [C, ...]) -> f32[C].
TokenLoss = Callable[[Any, Any], jax.Array]


def weighted_sum(
    token_loss: TokenLoss, stats: Stats, mask: jax.Array, weights: jax.Array, aux: Any
) -> jax.Array:
    """sum(weights * token_loss(stats, aux)) under the mask, by plain means: -> f32[]."""

    def shown(x: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)

    flat = jax.tree.map(
        lambda x: shown(x).reshape(-1, *x.shape[mask.ndim :]), (stats, weights, aux)
    )
    each, *_ = weighted(token_loss, flat[0], flat[2], flat[1])
    dtype = jnp.result_type(stats.entropy, weights)
    return jnp.sum(jnp.where(mask.reshape(-1), flat[1] * each, 0)).astype(dtype)


def weighted(
    token_loss: TokenLoss, stats: Stats, aux: Any, weights: jax.Array
) -> tuple[jax.Array, Any, list[jax.Array]]:
    """Losses f32[C], and the gradients of their weighted sum to statistics and floating aux."""
    leaves, tree = jax.tree.flatten(aux)

    def losses(stats: Stats, floating: list[jax.Array]) -> jax.Array:
        given = iter(floating)
        both = [next(given) if is_floating(x) else x for x in leaves]
        return token_loss(stats, jax.tree.unflatten(tree, both))

    each, back = jax.vjp(losses, stats, [x for x in leaves if is_floating(x)])
    if each.shape != weights.shape:
        raise ValueError(
            f"token_loss must return one number a token, of shape {weights.shape}, as the"
            f" statistics have; got {each.shape}"
        )
    return each, *back(weights.astype(each.dtype))


def is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def losses_of_rows(
    row_statistics: RowStatistics,
    weighted: Weighted,
    *arrays: Any,
    spec: Spec,
    part: Part,
    dtype: jnp.dtype,
) -> tuple[Stats, jax.Array, list[jax.Array], jax.Array]:
    """Statistics and losses f32[C], gradients to floating aux [C, ...] and logits [C, V].

    Args:
        weighted: `weighted` of a token loss.
        arrays: logits f32[C, V], the teacher's side, targets, weights, aux, and bool[C], where
            a token is.
    """

    def whole(
        logits: jax.Array,
        teacher: Any,
        targets: jax.Array | None,
        weights: jax.Array,
        aux: Any,
        valid: jax.Array,
    ) -> tuple[Any, ...]:
        stats, pull = row_statistics(logits, teacher, targets, spec=spec, part=part)
        each, to_stats, to_aux = weighted(stats, aux, weights)
        # Rows without a token are zeros, where the loss may have no derivative.
        to_stats = jax.tree.map(lambda x: jnp.where(valid, x, 0), to_stats)
        grad = pull(getattr(to_stats, "divergence", None), to_stats.logp, to_stats.entropy)
        return stats, each, to_aux, grad.astype(dtype)

    return by_rows(whole, arrays, part)


# f32 arrays of a block of tokens on a CPU: a dozen of them should lie in its caches.
_BLOCK_LOGITS = 2**18


def by_rows(function: Callable[..., Any], arrays: tuple[Any, ...], part: Part) -> Any:
    """`function(*arrays)` of [C, ...], which treats tokens apart; on a CPU few at a time.

    XLA's loops over a whole chunk would there be bound by memory, a dozen of them in turn.
    """
    tokens, columns = arrays[0].shape
    most = max(_BLOCK_LOGITS // columns, 2)
    size = max(n for n in range(1, min(most, tokens) + 1) if tokens % n == 0)
    # A count without a fitting divisor is left whole: blocks that are too small cost more.
    if part.axis is not None or size == tokens or 4 * size < most:
        return function(*arrays)

    def blocks(*arrays: Any) -> Any:
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
        results = jax.lax.map(lambda block: function(*block), split)
        return jax.tree.map(lambda x: x.reshape(tokens, *x.shape[2:]), results)

    return jax.lax.platform_dependent(*arrays, cpu=blocks, default=function)
