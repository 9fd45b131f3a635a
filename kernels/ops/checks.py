"""Arguments of the ops, checked while tracing: each error names the argument and the remedy."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels import dispatch
from mopd_jax.kernels.linear_divergence import formulas, options
from mopd_jax.kernels.linear_divergence.options import (
    HeadSharding,
    HiddenTeacher,
    Spec,
    StoredTeacher,
    Support,
)
from mopd_jax.shapes import check_shapes

SoftCap = float | None | tuple[float | None, float | None]


class Options(NamedTuple):
    """The options of a call as given; `linear_divergence` says what they mean."""

    kind: formulas.Divergence | None
    alpha: float | None
    continuous: bool
    clip: float | None
    support: Support
    temperature: float
    soft_cap: SoftCap
    vocab_size: int | None
    chunk_tokens: int | None


_STATIC = {
    "alpha": (float, int),
    "clip": (float, int),
    "temperature": (float, int),
    "vocab_size": (int,),
    "chunk_tokens": (int,),
}


def make_spec(hidden, head, operands, given: Options, sharding, implementation) -> Spec:
    """The options settled and checked against the arrays.

    Raises:
        ValueError: shapes, dtypes, sizes or options that do not fit.
    """
    teacher, targets, mask = operands
    for name, kinds in _STATIC.items():
        value = getattr(given, name)
        unset = value is None and name != "temperature"
        if not unset and not isinstance(value, kinds):
            raise ValueError(
                f"{name}={value!r} is a {type(value).__name__}; it is static, give a Python"
                f" {kinds[0].__name__}, not an array and nothing traced"
            )
    _check_arrays(hidden, head, teacher, targets, mask)
    if (teacher is None) != (given.kind is None):
        raise ValueError(
            f"kind={given.kind!r} with teacher={type(teacher).__name__}: a divergence needs"
            " both, a loss of log-probs neither"
        )
    measure = None
    if teacher is not None:
        measure = formulas.measure(
            given.kind, given.alpha, continuous=given.continuous, clip=given.clip
        )
        stored = teacher if isinstance(teacher, StoredTeacher) else None
        options.check_support(given.support, measure, stored)
    elif isinstance(given.soft_cap, tuple | list):
        raise ValueError(f"soft_cap={given.soft_cap!r}: one model has one cap, not a pair")
    if not 0 < given.temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {given.temperature}")
    student_cap, teacher_cap = options.soft_caps(given.soft_cap)
    sizes = _vocab_sizes(hidden, head, teacher)
    vocab_size = _vocab_size(sizes, given.vocab_size, sharding)
    k = getattr(given.support, "k", 1)
    if k > vocab_size:
        raise ValueError(f"support k={k} is more than the vocabulary of {vocab_size}")
    if sharding is not None:
        _check_sharding(sharding, mask, head, implementation)
    chunk_tokens = given.chunk_tokens
    if chunk_tokens is None:
        tokens = mask.size // (1 if sharding is None else _parts(sharding, sharding.tokens))
        chunk_tokens = dispatch.default_chunk_tokens(jax.default_backend(), vocab_size, tokens)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return Spec(
        measure=measure,
        support=given.support,
        temperature=float(given.temperature),
        student_cap=student_cap,
        teacher_cap=teacher_cap,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        sharding=sharding,
    )


def check_weights(weights, aux, mask) -> None:
    """Raises ValueError where weights or aux are not one for each token of `mask`."""
    lead = _lead(mask.ndim)
    check_shapes(mask=(mask, lead), weights=(weights, lead))
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights: expected a floating dtype, got {weights.dtype}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if leaf.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"aux{jax.tree_util.keystr(path)}: expected {mask.shape} first, as the mask"
                f" has, got shape {leaf.shape}; repeat a value that is the same for all tokens"
            )


def _check_arrays(hidden, head, teacher, targets, mask):
    lead = _lead(hidden.ndim - 1)
    dims = {"student_hidden": (hidden, f"{lead} D"), "student_head": (head, "V D")}
    floating = {"student_hidden": hidden, "student_head": head}
    if head is None:
        floating = {"student_logits": hidden, "teacher_logits": teacher.hidden}
        dims = {name: (x, f"{lead} V") for name, x in floating.items()}
    elif isinstance(teacher, HiddenTeacher):
        dims |= {"teacher_hidden": (teacher.hidden, f"{lead} E")}
        dims |= {"teacher_head": (teacher.head, "W E")}
        floating |= {"teacher_hidden": teacher.hidden, "teacher_head": teacher.head}
    elif isinstance(teacher, StoredTeacher):
        dims |= {"stored.ids": (teacher.ids, f"{lead} K")}
        dims |= {"stored.logp": (teacher.logp, f"{lead} K")}
        floating |= {"stored.logp": teacher.logp}
        if not jnp.issubdtype(teacher.ids.dtype, jnp.integer):
            raise ValueError(f"stored.ids: expected an integer dtype, got {teacher.ids.dtype}")
    elif teacher is None:
        dims = {name.removeprefix("student_"): what for name, what in dims.items()}
        floating = {name.removeprefix("student_"): what for name, what in floating.items()}
    else:
        raise ValueError(
            f"teacher: expected HiddenTeacher, StoredTeacher or None, got {type(teacher)}"
        )
    check_shapes(**dims, targets=(targets, lead), mask=(mask, lead))
    for name, array in floating.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a floating dtype, got {array.dtype}")
        if array.dtype == jnp.float16:
            raise ValueError(
                f"{name}: float16 ends at 6e-8, where gradients of a mean over tokens lie; give"
                " bfloat16 or float32"
            )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: expected an integer dtype, got {targets.dtype}")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected bool, got {mask.dtype}; write mask != 0")
    if mask.size == 0:
        raise ValueError(f"mask: shape {mask.shape} has no tokens; leave the call out")


def _lead(count: int) -> str:
    """Names of the dimensions of the tokens: those of the legend where there are two."""
    return {1: "M", 2: "N T"}.get(count, " ".join(f"B{i}" for i in range(count)))


def _vocab_sizes(hidden, head, teacher):
    """{argument: rows}; the student's first."""
    if head is None:
        return {"student_logits": hidden.shape[-1]}
    if isinstance(teacher, HiddenTeacher):
        return {"student_head": head.shape[0], "teacher_head": teacher.head.shape[0]}
    return {"head" if teacher is None else "student_head": head.shape[0]}


def _vocab_size(sizes, given, sharding):
    if given is not None:
        for name, size in sizes.items():
            if not 1 <= given <= size:
                raise ValueError(
                    f"vocab_size={given} must be between 1 and the {size} rows of {name}"
                )
    if len(set(sizes.values())) > 1 and (given is None or sharding is not None):
        remedy = "pass vocab_size, the number of rows that are tokens"
        if given is not None:
            remedy = "with sharding, pad or cut the heads to one size"
        raise ValueError(
            f"student_head has V={sizes['student_head']} tokens, teacher_head"
            f" V={sizes['teacher_head']}: a divergence needs one vocabulary. If only the"
            f" padding differs, {remedy}; else use a teacher with the student's tokenizer"
        )
    return next(iter(sizes.values())) if given is None else given


def _mesh(sharding):
    return jax.sharding.get_abstract_mesh() if sharding.mesh is None else sharding.mesh


def _parts(sharding, axes):
    return math.prod(_mesh(sharding).shape[axis] for axis in axes)


def _check_sharding(sharding: HeadSharding, mask, head, implementation):
    if implementation == "reference":
        raise ValueError(
            "sharding is given, but implementation='reference' materialises all logits wherever"
            " the arrays lie; leave out one of the two"
        )
    mesh = _mesh(sharding)
    named = {*sharding.tokens, *filter(None, (sharding.vocab, sharding.embed))}
    if missing := named - set(mesh.axis_names):
        raise ValueError(
            f"sharding names the axes {sorted(missing)}, the mesh has {mesh.axis_names}; pass"
            " HeadSharding(mesh=...) or call under jax.set_mesh"
        )
    for what, size, axes in (
        ("rows of the mask", mask.shape[0], sharding.tokens),
        ("rows of the head", head.shape[0], filter(None, (sharding.vocab,))),
        ("columns of the head", head.shape[1], filter(None, (sharding.embed,))),
    ):
        parts = _parts(sharding, axes)
        if size % parts:
            raise ValueError(
                f"sharding: {size} {what} do not split over {parts} devices; pad them, or"
                " choose another mesh"
            )
