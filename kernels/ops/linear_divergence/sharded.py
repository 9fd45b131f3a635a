"""Runs the computation over a mesh: tokens in parts, the vocabulary in parts, or both.

Devices exchange: the parts of a head stored over the `embed` axis, gathered once a
call, their gradients scattered back; maxima and sums of a few floats a token over the `vocab`
axis; the gradient of the hidden states, summed over `vocab`; the loss, summed over `tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mopd_jax.kernels.linear_divergence.options import HeadSharding, Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Logits, Teacher
from mopd_jax.kernels.linear_divergence.records import (
    Part,
)


def specs(sharding: HeadSharding) -> tuple[PartitionSpec, PartitionSpec]:
    """How [N, ...] arrays of tokens lie, and heads [V, D]."""
    return PartitionSpec(sharding.tokens), PartitionSpec(sharding.vocab, sharding.embed)


def output_specs(output: Teacher | None, sharding: HeadSharding) -> Any:
    """How a model's output of any kind lies, as a pytree of its structure or a prefix of it."""
    tokens, head = specs(sharding)
    lies: list[Any] = []
    if isinstance(output, Hidden):
        lies = [tokens, head]
    elif isinstance(output, Logits):
        between = (None,) * (output.values.ndim - 2)
        lies = [PartitionSpec(sharding.tokens, *between, sharding.vocab)]
    return jax.tree.unflatten(jax.tree.structure(output), lies) if lies else tokens


def over_mesh(
    local: Callable[..., Any], sharding: HeadSharding, *, inputs: Any, outputs: Any
) -> Callable[..., Any]:
    """`local` on every device's share, by `shard_map`; it names its own collectives."""
    # Unchecked, because the gradients are made inside and never by transposing this.
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
    )


def vocabulary(columns: int, spec: Spec) -> Part:
    """Which columns a device has whose share of a head or of logits has so many."""
    if spec.sharding is None or spec.sharding.vocab is None:
        return Part()
    axis = spec.sharding.vocab
    parts = jax.lax.axis_size(axis)
    start = jax.lax.axis_index(axis) * columns
    return Part(axis, start, padded=parts * columns > spec.vocab_size)


def gather(head: jax.Array, part: Part, spec: Spec) -> jax.Array:
    """A head ready for products: full width, and nothing in rows that do not exist."""
    if spec.sharding is not None and spec.sharding.embed is not None:
        head = jax.lax.all_gather(head, spec.sharding.embed, axis=1, tiled=True)
    if part.padded:
        row = part.start + jnp.arange(head.shape[0])[:, None]
        return jnp.where(row < spec.vocab_size, head, 0)
    return head if part.axis is not None else head[: spec.vocab_size]


def scatter(grad: jax.Array, head: jax.Array, part: Part, spec: Spec) -> jax.Array:
    """The gradient f32 of `gather`'s result, as the gradient of its argument."""
    if part.axis is None:
        grad = jnp.pad(grad, ((0, head.shape[0] - grad.shape[0]), (0, 0)))
    sharding = spec.sharding
    if sharding is not None:
        rest = tuple(axis for axis in sharding.tokens if axis != sharding.embed)
        grad = jax.lax.psum(grad, rest) if rest else grad
        if sharding.embed is not None:
            grad = jax.lax.psum_scatter(grad, sharding.embed, scatter_dimension=1, tiled=True)
    return grad.astype(head.dtype)


def sum_vocabulary(values: jax.Array, part: Part) -> jax.Array:
    return values if part.axis is None else jax.lax.psum(values, part.axis)


def sum_tokens(values: jax.Array, spec: Spec) -> jax.Array:
    return values if spec.sharding is None else jax.lax.psum(values, spec.sharding.tokens)


def most(count: jax.Array, spec: Spec) -> jax.Array:
    """The largest count of any device: they take part in the same collectives as often."""
    sharding = spec.sharding
    if sharding is None:
        return count
    return jax.lax.pmax(count, (*sharding.tokens, *filter(None, (sharding.vocab,))))


def varying(value: jax.Array, *like: jax.Array) -> jax.Array:
    """`value` typed as differing between the devices that any of `like` differs between.

    Of use inside a caller's own `shard_map`, where the carry of a loop must have its type from
    the start.
    """
    axes = frozenset().union(*map(_varies_over, like)) - _varies_over(value)
    return jax.lax.pcast(value, tuple(axes), to="varying") if axes else value


def reduced(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """A cotangent summed over the devices of a caller's `shard_map` that share the primal."""
    axes = _varies_over(cotangent) - _varies_over(primal)
    return jax.lax.psum(cotangent, tuple(axes)) if axes else cotangent


def _varies_over(value: jax.Array) -> frozenset[str]:
    """Axes of a caller's `shard_map` that `value` differs over; none if it does not check."""
    return jax.typeof(value).mat.varying
