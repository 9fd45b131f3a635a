"""Verdicts of the `reasoning-gym` package on its own tasks."""

from __future__ import annotations

from mopd_jax.records import Problem, Verdict
from mopd_jax.verifiers import exact


def verify(problem: Problem, response: str) -> Verdict:
    """The task's own score in [0, 1] of the extracted answer.

    The package gives partial credit to a text that merely contains the answer, so the answer is
    extracted first, and a success is a score of `peers.threshold`, by default 1.
    """
    import reasoning_gym

    score = reasoning_gym.get_score_answer_fn(problem.meta["task"])
    found = float(score(exact.extract(response), problem.meta["entry"]))
    # Some scorers sum up to a rounding above 1.
    return Verdict(1.0 if 1.0 < found < 1.0 + 1e-9 else found)
