"""`token_logprob` a few columns at a time, so that no [N, T, V] exists in either direction.

The backward pass computes the logits of a chunk again. `over_chunks` is the loop, which
`linear_divergence` shares.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_logprob import reference


def token_logprob(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float,
    chunk_tokens: int,
) -> reference.TokenLogprob:
    """As `reference.token_logprob`, with the logits of about `chunk_tokens` tokens at once."""
    restore = head.dtype
    head = accumulator(head)

    def stats(hidden, targets, mask):
        return reference.token_logprob(
            hidden, head.astype(restore), targets, mask, temperature=temperature
        )

    return over_chunks(stats, (hidden, targets, mask), chunk_tokens=chunk_tokens)


def accumulator(head: jax.Array) -> jax.Array:
    """The head in at least f32, to be cast back inside a chunk.

    The gradient of what a scan closes over is summed in its dtype, over all the chunks: in
    bf16 the later chunks would be rounded away.
    """
    return head.astype(jnp.promote_types(jnp.float32, head.dtype))


def over_chunks(stats: Callable, arrays: tuple[jax.Array, ...], *, chunk_tokens: int):
    """`stats(*arrays)` for arrays [N, T, ...] in chunks of columns of T, rematerialised.

    A chunk is all N rows of c = max(1, chunk_tokens // N) columns: T is cut and never N,
    which may be sharded over devices. `chunk_tokens` counts over all devices. T is padded to
    a multiple of c with zeros, which for a mask is false.

    Args:
        stats: arrays [N, c, ...] -> a pytree of [N, c]; recomputed in the backward pass.
        arrays: each [N, T, ...].
        chunk_tokens: static, >= 1.

    Returns:
        The pytree of [N, T].
    """
    rows, columns = arrays[0].shape[:2]
    size = max(1, min(columns, chunk_tokens // max(rows, 1)))
    steps = -(-columns // size)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, steps * size - columns)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, steps, size, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(rows, steps * size)[:, :columns]

    # Inside a scan there is nothing for XLA to merge the recomputation with.
    body = jax.checkpoint(stats, prevent_cse=False)
    _, out = jax.lax.scan(lambda _, x: (None, body(*x)), None, tuple(map(split, arrays)))
    return jax.tree.map(join, out)
