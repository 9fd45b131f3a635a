"""Pallas TPU kernels of the divergence, which hold a block of logits at a time, in VMEM only.

Two uses: a scorer, which writes a few floats a token and nothing else; and training where
memory is short, since only the gradients need memory that grows with the vocabulary.
Every pass computes the logits again, so training takes 8 matrix products for a KL and 10 for
a jsd, where `chunked` takes 6 or 4: it is slower than `chunked` and needs less memory.

    sweep            logits of both: everything but a jsd         2 (a scorer: 1)
    second sweep     logits of both: the jsd                      2
    hidden gradient  logits of both, and the product              3
    head gradient    logits of both, and the product              3

Valid tokens are moved to the front first; blocks without any cost neither work nor transfers.
The forward pass saves 8 floats a token for the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, NoReturn, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mopd_jax.kernels.linear_divergence import pallas_tpu_kernels as kernels
from mopd_jax.kernels.linear_divergence import pallas_tpu_launch as launch
from mopd_jax.kernels.linear_divergence import sharded, token_stats
from mopd_jax.kernels.linear_divergence.chunked import Operands
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Output
from mopd_jax.kernels.linear_divergence.partition import partition, put, take
from mopd_jax.kernels.linear_divergence.records import (
    Part,
    Stats,
    TokenLogprob,
    TokenStats,
    without_targets,
)
from mopd_jax.kernels.linear_divergence.tuning import Blocks

_LANES = 128


def differentiable_statistics(
    spec: Spec, blocks: Blocks, student: Output, operands: Operands
) -> Stats:
    """Statistics f32[...], 0 outside the mask; differentiable in the student's arrays.

    As `chunked.differentiable_statistics`, of bf16 and f32 operands, over the full vocabulary.

    Raises:
        ValueError: a call that these kernels cannot compute; names the implementation that can.
    """
    student = _checked(spec, blocks, student, operands)
    if operands.targets is not None:
        return _statistics(spec, blocks, student.states, student.head, operands)
    # The kernels always look for targets, so absent targets become id 0.
    operands = operands._replace(targets=jnp.zeros(operands.mask.shape, jnp.int32))
    return without_targets(_statistics(spec, blocks, student.states, student.head, operands))


def _refuse(why: str, remedy: str = "use implementation='chunked'") -> NoReturn:
    raise ValueError(f"implementation='pallas_tpu' cannot serve {why}; {remedy}")


def _checked(spec: Spec, blocks: Blocks, student: Output, operands: Operands) -> Hidden:
    """The student, of which these kernels make the logits."""
    teacher = operands.teacher
    if not isinstance(student, Hidden):
        _refuse(f"a student given as {type(student).__name__}, only Hidden")
    if teacher is not None and not isinstance(teacher, Hidden):
        _refuse(f"a teacher given as {type(teacher).__name__}, only Hidden")
    if spec.divergence is not None and spec.divergence.support != "full":
        _refuse(f"support={spec.divergence.support!r}, only 'full'")
    arrays = {"student.states": student.states, "student.head": student.head}
    if teacher is not None:
        arrays |= {"teacher.states": teacher.states, "teacher.head": teacher.head}
    for name, array in arrays.items():
        if array.dtype not in (jnp.bfloat16, jnp.float32):
            _refuse(f"{name} of dtype {array.dtype}, only bfloat16 and float32")
        if jax.typeof(array).mat.varying:
            _refuse(
                f"{name} that differs over {sorted(jax.typeof(array).mat.varying)}, axes of a"
                " shard_map around it that checks what differs",
                "pass sharding=HeadSharding(...) in its place, give the shard_map"
                " check_vma=False, or use implementation='chunked'",
            )
    sizes = (blocks.tokens, blocks.vocab, blocks.head_vocab)
    if not blocks.interpret and any(size < 1 or size % _LANES for size in sizes):
        _refuse(f"blocks of {sizes}", f"choose multiples of {_LANES}")
    return student


class _Saved(NamedTuple):
    """Inputs of the backward pass, a number per token in the order of the partition."""

    swept: jax.Array  # f32[ROWS, M'], of the first sweep, finished over all devices
    slopes: jax.Array  # f32[M'], the sum of the divergence's slopes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _statistics(
    spec: Spec, blocks: Blocks, hidden: jax.Array, head: jax.Array, operands: Operands
) -> Stats:
    return _forward(spec, blocks, hidden, head, operands)[0]


def _statistics_forward(
    spec: Spec, blocks: Blocks, hidden: jax.Array, head: jax.Array, operands: Operands
) -> tuple[Stats, Any]:
    stats, saved = _forward(spec, blocks, hidden, head, operands)
    return stats, (hidden, head, operands, saved)


def _statistics_backward(
    spec: Spec, blocks: Blocks, residuals: Any, cotangents: Any
) -> tuple[jax.Array, jax.Array, None]:
    hidden, head, operands, saved = residuals
    local = functools.partial(_gradients, spec, blocks)
    arguments = (hidden, head, operands, saved, cotangents)
    if spec.sharding is None:
        return *local(*arguments), None
    tokens, heads, theirs, kept = _specs(spec, operands)
    grads = sharded.over_mesh(
        local,
        spec.sharding,
        inputs=(tokens, heads, Operands(theirs, tokens, tokens), kept, tokens),
        outputs=(tokens, heads),
    )(*arguments)
    return *grads, None


_statistics.defvjp(_statistics_forward, _statistics_backward)


def _forward(
    spec: Spec, blocks: Blocks, hidden: jax.Array, head: jax.Array, operands: Operands
) -> tuple[Stats, _Saved]:
    local = functools.partial(_sweeps, spec, blocks)
    if spec.sharding is None:
        return local(hidden, head, operands)
    tokens, heads, theirs, kept = _specs(spec, operands)
    return sharded.over_mesh(
        local,
        spec.sharding,
        inputs=(tokens, heads, Operands(theirs, tokens, tokens)),
        outputs=(tokens, kept),
    )(hidden, head, operands)


def _specs(spec: Spec, operands: Operands) -> tuple[Any, Any, Any, Any]:
    """How arrays of tokens, heads, the teacher and the saved statistics lie on the mesh."""
    if spec.sharding is None:
        raise TypeError("no sharding was given")
    tokens: Any  # In records, specs take the places of arrays.
    tokens, heads = sharded.specs(spec.sharding)
    rows: Any = PartitionSpec(None, spec.sharding.tokens)
    kept = _Saved(rows, tokens)
    return tokens, heads, sharded.output_specs(operands.teacher, spec.sharding), kept


def _inputs(
    spec: Spec, blocks: Blocks, hidden: jax.Array, head: jax.Array, operands: Operands
) -> launch.Inputs:
    teacher, mask = cast(Hidden | None, operands.teacher), operands.mask
    targets = cast(jax.Array, operands.targets)
    tokens = min(blocks.tokens, -(-mask.size // _LANES) * _LANES)
    places, live = partition(mask.reshape(-1), tokens)
    part = sharded.vocabulary(head.shape[0], spec)
    here = jnp.clip(spec.vocab_size - part.start, 0, head.shape[0])

    def ordered(states: jax.Array) -> jax.Array:
        return take(states.reshape(mask.size, states.shape[-1]), places)

    def whole(head: jax.Array) -> jax.Array:
        if spec.sharding is None or spec.sharding.embed is None:
            return head
        return jax.lax.all_gather(head, spec.sharding.embed, axis=1, tiled=True)

    matrices = [ordered(hidden), whole(head)]
    if teacher is not None:
        matrices += [ordered(teacher.states), whole(teacher.head)]
    return launch.Inputs(
        counts=jnp.stack([live, here]).astype(jnp.int32),
        matrices=tuple(matrices),
        targets=take(targets.reshape(-1).astype(jnp.int32), places) - part.start,
        places=places,
        tokens=tokens,
        part=part,
    )


def _sweeps(
    spec: Spec, blocks: Blocks, hidden: jax.Array, head: jax.Array, operands: Operands
) -> tuple[Stats, _Saved]:
    """Statistics of one device's tokens, finished over the devices of the vocabulary."""
    inputs = _inputs(spec, blocks, hidden, head, operands)
    targets = inputs.targets[None]
    swept = launch.by_tokens(
        kernels.first_sweep, spec, blocks, inputs, (targets,), rows=kernels.ROWS, name="sweep"
    )
    swept = _merged(swept, inputs.part, spec)
    kind = None if spec.divergence is None else spec.divergence.kind
    value, slopes = swept[kernels.VALUE], jnp.zeros_like(swept[0])
    if spec.divergence is not None and not spec.divergence.merges:
        second = launch.by_tokens(
            *(kernels.second_sweep, spec, blocks, inputs, (swept,)),
            rows=kernels.ROWS,
            name="second_sweep",
        )
        second = sharded.sum_vocabulary(second, inputs.part)
        value, slopes = second[kernels.SUM_VALUES], second[kernels.SUM_SLOPES]
    elif kind is not None:
        # Of p log(p/q) - p + q the slopes to log p sum to p log(p/q), those to log q to q - p.
        slopes = value if kind == "reverse_kl" else slopes
    given = cast(jax.Array, operands.targets)
    known = (given >= 0) & (given < spec.vocab_size)

    def result(values: jax.Array) -> jax.Array:
        flat = put(jnp.zeros(operands.mask.size, values.dtype), inputs.places, values)
        return flat.reshape(operands.mask.shape)

    def of_target(row: int, top: int, rest: int) -> jax.Array:
        logp = jnp.where(known, result(swept[row] - swept[top] - swept[rest]), jnp.nan)
        return jnp.where(operands.mask, logp, 0)

    logp = of_target(kernels.AT_TARGET, kernels.TOP, kernels.REST)
    entropy = result(swept[kernels.ENTROPY])
    saved = _Saved(swept, slopes)
    if kind is None:
        return TokenLogprob(logp, entropy), saved
    at_teacher = of_target(kernels.TEACHER_AT_TARGET, kernels.TEACHER_TOP, kernels.TEACHER_REST)
    return TokenStats(result(value), logp, at_teacher, entropy), saved


def _merged(swept: jax.Array, part: Part, spec: Spec) -> jax.Array:
    """The first sweep's rows over all devices that hold a part of the vocabulary."""
    if part.axis is None:
        return swept
    parts = jax.lax.all_gather(swept, part.axis)  # [parts, ROWS, M']
    rows: dict[int, jax.Array] = {}
    sides = ((kernels.TOP, kernels.REST), (kernels.TEACHER_TOP, kernels.TEACHER_REST))
    lses = []
    for top, rest in sides:
        rows[top] = jnp.max(parts[:, top], axis=0)
        lses.append(parts[:, top] - rows[top][None] + parts[:, rest])
        rows[rest] = jnp.log(jnp.sum(jnp.exp(lses[-1]), axis=0))
    kind = None if spec.divergence is None else spec.divergence.kind
    online: dict[str, jax.Array] = {}
    if spec.divergence is not None and spec.divergence.merges:
        online = {spec.divergence.kind: parts[:, kernels.VALUE]}
    if kind is None:
        lses = lses[:1]
    each = kernels.moments(lses, entropy=parts[:, kernels.ENTROPY], **online)
    each = each._replace(
        reverse_kl=jnp.broadcast_to(each.reverse_kl, each.lse.shape),
        forward_kl=jnp.broadcast_to(each.forward_kl, each.lse.shape),
    )
    apart = [token_stats.Moments(*(x[i] for x in each)) for i in range(len(parts))]
    merged = functools.reduce(token_stats.merge, apart)
    rows[kernels.ENTROPY] = merged.entropy
    rows[kernels.VALUE] = jnp.zeros_like(swept[0])
    for name in online:
        rows[kernels.VALUE] = getattr(merged, name)
    for row in (kernels.AT_TARGET, kernels.TEACHER_AT_TARGET):
        rows[row] = jnp.sum(parts[:, row], axis=0)
    return jnp.stack([rows[row] for row in range(kernels.ROWS)])


def _gradients(
    spec: Spec,
    blocks: Blocks,
    hidden: jax.Array,
    head: jax.Array,
    operands: Operands,
    saved: _Saved,
    cotangents: Any,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of one device's tokens to hidden [..., D] and to its share of the head."""
    inputs = _inputs(spec, blocks, hidden, head, operands)
    part = inputs.part

    def ordered(name: str) -> jax.Array:
        each = getattr(cotangents, name, None)
        if each is None:
            return jnp.zeros_like(saved.slopes)
        return take(each.reshape(-1), inputs.places)

    rows = [saved.swept[row] for row in range(kernels.TOTAL_SLOPE)]
    rows += [saved.slopes, ordered("divergence"), ordered("logp"), ordered("entropy")]
    rows += [jnp.zeros_like(rows[0])] * (kernels.BACKWARD_ROWS - len(rows))
    known = jnp.stack(rows)
    dtype = hidden.dtype if part.axis is None else jnp.float32
    to_hidden = launch.by_tokens(
        *(kernels.hidden_gradient, spec, blocks, inputs, (inputs.targets[:, None], known.T)),
        dtype=dtype,
        name="hidden_gradient",
    )
    to_hidden = sharded.sum_vocabulary(to_hidden, part).astype(hidden.dtype)
    flat = jnp.zeros((operands.mask.size, hidden.shape[-1]), hidden.dtype)
    to_hidden = put(flat, inputs.places, to_hidden).reshape(hidden.shape)
    to_head = launch.head_gradient(spec, blocks, inputs, known, head.dtype)
    if spec.sharding is not None:
        to_head = sharded.scatter(to_head, head, part, spec)
    return to_hidden, to_head
