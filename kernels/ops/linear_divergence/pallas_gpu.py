"""Kernels for NVIDIA GPUs between the matrix products of a chunk: one program a token.

XLA makes several passes over the logits of a chunk, each a trip to memory. Here a program walks
along the logits of its tokens, a block of the vocabulary at a time, and keeps what it found in
registers: once for log-sums, entropy and a KL, once more for a jsd, which needs the log-sums
first, and once to write the gradient. `statistics` says what is computed, `pallas_gpu_kernels`
in which order.

Where the loss is given beforehand and its `aux` is one number per token, it is differentiated
inside the kernel, between the walks (`RowKernels.losses`): one launch a chunk, and the gradient
of the logits is written in the dtype of the products that follow, never in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mopd_jax.kernels.linear_divergence import pallas_gpu_kernels
from mopd_jax.kernels.linear_divergence.chunked import is_floating
from mopd_jax.kernels.linear_divergence.options import Spec, StoredTeacher
from mopd_jax.kernels.linear_divergence.statistics import (
    WHOLE,
    Part,
    Pull,
    TokenLogprob,
    TokenStats,
)

# (statistics f32[R], aux of the same tokens, weights f32[R]) -> losses f32[R] and the gradients
# of their weighted sum: to the statistics, a record, and to the floating leaves of aux, a list.
Weighted = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any, list[jax.Array]]]


@dataclasses.dataclass(frozen=True)
class RowKernels:
    """Statistics of a chunk's tokens from their logits, and gradients, by Triton kernels.

    Called as `statistics.token_statistics` is. Hashable, and equal where its fields are.
    """

    block: int = 2048  # Columns that a program holds at once, a power of two.
    rows: int = 1  # Tokens of a program, a power of two.
    warps: int = 8
    stages: int = 2
    interpret: bool = False  # By XLA operations, on any platform: for tests.

    def __post_init__(self):
        for name in ("block", "rows", "warps"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise ValueError(f"RowKernels: {name} must be a power of two, got {size}")

    def __call__(
        self,
        logits: jax.Array,
        teacher: jax.Array | None,
        targets: jax.Array,
        *,
        spec: Spec,
        part: Part = WHOLE,
    ) -> tuple[TokenStats | TokenLogprob, Pull]:
        """Statistics of C tokens, and the way back to the logits, a launch each.

        Args:
            logits: f32[C, V], the student's.
            teacher: f32[C, V] logits, or None.
            targets: i32[C]; the log-prob of one outside [0, V) is NaN.
            spec: with measure None exactly where the teacher is None.
            part: must be all of the vocabulary.

        Returns:
            TokenStats of f32[C], or TokenLogprob without a teacher; and `pull`, which gives
            f32[C, V].

        Raises:
            ValueError: `spec`, `part` or a dtype is one that these kernels cannot serve.
        """
        check(logits, teacher, spec, part)
        targets = _known(targets, logits)
        inputs = (logits, teacher, targets)
        each = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        taught = None if teacher is None else each
        outputs = (_record(teacher, each), pallas_gpu_kernels.Row(*[each] * 3, *[taught] * 3))
        stats, row = self._call(pallas_gpu_kernels.statistics_kernel, spec, inputs, outputs)

        def pull(to_divergence, to_logp, to_entropy):
            cotangents = pallas_gpu_kernels.Cotangents(to_logp, to_entropy, to_divergence)
            output = jax.ShapeDtypeStruct(logits.shape, jnp.float32)
            known = (*inputs, row, cotangents)
            return self._call(
                pallas_gpu_kernels.gradient_kernel, spec, known, output, by_block=True
            )

        return stats, pull

    def fuses(self, aux: Any) -> bool:
        """Whether `losses` serves this aux [C, ...]: exactly if no leaf has another dimension.

        Otherwise statistics and gradient are a launch each, with the loss between them, and the
        gradient of the logits exists in float32.
        """
        return all(leaf.ndim == 1 for leaf in jax.tree.leaves(aux))

    def losses(
        self,
        weighted: Weighted,
        logits: jax.Array,
        teacher: jax.Array | None,
        targets: jax.Array,
        weights: jax.Array,
        aux: Any,
        valid: jax.Array,
        *,
        spec: Spec,
        dtype: jnp.dtype,
        part: Part = WHOLE,
    ) -> tuple[TokenStats | TokenLogprob, jax.Array, list[jax.Array], jax.Array]:
        """Statistics, losses and all gradients of C tokens in one launch.

        Args:
            weighted: is traced into the kernel, on `rows` tokens: what Triton does not know
                (sorting, gathering, products, arrays closed over) fails to compile there.
            logits, teacher, targets, spec, part: as in a call.
            weights: f32[C].
            aux: pytree of [C], as `fuses` asks.
            valid: bool[C]; where false, the loss is no loss and has no gradient to the logits.
            dtype: of the gradient of the logits.

        Returns:
            The statistics f32[C], the losses f32[C], the gradients to the floating leaves of
            aux [C], and that to the logits [C, V].

        Raises:
            ValueError: as a call.
        """
        check(logits, teacher, spec, part)
        targets = _known(targets, logits)
        leaves, tree = jax.tree.flatten(aux)
        each = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        outputs = (
            _record(teacher, each),
            each,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves if is_floating(x)],
            jax.ShapeDtypeStruct(logits.shape, dtype),
        )
        # Bits are no type of memory.
        stored = [x.astype(jnp.int32) if x.dtype == jnp.bool_ else x for x in leaves]

        def restored(values):
            pairs = zip(leaves, values, strict=True)
            return tree.unflatten([x.astype(like.dtype) for like, x in pairs])

        kernel = functools.partial(
            pallas_gpu_kernels.loss_kernel, weighted=weighted, restored=restored
        )
        inputs = (logits, teacher, targets, weights, stored, valid.astype(jnp.int32))
        return self._call(kernel, spec, inputs, outputs)

    def _call(self, kernel, spec, inputs, outputs, *, by_block=False):
        """A program for each `rows` tokens; with `by_block`, for each block of theirs."""
        tokens, columns = inputs[0].shape
        grid = (pl.cdiv(tokens, self.rows),)
        if by_block:
            grid = (*grid, pl.cdiv(columns, self.block))

        def body(*refs):
            first = pl.program_id(0) * self.rows
            kernel(
                pallas_gpu_kernels.Window(tokens, columns, self.rows, self.block, first),
                spec,
                *refs,
            )

        # What profiles and compiled programs call it.
        body.__name__ = getattr(kernel, "func", kernel).__name__
        return pl.pallas_call(
            body,
            grid=grid,
            out_shape=_varying(outputs, inputs),
            compiler_params=plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages),
            interpret=self.interpret,
        )(*inputs)


def check(
    logits: jax.Array, teacher: jax.Array | StoredTeacher | None, spec: Spec, part: Part
) -> None:
    """Raises ValueError, with the remedy, for what these kernels cannot serve."""
    why = None
    if isinstance(teacher, StoredTeacher):
        why = "a stored teacher, its kernels read the teacher's logits"
    elif spec.support != "full":
        why = f"support={spec.support!r}, its kernels sum over the whole vocabulary"
    elif part.axis is not None:
        why = f"a vocabulary split over the mesh axis {part.axis!r}, its kernels see whole rows"
    elif part.padded:
        why = "padded columns, its kernels read all of a row"
    elif logits.dtype != jnp.float32 or getattr(teacher, "dtype", jnp.float32) != jnp.float32:
        why = f"logits of {logits.dtype}, its kernels compute in float32"
    if why is not None:
        raise ValueError(
            f"implementation='pallas_gpu' cannot serve {why}; use implementation='chunked'"
        )


def _varying(outputs, inputs):
    """Shapes of outputs, typed as differing between devices inside a caller's `shard_map`."""

    def filled(inputs):
        first = sum(x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(inputs))
        return jax.tree.map(lambda x: jnp.full(x.shape, first, x.dtype), outputs)

    return jax.eval_shape(filled, inputs)


def _known(targets, logits):
    """Targets i32[C], -1 for those that are no column."""
    known = (targets >= 0) & (targets < logits.shape[1])
    return jnp.where(known, targets, -1).astype(jnp.int32)


def _record(teacher, each):
    return TokenLogprob(each, each) if teacher is None else TokenStats(each, each, each, each)
