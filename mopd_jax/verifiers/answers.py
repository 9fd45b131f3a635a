"""What a response answers, as one string, for votes over several responses."""

from __future__ import annotations

from collections.abc import Callable

from mopd_jax import codebook
from mopd_jax.records import Problem
from mopd_jax.verifiers import exact

# Verifiers whose answers can be compared as strings. Equal answers should be written alike.
EXTRACT: dict[str, Callable[[str], str]] = {
    "codebook": codebook.extract,
    "exact": exact.extract,
    "reasoning_gym": exact.extract,
}


def answer(problem: Problem, response: str) -> str | None:
    """What the response answers, "" for nothing, None where the verifier has no such string."""
    extract = EXTRACT.get(problem.verifier)
    return None if extract is None else extract(response)
