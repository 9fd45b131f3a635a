"""Means as (total, count), which add over parts, so that no metric is a mean of means."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.records import record


@record
class Ratio:
    """A mean over counted items, divided once at the very end.

    Adds over micro-batches, devices and hosts. The mean of nothing is NaN, not 0.
    """

    total: jax.Array  # f32[], sum over the counted items, in the items' unit
    count: jax.Array  # f32[], how many were counted

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(self.total + other.total, self.count + other.count)

    def mean(self) -> float:
        """The mean, read from the device; NaN where nothing was counted."""
        count = float(self.count)
        return float(self.total) / count if count else float("nan")


# Metrics by name, as the update returns them.
Metrics = dict[str, Ratio]


def masked(values: jax.Array, mask: jax.Array) -> Ratio:
    """Ratio of `values` where `mask` of the same shape; elsewhere not even a NaN is read."""
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    return Ratio(jnp.sum(values), jnp.sum(mask, dtype=jnp.float32))
