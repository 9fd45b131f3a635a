"""Kernels for NVIDIA GPUs between the matrix products of a chunk: one program a token.

XLA makes several passes over the logits of a chunk, each a trip to memory. Here a program walks
along the logits of its tokens, a block of the vocabulary at a time, and keeps the results in
registers: once for log-sums, entropy and a KL, once more for a jsd, which needs the log-sums
first, and once to write the gradient. `token_stats` defines the results, `pallas_gpu_kernels`
the order of the work.

Where the caller passes the loss and its `aux` is one number per token, it is differentiated
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
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.outputs import Stored
from mopd_jax.kernels.linear_divergence.records import (
    WHOLE,
    Part,
    Pull,
    Stats,
    TokenLogprob,
    TokenStats,
    Weighted,
    without_targets,
)
from mopd_jax.kernels.linear_divergence.token_losses import is_floating


@dataclasses.dataclass(frozen=True)
class RowKernels:
    """Statistics of a chunk's tokens from their logits, and gradients, by Triton kernels.

    Called as `token_stats.token_statistics` is. Hashable, and equal where its fields are.
    """

    block: int = 2048  # Columns that a program holds at once, a power of two.
    rows: int = 1  # Tokens of a program, a power of two.
    warps: int = 8
    stages: int = 2
    interpret: bool = False  # By XLA operations, on any platform: for tests.

    def __post_init__(self) -> None:
        for name in ("block", "rows", "warps"):
            size = getattr(self, name)
            if size < 1 or size & (size - 1):
                raise ValueError(f"RowKernels: {name} must be a power of two, got {size}")

    def __call__(
        self,
        logits: jax.Array,
        teacher: jax.Array | Stored | None,
        targets: jax.Array | None,
        *,
        spec: Spec,
        part: Part = WHOLE,
    ) -> tuple[Stats, Pull]:
        """Statistics of C tokens, and the way back to the logits, a launch each.

        Args:
            logits: f32[C, V], the student's.
            teacher: f32[C, V] logits, or None.
            targets: i32[C]; the log-prob of one outside [0, V) is NaN. None: no log-probs.
            spec: with divergence None exactly where the teacher is None.
            part: must be all of the vocabulary.

        Returns:
            TokenStats of f32[C], or TokenLogprob without a teacher; and `pull`, which gives
            f32[C, V].

        Raises:
            ValueError: `spec`, `part` or a dtype is one that these kernels cannot serve.
        """
        check(logits, teacher, spec, part)
        inputs = (logits, teacher, _known(targets, logits))
        each: Any = jax.ShapeDtypeStruct(logits.shape[:1], jnp.float32)
        of_teacher = None if teacher is None else each
        outputs = (
            _record(teacher, each),
            pallas_gpu_kernels.RowTotals(*[each] * 3, *[of_teacher] * 3),
        )
        stats, row = self._call(pallas_gpu_kernels.statistics_kernel, spec, inputs, outputs)

        def pull(
            to_divergence: jax.Array | None, to_logp: jax.Array | None, to_entropy: jax.Array
        ) -> jax.Array:
            to_logp = jnp.zeros_like(to_entropy) if to_logp is None else to_logp
            cotangents = pallas_gpu_kernels.Cotangents(to_logp, to_entropy, to_divergence)
            output = jax.ShapeDtypeStruct(logits.shape, jnp.float32)
            known = (*inputs, row, cotangents)
            return self._call(
                pallas_gpu_kernels.gradient_kernel, spec, known, output, by_block=True
            )

        return (stats if targets is not None else without_targets(stats)), pull

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
        teacher: jax.Array | Stored | None,
        targets: jax.Array | None,
        weights: jax.Array,
        aux: Any,
        valid: jax.Array,
        *,
        spec: Spec,
        dtype: jnp.dtype,
        part: Part = WHOLE,
    ) -> tuple[Stats, jax.Array, list[jax.Array], jax.Array]:
        """Statistics, losses and all gradients of C tokens in one launch.

        Args:
            weighted: is traced into the kernel, on `rows` tokens: what Triton does not know
                (sorting, gathering, products, arrays closed over) fails to compile there.
            logits, teacher, targets, spec, part: as in a call.
            weights: f32[C].
            aux: pytree of [C], as `fuses` asks.
            valid: bool[C]; where false, the loss is ignored and the logits get no gradient.
            dtype: of the gradient of the logits.

        Returns:
            The statistics f32[C], the losses f32[C], the gradients to the floating leaves of
            aux [C], and that to the logits [C, V].

        Raises:
            ValueError: as a call.
        """
        check(logits, teacher, spec, part)
        leaves, tree = jax.tree.flatten(aux)
        each = jax.ShapeDtypeStruct(logits.shape[:1], jnp.float32)
        outputs = (
            _record(teacher, each),
            each,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves if is_floating(x)],
            jax.ShapeDtypeStruct(logits.shape, dtype),
        )
        # Single bits have no type in memory.
        stored = [x.astype(jnp.int32) if x.dtype == jnp.bool_ else x for x in leaves]

        def restored(values: list[jax.Array]) -> Any:
            pairs = zip(leaves, values, strict=True)
            return jax.tree.unflatten(tree, [x.astype(like.dtype) for like, x in pairs])

        kernel = functools.partial(
            pallas_gpu_kernels.loss_kernel,
            weighted=weighted if targets is not None else _blind(weighted),
            restored=restored,
        )
        known = _known(targets, logits)
        inputs = (logits, teacher, known, weights, stored, valid.astype(jnp.int32))
        stats, *rest = self._call(kernel, spec, inputs, outputs)
        return (stats if targets is not None else without_targets(stats)), *rest

    def _call(
        self,
        kernel: Callable[..., None],
        spec: Spec,
        inputs: tuple[Any, ...],
        outputs: Any,
        *,
        by_block: bool = False,
    ) -> Any:
        """A program for each `rows` tokens; with `by_block`, for each block of theirs."""
        tokens, columns = inputs[0].shape
        grid: tuple[int, ...] = (pl.cdiv(tokens, self.rows),)
        if by_block:
            grid = (*grid, pl.cdiv(columns, self.block))

        def body(*refs: Any) -> None:
            first = pl.program_id(0) * self.rows
            kernel(
                pallas_gpu_kernels.Window(tokens, columns, self.rows, self.block, first),
                spec,
                *refs,
            )

        # The name in profiles and compiled programs.
        body.__name__ = getattr(kernel, "func", kernel).__name__
        return pl.pallas_call(
            body,
            grid=grid,
            out_shape=_varying(outputs, inputs),
            compiler_params=plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages),
            interpret=self.interpret,
        )(*inputs)


def check(
    logits: jax.Array, teacher: jax.Array | Stored | None, spec: Spec, part: Part
) -> None:
    """Raises ValueError, with the remedy, for what these kernels cannot serve."""
    why, divergence = None, spec.divergence
    if isinstance(teacher, Stored):
        why = "a Stored teacher, its kernels read the teacher's logits"
    elif divergence is not None and divergence.support != "full":
        why = f"support={divergence.support!r}, its kernels sum over the whole vocabulary"
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


def _varying(outputs: Any, inputs: Any) -> Any:
    """Shapes of outputs, typed as differing between devices inside a caller's `shard_map`."""

    def filled(inputs: Any) -> Any:
        first = sum(x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(inputs))
        return jax.tree.map(lambda x: jnp.full(x.shape, first, x.dtype), outputs)

    return jax.eval_shape(filled, inputs)


def _known(targets: jax.Array | None, logits: jax.Array) -> jax.Array:
    """Targets i32[C], -1 for ids outside the columns; all -1 without targets."""
    if targets is None:
        return jnp.full(logits.shape[:1], -1, jnp.int32)
    known = (targets >= 0) & (targets < logits.shape[1])
    return jnp.where(known, targets, -1).astype(jnp.int32)


def _blind(weighted: Weighted) -> Weighted:
    """`weighted` for statistics without log-probs of targets."""

    def call(
        stats: Stats, aux: Any, weights: jax.Array
    ) -> tuple[jax.Array, Any, list[jax.Array]]:
        each, to_stats, to_aux = weighted(without_targets(stats), aux, weights)
        zero = jnp.zeros_like(to_stats.entropy)
        return each, dataclasses.replace(to_stats, logp=zero, teacher_logp=zero), to_aux

    return call


def _record(teacher: Any, each: Any) -> Any:
    return TokenLogprob(each, each) if teacher is None else TokenStats(each, each, each, each)
