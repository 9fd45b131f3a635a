"""Preference losses over the pairs of a group: DPO and SimPO on the student's own rollouts.

Pairs come from the whole batch: every (better, worse) of one prompt. The rows of a pair may
be in different micro-batches and on different devices, so the loss is differentiated here with
respect to the score of each row, and the update then weighs the row's log-prob with that slope.
This is exact: the gradient of a loss of the scores is the sum of its slopes times the scores'
gradients.

Sources: DPO arXiv 2305.18290, label smoothing as in conservative DPO; SimPO arXiv 2405.14734.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.shapes import check_shapes


def pairs(quality: jax.Array, usable: jax.Array, *, group: int) -> jax.Array:
    """bool[P, G, G], where row a of a prompt is better than row b.

    Args:
        quality: f32[N], larger is better; compared within a prompt only.
        usable: bool[N], rows with a verdict and a token.
        group: G.
    """
    check_shapes(quality=(quality, "N"), usable=(usable, "N"))
    quality, usable = quality.reshape(-1, group), usable.reshape(-1, group)
    both = usable[:, :, None] & usable[:, None, :]
    return both & (quality[:, :, None] > quality[:, None, :])


def preference_loss(
    score: jax.Array, better: jax.Array, *, beta: float, margin: float, smoothing: float
) -> jax.Array:
    """Mean over pairs of -(1 - e) log sigmoid(u) - e log sigmoid(-u): f32[].

    u = beta (score_a - score_b) - margin of a better row a and a worse row b.

    Args:
        score: f32[N] nats. Of DPO the log-prob of the response minus the reference's; of SimPO
            the mean log-prob of its tokens.
        better: bool[P, G, G] of `pairs`. Without a pair the loss is 0, and so is its gradient.
        beta, margin, smoothing: static; SimPO has a margin, DPO has 0.
    """
    prompts, group, _ = better.shape
    score = score.reshape(prompts, group)
    u = beta * (score[:, :, None] - score[:, None, :]) - margin
    each = -(1 - smoothing) * jax.nn.log_sigmoid(u) - smoothing * jax.nn.log_sigmoid(-u)
    return jnp.sum(jnp.where(better, each, 0.0)) / jnp.maximum(jnp.sum(better), 1)


def accuracy(score: jax.Array, better: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pairs that the scores f32[N] order as their quality does, all pairs), as counts."""
    score = score.reshape(better.shape[:2])
    right = better & (score[:, :, None] > score[:, None, :])
    return jnp.sum(right, dtype=jnp.float32), jnp.sum(better, dtype=jnp.float32)
