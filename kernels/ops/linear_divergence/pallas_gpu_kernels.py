"""The body of one `pallas_gpu` program: reduces its tokens' logits, then writes the gradient.

- Blocks of the vocabulary are finished under their own softmax and put together by
  `token_stats.merge`.
- Log-sums are kept relative to the largest logit, so that a constant added to all logits costs
  no accuracy.
- The total of the slopes, by which the gradient is centred, is put together from those of the
  blocks by the chain rule, with the log-sums as rounded. The rounding of a log-sum is common to
  a whole row, and so leaves the gradient, as it does where all is summed at once.

Arrays are [R, B] and [R] for the R tokens of a program and the B columns of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mopd_jax.kernels.linear_divergence import formulas, token_stats
from mopd_jax.kernels.linear_divergence.divergence import Divergence
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.records import (
    Stats,
    TokenLogprob,
    TokenStats,
    Weighted,
)
from mopd_jax.kernels.linear_divergence.token_stats import (
    Moments,
)

# The logit of a missing column, and the maximum of no logits. Finite, because the difference
# of two infinities is NaN. `token_stats.merge` also reads it as empty.
_EMPTY = -1e30

# Which block of columns; a number of the grid or of a loop.
Index = jax.Array | int


class RowTotals(NamedTuple):
    """Totals of whole rows that the gradient reads, f32[R]; the last three with a teacher."""

    top: jax.Array
    log_sum: jax.Array  # Relative to `top`.
    entropy: jax.Array
    teacher_top: jax.Array | None = None
    teacher_log_sum: jax.Array | None = None
    # The total of the divergence's derivatives to the log-probs.
    slopes: jax.Array | None = None


class Cotangents(NamedTuple):
    """Of the statistics, f32[R]; the last with a teacher."""

    logp: jax.Array
    entropy: jax.Array
    divergence: jax.Array | None = None


class _Walk(NamedTuple):
    """Statistics of some columns of R rows, f32[R], under their own softmax.

    The teacher's and what follows are None without one, the last two for a jsd as well.
    """

    top: jax.Array  # The largest logit.
    total: jax.Array  # Of exp(logit - top), summed as such: logarithms would be rounded anew.
    entropy: jax.Array
    logit: jax.Array  # The target's if it is among the columns, else 0.
    teacher_top: jax.Array | None = None
    teacher_total: jax.Array | None = None
    teacher_logit: Any = None
    value: jax.Array | None = None
    slopes: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Window:
    """R tokens of C, which one program works on, and their V columns in blocks of B."""

    tokens: int
    columns: int
    rows: int
    block: int
    first: jax.Array  # i32[], the first of the tokens

    @property
    def blocks(self) -> int:
        return pl.cdiv(self.columns, self.block)

    def load(self, ref: Any) -> jax.Array:
        """One number a token: [C] -> [R], 0 beyond the last token."""
        return _load(ref.at[pl.ds(self.first, self.rows)], self._there())

    def store(self, ref: Any, values: jax.Array) -> None:
        where = ref.at[pl.ds(self.first, self.rows)]
        plgpu.store(where, values.astype(ref.dtype), mask=self._there())

    def load_block(self, ref: Any, j: Index) -> jax.Array:
        """Logits of block j: f32[C, V] -> f32[R, B], 0 where there is none."""
        return _load(self._tile(ref, j), self._real(j))

    def store_block(self, ref: Any, j: Index, values: jax.Array) -> None:
        plgpu.store(self._tile(ref, j), values.astype(ref.dtype), mask=self._real(j))

    def ids(self, j: Index) -> jax.Array:
        """Ids of the tokens of block j: i32[R, B]."""
        within = jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.block), 1)
        return jnp.int32(j) * self.block + within

    def beyond(self, j: Index, values: jax.Array) -> jax.Array:
        """Logits f32[R, B] of block j, practically impossible beyond the last column."""
        if self.columns % self.block == 0:
            return values
        return jnp.where(self.ids(j) < self.columns, values, _EMPTY)

    def _tile(self, ref: Any, j: Index) -> Any:
        start = jnp.int32(j) * self.block
        return ref.at[pl.ds(self.first, self.rows), pl.ds(start, self.block)]

    def _there(self) -> jax.Array | None:
        if self.tokens % self.rows == 0:
            return None
        return self.first + jax.lax.iota(jnp.int32, self.rows) < self.tokens

    def _real(self, j: Index) -> jax.Array | None:
        there = self._there()
        shape = (self.rows, self.block)
        mask = None if there is None else jnp.broadcast_to(there[:, None], shape)
        if self.columns % self.block == 0:
            return mask
        real = self.ids(j) < self.columns
        return real if mask is None else real & mask


def statistics_kernel(
    window: Window, spec: Spec, logits: Any, teacher: Any, targets: Any, stats: Any, row: Any
) -> None:
    new, totals = _walk_rows(window, spec, logits, teacher, targets)
    jax.tree.map(window.store, (stats, row), (new, totals))


def gradient_kernel(
    window: Window,
    spec: Spec,
    logits: Any,
    teacher: Any,
    targets: Any,
    row: Any,
    cotangents: Any,
    out: Any,
) -> None:
    j = pl.program_id(1)
    row, cotangents = jax.tree.map(window.load, (row, cotangents))
    models = (logits, teacher, window.load(targets))
    window.store_block(out, j, _gradient(window, spec, j, *models, row, cotangents))


def loss_kernel(
    window: Window,
    spec: Spec,
    logits: Any,
    teacher: Any,
    targets: Any,
    weights: Any,
    aux: Any,
    valid: Any,
    *outputs: Any,
    weighted: Weighted,
    restored: Callable[[list[jax.Array]], Any],
) -> None:
    stats_out, each_out, aux_out, grad_out = outputs
    stats, row = _walk_rows(window, spec, logits, teacher, targets)
    aux = restored([window.load(x) for x in aux])
    each, to_stats, to_aux = weighted(stats, aux, window.load(weights))
    jax.tree.map(window.store, (stats_out, each_out, aux_out), (stats, each, to_aux))
    # Rows without a token are zeros, where the loss may have no derivative.
    there = window.load(valid) != 0
    to_stats = jax.tree.map(lambda x: jnp.where(there, x, 0), to_stats)
    cotangents = Cotangents(
        to_stats.logp, to_stats.entropy, getattr(to_stats, "divergence", None)
    )
    targets = window.load(targets)

    def write(j: jax.Array, carry: int) -> int:
        grad = _gradient(window, spec, j, logits, teacher, targets, row, cotangents)
        window.store_block(grad_out, j, grad)
        return carry

    jax.lax.fori_loop(0, window.blocks, write, 0)


def _walk_rows(
    window: Window, spec: Spec, logits: Any, teacher: Any, targets: Any
) -> tuple[Stats, RowTotals]:
    """Statistics f32[R] of a program's tokens, and their RowTotals."""
    targets = window.load(targets)
    divergence = spec.divergence

    def add(j: jax.Array, walk: _Walk) -> _Walk:
        return _merge(walk, _block(window, spec, j, logits, teacher, targets), divergence)

    walk = jax.lax.fori_loop(0, window.blocks, add, _nothing(window.rows, divergence))
    log_sum = _log_sum(walk.top, walk.total)
    entropy = _if_known(log_sum, walk.entropy)
    known = targets >= 0
    logp = jnp.where(known, (walk.logit - walk.top) - log_sum, jnp.nan)
    row = RowTotals(walk.top, log_sum, entropy)
    if divergence is None:
        return TokenLogprob(logp, entropy), row
    log_sum = _log_sum(walk.teacher_top, walk.teacher_total)
    row = row._replace(teacher_top=walk.teacher_top, teacher_log_sum=log_sum)
    at_teacher = jnp.where(known, (walk.teacher_logit - walk.teacher_top) - log_sum, jnp.nan)
    value, slopes = walk.value, walk.slopes
    if value is None:
        value, slopes = _sums(window, spec, divergence, logits, teacher, row)
    value = _if_known(row.log_sum + log_sum, value)
    row = row._replace(slopes=_if_known(value, slopes))
    return TokenStats(value, logp, at_teacher, entropy), row


def _log_sum(top: Any, total: Any) -> jax.Array:
    """NaN where no logit is above _EMPTY, because such a row has no distribution."""
    return jnp.where(top > _EMPTY, jnp.log(total), jnp.nan)


def _if_known(by: jax.Array, values: Any) -> jax.Array:
    """NaN where `by` is, which the GPU's minimum and maximum may have dropped on the way."""
    return jnp.where(by == by, values, jnp.nan)


def _sums(
    window: Window,
    spec: Spec,
    divergence: Divergence,
    logits: Any,
    teacher: Any,
    row: RowTotals,
) -> tuple[jax.Array, jax.Array]:
    """Divergence and total of its slopes, f32[R], with the log-sums known."""

    def add(j: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logp, _ = _log_probs(window, j, logits, spec.student_cap, spec, row.top, row.log_sum)
        of_teacher = (row.teacher_top, row.teacher_log_sum)
        other, _ = _log_probs(window, j, teacher, spec.teacher_cap, spec, *of_teacher)
        each = formulas.terms(logp, other, divergence)
        return sums[0] + jnp.sum(each.value, axis=1), sums[1] + jnp.sum(each.to_student, axis=1)

    zeros = jnp.zeros((window.rows,), jnp.float32)
    return jax.lax.fori_loop(0, window.blocks, add, (zeros, zeros))


def _gradient(
    window: Window,
    spec: Spec,
    j: Index,
    logits: Any,
    teacher: Any,
    targets: jax.Array,
    row: Any,
    cotangents: Any,
) -> jax.Array:
    """Gradient to the student's logits of block j, f32[R, B]; formula in `token_stats`."""
    logp, slope = _log_probs(window, j, logits, spec.student_cap, spec, row.top, row.log_sum)
    p = jnp.exp(logp)
    finite = jnp.where(p != 0, logp, 0)  # True of NaN, which must come out.
    c_y, c_h = cotangents.logp[:, None], cotangents.entropy[:, None]
    hit = window.ids(j) == targets[:, None]
    grad = jnp.where(hit, c_y, 0) - p * (c_y + c_h * (finite + row.entropy[:, None]))
    if spec.divergence is not None:
        of_teacher = (row.teacher_top, row.teacher_log_sum)
        other, _ = _log_probs(window, j, teacher, spec.teacher_cap, spec, *of_teacher)
        slopes = formulas.terms(logp, other, spec.divergence).to_student
        grad += cotangents.divergence[:, None] * (slopes - p * row.slopes[:, None])
    return grad * slope


def _log_probs(
    window: Window, j: Index, ref: Any, cap: float | None, spec: Spec, top: Any, log_sum: Any
) -> tuple[jax.Array, jax.Array]:
    """Of block j, f32[R, B]; and the derivative of its logits after cap and temperature."""
    scaled, slope = token_stats.soften(window.load_block(ref, j), cap, spec.temperature)
    scaled = window.beyond(j, scaled)
    return (scaled - top[:, None]) - log_sum[:, None], slope


def _nothing(rows: int, divergence: Divergence | None) -> _Walk:
    """The _Walk over no column."""
    zero = jnp.zeros((rows,), jnp.float32)
    empty = zero + _EMPTY
    if divergence is None:
        return _Walk(empty, zero, zero, zero)
    kl = zero if divergence.merges else None
    return _Walk(empty, zero, zero, zero, empty, zero, zero, kl, kl)


def _block(
    window: Window, spec: Spec, j: Index, logits: Any, teacher: Any, targets: jax.Array
) -> _Walk:
    """The _Walk over block j."""
    hit = window.ids(j) == targets[:, None]
    top, total, logp, logit = _block_softmax(window, spec, j, logits, spec.student_cap, hit)
    p = jnp.exp(logp)
    entropy = -jnp.sum(p * jnp.where(p != 0, logp, 0), axis=1)
    walk = _Walk(top, total, entropy, logit)
    if spec.divergence is None:
        return walk
    top, total, other, logit = _block_softmax(window, spec, j, teacher, spec.teacher_cap, hit)
    walk = walk._replace(teacher_top=top, teacher_total=total, teacher_logit=logit)
    if not spec.divergence.merges:
        return walk
    each = formulas.terms(logp, other, spec.divergence)
    value, slopes = (jnp.sum(x, axis=1) for x in (each.value, each.to_student))
    return walk._replace(value=value, slopes=slopes)


def _block_softmax(
    window: Window, spec: Spec, j: Index, ref: Any, cap: float | None, hit: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Maximum and total f32[R] of block j, log-probs f32[R, B], and the target's logit."""
    scaled, _ = token_stats.soften(window.load_block(ref, j), cap, spec.temperature)
    scaled = window.beyond(j, scaled)
    top = jnp.maximum(jnp.max(scaled, axis=1), _EMPTY)
    shifted = scaled - top[:, None]
    total = jnp.sum(jnp.exp(shifted), axis=1)
    logit = jnp.sum(jnp.where(hit, scaled, 0), axis=1)
    return top, total, shifted - _log(total)[:, None], logit


def _log(total: jax.Array) -> jax.Array:
    """log(total), finite of nothing; the maximum of nothing is small enough."""
    return jnp.where(total == 0, 0, jnp.log(total))


def _merge(first: _Walk, second: _Walk, divergence: Divergence | None) -> _Walk:
    """The _Walk over the columns of both, which share none."""
    parts = (first, second)
    top, total, sums, log_sum = _merge_sums(*[(x.top, x.total) for x in parts])
    teacher_top, teacher_total, teacher_sums, teacher_log_sum = None, None, sums, log_sum
    if divergence is not None:
        teacher_top, teacher_total, teacher_sums, teacher_log_sum = _merge_sums(
            *[(x.teacher_top, x.teacher_total) for x in parts]
        )
    zero = jnp.zeros_like(top)
    # Of the two KLs in moments, the one that is not measured is not read.
    moments = [
        Moments(a, b, x.entropy, *[zero if x.value is None else x.value] * 2)
        for a, b, x in zip(sums, teacher_sums, parts, strict=True)
    ]
    both = token_stats.merge(*moments)
    walk = _Walk(top, total, both.entropy, first.logit + second.logit)
    if divergence is None:
        return walk
    walk = walk._replace(
        teacher_top=teacher_top,
        teacher_total=teacher_total,
        teacher_logit=first.teacher_logit + second.teacher_logit,
    )
    if not divergence.merges:
        return walk
    slopes = zero
    own = (first.slopes, second.slopes)
    for x, a, b in zip(own, sums, teacher_sums, strict=True):
        share, teacher_share = a - log_sum, b - teacher_log_sum
        moved = formulas.terms(share, teacher_share, divergence).to_student
        slopes += jnp.exp(share) * cast(jax.Array, x) + moved
    value = both.forward_kl if divergence.kind == "forward_kl" else both.reverse_kl
    return walk._replace(value=value, slopes=slopes)


def _merge_sums(*parts: Any) -> tuple[jax.Array, jax.Array, list[jax.Array], jax.Array]:
    """Maximum and total of two parts, their log-sums relative to that, and the log of both."""
    top = jnp.maximum(parts[0][0], parts[1][0])
    total = sum(total * jnp.exp(above - top) for above, total in parts)
    return top, total, [_log(total) + (above - top) for above, total in parts], _log(total)


def _load(ref: Any, mask: jax.Array | None) -> jax.Array:
    return plgpu.load(ref) if mask is None else plgpu.load(ref, mask=mask, other=0)
