"""Problems loaded or generated on demand."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import overload

from mopd_jax.records import Problem


class ProblemsOnDemand(Sequence[Problem]):
    """A sequence that makes each problem when it is indexed; a slice is a list.

    A subclass defines the length and `problem`.
    """

    @abc.abstractmethod
    def problem(self, place: int) -> Problem:
        """The problem at a place from 0 to the length - 1."""

    @overload
    def __getitem__(self, place: int) -> Problem: ...
    @overload
    def __getitem__(self, place: slice) -> list[Problem]: ...
    def __getitem__(self, place: int | slice) -> Problem | list[Problem]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.problem(range(len(self))[place])
