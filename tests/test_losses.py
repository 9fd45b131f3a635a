"""The loss that people import: denominators, masks, constant factors, messages."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax import (
    Divergence,
    Hidden,
    Logits,
    Stored,
    batch_totals,
    distill_loss,
    kernels,
    losses,
    token_weights,
)

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
    hidden, head, other, other_head = (np.float32(rng.standard_normal(s)) for s in shapes)
    targets = np.int32(rng.integers(0, V, (N, T)))
    return Hidden(hidden, head), Hidden(other, other_head), targets, MASK


def scale_of(aggregation):
    """What that aggregation needs beside the totals of a whole batch."""
    return T if aggregation == "seq-mean-token-sum-norm" else None


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
    scale = scale_of(aggregation)
    weights = token_weights(MASK, aggregation=aggregation, totals=totals, scale=scale)
    want = by_hand(aggregation, every_row)
    np.testing.assert_allclose(np.sum(weights * VALUES), want, rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_of_a_batch_add_up_with_its_totals(aggregation):
    whole = token_weights(MASK, aggregation=aggregation)
    options = {"aggregation": aggregation, "scale": scale_of(aggregation)}
    options["totals"] = batch_totals(MASK)
    parts = [token_weights(MASK[i : i + 1], **options) for i in range(N)]
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
    with pytest.raises(ValueError, match="'mean' is not one of token-mean"):
        token_weights(MASK, aggregation="mean")


def test_the_loss_is_the_weighted_sum_of_its_factors():
    """Importance, constant factors and masked rows, against float64."""
    arrays = make()
    rng = np.random.default_rng(1)
    sampled = np.float32(rng.standard_normal((N, T)) - 2)
    sampled[0, 0] = -1000.0  # A ratio that would overflow is held, and capped.
    factors = np.float32(rng.random((N, T)))
    sampled[~MASK] = factors[~MASK] = np.nan
    mask = MASK & np.array([True, True, False, True])[:, None]
    weights = token_weights(mask, aggregation="seq-mean-token-sum")
    *models, targets, _ = arrays
    loss, stats = distill_loss(
        *(*models, targets, mask),
        weights=weights * jnp.where(mask, factors, 0),
        sampled_logp=sampled,
        importance_cap=2.0,
        divergence=Divergence("reverse_kl"),
        temperature=0.8,
    )
    student, teacher = (oracles.linear_logp(x.states, x.head, 0.8) for x in models)
    each = oracles.reverse_kl(student, teacher)
    logp = np.take_along_axis(student, targets[..., None], axis=-1)[..., 0]
    each = each * np.minimum(np.exp(np.clip(logp - sampled, -20, 20)), 2.0) * factors
    np.testing.assert_allclose(loss, np.sum(each[mask]) / 2, rtol=1e-5)
    assert np.all(np.asarray(stats.logp)[~mask] == 0)


def test_parts_of_a_batch_may_be_shorter():
    student, teacher, targets, _ = make()
    mask = MASK & np.array([True, False, True, False])[:, None]
    for aggregation in AGGREGATIONS:
        options = {"aggregation": aggregation, "scale": scale_of(aggregation)}
        weights = token_weights(mask, **options)
        whole, _ = distill_loss(student, teacher, targets, mask, weights=weights)
        options["totals"] = batch_totals(mask)
        parts = 0.0
        for row, length in ((0, 6), (1, 1), (2, 2), (3, 4)):
            at = np.s_[row : row + 1, :length]
            models = (Hidden(x.states[at], x.head) for x in (student, teacher))
            weights = token_weights(mask[at], **options)
            parts += distill_loss(*models, targets[at], mask[at], weights=weights)[0]
        np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_do_not_change_the_loss(aggregation, parts):
    student, teacher, targets, mask = make()
    hidden, head, other = student.states, student.head, teacher.states
    options = {"aggregation": aggregation, "totals": batch_totals(mask)}
    options["scale"] = scale_of(aggregation)

    @jax.jit
    def part(hidden, head, other, targets, mask):
        def loss(head):
            models = Hidden(hidden, head), Hidden(other, teacher.head)
            weights = token_weights(mask, **options)
            return distill_loss(*models, targets, mask, weights=weights)[0]

        return jax.value_and_grad(loss)(head)

    whole = part(hidden, head, other, targets, mask)
    split = [x.reshape(parts, -1, *x.shape[1:]) for x in (hidden, other, targets, mask)]
    summed = [part(h, head, *rest) for h, *rest in zip(*split, strict=True)]
    np.testing.assert_allclose(sum(x[0] for x in summed), whole[0], rtol=1e-6)
    np.testing.assert_allclose(sum(x[1] for x in summed), whole[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_nothing_but_the_student_is_differentiated(implementation):
    student, teacher, targets, mask = make()

    def loss(teacher, weights, sampled, alpha, temperature):
        return distill_loss(
            *(student, teacher, targets, mask),
            weights=weights,
            sampled_logp=sampled,
            importance_cap=2.0,
            divergence=Divergence(alpha=alpha),
            temperature=temperature,
            implementation=implementation,
        )[0]

    constants = (teacher, np.float32(MASK), np.zeros((N, T), np.float32))
    dials = (jnp.float32(0.3), jnp.float32(0.7))
    grads = jax.grad(loss, (0, 1, 2, 3, 4))(*constants, *dials)
    for grad in jax.tree.leaves(grads):
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
        return distill_loss(Hidden(h, head), Hidden(ht, head), ids, mask, **options)[0]

    stats = distill_loss(Hidden(hs, head), Hidden(ht, head), ids, mask)[1]
    shift = np.array([[0.5, -0.5, 5.0], [0.0, -30.0, 30.0]])
    old = np.asarray(stats.logp) - shift
    ratio = np.minimum(np.exp(np.clip(shift, -20, 20)), 2.0)
    weights = np.full(shape, 1 / 6)
    options = {"sampled_logp": jnp.float32(old), "importance_cap": 2.0}
    np.testing.assert_allclose(
        loss(hs, **options), (weights * ratio * stats.divergence).sum(), rtol=1e-5
    )
    # The ratio is a constant weight: the same gradient as with it given from outside.
    want = jax.grad(loss)(hs, weights=jnp.float32(weights * ratio))
    np.testing.assert_allclose(jax.grad(loss)(hs, **options), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"importance_cap": 2.0}, "importance_cap and sampled_logp belong together"),
        ({"sampled_logp": np.zeros((N, T))}, "belong together"),
        (
            {"importance_cap": 2.0, "sampled_logp": np.zeros((N, T)), "targets": None},
            "targets: importance_cap weighs the sampled tokens; give targets",
        ),
        ({"mask": np.float32(MASK)}, "mask: expected bool, got float32; write mask != 0"),
        ({"mask": np.ones((N, 2), bool)}, r"targets: T=6"),
        ({"sampled_logp": np.ones((N, 2)), "importance_cap": 2.0}, r"sampled_logp: T=2"),
        ({"weights": np.ones(N)}, r"weights: expected \[N T\]"),
        ({"weights": np.ones((N, T), np.int32)}, "weights: expected a floating dtype"),
        ({"importance_cap": 0.0, "sampled_logp": np.zeros((N, T))}, "must be positive"),
        (
            {"importance_cap": np.float32(2.0), "sampled_logp": np.zeros((N, T))},
            "importance_cap=.* is static, give a Python float",
        ),
        ({"divergence": "jsd"}, r"divergence='jsd' is a str; give a Divergence\(kind="),
        ({"student": np.ones((N, T, D))}, r"student: expected Hidden\(states, head\) or"),
        ({"teacher": np.ones((N, T, D))}, r"teacher: expected Hidden.*Stored\(ids, logp\)"),
        ({"targets": np.full((N, T), -100)}, "11 of 11 tokens of the mask have a label below"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    arrays = dict(zip(("student", "teacher", "targets", "mask"), make(), strict=True))
    with pytest.raises(ValueError, match=message):
        distill_loss(**(arrays | changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"totals": 4.0}, r"totals: expected `batch_totals\(mask\)`, got float"),
        (
            {"totals": batch_totals(MASK), "aggregation": "seq-mean-token-sum-norm"},
            "give its length too, scale=",
        ),
    ],
)
def test_totals_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        token_weights(MASK, **options)


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
    loss, stats = distill_loss(*make(), weights=weights)
    np.testing.assert_allclose(loss, np.sum(weights * stats.divergence), rtol=1e-6)


def test_truncated_ratios_are_constants():
    logp, sampled = np.float32([0.0, -1.0, -3.0]), np.float32([-1.0, -1.0, -1.0])
    got, grad = jax.value_and_grad(lambda x: jnp.sum(losses.truncated_ratio(x, sampled, 2.0)))(
        logp
    )
    np.testing.assert_allclose(got, 2.0 + 1.0 + np.exp(-2.0), rtol=1e-6)
    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_array_equal(losses.truncated_ratio(logp, sampled, None), 1)


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
    student, teacher, targets, mask = make()
    over = Divergence(support="teacher", top_k=3)
    stored = kernels.linear_topk(teacher, mask, 3)
    want, stats = distill_loss(student, teacher, targets, mask, divergence=over)
    # What a stored teacher knows is its support, whether it is said or not.
    for divergence in (over, Divergence(support="teacher"), Divergence()):
        got, same = distill_loss(student, stored, targets, mask, divergence=divergence)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(same.divergence, stats.divergence, atol=1e-6)


def test_the_loss_bounds_its_terms():
    free, clipped = (
        distill_loss(*make(), divergence=Divergence(clip=c))[0] for c in (None, 0.01)
    )
    assert 0 < clipped < free


# What the defaults mean.


def test_labels_that_are_ignored_make_the_mask():
    student, teacher, targets, mask = make()
    want, stats = distill_loss(student, teacher, targets, mask)
    for label in (-100, -1):
        labels = np.where(mask, targets, label)
        for given in (None, mask):
            got, same = distill_loss(student, teacher, labels, given)
            np.testing.assert_array_equal(got, want)
            jax.tree.map(np.testing.assert_array_equal, same, stats)


def test_an_ignored_label_under_a_true_mask_is_not_counted_in_silence():
    student, teacher, targets, mask = make()
    labels = targets.copy()
    labels[0, 1] = -100
    with pytest.raises(ValueError, match="1 of 11 tokens of the mask have a label below 0"):
        distill_loss(student, teacher, labels, mask)
    traced = jax.jit(lambda labels: distill_loss(student, teacher, labels, mask)[0])
    assert np.isnan(traced(labels)) and np.isfinite(traced(targets))


def test_stored_probabilities_in_place_of_log_probs_are_an_error():
    student, _, targets, mask = make()
    ids = np.arange(2, dtype=np.int32) + np.zeros((*targets.shape, 1), np.int32)
    logp = np.full(ids.shape, -1.0, np.float32)

    def loss(logp):
        return distill_loss(student, Stored(ids, logp), targets, mask)[0]

    right, outside = float(loss(logp)), np.where(mask, -1, 0.5)[..., None] + 0 * logp
    assert np.isfinite(right) and float(loss(outside.astype(np.float32))) == right
    logp[0, 1, 1] = 0.4
    with pytest.raises(ValueError, match="teacher.logp: 1 of 11 tokens of the mask have one"):
        loss(logp)
    assert np.isnan(jax.jit(loss)(logp))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["jsd", "reverse_kl"])
def test_targets_are_not_needed_where_nothing_reads_them(implementation, kind):
    student, teacher, targets, mask = make()
    options = {"divergence": Divergence(kind), "implementation": implementation}

    def run(targets):
        def loss(student):
            return distill_loss(student, teacher, targets, mask, **options)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(student)

    ((want, stats), grads), ((got, same), others) = run(targets), run(None)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert same.logp is None and same.teacher_logp is None
    np.testing.assert_allclose(same.entropy, stats.entropy, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), others, grads)


def test_without_targets_and_mask_every_position_counts():
    student, teacher, _, mask = make()
    got, stats = distill_loss(student, teacher)
    want, _ = distill_loss(student, teacher, None, np.ones_like(mask))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, np.mean(stats.divergence), rtol=1e-6)


@pytest.mark.parametrize("shape", [(N * T,), (2, 2, T), (1, N, 2, 3)])
def test_the_dimensions_of_the_tokens_are_free(shape):
    """Packed [M] and more dimensions, value and gradients, with an importance ratio."""
    student, teacher, targets, mask = make()
    sampled = np.float32(np.random.default_rng(2).standard_normal((N, T)) - 2)

    def run(shape):
        def of(x):
            return x.reshape(*shape, *x.shape[2:])

        def loss(states, head):
            return distill_loss(
                Hidden(of(states), head),
                Hidden(of(teacher.states), teacher.head),
                of(targets),
                of(mask),
                sampled_logp=of(sampled),
                importance_cap=2.0,
            )[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(student.states, student.head)

    got, want = run(shape), run((N, T))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)


def by_definition(student, teacher, mask, kind, alpha, temperature, weights=None):
    """The loss and its gradients to the student's states and head, in float64."""
    logp, logq = (
        oracles.linear_logp(x.states, x.head, temperature) for x in (student, teacher)
    )
    weights = mask / mask.sum() if weights is None else weights
    weights = np.where(mask, weights, 0)
    value = np.sum(weights * oracles.divergence(logp, logq, kind, alpha))
    slopes = weights[..., None] * oracles.divergence_grad(logp, logq, kind, alpha)
    return value, oracles.linear_grads(slopes, student.states, student.head, temperature)


def assert_float64(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
    for a, b in zip(jax.tree.leaves(got[1]), want[1], strict=True):
        assert oracles.relative(a, b) < tolerance


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("kind", ["jsd", "reverse_kl", "forward_kl"])
def test_a_teachers_logits_take_the_place_of_its_states(kind, implementation):
    """Against float64, with padding that only one side has and NaN where it is masked."""
    student, teacher, targets, mask = make()
    logits = np.einsum("nte,ve->ntv", teacher.states, teacher.head)
    logits = np.pad(logits, ((0, 0), (0, 0), (0, 2)), constant_values=np.nan)
    logits[~mask] = np.nan
    alpha = 0.3 if kind == "jsd" else None

    def loss(student):
        return distill_loss(
            *(student, Logits(logits), targets, mask),
            divergence=Divergence(kind, alpha),
            temperature=0.7,
            vocab_size=V,
            chunk_tokens=5,
            implementation=implementation,
        )[0]

    got = jax.jit(jax.value_and_grad(loss))(student)
    assert_float64(got, by_definition(student, teacher, mask, kind, alpha, 0.7))


def test_a_teachers_logits_are_read_a_chunk_at_a_time():
    """Of bfloat16 logits nothing of their size exists in float32."""
    tokens, vocab = 512, 256
    student = Hidden(jnp.ones((tokens, 8)), jnp.ones((vocab, 8)))
    teacher = Logits(jnp.zeros((tokens, vocab), jnp.bfloat16))

    def loss(student, teacher):
        return distill_loss(student, teacher, chunk_tokens=16)[0]

    # As traced: a CPU's compiler may widen bfloat16 as it likes.
    text = jax.jit(jax.grad(loss)).lower(student, teacher).as_text()
    assert f"tensor<{tokens}x{vocab}xbf16>" in text
    assert f"tensor<{tokens}x{vocab}xf32>" not in text


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.8, 0.999])
def test_a_schedule_compiles_once_and_is_exact(alpha, implementation):
    """alpha and temperature as arrays, against float64; outside the interval NaN shows."""
    student, teacher, targets, mask = make()
    alpha, temperature = jnp.float32(alpha), jnp.float32(0.7)
    got = scheduled(implementation)(student, teacher, targets, mask, alpha, temperature)
    want = by_definition(student, teacher, mask, "jsd", float(alpha), float(temperature))
    assert_float64(got, want)
    assert TRACES[implementation] == 1


TRACES = {}


@functools.cache
def scheduled(implementation):
    """Value and gradients, jitted; `TRACES` counts how often it is traced."""

    def loss(student, teacher, targets, mask, alpha, temperature):
        TRACES[implementation] = TRACES.get(implementation, 0) + 1
        return distill_loss(
            *(student, teacher, targets, mask),
            divergence=Divergence(alpha=alpha),
            temperature=temperature,
            chunk_tokens=5,
            implementation=implementation,
        )[0]

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_an_alpha_that_is_an_array_at_and_beyond_its_ends(implementation):
    run, arrays = scheduled(implementation), make()
    for alpha in (0.0, 1.0):
        value, grads = run(*arrays, jnp.float32(alpha), jnp.float32(0.7))
        assert value == 0
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), grads)
    for alpha, temperature in ((-0.1, 0.7), (1.1, 0.7), (0.5, 0.0), (0.5, -1.0)):
        assert np.isnan(run(*arrays, jnp.float32(alpha), jnp.float32(temperature))[0])


def test_a_divergence_is_a_pytree_of_what_may_change():
    static, leaf = Divergence(alpha=0.3), Divergence(alpha=jnp.float32(0.3))
    assert jax.tree.leaves(static) == [] and len(jax.tree.leaves(leaf)) == 1
    assert jax.tree.structure(static) != jax.tree.structure(Divergence(alpha=0.4))
    moved = jax.tree.map(lambda x: x + 0.1, leaf)
    np.testing.assert_allclose(moved.alpha, 0.4)
    doubled = jax.jit(lambda d: distill_loss(*make(), divergence=d)[0])
    np.testing.assert_allclose(doubled(leaf), doubled(static), rtol=1e-6)


@pytest.mark.parametrize("dial", ["alpha", "temperature"])
@pytest.mark.parametrize(
    "settings",
    [kernels.RowKernels(interpret=True), kernels.Blocks(8, 16, 32, 2**24, interpret=True)],
    ids=["pallas_gpu", "pallas_tpu"],
)
def test_a_schedule_is_refused_where_it_would_be_compiled_in(settings, dial):
    options = {"temperature": jnp.float32(0.7)}
    if dial == "alpha":
        options = {"divergence": Divergence(alpha=jnp.float32(0.3))}
    with pytest.raises(ValueError, match=f"{dial} is a JAX array, and implementation='pallas_"):
        distill_loss(*make(), implementation=settings, **options)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_constant_may_have_few_bits(dtype, implementation):
    """A teacher's states, head, logits and stored log-probs, against float64 of the same."""
    student, teacher, targets, mask = make()
    rounded = jax.tree.map(lambda x: jnp.asarray(x, dtype), teacher)
    wide = jax.tree.map(np.float64, rounded)
    options = {"implementation": implementation, "chunk_tokens": 5}

    def run(teacher, **more):
        def loss(student):
            return distill_loss(student, teacher, targets, mask, **options, **more)[0]

        return jax.jit(jax.value_and_grad(loss))(student)

    assert_float64(run(rounded), by_definition(student, wide, mask, "jsd", 0.5, 1.0))
    logits = jnp.einsum("nte,ve->ntv", teacher.states, teacher.head).astype(dtype)
    # An identity as head makes states of logits.
    direct = Hidden(np.float64(logits), np.eye(V))
    want = by_definition(student, direct, mask, "jsd", 0.5, 1.0)
    assert_float64(run(Logits(logits)), want)
    stored = kernels.linear_topk(rounded, mask, 3)
    assert stored.logp.dtype == jnp.float32
    few = Stored(stored.ids, stored.logp.astype(dtype))
    same = Stored(stored.ids, few.logp.astype(jnp.float32))
    got, want = run(few), run(same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert run(few)[1].states.dtype == jnp.float32


def test_a_loss_in_float64_has_weights_in_float64():
    with jax.enable_x64(True):
        student, teacher, targets, mask = make()
        student, teacher = jax.tree.map(np.float64, (student, teacher))
        got = jax.value_and_grad(lambda x: distill_loss(x, teacher, targets, mask)[0])(student)
        assert got[0].dtype == jnp.float64
        assert_float64(got, by_definition(student, teacher, mask, "jsd", 0.5, 1.0), 1e-12)


def test_a_student_may_be_its_logits():
    student, teacher, targets, mask = make()
    logits = jnp.einsum("ntd,vd->ntv", student.states, student.head)

    def loss(student):
        return distill_loss(student, teacher, targets, mask)[0]

    want, grads = jax.value_and_grad(loss)(student)
    got, grad = jax.value_and_grad(loss)(Logits(logits))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    to_states = jnp.einsum("ntv,vd->ntd", grad.values, student.head)
    np.testing.assert_allclose(to_states, grads.states, atol=1e-6)


def second_derivative(loss, order, student, direction):
    """The Hessian times `direction`, by one of two orders of differentiation."""
    if order == "forward over reverse":
        return jax.jvp(jax.grad(loss), (student,), (direction,))[1]

    def along(student):
        products = jax.tree.map(jnp.vdot, jax.grad(loss)(student), direction)
        return sum(jax.tree.leaves(products))

    return jax.grad(along)(student)


@pytest.mark.parametrize(
    ("order", "jitted"),
    [
        ("forward over reverse", True),
        ("forward over reverse", False),
        ("reverse over reverse", False),
    ],
)
def test_a_second_derivative_agrees_with_the_reference(order, jitted):
    student, teacher, targets, mask = make()
    direction = jax.tree.map(
        lambda x: np.sin(np.arange(x.size, dtype=np.float32)).reshape(x.shape), student
    )

    def product(implementation):
        def loss(student):
            options = {"implementation": implementation, "chunk_tokens": 4}
            return distill_loss(student, teacher, targets, mask, **options)[0]

        run = functools.partial(second_derivative, loss, order)
        return (jax.jit(run) if jitted else run)(student, direction)

    got, want = product("chunked"), product("reference")
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert oracles.relative(a, b) < 1e-4


def test_an_explicit_mesh_asks_for_the_sharding():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    student, teacher, targets, mask = make()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def placed(x):
        return Hidden(jax.device_put(x.states, rows), jax.device_put(x.head, everywhere))

    student, teacher = placed(student), placed(teacher)
    targets, mask = jax.device_put((targets, mask), rows)
    with jax.set_mesh(mesh):
        wanted = r"pass sharding=HeadSharding\(tokens="
        with pytest.raises(ValueError, match=rf"(student|mask)\S* lies as .* {wanted}"):
            distill_loss(student, teacher, targets, mask)
        weights = jax.device_put(token_weights(make()[3]), rows)
        with pytest.raises(ValueError, match=f"weights lies as .* {wanted}"):
            distill_loss(*make(), weights=weights)
        sampled = {"sampled_logp": weights, "importance_cap": 2.0}
        with pytest.raises(ValueError, match=f"sampled_logp lies as .* {wanted}"):
            distill_loss(*make(), **sampled)
        sharding = kernels.HeadSharding(("data",))
        got, _ = distill_loss(student, teacher, targets, mask, sharding=sharding)
        plain, _ = distill_loss(student, teacher, sharding=sharding)
    np.testing.assert_allclose(got, distill_loss(*make())[0], rtol=1e-6)
    np.testing.assert_allclose(plain, distill_loss(*make()[:2])[0], rtol=1e-6)


# What was spelled otherwise.


def old_arrays():
    student, teacher, targets, mask = make()
    return student.states, student.head, teacher.states, teacher.head, targets, mask


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill_loss(*old_arrays()), r"got 6; .*Hidden\(states, head\): distill_loss"),
        (lambda: distill_loss(*make(), behaviour_logp=MASK), "write sampled_logp="),
        (lambda: distill_loss(*make(), alpha=0.3), r"write divergence=Divergence\(alpha="),
        (lambda: distill_loss(*make(), support="full"), r"write divergence=Divergence\(suppo"),
        (lambda: distill_loss(*make(), aggregation="token-mean"), r"write weights=token_weigh"),
        (lambda: distill_loss(*make(), context_mask=MASK[:, 0]), "write mask=mask & context"),
        (lambda: distill_loss(*make(), rollout_weights=MASK), "write weights=token_weights"),
        (lambda: distill_loss(*make(), soft_cap=30.0), r"write Hidden\(states, head, soft_cap"),
        (lambda: batch_totals(MASK, context_mask=MASK[:, 0]), "write batch_totals"),
        (lambda: kernels.linear_divergence(*old_arrays()), r"got 6; .*linear_divergence\(stu"),
        (lambda: kernels.linear_divergence(*make(), kind="jsd"), r"Divergence\(kind="),
        (lambda: kernels.linear_logprob(*old_arrays()[2:]), r"got 4; .*linear_logprob\(model"),
        (lambda: kernels.linear_topk(*old_arrays()[2:5], 3), r"got 4; .*linear_topk\(model"),
    ],
)
def test_an_old_call_is_answered_with_the_new_one(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("StoredTeacher", r"Stored\(ids"),
        ("TopK", "Divergence"),
        ("logits_divergence", "Logits"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(name, new):
    with pytest.raises(ImportError, match=f"has no {name}; use .*{new}"):
        getattr(kernels, name)


def test_the_call_has_at_most_14_parameters():
    assert len(inspect.signature(distill_loss).parameters) <= 14


BARE = """
import importlib.abc, importlib.util, sys
import jax, numpy, jax.experimental.pallas, jax.experimental.pallas.tpu
import jax.experimental.pallas.triton
allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
allowed |= {"jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "mopd_jax"}

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
assert "ml_collections" not in allowed and "flax" not in allowed, sorted(allowed)
from mopd_jax import Hidden, distill_loss
ones = numpy.ones((2, 3, 4), numpy.float32)
head = numpy.eye(5, 4, dtype=numpy.float32)
print(float(distill_loss(Hidden(ones, head), Hidden(2 * ones, head))[0]))
"""


def test_the_loss_needs_nothing_but_jax_and_numpy():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0
