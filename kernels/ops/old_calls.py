"""Answers calls in the form from before 0.1 with an error that gives today's form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_DIVERGENCE = "divergence=Divergence({name}=...)"
RENAMED = {
    "student_hidden": "student=Hidden(states, head)",
    "student_head": "student=Hidden(states, head)",
    "teacher_hidden": "teacher=Hidden(states, head)",
    "teacher_head": "teacher=Hidden(states, head)",
    "student_logits": "student=Logits(values)",
    "teacher_logits": "teacher=Logits(values)",
    "stored": "teacher=Stored(ids, logp)",
    "hidden": "model=Hidden(states, head)",
    "head": "model=Hidden(states, head)",
    "soft_cap": "Hidden(states, head, soft_cap=...), for each model",
    **{x: _DIVERGENCE.format(name=x) for x in ("kind", "alpha", "clip", "support", "tail")},
    "continuous": "weights=weights / (alpha * (1 - alpha)), a factor of the loss",
}
GONE = {
    "HiddenTeacher": "Hidden(states, head)",
    "StoredTeacher": "Stored(ids, logp)",
    "TopK": "Divergence(support=..., top_k=..., tail=...)",
    "stored_divergence": "linear_divergence(student, Stored(ids, logp), ...)",
    "logits_divergence": "linear_divergence(Logits(values), Logits(values), ...)",
}


def answered(
    most: int, spelling: str, renamed: Mapping[str, str] = RENAMED
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorates an op: a call with an old argument, or too many by position, says the new way.

    Args:
        most: arguments that may be given by position.
        spelling: how the op is called.
        renamed: {old keyword: what to write instead}.

    Raises:
        TypeError: when the op is called so.
    """

    def decorate(op: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(op)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if len(args) > most:
                raise TypeError(
                    f"{op.__name__} takes at most {most} arguments by position, got"
                    f" {len(args)}; a model's output is one argument, Hidden(states, head):"
                    f" {spelling}"
                )
            for name in kwargs:
                if name in renamed:
                    raise TypeError(
                        f"{op.__name__} has no argument {name!r}; write {renamed[name]}"
                    )
            return op(*args, **kwargs)

        return call

    return decorate
