"""Scores of a held-out evaluation: mean@n, unbiased pass@k, prompt-bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from mopd_jax.evaluation import estimates
from mopd_jax.overlap import overlapped
from mopd_jax.records import successes

Interval = tuple[float, float]
Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class Response:
    """One judged response to a held-out problem.

    problem, question: the problem's id, and a digest of what it asks and expects.
    sample: 0 to n - 1 among the responses to the problem.
    tokens: length in the student's tokens, the end token included.
    reward, test_fraction, format_ok, error: of the verdict (`records.Verdict`).
    stopped: false if the response was cut.
    tests_skipped: of the verdict.
    answer: the extracted answer, "" for none; None if answers are not compared as strings.
    """

    problem: str
    question: str
    sample: int
    text: str
    tokens: int
    reward: float
    test_fraction: float | None
    format_ok: bool | None
    error: str
    stopped: bool
    tests_skipped: int
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Outcomes of n responses to each held-out problem.

    success: bool[P, n].
    valid: bool[P, n], false without a verdict: neither a success nor a failure.
    lengths: i[P, n], response tokens.
    stopped: bool[P, n], false where a response was cut.
    test_fraction: f64[P, n], NaN where the verifier ran no tests; None: it ran none at all.
    """

    success: np.ndarray
    valid: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    test_fraction: np.ndarray | None = None

    @property
    def solved(self) -> np.ndarray:
        """f64[P, n]: 1 for a success, 0 for a failure, NaN without a verdict."""
        return np.where(self.valid, self.success, np.nan)

    def summary(self, ks: Sequence[int]) -> dict[str, float]:
        """mean@n and pass@k, each with the ends of its 95 % interval over prompts."""
        n = self.success.shape[1]
        per_prompt = {f"mean@{n}": estimates.mean(self.solved)}
        per_prompt |= {
            f"pass@{k}": estimates.pass_at_k(self.success, self.valid, k=k) for k in ks
        }
        table: dict[str, float] = {}
        for name, values in per_prompt.items():
            mean = estimates.estimate(values)
            table |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
        if self.test_fraction is not None:
            table["test_fraction"] = estimates.estimate(
                estimates.mean(self.test_fraction)
            ).value
        return table | {
            "response_tokens": float(self.lengths.mean()),
            "truncated": float((~self.stopped).mean()),
            "verifier_errors": int((~self.valid).sum()),
            "problems": self.success.shape[0],
        }


def gain(
    before: np.ndarray, after: np.ndarray, *, k: int | None = None
) -> tuple[float, Interval]:
    """Mean difference over the same prompts, and its 95 % paired interval.

    Args:
        before, after: f64[P, n] as `Evaluation.solved`, the same P problems in the same order.
        k: of pass@k; None: the difference of solve rates.
    """

    def per_prompt(solved: np.ndarray) -> np.ndarray:
        if k is None:
            return estimates.mean(solved)
        return estimates.pass_at_k(solved == 1, ~np.isnan(solved), k=k)

    change = estimates.estimate(per_prompt(after) - per_prompt(before))
    return change.value, (change.low, change.high)


def evaluate(
    sample: Callable[[int, int], Batch],
    judge: Callable[[Batch], list[list[Response]]],
    problems: int,
    *,
    batch: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda starts: starts,
) -> list[list[Response]]:
    """Runs `judge(sample(start, stop))` over problems in batches of `batch`: responses [P][n].

    A batch is judged while the next is sampled.

    Args:
        progress: wraps the batch starts, to show progress.
    """
    starts = progress(range(0, problems, batch))
    batches = (sample(start, min(start + batch, problems)) for start in starts)
    judged = overlapped(batches, judge)
    return [row for rows in judged() for row in rows]


def outcome(responses: Sequence[Sequence[Response]], *, threshold: float) -> Evaluation:
    """The responses [P][n] as arrays; a success has a verdict and reaches the threshold."""

    def field(read: Callable[[Response], float | bool]) -> np.ndarray:
        return np.array([[read(r) for r in row] for row in responses])

    valid = field(lambda r: not r.error)
    fraction = field(lambda r: np.nan if r.test_fraction is None else r.test_fraction)
    return Evaluation(
        success=successes(field(lambda r: r.reward), valid, threshold=threshold),
        valid=valid,
        lengths=field(lambda r: r.tokens),
        stopped=field(lambda r: r.stopped),
        test_fraction=fraction if np.isfinite(fraction).any() else None,
    )
