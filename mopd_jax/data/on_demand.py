"""Problems that are read or made when they are asked for."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from mopd_jax.records import Problem


class LazyProblems(Sequence[Problem]):
    """A sequence by its length and one problem at a time; a slice is a list."""

    @abc.abstractmethod
    def problem(self, place: int) -> Problem:
        """The problem at a place from 0 to the length - 1."""

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self.problem(range(len(self))[place])
