"""What a response answers, as one string, for votes over several responses."""

from __future__ import annotations

from collections.abc import Callable

from mopd_jax import codebook
from mopd_jax.records import Problem
from mopd_jax.verifiers import choice, exact, tools
from mopd_jax.verifiers.mathematics import rules

# Verifiers whose answers can be compared as strings. Equal answers should be written alike.
EXTRACT: dict[str, Callable[[Problem, str], str]] = {
    "choice": choice.answer,
    "codebook": lambda problem, response: codebook.extract(response),
    "exact": lambda problem, response: exact.extract(response),
    "math": rules.answer,
    "reasoning_gym": lambda problem, response: exact.extract(response),
    "tools": tools.answer,
}


def answer(problem: Problem, response: str) -> str | None:
    """What the response answers, "" for nothing, None where the verifier has no such string."""
    extract = EXTRACT.get(problem.verifier)
    return None if extract is None else extract(problem, response)
