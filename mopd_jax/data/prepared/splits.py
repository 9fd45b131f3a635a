"""Splits a data set into train and test, and removes duplicates."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence

import numpy as np

from mopd_jax.data.prepared.rows import DataError, Options, ParsedProblem, Splits
from mopd_jax.records import Problem

# Matches in train_v2, test-00000-of-00001 and chemistry_test; not in latest or contest.
_SPLIT = re.compile(r"(?<![a-z])(train|test)(?![a-z])")


def permuted(parsed: Sequence[ParsedProblem], *, share: float, seed: int) -> Splits:
    """Permutes the problems; the first `share` of them, rounded up, is test, the rest train.

    With share 0.1 and seed 42 these are the splits of the published SciKnowEval rows (compared
    row by row on chemistry and physics).
    """
    order = np.random.default_rng(seed).permutation(len(parsed))
    tests = math.ceil(share * len(parsed))
    problems = [parsed[i].problem for i in order]
    return {"train": problems[tests:], "test": problems[:tests]}


def by_file_names(parsed: Sequence[ParsedProblem]) -> Splits:
    """The splits by the names of the files: `...test...`, `...train...`.

    Raises:
        DataError: a file's name has neither word, or both.
    """
    splits: Splits = {"train": [], "test": []}
    for row in parsed:
        split = split_of(row.stem)
        if split is None:
            raise DataError(
                f"the file {row.stem} names no split; name files with 'train' and 'test'"
            )
        splits[split].append(row.problem)
    return splits


def split_of(stem: str) -> str | None:
    """The split in a file's name, `train` or `test` as a word; None for neither or both."""
    words = set(_SPLIT.findall(stem.lower()))
    return words.pop() if len(words) == 1 else None


def test_only(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    """Puts all problems into test."""
    del options
    return {"train": [], "test": [row.problem for row in parsed]}


def train_only(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    """Puts all problems into train."""
    del options
    return {"train": [row.problem for row in parsed], "test": []}


def question(problem: Problem, *, by_system: bool = False) -> str:
    """A text that is equal for duplicates: all turns, with any space as one blank.

    Args:
        by_system: include the system's turn.
    """
    turns = [m for m in problem.messages if by_system or m["role"] != "system"]
    spaced = [{**m, "content": " ".join(m["content"].split())} for m in turns]
    return json.dumps(spaced, sort_keys=True)


def without_duplicates(
    splits: Splits, *, by_system: bool = False
) -> tuple[Splits, dict[str, list[str]]]:
    """Removes from train what test also has and what train repeats; leaves test as it is.

    Args:
        by_system: problems with different system turns are different.

    Returns:
        The splits, and lists of ids. Removed from train: "train_in_test", "train_repeated", and
        "train_contradicted" (every copy of a question with several answers). Kept, so that
        results compare with those of others: "test_repeated".
    """
    text_of = functools.partial(question, by_system=by_system)
    tested: set[str] = set()
    duplicates: dict[str, list[str]] = {
        "train_in_test": [],
        "train_repeated": [],
        "train_contradicted": [],
        "test_repeated": [],
    }
    for problem in splits["test"]:
        if text_of(problem) in tested:
            duplicates["test_repeated"].append(problem.id)
        tested.add(text_of(problem))
    answers: dict[str, set[str]] = {}
    for problem in splits["train"]:
        answers.setdefault(text_of(problem), set()).add(problem.answer)
    kept, seen = [], set()
    for problem in splits["train"]:
        text = text_of(problem)
        if text in tested:
            duplicates["train_in_test"].append(problem.id)
        elif len(answers[text]) > 1:
            duplicates["train_contradicted"].append(problem.id)
        elif text in seen:
            duplicates["train_repeated"].append(problem.id)
        else:
            kept.append(problem)
        seen.add(text)
    return {"train": kept, "test": splits["test"]}, duplicates
