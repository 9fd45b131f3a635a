"""Moves valid tokens to the front, so that padding costs nothing though shapes are static."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Partition(NamedTuple):
    """Places of M tokens in pieces of C, the valid ones first and in their order.

    Gathered with mode "fill" and scattered with mode "drop", a place without a valid token
    reads zeros and writes nothing.
    """

    order: jax.Array  # i32[ceil(M / C) * C], a token's index; from M on where there is none
    live: jax.Array  # i32[], how many of the pieces hold a valid token


def partition(mask: jax.Array, size: int) -> Partition:
    """Stable partition of bool[M] in pieces of `size` tokens."""
    tokens = mask.size
    padded = -(-tokens // size) * size
    valid = jnp.sum(mask, dtype=jnp.int32)
    # Where a token goes is how many valid ones precede it; the rest stay out of range, each
    # at a place of its own, as unique indices ask.
    place = jnp.where(mask, jnp.cumsum(mask, dtype=jnp.int32) - 1, padded + jnp.arange(tokens))
    order = tokens + jnp.arange(padded, dtype=jnp.int32)
    order = order.at[place].set(
        jnp.arange(tokens, dtype=jnp.int32), mode="drop", unique_indices=True
    )
    return Partition(order, -(-valid // size))


def take(array: jax.Array, places: jax.Array) -> jax.Array:
    """Tokens [M, ...] at i32[C] places, zeros where there is none: -> [C, ...]."""
    return array.at[places].get(mode="fill", fill_value=0, unique_indices=True)


def put(array: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """Writes [C, ...] to i32[C] places of [M, ...]; what has no place is dropped."""
    return array.at[places].set(values.astype(array.dtype), mode="drop", unique_indices=True)
