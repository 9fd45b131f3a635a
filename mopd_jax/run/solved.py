"""Keeps which problems of a run were solved by at least one rollout, at any step so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mopd_jax.records import Outcomes, Problem


@dataclasses.dataclass(frozen=True)
class Solved:
    """Ids of the problems that were trained on, and of those that were solved."""

    seen: frozenset[str] = frozenset()
    solved: frozenset[str] = frozenset()

    def after(self, problems: Sequence[Problem], outcomes: Outcomes) -> Solved:
        """The record after one more step.

        Args:
            problems: [P]; the same problem may occur twice, or again at another step.
        """
        ids = [problem.id for problem in problems]
        won = [name for name, row in zip(ids, outcomes.success, strict=True) if row.any()]
        return Solved(self.seen.union(ids), self.solved.union(won))

    def metrics(self) -> dict[str, float]:
        """Counts, and the share of the seen problems that were solved; NaN before the first."""
        seen, solved = len(self.seen), len(self.solved)
        return {
            "problems_seen": seen,
            "problems_solved_ever": solved,
            "problems_solved_never": seen - solved,
            "problems_solved_ever_fraction": solved / seen if seen else float("nan"),
        }

    def to_json(self) -> dict[str, list[str]]:
        """The record as a checkpoint holds it: every id once, sorted."""
        return {"solved": sorted(self.solved), "unsolved": sorted(self.seen - self.solved)}

    @classmethod
    def from_json(cls, record: Mapping[str, Sequence[str]]) -> Solved:
        """The inverse of `to_json`."""
        solved = frozenset(record["solved"])
        return cls(solved.union(record["unsolved"]), solved)
