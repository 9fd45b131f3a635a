"""The K likeliest tokens of one model at each position, to be stored as a teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import logits, sharded, token_stats
from mopd_jax.kernels.linear_divergence.options import Dials, Spec
from mopd_jax.kernels.linear_divergence.outputs import Output, Stored
from mopd_jax.kernels.linear_divergence.partition import partition, put, take


def token_topk(spec: Spec, k: int, model: Output, mask: jax.Array, dials: Dials) -> Stored:
    """Ids i32[..., k] and log-probs f32[..., k], largest first; zeros outside the mask.

    No gradient is defined: a teacher is constant.
    """

    def local(model: Output, mask: jax.Array, dials: Dials) -> Stored:
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(model))
        return _token_topk(spec.before_loops(dials, dtype), k, model, mask)

    if spec.sharding is None:
        return local(model, mask, dials)
    tokens, _ = sharded.specs(spec.sharding)
    everywhere = jax.sharding.PartitionSpec()
    return sharded.over_mesh(
        local,
        spec.sharding,
        inputs=(sharded.output_specs(model, spec.sharding), tokens, everywhere),
        outputs=tokens,
    )(model, mask, dials)


def _token_topk(spec: Spec, k: int, model: Output, mask: jax.Array) -> Stored:
    part = sharded.vocabulary(logits.columns(model), spec)
    rows, head = logits.side(model, mask.ndim, part, spec)
    size = min(spec.chunk_tokens, mask.size)
    order, live = partition(mask.reshape(-1), size)
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves((rows, head)))

    def chunk(i: jax.Array, stored: Stored) -> Stored:
        places = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        scores = logits.logits(take(rows, places), head, part, spec)
        logp = token_stats.token_log_probs(scores, spec, part)
        best = Stored(*token_stats.top_ids(logp, k, part))
        return jax.tree.map(lambda x, new: put(x, places, new), stored, best)

    shape = (mask.size, k)
    start = Stored(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype))
    like = jax.tree.leaves((rows, head, mask))
    start = jax.tree.map(lambda x: sharded.varying(x, *like), start)
    stored = jax.lax.fori_loop(0, sharded.most(live, spec), chunk, start)
    return jax.tree.map(lambda x: x.reshape(*mask.shape, k), stored)
