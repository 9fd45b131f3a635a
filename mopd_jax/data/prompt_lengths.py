"""Checks the length of prompts: one too long for the rollouts is an error, or left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mopd_jax.bars import bar
from mopd_jax.contexts.render import PromptTooLong
from mopd_jax.data.on_demand import ProblemsOnDemand
from mopd_jax.records import Problem, Tokenizer

log = logging.getLogger("mopd")
_SHOWN = 5


def fitting(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, limit: int, drop: bool = False
) -> tuple[Sequence[Problem], int]:
    """The problems whose prompts have at most `limit` tokens, in their order.

    Args:
        limit: `rollout.prompt_length`.
        drop: leave longer ones out with a warning; otherwise they are an error.

    Returns:
        The problems that fit (`problems` itself if all do), and the number left out.

    Raises:
        PromptTooLong: names the first problems, their tokens, the limit and the remedies; also
            if `drop` would leave no problem.
    """
    lengths = [len(tokenizer.chat(problem.messages)) for problem in bar(problems, "prompts")]
    places = [i for i, length in enumerate(lengths) if length > limit]
    if not places:
        return problems, 0
    first = ", ".join(f"{problems[i].id!r} ({lengths[i]} tokens)" for i in places[:_SHOWN])
    count = (
        f"{len(places)} of {len(lengths)} problems have prompts of more than "
        f"rollout.prompt_length={limit} tokens: {first}{', ...' if places[_SHOWN:] else ''}"
    )
    if not drop or len(places) == len(lengths):
        raise PromptTooLong(
            f"{count}; raise it, or take them out of the data (data.long_prompts='drop' leaves "
            "them out of training)"
        )
    log.warning("WARNING %s; they are left out (data.long_prompts='drop')", count)
    return _Selection(problems, [i for i, n in enumerate(lengths) if n <= limit]), len(places)


class _Selection(ProblemsOnDemand):
    """The problems at some places of a sequence, read on demand."""

    def __init__(self, problems: Sequence[Problem], places: list[int]):
        self._problems, self._places = problems, places

    def __len__(self) -> int:
        return len(self._places)

    def problem(self, place: int) -> Problem:
        return self._problems[self._places[place]]
