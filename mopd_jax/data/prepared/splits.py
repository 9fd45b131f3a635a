"""Splitting a data set, and finding what stands in it twice."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from mopd_jax.data.prepared.rows import DataError, Options, Parsed, Splits
from mopd_jax.records import Problem

# Of train_v2, test-00000-of-00001 and chemistry_test; not of latest or contest.
_SPLIT = re.compile(r"(?<![a-z])(train|test)(?![a-z])")


def permuted(parsed: Sequence[Parsed], *, share: float, seed: int) -> Splits:
    """A random share (rounded up) is the test split; test and train in the permutation's order.

    With share 0.1 and seed 42 these are the very splits of the published SciKnowEval rows
    (compared row by row on chemistry and physics).
    """
    order = np.random.default_rng(seed).permutation(len(parsed))
    held = math.ceil(share * len(parsed))
    rows = [parsed[i].problem for i in order]
    return {"train": rows[held:], "test": rows[:held]}


def given(parsed: Sequence[Parsed]) -> Splits:
    """The splits that the file names say: `...test...`, `...train...`.

    Raises:
        DataError: a file's name says neither or both.
    """
    splits: Splits = {"train": [], "test": []}
    for row in parsed:
        said = named(row.part)
        if said is None:
            raise DataError(
                f"the file {row.part} names no split; name files with 'train' and 'test'"
            )
        splits[said].append(row.problem)
    return splits


def named(part: str) -> str | None:
    """The split that a file's name says as a word of its own, if it says one."""
    said = set(_SPLIT.findall(part.lower()))
    return said.pop() if len(said) == 1 else None


def test_only(parsed: Sequence[Parsed], options: Options) -> Splits:
    """All of it is for evaluation."""
    del options
    return {"train": [], "test": [row.problem for row in parsed]}


def train_only(parsed: Sequence[Parsed], options: Options) -> Splits:
    """All of it is for training."""
    del options
    return {"train": [row.problem for row in parsed], "test": []}


def question(problem: Problem, *, by_system: bool = False) -> str:
    """What makes two problems one: all turns, in any spacing; the system's only if asked."""
    turns = [m for m in problem.messages if by_system or m["role"] != "system"]
    said = [{**m, "content": " ".join(m["content"].split())} for m in turns]
    return json.dumps(said, sort_keys=True)


def without_duplicates(
    splits: Splits, *, by_system: bool = False
) -> tuple[Splits, dict[str, list[str]]]:
    """Train without what test has, and without its own repetitions; test as it is.

    Args:
        by_system: problems with different system turns are different.

    Returns:
        The splits, and the ids by what was found: "train_in_test" and "train_repeated" were
        removed, "train_contradicted" (one question, several answers, every copy) too, and
        "test_repeated" stay, so that results compare with those of others.
    """
    asked = functools.partial(question, by_system=by_system)
    held: set[str] = set()
    found: dict[str, list[str]] = {
        "train_in_test": [],
        "train_repeated": [],
        "train_contradicted": [],
        "test_repeated": [],
    }
    for problem in splits["test"]:
        if asked(problem) in held:
            found["test_repeated"].append(problem.id)
        held.add(asked(problem))
    answers: dict[str, set[str]] = {}
    for problem in splits["train"]:
        answers.setdefault(asked(problem), set()).add(problem.answer)
    kept, seen = [], set()
    for problem in splits["train"]:
        text = asked(problem)
        if text in held:
            found["train_in_test"].append(problem.id)
        elif len(answers[text]) > 1:
            found["train_contradicted"].append(problem.id)
        elif text in seen:
            found["train_repeated"].append(problem.id)
        else:
            kept.append(problem)
        seen.add(text)
    return {"train": kept, "test": splits["test"]}, found
