"""Bookkeeping of the G rollouts of each prompt, on the host: success, advantage, pass@k."""

from __future__ import annotations

import math

import numpy as np


def successes(rewards: np.ndarray, *, threshold: float) -> np.ndarray:
    """bool[P, G]: which rewards f64[P, G] reach the threshold."""
    return rewards >= threshold


def advantages(rewards: np.ndarray, valid: np.ndarray, *, scale_by_std: bool) -> np.ndarray:
    """GRPO advantages f32[P, G]: reward minus the group's mean (arXiv 2402.03300).

    Args:
        rewards: f64[P, G].
        valid: bool[P, G]; a row without a verdict has advantage 0 and moves no mean.
        scale_by_std: divide by the group's unbiased standard deviation + 1e-6.
    """
    count = valid.sum(axis=1, keepdims=True)
    mean = np.where(valid, rewards, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    # Of equal rewards the rounding of their mean would be left.
    largest = np.where(valid, rewards, -np.inf).max(axis=1, keepdims=True)
    flat = ~(valid & (rewards < largest)).any(axis=1, keepdims=True)
    centred = np.where(valid & ~flat, rewards - mean, 0.0)
    if scale_by_std:
        variance = (centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        centred = centred / (np.sqrt(variance) + 1e-6)
    return centred.astype(np.float32)


def solve_variance(success: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """p (1 - p) of each group, f64[P], p the solve rate of its rows with a verdict.

    0 where all of a group's outcomes are the same, at most 1/4. Groups weighed so give most to
    the problems that are solved half the time.

    Args:
        success, valid: bool[P, G].
    """
    count = np.maximum(valid.sum(axis=1), 1)
    rate = (success & valid).sum(axis=1) / count
    return rate * (1.0 - rate)


def pass_at_k(success: np.ndarray, valid: np.ndarray | None = None, *, k: int) -> np.ndarray:
    """Unbiased pass@k of each prompt, f64[P]: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Args:
        success: bool[P, n].
        valid: bool[P, n], false for rows without a verdict, which are no draws: n is the number
            of the others, and a prompt with fewer than k is NaN. None: all have one.
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
