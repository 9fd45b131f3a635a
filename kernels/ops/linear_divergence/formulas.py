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
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A divergence with its parameters settled; `measure` makes one."""

    kind: Divergence
    alpha: float | None = None  # The weight of the teacher, inside (0, 1); None for a KL.
    scale: float = 1.0  # Multiplies value and gradient.
    clip: float | None = None  # The most that one token of the vocabulary may add, in nats.

    @property
    def merges(self) -> bool:
        """Its sums over parts of the vocabulary, each under its own softmax, can be merged."""
        return self.kind != "jsd" and self.clip is None


class Terms(NamedTuple):
    """Addends of a divergence and their derivatives to both log-probs, all f32[..., V]."""

    value: jax.Array
    to_student: jax.Array
    to_teacher: jax.Array


def measure(
    kind: Divergence,
    alpha: float | None = None,
    *,
    continuous: bool = False,
    clip: float | None = None,
) -> Measure:
    """Settles what a kind and an alpha mean.

    With p the student, q the teacher and m = (1 - alpha) p + alpha q, a jsd is
    (1 - alpha) KL(p || m) + alpha KL(q || m). It vanishes as alpha goes to 0 or 1, so at the
    ends the limits of the rescaled one are taken: alpha 0 is the forward KL, alpha 1 the
    reverse. That is a jump, unless `continuous` divides by alpha (1 - alpha) in between.

    Args:
        kind: "forward_kl" is KL(teacher || student), "reverse_kl" KL(student || teacher).
        alpha: weight of the teacher in a jsd, 0 <= alpha <= 1; None means 0.5 there, and is the
            only choice for a KL.
        continuous: divide a jsd by alpha (1 - alpha).
        clip: the most that one token may add (point-wise clipping, arXiv 2601.18734): the sum
            is that of min(p log(p/q), clip) for a KL, of the two terms of m together for a jsd.
            Where it acts the token has no gradient of its own. What is left of a KL may be
            negative, with its minimum away from the teacher; a jsd stays a divergence.

    Raises:
        ValueError: `kind` is unknown, a KL is given an alpha, or alpha or clip has no meaning.
    """
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be positive and finite, or None for off, got {clip}")
    whole = _measure(kind, alpha, continuous)
    return dataclasses.replace(whole, clip=None if clip is None else float(clip))


def _measure(kind, alpha, continuous) -> Measure:
    if kind not in get_args(Divergence):
        raise ValueError(f"divergence kind {kind!r} is none of {get_args(Divergence)}")
    if kind != "jsd":
        if continuous:
            raise ValueError(f"continuous rescales a jsd, {kind} has no alpha; leave it False")
        if alpha is not None:
            raise ValueError(f"alpha={alpha} was given, but {kind} has none; leave it None")
        return Measure(kind)
    alpha = 0.5 if alpha is None else float(alpha)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"jsd needs 0 <= alpha <= 1, the weight of the teacher, got {alpha};"
            " 0 is forward_kl and 1 is reverse_kl"
        )
    if alpha in (0.0, 1.0):
        return Measure("reverse_kl" if alpha else "forward_kl")
    return Measure("jsd", alpha, 1.0 / (alpha * (1.0 - alpha)) if continuous else 1.0)


def divergence(student_logp: jax.Array, teacher_logp: jax.Array, measure: Measure) -> jax.Array:
    """The divergence at each position, in nats: f32[..., V], f32[..., V] -> f32[...].

    Log-probs are normalised, -inf where impossible. A KL is unbounded, and infinite where its
    first distribution can say what the second cannot; a jsd lies in [0, scale H(alpha)].
    Differentiable in both; no gradient is stopped here.
    """
    return jnp.sum(_values(student_logp, teacher_logp, measure), axis=-1)


def entropy(logp: jax.Array) -> jax.Array:
    """-sum p log p in nats: f32[..., V] -> f32[...]; a token of probability 0 adds 0."""
    # The inner `where` keeps the gradient finite; an outer one alone would fix the value only.
    possible = logp != -jnp.inf  # True of NaN, which must reach the result.
    safe = jnp.where(possible, logp, 0)
    return -jnp.sum(jnp.where(possible, jnp.exp(safe) * safe, 0), axis=-1)


def terms(student_logp: jax.Array, teacher_logp: jax.Array, measure: Measure) -> Terms:
    """The addends of a divergence, elementwise: twice f32[..., V] -> Terms of f32[..., V].

    The derivatives are to the log-probs as free variables; `statistics.logit_gradients` takes
    them through the softmax.
    """
    if measure.kind == "forward_kl":
        value, to_teacher, to_student = _kl(teacher_logp, student_logp)
    elif measure.kind == "reverse_kl":
        value, to_student, to_teacher = _kl(student_logp, teacher_logp)
    else:
        value, to_student, to_teacher = _jsd(student_logp, teacher_logp, measure.alpha)
    if measure.scale != 1.0:
        value, to_student, to_teacher = (
            measure.scale * x for x in (value, to_student, to_teacher)
        )
    found = Terms(value, to_student, to_teacher)
    return (
        found if measure.clip is None else _clipped(found, student_logp, teacher_logp, measure)
    )


def _clipped(each: Terms, student_logp, teacher_logp, measure: Measure) -> Terms:
    """Terms of which none adds more than `measure.clip`.

    What is bounded is p log(p/q), without the centring; that stays, for it has no sum.
    """
    if measure.kind == "jsd":
        bare, (value, to_student, to_teacher) = each.value, (measure.clip, 0.0, 0.0)
    else:
        p, q = jnp.exp(student_logp), jnp.exp(teacher_logp)
        sign = 1 if measure.kind == "reverse_kl" else -1
        bare = each.value + sign * (p - q)
        value, to_student, to_teacher = measure.clip + sign * (q - p), -sign * p, sign * q
    over = bare > measure.clip
    return Terms(
        jnp.where(over, value, each.value),
        jnp.where(over, to_student, each.to_student),
        jnp.where(over, to_teacher, each.to_teacher),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _values(student: jax.Array, teacher: jax.Array, measure: Measure) -> jax.Array:
    return terms(student, teacher, measure).value


@functools.partial(_values.defjvp, symbolic_zeros=True)
def _values_jvp(measure, primals, tangents):
    value, *slopes = terms(*primals, measure)
    out = jnp.zeros_like(value)
    for tangent, slope in zip(tangents, slopes, strict=True):
        if not isinstance(tangent, SymbolicZero):
            out = out + tangent * slope
    return value, out


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


def _jsd(s: jax.Array, t: jax.Array, alpha: float):
    """(1 - alpha) p log(p/m) + alpha q log(q/m); with its derivatives to log p and to log q."""
    if alpha > 0.5:  # The same with the sides exchanged; the form below is for a light teacher.
        value, to_t, to_s = _jsd(t, s, 1 - alpha)
        return value, to_s, to_t
    p, q = jnp.exp(s), jnp.exp(t)
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
    direct = jnp.log((1 - alpha) + alpha * ratio)
    tiny = jnp.abs(z) < 0.125
    below = jnp.where(tiny, _minus_log1p(jnp.where(tiny, z, 0)), z - direct)
    u = jnp.where(tiny, z - below, direct)
    # The parts through m cancel in the derivatives: (1 - alpha) p - m (1 - alpha) p / m.
    to_s, to_t = -(1 - alpha) * (p * u), -alpha * (q * (u - d))
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
    series = 0.0
    for n in range(last, 1, -1):
        series = series * x + 1 / math.factorial(n)
    return series * x * x


def _minus_log1p(z: jax.Array) -> jax.Array:
    """z - log(1 + z) >= 0 by its series, |z| <= 1/8."""
    last = 18 if z.dtype == jnp.float64 else 9
    series = 0.0
    for n in range(last, 1, -1):
        series = (1 if n % 2 == 0 else -1) / n + z * series
    return series * z * z
