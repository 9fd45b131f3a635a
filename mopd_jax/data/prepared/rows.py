"""The records of preparing a data set, and the checks of a row's fields.

Errors name file, row and field.
"""

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
# An id is printed within one line of a report, so it may not have line ends either.
_NOT_IN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class DataError(InputError):
    """A row or file that cannot be used; the message names file, row and field."""


class WrongFile(DataError):
    """A file of another data set: an error as a whole, whose rows are not judged one by one."""


class LeftOut(Exception):
    """A well-formed row that does not belong to the data set; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """One row of a source file, as the file has it.

    where: file and row number (from 1), for messages.
    stem: the file's name without its ending, which may name a split.
    number: of the row among all rows of the source, from 0.
    folder: the name of the file's folder.
    """

    fields: Mapping[str, Any]
    where: str
    stem: str
    number: int
    folder: str = ""

    def error(self, what: str) -> DataError:
        """The error `what`, with file and row before it."""
        return DataError(f"{self.where}: {what}")

    def text(self, name: str, *, longest: int = LONGEST) -> str:
        """A field's text.

        Raises:
            DataError: it is missing, of another type, empty, longer than `longest`, or has
                characters that text does not have.
        """
        value = self.fields.get(name)
        if value is None:
            # Quoted and escaped, as a name may have characters that a terminal cannot print.
            names = ", ".join(sorted(map(repr, self.fields)))
            raise self.error(f"no {name!r}; the row has {names[:200]}")
        if not isinstance(value, str):
            raise self.error(f"{name!r} is of type {type(value).__name__}; it must be text")
        if not value.strip():
            raise self.error(f"{name!r} is empty")
        return self.checked(value, repr(name), longest=longest)

    def checked(self, value: str, what: str, *, longest: int = LONGEST) -> str:
        """`value` itself; raises DataError if `text_fault` finds a fault in it."""
        if wrong := text_fault(value, what, longest=longest):
            raise self.error(wrong)
        return value

    def identifier(self, *names: str) -> str | int:
        """The value of the first of `names` that the row has; without any, the row's number.

        Raises:
            DataError: the value is neither non-empty text nor a whole number.
        """
        present = [name for name in names if name in self.fields]
        if not present:
            return self.number
        value = self.fields[present[0]]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            remedy = "give text or a whole number, or leave it out"
            raise self.error(f"{present[0]!r} is {short(value)}; {remedy}")
        return value

    def first_text(self, *names: str) -> str:
        """The text of the first of `names` that the row has; raises DataError like `text`."""
        present = [name for name in names if self.fields.get(name) is not None]
        if not present:
            raise self.error(f"none of {', '.join(names)}; give one of them as text")
        return self.text(present[0])

    def number_of(self, name: str) -> float:
        """A field's finite number; raises DataError for anything else."""
        value = self.fields.get(name)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            raise self.error(f"{name!r} is {value!r}; it must be a number")
        return float(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A field's mapping; raises DataError for anything else."""
        value = self.fields.get(name)
        if not isinstance(value, Mapping):
            raise self.error(
                f"{name!r} is of type {type(value).__name__}; it must be an object"
            )
        return value

    def json(self, name: str) -> Any:
        """The value of a field: parsed if it is text (JSON), else as it is; may be None.

        Raises:
            DataError: the text is not JSON.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise self.error(f"{name!r} is not JSON ({error})") from error


@dataclasses.dataclass(frozen=True)
class ParsedProblem:
    """A problem and where it comes from.

    stem: the name of its row's file, without the ending.
    kind: the field `kind` of its row, by which some data sets tell their row formats apart.
    where: file and row number, for messages.
    """

    problem: Problem
    stem: str
    kind: str = ""
    where: str = ""


Options = Mapping[str, Any]
Splits = dict[str, list[Problem]]


@dataclasses.dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    revision: branch, tag or reference, which is resolved to a commit.
    files: patterns of the files to fetch.
    gated: the hub asks for a login and accepted terms.
    """

    repo: str
    revision: str = "main"
    files: tuple[str, ...] = ("*.parquet", "*.jsonl", "*.json")
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """How one data set is read.

    parse: makes a row's problems, mostly one; raises DataError or LeftOut.
    split: distributes all problems to train and test.
    licence: as its authors state it; "not stated" if they do not.
    options: every option with its default.
    shared: whether train and test share problems by intention, so duplicates stay.
    by_system: problems with different system turns are never duplicates.
    """

    parse: Callable[[SourceRow, Options], Sequence[Problem]]
    split: Callable[[Sequence[ParsedProblem], Options], Splits]
    licence: str
    options: Options = dataclasses.field(default_factory=dict)
    hub: HubSource | None = None
    shared: Callable[[Options], bool] = lambda options: False
    by_system: bool = False


def chat(system: str, user: str) -> tuple[Message, ...]:
    """The messages of a prompt: the system's, unless empty, and the user's."""
    turns = [{"role": "system", "content": system}] if system else []
    return (*turns, {"role": "user", "content": user})


def text_fault(value: str, what: str, *, longest: int = LONGEST) -> str:
    """Why a text cannot be used, as a sentence that begins with `what`; "" if it can."""
    if len(value) > longest:
        return f"{what} has {len(value):,} characters; at most {longest:,}"
    if match := _CONTROL.search(value):
        return (
            f"{what} has the control character {match[0]!r} at {match.start()}: binary "
            "data, or a backslash that was read as an escape"
        )
    return _not_unicode(value, what)


def problem_fault(problem: Problem) -> str:
    """Why a problem cannot be stored, named or read by a model; "" if it can.

    `meta` must only be writable as JSON. Its texts may be long, since verifiers read them
    (tests) and models do not.
    """
    if len(problem.id) > LONGEST_ID:
        return f"the id has {len(problem.id):,} characters; at most {LONGEST_ID}"
    if match := _NOT_IN_ID.search(problem.id):
        return f"the id has the control character {match[0]!r} at {match.start()}; remove it"
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
        return f"{what} is not Unicode text ({error.reason})"
    return ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


def short(value: Any) -> str:
    """A value and its type for a message, cut to 60 characters."""
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''}, of type {type(value).__name__}"
