"""The statistics with all logits materialised and automatic differentiation: the specification.

What every implementation must equal. It shares the formulas, and none of the derivatives that
the others write out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import formulas, statistics
from mopd_jax.kernels.linear_divergence.chunked import Operands, Stats, product
from mopd_jax.kernels.linear_divergence.options import HiddenTeacher, Spec
from mopd_jax.kernels.linear_divergence.statistics import TokenLogprob, TokenStats


def token_statistics(
    spec: Spec, hidden: jax.Array, head: jax.Array, operands: Operands
) -> Stats:
    """Statistics f32[...], exactly 0 outside the mask.

    Args:
        hidden: [..., D], of any floating dtype; f64 in, f64 out.
        head: [V, D].
        operands: outside their mask nothing, not even a NaN, reaches value or gradient.
    """
    teacher, targets, mask = operands
    logp = _log_probs(hidden, head, mask, spec.student_cap, spec)
    of_target = at_targets(logp, targets)
    entropy = under_mask(mask, formulas.entropy(logp))
    if teacher is None:
        return TokenLogprob(under_mask(mask, of_target), entropy)
    teacher = jax.lax.stop_gradient(teacher)
    if isinstance(teacher, HiddenTeacher):
        taught = _log_probs(teacher.hidden, teacher.head, mask, spec.teacher_cap, spec)
        at_teacher = at_targets(taught, targets)
    else:
        taught = teacher
        at_teacher = statistics.stored_logp(teacher, targets, spec)
    if spec.support == "full":
        value = formulas.divergence(logp, taught, spec.measure)
    elif spec.support == "sampled":
        value = jax.lax.stop_gradient(of_target - at_teacher) * of_target
    else:
        value = _chosen(logp, taught, spec)
    return TokenStats(
        divergence=under_mask(mask, value),
        logp=under_mask(mask, of_target),
        teacher_logp=under_mask(mask, at_teacher),
        entropy=entropy,
    )


def at_targets(logp: jax.Array, targets: jax.Array) -> jax.Array:
    """The entry of each position's target: f32[..., V], i32[...] -> f32[...].

    NaN where the target is outside [0, V).
    """
    known = (targets >= 0) & (targets < logp.shape[-1])
    places = jnp.where(known, targets, 0)[..., None]
    return jnp.where(known, jnp.take_along_axis(logp, places, axis=-1)[..., 0], jnp.nan)


def under_mask(mask: jax.Array, values: jax.Array) -> jax.Array:
    """`values` where the mask is true, exactly 0 elsewhere, of the same dtype."""
    return jnp.where(mask, values, jnp.zeros((), values.dtype))


def _log_probs(hidden, head, mask, cap, spec):
    """[..., D], [V, D] -> f32[..., V]; uniform where the mask is false."""
    # Before the product: 0 times NaN would still be NaN in the gradient of the head.
    hidden = under_mask(mask[..., None], hidden)
    logits = product("...d,vd->...v", hidden, head[: spec.vocab_size])
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    return jax.nn.log_softmax(logits / spec.temperature, axis=-1)


def _chosen(logp, taught, spec):
    support = spec.support
    if isinstance(taught, statistics.StoredTeacher):
        ids, logq = taught.ids, taught.logp
    else:
        sides = {"student": (logp,), "teacher": (taught,), "union": (logp, taught)}
        tops = [
            jax.lax.top_k(jax.lax.stop_gradient(x), support.k)[1] for x in sides[support.of]
        ]
        ids = jnp.concatenate(tops, axis=-1)
        logq = jnp.take_along_axis(taught, ids, axis=-1)
    idle = statistics.unused(ids, logq, spec.vocab_size)
    chosen = jnp.take_along_axis(logp, jnp.where(idle, 0, ids), axis=-1)
    chosen, logq = (jnp.where(idle, -jnp.inf, x) for x in (chosen, logq))
    return statistics.coarse_divergence(chosen, logq, support.tail, spec.measure)
