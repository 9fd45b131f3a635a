"""Logits to tokens: temperature, top-k, top-p, by inverting the cumulative distribution.

Each row needs one uniform number and no noise over the vocabulary, which on a CPU takes longer
to draw than a small model's step. Two levels (blocks, then within the block) keep the
cumulative sums short, in time and in rounding.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def sample(
    logits: jax.Array,
    uniform: jax.Array,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row.

    Args:
        logits: f32[..., V].
        uniform: f32[...] in [0, 1), the only randomness.
        temperature: logits are divided by it.
        top_k: keep the k largest logits (more where the k-th is tied); top_k=1 is greedy.
        top_p: of those, keep the fewest largest tokens whose renormalised mass reaches p.

    Returns:
        tokens i32[...], and their log-probs f32[...] in nats under the tempered distribution
        *before* top-k and top-p, which is what a scorer of the same model computes.
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k == 1:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        token = _inverse_cdf(_truncate(logits, top_k, top_p), uniform)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def _truncate(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """The logits f32[..., V], -inf where top-k or top-p drops the token."""
    vocab = logits.shape[-1]
    if top_k is not None and top_k < vocab:
        threshold = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if top_p is not None and top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        mass = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(mass, axis=-1) - mass
        # The first token always stays, since the mass before it is 0.
        last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
        threshold = jnp.take_along_axis(ordered, last, axis=-1)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits


def _inverse_cdf(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Tokens i32[...] at the quantile `uniform` f32[...] of softmax(logits f32[..., V])."""
    vocab = logits.shape[-1]
    width = max(1, math.isqrt(vocab))
    blocks = -(-vocab // width)
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * width - vocab)]
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, pad).reshape(*logits.shape[:-1], blocks, width)
    sums = jnp.sum(weights, axis=-1)
    target = uniform * jnp.sum(sums, axis=-1)
    block, target = _search(sums, target)
    inside = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    offset, _ = _search(inside, target)
    return (block * width + offset).astype(jnp.int32)


def _search(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index whose cumulative weight exceeds target, and the target minus all before it.

    Never an index of weight 0: where rounding carries the target past the end, it is the last
    index of positive weight.

    Args:
        weights: f32[..., K], not negative.
        target: f32[...].
    """
    cumulative = jnp.cumsum(weights, axis=-1)
    columns = jax.lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1)
    last = jnp.max(jnp.where(weights > 0, columns, 0), axis=-1)
    index = jnp.sum(cumulative <= target[..., None], axis=-1)
    index = jnp.minimum(index, last)
    before = cumulative - weights
    rest = target - jnp.take_along_axis(before, index[..., None], axis=-1)[..., 0]
    return index, jnp.maximum(rest, 0.0)
