"""Llama, Qwen2 and Qwen3 checkpoints: their configs and tensor names, as data.

`TABLE` names each leaf of our parameter tree and its layout in a Hugging Face checkpoint and in
a GGUF file; import and export both read it. This module reads no files. Not supported, each
with an error that names it: rope scaling other than Llama 3's, sliding windows,
partial rotary embeddings, activations other than SiLU, mixtures of experts, quantized configs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mopd_jax.errors import ConfigError
from mopd_jax.models.attention import RopeScaling, rope_frequencies
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Params

# transformers' defaults for fields that a config.json may leave out and that change the model.
# None for kv heads: as many as heads; for head_dim: hidden_size / heads.
_COMMON = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "num_key_value_heads": None, "head_dim": None},
    "qwen2": {**_COMMON, "num_key_value_heads": 32, "head_dim": None},
    "qwen3": {**_COMMON, "num_key_value_heads": 32, "head_dim": 128},
}
DEFAULT_THETA = 10000.0
_LLAMA3_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_length",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of our tree and the names of its tensors; `{y}` is the layer.

    inputs: how many leading axes of our leaf are contracted. Checkpoints hold matrices as
        [outputs, inputs] with both sides flattened; 0 is a flattened vector (biases), None an
        array of the same shape in both.
    heads: "q" or "k" where the GGUF writer for Llama reorders rows (`unpermute`).
    """

    path: tuple[str, ...]
    hf: str
    gguf: str
    inputs: int | None = None
    heads: str | None = None


def _layer(name: str, hf: str, gguf: str, *args: Any) -> Entry:
    return Entry(("layers", name), f"model.layers.{{y}}.{hf}", f"blk.{{y}}.{gguf}", *args)


TABLE: tuple[Entry, ...] = (
    Entry(("embed",), "model.embed_tokens.weight", "token_embd.weight"),
    Entry(("norm",), "model.norm.weight", "output_norm.weight"),
    Entry(("head",), "lm_head.weight", "output.weight"),
    _layer("attn_norm", "input_layernorm.weight", "attn_norm.weight"),
    _layer("q", "self_attn.q_proj.weight", "attn_q.weight", 1, "q"),
    _layer("k", "self_attn.k_proj.weight", "attn_k.weight", 1, "k"),
    _layer("v", "self_attn.v_proj.weight", "attn_v.weight", 1),
    _layer("out", "self_attn.o_proj.weight", "attn_output.weight", 2),
    _layer("mlp_norm", "post_attention_layernorm.weight", "ffn_norm.weight"),
    _layer("gate", "mlp.gate_proj.weight", "ffn_gate.weight", 1),
    _layer("up", "mlp.up_proj.weight", "ffn_up.weight", 1),
    _layer("down", "mlp.down_proj.weight", "ffn_down.weight", 1),
    _layer("q_norm", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    _layer("k_norm", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    _layer("q_bias", "self_attn.q_proj.bias", "attn_q.bias", 0, "q"),
    _layer("k_bias", "self_attn.k_proj.bias", "attn_k.bias", 0, "k"),
    _layer("v_bias", "self_attn.v_proj.bias", "attn_v.bias", 0),
    _layer("out_bias", "self_attn.o_proj.bias", "attn_output.bias", 0),
    _layer("gate_bias", "mlp.gate_proj.bias", "ffn_gate.bias", 0),
    _layer("up_bias", "mlp.up_proj.bias", "ffn_up.bias", 0),
    _layer("down_bias", "mlp.down_proj.bias", "ffn_down.bias", 0),
)


def entries(tree: Params) -> Iterator[tuple[Entry, Any]]:
    """The rows of `TABLE` that `tree` (arrays or shapes) has, each with its leaf."""
    for entry in TABLE:
        node = tree
        for name in entry.path:
            node = node.get(name) if node is not None else None
        if node is not None:
            yield entry, node


def source_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in a checkpoint of a leaf that has `shape` here (of one layer)."""
    if entry.inputs is None:
        return shape
    if entry.inputs == 0:
        return (math.prod(shape),)
    return math.prod(shape[entry.inputs :]), math.prod(shape[: entry.inputs])


def from_source(entry: Entry, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tensor of a checkpoint -> our layout `shape` (of one layer); may be a view."""
    return x.T.reshape(shape) if entry.inputs else x.reshape(shape)


def to_source(entry: Entry, x: np.ndarray) -> np.ndarray:
    """The inverse of `from_source`; may be a view."""
    shape = source_shape(entry, x.shape)
    return x.reshape(shape[::-1]).T if entry.inputs else x.reshape(shape)


def unpermute(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as Hugging Face orders them, from a `llama` GGUF: [H*C, ...] -> same.

    llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head, so the GGUF
    writer interleaves the halves; only for this architecture, not for Qwen.
    """
    size = x.shape[0] // heads
    pairs = x.reshape(heads, size // 2, 2, *x.shape[1:])
    return pairs.swapaxes(1, 2).reshape(x.shape)


def from_hf_config(config: Mapping[str, Any]) -> DecoderConfig:
    """`config.json` of transformers 4 or 5 -> architecture, computed in float32.

    Raises:
        ConfigError: names the field that is missing or not supported, and what is.
    """
    family = _family("model_type", config)

    def get(name: str) -> Any:
        # A null stays: for kv heads and head_dim it means computed from the other sizes.
        return config[name] if name in config else DEFAULTS[family][name]

    def size(name: str) -> Any:
        value = config.get(name)
        _supported(name, value, isinstance(value, int) and value > 0, "a positive integer")
        return value

    _supported("hidden_act", get("hidden_act"), get("hidden_act") == "silu", "'silu'")
    _supported(
        "use_sliding_window",
        get("use_sliding_window"),
        not get("use_sliding_window"),
        "false (full attention in all layers)",
    )
    kinds = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    _supported("layer_types", kinds, not kinds, "'full_attention' in every layer")
    quantized = config.get("quantization_config")
    _supported("quantization_config", quantized, not quantized, "an unquantized checkpoint")
    heads, width = size("num_attention_heads"), size("hidden_size")
    head_size = get("head_dim")
    if head_size is None:
        _supported("hidden_size", width, width % heads == 0, f"a multiple of {heads} heads")
        head_size = width // heads
    kv_heads = get("num_key_value_heads")
    theta, scaling = _hf_rope(config)
    attention_bias = bool(get("attention_bias")) and family != "qwen2"
    return DecoderConfig(
        vocab_size=size("vocab_size"),
        width=width,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_size=head_size,
        mlp_width=size("intermediate_size"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=float(get("rms_norm_eps")),
        tied=bool(get("tie_word_embeddings")),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=family == "llama" and bool(get("mlp_bias")),
    )


def to_hf_config(cfg: DecoderConfig, *, max_length: int = 32768) -> dict[str, Any]:
    """Architecture -> `config.json` in the transformers 5 form; `from_hf_config` inverts it.

    Args:
        max_length: tokens, for `max_position_embeddings`. `DecoderConfig` has no limit, but
            other readers need one; with Llama-3 scaling it is original_length * factor.

    Raises:
        ConfigError: if no family has this combination of norms and biases.
    """
    flags = (cfg.qk_norm, cfg.qkv_bias, cfg.out_bias, cfg.mlp_bias)
    if cfg.qk_norm and cfg.qkv_bias == cfg.out_bias and not cfg.mlp_bias:
        family, extra = "qwen3", {"attention_bias": cfg.qkv_bias}
    elif flags == (False, True, False, False):
        family, extra = "qwen2", {}
    elif not cfg.qk_norm and cfg.qkv_bias == cfg.out_bias:
        family, extra = "llama", {"attention_bias": cfg.qkv_bias, "mlp_bias": cfg.mlp_bias}
    else:
        raise ConfigError(
            f"no supported family has qk_norm={cfg.qk_norm}, qkv_bias={cfg.qkv_bias}, "
            f"out_bias={cfg.out_bias}, mlp_bias={cfg.mlp_bias}; llama has qkv_bias == out_bias "
            "and any mlp_bias, qwen2 only qkv_bias, qwen3 qk_norm and qkv_bias == out_bias"
        )
    rope: dict[str, Any] = {"rope_theta": cfg.rope_theta, "rope_type": "default"}
    if cfg.rope_scaling is not None:
        rope["rope_type"] = "llama3"
        rope |= {hf: getattr(cfg.rope_scaling, own) for hf, own in _LLAMA3_FIELDS.items()}
        max_length = int(cfg.rope_scaling.original_length * cfg.rope_scaling.factor)
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.width,
        "intermediate_size": cfg.mlp_width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": max_length,
        "rms_norm_eps": cfg.norm_epsilon,
        "rope_parameters": rope,
        "tie_word_embeddings": cfg.tied,
        **extra,
    }


def from_gguf_fields(
    fields: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: np.ndarray | None = None,
) -> DecoderConfig:
    """Metadata of a GGUF file -> architecture, computed in float32.

    Args:
        fields: key -> value, as in the file's header.
        shapes: tensor name -> shape [outputs, inputs]; tells tied heads and biases.
        rope_factors: f32[C / 2], the tensor `rope_freqs.weight` where the file has one.

    Raises:
        ConfigError: names the key that is missing or not supported, and what is.
    """
    family = _family("general.architecture", fields)

    def get(name: str, default: float | None = None) -> Any:
        value = fields.get(f"{family}.{name}", default)
        single = isinstance(value, int | float)
        _supported(f"{family}.{name}", value, single, "a single number for all layers")
        return value

    for name in ("expert_count", "attention.sliding_window"):
        _supported(f"{family}.{name}", get(name, 0), not get(name, 0), "0 or absent")
    kind = fields.get(f"{family}.rope.scaling.type", "none")
    _supported(f"{family}.rope.scaling.type", kind, kind == "none", "'none'")
    if "token_embd.weight" not in shapes:
        raise ConfigError("the GGUF file has no tensor token_embd.weight; is it a text model?")
    heads, width = get("attention.head_count"), get("embedding_length")
    head_size = get("attention.key_length", width // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        value = get(name, head_size)
        _supported(f"{family}.{name}", value, value == head_size, f"the head size {head_size}")
    cfg = DecoderConfig(
        vocab_size=shapes["token_embd.weight"][0],
        width=width,
        layers=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_size=head_size,
        mlp_width=get("feed_forward_length"),
        rope_theta=_short(get("rope.freq_base", DEFAULT_THETA)),
        norm_epsilon=_short(get("attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in shapes,
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2" or "blk.0.attn_q.bias" in shapes,
        out_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_gate.bias" in shapes,
    )
    return cfg if rope_factors is None else _with_rope_factors(cfg, rope_factors)


def _with_rope_factors(cfg: DecoderConfig, factors: np.ndarray) -> DecoderConfig:
    # GGUF keeps the result of Llama-3 scaling, one divisor per frequency, not its constants.
    # All published Llama 3 models share these three; the comparison below proves it.
    scaling = RopeScaling(
        factor=float(np.max(factors)),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_length=8192,
    )
    plain, scaled = (
        np.asarray(rope_frequencies(cfg.head_size, theta=cfg.rope_theta, scaling=s))
        for s in (None, scaling)
    )
    want = plain / scaled
    if factors.shape != want.shape or not np.allclose(factors, want, rtol=1e-3):
        raise ConfigError(
            f"rope_freqs.weight {factors.shape} is not the Llama-3 scaling with factor "
            f"{scaling.factor}, low 1, high 4, original length 8192; other scalings are not "
            "supported"
        )
    return dataclasses.replace(cfg, rope_scaling=scaling)


def _hf_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    old = dict(config.get("rope_scaling") or {})
    if "rope_theta" in config:
        old["rope_theta"] = config["rope_theta"]
    if "type" in old:
        old.setdefault("rope_type", old.pop("type"))
    new = dict(config.get("rope_parameters") or {})
    for name in old.keys() & new.keys():
        same = old[name] == new[name]
        _supported(
            f"rope_parameters.{name}", new[name], same, f"{old[name]!r} as in the v4 field"
        )
    rope = {"rope_type": "default", "rope_theta": DEFAULT_THETA, **old, **new}
    nested = [name for name, value in rope.items() if isinstance(value, Mapping)]
    _supported("rope_parameters", nested, not nested, "one set of values for all layers")
    for where in (config, rope):
        part = where.get("partial_rotary_factor", 1.0)
        _supported("partial_rotary_factor", part, part == 1.0, "1.0")
    kind = rope["rope_type"]
    _supported("rope_type", kind, kind in ("default", "llama3"), "'default' or 'llama3'")
    theta = float(rope["rope_theta"])
    if kind == "default":
        return theta, None
    missing = [name for name in _LLAMA3_FIELDS if name not in rope]
    _supported("rope_type", kind, not missing, f"'llama3' together with {', '.join(missing)}")
    values = {own: rope[hf] for hf, own in _LLAMA3_FIELDS.items()}
    return theta, RopeScaling(**values)


def _family(field: str, fields: Mapping[str, Any]) -> str:
    family = fields.get(field)
    _supported(field, family, family in DEFAULTS, f"one of {', '.join(DEFAULTS)}")
    return str(family)


def _supported(field: str, value: Any, holds: bool, supported: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value!r} in the checkpoint; supported: {supported}")


def _short(value: float) -> float:
    # GGUF stores float32: 9.999999747378752e-06 was 1e-05 when it was written.
    return float(str(np.float32(value)))
