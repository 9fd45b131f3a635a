"""Evaluation statistics against enumeration, simulation, scipy, and hand-worked cases."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd_jax.evaluation import estimates

NAN = float("nan")
REWARDS = hnp.arrays(
    float, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(0, 1)
)


def wins(c, n=8):
    return (np.arange(n) < c).astype(float)[None]


@pytest.mark.parametrize(
    ("c", "want"),
    [(0, 0), (1, 0.656), (2, 0.900), (3, 0.977), (4, 0.996), (5, 0.9996), (6, 1.000), (8, 1)],
)
def test_best_at_8_of_binary_rewards(c, want):
    (got,) = estimates.best_at(wins(c), n=8)
    assert got == pytest.approx(want, abs=5e-4 if c < 5 else 5e-5)
    assert got == pytest.approx(1 - (1 - c / 8) ** 8, abs=1e-12)
    (worst,) = estimates.worst_at(wins(c), n=8)
    assert worst == pytest.approx((c / 8) ** 8, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_and_worst_are_means_over_all_resamples(n):
    values = np.array([0.3, 0.9, 0.3, 0.1])
    draws = np.array(list(itertools.product(values, repeat=n)))
    assert estimates.best_at(values[None], n=n)[0] == pytest.approx(draws.max(axis=1).mean())
    assert estimates.worst_at(values[None], n=n)[0] == pytest.approx(draws.min(axis=1).mean())


def test_best_is_what_the_bootstrap_tends_to():
    rng = np.random.default_rng(0)
    values = rng.random(8)
    draws = values[rng.integers(0, 8, (40_000, 8))]
    got = estimates.best_at(values[None], n=8)[0]
    assert got == pytest.approx(draws.max(axis=1).mean(), abs=5 * 0.1 / math.sqrt(40_000))


@given(REWARDS, st.integers(1, 9))
def test_bounds_of_best_and_worst(values, n):
    best, worst = estimates.best_at(values, n=n), estimates.worst_at(values, n=n)
    mean = values.mean(axis=1)
    slack = 1e-9
    assert (worst <= mean + slack).all()
    assert (mean <= best + slack).all()
    assert (best <= values.max(axis=1) + slack).all()
    assert (worst >= values.min(axis=1) - slack).all()
    # n draws with replacement from n responses miss some of them; pass@n misses none.
    success = values > 0.5
    n = values.shape[1]
    best = estimates.best_at(success.astype(float), n=n)
    assert (best <= estimates.pass_at_k(success, k=n) + slack).all()


def test_values_that_are_not_defined_are_left_out():
    values = np.array([[0.2, NAN, 0.8], [NAN, NAN, NAN]])
    for found, want in (
        (estimates.mean(values), 0.5),
        (estimates.best_at(values, n=2), 0.65),
        (estimates.worst_at(values, n=2), 0.35),
    ):
        assert found[0] == pytest.approx(want)
        assert np.isnan(found[1])
    with pytest.raises(ValueError, match="best@0"):
        estimates.best_at(values, n=0)


@pytest.mark.parametrize(
    ("answers", "values", "want"),
    [
        (["1", "1", "2"], [1, 1, 0], 1),
        (["1", "2", "2"], [1, 0, 0], 0),
        (["1", "2"], [1, 0], 1 / 2),
        (["1", "2", "3"], [0, 1, 0], 1 / 3),
        (["1", "1", "2", "2", "3"], [0, 0, 1, 1, 1], 1 / 2),
        (["", "", "2"], [0, 0, 1], 1),
        (["", ""], [0, 0], 0),
        (["1", "1", "2"], [1, 0, 0], 1 / 2),  # One answer, judged both ways: its mean.
        ([None, None], [1, 1], NAN),
        (["1"], [1], 1),
    ],
)
def test_majority_by_hand(answers, values, want):
    (got,) = estimates.majority([answers], np.array([values], float))
    assert got == pytest.approx(want, nan_ok=True)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=7))
def test_majority_is_the_mean_over_uniform_tie_breaks(rows):
    answers = [answer for answer, _ in rows]
    # What is right is a function of the answer.
    right = dict(rows)
    values = np.array([[float(right[answer]) for answer in answers]])
    top = max(answers.count(a) for a in answers)
    tied = [a for a in sorted(set(answers)) if answers.count(a) == top]
    want = np.mean([right[a] for a in tied])
    assert estimates.majority([answers], values)[0] == pytest.approx(want)
    # The order of the responses says nothing.
    turned = estimates.majority([answers[::-1]], values[:, ::-1])
    assert turned[0] == pytest.approx(want)


def test_an_estimate_counts_what_is_defined():
    got = estimates.estimate(np.array([0.0, NAN, 1.0, 0.5]))
    assert (got.value, got.problems, got.of) == (0.5, 3, 4)
    assert (got.low, got.high) == estimates.bootstrap_interval(np.array([0.0, 1.0, 0.5]))
    one = estimates.estimate(np.array([NAN, 0.25]))
    assert (one.value, one.problems) == (0.25, 1)
    assert np.isnan([one.low, one.high]).all()
    none = estimates.estimate(np.array([NAN, NAN]))
    assert np.isnan([none.value, none.low, none.high]).all()
    assert (none.problems, none.of) == (0, 2)


def test_intervals_cover_the_mean():
    """Of 200 experiments a 95 % interval misses about 10, with a standard error of 3."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        got = estimates.estimate((rng.random(40) < 0.3).astype(float), resamples=400)
        missed += not got.low <= 0.3 <= got.high
    assert 1 <= missed <= 25


@pytest.mark.parametrize(
    ("differences", "want"),
    [
        ([], NAN),
        ([0.0, 0.0], 1.0),
        ([1.0], 1.0),
        ([1.0, 1.0], 1 / 2),
        ([1.0, 1.0, 1.0], 1 / 4),
        ([0.5] * 10, 2 / 1024),
        ([1.0, -1.0], 1.0),
        ([0.0, 3.0, 0.0, 1.0], 1 / 2),
    ],
)
def test_sign_flips_by_hand(differences, want):
    assert estimates.sign_flip(np.array(differences)) == pytest.approx(want, nan_ok=True)


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=8))
def test_sign_flips_are_an_enumeration(eighths):
    differences = np.array(eighths) / 8
    patterns = itertools.product((1, -1), repeat=len(eighths))
    sums = [abs(sum(s * d for s, d in zip(signs, eighths, strict=True))) for signs in patterns]
    want = np.mean([total >= abs(sum(eighths)) for total in sums])
    assert estimates.sign_flip(differences) == pytest.approx(want)
    assert estimates.sign_flip(-differences) == pytest.approx(want)


def test_sums_that_differ_by_rounding_are_ties():
    # Of four equal sizes, ten of sixteen patterns have a sum of two or four sizes; but that of
    # -0.9 - 0.9 - 0.9 + 0.9 is not quite -1.8.
    assert estimates.sign_flip(np.array([-0.9, -0.9, -0.9, 0.9])) == 10 / 16


def test_sign_flips_against_scipy():
    rng = np.random.default_rng(2)
    differences = rng.normal(0.4, 1.0, 12)
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert estimates.sign_flip(differences) == pytest.approx(theirs.pvalue)


def test_drawn_sign_flips_tend_to_the_exact_value_and_are_seeded():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.4, 1.0, 14)
    exact = estimates.sign_flip(differences, permutations=2**14)
    drawn = estimates.sign_flip(differences, permutations=10_000)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact / 10_000))
    assert drawn == estimates.sign_flip(differences, permutations=10_000)
    assert drawn != estimates.sign_flip(differences, permutations=10_000, seed=1)
    # However large the effect, no more than the draws can show.
    assert estimates.sign_flip(np.ones(40), permutations=999) == pytest.approx(1 / 1000)


def test_p_values_are_uniform_without_an_effect():
    """400 experiments under the null: rejections at 5 % are binomial, 20 with error 4.4."""
    rng = np.random.default_rng(4)
    p = [estimates.sign_flip(rng.normal(size=10)) for _ in range(400)]
    assert 5 <= np.sum(np.array(p) <= 0.05) <= 40
    assert abs(np.mean(p) - 0.5) < 5 * 0.29 / 20


def test_a_paired_comparison():
    before = np.array([0.0, 0.5, NAN, 1.0, 0.25])
    after = np.array([0.5, 1.0, 1.0, NAN, 0.75])
    got = estimates.paired(before, after)
    assert (got.problems, got.of) == (3, 5)
    assert got.before == pytest.approx(0.25)
    assert got.after == pytest.approx(0.75)
    assert got.difference == got.low == got.high == 0.5
    assert got.p_value == pytest.approx(1 / 4)
    mirrored = estimates.paired(after, before)
    assert mirrored.difference == -0.5
    assert mirrored.p_value == got.p_value
    nothing = estimates.paired(before[2:3], after[2:3])
    assert np.isnan([nothing.before, nothing.difference, nothing.low, nothing.p_value]).all()
    assert (nothing.problems, nothing.of) == (0, 1)
    with pytest.raises(ValueError, match="equal problems"):
        estimates.paired(before, after[:3])


def test_the_paired_interval_is_narrower_than_either():
    rng = np.random.default_rng(5)
    hardness = rng.random(100)
    before, after = hardness, np.clip(hardness + 0.02 + rng.normal(0, 0.02, 100), 0, 1)
    got = estimates.paired(before, after)
    alone = estimates.estimate(before)
    assert got.high - got.low < (alone.high - alone.low) / 5
    assert got.p_value < 0.01


def test_holm_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(estimates.holm(p), [0.03, 0.06, 0.06, 0.02])
    with_gaps = np.array([0.01, NAN, 0.04, 0.03, NAN, 0.005])
    np.testing.assert_allclose(estimates.holm(with_gaps), [0.03, NAN, 0.06, 0.06, NAN, 0.02])
    np.testing.assert_allclose(estimates.holm(np.array([0.6, 0.9])), [1.0, 1.0])
    assert len(estimates.holm(np.array([]))) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, level):
    order = np.argsort(p, kind="stable")
    rejected = set()
    for rank, i in enumerate(order):
        if (len(p) - rank) * p[i] > level:
            break
        rejected.add(int(i))
    adjusted = estimates.holm(np.array(p))
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected
    assert (adjusted >= np.array(p)).all()


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_holm_keeps_the_error_of_the_family(size, seed):
    """Under the null, min p below level / size is all it takes; the chance is at most level."""
    p = np.random.default_rng(seed).random((300, size))
    false = sum(bool((estimates.holm(row) <= 0.2).any()) for row in p)
    assert false / 300 <= 0.2 + 5 * 0.4 / math.sqrt(300)
