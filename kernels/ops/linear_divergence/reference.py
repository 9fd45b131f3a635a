"""Divergence of student and teacher at each token, with both logits materialised.

What every implementation must equal, and what the chunked one computes inside a chunk.
"""

from __future__ import annotations

import dataclasses

import jax

from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_logprob.reference import at_targets, log_probs, under_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """Per-token statistics, both models at one temperature; exactly 0 outside the mask."""

    divergence: jax.Array  # f32[N, T] nats
    logp: jax.Array  # f32[N, T] nats, the student's, of the target token
    teacher_logp: jax.Array  # f32[N, T] nats, the teacher's, of the target token
    entropy: jax.Array  # f32[N, T] nats, of the student


def token_stats(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    kind: formulas.Divergence,
    alpha: float | None,
    temperature: float,
) -> TokenStats:
    """Divergence of softmax(hidden head^T / temperature) of student and teacher, per token.

    Args:
        student_hidden: [N, T, D], of any floating dtype.
        student_head: [V, D].
        teacher_hidden: [N, T, E].
        teacher_head: [V, E].
        targets: i32[N, T], in [0, V) where the mask is true; anything elsewhere.
        mask: bool[N, T]. What stands in the hidden states where it is false, NaN included,
            reaches neither a value nor a gradient.
        kind: which divergence, see `formulas`.
        alpha: the weight of the teacher in a jsd, None for a KL.
        temperature: static, > 0; divides the logits of both.

    Returns:
        TokenStats of f32[N, T]; f64 if an operand is. Gradients go to the student's hidden
        states and head; the teacher is constant. A target outside [0, V) under the mask has
        the log-prob NaN.
    """
    teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, teacher_head))
    student = log_probs(student_hidden, student_head, mask, temperature=temperature)
    teacher = log_probs(teacher_hidden, teacher_head, mask, temperature=temperature)
    each = formulas.divergence(student, teacher, kind=kind, alpha=alpha)
    return TokenStats(
        divergence=under_mask(mask, each),
        logp=under_mask(mask, at_targets(student, targets)),
        teacher_logp=under_mask(mask, at_targets(teacher, targets)),
        entropy=under_mask(mask, formulas.entropy(student)),
    )
