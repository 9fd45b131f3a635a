"""Records and protocols that the implementations share: statistics, parts of a vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.outputs import Stored


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """Per-token statistics, both models at one temperature; exactly 0 outside the mask.

    Without targets `logp` and `teacher_logp` are None.
    """

    divergence: jax.Array  # f32[...] nats
    logp: jax.Array | None  # f32[...] nats, the student's, of the target token
    teacher_logp: jax.Array | None  # f32[...] nats, the teacher's, of the target token
    entropy: jax.Array  # f32[...] nats, of the student


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """Per-token statistics of one model at one temperature; exactly 0 outside the mask."""

    logp: jax.Array  # f32[...] nats, of the target token
    entropy: jax.Array  # f32[...] nats, of the distribution


Stats = TokenStats | TokenLogprob


def without_targets(stats: Stats) -> Stats:
    """The statistics without the log-probs of targets."""
    if isinstance(stats, TokenLogprob):
        raise TypeError("log-probs of targets need targets, and targets is None")
    return dataclasses.replace(stats, logp=None, teacher_logp=None)


class Part(NamedTuple):
    """Which columns of the vocabulary the logits are: all, or a device's share."""

    axis: str | None = None  # Mesh axis that the vocabulary is split over.
    start: jax.Array | int = 0  # Id of the first column.
    padded: bool = False  # Columns from the size of the vocabulary on are padding.

    def ids(self, shape: tuple[int, ...]) -> jax.Array:
        """i32[C, V], of each column."""
        return self.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)

    def real(self, shape: tuple[int, ...], vocab_size: int) -> jax.Array | None:
        """bool[C, V], which columns exist; None for all."""
        return self.ids(shape) < vocab_size if self.padded else None


WHOLE = Part()

# Cotangents of (divergence, logp, entropy), each f32[C]; None where the statistic is missing
# -> gradient to the logits [C, V].
Pull = Callable[[jax.Array | None, jax.Array | None, jax.Array], jax.Array]
# (statistics f32[R], aux of the same tokens, weights f32[R]) -> losses f32[R] and the gradients
# of their weighted sum: to the statistics, a record, and to the floating leaves of aux, a list.
Weighted = Callable[[Stats, Any, jax.Array], tuple[jax.Array, Any, list[jax.Array]]]


class RowStatistics(Protocol):
    """Statistics of C tokens from their logits, and the way back: `token_statistics` is one.

    The work between the matrix products of a chunk; a kernel may replace it.
    """

    def __call__(
        self,
        logits: jax.Array,
        teacher: jax.Array | Stored | None,
        targets: jax.Array | None,
        *,
        spec: Spec,
        part: Part,
    ) -> tuple[Stats, Pull]: ...


@runtime_checkable
class FusedRowStatistics(RowStatistics, Protocol):
    """A `RowStatistics` that can take the loss of a token in as well."""

    def fuses(self, aux: Any) -> bool:
        """Whether `losses` serves an aux of C tokens."""

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
        part: Part,
        dtype: jnp.dtype,
    ) -> tuple[Stats, jax.Array, list[jax.Array], jax.Array]:
        """Statistics and losses f32[C], gradients to floating aux [C] and logits [C, V]."""
