"""Held-out numbers: mean@n, pass@k, their intervals, paired gains, and the last batch."""

import numpy as np
import pytest

from mopd_jax.evaluation import estimates, scores
from mopd_jax.evaluation.scores import Evaluation
from mopd_jax.testing import response


def outcome(wins, n=8):
    success = np.arange(n) < np.asarray(wins)[:, None]
    true = np.ones(success.shape, bool)
    return Evaluation(success, true, np.full(success.shape, 3), true)


@pytest.mark.parametrize(("wins", "want"), [(1, 0.5), (2, 0.7857), (3, 0.9286), (4, 0.9857)])
def test_pass_at_4_of_8(wins, want):
    table = outcome([wins]).summary([1, 4, 8])
    assert table["pass@4"] == pytest.approx(want, abs=5e-5)
    assert table["pass@8"] == 1.0
    assert table["pass@1"] == table["mean@8"] == wins / 8


def test_the_summary_by_hand():
    success = np.array([[True, False], [False, False], [True, True]])
    lengths = np.array([[1, 2], [3, 4], [5, 9]])
    stopped = np.array([[True, True], [False, False], [True, True]])
    every = np.ones(success.shape, bool)
    table = Evaluation(success, every, lengths, stopped).summary([1, 2])
    assert table["mean@2"] == table["pass@1"] == 0.5
    assert table["pass@2"] == pytest.approx(2 / 3)
    assert table["response_tokens"] == 4.0
    assert table["truncated"] == pytest.approx(1 / 3)
    assert (table["verifier_errors"], table["problems"]) == (0, 3)
    for name in ("mean@2", "pass@1", "pass@2"):
        assert table[f"{name}_low"] <= table[name] <= table[f"{name}_high"]
    assert len(table) == 3 * 3 + 4


def test_what_has_no_verdict_is_neither_success_nor_failure():
    success = np.array([[True, False, False], [False, True, False], [False, False, False]])
    valid = np.array([[True, False, True], [False, True, False], [False, False, False]])
    got = Evaluation(success, valid, np.full((3, 3), 3), np.ones((3, 3), bool))
    table = got.summary([1, 2])
    # One of two, one of one, and a problem without any verdict, which has no value.
    assert table["mean@3"] == table["pass@1"] == 0.75
    assert table["pass@2"] == 1.0  # Of the first problem alone.
    assert np.isnan([table["pass@2_low"], table["pass@2_high"]]).all()
    assert table["verifier_errors"] == 6
    later = np.where([[True], [True], [True]], 1.0, got.solved)
    assert scores.gain(got.solved, later)[0] == 0.25


def test_the_interval_is_over_problems_not_samples():
    # Eight equal samples of a problem say no more than one: 40 coins, error 0.5 / sqrt(40).
    wins = np.where(np.arange(40) % 2, 8, 0)
    table = outcome(wins).summary([])
    width = table["mean@8_high"] - table["mean@8_low"]
    assert width == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(40), rel=0.1)


def test_the_gain_is_paired():
    before = outcome([0, 2, 4, 6] * 10).solved
    after = outcome([1, 3, 5, 7] * 10).solved
    # Every problem gains an eighth: the problems differ, their gains do not.
    assert scores.gain(before, after) == (0.125, (0.125, 0.125))
    assert scores.gain(after, before)[0] == -0.125
    assert scores.gain(before, before) == (0.0, (0.0, 0.0))
    both = estimates.pass_at_k(after == 1, k=2) - estimates.pass_at_k(before == 1, k=2)
    value, (low, high) = scores.gain(before, after, k=2)
    assert (value, (low, high)) == (both.mean(), estimates.bootstrap_interval(both))


def test_a_gain_without_an_effect_has_zero_inside():
    rng = np.random.default_rng(0)
    mean, (low, high) = scores.gain(rng.random((200, 8)) < 0.4, rng.random((200, 8)) < 0.4)
    assert low < 0 < high
    assert low < mean < high


@pytest.mark.parametrize(
    ("problems", "batch", "calls"),
    [
        (7, 3, [(0, 3), (3, 6), (6, 7)]),
        (6, 3, [(0, 3), (3, 6)]),
        (2, 3, [(0, 2)]),
        (1, 1, [(0, 1)]),
    ],
)
def test_batches_cover_every_problem_once(problems, batch, calls):
    made, shown = [], []

    def sample(start, stop):
        made.append((start, stop))
        return range(start, stop)

    def judge(numbers):
        return [[f"problem {i}"] for i in numbers]

    def progress(starts):
        shown.extend(starts)
        return starts

    got = scores.evaluate(sample, judge, problems, batch=batch, progress=progress)
    assert made == calls
    assert shown == [start for start, _ in calls]
    assert got == [[f"problem {i}"] for i in range(problems)]


def test_responses_as_arrays():
    rows = [
        [response(reward=1.0), response(reward=0.5, tokens=7), response(reward=1.0, error="E")],
        [response(stopped=False), response(test_fraction=0.25), response(reward=0.6)],
    ]
    got = scores.outcome(rows, threshold=0.6)
    assert got.success.tolist() == [[True, False, False], [False, False, True]]
    assert got.lengths.tolist() == [[3, 7, 3], [3, 3, 3]]
    assert got.stopped.tolist() == [[True] * 3, [False, True, True]]
    assert got.valid.tolist() == [[True, True, False], [True] * 3]
    np.testing.assert_array_equal(got.solved, [[1, 0, np.nan], [0, 0, 1]])
    # Of the second problem's three rows one ran tests; the first problem has no value.
    assert got.summary([])["test_fraction"] == 0.25
    without = scores.outcome([row[:1] for row in rows], threshold=1.0)
    assert without.test_fraction is None
    assert "test_fraction" not in without.summary([])
