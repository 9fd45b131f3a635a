"""Writes and reads rollout files: JSON lines for people to read and any method to train on.

A header, then one row a rollout: tokens, log-probs, verdict, the peers it was shown
(docs/rollouts.md has every field). `write` is atomic; `read` checks every line, and its errors
name line, field and value. One step's rows are in memory at a time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.files import dumps, write_lines
from mopd_jax.records import Problem, Tokenizer
from mopd_jax.rollouts.schema import (
    Header,
    Line,
    RolloutFileError,
    RolloutRow,
    header_fields,
    parse_header,
    parse_row,
    row_fields,
)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A file that was read to its end and checked; `batch` reads one step of it again.

    steps: the numbers of its steps, ascending.
    places: line and byte at which each step begins.
    problems: each once, by `key`.
    checksum: of all bytes.
    """

    path: pathlib.Path
    header: Header
    steps: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    problems: dict[str, Problem]
    checksum: int

    def turn(self, step: int) -> tuple[int, int]:
        """(index of the batch, number that keys the draws) of step `step`, from 1, of a run.

        The first pass has the file's own step numbers, so that it repeats the draws of the run
        that wrote it; every further pass counts on from the last of them.
        """
        passes, index = divmod(step - 1, len(self.steps))
        span = self.steps[-1] - self.steps[0] + 1
        return index, self.steps[index] + passes * span

    def batch(self, index: int) -> list[RolloutRow]:
        """The P * G rows of a step, group by group, rollouts in order.

        Raises:
            RolloutFileError: the file has changed since it was read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.places[index][1])
                place = self.places[index]
                _, _, rows = next(_steps(file, self.path, self.header, *place, vocab_size=None))
        except (OSError, StopIteration) as error:
            raise RolloutFileError(
                f"{self.path} has changed since it was opened; put it back, or start again"
            ) from error
        return rows


def write(path: pathlib.Path, header: Header, rows: Iterable[RolloutRow]) -> None:
    """Writes a file; a kill leaves the old one or the new one. Rows are taken one by one.

    A number that is not finite is written as null; where `read` needs it, it refuses the row.
    """
    records = itertools.chain([header_fields(header)], map(row_fields, rows))
    write_lines(path, map(dumps, records))


def read_header(path: pathlib.Path) -> Header:
    """The header alone, for checks that need not wait for the rows.

    Raises:
        RolloutFileError: the file is missing, or its first line is not a header of this
            version.
    """
    if not path.is_file():
        raise RolloutFileError(f"{path} is not a file; `mopd rollout --out={path}` writes one")
    with path.open("rb") as file:
        raw = file.readline()
    if not raw:
        raise RolloutFileError(f"{path} is empty; expected a header and rows")
    return parse_header(Line(path, 1), raw)


def check_fit(header: Header, path: pathlib.Path, cfg: Config, tokenizer: Tokenizer) -> None:
    """Raises ConfigError for a file that a run with `cfg` cannot train from.

    Raises:
        ConfigError: with the setting to change.
    """
    same = ("prompts", "group", "response_length", "temperature", "top_p", "top_k", "policy")
    settings: dict[str, tuple[Any, Any]] = {
        f"rollout.{name}": (getattr(header, name), cfg.rollout) for name in same
    }
    # Prompts of training and of evaluation must have the same text.
    settings["data.instruction"] = (header.instruction, cfg.data)
    for name, (want, section) in settings.items():
        have = getattr(section, name.split(".")[1])
        if want != have:
            raise ConfigError(
                f"rollout.file={path} was written with {name}={want!r}, and the config has "
                f"{have!r}; set {name}={want!r}, or write a file with the other"
            )
    wrote = (header.tokenizer, list(header.stop_ids))
    reads = (tokenizer.fingerprint, list(tokenizer.stop_ids))
    if wrote != reads:
        raise ConfigError(
            f"rollout.file={path} was written with tokenizer {wrote[0]}, stop ids {wrote[1]}, "
            f"and model.path={cfg.model.path} has tokenizer {reads[0]}, stop ids {reads[1]}: "
            f"the ids mean something else; set model.path (it was {header.model}), or write a "
            "file with this model"
        )


def read(
    path: pathlib.Path, tokenizer: Tokenizer | None = None, *, vocab_size: int | None = None
) -> Saved:
    """Reads and checks the whole file.

    Args:
        tokenizer: checks too that it makes `prompt_ids` of the messages, and `response` of
            `response_ids`, as the tokenizer did that wrote the file; None leaves this out.
        vocab_size: of the model that will read the tokens; None is that of the file.

    Raises:
        RolloutFileError: the first error, with its line, field and value.
    """
    header = read_header(path)
    steps: list[int] = []
    places: list[tuple[int, int]] = []
    problems: dict[str, Problem] = {}
    with path.open("rb") as file:
        begin = len(file.readline())
        for number, offset, rows in _steps(
            file, path, header, 2, begin, vocab_size=vocab_size, tokenizer=tokenizer
        ):
            steps.append(rows[0].step)
            places.append((number, offset))
            for row in rows[:: header.group]:
                problems.setdefault(key(row.asked), row.asked)
    if len(steps) != header.steps:
        raise RolloutFileError(
            f"{path} has {len(steps)} steps, and its header says {header.steps}; it was not "
            "written or copied whole"
        )
    return Saved(path, header, tuple(steps), tuple(places), problems, _checksum(path))


def key(problem: Problem) -> str:
    """Id and messages of a problem as one text: equal for equal problems."""
    return json.dumps([problem.id, *(dict(message) for message in problem.messages)])


def _checksum(path: pathlib.Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _steps(
    file: BinaryIO,
    path: pathlib.Path,
    header: Header,
    number: int,
    offset: int,
    *,
    vocab_size: int | None,
    tokenizer: Tokenizer | None = None,
) -> Iterator[tuple[int, int, list[RolloutRow]]]:
    """(line, byte, rows) of each step from line `number` on, at byte `offset` of the file.

    `vocab_size` and `tokenizer` as for `read`.
    """
    limit = min(header.vocab_size, vocab_size or header.vocab_size)
    step = _Step(header, number, offset)
    for line, raw in enumerate(file, start=number):
        where = Line(path, line)
        row = parse_row(where, raw, header, limit)
        if step.rows and row.step != step.number:
            yield step.line, step.offset, step.whole(path)
            if row.step < step.number:
                where.fail("step", row.step, f"more than {step.number}, the step before it")
            step = _Step(header, line, offset)
        new = step.add(where, row)
        if tokenizer is not None:
            if new and tuple(tokenizer.chat(row.messages)) != row.prompt_ids:
                where.fail("prompt_ids", row.prompt_ids, "the ids of messages")
            if tokenizer.decode(row.response_ids.tolist()) != row.response:
                where.fail("response", row.response, "the text of response_ids")
        offset += len(raw)
    if step.rows:
        yield step.line, step.offset, step.whole(path)


class _Step:
    """Collects the rows of one step, in any order."""

    def __init__(self, header: Header, line: int, offset: int) -> None:
        self.line, self.offset = line, offset
        self.number = 0
        self.rows: dict[tuple[int, int], RolloutRow] = {}
        self._header = header
        self._lines: dict[tuple[int, int], int] = {}
        self._first: dict[
            int, tuple[int, RolloutRow]
        ] = {}  # Line and row that begin each group.

    def add(self, where: Line, row: RolloutRow) -> bool:
        """Adds a row; whether it begins a group."""
        self.number = row.step
        key = (row.uid, row.rollout)
        if key in self._lines:
            where.error(
                f"step {row.step}, uid {row.uid}, rollout {row.rollout} is on line "
                f"{self._lines[key]} already; expected once"
            )
        new = row.uid not in self._first
        if new and len(self._first) == self._header.prompts:
            known = f"one of the {self._header.prompts} prompts of step {row.step}"
            where.fail("uid", row.uid, f"{known}: {list(self._first)}")
        line, first = self._first.setdefault(row.uid, (where.number, row))
        for name in ("problem", "messages", "prompt_ids"):
            if getattr(row, name) != getattr(first, name):
                same = f"the same as on line {line}, of the same uid {row.uid}"
                where.fail(name, getattr(row, name), same)
        self.rows[key], self._lines[key] = row, where.number
        return new

    def whole(self, path: pathlib.Path) -> list[RolloutRow]:
        """All rows, group by group in the order in which the groups begin."""
        group, prompts = self._header.group, self._header.prompts
        for uid, (line, _) in self._first.items():
            missing = [g for g in range(group) if (uid, g) not in self.rows]
            if missing:
                Line(path, line).error(
                    f"the group that begins here (step {self.number}, uid {uid}) is "
                    f"incomplete: no rollout {', '.join(map(str, missing))} of 0 to {group - 1}"
                )
        if len(self._first) < prompts:
            Line(path, max(self._lines.values())).error(
                f"step {self.number} ends after {len(self._first)} of its {prompts} prompts"
            )
        return [self.rows[uid, g] for uid in self._first for g in range(group)]
