"""Logits of a chunk of tokens from a model's output, and the matrix product they use."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import sharded
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Output, Stored, Teacher
from mopd_jax.kernels.linear_divergence.records import (
    Part,
)


class Side(NamedTuple):
    """One device's share of a model's output: arrays with a row for each token, the head."""

    by_token: Any  # [M, D], [M, V] or a Stored of [M, K]; None without a model
    head: jax.Array | None  # [V, D], ready for products


def side(output: Teacher | None, lead: int, part: Part, spec: Spec) -> Side:
    """An output whose first `lead` dimensions are those of the tokens, with one of M tokens."""
    if isinstance(output, Hidden):
        return Side(_flat(output.states, lead), sharded.gather(output.head, part, spec))
    if output is None:
        return Side(None, None)
    if isinstance(output, Stored):
        return Side(Stored(_flat(output.ids, lead), _flat(output.logp, lead)), None)
    return Side(_flat(output.values, lead), None)


def _flat(x: jax.Array, lead: int) -> jax.Array:
    return x.reshape(-1, *x.shape[lead:])


def of_tokens(
    rows: jax.Array | Stored | None, head: jax.Array | None, part: Part, spec: Spec
) -> jax.Array | Stored | None:
    """A model's logits f32[C, V], or its Stored, as `token_stats.token_statistics` reads them.

    Args:
        rows, head: of C tokens, as a `Side` has them.
    """
    if rows is None:
        return None
    if isinstance(rows, Stored):
        return dataclasses.replace(rows, logp=_wide(rows.logp))
    return logits(rows, head, part, spec)


def logits(rows: jax.Array, head: jax.Array | None, part: Part, spec: Spec) -> jax.Array:
    """Logits f32[C, V] of C tokens from their states and a head, or from their logits."""
    if head is not None:
        return product("cd,vd->cv", rows, head)
    # A head's padding rows are cut before the product; logits lose theirs here.
    return _wide(rows if part.axis is not None else rows[:, : spec.vocab_size])


def columns(output: Output) -> int:
    """Columns of the vocabulary that an output, or a device's share of it, has."""
    return output.head.shape[0] if isinstance(output, Hidden) else output.values.shape[-1]


def product(dims: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in the dtype of its operands, accumulated in and returned as f32."""
    dtype = jnp.promote_types(left.dtype, right.dtype)
    # Float32 operands mean float32 products on TPU and GPU too; the default has fewer bits
    # than float32, and on TPU fewer than float16.
    exact = dtype in (jnp.float32, jnp.float16)
    precision = jax.lax.Precision.HIGHEST if exact else None
    wide = jnp.promote_types(jnp.float32, dtype)
    return jnp.einsum(dims, left, right, preferred_element_type=wide, precision=precision)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))
