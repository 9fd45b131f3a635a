"""Held-out evaluation: solve rate mean@n, unbiased pass@k, prompt-bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mopd_jax import groups, statistics

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Response:
    """One response to a held-out problem, as it was judged.

    problem, question: the problem's id, and a digest of what it asks and expects.
    sample: 0 to n - 1 among the responses to the problem.
    tokens: length in tokens of the student, the end token included.
    reward, test_fraction, format_ok, error: of the verdict (`records.Verdict`).
    stopped: false where the response was cut.
    answer: what it answers, "" for nothing, None where answers are not compared as strings.
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
    answer: str | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Outcome of n samples on each held-out problem.

    success: bool[P, n].
    lengths: i[P, n], response tokens.
    stopped: bool[P, n], false where a response was cut.
    errors: rows without a verdict; they count as unsolved.
    test_fraction: f64[P, n], NaN where the verifier gave none; None: it gave none at all.
    """

    success: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    errors: int
    test_fraction: np.ndarray | None = None

    def summary(self, ks: Sequence[int]) -> dict[str, float]:
        """mean@n and pass@k, each with the ends of its 95 % interval over prompts."""
        n = self.success.shape[1]
        per_prompt = {f"mean@{n}": self.success.mean(axis=1)}
        per_prompt |= {f"pass@{k}": groups.pass_at_k(self.success, k=k) for k in ks}
        table: dict[str, float] = {}
        for name, values in per_prompt.items():
            low, high = groups.bootstrap_interval(values)
            table |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        if self.test_fraction is not None:
            table["test_fraction"] = statistics.estimate(
                statistics.mean(self.test_fraction)
            ).value
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
    sample: Callable[[int, int], list[list[Response]]],
    problems: int,
    *,
    batch: int,
    progress: Callable[[Sequence[int]], Sequence[int]] = lambda starts: starts,
) -> list[list[Response]]:
    """Runs `sample(start, stop)` over problems in batches of `batch`: responses [P][n].

    Args:
        progress: wraps the batch starts, to show how far it is.
    """
    return [
        row
        for start in progress(range(0, problems, batch))
        for row in sample(start, min(start + batch, problems))
    ]


def outcome(responses: Sequence[Sequence[Response]], *, threshold: float) -> Evaluation:
    """The responses [P][n] as arrays; a success has a verdict and reaches the threshold."""

    def field(read: Callable[[Response], float | bool]) -> np.ndarray:
        return np.array([[read(r) for r in row] for row in responses])

    valid = field(lambda r: not r.error)
    fraction = field(lambda r: np.nan if r.test_fraction is None else r.test_fraction)
    return Evaluation(
        success=valid & groups.successes(field(lambda r: r.reward), threshold=threshold),
        lengths=field(lambda r: r.tokens),
        stopped=field(lambda r: r.stopped),
        errors=int((~valid).sum()),
        test_fraction=fraction if np.isfinite(fraction).any() else None,
    )
