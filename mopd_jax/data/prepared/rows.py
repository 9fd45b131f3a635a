"""One row of a source file: reading its fields, with an error that says where it stands."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mopd_jax.errors import InputError
from mopd_jax.records import Message, Problem

LONGEST = 200_000  # Characters of one text that a model reads or writes.
LONGEST_ID = 200
ROLES = ("system", "user", "assistant", "tool")
# Tab and line ends are text; other control characters are binary data, or a LaTeX command such
# as \beta that lost its backslash to an escape.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# An id stands in one line of reports, so line ends are none of its characters either.
_NOT_IN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class DataError(InputError):
    """A row or file cannot be used; the message names file, row and field."""


class WrongFile(DataError):
    """A file is not one of this data set, so its rows are not judged one by one."""


class LeftOut(Exception):
    """A well-formed row that does not belong to the data set; its text is the reason."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it stands in a file.

    where: file and row number (from 1), for messages.
    part: the file's name without its ending, which may name a split.
    number: among all rows of the source, from 0.
    folder: the name of the folder that the file lies in.
    """

    fields: Mapping[str, Any]
    where: str
    part: str
    number: int
    folder: str = ""

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
            # As literals: a name may be no text that a terminal or a file can hold.
            names = ", ".join(sorted(map(repr, self.fields)))
            raise self.error(f"no {name!r}; the row has {names[:200]}")
        if not isinstance(value, str):
            raise self.error(f"{name!r} is of type {type(value).__name__}; it must be text")
        if not value.strip():
            raise self.error(f"{name!r} is empty")
        return self.checked(value, repr(name), longest=longest)

    def checked(self, value: str, what: str, *, longest: int = LONGEST) -> str:
        """`value`, if it is text of a length that can be used; raises DataError if not."""
        if wrong := text_fault(value, what, longest=longest):
            raise self.error(wrong)
        return value

    def identifier(self, *names: str) -> str | int:
        """The first of `names` that the row has, the row's number if it has none of them.

        Raises:
            DataError: it is neither text that is not empty nor a whole number.
        """
        present = [name for name in names if name in self.fields]
        if not present:
            return self.number
        value = self.fields[present[0]]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            said = "give text or a whole number, or leave it out"
            raise self.error(f"{present[0]!r} is {short(value)}; {said}")
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
    """A problem, and the part of the source and the row that it came from.

    kind: the form of that row, where its data set has several that say so.
    where: file and row number, for messages.
    """

    problem: Problem
    part: str
    kind: str = ""
    where: str = ""


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
    by_system: two problems are one only where the system's turn is the same, too.
    """

    parse: Callable[[Row, Options], Sequence[Problem]]
    split: Callable[[Sequence[Parsed], Options], Splits]
    licence: str
    options: Options = dataclasses.field(default_factory=dict)
    hub: Hub | None = None
    shared: Callable[[Options], bool] = lambda options: False
    by_system: bool = False


def chat(system: str, user: str) -> tuple[Message, ...]:
    """A system turn, where there is one, and the user's."""
    turns = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": user})


def text_fault(value: str, what: str, *, longest: int = LONGEST) -> str:
    """Why a text cannot be used, with its name; "" if it can."""
    if len(value) > longest:
        return f"{what} has {len(value):,} characters; at most {longest:,}"
    if found := _CONTROL.search(value):
        return (
            f"{what} has the control character {found[0]!r} at {found.start()}: binary "
            "data, or a backslash that was read as an escape"
        )
    return _not_unicode(value, what)


def problem_fault(problem: Problem) -> str:
    """Why a problem cannot be stored, named or read by a model; "" if it can.

    Meta is for verifiers and its texts may be long (tests), so only what cannot be written is
    a fault of it.
    """
    if len(problem.id) > LONGEST_ID:
        return f"the id has {len(problem.id):,} characters; at most {LONGEST_ID}"
    if found := _NOT_IN_ID.search(problem.id):
        return f"the id has the control character {found[0]!r} at {found.start()}; remove it"
    for message in problem.messages:
        role, content = message["role"], message["content"]
        if role not in ROLES:
            return f"a message has the role {short(role)}; it must be one of {', '.join(ROLES)}"
        if not content.strip():
            return f"the message of the {role} is empty; write it, or leave it out"
        if wrong := text_fault(content, "a message"):
            return wrong
    texts = (("'answer'", problem.answer), ("'solution'", problem.solution))
    for what, text in texts:
        if wrong := text_fault(text, what):
            return wrong
    values = (("the id", problem.id), ("a message", problem.messages), ("'meta'", problem.meta))
    for what, value in values:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        except (ValueError, TypeError, RecursionError) as error:
            return f"{what} cannot be written as JSON ({error})"
        if wrong := _not_unicode(text, what):
            return wrong
    return ""


def _not_unicode(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{what} is no Unicode text ({error.reason})"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


def short(value: Any) -> str:
    """A value in a message, of type {...}, cut where it is long."""
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''}, of type {type(value).__name__}"
