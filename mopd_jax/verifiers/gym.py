"""The verifier `reasoning_gym`: the score of that package on its own tasks."""

from __future__ import annotations

from collections.abc import Mapping

from mopd_jax.errors import InputError, unknown
from mopd_jax.records import Problem, Verdict
from mopd_jax.verifiers import exact


def verify(problem: Problem, response: str) -> Verdict:
    """The task's own score of the extracted answer, in [0, 1].

    The package gives partial credit to any text that contains the answer, so the answer is
    extracted first. A success is a score of `peers.threshold`, by default 1.
    """
    answer = exact.extract(response)
    try:
        import reasoning_gym

        scorer = reasoning_gym.get_score_answer_fn(problem.meta["task"])
        score = float(scorer(answer, problem.meta["entry"]))
    except Exception as error:  # A scorer may raise anything; the answer is known all the same.
        message = f"{type(error).__name__}: {error}"
        return Verdict(0.0, error=message, answer=answer or None)
    # Some scorers sum up to slightly above 1, by rounding.
    return Verdict(1.0 if 1.0 < score < 1.0 + 1e-9 else score, answer=answer or None)


def unusable(problem: Problem) -> str:
    """Why no response can be scored: `meta` lacks a known task or its entry; "" if it has both.

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
