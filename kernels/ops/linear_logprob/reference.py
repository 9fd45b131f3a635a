"""Log-prob of one token per position and the entropy there, with the logits materialised.

What every implementation must equal, and what the chunked one computes inside a chunk. Also
the parts that `linear_divergence` shares: masking, the head, the choice of the target.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import formulas


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """Per-token statistics of one model at one temperature; exactly 0 outside the mask."""

    logp: jax.Array  # f32[N, T] nats, of the target token
    entropy: jax.Array  # f32[N, T] nats, of the distribution


def token_logprob(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float,
) -> TokenLogprob:
    """Log-prob of `targets` under softmax(hidden head^T / temperature), and its entropy.

    Args:
        hidden: [N, T, D], of any floating dtype.
        head: [V, D].
        targets: i32[N, T], in [0, V) where the mask is true; anything elsewhere.
        mask: bool[N, T]. What stands in `hidden` where it is false, NaN included, reaches
            neither a value nor a gradient.
        temperature: static, > 0.

    Returns:
        TokenLogprob of f32[N, T]; f64 if an operand is. Gradients go to hidden and head.
        A target outside [0, V) under the mask has the log-prob NaN.
    """
    logp = log_probs(hidden, head, mask, temperature=temperature)
    return TokenLogprob(
        logp=under_mask(mask, at_targets(logp, targets)),
        entropy=under_mask(mask, formulas.entropy(logp)),
    )


def log_probs(
    hidden: jax.Array, head: jax.Array, mask: jax.Array, *, temperature: float
) -> jax.Array:
    """log softmax(hidden head^T / temperature): [N, T, D], [V, D], bool[N, T] -> f32[N, T, V].

    The product accumulates and results in f32 whatever the operands are: bf16 logits are
    0.125 apart at 16. Uniform where the mask is false.
    """
    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(hidden.dtype, head.dtype))
    # Before the product: 0 times NaN would still be NaN in the gradient of the head.
    hidden = under_mask(mask[..., None], hidden)
    # Float32 operands mean float32 products on TPU and GPU too; the default has fewer bits.
    both = jnp.promote_types(hidden.dtype, head.dtype)
    exact = jax.lax.Precision.HIGHEST if both == jnp.float32 else None
    logits = jnp.einsum(
        "ntd,vd->ntv", hidden, head, preferred_element_type=dtype, precision=exact
    )
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def at_targets(logp: jax.Array, targets: jax.Array) -> jax.Array:
    """The entry of each position's target: f32[N, T, V], i32[N, T] -> f32[N, T].

    NaN where the target is outside [0, V).
    """
    # A comparison and a sum, not a gather: its gradient is no scatter, it fuses with the
    # softmax, and each device can do it for its own part of the vocabulary.
    ids = jax.lax.broadcasted_iota(targets.dtype, logp.shape, logp.ndim - 1)
    chosen = jnp.sum(jnp.where(ids == targets[..., None], logp, 0), axis=-1)
    known = (targets >= 0) & (targets < logp.shape[-1])
    return jnp.where(known, chosen, jnp.nan)


def under_mask(mask: jax.Array, values: jax.Array) -> jax.Array:
    """`values` where the mask is true, exactly 0 elsewhere, of the same dtype."""
    return jnp.where(mask, values, jnp.zeros((), values.dtype))
