"""Held-out evaluation: solve rate mean@n, unbiased pass@k, prompt-bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mopd_jax import groups

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Outcome of n samples on each held-out problem.

    success: bool[P, n].
    lengths: i[P, n], response tokens.
    stopped: bool[P, n], false where a response was cut.
    errors: rows without a verdict; they count as unsolved.
    """

    success: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    errors: int

    def summary(self, ks: Sequence[int]) -> dict[str, float]:
        """mean@n and pass@k, each with the ends of its 95 % interval over prompts."""
        n = self.success.shape[1]
        per_prompt = {f"mean@{n}": self.success.mean(axis=1)}
        per_prompt |= {f"pass@{k}": groups.pass_at_k(self.success, k=k) for k in ks}
        table: dict[str, float] = {}
        for name, values in per_prompt.items():
            low, high = groups.bootstrap_interval(values)
            table |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        return table | {
            "response_tokens": float(self.lengths.mean()),
            "truncated": float((~self.stopped).mean()),
            "verifier_errors": self.errors,
            "problems": self.success.shape[0],
        }


def gain(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """Mean difference of solve rates on the same prompts, and its 95 % paired interval.

    Args:
        before, after: bool[P, n], the same P problems in the same order.
    """
    difference = after.mean(axis=1) - before.mean(axis=1)
    return float(difference.mean()), groups.bootstrap_interval(difference)


def evaluate(
    sample: Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray, int]],
    problems: int,
    *,
    batch: int,
    progress: Callable[[Sequence[int]], Sequence[int]] = lambda starts: starts,
) -> Evaluation:
    """Runs `sample(start, stop)` over problems in batches of `batch`.

    Args:
        sample: -> (success bool[b, n], lengths i[b, n], stopped bool[b, n], errors).
        progress: wraps the batch starts, to show how far it is.
    """
    parts = [
        sample(start, min(start + batch, problems))
        for start in progress(range(0, problems, batch))
    ]
    success, lengths, stopped, errors = zip(*parts, strict=True)
    return Evaluation(
        np.concatenate(success), np.concatenate(lengths), np.concatenate(stopped), sum(errors)
    )
