"""Means kept as (total, count), so that parts add up exactly and nothing is a mean of means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.records import record


@record
class Ratio:
    """A mean over counted items, divided once at the very end.

    Adds over micro-batches, devices and hosts. None counted reads as nan, not as 0.
    """

    total: jax.Array  # f32[], sum over the counted items, in the items' unit
    count: jax.Array  # f32[], how many were counted

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.count + other.count)

    def mean(self) -> float:
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


def masked(values: jax.Array, mask: jax.Array) -> Ratio:
    """Ratio of `values` where `mask`; what stands elsewhere, NaN included, is not read."""
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    return Ratio(jnp.sum(values), jnp.sum(mask, dtype=jnp.float32))
