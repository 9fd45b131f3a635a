"""Checks the ops' arguments while tracing; each error names the argument and the remedy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels import dispatch
from mopd_jax.kernels.linear_divergence.chunked import Operands
from mopd_jax.kernels.linear_divergence.divergence import Divergence, check_scalar, settled
from mopd_jax.kernels.linear_divergence.logits import columns
from mopd_jax.kernels.linear_divergence.options import Dials, HeadSharding, Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Logits, Output, Stored
from mopd_jax.shapes import check_shapes


class Options(NamedTuple):
    """The options of a call as given; `linear_divergence` says what they mean."""

    divergence: Divergence | None = None
    temperature: float | jax.Array = 1.0
    vocab_size: int | None = None
    chunk_tokens: int | None = None
    sharding: HeadSharding | None = None
    implementation: Any = None


class Call(NamedTuple):
    """A call of an op, its arguments arrays and its options settled."""

    spec: Spec
    student: Output
    operands: Operands


def make_call(
    student: Output,
    teacher: Any,
    targets: jax.Array | None,
    mask: jax.Array,
    given: Options,
    *,
    name: str = "student",
    constant: bool = False,
) -> Call:
    """The options of a call settled and checked against its arrays.

    Args:
        name: of the argument `student`; an op of one model calls it "model".
        constant: no gradient is wanted of the student, so that it may be float16.

    Raises:
        ValueError: shapes, dtypes, sizes or options that do not fit.
    """
    student, teacher, targets, mask = _arrays((student, teacher, targets, mask))
    _check_kinds(student, teacher, targets, mask, given.divergence, name)
    _check_arrays(student, teacher, targets, mask, name, constant=constant)
    for option in ("vocab_size", "chunk_tokens"):
        _check_int(option, getattr(given, option))
    divergence, alpha = _divergence(given.divergence, teacher)
    _check_targets(divergence, targets)
    temperature, heat = _temperature(given.temperature)
    vocab_size = _vocab_size(student, teacher, given.vocab_size, given.sharding, name)
    if divergence is not None and (divergence.chosen or 1) > vocab_size:
        raise ValueError(
            f"divergence top_k={divergence.chosen} is more than the vocabulary of"
            f" {vocab_size} tokens; choose fewer, or support='full'"
        )
    if given.sharding is not None:
        _check_sharding(given.sharding, mask, student, given.implementation)
    check_unsharded(
        given.sharding,
        given.implementation,
        **{name: student, "teacher": teacher, "targets": targets, "mask": mask},
    )
    spec = Spec(
        divergence=divergence,
        temperature=temperature,
        student_cap=getattr(student, "soft_cap", None),
        teacher_cap=getattr(teacher, "soft_cap", None),
        vocab_size=vocab_size,
        chunk_tokens=_chunk_tokens(given, mask, vocab_size),
        sharding=given.sharding,
    )
    return Call(spec, student, Operands(teacher, targets, mask, Dials(alpha, heat)))


def check_weights(weights: jax.Array, aux: Any, mask: jax.Array) -> None:
    """Raises ValueError unless weights and aux have one entry for each token of `mask`."""
    check_by_token(mask, weights=weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights: expected a floating dtype, got {weights.dtype}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if leaf.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"aux{jax.tree_util.keystr(path)}: expected {mask.shape} first, as the mask"
                f" has, got shape {leaf.shape}; repeat a value that is the same for all tokens"
            )


def check_by_token(mask: jax.Array, **arrays: jax.Array) -> None:
    """Raises ValueError, with the array's name, unless it has the mask's shape."""
    lead = _lead(mask.ndim)
    check_shapes(mask=(mask, lead), **{name: (x, lead) for name, x in arrays.items()})


def _arrays(tree: Any) -> Any:
    """Arguments as arrays; nested lists of numbers are converted."""
    return jax.tree.map(jnp.asarray, tree, is_leaf=lambda x: isinstance(x, list))


def _check_kinds(
    student: Any, teacher: Any, targets: Any, mask: Any, divergence: Any, name: str
) -> None:
    """Checks the type of each argument, a record or an array, before any is read."""
    if not isinstance(student, Output):
        raise ValueError(
            f"{name}: expected Hidden(states, head) or Logits(values), got {_kind(student)};"
            " a model's output is one argument"
        )
    if teacher is not None and not isinstance(teacher, Hidden | Logits | Stored):
        raise ValueError(
            "teacher: expected Hidden(states, head), Logits(values) or Stored(ids, logp), got"
            f" {_kind(teacher)}"
        )
    if divergence is not None and not isinstance(divergence, Divergence):
        raise ValueError(
            f"divergence={divergence!r} is a {type(divergence).__name__}; give a"
            " Divergence(kind=..., alpha=..., support=...)"
        )
    if (teacher is None) != (divergence is None):
        raise ValueError(
            f"divergence={divergence!r} with teacher={type(teacher).__name__}: a divergence"
            " needs both, a loss of log-probs neither"
        )
    for what, value in {"targets": targets, "mask": mask}.items():
        if isinstance(value, Hidden | Logits | Stored) or (what == "mask" and value is None):
            raise ValueError(f"{what}: expected an array, got {_kind(value)}")


def _kind(value: Any) -> str:
    """Describes an argument for an error message, traced or not."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"


def _check_arrays(
    student: Output, teacher: Any, targets: Any, mask: jax.Array, name: str, *, constant: bool
) -> None:
    mine, theirs = _named(student, name), _named(teacher, "teacher")
    lead = _lead(next(iter(mine.values())).ndim - 1)
    letters = {"states": f"{lead} D", "head": "V D", "values": f"{lead} V"}
    letters |= {"ids": f"{lead} K", "logp": f"{lead} K"}
    dims = {key: (x, letters[key.split(".")[1]]) for key, x in mine.items()}
    # The teacher's own width and number of columns; `_vocab_size` compares the latter.
    other = {"D": "E", "V": "W"}
    for key, x in theirs.items():
        own = " ".join(other.get(d, d) for d in letters[key.split(".")[1]].split())
        dims[key] = (x, own)
    if targets is not None:
        dims["targets"] = (targets, lead)
    check_shapes(**dims, mask=(mask, lead))
    for key, x in (mine | theirs).items():
        _check_dtype(key, x, constant=constant or key in theirs)
    if targets is not None and not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets: expected an integer dtype, got {targets.dtype}")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask: expected bool, got {mask.dtype}; write mask != 0")
    if mask.size == 0:
        raise ValueError(f"mask: shape {mask.shape} has no tokens; leave the call out")


def _named(output: Any, name: str) -> dict[str, jax.Array]:
    """{"student.states": array, ...} of an output's arrays."""
    if output is None:
        return {}
    fields = ((f.name, getattr(output, f.name)) for f in dataclasses.fields(output))
    return {f"{name}.{key}": x for key, x in fields if key != "soft_cap"}


def _check_dtype(name: str, x: jax.Array, *, constant: bool) -> None:
    if name.endswith(".ids"):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"{name}: expected an integer dtype, got {x.dtype}")
        return
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating dtype, got {x.dtype}")
    if x.dtype == jnp.float16 and not constant:
        raise ValueError(
            f"{name}: float16 ends at 6e-8, where gradients of a mean over tokens lie; give"
            " bfloat16 or float32. A teacher, which has no gradient, may be float16"
        )


def _lead(count: int) -> str:
    """Names of the dimensions of the tokens: those of the legend where there are two."""
    return {1: "M", 2: "N T"}.get(count, " ".join(f"B{i}" for i in range(count)))


def _check_int(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, int):
        raise ValueError(
            f"{name}={value!r} is a {type(value).__name__}; it is static, give a Python int,"
            " not an array and nothing traced"
        )


def _divergence(given: Any, teacher: Any) -> tuple[Divergence | None, jax.Array | None]:
    """The divergence with its static alpha settled, or without one and the array that it is."""
    if given is None:
        return None, None
    if isinstance(teacher, Stored):
        stored = teacher.ids.shape[-1]
        if given.support not in ("full", "teacher") or (given.top_k or stored) != stored:
            raise ValueError(
                f"divergence support={given.support!r}, top_k={given.top_k}: a Stored teacher"
                f" has only its own {stored} tokens; leave support='full' or say 'teacher',"
                f" and leave top_k=None"
            )
        given = dataclasses.replace(given, support="teacher", top_k=stored)
    divergence = settled(given)
    alpha = divergence.alpha
    if alpha is None or isinstance(alpha, float | int):
        return divergence, None
    return dataclasses.replace(divergence, alpha=None), jnp.asarray(alpha)


def _check_targets(divergence: Divergence | None, targets: Any) -> None:
    if targets is not None:
        return
    if divergence is None:
        raise ValueError("targets: a log-prob is that of a token; give targets")
    if divergence.support == "sampled":
        raise ValueError(
            "targets: divergence support='sampled' reads the sampled tokens; give targets"
        )


def _temperature(given: Any) -> tuple[float, jax.Array | None]:
    """The static temperature, and the array that replaces it if the caller passed one."""
    check_scalar("temperature", given)
    if not isinstance(given, float | int):
        return 1.0, jnp.asarray(given)
    if not 0 < given < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {given}")
    return float(given), None


def _vocab_size(
    student: Output, teacher: Any, given: int | None, sharding: Any, name: str
) -> int:
    """How many columns are tokens: one rule for every op and every kind of output.

    Columns from `given` on are padding; the two sides may have different amounts of it.
    """
    sizes = {_columns_name(student, name): columns(student)}
    if isinstance(teacher, Hidden | Logits):
        sizes[_columns_name(teacher, "teacher")] = columns(teacher)
    if given is not None:
        for key, size in sizes.items():
            if not 1 <= given <= size:
                raise ValueError(
                    f"vocab_size={given} must be between 1 and the {size} columns of {key}"
                )
    if len(set(sizes.values())) > 1 and (given is None or sharding is not None):
        remedy = "pass vocab_size, the number of columns that are tokens"
        if given is not None:
            remedy = "with sharding, pad or cut the outputs to one size"
        shown = ", ".join(f"{key} has V={size}" for key, size in sizes.items())
        raise ValueError(
            f"{shown}: a divergence needs one vocabulary. If only the padding differs,"
            f" {remedy}; else use a teacher with the student's tokenizer"
        )
    return next(iter(sizes.values())) if given is None else given


def _columns_name(output: Output, name: str) -> str:
    return f"{name}.head" if isinstance(output, Hidden) else f"{name}.values"


def _chunk_tokens(given: Options, mask: jax.Array, vocab_size: int) -> int:
    if given.chunk_tokens is None:
        sharding = given.sharding
        tokens = mask.size // (1 if sharding is None else _parts(sharding, sharding.tokens))
        return dispatch.default_chunk_tokens(jax.default_backend(), vocab_size, tokens)
    if given.chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {given.chunk_tokens}")
    return given.chunk_tokens


def check_unsharded(sharding: Any, implementation: Any, **arrays: Any) -> None:
    """Refuses arrays split over explicit mesh axes, unless `sharding` says how to split them.

    `reference` takes them as JAX itself does: all of a call alike.

    Raises:
        ValueError: with the argument's name.
    """
    if sharding is not None or implementation == "reference":
        return
    for path, x in jax.tree_util.tree_leaves_with_path(arrays):
        lies = jax.typeof(x).sharding
        kinds = dict(zip(lies.mesh.axis_names, lies.mesh.axis_types, strict=True))
        named = [axis for part in lies.spec for axis in _axes_of(part)]
        if any(kinds.get(axis) == jax.sharding.AxisType.Explicit for axis in named):
            raise ValueError(
                f"{path[0].key}{jax.tree_util.keystr(path[1:])} lies as {lies.spec} on a"
                " mesh of explicit axes, and sharding is None; pass"
                " sharding=HeadSharding(tokens=..., vocab=..., embed=...), which names the axes"
                " of tokens and heads"
            )


def _axes_of(part: Any) -> tuple[str, ...]:
    if part is None:
        return ()
    return part if isinstance(part, tuple) else (part,)


def _mesh(sharding: HeadSharding) -> Any:
    return jax.sharding.get_abstract_mesh() if sharding.mesh is None else sharding.mesh


def _parts(sharding: HeadSharding, axes: Any) -> int:
    return math.prod(_mesh(sharding).shape[axis] for axis in axes)


def _check_sharding(
    sharding: HeadSharding, mask: jax.Array, student: Output, implementation: Any
) -> None:
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
    sizes = [
        ("rows of the mask", mask.shape[0], sharding.tokens),
        ("columns of the vocabulary", columns(student), filter(None, (sharding.vocab,))),
    ]
    if isinstance(student, Hidden):
        width = student.head.shape[1]
        sizes.append(("columns of the head", width, filter(None, (sharding.embed,))))
    for what, size, axes in sizes:
        parts = _parts(sharding, axes)
        if size % parts:
            raise ValueError(
                f"sharding: {size} {what} do not split over {parts} devices; pad them, or"
                " choose another mesh"
            )
