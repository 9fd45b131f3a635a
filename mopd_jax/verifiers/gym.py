"""Verdicts of the `reasoning-gym` package on its own tasks."""

from __future__ import annotations

from collections.abc import Mapping

from mopd_jax.errors import InputError, unknown
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


def unusable(problem: Problem) -> str:
    """Why `meta` is not what a scorer needs, its task and the task's entry; "" if it is.

    Raises:
        InputError: the package is not installed.
    """
    task, entry = problem.meta.get("task"), problem.meta.get("entry")
    if not isinstance(task, str) or not isinstance(entry, Mapping):
        return (
            "verifier 'reasoning_gym' needs meta['task'], a task's name, and meta['entry'], "
            "the task's own entry"
        )
    try:
        import reasoning_gym
    except ImportError as error:
        raise InputError(
            "verifier 'reasoning_gym' needs the package of that name: "
            "pip install 'mopd_jax[smollm2]'"
        ) from error
    known = sorted(reasoning_gym.factory.DATASETS)
    return "" if task in known else unknown(f"meta['task'] {task!r}", task, known)
