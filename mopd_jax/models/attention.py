"""Rotary positions and causal attention, with softmax and rotations in float32."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

# Added to masked scores. Finite, so that a query with no visible key stays free of NaN.
MASKED = -1e30
# Queries of one block: scores live for [B, H, 128, M] at a time.
_QUERY_BLOCK = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 frequency scaling; see `rope_frequencies`.

    factor: divides the frequencies of long wavelengths.
    low_freq_factor, high_freq_factor: turns within `original_length` below which a frequency
        is divided in full, and above which it stays.
    original_length: tokens of the context that the model was first trained on.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


def rope_frequencies(head_size: int, *, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Angles per position f32[C / 2], with the frequency scaling of Llama 3.1 where asked.

    Wavelengths beyond original_length / low_freq_factor are stretched by `factor`, those below
    original_length / high_freq_factor stay, and the ones between are blended linearly.
    """
    half = head_size // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequency
    turns = scaling.original_length * frequency / (2 * math.pi)
    unscaled = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    unscaled = jnp.clip(unscaled, 0.0, 1.0)
    return frequency * (unscaled + (1.0 - unscaled) / scaling.factor)


def rope(positions: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of positions i32[...], each f32[..., 1, C / 2]: the 1 is for the head axis."""
    positions = positions.astype(jnp.float32)[..., None, None]
    angle = positions * of_rank(frequencies, positions.ndim)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding with halves (not neighbours) paired, in float32: x [..., h, C]."""
    cos, sin = angles
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def of_rank(x: jax.Array, rank: int) -> jax.Array:
    """`x` with axes of size 1 in front, so that it has `rank` axes."""
    return jnp.expand_dims(x, range(rank - x.ndim))


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum with float32 accumulation and result, so that rounding happens once."""
    return jnp.einsum(
        equation, a, b, preferred_element_type=jnp.float32, precision=precision(a.dtype)
    )


def precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """Of a product of operands in `dtype`; None is the platform's default."""
    # Float32 must mean float32 on TPU and GPU too, where the default takes fewer bits.
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array,
    segments: jax.Array | None,
) -> jax.Array:
    """Causal attention of L queries, the last of M key columns: [B, L, H, C] in q's dtype.

    Computed by blocks of queries, each against the keys up to its own end only, and again in
    the backward pass: neither [L, M] scores nor their probabilities are stored.

    Args:
        q: [B, L, H, C], rotated.
        k, v: [B, M, J, C], H a multiple of J; k rotated.
        key_mask: bool[B, M], columns that may be attended to.
        segments: i32[B, M], a query sees its own segment only; None is one segment.
    """
    B, L, H, C = q.shape
    M, J = k.shape[1], k.shape[2]
    size = max(_QUERY_BLOCK, -(-L // 16))  # At most 16 blocks: they are unrolled.

    @jax.checkpoint
    def block(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        key_mask: jax.Array,
        columns: jax.Array,
        same: jax.Array | None,
    ) -> jax.Array:
        visible = jnp.arange(k.shape[1])[None, :] <= columns[:, None]
        visible = key_mask[:, None, :] & visible[None]
        if same is not None:
            visible &= same
        q = q.reshape(B, -1, J, H // J, C)
        scores = dot("bljhc,bmjc->bjhlm", q, k) * C**-0.5
        scores = jnp.where(visible[:, None, None], scores, MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return dot("bjhlm,bmjc->bljhc", weights, v).reshape(B, -1, H, C).astype(q.dtype)

    parts = []
    for start in range(0, L, size):
        stop = min(start + size, L)
        end = M - L + stop
        same = None
        if segments is not None:
            same = segments[:, M - L + start : end, None] == segments[:, None, :end]
        parts.append(
            block(
                q[:, start:stop],
                k[:, :end],
                v[:, :end],
                key_mask[:, :end],
                jnp.arange(M - L + start, end),
                same,
            )
        )
    return jnp.concatenate(parts, axis=1)
