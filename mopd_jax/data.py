"""Problems from a source, and a seekable stream over them.

The order of an epoch is a pure function of (seed, epoch), so a position, one number, says all
there is to resume from. Sources: `codebook` and `reasoning_gym` generate their rows, `jsonl`
reads rows `{"id"?, "prompt" | "messages", "answer", "solution"?, "verifier"?, "meta"?}` from
files; the verifier is `exact` where none is named (docs/verifiers.md).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mopd_jax import codebook
from mopd_jax.config import ConfigError, DataConfig, unknown
from mopd_jax.config_dict import InputError
from mopd_jax.records import Problem, is_chat

_EPOCH_ORDER = 0xDA7A  # Separates this use of the seed from others.


class DataError(InputError):
    """A row or file cannot be used; the message names file, row and field."""


class ProblemStream:
    """Endless shuffled stream; every draw has a number that never repeats within a run."""

    def __init__(self, problems: Sequence[Problem], *, seed: int, position: int = 0):
        if not problems:
            raise DataError("the training split has no problems")
        self._problems = problems
        self._seed = seed
        self.position = position

    def take(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """The next problems and their draw numbers u32[count]; moves `position` on."""
        found = self.peek(count)
        self.position += count
        return found

    def peek(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """What `take` would give; moves nothing."""
        uids = np.arange(self.position, self.position + count)
        epochs, places = np.divmod(uids, len(self._problems))
        orders = {
            epoch: np.random.default_rng([_EPOCH_ORDER, self._seed, epoch]).permutation(
                len(self._problems)
            )
            for epoch in np.unique(epochs).tolist()
        }
        chosen = [orders[e][i] for e, i in zip(epochs.tolist(), places.tolist(), strict=True)]
        return [self._problems[i] for i in chosen], uids.astype(np.uint32)


def load(cfg: DataConfig, split: str, *, seed: int) -> list[Problem]:
    """All problems of a split, "train" or "eval", with `cfg.instruction` at their end.

    Raises:
        ConfigError: an option that the source does not have.
        DataError: a missing file, or a row that cannot be used.
    """
    problems = SOURCES[cfg.source](cfg, split, seed)
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(
                f"the {split} split has two problems with the id {problem.id!r}; give every "
                "problem its own id"
            )
        seen.add(problem.id)
    return [_instructed(problem, cfg.instruction) for problem in problems]


def _instructed(problem: Problem, instruction: str) -> Problem:
    """The problem itself says it, so that student, teacher and evaluation read the same."""
    if not instruction:
        return problem
    *before, last = problem.messages
    last = {**last, "content": f"{last['content']}\n\n{instruction}"}
    return dataclasses.replace(problem, messages=(*before, last))


def _codebook(cfg: DataConfig, split: str, seed: int) -> list[Problem]:
    _check_options(cfg, ())
    return codebook.problems(split, seed=seed)


def _reasoning_gym(cfg: DataConfig, split: str, seed: int) -> list[Problem]:
    """Generated tasks. options: task (required), train_size, eval_size, system, shots, and
    `task_options`, a mapping handed to the task's own configuration."""
    _check_options(cfg, ("task", "train_size", "eval_size", "system", "shots", "task_options"))
    options = {"train_size": 512, "eval_size": 128, "system": "", "shots": 0, **cfg.options}
    if "task" not in options:
        raise ConfigError("data.source 'reasoning_gym' needs data.options.task, a task's name")
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            "data.source 'reasoning_gym' needs the package of that name: "
            "pip install 'mopd_jax[smollm2]'"
        ) from error
    known = sorted(reasoning_gym.factory.DATASETS)
    if options["task"] not in known:
        raise ConfigError(unknown("data.options.task", options["task"], known))
    shots, train, held = options["shots"], options["train_size"], options["eval_size"]
    # One generator, three disjoint ranges of its rows: worked examples, training, evaluation.
    rows = reasoning_gym.create_dataset(
        options["task"],
        size=shots + train + held,
        seed=seed,
        **dict(options.get("task_options", {})),
    )
    before: list[dict[str, str]] = []
    if options["system"]:
        before.append({"role": "system", "content": options["system"]})
    for i in range(shots):
        before.append({"role": "user", "content": rows[i]["question"]})
        before.append({"role": "assistant", "content": str(rows[i]["answer"])})
    shown = {rows[i]["question"] for i in range(shots)}
    trained = {rows[shots + i]["question"] for i in range(train)}
    # A question that stands solved in every prompt trains and tests nothing.
    chosen = [i for i in range(shots, shots + train) if rows[i]["question"] not in shown]
    if split == "eval":
        later = range(shots + train, shots + train + held)
        # A question that training also draws is not held out.
        chosen = [i for i in later if rows[i]["question"] not in trained | shown]
    return [
        Problem(
            id=f"{options['task']}-{seed}-{i}",
            messages=(*before, {"role": "user", "content": rows[i]["question"]}),
            answer=str(rows[i]["answer"]),
            verifier="reasoning_gym",
            meta={"task": options["task"], "entry": rows[i]},
        )
        for i in chosen
    ]


def _jsonl(cfg: DataConfig, split: str, seed: int) -> list[Problem]:
    del seed
    _check_options(cfg, ())
    path = pathlib.Path(cfg.train_path if split == "train" else cfg.eval_path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check data.train_path and data.eval_path")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    return [_row(path, i, line) for i, line in enumerate(lines, start=1) if line.strip()]


def _row(path: pathlib.Path, number: int, line: str) -> Problem:
    where = f"{path}, row {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, not an object")
    answer = row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: no 'answer'; give the gold answer as a non-empty string")
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise DataError(
            f"{where}: 'solution' is a {type(solution).__name__}; give text, or leave it out"
        )
    verifier, meta = row.get("verifier", "exact"), row.get("meta", {})
    if not isinstance(verifier, str) or not isinstance(meta, dict):
        raise DataError(
            f"{where}: 'verifier' is the name of one, such as \"math\", and 'meta' an object "
            "with what it needs; give them so, or leave them out"
        )
    messages: Any = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    if not is_chat(messages):
        raise DataError(
            f"{where}: no 'prompt' string, and no 'messages' list of roles and contents that "
            "ends with the user"
        )
    return Problem(
        id=str(row.get("id", f"{path.name}:{number}")),
        messages=tuple(messages),
        answer=answer,
        verifier=verifier,
        meta=meta,
        solution=solution,
    )


def _check_options(cfg: DataConfig, known: Sequence[str]) -> None:
    for name in cfg.options:
        if name not in known:
            raise ConfigError(unknown(f"data.options.{name}", name, list(known) or ["nothing"]))


SOURCES: dict[str, Callable[[DataConfig, str, int], list[Problem]]] = {
    "codebook": _codebook,
    "reasoning_gym": _reasoning_gym,
    "jsonl": _jsonl,
}
