"""Records of a call's options: how arrays lie on a mesh, and what is static or an operand."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence.divergence import Divergence, split_alpha


@dataclasses.dataclass(frozen=True)
class HeadSharding:
    """Where tokens and heads lie on a mesh: [N, T, D] by N, [V, D] by V and by D.

    Rows are split over `tokens`, the vocabulary over `vocab`, and the width of the heads is
    stored in parts over `embed`, one of `tokens` (FSDP), gathered for the call. An axis that is
    not named holds copies.
    """

    tokens: tuple[str, ...] = ("data",)
    vocab: str | None = None
    embed: str | None = None
    mesh: Any = None  # None takes the mesh in context (`jax.set_mesh`).

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, tuple) or len(set(self.tokens)) < len(self.tokens):
            raise ValueError(
                f"HeadSharding: tokens={self.tokens!r} must be a tuple of different axes, such"
                ' as ("data",)'
            )
        if self.vocab in self.tokens:
            raise ValueError(f"HeadSharding: axis {self.vocab!r} is both in tokens and vocab")
        if self.embed is not None and self.embed not in self.tokens:
            raise ValueError(
                f"HeadSharding: embed={self.embed!r} must be one of tokens={self.tokens}: the"
                " heads are gathered over it, and their gradients scattered"
            )


class Dials(NamedTuple):
    """Numbers of a call that are arrays: they may change without compiling anew."""

    alpha: jax.Array | None = None  # floating []; of a jsd.
    temperature: jax.Array | None = None  # floating []


class Inverse(NamedTuple):
    """A temperature that is an array, as the factor of the logits."""

    factor: jax.Array  # f32[], NaN where the temperature is not positive


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static options of one call, checked by `mopd_jax.kernels.checks`."""

    divergence: Divergence | None  # Settled. None: no teacher, log-prob and entropy only.
    temperature: float | jax.Array | Inverse
    student_cap: float | None  # Logits are cap tanh(logits / cap), before the temperature.
    teacher_cap: float | None
    vocab_size: int  # Columns that exist; the outputs may be padded beyond.
    chunk_tokens: int
    sharding: HeadSharding | None = None

    def at(self, dials: Dials) -> Spec:
        """The options with the dials' arrays filled in, for one computation; not hashable."""
        spec = self
        if dials.alpha is not None and spec.divergence is not None:
            divergence = dataclasses.replace(spec.divergence, alpha=dials.alpha)
            spec = dataclasses.replace(spec, divergence=divergence)
        if dials.temperature is not None:
            spec = dataclasses.replace(spec, temperature=dials.temperature)
        return spec

    def before_loops(self, dials: Dials, dtype: jnp.dtype) -> Spec:
        """As `at`, for a computation in a loop: scalars are made here, once (`SplitAlpha`)."""
        spec = self
        if dials.alpha is not None and spec.divergence is not None:
            divergence = spec.divergence.with_parts(split_alpha(dials.alpha, dtype))
            spec = dataclasses.replace(spec, divergence=divergence)
        if dials.temperature is not None:
            temperature = dials.temperature.astype(dtype)
            # Tracing cannot check an array's value, so one out of range gives NaN.
            factor = 1 / jnp.where(temperature > 0, temperature, jnp.nan)
            spec = dataclasses.replace(spec, temperature=Inverse(factor))
        return spec
