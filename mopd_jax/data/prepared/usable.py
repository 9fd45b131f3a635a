"""What any problem must be, from wherever it comes: to be stored, to be read, to be judged."""

from __future__ import annotations

from mopd_jax import verifiers
from mopd_jax.data.prepared.rows import problem_fault
from mopd_jax.records import Problem


def unusable(problem: Problem, *, formulas: bool = True) -> str:
    """Why a problem cannot be used; "" where nothing is known against it.

    Args:
        formulas: read gold formulas, too, which takes most of the time.

    Raises:
        InputError: what judges such a problem is not installed.
    """
    if wrong := problem_fault(problem):
        return wrong
    if problem.verifier == "math" and not formulas:
        return ""
    return verifiers.unusable(problem)
