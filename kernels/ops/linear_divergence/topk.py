"""The K likeliest tokens of one model at each position, to be stored as a teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.kernels.linear_divergence import sharded, statistics
from mopd_jax.kernels.linear_divergence.chunked import product
from mopd_jax.kernels.linear_divergence.options import Spec, StoredTeacher
from mopd_jax.kernels.linear_divergence.partition import partition, put, take


def token_topk(
    spec: Spec, k: int, hidden: jax.Array, head: jax.Array, mask: jax.Array
) -> StoredTeacher:
    """Ids i32[..., k] and log-probs f32[..., k], largest first; zeros outside the mask.

    No gradient is defined: a teacher is constant.
    """

    def local(hidden, head, mask):
        return _token_topk(spec, k, hidden, head, mask)

    if spec.sharding is None:
        return local(hidden, head, mask)
    tokens, heads = sharded.specs(spec.sharding)
    return sharded.over_mesh(
        local, spec.sharding, inputs=(tokens, heads, tokens), outputs=tokens
    )(hidden, head, mask)


def _token_topk(spec, k, hidden, head, mask):
    part = sharded.vocabulary(head, spec)
    head = sharded.gather(head, part, spec)
    lead = mask.shape
    hidden = hidden.reshape(-1, hidden.shape[-1])
    size = min(spec.chunk_tokens, mask.size)
    order, live = partition(mask.reshape(-1), size)
    dtype = jnp.result_type(jnp.float32, hidden, head)

    def chunk(i, found):
        places = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        logits = product("cd,vd->cv", take(hidden, places), head)
        logp = statistics.token_log_probs(logits, spec, part)
        best = StoredTeacher(*statistics.top_ids(logp, k, part))
        return jax.tree.map(lambda x, new: put(x, places, new), found, best)

    shape = (mask.size, k)
    start = StoredTeacher(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, dtype))
    start = jax.tree.map(lambda x: sharded.varying(x, hidden, head, mask), start)
    found = jax.lax.fori_loop(0, sharded.most(live, spec), chunk, start)
    return jax.tree.map(lambda x: x.reshape(*lead, k), found)
