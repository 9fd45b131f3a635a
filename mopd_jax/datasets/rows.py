"""One row of a source file: reading its fields, with an error that says where it stands."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mopd_jax.config_dict import InputError
from mopd_jax.records import Message, Problem

LONGEST = 200_000  # Characters of one text that a model reads or writes.
# Tab and line ends are text; other control characters are binary data, or a LaTeX command such
# as \beta that lost its backslash to an escape.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class DataError(InputError):
    """A row or file cannot be used; the message names file, row and field."""


class LeftOut(Exception):
    """A well-formed row that does not belong to the data set; its text is the reason."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it stands in a file.

    where: file and row number (from 1), for messages.
    part: the file's name without its ending, which may name a split.
    number: among all rows of the source, from 0.
    """

    fields: Mapping[str, Any]
    where: str
    part: str
    number: int

    def error(self, what: str) -> DataError:
        """The error that says so of this row."""
        return DataError(f"{self.where}: {what}")

    def text(self, name: str, *, longest: int = LONGEST) -> str:
        """A text that is not empty.

        Raises:
            DataError: missing, of another type, empty, too long, or not text.
        """
        value = self.fields.get(name)
        if value is None:
            raise self.error(f"no {name!r}; the row has {', '.join(sorted(self.fields))[:200]}")
        if not isinstance(value, str):
            raise self.error(f"{name!r} is of type {type(value).__name__}; it must be text")
        if not value.strip():
            raise self.error(f"{name!r} is empty")
        return self.checked(value, repr(name), longest=longest)

    def checked(self, value: str, what: str, *, longest: int = LONGEST) -> str:
        """`value`, if it is text of a length that can be used; raises DataError if not."""
        if len(value) > longest:
            raise self.error(f"{what} has {len(value):,} characters; at most {longest:,}")
        if found := _CONTROL.search(value):
            raise self.error(
                f"{what} has the control character {found[0]!r} at {found.start()}: binary "
                "data, or a backslash that was read as an escape"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(f"{what} is no Unicode text ({error.reason})") from error
        return value

    def first_text(self, *names: str) -> str:
        """The text of the first of `names` that the row has; raises DataError as `text`."""
        present = [name for name in names if self.fields.get(name) is not None]
        if not present:
            raise self.error(f"none of {', '.join(names)}; give one of them as text")
        return self.text(present[0])

    def number_of(self, name: str) -> float:
        """A finite number; raises DataError if it is missing or anything else."""
        value = self.fields.get(name)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not math.isfinite(value):
            raise self.error(f"{name!r} is {value!r}; it must be a number")
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A mapping; raises DataError if it is missing or anything else."""
        value = self.fields.get(name)
        if not isinstance(value, Mapping):
            raise self.error(
                f"{name!r} is of type {type(value).__name__}; it must be an object"
            )
        return value

    def json(self, name: str) -> Any:
        """The value of a field that holds JSON as text, or holds it already."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise self.error(f"{name!r} is no JSON ({error})") from error


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A problem and the part of the source that it came from."""

    problem: Problem
    part: str


Options = Mapping[str, Any]
Splits = dict[str, list[Problem]]


@dataclasses.dataclass(frozen=True)
class Hub:
    """Where a data set lies on the hub: repository, revision to resolve, and which files."""

    repo: str
    revision: str = "main"
    files: tuple[str, ...] = ("*.parquet", "*.jsonl", "*.json")
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """What is known of one data set.

    parse: a row and the options -> its problems, mostly one; raises DataError or LeftOut.
    split: all problems and the options -> train and test.
    options: every option with its default.
    licence: as its authors state it; "not stated" where they do not.
    shared: train and test have the same problems by intention, so no duplicates are sought.
    """

    parse: Callable[[Row, Options], Sequence[Problem]]
    split: Callable[[Sequence[Parsed], Options], Splits]
    licence: str
    options: Options = dataclasses.field(default_factory=dict)
    hub: Hub | None = None
    shared: Callable[[Options], bool] = lambda options: False


def chat(system: str, user: str) -> tuple[Message, ...]:
    """A system turn, where there is one, and the user's."""
    turns = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": user})
