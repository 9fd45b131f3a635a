"""A model's output and log-probs for each token of a response, whoever wrote it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mopd_jax.kernels import Hidden, TokenLogprob, linear_logprob
from mopd_jax.models import decoder, sharding
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Params


def response_states(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    response: jax.Array,
    response_mask: jax.Array,
    *,
    cfg: DecoderConfig,
) -> jax.Array:
    """Hidden states [N, T, D]; state t predicts response token t.

    Args:
        prompt, prompt_mask: i32[N, S], bool[N, S], left-padded: its last column is real.
        response, response_mask: i32[N, T], bool[N, T], right-padded.
    """
    tokens = jnp.concatenate([prompt, response], axis=1)
    mask = jnp.concatenate([prompt_mask, response_mask], axis=1)
    hidden = decoder.hidden_states(params, tokens, mask, cfg=cfg)
    return hidden[:, prompt.shape[1] - 1 : -1]


def response_output(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    response: jax.Array,
    response_mask: jax.Array,
    *,
    cfg: DecoderConfig,
) -> Hidden:
    """`response_states` with the model's head, as the losses and `linear_logprob` read it."""
    states = response_states(params, prompt, prompt_mask, response, response_mask, cfg=cfg)
    return decoder.output(params, states)


def score(
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    response: jax.Array,
    response_mask: jax.Array,
    *,
    cfg: DecoderConfig,
    temperature: float,
    chunk_tokens: int | None = None,
) -> TokenLogprob:
    """Log-prob and entropy f32[N, T] in nats of each response token, 0 where masked."""
    output = response_output(params, prompt, prompt_mask, response, response_mask, cfg=cfg)
    return linear_logprob(
        output,
        response,
        response_mask,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        sharding=sharding.head_sharding(),
    )
