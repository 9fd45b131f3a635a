"""Exact match of the extracted answer."""

from __future__ import annotations

import re

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def extract(response: str) -> str:
    """What a response answers: its last <answer> span, else all of it; outer space removed.

    Thoughts are not read (`thinking.answer_part`).
    """
    said = answer_part(response)
    tagged = _TAGGED.findall(said)
    return (tagged[-1] if tagged else said).strip()


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the extracted answer equals the gold answer up to outer space, else 0."""
    return Verdict(float(extract(response) == problem.answer.strip()))


def gold_response(problem: Problem) -> str:
    """The gold answer in the asked format."""
    return f"<answer>{problem.answer}</answer>"


def mutated(problem: Problem) -> tuple[str, ...]:
    """Responses that must score 0."""
    return f"<answer>{problem.answer}x</answer>", "<answer></answer>"
