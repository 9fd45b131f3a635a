"""Success, GRPO advantages, pass@k and its intervals, by hand and by counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mopd_jax import records
from mopd_jax.evaluation import estimates
from mopd_jax.update import advantages

REWARDS = np.array([[1.0, 0, 0, 0, 1, 0, 0, 0]])
ALL = np.ones((1, 8), bool)


def test_a_success_reaches_the_threshold():
    rewards = np.array([[0.0, 0.5, 0.99, 1.0]])
    assert records.successes(rewards, rewards >= 0, threshold=1.0).tolist() == [
        [False, False, False, True]
    ]
    assert records.successes(rewards, rewards >= 0, threshold=0.5).tolist() == [
        [False, True, True, True]
    ]


def test_advantages_by_hand():
    # Mean 2 / 8. Centred sum of squares 2 * 0.75**2 + 6 * 0.25**2 = 1.5, over 7, root 0.46291:
    # 0.75 / 0.46291 = 1.62018 and -0.25 / 0.46291 = -0.54006.
    centred = advantages.advantages(REWARDS, ALL, scale_by_std=False)
    np.testing.assert_array_equal(centred, np.where(REWARDS == 1, 0.75, -0.25))
    assert centred.dtype == np.float32
    scaled = advantages.advantages(REWARDS, ALL, scale_by_std=True)
    np.testing.assert_allclose(scaled, np.where(REWARDS == 1, 1.62018, -0.54006), atol=1e-5)


@pytest.mark.parametrize("scale", [False, True])
def test_a_row_without_a_verdict_moves_nothing(scale):
    valid = ALL.copy()
    valid[0, [1, 4]] = False
    got = advantages.advantages(np.where(valid, REWARDS, 77.0), valid, scale_by_std=scale)
    assert got[0, 1] == got[0, 4] == 0
    alone = advantages.advantages(REWARDS[valid][None], valid[valid][None], scale_by_std=scale)
    np.testing.assert_allclose(got[valid][None], alone, rtol=1e-6)


@pytest.mark.parametrize("scale", [False, True])
def test_no_advantage_without_a_contrast(scale):
    for rewards, valid in (
        (np.full((2, 4), 0.3), np.ones((2, 4), bool)),
        (np.arange(8.0).reshape(2, 4), np.zeros((2, 4), bool)),
        (np.arange(8.0).reshape(2, 4), np.eye(2, 4, dtype=bool)),
    ):
        got = advantages.advantages(rewards, valid, scale_by_std=scale)
        np.testing.assert_allclose(got, 0.0, atol=1e-7)


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(0, 1)))
def test_advantages_sum_to_zero_in_a_group_and_keep_the_order(rewards):
    got = advantages.advantages(rewards, np.ones((3, 5), bool), scale_by_std=False)
    np.testing.assert_allclose(got.sum(axis=1), 0.0, atol=1e-6)
    for row, values in zip(got, rewards, strict=True):
        assert (np.diff(row[np.argsort(values)]) >= 0).all()


def test_pass_at_k_of_appendix_b():
    success = np.arange(8)[None, :] < np.arange(1, 5)[:, None]
    got = estimates.pass_at_k(success, k=4)
    np.testing.assert_allclose(got, [0.5, 0.7857, 0.9286, 0.9857], atol=5e-5)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_pass_at_k_counts_subsets(n):
    for wins, k in itertools.product(range(n + 1), range(1, n + 1)):
        success = np.arange(n) < wins
        subsets = list(itertools.combinations(success, k))
        want = sum(map(any, subsets)) / len(subsets)
        np.testing.assert_allclose(estimates.pass_at_k(success[None], k=k), [want], atol=1e-12)


@pytest.mark.parametrize("k", [0, 9])
def test_pass_at_k_needs_enough_samples(k):
    with pytest.raises(ValueError, match="1 <= k <= 8"):
        estimates.pass_at_k(ALL, k=k)


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.binomial(8, 0.3, 60) / 8
        low, high = estimates.bootstrap_interval(values, resamples=400, seed=seed)
        assert low <= values.mean() <= high
        covered += low <= 0.3 <= high
    # 95 % of 200 with the binomial's spread; percentile intervals cover a little less.
    assert 177 <= covered <= 199


def test_the_interval_is_as_wide_as_the_error_of_the_mean():
    values = np.random.default_rng(1).normal(size=400)
    low, high = estimates.bootstrap_interval(values)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std() / 20, rtol=0.1)
    narrow = estimates.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert estimates.bootstrap_interval(values) == (low, high)
    assert estimates.bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_solve_variance_by_hand():
    success = np.array(
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool
    )
    valid = np.ones_like(success)
    valid[4, 1:3] = False  # One success and one failure with a verdict.
    got = advantages.solve_variance(success, valid)
    np.testing.assert_allclose(got, [3 / 16, 1 / 4, 0, 0, 1 / 4])
    assert advantages.solve_variance(success[:1], valid[:1] & False) == 0


@pytest.mark.parametrize("reward", [0.7, 0.1, 1 / 3])
@pytest.mark.parametrize("group", [3, 6, 7])
def test_equal_rewards_have_no_advantage_at_all(reward, group):
    """0.7 three times has a mean that is not 0.7."""
    rewards = np.full((2, group), reward)
    rewards[1, 0] = 0.0
    valid = np.ones_like(rewards, bool)
    valid[1, 0] = False
    for scale in (False, True):
        got = advantages.advantages(rewards, valid, scale_by_std=scale)
        np.testing.assert_array_equal(got, 0)
