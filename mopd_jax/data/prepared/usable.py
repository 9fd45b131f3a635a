"""Checks whether a problem of any source can be stored, read by a model, and judged."""

from __future__ import annotations

from mopd_jax import verifiers
from mopd_jax.data.prepared.rows import problem_fault
from mopd_jax.records import Problem


def unusable(problem: Problem, *, formulas: bool = True) -> str:
    """Why a problem cannot be used; "" if no fault is found.

    Args:
        formulas: also read gold formulas, which takes most of the time.

    Raises:
        InputError: a package that the problem's verifier needs is not installed.
    """
    if wrong := problem_fault(problem):
        return wrong
    if problem.verifier == "math" and not formulas:
        return ""
    return verifiers.unusable(problem)
