"""One verifier per kind of problem, for training and evaluation alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from mopd_jax import codebook
from mopd_jax.config_dict import InputError, unknown
from mopd_jax.records import Problem, Verdict
from mopd_jax.verifiers import choice, exact, gym, math, tools

VERIFIERS: dict[str, Callable[[Problem, str], Verdict]] = {
    "choice": choice.verify,
    "codebook": codebook.verify,
    "exact": exact.verify,
    "math": math.verify,
    "reasoning_gym": gym.verify,
    "tools": tools.verify,
}
# Raise InputError where what a verifier needs is not installed.
_INSTALLED: dict[str, Callable[[], None]] = {"math": math.check_installed}


def check(problems: Iterable[Problem]) -> None:
    """Called before any time is spent on a run.

    Raises:
        InputError: a problem names a verifier that does not exist, or one whose packages are
            not installed.
    """
    checked: set[str] = set()
    for problem in problems:
        name = problem.verifier
        if name in checked:
            continue
        if name not in VERIFIERS:
            where = f"problem {problem.id!r}: verifier {name!r}"
            raise InputError(unknown(where, name, VERIFIERS))
        _INSTALLED.get(name, lambda: None)()
        checked.add(name)


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
