"""`token_stats` a few columns at a time, so that no [N, T, V] exists in either direction."""

from __future__ import annotations

import jax

from mopd_jax.kernels.linear_divergence import formulas, reference
from mopd_jax.kernels.linear_logprob.chunked import accumulator, over_chunks


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
    chunk_tokens: int,
) -> reference.TokenStats:
    """As `reference.token_stats`, with the logits of about `chunk_tokens` tokens at once.

    The two models' logits of a chunk are held together; `over_chunks` says what a chunk is.
    """
    restore = student_head.dtype
    student_head = accumulator(student_head)

    def stats(student_hidden, teacher_hidden, targets, mask):
        return reference.token_stats(
            student_hidden,
            student_head.astype(restore),
            teacher_hidden,
            teacher_head,
            targets,
            mask,
            kind=kind,
            alpha=alpha,
            temperature=temperature,
        )

    arrays = (student_hidden, teacher_hidden, targets, mask)
    return over_chunks(stats, arrays, chunk_tokens=chunk_tokens)
