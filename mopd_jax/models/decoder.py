"""One decoder for the Llama, Qwen2 and Qwen3 families, as pure functions of `(params, ...)`.

`Decoder` (Flax NNX) defines the parameters: shapes, initialisers and logical axes. All other
functions work on `params`, the nested dict of its arrays, with the layers stacked on a leading
axis and scanned. Three functions run the layers, each in its own way:

    hidden_states   whole sequences, for scoring and training
    extend          a sequence after a cache of earlier columns; with no cache, a prefill
    decode_step     one token for each of G rollouts per prompt, whose prefix is stored once

Masked columns are never attended to, so pads may be anywhere; positions count real tokens.
Left out: sliding windows, mixture of experts, partial rotary embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from mopd_jax.errors import ConfigError
from mopd_jax.kernels import Hidden
from mopd_jax.models import attention, sharding
from mopd_jax.models.attention import RopeScaling, dot, of_rank, precision
from mopd_jax.models.sharding import constrain
from mopd_jax.records import Params, record
from mopd_jax.shapes import check_shapes

Extra = TypeVar("Extra")  # Attention's second result: keys and values, or None.
Attend: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Extra]]
Rope: TypeAlias = tuple[jax.Array, jax.Array]  # (cos, sin) of `attention.rope`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture (from the checkpoint) and how it is computed (from `ModelConfig`)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    tied: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; the query "
                "heads share the key-value heads evenly"
            )
        if self.head_size % 2:
            raise ConfigError(
                f"head_size={self.head_size} is odd; rotary halves need an even one"
            )


@record
class KVCache:
    """Keys and values of the columns so far; the keys are rotated."""

    k: jax.Array  # [Y, B, M, J, C] in the compute dtype
    v: jax.Array  # [Y, B, M, J, C]
    mask: jax.Array  # bool[B, M]
    next_position: jax.Array  # i32[B], the position of the next real token


@record
class Suffix:
    """Keys and values of the tokens decoded so far, for G rollouts of each prompt."""

    k: jax.Array  # [Y, P, G, T, J, C]
    v: jax.Array  # [Y, P, G, T, J, C]


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU MLP."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        D, H, J, C, F = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_size, cfg.mlp_width

        def weight(
            shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int
        ) -> nnx.Param[jax.Array]:
            value = jax.random.normal(rngs.params(), shape) * fan_in**-0.5
            return nnx.Param(value, axes=axes)

        self.attn_norm = nnx.Param(jnp.ones(D), axes=("embed",))
        self.q = weight((D, H, C), ("embed", "heads", "head_size"), D)
        self.k = weight((D, J, C), ("embed", "kv_heads", "head_size"), D)
        self.v = weight((D, J, C), ("embed", "kv_heads", "head_size"), D)
        # Residual branches start small, so that depth does not blow up the stream.
        self.out = weight((H, C, D), ("heads", "head_size", "embed"), H * C * 2 * cfg.layers)
        self.mlp_norm = nnx.Param(jnp.ones(D), axes=("embed",))
        self.gate = weight((D, F), ("embed", "mlp"), D)
        self.up = weight((D, F), ("embed", "mlp"), D)
        self.down = weight((F, D), ("mlp", "embed"), F * 2 * cfg.layers)
        if cfg.qk_norm:
            self.q_norm = nnx.Param(jnp.ones(C), axes=("head_size",))
            self.k_norm = nnx.Param(jnp.ones(C), axes=("head_size",))
        if cfg.qkv_bias:
            self.q_bias = nnx.Param(jnp.zeros((H, C)), axes=("heads", "head_size"))
            self.k_bias = nnx.Param(jnp.zeros((J, C)), axes=("kv_heads", "head_size"))
            self.v_bias = nnx.Param(jnp.zeros((J, C)), axes=("kv_heads", "head_size"))
        if cfg.out_bias:
            self.out_bias = nnx.Param(jnp.zeros(D), axes=("embed",))
        if cfg.mlp_bias:
            self.gate_bias = nnx.Param(jnp.zeros(F), axes=("mlp",))
            self.up_bias = nnx.Param(jnp.zeros(F), axes=("mlp",))
            self.down_bias = nnx.Param(jnp.zeros(D), axes=("embed",))


class Decoder(nnx.Module):
    """The parameters of the model. Embedding and head are both [V, D]."""

    def __init__(self, cfg: DecoderConfig, *, rngs: nnx.Rngs):
        V, D = cfg.vocab_size, cfg.width
        self.embed = nnx.Param(
            jax.random.normal(rngs.params(), (V, D)) * D**-0.5, axes=("vocab", "embed")
        )
        if not cfg.tied:
            self.head = nnx.Param(
                jax.random.normal(rngs.params(), (V, D)) * D**-0.5, axes=("vocab", "embed")
            )
        self.norm = nnx.Param(jnp.ones(D), axes=("embed",))
        keys = jax.random.split(rngs.params(), cfg.layers)
        self.layers = nnx.vmap(lambda key: Block(cfg, rngs=nnx.Rngs(params=key)))(keys)


def init(key: jax.Array, cfg: DecoderConfig) -> Params:
    """Random parameters, f32. The key is consumed."""
    return nnx.to_pure_dict(nnx.state(Decoder(cfg, rngs=nnx.Rngs(params=key))))


@functools.cache
def abstract(cfg: DecoderConfig) -> tuple[Params, Any]:
    """Shapes and logical axes of the parameters: two trees like `init`'s, without arrays."""
    model = nnx.eval_shape(lambda: Decoder(cfg, rngs=nnx.Rngs(0)))
    state = nnx.state(model)
    axes: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata()["axes"]
        node: dict[Any, Any] = axes
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = ("layers", *names) if path[0] == "layers" else names
    return nnx.to_pure_dict(state), axes


def shardings(cfg: DecoderConfig, mesh: jax.sharding.Mesh) -> Any:
    """Where each parameter lies on the mesh: a tree like `init`'s of NamedSharding.

    Raises:
        ConfigError: names the parameter whose size is not a multiple of its mesh axes.
    """
    return sharding.shardings(*abstract(cfg), mesh)


def head(params: Params) -> jax.Array:
    """The output matrix f32[V, D]; the embedding where the head is tied."""
    return params["head"] if "head" in params else params["embed"]


def output(params: Params, states: jax.Array) -> Hidden:
    """The model's output from its hidden states [..., D]: states, and the head in their dtype.

    The ops of `mopd_jax.kernels` read it, and make no [..., V] logits.
    """
    return Hidden(states, head(params).astype(states.dtype))


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """[..., D] -> f32[..., V], float32 whatever the operands' dtype (bf16 logits ruin KLs)."""
    weights = head(params).astype(hidden.dtype)
    return jnp.einsum(
        "...d,vd->...v",
        hidden,
        weights,
        preferred_element_type=jnp.float32,
        precision=precision(hidden.dtype),
    )


def positions_of(mask: jax.Array) -> jax.Array:
    """Position of each column, counting real tokens from 0: bool[B, L] -> i32[B, L]."""
    return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


def hidden_states(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    cfg: DecoderConfig,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Final normalised hidden states of whole sequences: [B, L, D] in the compute dtype.

    Args:
        tokens: i32[B, L]. Attention is causal in column order.
        mask: bool[B, L]; false columns are never attended to; ignore their output.
        positions: i32[B, L], by default `positions_of(mask)`.
        segments: i32[B, L]; a column sees only columns of its own segment (packed documents).
    """
    check_shapes(tokens=(tokens, "B L"), mask=(mask, "B L"))
    rope = _rope(positions_of(mask) if positions is None else positions, cfg)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return attention.causal(q, k, v, mask, segments), None

    def body(h: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        return _block(layer, h, rope, attend, cfg)

    if cfg.remat:
        body = jax.checkpoint(body)
    h, _ = jax.lax.scan(body, _embed(params, tokens, cfg), params["layers"])
    return _rms_norm(h, params["norm"], cfg)


def extend(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    cache: KVCache | None = None,
    *,
    cfg: DecoderConfig,
) -> tuple[jax.Array, KVCache]:
    """Runs L new columns after the columns of `cache`; None is an empty cache (prefill).

    Args:
        tokens, mask: i32[B, L], bool[B, L].

    Returns:
        hidden states [B, L, D] of the new columns, and the cache of all columns.
    """
    check_shapes(tokens=(tokens, "B L"), mask=(mask, "B L"))
    if cache is None:
        cache = _empty_cache(tokens.shape[0], cfg)
    start = cache.next_position[:, None]
    rope = _rope(jnp.maximum(start + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0), cfg)
    key_mask = jnp.concatenate([cache.mask, mask], axis=1)

    def body(h: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        layer, old_k, old_v = inputs

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            k, v = jnp.concatenate([old_k, k], axis=1), jnp.concatenate([old_v, v], axis=1)
            return attention.causal(q, k, v, key_mask, None), (k, v)

        return _block(layer, h, rope, attend, cfg)

    inputs = (params["layers"], cache.k, cache.v)
    h, (k, v) = jax.lax.scan(body, _embed(params, tokens, cfg), inputs)
    k = constrain(k, "layers", "rows", None, "kv_heads", None)
    v = constrain(v, "layers", "rows", None, "kv_heads", None)
    next_position = cache.next_position + jnp.sum(mask, axis=1, dtype=jnp.int32)
    return _rms_norm(h, params["norm"], cfg), KVCache(k, v, key_mask, next_position)


def empty_suffix(prefix: KVCache, group: int, length: int) -> Suffix:
    """Zeros for `length` decoded tokens of `group` rollouts after each prompt of `prefix`."""
    layers, prompts, _, kv_heads, size = prefix.k.shape
    zeros = jnp.zeros((layers, prompts, group, length, kv_heads, size), prefix.k.dtype)
    zeros = constrain(zeros, "layers", "rows", None, None, "kv_heads", None)
    return Suffix(zeros, zeros)


def decode_step(
    params: Params,
    tokens: jax.Array,
    t: jax.Array,
    prefix: KVCache,
    suffix: Suffix,
    *,
    cfg: DecoderConfig,
) -> tuple[jax.Array, Suffix]:
    """One token of every rollout; each prompt's keys are read once for its G rollouts.

    Args:
        tokens: i32[P, G], the token at response position t.
        t: i32[], the same for all rows; earlier suffix columns 0..t-1 are filled.
        prefix: of the P prompts, from `extend`.

    Returns:
        hidden states [P, G, D] and the suffix with column t filled.
    """
    P, G = tokens.shape
    J, C = cfg.kv_heads, cfg.head_size
    rope = _rope((prefix.next_position + t)[:, None], cfg)  # [P, 1, C / 2]
    filled = jnp.arange(suffix.k.shape[3]) <= t
    prefix_bias = jnp.where(prefix.mask, 0.0, attention.MASKED)[:, None, None, None, :]
    suffix_bias = jnp.where(filled, 0.0, attention.MASKED)[None, None, None, None, :]

    def body(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        h, all_k, all_v = carry
        layer, y, prefix_k, prefix_v = inputs

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            new_k = jax.lax.dynamic_update_slice(
                all_k, k.reshape(1, P, G, 1, J, C), (y, 0, 0, t, 0, 0)
            )
            new_v = jax.lax.dynamic_update_slice(
                all_v, v.reshape(1, P, G, 1, J, C), (y, 0, 0, t, 0, 0)
            )
            own_k = jax.lax.dynamic_index_in_dim(new_k, y, keepdims=False)
            own_v = jax.lax.dynamic_index_in_dim(new_v, y, keepdims=False)
            q = q.reshape(P, G, J, -1, C)
            # Two key sets, one softmax: the prefix has no G axis and is never repeated.
            scores = jnp.concatenate(
                [
                    dot("pgjhc,psjc->pgjhs", q, prefix_k) * C**-0.5 + prefix_bias,
                    dot("pgjhc,pgtjc->pgjht", q, own_k) * C**-0.5 + suffix_bias,
                ],
                axis=-1,
            )
            weights = jax.nn.softmax(scores, axis=-1).astype(prefix_v.dtype)
            from_prefix, from_own = jnp.split(weights, [prefix_k.shape[1]], axis=-1)
            mixed = dot("pgjhs,psjc->pgjhc", from_prefix, prefix_v)
            mixed = mixed + dot("pgjht,pgtjc->pgjhc", from_own, own_v)
            return mixed.reshape(P, G, J * q.shape[3], C).astype(h.dtype), (new_k, new_v)

        h, (all_k, all_v) = _block(layer, h, rope, attend, cfg)
        return (h, all_k, all_v), None

    inputs = (params["layers"], jnp.arange(cfg.layers), prefix.k, prefix.v)
    carry = (_embed(params, tokens, cfg), suffix.k, suffix.v)
    (h, k, v), _ = jax.lax.scan(body, carry, inputs)
    return _rms_norm(h, params["norm"], cfg), Suffix(k, v)


def _block(
    layer: Params, h: jax.Array, rope: Rope, attend: Attend[Extra], cfg: DecoderConfig
) -> tuple[jax.Array, Extra]:
    """One layer on h [..., D]; `attend(q, k, v) -> (mixed, extra)` decides what is visible."""
    w = {name: value.astype(h.dtype) for name, value in layer.items()}
    x = _rms_norm(h, layer["attn_norm"], cfg)
    q, k, v = (dot("...d,dhc->...hc", x, w[name]) for name in ("q", "k", "v"))
    if cfg.qkv_bias:
        q, k, v = _biased(q, w["q_bias"]), _biased(k, w["k_bias"]), _biased(v, w["v_bias"])
    if cfg.qk_norm:
        q, k = _rms_norm(q, layer["q_norm"], cfg), _rms_norm(k, layer["k_norm"], cfg)
    q, k, v = (
        a.astype(h.dtype) for a in (attention.rotate(q, rope), attention.rotate(k, rope), v)
    )
    mixed, extra = attend(q, k, v)
    out = dot("...hc,hcd->...d", mixed, w["out"])
    h = h + (_biased(out, w["out_bias"]) if cfg.out_bias else out).astype(h.dtype)
    x = _rms_norm(h, layer["mlp_norm"], cfg)
    gate, up = dot("...d,df->...f", x, w["gate"]), dot("...d,df->...f", x, w["up"])
    if cfg.mlp_bias:
        gate, up = _biased(gate, w["gate_bias"]), _biased(up, w["up_bias"])
    down = dot("...f,fd->...d", (jax.nn.silu(gate) * up).astype(h.dtype), w["down"])
    h = h + (_biased(down, w["down_bias"]) if cfg.mlp_bias else down).astype(h.dtype)
    return constrain(h, "rows", None, None), extra


def rope_frequencies(cfg: DecoderConfig) -> jax.Array:
    """Rotation per position of each pair of channels, f32[C / 2] radians."""
    return attention.rope_frequencies(
        cfg.head_size, theta=cfg.rope_theta, scaling=cfg.rope_scaling
    )


def _rope(positions: jax.Array, cfg: DecoderConfig) -> Rope:
    return attention.rope(positions, rope_frequencies(cfg))


def _empty_cache(batch: int, cfg: DecoderConfig) -> KVCache:
    empty = jnp.zeros((cfg.layers, batch, 0, cfg.kv_heads, cfg.head_size), cfg.dtype)
    mask = jnp.zeros((batch, 0), bool)
    return KVCache(empty, empty, mask, jnp.zeros(batch, jnp.int32))


def _embed(params: Params, tokens: jax.Array, cfg: DecoderConfig) -> jax.Array:
    # Gathered over fsdp first: the look-up's result is spread by rows, not by width.
    table = constrain(params["embed"], "vocab", None)
    # Cast after the look-up: the gradient of a frequent token is a long sum, taken in float32.
    return constrain(table[tokens].astype(cfg.dtype), "rows", None, None)


def _biased(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + of_rank(bias, x.ndim)


def _rms_norm(x: jax.Array, scale: jax.Array, cfg: DecoderConfig) -> jax.Array:
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + cfg.norm_epsilon)
    return (x32 * of_rank(scale, x.ndim)).astype(x.dtype)
