"""The reference: materialises all logits and differentiates automatically, to check the others.

Every implementation must equal it. It shares the formulas, but not the derivatives that the
others write out.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import formulas, token_stats
from mopd_jax.kernels.linear_divergence.chunked import Operands
from mopd_jax.kernels.linear_divergence.divergence import Divergence
from mopd_jax.kernels.linear_divergence.logits import product
from mopd_jax.kernels.linear_divergence.options import Inverse, Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Logits, Output, Stored
from mopd_jax.kernels.linear_divergence.records import (
    Stats,
    TokenLogprob,
    TokenStats,
)


def token_statistics(spec: Spec, student: Output, operands: Operands) -> Stats:
    """Statistics f32[...], exactly 0 outside the mask; f64 in, f64 out.

    Args:
        operands: outside their mask nothing, not even a NaN, reaches value or gradient. They
            are constant, as are the dials.
    """
    teacher, targets, mask, dials = jax.lax.stop_gradient(operands)
    spec = spec.at(dials)
    logp = _log_probs(student, mask, spec.student_cap, spec)
    of_target = None if targets is None else at_targets(logp, targets)
    entropy = under_mask(mask, formulas.entropy(logp))
    divergence = spec.divergence
    at_teacher = None
    if divergence is None or teacher is None:
        if of_target is None:
            raise TypeError("log-probs of targets need targets, and targets is None")
        return TokenLogprob(under_mask(mask, of_target), entropy)
    if isinstance(teacher, Stored):
        wide = jnp.promote_types(jnp.float32, teacher.logp.dtype)
        teacher = dataclasses.replace(teacher, logp=teacher.logp.astype(wide))
        if targets is not None:
            at_teacher = token_stats.stored_logp(teacher, targets, spec)
        value = _over_ids(logp, teacher, divergence, spec.vocab_size)
    else:
        teacher_logp = _log_probs(teacher, mask, spec.teacher_cap, spec)
        at_teacher = None if targets is None else at_targets(teacher_logp, targets)
        if divergence.support == "full":
            value = formulas.value(logp, teacher_logp, divergence)
        elif of_target is not None and at_teacher is not None and divergence.chosen is None:
            # "sampled"
            value = jax.lax.stop_gradient(of_target - at_teacher) * of_target
        else:
            chosen = _chosen(logp, teacher_logp, divergence)
            value = _over_ids(logp, chosen, divergence, spec.vocab_size)
    return TokenStats(
        divergence=under_mask(mask, value),
        logp=None if of_target is None else under_mask(mask, of_target),
        teacher_logp=None if at_teacher is None else under_mask(mask, at_teacher),
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


def _log_probs(output: Output, mask: jax.Array, cap: float | None, spec: Spec) -> jax.Array:
    """f32[..., V], over the columns that exist; uniform where the mask is false."""
    if isinstance(output, Logits):
        values = under_mask(mask[..., None], output.values[..., : spec.vocab_size])
        logits = values.astype(jnp.promote_types(jnp.float32, values.dtype))
    else:
        logits = _from_head(output, mask, spec)
    if cap is not None:
        logits = cap * jnp.tanh(logits / cap)
    temperature = spec.temperature
    assert not isinstance(temperature, Inverse)  # That is for loops; here is none.
    if isinstance(temperature, jax.Array):
        temperature = temperature.astype(logits.dtype)
        temperature = jnp.where(temperature > 0, temperature, jnp.nan)
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _from_head(output: Hidden, mask: jax.Array, spec: Spec) -> jax.Array:
    # Before the product: 0 times NaN would still be NaN in the gradient of the head.
    states = under_mask(mask[..., None], output.states)
    return product("...d,vd->...v", states, output.head[: spec.vocab_size])


def _chosen(logp: jax.Array, teacher_logp: jax.Array, divergence: Divergence) -> Stored:
    """The chosen tokens, with the teacher's log-probs of them."""
    both = {"student": logp, "teacher": teacher_logp}
    names = tuple(both) if divergence.support == "union" else (divergence.support,)
    tops = [
        jax.lax.top_k(jax.lax.stop_gradient(both[name]), cast(int, divergence.chosen))[1]
        for name in names
    ]
    ids = jnp.concatenate(tops, axis=-1)
    return Stored(ids, jnp.take_along_axis(teacher_logp, ids, axis=-1))


def _over_ids(
    logp: jax.Array, teacher: Stored, divergence: Divergence, vocab_size: int
) -> jax.Array:
    """The divergence over the tokens of a Stored, f32[...]."""
    ids, logq = teacher.ids, teacher.logp
    idle = token_stats.unused(ids, logq, vocab_size)
    chosen = jnp.take_along_axis(logp, jnp.where(idle, 0, ids), axis=-1)
    chosen, logq = (jnp.where(idle, -jnp.inf, x) for x in (chosen, logq))
    return token_stats.coarse_divergence(chosen, logq, divergence)
