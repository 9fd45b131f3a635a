"""From logits to statistics of each token and back: what the implementations share.

`token_statistics` reads the logits of some tokens, over the whole vocabulary or over one
device's part of it, and returns the statistics with `pull`, which turns their cotangents into
the gradient of the student's logits. `merge` puts together what was found on parts of the
vocabulary apart.

With p the student, lp its log-probs, and D a function of the log-probs with derivatives a_j,
the gradient to logit j of c_D D + c_y lp_y + c_H H is

    c_D (a_j - p_j sum a) + c_y (1[j = y] - p_j) - c_H p_j (lp_j + H)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_divergence.formulas import Measure
from mopd_jax.kernels.linear_divergence.options import Spec, StoredTeacher, TopK

# The least mass of the tail, as in the reference code: log-probs that sum to 1 up to rounding
# would give a tail of noise. At the bound the tail has no gradient.
_TAIL_BOUND = -1e-7


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """Per-token statistics, both models at one temperature; exactly 0 outside the mask."""

    divergence: jax.Array  # f32[...] nats
    logp: jax.Array  # f32[...] nats, the student's, of the target token
    teacher_logp: jax.Array  # f32[...] nats, the teacher's, of the target token
    entropy: jax.Array  # f32[...] nats, of the student


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """Per-token statistics of one model at one temperature; exactly 0 outside the mask."""

    logp: jax.Array  # f32[...] nats, of the target token
    entropy: jax.Array  # f32[...] nats, of the distribution


class Part(NamedTuple):
    """Which columns of the vocabulary the logits are: all, or a device's share."""

    axis: str | None = None  # Mesh axis that the vocabulary is split over.
    start: jax.Array | int = 0  # Id of the first column.
    padded: bool = False  # Columns from the size of the vocabulary on are there, and not real.

    def ids(self, shape: tuple[int, int]) -> jax.Array:
        """i32[C, V], of each column."""
        return self.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)

    def real(self, shape: tuple[int, int], vocab_size: int) -> jax.Array | None:
        """bool[C, V], which columns exist; None for all."""
        return self.ids(shape) < vocab_size if self.padded else None


WHOLE = Part()

# Cotangents of (divergence, logp, entropy), each f32[C], the first None where there is no
# divergence -> gradient to the logits [C, V].
Pull = Callable[[jax.Array | None, jax.Array, jax.Array], jax.Array]


def token_statistics(
    logits: jax.Array,
    teacher: jax.Array | StoredTeacher | None,
    targets: jax.Array,
    *,
    spec: Spec,
    part: Part = WHOLE,
) -> tuple[TokenStats | TokenLogprob, Pull]:
    """Statistics of C tokens from their logits, and the way back.

    Args:
        logits: f32[C, V], the student's, as the head gives them.
        teacher: f32[C, V] logits, a StoredTeacher of [C, K], or None.
        targets: i32[C], ids in the whole vocabulary; the log-prob of any other is NaN.
        spec: with measure None exactly where the teacher is None.
        part: which columns these are. Columns from `spec.vocab_size` on do not exist.

    Returns:
        TokenStats of f32[C], or TokenLogprob without a teacher; and `pull`.
    """
    axis = part.axis
    ids, real = part.ids(logits.shape), part.real(logits.shape, spec.vocab_size)
    if real is not None:  # What stands there may be NaN.
        logits = jnp.where(real, logits, 0)
    scaled, slope = soften(logits, spec.student_cap, spec.temperature)
    logp = log_softmax(scaled, real, axis)
    p = jnp.exp(logp)
    finite = jnp.where(
        p != 0, logp, 0
    )  # For products with p; true of NaN, which must come out.
    hit = ids == targets[:, None]
    known = (targets >= 0) & (targets < spec.vocab_size)
    of_target = jnp.where(known, total(jnp.where(hit, logp, 0), axis), jnp.nan)
    entropy = -total(p * finite, axis)
    if spec.measure is None:
        value, slopes = None, None
        stats = TokenLogprob(of_target, entropy)
    elif isinstance(teacher, StoredTeacher):
        value, slopes = _chosen(logp, None, teacher, spec, part)
        stored = jnp.sum(jnp.where(teacher.ids == targets[:, None], teacher.logp, 0), -1)
        kept = jnp.any(teacher.ids == targets[:, None], axis=-1)
        stats = TokenStats(value, of_target, jnp.where(kept, stored, jnp.nan), entropy)
    else:
        if real is not None:
            teacher = jnp.where(real, teacher, 0)
        other, _ = soften(teacher, spec.teacher_cap, spec.temperature)
        other = log_softmax(other, real, axis)
        taught = jnp.where(known, total(jnp.where(hit, other, 0), axis), jnp.nan)
        if spec.support == "sampled":
            # Its gradient has the reverse KL's as expectation over targets drawn from p.
            ratio = of_target - taught
            value, slopes = ratio * of_target, jnp.where(hit, ratio[:, None], 0)
        elif spec.support == "full":
            each = formulas.terms(logp, other, spec.measure)
            value, slopes = total(each.value, axis), each.to_student
        else:
            value, slopes = _chosen(logp, other, None, spec, part)
        stats = TokenStats(value, of_target, taught, entropy)

    def pull(to_divergence, to_logp, to_entropy):
        c_y, c_h = to_logp[:, None], to_entropy[:, None]
        grad = jnp.where(hit, c_y, 0) - p * (c_y + c_h * (finite + entropy[:, None]))
        if slopes is not None:
            centred = slopes - p * total(slopes, axis)[:, None]
            grad = grad + to_divergence[:, None] * centred
        return grad * slope

    return stats, pull


def soften(logits: jax.Array, cap: float | None, temperature: float):
    """Logits after soft cap and temperature, and the derivative of that, which broadcasts."""
    slope = jnp.ones((1, 1), logits.dtype)
    if cap is not None:
        squashed = jnp.tanh(logits / cap)
        logits, slope = cap * squashed, 1 - squashed * squashed
    if temperature != 1.0:
        logits, slope = logits / temperature, slope / temperature
    return logits, slope


def log_softmax(logits: jax.Array, real: jax.Array | None, axis: str | None) -> jax.Array:
    """f32[C, V] -> f32[C, V], over all devices of `axis`; -inf where `real` is false."""
    if real is not None:
        logits = jnp.where(real, logits, -jnp.inf)
    top = jnp.max(logits, axis=-1)
    if axis is not None:
        top = jax.lax.pmax(top, axis)
    shifted = logits - top[:, None]
    return shifted - jnp.log(total(jnp.exp(shifted), axis))[:, None]


def total(values: jax.Array, axis: str | None) -> jax.Array:
    """Sum over the vocabulary, wherever it lies: f32[C, V] -> f32[C]."""
    summed = jnp.sum(values, axis=-1)
    return summed if axis is None else jax.lax.psum(summed, axis)


def _chosen(student, teacher, stored, spec, part):
    """Divergence over the chosen tokens f32[C], and its slopes at every column f32[C, V]."""
    support: TopK = spec.support
    if stored is not None:
        ids, logq = stored.ids, stored.logp
    else:
        ids = _chosen_ids(student, teacher, support, part)
        logq = _take(teacher, ids, part)
    twice = repeated(ids)
    logp, logq = (jnp.where(twice, -jnp.inf, x) for x in (_take(student, ids, part), logq))
    value, pull = jax.vjp(
        lambda x: coarse_divergence(x, logq, support.tail, spec.measure), logp
    )
    (to_chosen,) = pull(jnp.ones_like(value))
    to_chosen = jnp.where(twice, 0, to_chosen)
    # A column that is not here is out of range, and dropped; at a negative one it would wrap.
    columns = ids - part.start
    columns = jnp.where(columns < 0, student.shape[-1], columns)
    rows = jnp.arange(len(ids))[:, None]
    return value, jnp.zeros_like(student).at[rows, columns].add(to_chosen, mode="drop")


def coarse_divergence(
    student: jax.Array, teacher: jax.Array, tail: bool, measure: Measure
) -> jax.Array:
    """Divergence over K tokens and, with `tail`, the rest as one more: f32[..., K] -> f32[...].

    Log-probs are under the full softmax, -inf for a place that is not used. Without `tail` both
    sides are renormalised.
    """
    if tail:
        student, teacher = (jnp.append(x, rest(x), axis=-1) for x in (student, teacher))
    else:
        student, teacher = (jax.nn.log_softmax(x, axis=-1) for x in (student, teacher))
    return formulas.divergence(student, teacher, measure)


def rest(logp: jax.Array) -> jax.Array:
    """Log of the mass, at least 1e-7, that K log-probs leave: f32[..., K] -> f32[..., 1]."""
    mass = jax.nn.logsumexp(logp, axis=-1, keepdims=True)
    mass = jnp.minimum(mass, _TAIL_BOUND)
    # log(1 - e^x) loses nothing in the first form above -log 2, and in the second below.
    near = mass > -jnp.log(2.0).astype(mass.dtype)
    first = jnp.log(-jnp.expm1(jnp.where(near, mass, -1)))
    return jnp.where(near, first, jnp.log1p(-jnp.exp(jnp.where(near, -1, mass))))


def repeated(ids: jax.Array) -> jax.Array:
    """Where an id stands that stood before, bool[..., K]: chosen twice, it counts once."""
    before = jnp.tri(ids.shape[-1], k=-1, dtype=bool)
    return jnp.any((ids[..., :, None] == ids[..., None, :]) & before, axis=-1)


def _chosen_ids(student, teacher, support, part):
    """Ids i32[C, K] of the k largest of one model, or of both after each other (2k)."""
    sides = {"student": (student,), "teacher": (teacher,), "union": (student, teacher)}
    return jnp.concatenate([top_ids(x, support.k, part)[0] for x in sides[support.of]], axis=-1)


def top_ids(logp: jax.Array, k: int, part: Part) -> tuple[jax.Array, jax.Array]:
    """Ids i32[C, k] and values f32[C, k] of the k largest columns over all devices."""
    values, columns = jax.lax.top_k(logp, min(k, logp.shape[-1]))
    ids = part.start + columns
    if part.axis is None:
        return ids, values
    values, ids = (jax.lax.all_gather(x, part.axis, axis=1, tiled=True) for x in (values, ids))
    values, order = jax.lax.top_k(values, k)
    return jnp.take_along_axis(ids, order, axis=-1), values


def _take(logp, ids, part):
    """Columns by id, whichever device has them: f32[C, V], i32[C, K] -> f32[C, K]."""
    if part.axis is None:
        return jnp.take_along_axis(logp, ids, axis=-1)
    columns = ids - part.start
    here = (columns >= 0) & (columns < logp.shape[-1])
    found = jnp.take_along_axis(logp, jnp.where(here, columns, 0), axis=-1)
    # Only its owner adds a column; -inf there stays -inf.
    return jax.lax.psum(jnp.where(here, found, 0), part.axis)


class Moments(NamedTuple):
    """What one pass over part of the vocabulary knows of a token, under that part's softmax."""

    lse: jax.Array  # f32[...] of the student's logits
    teacher_lse: jax.Array  # f32[...]
    entropy: jax.Array  # f32[...] nats
    reverse_kl: jax.Array  # f32[...] nats
    forward_kl: jax.Array  # f32[...] nats


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the union of two disjoint parts of the vocabulary.

    By the chain rule, with pi and tau the shares of a part in both models: H is the sum of
    pi (H_k - log pi) and KL(p || q) of pi (KL_k + log(pi / tau)). No part of the KLs is
    negative, the shares' own being centred, so nothing cancels. A part with an lse of -1e30 is
    empty.
    """
    lse = jnp.logaddexp(first.lse, second.lse)
    teacher_lse = jnp.logaddexp(first.teacher_lse, second.teacher_lse)
    entropy = reverse = forward = jnp.zeros_like(lse)
    for part in (first, second):
        share, taught = part.lse - lse, part.teacher_lse - teacher_lse
        pi, tau = jnp.exp(share), jnp.exp(taught)
        entropy += pi * (part.entropy - share)
        reverse += pi * part.reverse_kl + formulas.terms(share, taught, _REVERSE).value
        forward += tau * part.forward_kl + formulas.terms(share, taught, _FORWARD).value
    return Moments(lse, teacher_lse, entropy, reverse, forward)


_REVERSE, _FORWARD = formulas.measure("reverse_kl"), formulas.measure("forward_kl")
