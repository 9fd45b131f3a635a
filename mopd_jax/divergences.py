"""Divergences of log-probabilities, for whoever composes a loss from parts.

The formulas and their accuracy are in `kernels/ops/linear_divergence/formulas.py`, shared with
the fused op; here are the shape checks of a public boundary. No gradient is stopped.
"""

from __future__ import annotations

import jax

from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.shapes import check_shapes


def forward_kl(student_logp: jax.Array, teacher_logp: jax.Array) -> jax.Array:
    """KL(teacher || student) in nats: f32[..., V], f32[..., V] -> f32[...]."""
    _check(student_logp, teacher_logp)
    return formulas.divergence(student_logp, teacher_logp, formulas.measure("forward_kl"))


def reverse_kl(student_logp: jax.Array, teacher_logp: jax.Array) -> jax.Array:
    """KL(student || teacher) in nats: f32[..., V], f32[..., V] -> f32[...]."""
    _check(student_logp, teacher_logp)
    return formulas.divergence(student_logp, teacher_logp, formulas.measure("reverse_kl"))


def jsd(student_logp: jax.Array, teacher_logp: jax.Array, *, alpha: float) -> jax.Array:
    """(1 - alpha) KL(p || m) + alpha KL(q || m), m = (1 - alpha) p + alpha q, in nats.

    p is the student, q the teacher: f32[..., V], f32[..., V] -> f32[...], at most H(alpha).

    Raises:
        ValueError: alpha is outside [0, 1]; at its ends this is the forward and the reverse KL.
    """
    _check(student_logp, teacher_logp)
    return formulas.divergence(student_logp, teacher_logp, formulas.measure("jsd", alpha))


def _check(student_logp, teacher_logp):
    # Any number of leading dimensions; they are not of the legend, so they are numbered.
    dims = " ".join([f"B{i}" for i in range(max(student_logp.ndim - 1, 0))] + ["V"])
    check_shapes(student_logp=(student_logp, dims), teacher_logp=(teacher_logp, dims))
