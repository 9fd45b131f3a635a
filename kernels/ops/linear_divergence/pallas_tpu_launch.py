"""Launches the kernels of `pallas_tpu`: their grids, blocks, and which blocks are live."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mopd_jax.kernels.linear_divergence import pallas_tpu_kernels as kernels
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.records import Part
from mopd_jax.kernels.linear_divergence.tuning import Blocks


class Inputs(NamedTuple):
    """One device's share as the kernels take it; M' tokens, the valid ones in front."""

    counts: jax.Array  # i32[2]: live blocks of tokens, columns of the vocabulary that exist
    matrices: tuple[jax.Array, ...]  # hidden [M', D], head [V, D], and the teacher's two
    targets: jax.Array  # i32[M'], ids of this device's columns
    places: jax.Array  # i32[M']: the token's index, out of range where there is none
    tokens: int  # a block
    part: Part


def by_tokens(
    kernel: Callable[..., None],
    spec: Spec,
    blocks: Blocks,
    inputs: Inputs,
    extra: tuple[jax.Array, ...],
    *,
    name: str,
    rows: int | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Launches a kernel that holds a block of tokens while the vocabulary passes.

    `extra` are numbers per token, tokens last where the result has `rows` of them, and first
    where it is [M', D].
    """
    hidden, head = inputs.matrices[:2]
    tokens, vocab = inputs.tokens, blocks.vocab
    steps = hidden.shape[0] // tokens
    # For blocks that are not computed the maps name one already in VMEM, so nothing is
    # transferred.
    grid = (steps, pl.cdiv(head.shape[0], vocab))

    def live(i: Any, counts: Any) -> jax.Array:
        return jnp.minimum(kernels.place(i, steps), jnp.maximum(counts[0] - 1, 0))

    def column(i: Any, j: Any, counts: Any) -> jax.Array:
        last = _last(counts[1], vocab)
        return jnp.where(kernels.place(i, steps) < counts[0], jnp.minimum(j, last), last)

    in_specs = []
    for index, matrix in enumerate(inputs.matrices):
        if index % 2:
            block = (vocab, matrix.shape[1])
            in_specs.append(pl.BlockSpec(block, lambda i, j, c: (column(i, j, c), 0)))
        else:
            block = (tokens, matrix.shape[1])
            in_specs.append(pl.BlockSpec(block, lambda i, j, c: (live(i, c), 0)))
    if rows is not None:
        in_specs += [
            pl.BlockSpec((x.shape[0], tokens), lambda i, j, c: (0, live(i, c))) for x in extra
        ]
        shape: tuple[int, ...] = (rows, hidden.shape[0])
        out = pl.BlockSpec((rows, tokens), lambda i, j, c: (0, kernels.place(i, steps)))
    else:
        in_specs += [
            pl.BlockSpec((tokens, x.shape[1]), lambda i, j, c: (live(i, c), 0)) for x in extra
        ]
        shape = hidden.shape
        out = pl.BlockSpec((tokens, shape[1]), lambda i, j, c: (kernels.place(i, steps), 0))
    scratch = [] if rows is not None else [pltpu.VMEM((tokens, shape[1]), jnp.float32)]
    return _launch(
        *(kernel, spec, blocks, inputs, extra),
        grid=grid,
        in_specs=in_specs,
        out_specs=out,
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        scratch=scratch,
        products=0 if rows is not None else 1,
        reads=steps * sum(map(_bytes, inputs.matrices[1::2])),
        name=name,
    )


def head_gradient(
    spec: Spec, blocks: Blocks, inputs: Inputs, known: jax.Array, dtype: Any
) -> jax.Array:
    """[V, D]: holds a block of the head while the tokens pass."""
    hidden, head = inputs.matrices[:2]
    tokens, vocab = inputs.tokens, blocks.head_vocab
    steps = hidden.shape[0] // tokens
    if spec.sharding is not None:
        dtype = jnp.float32  # It is yet to be summed over devices.
    grid = (pl.cdiv(head.shape[0], vocab), steps)

    def column(j: Any, counts: Any) -> jax.Array:
        return jnp.minimum(j, _last(counts[1], vocab))

    def live(j: Any, i: Any, counts: Any) -> jax.Array:
        last = jnp.maximum(counts[0] - 1, 0)
        return jnp.where(j * vocab < counts[1], jnp.minimum(i, last), last)

    in_specs = []
    for index, matrix in enumerate(inputs.matrices):
        if index % 2:
            block = (vocab, matrix.shape[1])
            in_specs.append(pl.BlockSpec(block, lambda j, i, c: (column(j, c), 0)))
        else:
            block = (tokens, matrix.shape[1])
            in_specs.append(pl.BlockSpec(block, lambda j, i, c: (live(j, i, c), 0)))
    extra = (inputs.targets[None], known)
    in_specs += [
        pl.BlockSpec((x.shape[0], tokens), lambda j, i, c: (0, live(j, i, c))) for x in extra
    ]
    return _launch(
        *(kernels.head_gradient, spec, blocks, inputs, extra),
        grid=grid,
        in_specs=in_specs,
        out_specs=pl.BlockSpec((vocab, head.shape[1]), lambda j, i, c: (j, 0)),
        out_shape=jax.ShapeDtypeStruct(head.shape, dtype),
        scratch=[pltpu.VMEM((vocab, head.shape[1]), jnp.float32)],
        products=1,
        reads=grid[0] * sum(map(_bytes, inputs.matrices[::2])),
        name="head_gradient",
    )


def _launch(
    kernel: Callable[..., None],
    spec: Spec,
    blocks: Blocks,
    inputs: Inputs,
    extra: tuple[jax.Array, ...],
    *,
    grid: tuple[int, ...],
    scratch: Sequence[Any],
    products: int,
    reads: int,
    name: str,
    **options: Any,
) -> jax.Array:
    """One `pallas_call`: `products` besides the logits, `reads` bytes streamed past."""
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=grid,
        in_specs=options.pop("in_specs"),
        out_specs=options.pop("out_specs"),
        scratch_shapes=scratch,
    )
    hidden, head = inputs.matrices[:2]
    logits = hidden.shape[0] * head.shape[0]
    width = sum(x.shape[1] for x in inputs.matrices[::2]) + products * hidden.shape[1]
    held = sum(map(_bytes, (*inputs.matrices, *extra, options["out_shape"])))
    cost = pl.CostEstimate(
        flops=2 * logits * width,
        transcendentals=3 * logits,
        bytes_accessed=reads + held,
    )
    return pl.pallas_call(
        functools.partial(kernel, spec=spec),
        grid_spec=grid_spec,
        interpret=blocks.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=blocks.vmem_limit_bytes,
        ),
        cost_estimate=cost,
        name=f"linear_divergence_{name}",
        **options,
    )(inputs.counts, *inputs.matrices, *extra)


def _last(size: jax.Array, block: int) -> jax.Array:
    """Index of the last block that has a part of `size` columns; 0 of none."""
    return jax.lax.div(jnp.maximum(size - 1, 0), jnp.int32(block))


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize
