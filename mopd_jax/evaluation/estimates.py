"""Statistics of an evaluation: means, pass@k, best@n, bootstrap intervals, paired tests.

All functions take values f64[P] or f64[P, n] of P problems with n responses each. NaN is a
value that is not defined: it is left out and counted, never read as 0. docs/evaluation.md has
the definitions with their formulas.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

_ROUNDING = 1e-12  # Relative difference of equal sums whose terms were added in another order.


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95 % interval.

    value: NaN where no problem has a value.
    low, high: NaN where fewer than two have one, since one problem has no spread.
    problems: how many problems have a value.
    of: how many problems there are.
    """

    value: float
    low: float
    high: float
    problems: int
    of: int


@dataclasses.dataclass(frozen=True)
class Paired:
    """The mean difference `after - before` over the problems that have both values.

    before, after: means over these problems.
    low, high: ends of the 95 % interval of the difference, problems resampled in pairs.
    p_value: of the two-sided sign-flip test (`sign_flip`).
    problems, of: as in `Estimate`.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    problems: int
    of: int


def mean(values: np.ndarray) -> np.ndarray:
    """The mean of each row's defined values, f64[P]; NaN where a row has none.

    Args:
        values: f64[P, n].
    """
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def best_at(values: np.ndarray, *, n: int) -> np.ndarray:
    """Expected maximum of n draws with replacement from each row's defined values, f64[P].

    This is the limit of a bootstrap of best-of-n, without its noise: of m values in ascending
    order, the i-th is the maximum with probability (i / m)^n - ((i - 1) / m)^n. For c successes
    of m it is 1 - (1 - c / m)^n, which is below the unbiased pass@n (`pass_at_k`).

    Args:
        values: f64[P, m].
        n: number of draws, at least 1; it may be above m.
    """
    if n < 1:
        raise ValueError(f"best@{n} needs 1 draw or more")
    best = np.full(len(values), np.nan)
    for p, row in enumerate(values):
        known = np.sort(row[np.isfinite(row)])
        if len(known):
            below = (np.arange(len(known) + 1) / len(known)) ** n
            best[p] = known @ np.diff(below)
    return best


def worst_at(values: np.ndarray, *, n: int) -> np.ndarray:
    """Expected minimum of n draws with replacement, f64[P]; see `best_at`."""
    return -best_at(-np.asarray(values, float), n=n)


def majority(answers: Sequence[Sequence[str | None]], values: np.ndarray) -> np.ndarray:
    """Value of the most frequent answer of each problem, f64[P].

    Where answers tie, the expected value under a uniform choice among them. Answers are
    compared as strings, so the extractor must write equal answers alike. An answer whose
    responses have different values is worth their mean.

    Args:
        answers: [P][n]. "" is a response without an answer, which has no vote; a problem
            without any vote is worth 0. None: answers to this kind of problem are not compared;
            a problem with a None is NaN.
        values: f64[P, n]; a response with NaN keeps its vote, a problem with NaN only is NaN.
    """
    result = np.zeros(len(answers))
    for p, row in enumerate(answers):
        if any(answer is None for answer in row) or np.isnan(values[p]).all():
            result[p] = np.nan
            continue
        votes = collections.Counter(answer for answer in row if answer)
        most = max(votes.values(), default=0)
        worth = [
            mean(values[p][None, [i for i, a in enumerate(row) if a == answer]])[0]
            for answer, count in votes.items()
            if count == most
        ]
        if worth:
            result[p] = float(np.mean(worth))
    return result


def estimate(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of per-problem values f64[P] with its prompt-bootstrap interval."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Estimate(np.nan, np.nan, np.nan, 0, len(values))
    low, high = _interval(known, resamples, seed)
    return Estimate(float(known.mean()), low, high, len(known), len(values))


def paired(
    before: np.ndarray,
    after: np.ndarray,
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compares two runs on the same problems.

    Args:
        before, after: f64[P], the same P problems in the same order.
        permutations: see `sign_flip`.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape} are not values of equal problems")
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        nan = float("nan")
        return Paired(nan, nan, nan, nan, nan, nan, problems=0, of=len(before))
    difference = after[both] - before[both]
    low, high = _interval(difference, resamples, seed)
    return Paired(
        before=float(before[both].mean()),
        after=float(after[both].mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_value=sign_flip(difference, permutations=permutations, seed=seed),
        problems=int(both.sum()),
        of=len(before),
    )


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    return bootstrap_interval(values, resamples=resamples, seed=seed)


def sign_flip(differences: np.ndarray, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference by the sign-flip permutation test.

    Under the null hypothesis the two runs are exchangeable on every problem, so each difference
    is as likely with the other sign. The p-value is the share of sign patterns whose sum is at
    least as far from 0 as the one observed. Zero differences change no sum and are left out.

    Args:
        differences: f64[P], finite.
        permutations: where the differences other than 0 have at most so many sign patterns, all
            are counted. Else so many are drawn, and p is (1 + hits) / (1 + permutations), which
            is valid and never 0 (Phipson and Smyth 2010).
        seed: of the drawn patterns.

    Returns:
        p in (0, 1]; NaN without any difference, 1 if all are 0.
    """
    if not len(differences):
        return float("nan")
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    size = np.abs(moved)
    bound = abs(moved.sum()) - _ROUNDING * size.sum()
    if 2 ** len(moved) <= permutations:
        sums = np.zeros(1)
        for value in size:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= bound).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, permutations, 1000):
        count = min(1000, permutations - start)
        signs = rng.integers(0, 2, (count, len(size)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ size) >= bound).sum())
    return (1 + hits) / (1 + permutations)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down method, f64 of the same shape.

    Rejecting where the result is at most a level keeps the chance of any false rejection in the
    family at or below that level, whatever the dependence of the tests. NaN stays NaN and does
    not count as a member of the family.

    Args:
        p_values: f64[M], all tests of the family.
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1.0)
    return adjusted


def pass_at_k(success: np.ndarray, valid: np.ndarray | None = None, *, k: int) -> np.ndarray:
    """Unbiased pass@k of each prompt, f64[P]: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Args:
        success: bool[P, n].
        valid: bool[P, n], false for responses without a verdict, which do not count as draws: n
            is the number of the others, and a prompt with fewer than k is NaN. None: all have.
        k: at most n.
    """
    n = success.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n} samples per prompt")
    valid = np.ones(success.shape, bool) if valid is None else valid
    drawn = valid.sum(axis=1).tolist()
    misses = (valid & ~success).sum(axis=1).tolist()
    return np.array(
        [
            1.0 - math.comb(m, k) / math.comb(n, k) if n >= k else np.nan
            for m, n in zip(misses, drawn, strict=True)
        ]
    )


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of per-prompt values f64[P], prompts resampled."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(values), (resamples, len(values)))
    means = values[draws].mean(axis=1)
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
