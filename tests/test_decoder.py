"""The decoder against logits of Transformers, a float64 oracle, and its own other paths."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mopd_jax.models import decoder, weights
from mopd_jax.models.attention import RopeScaling, rope_frequencies
from mopd_jax.models.decoder import DecoderConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
# The makers of the golden values saw 2e-6 between paths of one program; ours sums in another
# order.
LOGITS = 2e-5
SMALL = DecoderConfig(
    vocab_size=29,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=6,
    mlp_width=20,
    rope_theta=1e4,
    norm_epsilon=1e-5,
)
LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64)


def random_params(cfg, seed=0):
    """Every leaf random, norms and biases too, so that an ignored one shows."""
    shapes, _ = decoder.abstract(cfg)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.float32(0.4 * rng.standard_normal(leaf.shape)) for leaf in leaves]
    )


@pytest.fixture(scope="module", params=["hf_llama", "hf_qwen3"])
def golden(request):
    folder = GOLDEN / request.param
    cfg = weights.load_config(folder)
    with np.load(folder / "expected.npz") as file:
        expected = dict(file)
    return cfg, weights.load_params(folder, cfg), expected


@functools.partial(jax.jit, static_argnames="cfg")
def full_logits(params, ids, mask, cfg, **more):
    hidden = decoder.hidden_states(params, ids, mask, cfg=cfg, **more)
    return decoder.logits(params, hidden)


def test_plain_logits_and_log_probs(golden):
    cfg, params, want = golden
    ids = want["plain_ids"]
    got = full_logits(params, ids, np.ones(ids.shape, bool), cfg)
    np.testing.assert_allclose(got, want["plain_logits"], atol=LOGITS)
    logp = jax.nn.log_softmax(got)[:, :-1]
    logp = np.take_along_axis(np.asarray(logp), ids[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(logp, want["plain_next_logprobs"], atol=LOGITS)


@pytest.mark.parametrize("case", ["left_pad", "multi_turn"])
def test_padded_logits(golden, case):
    cfg, params, want = golden
    mask = want[f"{case}_mask"].astype(bool)
    positions = np.asarray(decoder.positions_of(mask))
    np.testing.assert_array_equal(positions[mask], want[f"{case}_positions"][mask])
    got = np.asarray(full_logits(params, want[f"{case}_ids"], mask, cfg))
    np.testing.assert_allclose(got[mask], want[f"{case}_logits"][mask], atol=LOGITS)


def test_multi_turn_through_a_cache(golden):
    cfg, params, want = golden
    ids, mask = want["multi_turn_ids"], want["multi_turn_mask"].astype(bool)
    cut = int(want["multi_turn_cut"])
    first, cache = decoder.extend(params, ids[:, :cut], mask[:, :cut], cfg=cfg)
    second, cache = decoder.extend(params, ids[:, cut:], mask[:, cut:], cache, cfg=cfg)
    got = np.asarray(decoder.logits(params, jnp.concatenate([first, second], axis=1)))
    np.testing.assert_allclose(got[mask], want["multi_turn_logits"][mask], atol=LOGITS)
    np.testing.assert_array_equal(cache.next_position, mask.sum(1))


def test_packed_documents(golden):
    cfg, params, want = golden
    ids = want["packed_ids"]
    got = full_logits(
        params,
        ids,
        np.ones(ids.shape, bool),
        cfg,
        positions=want["packed_positions"],
        segments=want["packed_segments"],
    )
    np.testing.assert_allclose(got, want["packed_logits"], atol=LOGITS)


@pytest.mark.parametrize("path", ["extend", "decode_step"])
def test_greedy(golden, path):
    cfg, params, want = golden
    ids, mask = want["greedy_ids"], want["greedy_mask"].astype(bool)
    # Each call of `extend` has a longer cache and compiles anew: three show that it works.
    length = 3 if path == "extend" else want["greedy_tokens"].shape[1]
    h, prefix = decoder.extend(params, ids, mask, cfg=cfg)
    h, cache, suffix = h[:, -1:], prefix, decoder.empty_suffix(prefix, 1, length)
    extend = jax.jit(
        lambda tokens, cache: decoder.extend(
            params, tokens, jnp.ones(tokens.shape, bool), cache, cfg=cfg
        )
    )
    step = jax.jit(lambda *args: decoder.decode_step(params, *args, cfg=cfg))
    for t in range(length):
        row = np.asarray(decoder.logits(params, h))[:, 0]
        np.testing.assert_allclose(row, want["greedy_logits"][:, t], atol=LOGITS)
        tokens = row.argmax(-1)[:, None].astype(np.int32)
        np.testing.assert_array_equal(tokens[:, 0], want["greedy_tokens"][:, t])
        if path == "extend":
            h, cache = extend(tokens, cache)
        else:
            h, suffix = step(tokens, jnp.int32(t), prefix, suffix)


def test_decode_step_equals_whole_sequences(golden):
    cfg, params, want = golden
    ids, mask = want["left_pad_ids"], want["left_pad_mask"].astype(bool)
    group, length = 3, 5
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, cfg.vocab_size, (ids.shape[0], group, length), dtype=np.int32)
    _, prefix = decoder.extend(params, ids, mask, cfg=cfg)
    suffix = decoder.empty_suffix(prefix, group, length)
    got = []
    step = jax.jit(lambda *args: decoder.decode_step(params, *args, cfg=cfg))
    for t in range(length):
        h, suffix = step(tokens[:, :, t], jnp.int32(t), prefix, suffix)
        got.append(h)
    rows = tokens.reshape(-1, length)
    whole = np.concatenate([np.repeat(ids, group, 0), rows], axis=1)
    whole_mask = np.concatenate([np.repeat(mask, group, 0), np.ones(rows.shape, bool)], axis=1)
    h = decoder.hidden_states(params, whole, whole_mask, cfg=cfg)[:, -length:]
    np.testing.assert_allclose(jnp.stack(got, 2).reshape(h.shape), h, atol=LOGITS)


def test_pads_change_nothing(golden):
    cfg, params, want = golden
    ids, mask = want["left_pad_ids"], want["left_pad_mask"].astype(bool)
    other = np.where(mask, ids, 1 + ids[::-1, ::-1] % (cfg.vocab_size - 1))
    got, again = (np.asarray(full_logits(params, x, mask, cfg)) for x in (ids, other))
    np.testing.assert_array_equal(got[mask], again[mask])


def test_remat_changes_neither_values_nor_gradients():
    cfg = dataclasses.replace(SMALL, qk_norm=True)
    params = random_params(cfg)
    ids = np.arange(14, dtype=np.int32).reshape(2, 7)
    mask = np.arange(7) >= np.array([[0], [3]])

    def loss(params, cfg):
        out = decoder.logits(params, decoder.hidden_states(params, ids, mask, cfg=cfg))
        return jnp.sum(jnp.where(mask, jax.nn.logsumexp(out, -1), 0.0))

    value = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, grads = value(params, cfg)
    remat, remat_grads = value(params, dataclasses.replace(cfg, remat=True))
    np.testing.assert_allclose(remat, plain, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(remat_grads), strict=True):
        assert np.any(a != 0)
        np.testing.assert_allclose(b, a, atol=1e-5 * float(jnp.max(jnp.abs(a))))


def test_bfloat16_is_close(golden):
    cfg, params, want = golden
    ids = want["plain_ids"]
    low = dataclasses.replace(cfg, dtype="bfloat16")
    hidden = decoder.hidden_states(params, ids, np.ones(ids.shape, bool), cfg=low)
    assert hidden.dtype == jnp.bfloat16
    got = decoder.logits(params, hidden)
    assert got.dtype == jnp.float32
    error = np.asarray(got) - want["plain_logits"]
    # bf16 keeps 8 bits: a few roundings of 2^-8 each, relative to the logits' spread.
    assert np.sqrt(np.mean(error**2)) < 4 * 2**-8 * np.std(want["plain_logits"])


def oracle_frequencies(cfg):
    """Angles per position, float64, case by case as published with Llama 3.1."""
    out = []
    for i in range(cfg.head_size // 2):
        frequency = cfg.rope_theta ** (-2.0 * i / cfg.head_size)
        s = cfg.rope_scaling
        if s is not None:
            wavelength = 2 * np.pi / frequency
            if wavelength > s.original_length / s.low_freq_factor:
                frequency /= s.factor
            elif wavelength >= s.original_length / s.high_freq_factor:
                smooth = (s.original_length / wavelength - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                frequency = (1 - smooth) * frequency / s.factor + smooth * frequency
        out.append(frequency)
    return np.array(out)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies(factor):
    scaling = RopeScaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
    )
    cfg = dataclasses.replace(SMALL, head_size=128, rope_theta=5e5, rope_scaling=scaling)
    plain = oracle_frequencies(dataclasses.replace(cfg, rope_scaling=None))
    want = oracle_frequencies(cfg)
    ratio = plain / want
    assert np.isclose(ratio.min(), 1.0) and np.isclose(ratio.max(), factor)
    assert np.any((ratio > 1.001) & (ratio < factor * 0.999))  # All three bands occur.
    # float32 powers with exponents up to log(5e5) = 13 lose up to 13 roundings.
    got = rope_frequencies(cfg.head_size, theta=cfg.rope_theta, scaling=scaling)
    np.testing.assert_allclose(got, want, rtol=13 * 2**-23)


def oracle_logits(params, ids, cfg):
    """One row of ids -> logits [L, V] in float64, head by head, from the definitions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, weight):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + cfg.norm_epsilon) * weight

    def rotate(x):  # [L, C]: each pair (i, i + C/2) turns by position * frequency i
        half = cfg.head_size // 2
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(
            1j * np.arange(len(x))[:, None] * oracle_frequencies(cfg)
        )
        return np.concatenate([turned.real, turned.imag], axis=-1)

    h = p["embed"][ids]
    for y in range(cfg.layers):
        w = {name: value[y] for name, value in p["layers"].items()}
        x = norm(h, w["attn_norm"])
        update = 0.0
        for head in range(cfg.heads):
            shared = head // (cfg.heads // cfg.kv_heads)
            q, k, v = x @ w["q"][:, head], x @ w["k"][:, shared], x @ w["v"][:, shared]
            if cfg.qkv_bias:
                q, k, v = (
                    q + w["q_bias"][head],
                    k + w["k_bias"][shared],
                    v + w["v_bias"][shared],
                )
            if cfg.qk_norm:
                q, k = norm(q, w["q_norm"]), norm(k, w["k_norm"])
            scores = rotate(q) @ rotate(k).T / np.sqrt(cfg.head_size)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            weights_ = np.exp(scores - scores.max(-1, keepdims=True))
            update += weights_ / weights_.sum(-1, keepdims=True) @ v @ w["out"][head]
        h = h + update + w.get("out_bias", 0.0)
        x = norm(h, w["mlp_norm"])
        gate, up = x @ w["gate"] + w.get("gate_bias", 0.0), x @ w["up"] + w.get("up_bias", 0.0)
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w["down"] + w.get("down_bias", 0.0)
    return norm(h, p["norm"]) @ p.get("head", p["embed"]).T


@pytest.mark.parametrize(
    "flags",
    [
        {"layers": 1, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": False},
        {"qkv_bias": True, "tied": False},
        {"qk_norm": True, "rope_scaling": LLAMA3},
    ],
    ids=["one_layer_all_biases", "qwen2_like", "qwen3_like_scaled"],
)
def test_float64_oracle(flags):
    cfg = dataclasses.replace(SMALL, **flags)
    params = random_params(cfg, seed=1)
    ids = np.random.default_rng(2).integers(0, cfg.vocab_size, 40)
    want = oracle_logits(params, ids, cfg)
    got = full_logits(params, ids[None].astype(np.int32), np.ones((1, 40), bool), cfg)[0]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_attention_in_blocks_of_queries():
    # 300 columns are three blocks of 128 queries; the oracle knows no blocks.
    params = random_params(SMALL, seed=3)
    ids = np.random.default_rng(4).integers(0, SMALL.vocab_size, 300)
    want = oracle_logits(params, ids, SMALL)
    got = full_logits(params, ids[None].astype(np.int32), np.ones((1, 300), bool), SMALL)[0]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("field", "value"), [("kv_heads", 3), ("head_size", 5)])
def test_config_that_cannot_work(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        dataclasses.replace(SMALL, **{field: value})
