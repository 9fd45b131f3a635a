"""DPO and SimPO: pairs, values and slopes against NumPy, and the update they make."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mopd_jax.config import Config, LossConfig, OptimizerConfig, RolloutConfig
from mopd_jax.models import decoder, scoring
from mopd_jax.testing import random_batch, tiny_decoder
from mopd_jax.update import preferences, train_step
from mopd_jax.update.teacher import Models

GROUP = 4
QUALITY = np.float32([0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, -0.5, -0.5])
USABLE = np.array([True] * 11 + [False])


def by_hand(score, beta, margin, smoothing):
    """The mean over the ordered pairs, written as loops."""
    each = []
    for a in range(len(score)):
        for b in range(len(score)):
            same = a // GROUP == b // GROUP
            if same and USABLE[a] and USABLE[b] and QUALITY[a] > QUALITY[b]:
                u = beta * (score[a] - score[b]) - margin
                likely = np.log1p(np.exp(-u)), np.log1p(np.exp(u))
                each.append((1 - smoothing) * likely[0] + smoothing * likely[1])
    return np.mean(each), len(each)


@pytest.mark.parametrize("beta, margin, smoothing", [(0.1, 0.0, 0.0), (2.0, 1.0, 0.1)])
def test_loss_and_slopes_by_hand(beta, margin, smoothing):
    score = np.random.default_rng(0).standard_normal(12)
    better = preferences.pairs(QUALITY, USABLE, group=GROUP)
    options = {"beta": beta, "margin": margin, "smoothing": smoothing}
    loss, slopes = jax.value_and_grad(preferences.preference_loss)(
        jnp.float32(score), better, **options
    )
    want, count = by_hand(score, beta, margin, smoothing)
    # 1 x 3 pairs, none where all are equal, 2 x 1 where one of the worse has no verdict.
    assert count == int(np.sum(better)) == 5
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for i in range(12):
        up, down = score.copy(), score.copy()
        up[i] += 1e-5
        down[i] -= 1e-5
        slope = (by_hand(up, **options)[0] - by_hand(down, **options)[0]) / 2e-5
        np.testing.assert_allclose(slopes[i], slope, rtol=1e-4, atol=1e-6)
    right, total = preferences.accuracy(jnp.float32(score), better)
    wanted = [score[a] > score[b] for a, b in np.argwhere(pair_matrix(better))]
    assert (int(right), int(total)) == (sum(wanted), 5)


def pair_matrix(better):
    """bool[N, N] of bool[P, G, G]."""
    full = np.zeros((12, 12), bool)
    for p, block in enumerate(np.asarray(better)):
        full[p * GROUP : (p + 1) * GROUP, p * GROUP : (p + 1) * GROUP] = block
    return full


def test_no_pair_is_no_loss_and_no_gradient():
    better = preferences.pairs(jnp.zeros(8), jnp.ones(8, bool), group=GROUP)
    loss, slopes = jax.value_and_grad(preferences.preference_loss)(
        jnp.arange(8.0), better, beta=1.0, margin=0.0, smoothing=0.0
    )
    assert loss == 0 and np.all(slopes == 0)


MODEL = tiny_decoder()


def update(method, batch, **loss):
    """A step of plain descent (Adam with a huge epsilon): (gradient tree, metrics, state)."""
    cfg = Config(
        rollout=RolloutConfig(prompts=2, group=GROUP, prompt_length=8, response_length=7),
        loss=LossConfig(method=method, **loss),
        optimizer=OptimizerConfig(
            learning_rate=1e6, epsilon=1e6, weight_decay=0.0, clip_norm=1e9, warmup_steps=0
        ),
    )
    params = decoder.init(jax.random.key(0), MODEL)
    models = Models.of(cfg, MODEL)
    state = train_step.init_state(params, jax.random.key(0), cfg=cfg, models=models)
    if method == "dpo":  # A reference that differs, as after some steps.
        state = state.__class__(
            **(vars(state) | {"teacher": decoder.init(jax.random.key(1), MODEL)})
        )
    step = functools.partial(train_step.train_step, cfg=cfg, models=models)
    new, logged = jax.jit(step)(state, batch)
    moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
    return moved, {k: r.mean() for k, r in jax.device_get(logged).items()}, state


def make_batch(advantage):
    made = random_batch(
        0, rows=8, prompt=8, teacher_prompt=8, response=7, vocab=MODEL.vocab_size
    )
    return made.__class__(**(vars(made) | {"advantage": np.float32(advantage)}))


ADVANTAGE = [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5]


def logps(params, batch):
    def score(params):
        arrays = (batch.prompt, batch.prompt_mask, batch.response, batch.mask)
        return scoring.score(params, *arrays, cfg=MODEL, temperature=1.0).logp

    return score(params)


@pytest.mark.parametrize("method", ["dpo", "simpo", "sft"])
def test_the_update_is_the_losses_gradient(method):
    """Against differentiating the whole loss through the model at once."""
    batch = make_batch(ADVANTAGE)
    moved, logged, state = update(method, batch)
    better = preferences.pairs(batch.advantage, np.ones(8, bool), group=GROUP)

    def loss(params):
        logp, tokens = logps(params, batch), np.sum(batch.mask, axis=1)
        if method == "sft":
            return -jnp.mean(jnp.sum(logp, axis=1) / tokens)
        if method == "dpo":
            score = jnp.sum(logp, axis=1) - jnp.sum(logps(state.teacher, batch), axis=1)
            return preferences.preference_loss(
                score, better, beta=0.1, margin=0.0, smoothing=0.0
            )
        score = jnp.sum(logp, axis=1) / tokens
        return preferences.preference_loss(score, better, beta=2.0, margin=1.0, smoothing=0.0)

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    np.testing.assert_allclose(logged["loss"], value, rtol=1e-5)
    size = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads))
    # The weights' own rounding is in the difference of them.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=5e-7 + 1e-5 * size),
        moved,
        grads,
    )
    if method != "sft":
        assert logged["pairs"] == 7


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_a_batch_without_pairs_trains_nothing(method):
    _, logged, _ = update(method, make_batch(np.zeros(8)))
    assert logged["update_applied"] == 0 and logged["trained_tokens"] == 0
    assert logged["pairs"] == 0 and logged["loss"] == 0
