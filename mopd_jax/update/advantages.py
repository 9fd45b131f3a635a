"""Advantages and weights of rollouts from the rewards of their group, on the host."""

from __future__ import annotations

import numpy as np


def advantages(rewards: np.ndarray, valid: np.ndarray, *, scale_by_std: bool) -> np.ndarray:
    """GRPO advantages f32[P, G]: reward minus the group's mean (arXiv 2402.03300).

    Args:
        rewards: f64[P, G].
        valid: bool[P, G]; a row without a verdict has advantage 0 and is not in the mean.
        scale_by_std: divide by the group's unbiased standard deviation + 1e-6.
    """
    count = valid.sum(axis=1, keepdims=True)
    mean = np.where(valid, rewards, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    # Equal rewards have advantage 0 exactly; otherwise the rounding of their mean would remain.
    largest = np.where(valid, rewards, -np.inf).max(axis=1, keepdims=True)
    flat = ~(valid & (rewards < largest)).any(axis=1, keepdims=True)
    centred = np.where(valid & ~flat, rewards - mean, 0.0)
    if scale_by_std:
        variance = (centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1)
        centred = centred / (np.sqrt(variance) + 1e-6)
    return centred.astype(np.float32)


def solve_variance(success: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """p (1 - p) of each group, f64[P], p the solve rate of its rows with a verdict.

    0 where all of a group's outcomes are the same, at most 1/4: the largest weight goes to
    problems that are solved half the time.

    Args:
        success, valid: bool[P, G].
    """
    count = np.maximum(valid.sum(axis=1), 1)
    rate = (success & valid).sum(axis=1) / count
    return rate * (1.0 - rate)
