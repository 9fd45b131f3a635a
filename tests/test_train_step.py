"""One update: safe against NaN, right against oracles; `test_invariance.py` splits its rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mopd_jax.config import (
    Config,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TeacherConfig,
    fingerprint,
)
from mopd_jax.models import decoder
from mopd_jax.testing import random_batch, tiny_decoder
from mopd_jax.update import objectives, teacher, train_step
from mopd_jax.update.teacher import Models

CFG = tiny_decoder()
ROWS = 16


def config(**changes):
    # SGD-like sizes would hide errors; Adam's first step hides scale. Hence large epsilon.
    optimizer = OptimizerConfig(learning_rate=1e-2, epsilon=1.0, weight_decay=0.1)
    fields = {
        "rollout": RolloutConfig(prompts=4, group=4, prompt_length=8, response_length=7),
        "optimizer": optimizer,
        "model": ModelConfig(head_chunk=32),
    }
    return Config(**{**fields, **changes})


@functools.cache
def batch():
    made = random_batch(
        0, rows=ROWS, prompt=8, teacher_prompt=12, response=7, vocab=CFG.vocab_size
    )
    mask = np.array(made.mask)
    mask[3] = False  # A row without context.
    return dataclasses.replace(made, mask=mask)


def state(cfg, seed=0):
    params = decoder.init(jax.random.key(seed), CFG)
    models = Models.of(cfg, CFG)
    made = train_step.init_state(params, jax.random.key(0), cfg=cfg, models=models)
    # A teacher of its own, so that the divergence is not 0.
    other = decoder.init(jax.random.key(1), CFG) if made.teacher else {}
    return dataclasses.replace(made, teacher=other)


def stepper(cfg, model=CFG):
    return functools.partial(train_step.train_step, cfg=cfg, models=Models.of(cfg, model))


COMPILED = {}  # By the config's fingerprint, since most tests share one.


def run(cfg, rows=None, start=None):
    step = COMPILED.setdefault(fingerprint(cfg), jax.jit(stepper(cfg)))
    new, logged = step(
        state(cfg) if start is None else start, batch() if rows is None else rows
    )
    return new, {name: ratio.mean() for name, ratio in jax.device_get(logged).items()}


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


METHODS = [LossConfig(), LossConfig(method="grpo", aggregation="token-mean")]
OTHERS = [LossConfig(method=method) for method in ("dpo", "simpo", "sft")]


@pytest.mark.parametrize("loss", METHODS, ids=["distill", "grpo"])
def test_masked_rows_are_not_read(loss):
    mask = batch().mask
    other = random_batch(
        9, rows=ROWS, prompt=8, teacher_prompt=12, response=7, vocab=CFG.vocab_size
    )
    dead = ~mask.any(axis=1, keepdims=True)
    assert dead.any()

    def poison(name, where):
        return np.where(where, getattr(other, name), getattr(batch(), name))

    poisoned = dataclasses.replace(
        batch(),
        sampled_logp=np.where(mask, batch().sampled_logp, np.nan),
        response=poison("response", ~mask),
        prompt=poison("prompt", dead | ~batch().prompt_mask),
        teacher_prompt=poison("teacher_prompt", dead | ~batch().teacher_prompt_mask),
    )
    want, _ = run(config(loss=loss))
    got, _ = run(config(loss=loss), poisoned)
    jax.tree.map(np.testing.assert_array_equal, got.params, want.params)


DEGENERATE = {
    "no token": {"mask": np.zeros((ROWS, 7), bool)},
    "one outcome": {"advantage": np.zeros(ROWS, np.float32)},
    "no weight": {"row_weight": np.zeros(ROWS, np.float32)},
}
CASES = [
    *[(loss, "no token") for loss in [METHODS[0], METHODS[-1], *OTHERS]],
    *[(loss, "one outcome") for loss in [METHODS[-1], *OTHERS[:2]]],
    *[(loss, "no weight") for loss in [METHODS[0], METHODS[-1], OTHERS[2]]],
]


@pytest.mark.parametrize(("loss", "case"), CASES, ids=lambda x: getattr(x, "method", x))
def test_nothing_to_train_on_changes_nothing(loss, case):
    """Not even weight decay acts, for any method."""
    cfg = config(loss=loss)
    assert cfg.optimizer.weight_decay > 0
    start = state(cfg)
    got, logged = run(cfg, dataclasses.replace(batch(), **DEGENERATE[case]), start)
    for name in ("params", "teacher", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(got, name), getattr(start, name))
    assert logged["update_applied"] == 0
    assert logged["gradient_finite"] == 1
    assert logged["trained_tokens"] == 0
    assert (int(got.step), int(got.skipped)) == (1, 1)
    if case == "no token" and loss.method == "distill":
        assert np.isnan(logged["divergence"])


@pytest.mark.parametrize("loss", [METHODS[0], METHODS[-1], *OTHERS], ids=lambda x: x.method)
def test_no_nan_reaches_the_parameters(loss):
    """A sampler's NaN, under the mask: the update is skipped, or never reads it."""
    cfg = config(loss=loss)
    bad = np.where(batch().mask, np.nan, 0.0).astype(np.float32)
    got, _ = run(cfg, dataclasses.replace(batch(), sampled_logp=bad))
    kept = (got.params, got.teacher, got.optimizer)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_non_finite_gradient_is_skipped_and_counted():
    bad = dataclasses.replace(batch(), advantage=np.full(ROWS, np.nan, np.float32))
    cfg = config(loss=METHODS[-1])
    got, logged = run(cfg, bad)
    jax.tree.map(np.testing.assert_array_equal, got.params, state(cfg).params)
    assert int(got.skipped) == 1
    assert logged["gradient_finite"] == 0
    # The step after it trains as if nothing had been.
    after, logged = run(cfg, None, got)
    assert_trees_close(after.params, run(cfg)[0].params, atol=0)
    assert logged["gradient_finite"] == 1


def test_teacher_that_reads_the_same_is_no_teacher():
    same = dataclasses.replace(
        batch(), teacher_prompt=batch().prompt, teacher_prompt_mask=batch().prompt_mask
    )
    start = train_step.init_state(
        decoder.init(jax.random.key(0), CFG),
        jax.random.key(0),
        cfg=config(),
        models=Models.of(config(), CFG),
    )
    _, logged = run(config(), same, start)
    assert logged["divergence"] < 1e-7
    assert abs(logged["teacher_minus_student_logp"]) < 1e-6
    assert logged["grad_norm"] < 1e-4


def test_teachers():
    for kind in ("ema", "frozen"):
        cfg = config(teacher=TeacherConfig(kind=kind, rate=0.05))
        start = state(cfg)
        got, _ = run(cfg, None, start)
        want = start.teacher
        if kind == "ema":
            want = jax.tree.map(lambda t, s: 0.95 * t + 0.05 * s, want, got.params)
        assert_trees_close(got.teacher, want, atol=1e-6)
    old, new = {"w": jnp.float32(1.0)}, {"w": jnp.float32(0.0)}
    for _ in range(50):  # What is left of the initial teacher: 0.95^50 = 0.0769.
        old = teacher.ema(old, new, rate=0.05)
    np.testing.assert_allclose(old["w"], 0.0769, atol=1e-4)


def test_warm_up_wastes_no_step():
    cfg = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    rates = [float(train_step.learning_rate(jnp.int32(k), cfg=cfg)) for k in range(12)]
    want = [min((k + 1) / 10, 1) for k in range(12)]
    np.testing.assert_allclose(rates, want, rtol=1e-6)
    none = dataclasses.replace(cfg, warmup_steps=0)
    assert float(train_step.learning_rate(jnp.int32(0), cfg=none)) == 1.0


def test_clip_and_adamw_against_numpy():
    cfg = OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=0.5, weight_decay=0.2)
    tx = train_step.make_optimizer(cfg)
    w, g = np.array([3.0, -4.0]), np.array([6.0, 8.0])
    updates, _ = tx.update({"w": jnp.asarray(g)}, tx.init({"w": jnp.asarray(w)}), {"w": w})
    clipped = g * 0.5 / 10.0
    # After one step both bias-corrected moments are the gradient and its square; 1 - 0.999 is
    # known to 6e-5 in float32.
    want = -0.1 * (clipped / (np.abs(clipped) + cfg.epsilon) + 0.2 * w)
    np.testing.assert_allclose(updates["w"], want, rtol=1e-4)


def test_gradient_of_a_frequent_token_is_summed_in_float32():
    tokens = np.full((32, 64), 5, np.int32)
    mask = np.ones(tokens.shape, bool)
    probe = np.random.default_rng(0).normal(1.0, 0.1, (*tokens.shape, CFG.width))
    params = decoder.init(jax.random.key(0), CFG)

    def gradient(dtype):
        cfg = dataclasses.replace(CFG, dtype=dtype, layers=2)

        def loss(embed):
            h = decoder.hidden_states({**params, "embed": embed}, tokens, mask, cfg=cfg)
            return jnp.sum(h.astype(jnp.float32) * probe)

        return jax.grad(loss)(params["embed"])[5]

    want, got = gradient("float32"), gradient("bfloat16")
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_master_weights_stay_float32_under_bf16_compute():
    half = dataclasses.replace(CFG, dtype="bfloat16")
    cfg = config()
    step = jax.jit(stepper(cfg, half))
    got, logged = step(state(cfg), batch())
    kinds = {x.dtype for x in jax.tree.leaves((got.params, got.teacher))}
    assert kinds == {jnp.dtype("float32")}
    want, _ = run(cfg)
    moved = jax.tree.map(lambda a, b: a - b, want.params, state(cfg).params)
    error = jax.tree.map(lambda a, b: a - b, got.params, want.params)
    size = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(moved)))
    off = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(error)))
    assert off < 0.05 * size


@pytest.mark.parametrize(
    ("rollout", "want"),
    [
        ({}, "sampler_scorer_gap"),
        ({"file": "some.jsonl"}, "off_policy_gap"),
        ({"policy": "teacher"}, "off_policy_gap"),
    ],
)
def test_whose_rollouts_they_are_names_the_gap(rollout, want):
    options = {}
    if "policy" in rollout:
        options = {
            "loss": LossConfig(method="sft", sft_rows="all"),
            "teacher": TeacherConfig(kind="frozen"),
        }
    cfg = config(rollout=RolloutConfig(prompts=4, group=4, **rollout), **options)
    assert objectives.log_name(objectives.SAMPLED_LOGP_GAP, cfg) == want
    assert objectives.log_name("loss", cfg) == "loss"
