"""The sampler: G responses to each of P prompts.

Each prompt is prefilled once and its keys are shared by the group. Tokens are drawn in a
`lax.while_loop` that ends when every row has ended. A row's random numbers depend on its key
alone, not on its place in the batch; the caller makes keys from (seed, step, prompt, rollout).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mopd_jax.config import EvalConfig, RolloutConfig
from mopd_jax.models import decoder, sharding
from mopd_jax.models.decoder import DecoderConfig, Suffix
from mopd_jax.records import Params, Rollouts
from mopd_jax.rollouts import sampling
from mopd_jax.shapes import check_shapes


def row_keys(key: jax.Array, uids: jax.Array, group: int) -> jax.Array:
    """Keys [P, G] of prompts with the numbers `uids` u32[P]; `key` itself is not consumed."""
    per_prompt = jax.vmap(lambda uid: jax.random.fold_in(key, uid))(uids)
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(fold, in_axes=(0, None))(per_prompt, jnp.arange(group))


def rollout(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    *,
    cfg: DecoderConfig,
    length: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Rollouts:
    """Samples responses of at most `length` tokens, the end token included.

    Args:
        prompt, prompt_mask: i32[P, S], bool[P, S], left-padded.
        keys: [P, G] typed keys, one a row; consumed.
        stop_ids: a row ends with the first of these.

    Returns:
        Rollouts. Row n answers prompt n // G; `sampled_logp` is under the tempered
        distribution before top-k and top-p. Columns after a row's end hold `pad_id`.
    """
    sizes = check_shapes(
        prompt=(prompt, "P S"), prompt_mask=(prompt_mask, "P S"), keys=(keys, "P G")
    )
    P, G = sizes["P"], sizes["G"]
    hidden, prefix = decoder.extend(params, prompt, prompt_mask, cfg=cfg)
    first = decoder.logits(params, hidden[:, -1])  # f32[P, V], the same for the whole group.
    first = jnp.broadcast_to(first[:, None], (P, G, first.shape[-1]))
    stops = jnp.array(stop_ids, jnp.int32)

    def draw(
        logits: jax.Array, t: int | jax.Array, done: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        token, logp = sampling.sample(
            logits, _uniform(keys, t), temperature=temperature, top_k=top_k, top_p=top_p
        )
        token = jnp.where(done, pad_id, token)
        return token, jnp.where(done, 0.0, logp), done | jnp.isin(token, stops)

    def keep_going(now: _Decoding) -> jax.Array:
        return (now.t < length) & ~jnp.all(now.done)

    def step(now: _Decoding) -> _Decoding:
        t, last = now.t, _column(now.tokens, now.t - 1)
        hidden, suffix = decoder.decode_step(params, last, t - 1, prefix, now.suffix, cfg=cfg)
        token, logp, done = draw(decoder.logits(params, hidden), t, now.done)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=2)
        columns = (put(now.tokens, token), put(now.logps, logp), put(now.live, ~now.done))
        return _Decoding(t + 1, *columns, done, suffix)

    token, logp, done = draw(first, 0, jnp.zeros((P, G), bool))
    start = _Decoding(
        jnp.int32(1),
        jnp.full((P, G, length), pad_id, jnp.int32).at[:, :, 0].set(token),
        jnp.zeros((P, G, length)).at[:, :, 0].set(logp),
        jnp.zeros((P, G, length), bool).at[:, :, 0].set(True),
        done,
        decoder.empty_suffix(prefix, G, length),
    )
    end = jax.lax.while_loop(keep_going, step, start)
    rows = map(_by_rows, (end.tokens, end.live, end.logps, end.done))
    return Rollouts(prompt, prompt_mask, *rows)


class _Decoding(NamedTuple):
    """What the sampling loop carries. Columns from `t` on are not filled."""

    t: jax.Array  # i32[], the column that is sampled next
    tokens: jax.Array  # i32[P, G, T]
    logps: jax.Array  # f32[P, G, T]
    live: jax.Array  # bool[P, G, T], tokens up to and including the row's end token
    done: jax.Array  # bool[P, G], rows that have ended
    suffix: Suffix


def _uniform(keys: jax.Array, t: int | jax.Array) -> jax.Array:
    """f32[P, G] in [0, 1), of column t of each row."""
    return jax.vmap(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t))))(keys)


def _column(x: jax.Array, t: jax.Array) -> jax.Array:
    """[P, G, T] -> [P, G]."""
    return jax.lax.dynamic_index_in_dim(x, t, axis=2, keepdims=False)


def _by_rows(x: jax.Array) -> jax.Array:
    """[P, G, ...] -> [N, ...], laid over the mesh by rows."""
    rows = x.reshape(-1, *x.shape[2:])
    return sharding.constrain(rows, "rows", *[None] * (rows.ndim - 1))


def make_rollout(
    settings: RolloutConfig | EvalConfig,
    *,
    group: int,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    length: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> Callable[..., Rollouts]:
    """`rollout` jitted for a mesh, with the temperature, top-k and top-p of `settings`.

    Returns:
        (params, prompt, prompt_mask, root key, folds u32[F], uids u32[P]) -> Rollouts. The keys
        of the rows come from the root key folded with each of `folds`, the prompt's number and
        the rollout's index.
    """
    weights = decoder.shardings(model, mesh)
    rows, everywhere = sharding.rows(mesh), sharding.replicated(mesh)

    def sample(
        params: Params,
        prompt: jax.Array,
        prompt_mask: jax.Array,
        key: jax.Array,
        folds: jax.Array,
        uids: jax.Array,
    ) -> Rollouts:
        for i in range(folds.shape[0]):
            key = jax.random.fold_in(key, folds[i])
        return rollout(
            params,
            prompt,
            prompt_mask,
            row_keys(key, uids, group),
            cfg=model,
            length=length,
            stop_ids=stop_ids,
            pad_id=pad_id,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )

    return jax.jit(
        sample,
        in_shardings=(weights, rows, rows, everywhere, everywhere, rows),
        out_shardings=rows,
    )
