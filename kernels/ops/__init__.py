"""The public ops: log-probs and divergences straight from hidden states and heads.

Each op checks its arguments while tracing, settles the implementation and calls it. Shapes
follow the legend of `mopd_jax/records.py`; E is the teacher's width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.kernels import dispatch
from mopd_jax.kernels.dispatch import Implementation
from mopd_jax.kernels.linear_divergence import chunked as divergence_chunked
from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_divergence import reference as divergence_reference
from mopd_jax.kernels.linear_divergence.formulas import Divergence
from mopd_jax.kernels.linear_divergence.reference import TokenStats
from mopd_jax.kernels.linear_logprob import chunked as logprob_chunked
from mopd_jax.kernels.linear_logprob import reference as logprob_reference
from mopd_jax.kernels.linear_logprob.reference import TokenLogprob
from mopd_jax.shapes import check_shapes

__all__ = [
    "Divergence",
    "Implementation",
    "TokenLogprob",
    "TokenStats",
    "linear_divergence",
    "linear_logprob",
]


def linear_divergence(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    kind: Divergence = "jsd",
    alpha: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 2048,
    implementation: Implementation | None = None,
) -> TokenStats:
    """Divergence of teacher and student at each token, and what else a loss or a log reads.

    Args:
        student_hidden: [N, T, D], of any floating dtype; at the positions that predict
            `targets`.
        student_head: [V, D].
        teacher_hidden: [N, T, E].
        teacher_head: [V, E].
        targets: i32[N, T], in [0, V) where the mask is true; anything elsewhere.
        mask: bool[N, T]. What stands in the hidden states where it is false, NaN included,
            reaches neither a value nor a gradient.
        kind: "forward_kl" is KL(teacher || student), "reverse_kl" KL(student || teacher),
            "jsd" the generalised Jensen-Shannon divergence.
        alpha: static, the weight of the teacher in a jsd, 0 < alpha < 1; None means 0.5 there,
            and is the only choice for a KL.
        temperature: static, > 0; divides the logits of both.
        chunk_tokens: static, tokens over all devices whose logits exist at once; read by
            "chunked" only.
        implementation: None lets `dispatch.resolve` choose.

    Returns:
        TokenStats of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to
        the student's hidden states and head; the teacher is constant.

    Raises:
        ValueError: shapes, sizes of the vocabularies, dtypes or options that do not fit.
    """
    check_shapes(
        student_hidden=(student_hidden, "N T D"),
        student_head=(student_head, "V D"),
        teacher_hidden=(teacher_hidden, "N T E"),
        teacher_head=(teacher_head, "W E"),
        targets=(targets, "N T"),
        mask=(mask, "N T"),
    )
    if student_head.shape[0] != teacher_head.shape[0]:
        raise ValueError(
            f"student_head has V={student_head.shape[0]} tokens, teacher_head"
            f" V={teacher_head.shape[0]}: a divergence needs one vocabulary; use a teacher with"
            " the student's tokenizer, and if only the padding of the heads differs, cut both"
            " to the tokenizer's size"
        )
    floating = {"student_hidden": student_hidden, "student_head": student_head}
    floating |= {"teacher_hidden": teacher_hidden, "teacher_head": teacher_head}
    _check_dtypes(floating, targets, mask)
    _check_options(temperature, chunk_tokens)
    options = {
        "kind": kind,
        "alpha": formulas.resolve_alpha(kind, alpha),
        "temperature": temperature,
    }
    arrays = (student_hidden, student_head, teacher_hidden, teacher_head, targets, mask)
    run = {
        "reference": divergence_reference.token_stats,
        "chunked": lambda *a, **k: divergence_chunked.token_stats(
            *a, **k, chunk_tokens=chunk_tokens
        ),
    }[dispatch.resolve(implementation, jax.default_backend())]
    return run(*arrays, **options)


def linear_logprob(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 2048,
    implementation: Implementation | None = None,
) -> TokenLogprob:
    """Log-prob of one token per position, and the entropy there.

    Args:
        hidden: [N, T, D], of any floating dtype; at the positions that predict `targets`.
        head: [V, D].
        targets: i32[N, T], in [0, V) where the mask is true; anything elsewhere.
        mask: bool[N, T]; as in `linear_divergence`.
        temperature: static, > 0; divides the logits.
        chunk_tokens: as in `linear_divergence`.
        implementation: None lets `dispatch.resolve` choose.

    Returns:
        TokenLogprob of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to
        hidden and head.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    check_shapes(
        hidden=(hidden, "N T D"),
        head=(head, "V D"),
        targets=(targets, "N T"),
        mask=(mask, "N T"),
    )
    _check_dtypes({"hidden": hidden, "head": head}, targets, mask)
    _check_options(temperature, chunk_tokens)
    arrays = (hidden, head, targets, mask)
    run = {
        "reference": logprob_reference.token_logprob,
        "chunked": lambda *a, **k: logprob_chunked.token_logprob(
            *a, **k, chunk_tokens=chunk_tokens
        ),
    }[dispatch.resolve(implementation, jax.default_backend())]
    return run(*arrays, temperature=temperature)


def _check_dtypes(floating, targets, mask):
    for name, array in floating.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a floating dtype, got {array.dtype}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: expected an integer dtype, got {targets.dtype}")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected bool, got {mask.dtype}; write mask != 0")


def _check_options(temperature, chunk_tokens):
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
