"""Kernel bodies of `pallas_tpu`: one block of tokens against one block of the vocabulary.

Tokens lie along the lanes wherever a number per token is kept or a sum over the vocabulary is
taken: logits are [vocab block, token block], sums run over sublanes, and what is known of a
token is a row. Columns [tokens, 1] would fill one lane of 128. Only the gradient of the hidden
states, where only the matrix product sums, has logits [token block, vocab block], since they
multiply the head from the left.

Each body gets, before its blocks, `counts` in scalar memory: how many blocks of tokens hold a
valid one, and how many columns of the vocabulary exist. Blocks beyond either are not computed;
within the last one the surplus columns are masked, whatever bits lie there: the head may have
padding rows, and a block that sticks out of an array is not filled at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mopd_jax.kernels.linear_divergence import formulas, token_stats
from mopd_jax.kernels.linear_divergence.divergence import Divergence
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.token_stats import (
    Moments,
)

EMPTY = -1e30  # A logit that is not there: finite, because inf - inf is NaN.

# Rows of the numbers per token, f32[ROWS, tokens]. The lse is kept in two parts, largest logit
# and log of the sum of what is left of the others: their sum would round away 1e-6 of a
# log-prob, which a divergence of 1e-6 does not survive.
ROWS = 8  # The sublanes of a tile.
TOP, REST, TEACHER_TOP, TEACHER_REST, ENTROPY, VALUE, AT_TARGET, TEACHER_AT_TARGET = range(ROWS)
SUM_VALUES, SUM_SLOPES = range(2)  # The second sweep's.
# What the backward pass reads: the first five rows, then these; f32[2 ROWS, tokens].
TOTAL_SLOPE, TO_DIVERGENCE, TO_LOGP, TO_ENTROPY = range(5, 9)
BACKWARD_ROWS = 2 * ROWS


def place(i: Any, blocks: Any) -> jax.Array:
    """Which block of tokens step `i` of `blocks` takes: the even ones, then the odd ones.

    Where two cores share a grid, each takes half of it. The live blocks come first, so that in
    their own order one core could have nothing to do.
    """
    half = (blocks + 1) // 2
    return jnp.where(i < half, 2 * i, 2 * (i - half) + 1)


def product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Matrix product over one axis of each, in the dtype of the operands, f32 result."""
    dtype = jnp.promote_types(left.dtype, right.dtype)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left.astype(dtype),
        right.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def first_sweep(counts: Any, *refs: Any, spec: Spec) -> None:
    """Moments of one block of tokens, a block of the vocabulary at a time.

    Grid (token blocks, vocabulary blocks). `refs`: hidden [C, D], head [V, D], the teacher's
    two if there is one, targets i32[1, C]; and out f32[ROWS, C], which also holds the state of
    the sweep: there REST is the sum itself, not its log.
    """
    *inputs, targets, out = refs
    i, j = place(pl.program_id(0), pl.num_programs(0)), pl.program_id(1)
    alive = i < counts[0]
    last = j == pl.num_programs(1) - 1
    rows = inputs[1].shape[0]

    @pl.when(j == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)
        for top, rest in ((TOP, REST), (TEACHER_TOP, TEACHER_REST)):
            _write(out, top, jnp.full((1, out.shape[1]), EMPTY, jnp.float32))
            _write(out, rest, jnp.ones((1, out.shape[1]), jnp.float32))

    @pl.when(alive & (j * rows < counts[1]))
    def _() -> None:
        real, hit = _columns(j * rows, counts[1], targets, (rows, out.shape[1]), 0)
        student, teacher, _ = _scores(inputs, real, spec, tokens_last=True)
        _fold(out, student, teacher, hit, spec)

    @pl.when(last)
    def _() -> None:
        for rest in (REST, TEACHER_REST):
            _write(out, rest, jnp.log(_read(out, rest)))
        out[...] = jnp.where(alive, out[...], 0)


def second_sweep(counts: Any, *refs: Any, spec: Spec) -> None:
    """Sums of a divergence whose terms need both log-probs normalised over the vocabulary.

    Grid and inputs as in `first_sweep`, then its output; out f32[ROWS, C]: the value and the
    sum of its slopes.
    """
    *inputs, swept, out = refs
    i, j = place(pl.program_id(0), pl.num_programs(0)), pl.program_id(1)
    rows = inputs[1].shape[0]

    @pl.when(j == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    @pl.when((i < counts[0]) & (j * rows < counts[1]))
    def _() -> None:
        real, _ = _columns(j * rows, counts[1], None, (rows, out.shape[1]), 0)
        student, teacher, _ = _scores(inputs, real, spec, tokens_last=True)
        get = functools.partial(_read, swept)
        logp = student - get(TOP) - get(REST)
        teacher_logp = teacher - get(TEACHER_TOP) - get(TEACHER_REST)
        each = formulas.terms(logp, teacher_logp, cast(Divergence, spec.divergence))
        for row, values in ((SUM_VALUES, each.value), (SUM_SLOPES, each.to_student)):
            _write(out, row, _read(out, row) + jnp.sum(values, axis=0, keepdims=True))


def hidden_gradient(counts: Any, *refs: Any, spec: Spec) -> None:
    """Grid (token blocks, vocabulary blocks).

    `refs`: as `first_sweep` with targets i32[C, 1], then known f32[C, BACKWARD_ROWS]; out
    [C, D]; scratch f32[C, D].
    """
    *inputs, targets, known, out, total = refs
    i, j = place(pl.program_id(0), pl.num_programs(0)), pl.program_id(1)
    head = inputs[1]
    rows = head.shape[0]
    start, left = j * rows, counts[1] - j * rows
    alive = (i < counts[0]) & (left > 0)

    @pl.when(j == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    @pl.when(alive)
    def _() -> None:
        real, hit = _columns(start, counts[1], targets, (out.shape[0], rows), 1)
        grad = _logit_gradients(
            inputs, real, hit, lambda row: known[:, row : row + 1], spec, tokens_last=False
        ).astype(jnp.promote_types(inputs[0].dtype, head.dtype))

        @pl.when(left >= rows)
        def _() -> None:
            total[...] += product(grad, head[...], (1, 0))

        @pl.when(left < rows)
        def _() -> None:
            # Of rows that do not exist the gradient is 0, but 0 times their bits may be NaN.
            row = jax.lax.broadcasted_iota(jnp.int32, head.shape, 0)
            there = jnp.where(row < left, head[...].astype(jnp.float32), 0)
            total[...] += product(grad, there.astype(head.dtype), (1, 0))

    @pl.when(j == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def head_gradient(counts: Any, *refs: Any, spec: Spec) -> None:
    """Grid (vocabulary blocks, token blocks).

    `refs`: as `first_sweep`, then known f32[BACKWARD_ROWS, C]; out [V, D]; scratch f32[V, D].
    """
    *inputs, targets, known, out, total = refs
    j, i = pl.program_id(0), pl.program_id(1)
    hidden, rows = inputs[0], out.shape[0]

    @pl.when(i == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    @pl.when((i < counts[0]) & (j * rows < counts[1]))
    def _() -> None:
        real, hit = _columns(j * rows, counts[1], targets, (rows, hidden.shape[0]), 0)
        get = functools.partial(_read, known)
        grad = _logit_gradients(inputs, real, hit, get, spec, tokens_last=True)
        grad = grad.astype(jnp.promote_types(hidden.dtype, inputs[1].dtype))
        total[...] += product(grad, hidden[...], (1, 0))

    @pl.when(i == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = total[...].astype(out.dtype)


def _read(ref: Any, row: int) -> jax.Array:
    return ref[row : row + 1, :]


def _write(ref: Any, row: int, values: jax.Array) -> None:
    ref[row : row + 1, :] = values


def _columns(
    start: Any, size: Any, targets: Any, shape: tuple[int, int], axis: int
) -> tuple[jax.Array, Any]:
    """bool of `shape`, the vocabulary along `axis`: columns that exist, and the targets'."""
    ids = start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    real = ids < size
    # A target may name a column of the padding, which must stay as if it named none.
    return real, None if targets is None else (ids == targets[...]) & real


def _scores(
    inputs: list[Any], real: jax.Array, spec: Spec, *, tokens_last: bool
) -> tuple[jax.Array, Any, jax.Array]:
    """Logits after cap and temperature, student's and teacher's, EMPTY where not `real`.

    Also the slope of the student's, of any bits where not `real`.
    """
    hidden, head, *teacher = inputs

    def scores(hidden: Any, head: Any, cap: float | None) -> tuple[jax.Array, jax.Array]:
        left, right = (head, hidden) if tokens_last else (hidden, head)
        raw = product(left[...], right[...], (1, 1))
        soft, slope = token_stats.soften(raw, cap, spec.temperature)
        return jnp.where(real, soft, EMPTY), slope

    student, slope = scores(hidden, head, spec.student_cap)
    other = scores(teacher[0], teacher[1], spec.teacher_cap)[0] if teacher else None
    return student, other, slope


def _fold(state: Any, student: Any, teacher: Any, hit: Any, spec: Spec) -> None:
    """Adds a block of logits f32[V, C] to the state of a sweep.

    The block's moments are finished under its own softmax, then merged: what is summed is
    centred, and nothing cancels in a small divergence.
    """
    sides = [(student, TOP, REST, AT_TARGET)]
    if teacher is not None:
        sides.append((teacher, TEACHER_TOP, TEACHER_REST, TEACHER_AT_TARGET))
    logps, befores, heres = [], [], []
    for scores, top_row, rest_row, target_row in sides:
        top = jnp.max(scores, axis=0, keepdims=True)
        shifted = scores - top
        rest = jnp.sum(jnp.exp(shifted), axis=0, keepdims=True)
        log_rest = jnp.log(rest)
        logps.append(shifted - log_rest)
        old, old_rest = _read(state, top_row), _read(state, rest_row)
        new = jnp.maximum(old, top)
        # Relative to the largest logit so far, for `merge` reads differences only; and made
        # from the sum anew each time, for a log of a log would gather rounding.
        befores.append(old - new + jnp.log(old_rest))
        heres.append(top - new + log_rest)
        _write(state, top_row, new)
        _write(state, rest_row, old_rest * jnp.exp(old - new) + rest * jnp.exp(top - new))
        at_target = jnp.sum(jnp.where(hit, scores, 0), axis=0, keepdims=True)
        _write(state, target_row, _read(state, target_row) + at_target)
    logp = logps[0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=0, keepdims=True)
    past = {"entropy": _read(state, ENTROPY)}
    here = {"entropy": entropy}
    online = None
    if spec.divergence is not None and spec.divergence.merges:
        online = spec.divergence.kind
        each = formulas.terms(logp, logps[1], spec.divergence).value
        here[online] = jnp.sum(each, axis=0, keepdims=True)
        past[online] = _read(state, VALUE)
    merged = token_stats.merge(moments(befores, **past), moments(heres, **here))
    _write(state, ENTROPY, merged.entropy)
    if online is not None:
        _write(state, VALUE, getattr(merged, online))


def moments(
    lses: list[jax.Array], *, entropy: jax.Array, reverse_kl: Any = 0.0, forward_kl: Any = 0.0
) -> Moments:
    """The moments of one model or two; unknown ones are 0."""
    return Moments(lses[0], lses[-1], entropy, reverse_kl, forward_kl)


def _logit_gradients(
    inputs: list[Any],
    real: jax.Array,
    hit: jax.Array,
    get: Callable[[int], jax.Array],
    spec: Spec,
    *,
    tokens_last: bool,
) -> jax.Array:
    """Gradient of the cotangents' sum to the student's logits; `get` reads a row per token."""
    student, teacher, slope = _scores(inputs, real, spec, tokens_last=tokens_last)
    logp = student - get(TOP) - get(REST)
    p = jnp.exp(logp)
    to_logp = get(TO_LOGP)
    grad = jnp.where(hit, to_logp, 0) - p * (to_logp + get(TO_ENTROPY) * (logp + get(ENTROPY)))
    if spec.divergence is not None:
        teacher_logp = teacher - get(TEACHER_TOP) - get(TEACHER_REST)
        slopes = formulas.terms(logp, teacher_logp, spec.divergence).to_student
        grad = grad + get(TO_DIVERGENCE) * (slopes - p * get(TOTAL_SLOPE))
    return jnp.where(real, grad * slope, 0)
