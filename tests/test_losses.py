"""The loss that people import: denominators, masks, constant factors, messages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax import batch_totals, distill_loss, kernels, losses, token_weights

N, T, D, V = 4, 6, 5, 11
# One row without a token, rows of different lengths.
MASK = np.arange(T) < np.int32([6, 0, 2, 3])[:, None]
VALUES = np.float32(np.random.default_rng(0).random((N, T)))
AGGREGATIONS = [
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
]


def make(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((N, T, D), (V, D), (N, T, D), (V, D))
    models = [np.float32(rng.standard_normal(s)) for s in shapes]
    return *models, np.int32(rng.integers(0, V, (N, T))), MASK


def by_hand(aggregation, every_row=False):
    """Sums over rows in Python, from the definitions."""
    rows = [VALUES[i][MASK[i]].astype(np.float64) for i in range(N)]
    count = N if every_row else sum(len(r) > 0 for r in rows)
    if aggregation == "token-mean":
        return sum(r.sum() for r in rows) / MASK.sum()
    if aggregation == "seq-mean-token-mean":
        return sum(r.mean() for r in rows if len(r)) / count
    if aggregation == "seq-mean-token-sum":
        return sum(r.sum() for r in rows) / count
    return sum(r.sum() for r in rows) / T


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("every_row", [False, True])
def test_weights_are_the_definitions(aggregation, every_row):
    totals = batch_totals(MASK, every_row=every_row)
    weights = token_weights(MASK, aggregation=aggregation, totals=totals)
    want = by_hand(aggregation, every_row)
    np.testing.assert_allclose(np.sum(weights * VALUES), want, rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_of_a_batch_add_up_with_its_totals(aggregation):
    totals = batch_totals(MASK)
    whole = token_weights(MASK, aggregation=aggregation)
    parts = [
        token_weights(MASK[i : i + 1], aggregation=aggregation, totals=totals) for i in range(N)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_no_token_is_no_weight(aggregation):
    weights = token_weights(np.zeros((N, T), bool), aggregation=aggregation)
    np.testing.assert_array_equal(weights, 0)


def test_a_scale_replaces_the_length():
    options = {"aggregation": "seq-mean-token-sum-norm"}
    weights = token_weights(MASK, scale=100.0, **options)
    np.testing.assert_allclose(weights, MASK / 100, rtol=1e-6)
    for changes in ({"aggregation": "token-mean", "scale": 3.0}, options | {"scale": 0.0}):
        with pytest.raises(ValueError, match="positive divisor of seq-mean-token-sum-norm"):
            token_weights(MASK, **changes)
    with pytest.raises(ValueError, match="'mean' is none of token-mean"):
        token_weights(MASK, aggregation="mean")


def test_the_loss_is_the_weighted_sum_of_its_factors():
    """Importance, rollout weights and both masks, against float64."""
    arrays = make()
    rng = np.random.default_rng(1)
    behaviour = np.float32(rng.standard_normal((N, T)) - 2)
    behaviour[0, 0] = -1000.0  # A ratio that would overflow is held, and capped.
    factors = np.float32(rng.random((N, T)))
    behaviour[~MASK] = factors[~MASK] = np.nan
    context = np.array([True, True, False, True])
    loss, stats = distill_loss(
        *arrays,
        context_mask=context,
        aggregation="seq-mean-token-sum",
        rollout_weights=factors,
        behaviour_logp=behaviour,
        importance_cap=2.0,
        divergence="reverse_kl",
        temperature=0.8,
    )
    hidden, head, other, other_head, targets, _ = arrays
    student, teacher = (
        oracles.linear_logp(*x, 0.8) for x in ((hidden, head), (other, other_head))
    )
    each = oracles.reverse_kl(student, teacher)
    logp = np.take_along_axis(student, targets[..., None], axis=-1)[..., 0]
    mask = MASK & context[:, None]
    each = each * np.minimum(np.exp(np.clip(logp - behaviour, -20, 20)), 2.0) * factors
    np.testing.assert_allclose(loss, np.sum(each[mask]) / 2, rtol=1e-5)
    assert np.all(np.asarray(stats.logp)[~mask] == 0)


def test_totals_know_the_context_mask_and_parts_may_be_shorter():
    arrays = make()
    context = np.array([True, False, True, False])
    for aggregation in AGGREGATIONS:
        scale = T if aggregation == "seq-mean-token-sum-norm" else None
        options = {"aggregation": aggregation, "scale": scale}
        whole, _ = distill_loss(*arrays, context_mask=context, **options)
        totals = batch_totals(MASK, context_mask=context)
        parts = 0.0
        for row, length in ((0, 6), (1, 1), (2, 2), (3, 4)):
            hidden, head, other, other_head, targets, mask = arrays
            cut = [x[row : row + 1, :length] for x in (hidden, other, targets, mask)]
            arrays_of_part = (cut[0], head, cut[1], other_head, *cut[2:])
            parts += distill_loss(
                *arrays_of_part, context_mask=context[row : row + 1], totals=totals, **options
            )[0]
        np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_do_not_change_the_loss(aggregation, parts):
    hidden, head, other, other_head, targets, mask = make()
    totals = batch_totals(mask)

    @jax.jit
    def part(hidden, head, other, targets, mask):
        def loss(head):
            arrays = (hidden, head, other, other_head, targets, mask)
            scale = T if aggregation == "seq-mean-token-sum-norm" else None
            options = {"aggregation": aggregation, "totals": totals, "scale": scale}
            return distill_loss(*arrays, **options)[0]

        return jax.value_and_grad(loss)(head)

    whole = part(hidden, head, other, targets, mask)
    split = [x.reshape(parts, -1, *x.shape[1:]) for x in (hidden, other, targets, mask)]
    summed = [part(h, head, *rest) for h, *rest in zip(*split, strict=True)]
    np.testing.assert_allclose(sum(x[0] for x in summed), whole[0], rtol=1e-6)
    np.testing.assert_allclose(sum(x[1] for x in summed), whole[1], rtol=1e-5, atol=1e-7)


def test_nothing_but_the_student_is_differentiated():
    arrays = make()
    factors, behaviour = np.ones((N, T), np.float32), np.zeros((N, T), np.float32)

    def loss(other, other_head, weights, factors, behaviour):
        return distill_loss(
            *arrays[:2],
            *(other, other_head, *arrays[4:]),
            weights=weights,
            rollout_weights=factors,
            behaviour_logp=behaviour,
            importance_cap=2.0,
        )[0]

    constants = (*arrays[2:4], np.float32(MASK), factors, behaviour)
    for grad in jax.grad(loss, (0, 1, 2, 3, 4))(*constants):
        np.testing.assert_array_equal(grad, 0)


def test_an_importance_ratio_is_held_in_both_directions():
    ratio = losses.importance_ratio(jnp.array([0.0, -900.0]), jnp.array([-900.0, 0.0]))
    np.testing.assert_allclose(ratio, np.exp([20.0, -20.0]), rtol=1e-6)


def grpo_oracle(logp, old, advantage, weights, low, high, dual):
    total = 0.0
    for n, a in enumerate(advantage):
        for t in range(logp.shape[1]):
            r = np.exp(np.clip(logp[n, t] - old[n, t], -20, 20))
            x = max(-a * r, -a * np.clip(r, 1 - low, 1 + high))
            if a < 0:
                x = min(x, -dual * a)
            total += weights[n, t] * x
    return total


def test_grpo_against_oracle():
    rng = np.random.default_rng(0)
    logp, old = rng.normal(size=(2, 6, 5)) - 2
    old[0, 0] = logp[0, 0] + 30  # Beyond the bound on the exponent.
    advantage = np.array([0.75, -0.25, 0.0, 1.6, -0.5, -2.0])
    weights = rng.random((6, 5))
    options = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    f32 = jnp.float32

    def loss(x):
        return losses.grpo_loss(x, f32(old), f32(advantage), f32(weights), **options)[0]

    want = grpo_oracle(logp, old, advantage, weights, 0.2, 0.28, 3.0)
    np.testing.assert_allclose(loss(f32(logp)), want, rtol=1e-5)
    grads = jax.grad(loss)(f32(logp))
    for n, t in [(0, 1), (1, 2), (3, 3), (5, 4)]:
        up, down = logp.copy(), logp.copy()
        up[n, t] += 1e-6
        down[n, t] -= 1e-6
        args = (old, advantage, weights, 0.2, 0.28, 3.0)
        slope = (grpo_oracle(up, *args) - grpo_oracle(down, *args)) / 2e-6
        np.testing.assert_allclose(grads[n, t], slope, rtol=1e-4, atol=1e-6)


def test_importance_weighs_tokens_and_is_constant():
    rng = np.random.default_rng(1)
    shape = (2, 3)
    hs, ht = (f for f in rng.normal(size=(2, *shape, 8)).astype(np.float32))
    head = rng.normal(size=(16, 8)).astype(np.float32)
    ids = rng.integers(0, 16, shape)
    mask = np.ones(shape, bool)

    def loss(h, **options):
        return distill_loss(h, head, ht, head, ids, mask, **options)[0]

    stats = distill_loss(hs, head, ht, head, ids, mask)[1]
    shift = np.array([[0.5, -0.5, 5.0], [0.0, -30.0, 30.0]])
    old = np.asarray(stats.logp) - shift
    ratio = np.minimum(np.exp(np.clip(shift, -20, 20)), 2.0)
    weights = np.full(shape, 1 / 6)
    options = {"behaviour_logp": jnp.float32(old), "importance_cap": 2.0}
    np.testing.assert_allclose(
        loss(hs, **options), (weights * ratio * stats.divergence).sum(), rtol=1e-5
    )
    # The ratio is a constant weight: the same gradient as with it given from outside.
    want = jax.grad(loss)(hs, weights=jnp.float32(weights * ratio))
    np.testing.assert_allclose(jax.grad(loss)(hs, **options), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"importance_cap": 2.0}, "importance_cap and behaviour_logp belong together"),
        ({"behaviour_logp": np.zeros((N, T))}, "belong together"),
        ({"weights": np.ones((N, T)), "aggregation": "token-mean"}, "have the normalisation"),
        ({"weights": np.ones((N, T)), "totals": batch_totals(MASK)}, "have the normalisation"),
        ({"context_mask": np.ones(3, bool)}, r"context_mask: N=3"),
        ({"context_mask": np.ones(N, np.float32)}, "context_mask: expected bool, got float32"),
        ({"mask": np.float32(MASK)}, "mask: expected bool, got float32; write mask != 0"),
        ({"totals": 4.0}, r"totals: expected `batch_totals\(mask\)`, got float"),
        (
            {"totals": batch_totals(MASK), "aggregation": "seq-mean-token-sum-norm"},
            "give its length too, scale=",
        ),
        ({"rollout_weights": np.ones((N, 2))}, r"rollout_weights: T=2"),
        ({"weights": np.ones(N)}, r"weights: expected \[N T\]"),
        ({"importance_cap": 0.0, "behaviour_logp": np.zeros((N, T))}, "must be positive"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    names = ("student_hidden", "student_head", "teacher_hidden", "teacher_head", "targets")
    arrays = dict(zip((*names, "mask"), make(), strict=True))
    with pytest.raises(ValueError, match=message):
        distill_loss(**(arrays | changes))


def test_step_weights_are_means_of_means():
    steps = np.int32([[0, 0, 0, 1, 1, 2]] * N)
    weights = token_weights(MASK, aggregation="seq-mean-step-mean", steps=steps)
    rows = []
    for i in range(N):
        parts = [VALUES[i][MASK[i] & (steps[i] == s)] for s in range(3)]
        parts = [np.mean(part, dtype=np.float64) for part in parts if len(part)]
        rows += [np.mean(parts)] if parts else []
    np.testing.assert_allclose(np.sum(weights * VALUES), np.mean(rows), rtol=1e-6)
    for changes in ({"aggregation": "token-mean", "steps": steps}, {"steps": None}):
        options = {"aggregation": "seq-mean-step-mean", "steps": steps} | changes
        with pytest.raises(ValueError, match="seq-mean-step-mean needs them"):
            token_weights(MASK, **options)
    loss, stats = distill_loss(*make(), aggregation="seq-mean-step-mean", steps=steps)
    np.testing.assert_allclose(loss, np.sum(weights * stats.divergence), rtol=1e-6)


def test_truncated_ratios_are_constants():
    logp, behaviour = np.float32([0.0, -1.0, -3.0]), np.float32([-1.0, -1.0, -1.0])
    got, grad = jax.value_and_grad(
        lambda x: jnp.sum(losses.truncated_ratio(x, behaviour, 2.0))
    )(logp)
    np.testing.assert_allclose(got, 2.0 + 1.0 + np.exp(-2.0), rtol=1e-6)
    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(losses.truncated_ratio(logp, behaviour, None), 1)


def test_k3_is_the_kl_on_average():
    """Over tokens of the policy: its mean is the KL, its gradient that of the formula."""
    rng = np.random.default_rng(0)
    p, q = oracles.log_softmax(rng.standard_normal((2, 50)))
    each = losses.k3_kl(np.float32(p), np.float32(q))
    assert np.all(np.asarray(each) >= 0)
    np.testing.assert_allclose(np.sum(np.exp(p) * each), oracles.reverse_kl(p, q), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(losses.k3_kl(x, np.float32(q))))(np.float32(p))
    np.testing.assert_allclose(slope, 1 - np.exp(q - p), atol=1e-4)
    assert np.isfinite(losses.k3_kl(np.float32(-1000.0), np.float32(0.0)))


def test_a_stored_teacher_takes_the_place_of_its_states():
    hidden, head, other, other_head, targets, mask = make()
    support = kernels.TopK(3, "teacher")
    kept = kernels.linear_topk(other, other_head, mask, 3)
    want, stats = distill_loss(hidden, head, other, other_head, targets, mask, support=support)
    got, same = distill_loss(hidden, head, kept, None, targets, mask, support=support)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(same.divergence, stats.divergence, atol=1e-6)
    for wrong in ((other, None), (kept, other_head)):
        with pytest.raises(ValueError, match="hidden states need a head"):
            distill_loss(hidden, head, *wrong, targets, mask, support=support)


def test_the_loss_bounds_its_terms():
    free, clipped = (distill_loss(*make(), divergence="jsd", clip=c)[0] for c in (None, 0.01))
    assert 0 < clipped < free
