"""Several updates of one step: who trains when, relative to whom, and weighed how."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train_step import CFG, ROWS, assert_trees_close, batch, config, run, state

from mopd_jax import losses
from mopd_jax.config import LossConfig
from mopd_jax.update import objectives, train_step
from mopd_jax.update.objectives import UpdateInputs, UpdateRows
from mopd_jax.update.teacher import Models

GROUP = 4


def updates(**changes):
    return dataclasses.replace(config().optimizer, **changes)


def part(rows, index, count):
    """The prompts index, index + count, ... with all their rows."""
    prompts = np.arange(ROWS // GROUP)[index::count]
    chosen = (prompts[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
    return jax.tree.map(lambda x: x[chosen], rows)


FROZEN = dataclasses.replace(config().teacher, kind="frozen")


def still(loss):
    """A teacher that does not move, where the loss has one."""
    return FROZEN if loss.method == "distill" else config().teacher


SAMPLER = [
    LossConfig(ratio_base="sampler"),
    LossConfig(ratio_base="sampler", method="grpo", aggregation="token-mean"),
    LossConfig(method="dpo"),
    LossConfig(method="sft"),
]


@pytest.mark.parametrize(
    "loss",
    [*SAMPLER[:3], pytest.param(SAMPLER[3], marks=pytest.mark.slow)],
    ids=lambda x: x.method,
)
def test_a_step_of_several_updates_is_these_updates(loss):
    """Two epochs of two mini-batches are four steps of one update on the same rows."""
    many = config(loss=loss, teacher=still(loss), optimizer=updates(mini_batches=2, epochs=2))
    one = config(loss=loss, teacher=still(loss))
    one = dataclasses.replace(one, rollout=dataclasses.replace(one.rollout, prompts=2))
    got, logged = run(many)
    want = state(one)
    totals = []
    for index in (0, 1, 0, 1):
        want, each = run(one, part(batch(), index, 2), want)
        totals.append(each)
    assert_trees_close(got.params, want.params, atol=1e-6)
    assert (int(got.step), int(want.step)) == (1, 4)
    for name in ("loss", "grad_norm", "trained_tokens", "active", "update_applied"):
        mean = np.mean([each[name] for each in totals])
        np.testing.assert_allclose(logged[name], mean, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("method", "cap"),
    [
        ("distill", None),
        ("grpo", None),
        ("distill", 1.1),
        pytest.param("grpo", 1.1, marks=pytest.mark.slow),
    ],
)
def test_the_trainers_ratio_is_to_the_student_before_the_step(method, cap):
    """As the sampler's, had it sampled with the trainer's log-probs; times a constant."""
    aggregation = "token-mean" if method == "grpo" else "seq-mean-token-mean"
    loss = LossConfig(method=method, aggregation=aggregation, rollout_cap=cap)
    if method == "distill":
        loss = dataclasses.replace(loss, importance_cap=1.05)
    optimizer = updates(epochs=3, learning_rate=0.3)
    trainer = config(loss=loss, teacher=still(loss), optimizer=optimizer)
    sampler = dataclasses.replace(trainer, loss=dataclasses.replace(loss, ratio_base="sampler"))
    rows, start = batch(), state(trainer)
    before = objectives.student_logp(start.params, rows, trainer, CFG).logp
    weight = losses.truncated_ratio(before, rows.sampled_logp, cap)
    assert cap is None or np.ptp(np.asarray(weight)[rows.mask]) > 0.1
    if cap is None:
        replayed = dataclasses.replace(rows, sampled_logp=before)
        want, _ = run(sampler, replayed, start)
        got, logged = run(trainer, rows, start)
        assert_trees_close(got.params, want.params, atol=2e-6)
        if method == "distill":
            assert 0 < logged["importance_capped"] < 1
        return
    # A constant factor of the tokens: another result than without.
    free = dataclasses.replace(trainer, loss=dataclasses.replace(loss, rollout_cap=None))
    (got, logged), (other, _) = run(trainer, rows, start), run(free, rows, start)
    assert 0 < logged["rollout_capped"] < 1
    with pytest.raises(AssertionError):
        assert_trees_close(got.params, other.params, atol=1e-6)


def test_one_update_needs_no_log_probs_before_it():
    """p_now / p_before is 1, whatever the cap; what is left is the truncated rollout weight."""
    tight = config(loss=LossConfig(importance_cap=0.5, rollout_cap=2.0))
    same = config(loss=LossConfig(importance_cap=2.0, ratio_base="sampler"))
    want, _ = run(same)
    got, logged = run(tight)
    assert_trees_close(got.params, want.params, atol=1e-7)
    assert "importance_capped" not in logged


def test_an_update_of_many_may_be_skipped():
    """Mini-batch 1 has no token: one update is made, one counted as skipped."""
    rows = batch()
    mask = np.array(rows.mask)
    mask[np.arange(ROWS) // GROUP % 2 == 1] = False
    cfg = config(optimizer=updates(mini_batches=2))
    got, logged = run(cfg, dataclasses.replace(rows, mask=mask))
    assert int(got.skipped) == 1
    assert int(got.step) == 1
    assert logged["update_applied"] == 0.5
    assert logged["updates_skipped"] == 1


@pytest.mark.parametrize("method", ["distill", "grpo"])
def test_row_weights_scale_their_rows(method):
    """Losses and gradients add up over rows; one of all ones is no weight at all."""
    weight = np.linspace(0, 1, ROWS).astype(np.float32)
    loss = LossConfig(method=method, aggregation="seq-mean-token-sum-norm")
    cfg = config(loss=loss, optimizer=updates(clip_norm=1e9))
    start = state(cfg)

    def step(row_weight):
        new, logged = run(cfg, dataclasses.replace(batch(), row_weight=row_weight), start)
        return first_moment(new), logged["loss"]

    even = np.arange(ROWS) % 2 == 0
    whole, *halves = (step(np.where(rows, weight, 0)) for rows in (True, even, ~even))
    want = jax.tree.map(jnp.add, *halves)
    assert_trees_close(whole, want, atol=1e-6)
    if method == "distill":
        plain, logged = run(cfg, None, start)
        ones = step(np.ones(ROWS, np.float32))
        assert_trees_close(ones, (first_moment(plain), logged["loss"]), atol=1e-7)


def first_moment(state):
    """A tenth of the gradient, after one update."""
    return optax.tree.get(state.optimizer, "mu")


def test_rows_without_weight_do_not_count_as_trained():
    weight = (np.arange(ROWS) % 4 == 0).astype(np.float32)
    _, logged = run(config(), dataclasses.replace(batch(), row_weight=weight))
    want = batch().mask[weight > 0].sum()
    assert logged["trained_tokens"] == want


def test_grpo_with_a_kl_pulls_back_to_the_reference():
    loss = LossConfig(method="grpo", aggregation="token-mean", kl_coef=0.5)
    cfg = config(loss=loss)
    start, rows = state(cfg), batch()
    flat = dataclasses.replace(rows, advantage=np.zeros(ROWS, np.float32))
    got, logged = run(cfg, flat, start)
    now, reference = (
        objectives.student_logp(params, rows, cfg, CFG).logp
        for params in (start.params, start.teacher)
    )
    gap = np.float64(reference - now)
    each = (np.exp(gap) - gap - 1)[rows.mask]
    np.testing.assert_allclose(logged["reference_kl"], each.mean(), rtol=1e-4)
    np.testing.assert_allclose(logged["loss"], 0.5 * each.mean(), rtol=1e-4)
    assert logged["update_applied"] == 1
    after = objectives.student_logp(got.params, rows, cfg, CFG).logp
    gap = np.float64(reference - after)
    assert (np.exp(gap) - gap - 1)[rows.mask].mean() < each.mean()
    jax.tree.map(np.testing.assert_array_equal, got.teacher, start.teacher)


def test_step_aggregation_trains_with_other_weights():
    """Unlike an average inside steps, which would leave every aggregation as it is."""
    steps = (np.cumsum(np.arange(7) % 3 == 2) * np.ones((ROWS, 1))).astype(np.int32)
    cfg = config(loss=LossConfig(aggregation="seq-mean-step-mean"))
    _, logged = run(cfg, dataclasses.replace(batch(), steps=steps))
    single, _ = run(cfg, dataclasses.replace(batch(), steps=np.zeros_like(steps)))
    whole, plain = run(config())
    assert_trees_close(single.params, whole.params, atol=1e-7)
    assert abs(logged["loss"] - plain["loss"]) > 1e-3 * plain["loss"]


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        LossConfig(aggregation="seq-mean-token-sum-norm"),
        LossConfig(method="grpo", aggregation="token-mean", kl_coef=0.1),
        LossConfig(method="dpo"),
    ],
    ids=["distill", "norm", "grpo", "dpo"],
)
def test_rows_of_several_lengths_add_up(loss):
    """Short and long rows, each padded to a length of their own, have the sums of all."""
    cfg = config(loss=loss)
    start = state(cfg)
    inputs = UpdateInputs(cfg, Models.of(cfg, CFG), start.teacher)
    prepared = train_step.prepare(start.params, batch(), inputs)
    rows, _ = jax.jit(functools.partial(train_step.weigh, inputs=inputs))(
        start.params, prepared
    )
    lengths = rows.batch.mask.sum(axis=1)
    short = np.flatnonzero(lengths <= 4)
    long = np.flatnonzero(lengths > 4)
    assert min(len(short), len(long)) >= 4
    cut = jax.tree.map(lambda x: x[short], rows)
    fields = ("response", "mask", "sampled_logp")
    cut = UpdateRows(
        dataclasses.replace(cut.batch, **{f: getattr(cut.batch, f)[:, :4] for f in fields}),
        cut.weights[:, :4],
    )
    add = jax.jit(functools.partial(train_step.accumulate, params=start.params, inputs=inputs))
    want = add(None, rows)
    got = add(add(None, cut), jax.tree.map(lambda x: x[long], rows))
    size = float(optax.tree.norm(want.gradients))
    assert size > 1e-3
    assert_trees_close(got.gradients, want.gradients, atol=2e-6 * size)
    assert_trees_close(got.metrics, want.metrics, rtol=1e-5, atol=1e-5)
    # The optimizer reads the sums alone.
    after, _ = train_step.apply(start, got, cfg=cfg)
    whole, _ = train_step.apply(start, want, cfg=cfg)
    assert_trees_close(after.params, whole.params, atol=1e-6)
