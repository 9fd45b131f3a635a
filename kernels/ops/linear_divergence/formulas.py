"""Divergences between two next-token distributions, from their log-probabilities.

Every divergence is a sum over the vocabulary of one non-negative term per token. The terms are
centred: p log(p/q) is computed as p log(p/q) - p + q, which has the same sum over normalised
distributions, but is second order in log(p/q), so that nothing cancels in the sum. `terms`
gives each term with its derivatives, written out for the same reason; reference, chunked and
Pallas code all call it, on the block of the vocabulary that they hold.

What that buys, in float32 over a vocabulary of 4096, where KL is 1e-6 and the exact value is
known in float64: relative errors of 4e-5 in the value and 3e-4 in the gradient to the logits
(Euclidean norm over the vocabulary), both the rounding of the log-probs themselves; at a KL of
5e-3 and above they are 1e-6 and 3e-6. The plain sum of p log(p/q) is wrong by a quarter at
1e-6, the plain JSD by its whole value at alpha 0.1.

The log-probs must be normalised. Where they are not (a support cut without a tail), the two
KLs become the generalised KL, sum p log(p/q) - p + q: still non-negative and zero at equality.

Sources: Agarwal et al. 2024 (https://arxiv.org/abs/2306.13649) for the generalised
Jensen-Shannon divergence; alpha here is their beta, the weight of the teacher.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from mopd_jax.kernels.linear_divergence.divergence import (
    Divergence,
    SplitAlpha,
    split_alpha,
)


class Terms(NamedTuple):
    """Addends of a divergence and their derivatives to both log-probs, all f32[..., V]."""

    value: jax.Array
    to_student: jax.Array
    to_teacher: jax.Array


def value(
    student_logp: jax.Array, teacher_logp: jax.Array, divergence: Divergence
) -> jax.Array:
    """The divergence at each position, in nats: f32[..., V], f32[..., V] -> f32[...].

    Log-probs are normalised, -inf where impossible. A KL is unbounded, and infinite where its
    first distribution can say what the second cannot; a jsd lies in [0, H(alpha)].
    Differentiable in both log-probs; an alpha that is an array is a constant.

    Args:
        divergence: as `divergence.settled` makes it; `support` is not read.
    """
    alpha = None
    if divergence.alpha is not None and not isinstance(divergence.alpha, float | int):
        alpha, divergence = divergence.alpha, dataclasses.replace(divergence, alpha=None)
    return jnp.sum(_values(student_logp, teacher_logp, alpha, divergence), axis=-1)


def entropy(logp: jax.Array) -> jax.Array:
    """-sum p log p in nats: f32[..., V] -> f32[...]; a token of probability 0 adds 0."""
    # The inner `where` keeps the gradient finite; an outer one alone would fix the value only.
    possible = logp != -jnp.inf  # True of NaN, which must reach the result.
    safe = jnp.where(possible, logp, 0)
    return -jnp.sum(jnp.where(possible, jnp.exp(safe) * safe, 0), axis=-1)


def terms(student_logp: jax.Array, teacher_logp: jax.Array, divergence: Divergence) -> Terms:
    """The addends of a divergence, elementwise: twice f32[..., V] -> Terms of f32[..., V].

    The derivatives are to the log-probs as free variables; `token_stats` takes
    them through the softmax.
    """
    if divergence.kind == "forward_kl":
        value, to_teacher, to_student = _kl(teacher_logp, student_logp)
    elif divergence.kind == "reverse_kl":
        value, to_student, to_teacher = _kl(student_logp, teacher_logp)
    else:
        if divergence.alpha is None:
            raise TypeError("the alpha of a jsd is open; call divergence.settled first")
        value, to_student, to_teacher = _jsd(student_logp, teacher_logp, divergence.alpha)
    each = Terms(value, to_student, to_teacher)
    if divergence.clip is None:
        return each
    return _clipped(each, student_logp, teacher_logp, divergence, float(divergence.clip))


def _clipped(
    each: Terms,
    student_logp: jax.Array,
    teacher_logp: jax.Array,
    divergence: Divergence,
    clip: float,
) -> Terms:
    """Terms clipped to at most `clip` each.

    The clip bounds p log(p/q) alone; the centring is kept, because its sum is 0.
    """
    value: float | jax.Array
    to_student: float | jax.Array
    to_teacher: float | jax.Array
    if divergence.kind == "jsd":
        bare, (value, to_student, to_teacher) = each.value, (clip, 0.0, 0.0)
    else:
        p, q = jnp.exp(student_logp), jnp.exp(teacher_logp)
        sign = 1 if divergence.kind == "reverse_kl" else -1
        bare = each.value + sign * (p - q)
        value, to_student, to_teacher = clip + sign * (q - p), -sign * p, sign * q
    over = bare > clip
    return Terms(
        jnp.where(over, value, each.value),
        jnp.where(over, to_student, each.to_student),
        jnp.where(over, to_teacher, each.to_teacher),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _values(
    student: jax.Array, teacher: jax.Array, alpha: jax.Array | None, divergence: Divergence
) -> jax.Array:
    return _terms_at(student, teacher, alpha, divergence).value


@functools.partial(_values.defjvp, symbolic_zeros=True)
def _values_jvp(
    divergence: Divergence, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    student, teacher, alpha = primals
    value, *slopes = _terms_at(student, teacher, alpha, divergence)
    out = jnp.zeros_like(value)
    for tangent, slope in zip(tangents[:2], slopes, strict=True):
        if not isinstance(tangent, SymbolicZero):
            out = out + tangent * slope
    return value, out


def _terms_at(
    student: jax.Array, teacher: jax.Array, alpha: jax.Array | None, divergence: Divergence
) -> Terms:
    """`terms`, with an array alpha as an argument apart from the static fields."""
    if alpha is not None:
        divergence = dataclasses.replace(divergence, alpha=alpha)
    return terms(student, teacher, divergence)


def _kl(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """p log(p/q) - p + q of p = exp(a), q = exp(b); with its derivatives to a and to b.

    Probabilities, not log-probs, decide what is possible: one that underflows counts as 0, or
    0 times an infinite logarithm would follow. `!= 0` holds for NaN, so that NaN comes out.
    """
    p, q = jnp.exp(a), jnp.exp(b)
    x = jnp.where(p != 0, b - jnp.where(p != 0, a, 0), 0)
    # Near equality q - p (1 + x) would cancel, and q - p. Where p is 0 the term is q.
    near = (jnp.abs(x) < _SMALL) & (p != 0)
    small = jnp.where(near, x, 0)
    second = _expm1_minus(small)
    value = jnp.where(near, p * second, q - jnp.where(p != 0, p * (1 + x), 0))
    to_a = jnp.where(p != 0, -p * x, 0)
    to_b = jnp.where(near, p * (small + second), q - p)
    return value, to_a, to_b


def _jsd(
    s: jax.Array, t: jax.Array, alpha: float | jax.Array | SplitAlpha
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(1 - alpha) p log(p/m) + alpha q log(q/m); with its derivatives to log p and to log q.

    `_light_jsd` is for a light teacher; for a heavy one the sides are exchanged.
    """
    p, q = jnp.exp(s), jnp.exp(t)
    if isinstance(alpha, float | int):
        if alpha <= 0.5:
            return _light_jsd(s, t, p, q, alpha, 1 - alpha)
        value, to_t, to_s = _light_jsd(t, s, q, p, 1 - alpha, 1 - (1 - alpha))
        return value, to_s, to_t
    parts = alpha if isinstance(alpha, SplitAlpha) else split_alpha(alpha, s.dtype)
    heavy, light, rest = parts
    # After the exponentials, which others need too: exchanged before, they would be made twice.
    first = jnp.where(heavy, t, s), jnp.where(heavy, s, t)
    value, to_first, to_second = _light_jsd(
        *first, jnp.where(heavy, q, p), jnp.where(heavy, p, q), light, rest
    )
    return (
        value,
        jnp.where(heavy, to_second, to_first),
        jnp.where(heavy, to_first, to_second),
    )


def _light_jsd(
    s: jax.Array,
    t: jax.Array,
    p: jax.Array,
    q: jax.Array,
    alpha: float | jax.Array,
    rest: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_jsd` of an alpha of at most 1/2, of p = exp(s), q = exp(t) and rest = 1 - alpha."""
    d = jnp.where(q != 0, t, 0) - jnp.where(p != 0, s, 0)  # log(q/p)
    d = jnp.where(q != 0, jnp.where(p != 0, d, _FAR), -_FAR)
    d = jnp.where((p != 0) | (q != 0), jnp.clip(d, -_FAR, _FAR), 0)
    near = jnp.abs(d) < _SMALL
    small = jnp.where(near, d, 0)
    second = _expm1_minus(small)
    excess = small + second
    # Away from equality the quotient of the probabilities is as good as exp(d), and cheaper.
    # No comparison is true of NaN, which must come out.
    ratio = q / jnp.where(jnp.abs(d) >= _FAR, 1, p)
    ratio = jnp.where(d >= _FAR, math.exp(_FAR), jnp.where(d <= -_FAR, math.exp(-_FAR), ratio))
    excess = jnp.where(near, excess, ratio - 1)
    # u = log(m/p) = log(1 + z), of which z - u is wanted too; w = log(m/q) = u - d.
    z = alpha * excess
    direct = jnp.log(rest + alpha * ratio)
    tiny = jnp.abs(z) < 0.125
    below = jnp.where(tiny, _minus_log1p(jnp.where(tiny, z, 0)), z - direct)
    u = jnp.where(tiny, z - below, direct)
    # The parts through m cancel in the derivatives: (1 - alpha) p - m (1 - alpha) p / m.
    to_s, to_t = -rest * (p * u), -alpha * (q * (u - d))
    # Their sum, expanded by hand so that only terms of second order in d are left.
    inside = alpha * (small * excess - second) - z * z + (1 + z) * below
    return jnp.where(near, p * inside, to_s + to_t), to_s, to_t


# Where |log(q/p)| is below, series take the place of differences that would cancel; above, no
# more than 4 bits are lost.
_SMALL = 0.5
# A ratio beyond exp(30) is held there: the smaller of the two weighs 1e-13 of the other.
_FAR = 30.0


def _expm1_minus(x: jax.Array) -> jax.Array:
    """e^x - 1 - x >= 0 by its series, |x| <= 1/2."""
    last = 15 if x.dtype == jnp.float64 else 9
    series: float | jax.Array = 0.0
    for n in range(last, 1, -1):
        series = series * x + 1 / math.factorial(n)
    return series * x * x


def _minus_log1p(z: jax.Array) -> jax.Array:
    """z - log(1 + z) >= 0 by its series, |z| <= 1/8."""
    last = 18 if z.dtype == jnp.float64 else 9
    series: float | jax.Array = 0.0
    for n in range(last, 1, -1):
        series = (1 if n % 2 == 0 else -1) / n + z * series
    return series * z * z
