"""Sampling: the same as Transformers where greedy, as the scorer where not, keyed by row."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mopd_jax.config import MeshConfig, RolloutConfig
from mopd_jax.models import decoder, scoring, sharding, weights
from mopd_jax.rollouts import generate
from mopd_jax.testing import tiny_decoder

GOLDEN = pathlib.Path(__file__).parent / "golden"
CFG = tiny_decoder()
PROMPTS, GROUP, LENGTH = 4, 3, 6


@functools.cache
def params():
    # Sharper than at initialisation, so that samples are not all alike nor all different.
    return jax.tree.map(lambda x: 1.5 * x, decoder.init(jax.random.key(0), CFG))


def prompts():
    rng = np.random.default_rng(0)
    mask = np.arange(5)[None] >= np.array([0, 2, 1, 4])[:, None]
    return rng.integers(0, CFG.vocab_size, (PROMPTS, 5)).astype(np.int32), mask


def sample(tokens, mask, uids, seed=0, stop_ids=(7, 8, 9), **options):
    keys = generate.row_keys(jax.random.key(seed), jnp.asarray(uids, jnp.uint32), GROUP)
    options = {"temperature": 1.0, "length": LENGTH, "pad_id": 0, **options}
    run = functools.partial(generate.rollout, cfg=CFG, stop_ids=stop_ids, **options)
    return jax.device_get(jax.jit(run)(params(), tokens, mask, keys))


@pytest.mark.parametrize("model", ["hf_llama", "hf_qwen3"])
def test_greedy_equals_transformers(model):
    want = np.load(GOLDEN / model / "expected.npz")
    cfg = weights.load_config(GOLDEN / model)
    loaded = weights.load_params(GOLDEN / model, cfg)
    ids, mask, tokens = (want[f"greedy_{n}"] for n in ("ids", "mask", "tokens"))
    keys = generate.row_keys(jax.random.key(0), jnp.arange(len(ids), dtype=jnp.uint32), 2)
    got = generate.rollout(
        loaded,
        ids,
        mask.astype(bool),
        keys,
        cfg=cfg,
        length=tokens.shape[1],
        stop_ids=(),
        pad_id=0,
        temperature=1.0,
        top_k=1,
    )
    np.testing.assert_array_equal(got.response, np.repeat(tokens, 2, axis=0))
    assert np.all(got.response_mask)
    assert not np.any(got.stopped)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logp_equals_scorer(temperature):
    tokens, mask = prompts()
    out = sample(tokens, mask, range(PROMPTS), temperature=temperature, top_k=20, top_p=0.9)
    scored = scoring.score(
        params(),
        np.repeat(tokens, GROUP, axis=0),
        np.repeat(mask, GROUP, axis=0),
        out.response,
        out.response_mask,
        cfg=CFG,
        temperature=temperature,
        chunk_tokens=16,
    )
    assert out.response_mask.any(axis=1).all()
    np.testing.assert_allclose(out.sampled_logp, scored.logp, atol=1e-4)


def test_rows_depend_on_their_own_key_only():
    tokens, mask = prompts()
    order = np.array([2, 0, 3, 1])
    whole = sample(tokens, mask, np.arange(PROMPTS))
    moved = sample(tokens[order], mask[order], order)
    shape = (PROMPTS, GROUP, LENGTH)
    np.testing.assert_array_equal(
        moved.response.reshape(shape), whole.response.reshape(shape)[order]
    )
    again = sample(tokens, mask, np.arange(PROMPTS))
    np.testing.assert_array_equal(again.response, whole.response)
    np.testing.assert_array_equal(again.sampled_logp, whole.sampled_logp)
    other = sample(tokens, mask, np.arange(PROMPTS), seed=1)
    assert np.any(other.response != whole.response)
    # Rollouts of one prompt differ, and so do equal prompts with different numbers.
    groups = whole.response.reshape(shape)
    assert np.any(groups[:, 0] != groups[:, 1])
    twin = sample(tokens[[0, 0, 0, 0]], mask[[0, 0, 0, 0]], np.arange(PROMPTS))
    assert np.any(twin.response[:GROUP] != twin.response[GROUP : 2 * GROUP])


def test_mask_ends_with_the_stop_token():
    tokens, mask = prompts()
    stops = tuple(range(0, 64, 3))
    out = sample(tokens, mask, range(PROMPTS), stop_ids=stops, pad_id=1)
    for row, live, stopped in zip(out.response, out.response_mask, out.stopped, strict=True):
        ends = np.flatnonzero(np.isin(row, stops) & live)
        length = ends[0] + 1 if len(ends) else LENGTH
        assert stopped == bool(len(ends))
        assert live.sum() == length
        assert live[:length].all()
        assert np.all(row[length:] == 1)
    assert out.stopped.any()
    assert (out.sampled_logp[~out.response_mask] == 0).all()


def test_loop_ends_when_every_row_has():
    tokens, mask = prompts()
    everything = tuple(range(CFG.vocab_size))
    out = sample(tokens, mask, range(PROMPTS), stop_ids=everything)
    assert out.response_mask.sum() == PROMPTS * GROUP
    assert out.stopped.all()


def test_sharded_equals_single_device():
    tokens, mask = prompts()
    folds, uids = np.array([1, 5], np.uint32), np.arange(PROMPTS, dtype=np.uint32)
    outs = []
    for mesh_cfg, devices in ((MeshConfig(), 1), (MeshConfig(fsdp=2, tensor=2), 8)):
        mesh = sharding.make_mesh(mesh_cfg, jax.devices()[:devices])
        run = generate.make_rollout(
            RolloutConfig(),
            group=GROUP,
            model=CFG,
            mesh=mesh,
            length=LENGTH,
            stop_ids=(7,),
            pad_id=0,
        )
        with jax.set_mesh(mesh):
            key = jax.random.key(0)
            outs.append(jax.device_get(run(params(), tokens, mask, key, folds, uids)))
    np.testing.assert_array_equal(outs[0].response, outs[1].response)
    np.testing.assert_allclose(outs[0].sampled_logp, outs[1].sampled_logp, atol=1e-5)


@pytest.mark.parametrize("model", ["hf_qwen2", "hf_llama3_rope"])
def test_other_families_equal_transformers(model):
    """Biases; an untied head, sharded files and Llama-3 rope scaling: logits, then greedy."""
    want = np.load(GOLDEN / model / "expected.npz")
    cfg = weights.load_config(GOLDEN / model)
    loaded = weights.load_params(GOLDEN / model, cfg)
    ids, mask = want["left_pad_ids"], want["left_pad_mask"]
    hidden = decoder.hidden_states(loaded, ids, mask, cfg=cfg)
    logits = np.where(mask[..., None], decoder.logits(loaded, hidden), 0.0)
    np.testing.assert_allclose(logits, want["left_pad_logits"], atol=3e-5)
    got = generate.rollout(
        loaded,
        ids,
        mask,
        generate.row_keys(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32), 2),
        cfg=cfg,
        length=8,
        stop_ids=(),
        pad_id=0,
        temperature=1.0,
        top_k=1,
    )
    np.testing.assert_array_equal(got.response, np.repeat(want["greedy_tokens"], 2, axis=0))
