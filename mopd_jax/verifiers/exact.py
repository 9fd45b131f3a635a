"""The verifier `exact`: the text in the last `<answer>` tag against the gold text."""

from __future__ import annotations

import re

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def extract(response: str) -> str:
    """The answer of a response: its last <answer> span, or all of it where it has none.

    Thoughts are not read (`thinking.answer_part`), and white space at both ends is removed.
    """
    text = answer_part(response)
    spans = _TAGGED.findall(text)
    return (spans[-1] if spans else text).strip()


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the extracted answer equals the gold answer up to outer white space, else 0."""
    answer = extract(response)
    return Verdict(float(answer == problem.answer.strip()), answer=answer or None)


def gold_response(problem: Problem) -> str:
    """The gold answer in the format that prompts ask for."""
    return f"<answer>{problem.answer}</answer>"


def mutated(problem: Problem) -> tuple[str, ...]:
    """Wrong responses, which must score 0."""
    return f"<answer>{problem.answer}x</answer>", "<answer></answer>"
