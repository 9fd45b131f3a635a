"""One verifier per kind of problem, for training and evaluation alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mopd_jax import codebook
from mopd_jax.records import Problem, Verdict
from mopd_jax.verifiers import exact, gym

VERIFIERS: dict[str, Callable[[Problem, str], Verdict]] = {
    "codebook": codebook.verify,
    "exact": exact.verify,
    "reasoning_gym": gym.verify,
}


def verify(problem: Problem, response: str, *, truncated: bool = False) -> Verdict:
    """The verdict on a response. Never raises: a verifier's own failure is its `error`.

    A row with an error is neither success nor failure, and the metrics count it. `truncated`
    says that the response was cut before it ended; it is noted, and changes no reward.
    """
    return dataclasses.replace(_judge(problem, response), truncated=truncated)


def _judge(problem: Problem, response: str) -> Verdict:
    try:
        verdict = VERIFIERS[problem.verifier](problem, response)
        if not 0.0 <= verdict.reward <= 1.0:  # False of nan too.
            return Verdict(0.0, error=f"reward {verdict.reward} is outside [0, 1]")
        return verdict
    except Exception as error:  # The boundary to verifiers: model text may break any parser.
        return Verdict(0.0, error=f"{type(error).__name__}: {error}")
