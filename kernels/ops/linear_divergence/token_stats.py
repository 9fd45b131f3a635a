"""Statistics of each token from its logits, and the gradient back, for all implementations.

`token_statistics` reads the logits of some tokens, over the whole vocabulary or over one
device's part of it, and returns the statistics with `pull`, which turns their cotangents into
the gradient of the student's logits. It makes what has the size of the logits again, so that
only logits are kept, except on a CPU (`_apart`). `merge` puts together the statistics of
parts of the vocabulary.

With p the student, lp its log-probs, and D a function of the log-probs with derivatives a_j,
the gradient to logit j of c_D D + c_y lp_y + c_H H is

    c_D (a_j - p_j sum a) + c_y (1[j = y] - p_j) - c_H p_j (lp_j + H)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_divergence.divergence import Divergence
from mopd_jax.kernels.linear_divergence.options import Inverse, Spec
from mopd_jax.kernels.linear_divergence.outputs import Stored
from mopd_jax.kernels.linear_divergence.records import (
    WHOLE,
    Part,
    Pull,
    Stats,
    TokenLogprob,
    TokenStats,
)

# The least mass of the tail, as in the reference code: log-probs that sum to 1 up to rounding
# would give a tail of noise. At the bound the tail has no gradient.
_TAIL_BOUND = -1e-7


# Logits f32[C, V] -> log-probs, and the derivative of their scores, which broadcasts.
_LogProbs = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def token_statistics(
    logits: jax.Array,
    teacher: jax.Array | Stored | None,
    targets: jax.Array | None,
    *,
    spec: Spec,
    part: Part = WHOLE,
) -> tuple[Stats, Pull]:
    """Statistics of C tokens from their logits, and the way back.

    Args:
        logits: f32[C, V], the student's, as the head gives them.
        teacher: f32[C, V] logits, a Stored of [C, K], or None.
        targets: i32[C], ids in the whole vocabulary; the log-prob of any other is NaN. None:
            no log-probs of targets.
        spec: with divergence None exactly where the teacher is None.
        part: which columns these are. Columns from `spec.vocab_size` on do not exist.

    Returns:
        TokenStats of f32[C], or TokenLogprob without a teacher; and `pull`.
    """
    axis, divergence = part.axis, spec.divergence
    ids, real = part.ids(logits.shape), part.real(logits.shape, spec.vocab_size)
    known = hit = None
    if targets is not None:
        known = (targets >= 0) & (targets < spec.vocab_size)
        hit = (ids == targets[:, None]) & known[:, None]

    def at_targets(logp: jax.Array) -> jax.Array | None:
        if hit is None or known is None:
            return None
        return jnp.where(known, total(jnp.where(hit, logp, 0), axis), jnp.nan)

    student = _side(logits, spec.student_cap, spec, real, axis)
    logp, _ = student(logits)
    p, finite = _with_products(logp)
    of_target = at_targets(logp)
    entropy = -total(p * finite, axis)
    way = _Way(spec, part, logits, student, entropy, hit)
    if divergence is None:
        return TokenLogprob(_required(of_target), entropy), functools.partial(_pull, way)
    if isinstance(teacher, Stored):
        value, chosen = _chosen(logp, None, teacher, spec, part)
        at_teacher = None if targets is None else stored_logp(teacher, targets, spec)
        way = way._replace(chosen=chosen)
        stats = TokenStats(value, of_target, at_teacher, entropy)
        return stats, functools.partial(_pull, way)
    teacher = _required(teacher)
    other = _side(teacher, spec.teacher_cap, spec, real, axis)
    teacher_logp, _ = other(teacher)
    at_teacher = at_targets(teacher_logp)
    if divergence.support == "full":
        value = total(formulas.terms(logp, teacher_logp, divergence).value, axis)
        way = way._replace(teacher_logits=teacher, teacher=other)
    elif divergence.support == "sampled":
        # Its gradient has the reverse KL's as expectation over targets drawn from p.
        mine = _required(of_target)
        ratio = mine - _required(at_teacher)
        value = ratio * mine
        way = way._replace(chosen=(_required(targets)[:, None], ratio[:, None]))
    else:
        value, chosen = _chosen(logp, teacher_logp, None, spec, part)
        way = way._replace(chosen=chosen)
    stats = TokenStats(value, of_target, at_teacher, entropy)
    return stats, functools.partial(_pull, way)


class _Way(NamedTuple):
    """Values that the gradient reads."""

    spec: Spec
    part: Part
    logits: jax.Array
    student: _LogProbs
    entropy: jax.Array
    hit: jax.Array | None  # bool[C, V], where the targets are
    # Over the full vocabulary: of the teacher.
    teacher_logits: jax.Array | None = None
    teacher: _LogProbs | None = None
    # Over some tokens: their ids, and the slopes of the divergence in their log-probs.
    chosen: tuple[jax.Array, jax.Array] | None = None


def _pull(
    way: _Way, to_divergence: jax.Array | None, to_logp: jax.Array | None, to_entropy: jax.Array
) -> jax.Array:
    """Gradient to the logits; a `Pull`, once it has its way."""
    divergence, axis = way.spec.divergence, way.part.axis
    # What has the logits' size is made again. Kept, it would be two or three more arrays; and
    # where a jsd's slopes are summed along with its values, XLA writes four.
    slope_sum = None
    if way.teacher is not None and divergence is not None:
        mine, theirs = _apart((way.logits, way.teacher_logits))
        each = formulas.terms(way.student(mine)[0], way.teacher(theirs)[0], divergence)
        slope_sum = total(each.to_student, axis)
    again, teacher_again, slope_sum = _apart((way.logits, way.teacher_logits, slope_sum))
    logp, slope = way.student(again)
    p, finite = _with_products(logp)
    c_h, entropy = to_entropy[:, None], way.entropy[:, None]
    if to_logp is None or way.hit is None:
        grad = -p * (c_h * (finite + entropy))
    else:
        c_y = to_logp[:, None]
        grad = jnp.where(way.hit, c_y, 0) - p * (c_y + c_h * (finite + entropy))
    if divergence is None:
        return grad * slope
    by = _required(to_divergence)[:, None]
    if way.teacher is not None and slope_sum is not None:
        slopes = formulas.terms(logp, way.teacher(teacher_again)[0], divergence).to_student
        grad = grad + by * (slopes - p * slope_sum[:, None])
    else:
        where, slopes = _required(way.chosen)
        slopes = by * slopes
        grad = grad - p * jnp.sum(slopes, axis=-1, keepdims=True)
        grad = _scatter(grad, where, slopes, way.part)
    return grad * slope


_Given = TypeVar("_Given")


def _required(value: _Given | None) -> _Given:
    """The value, which `checks` has already required."""
    if value is None:
        raise TypeError("an operand that `checks` requires is None; use mopd_jax.kernels")
    return value


def _side(
    logits: jax.Array, cap: float | None, spec: Spec, real: jax.Array | None, axis: str | None
) -> _LogProbs:
    """How one model's logits f32[C, V] become log-probs, and the derivative of their scores.

    The normaliser is made here, from all of the vocabulary, and kept in its two parts, whose
    sum would round away 1e-6 of a log-prob.
    """

    def scores(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        if real is not None:  # Padding columns may hold NaN.
            logits = jnp.where(real, logits, 0)
        scaled, slope = soften(logits, cap, spec.temperature)
        return scaled if real is None else jnp.where(real, scaled, -jnp.inf), slope

    scaled, _ = scores(logits)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    if axis is not None:
        top = jax.lax.pmax(top, axis)
    rest = jnp.log(total(jnp.exp(scaled - top), axis))[:, None]

    def log_probs(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled, slope = scores(logits)
        return scaled - top - rest, slope

    return log_probs


def _apart(arrays: Any) -> Any:
    """`arrays`, such that what is made of them is not merged with what was made before.

    Except on a CPU, where arithmetic is dearer than the memory of its small chunks.
    """
    return jax.lax.platform_dependent(
        arrays, cpu=lambda x: x, default=jax.lax.optimization_barrier
    )


def _with_products(logp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities, and log-probs that may be multiplied with them: 0 where they are 0."""
    p = jnp.exp(logp)
    return p, jnp.where(p != 0, logp, 0)  # `!=` is true of NaN, which must come out.


def token_log_probs(logits: jax.Array, spec: Spec, part: Part = WHOLE) -> jax.Array:
    """log softmax of one model's logits, f32[C, V] -> f32[C, V], over all devices."""
    real = part.real(logits.shape, spec.vocab_size)
    return _side(logits, spec.student_cap, spec, real, part.axis)(logits)[0]


def soften(
    logits: jax.Array, cap: float | None, temperature: float | jax.Array | Inverse
) -> tuple[jax.Array, jax.Array]:
    """Logits after soft cap and temperature, and the derivative of that, which broadcasts."""
    slope = jnp.ones((1, 1), logits.dtype)
    if cap is not None:
        squashed = jnp.tanh(logits / cap)
        logits, slope = cap * squashed, 1 - squashed * squashed
    if isinstance(temperature, Inverse):
        return logits * temperature.factor, slope * temperature.factor
    if temperature != 1.0:
        logits, slope = logits / temperature, slope / temperature
    return logits, slope


def total(values: jax.Array, axis: str | None) -> jax.Array:
    """Sum over the vocabulary, wherever it lies: f32[C, V] -> f32[C]."""
    summed = jnp.sum(values, axis=-1)
    return summed if axis is None else jax.lax.psum(summed, axis)


def _chosen(
    student: jax.Array, teacher: jax.Array | None, stored: Stored | None, spec: Spec, part: Part
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Divergence over the chosen tokens f32[C], and their ids and slopes, [C, K] each."""
    divergence = _required(spec.divergence)
    if stored is not None:
        ids, logq = stored.ids, stored.logp
    else:
        teacher = _required(teacher)
        ids = _chosen_ids(student, teacher, divergence, part)
        logq = _take(teacher, ids, part)
    idle = unused(ids, logq, spec.vocab_size)
    logp, logq = (jnp.where(idle, -jnp.inf, x) for x in (_take(student, ids, part), logq))
    value, pull = jax.vjp(lambda x: coarse_divergence(x, logq, divergence), logp)
    (to_chosen,) = pull(jnp.ones_like(value))
    return value, (ids, to_chosen)  # 0 at idle places, where both log-probs are -inf.


def _scatter(grad: jax.Array, ids: jax.Array, values: jax.Array, part: Part) -> jax.Array:
    """Adds values f32[C, K] at the columns with these ids that are here, to f32[C, V]."""
    # A column that is not here is out of range, and dropped; a negative one would wrap.
    columns = ids - part.start
    columns = jnp.where(columns < 0, grad.shape[-1], columns)
    return grad.at[jnp.arange(len(ids))[:, None], columns].add(values, mode="drop")


def coarse_divergence(
    student: jax.Array, teacher: jax.Array, divergence: Divergence
) -> jax.Array:
    """Divergence over K tokens and, with a tail, the rest as one more: f32[..., K] -> f32[...].

    Log-probs are under the full softmax, -inf for a place that is not used. Without a tail both
    sides are renormalised.
    """
    if divergence.tail:
        student, teacher = (jnp.append(x, rest(x), axis=-1) for x in (student, teacher))
    else:
        student, teacher = (jax.nn.log_softmax(x, axis=-1) for x in (student, teacher))
    return formulas.value(student, teacher, divergence)


def rest(logp: jax.Array) -> jax.Array:
    """Log of the mass, at least 1e-7, that K log-probs leave: f32[..., K] -> f32[..., 1]."""
    mass = jax.nn.logsumexp(logp, axis=-1, keepdims=True)
    mass = jnp.minimum(mass, _TAIL_BOUND)
    # log(1 - e^x) loses nothing in the first form above -log 2, and in the second below.
    near = mass > -jnp.log(2.0).astype(mass.dtype)
    first = jnp.log(-jnp.expm1(jnp.where(near, mass, -1)))
    return jnp.where(near, first, jnp.log1p(-jnp.exp(jnp.where(near, -1, mass))))


def unused(ids: jax.Array, logq: jax.Array, vocab_size: int) -> jax.Array:
    """Which of K places are ignored, bool[..., K].

    Places whose id is not a token or whose log-prob is -inf, which is how a shorter list is
    padded, and places that repeat the id of an earlier used place.
    """
    idle = (ids < 0) | (ids >= vocab_size) | (logq == -jnp.inf)
    places, lead = ids.shape[-1], range(ids.ndim - 1)
    unlike = jnp.expand_dims(-1 - jnp.arange(places), lead)  # Differs from all others.
    apart = jnp.where(idle, unlike, ids)
    before = jnp.expand_dims(jnp.tri(places, k=-1, dtype=bool), lead)
    return idle | jnp.any((apart[..., :, None] == apart[..., None, :]) & before, axis=-1)


def stored_logp(stored: Stored, targets: jax.Array, spec: Spec) -> jax.Array:
    """The stored log-prob of each target, f32[...]; NaN where it was not stored."""
    idle = unused(stored.ids, stored.logp, spec.vocab_size)
    hit = (stored.ids == targets[..., None]) & ~idle
    logp = jnp.sum(jnp.where(hit, stored.logp, 0), axis=-1)
    return jnp.where(jnp.any(hit, axis=-1), logp, jnp.nan)


def _chosen_ids(
    student: jax.Array, teacher: jax.Array, divergence: Divergence, part: Part
) -> jax.Array:
    """Ids i32[C, K] of the k largest of one model, or of both after each other (2k)."""
    sides = {"student": (student,), "teacher": (teacher,), "union": (student, teacher)}
    k = _required(divergence.chosen)
    chosen = [top_ids(x, k, part)[0] for x in sides[divergence.support]]
    return jnp.concatenate(chosen, axis=-1)


def top_ids(logp: jax.Array, k: int, part: Part) -> tuple[jax.Array, jax.Array]:
    """Ids i32[C, k] and values f32[C, k] of the k largest columns over all devices."""
    values, columns = jax.lax.top_k(logp, min(k, logp.shape[-1]))
    ids = part.start + columns
    if part.axis is None:
        return ids, values
    values, ids = (jax.lax.all_gather(x, part.axis, axis=1, tiled=True) for x in (values, ids))
    values, order = jax.lax.top_k(values, k)
    return jnp.take_along_axis(ids, order, axis=-1), values


def _take(logp: jax.Array, ids: jax.Array, part: Part) -> jax.Array:
    """Columns by id, whichever device has them: f32[C, V], i32[C, K] -> f32[C, K]."""
    if part.axis is None:
        return jnp.take_along_axis(logp, ids, axis=-1)
    columns = ids - part.start
    here = (columns >= 0) & (columns < logp.shape[-1])
    values = jnp.take_along_axis(logp, jnp.where(here, columns, 0), axis=-1)
    # Only its owner adds a column; -inf there stays -inf.
    return jax.lax.psum(jnp.where(here, values, 0), part.axis)


class Moments(NamedTuple):
    """A token's statistics over part of the vocabulary, under that part's softmax."""

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
        share, teacher_share = part.lse - lse, part.teacher_lse - teacher_lse
        pi, tau = jnp.exp(share), jnp.exp(teacher_share)
        entropy += pi * (part.entropy - share)
        reverse += pi * part.reverse_kl + formulas.terms(share, teacher_share, _REVERSE).value
        forward += tau * part.forward_kl + formulas.terms(share, teacher_share, _FORWARD).value
    return Moments(lse, teacher_lse, entropy, reverse, forward)


_REVERSE, _FORWARD = Divergence("reverse_kl"), Divergence("forward_kl")
