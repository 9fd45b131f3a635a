"""Loads the problems of a source, and gives them to training in a seekable, shuffled stream.

Sources: `codebook` and `reasoning_gym` generate problems, `jsonl` reads rows `{"id"?, "prompt"
| "messages", "answer", "solution"?, "verifier"?, "meta"?}` from files (a row without a verifier
gets `exact`, docs/verifiers.md), `tfds` reads what `mopd data prepare` wrote (docs/data.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from mopd_jax import codebook
from mopd_jax.config import DataConfig, unknown
from mopd_jax.data.on_demand import ProblemsOnDemand
from mopd_jax.data.prepared import files, jsonl, store, usable
from mopd_jax.data.prepared.rows import DataError
from mopd_jax.errors import ConfigError
from mopd_jax.records import Problem

_EPOCH_ORDER = 0xDA7A  # Separates this use of the seed from others.


class ProblemStream:
    """An endless shuffled stream of problems; every draw has a number that a run never repeats.

    The order of an epoch is a pure function of (seed, epoch), so the position, one number, is
    all that a run needs to resume.
    """

    def __init__(self, problems: Sequence[Problem], *, seed: int, position: int = 0):
        """A stream that continues at a position; raises DataError if there are no problems."""
        if not len(problems):
            raise DataError("the training split has no problems")
        self._problems = problems
        self._seed = seed
        self.position = position

    def take(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """The next `count` problems and the numbers of their draws, u32[count].

        Moves `position` on by `count`.
        """
        drawn = self.peek(count)
        self.position += count
        return drawn

    def peek(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """What `take` would return, without moving `position`."""
        uids = np.arange(count) + self.position
        epochs, places = np.divmod(uids, len(self._problems))
        orders = {
            epoch: np.random.default_rng([_EPOCH_ORDER, self._seed, epoch]).permutation(
                len(self._problems)
            )
            for epoch in np.unique(epochs).tolist()
        }
        chosen = [orders[e][i] for e, i in zip(epochs.tolist(), places.tolist(), strict=True)]
        return [self._problems[i] for i in chosen], uids.astype(np.uint32)


class _Instructed(ProblemsOnDemand):
    """Problems with an instruction at their end, made on demand."""

    def __init__(self, problems: Sequence[Problem], instruction: str):
        self._problems, self._instruction = problems, instruction

    def __len__(self) -> int:
        return len(self._problems)

    def problem(self, place: int) -> Problem:
        return _instructed(self._problems[place], self._instruction)


def load(cfg: DataConfig, split: str, *, seed: int) -> Sequence[Problem]:
    """All problems of a split, "train" or "eval", with `cfg.instruction` at their end.

    Those of prepared data sets stay on disk and are read on demand.

    Raises:
        ConfigError: an option that the source does not have.
        DataError: a missing file, a row that cannot be used, or no problems.
    """
    problems = SOURCES[cfg.source](cfg, split, seed)
    if not len(problems):
        raise DataError(
            f"the {split} split of data.source={cfg.source!r} has no problems; see its path or "
            "options, and `mopd data show` for what a prepared set has"
        )
    if not isinstance(problems, list):  # A prepared data set; `prepare` has checked its ids.
        return _Instructed(problems, cfg.instruction)
    _check_ids(problems, split)
    return [_instructed(problem, cfg.instruction) for problem in problems]


def _check_ids(problems: Iterable[Problem], split: str) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(
                f"the {split} split has two problems with the id {problem.id!r}; give every "
                "problem its own id"
            )
        seen.add(problem.id)


def overlap(trained: Iterable[Problem], held_out: Sequence[Problem]) -> str:
    """A sentence about the problems of `held_out` that are also trained on; "" if none is.

    Two problems are the same if all their messages are equal.
    """
    questions = {_question(problem) for problem in trained}
    both = [problem.id for problem in held_out if _question(problem) in questions]
    if not both:
        return ""
    return (
        f"{len(both)} of {len(held_out)} evaluation problems are also trained on, such as "
        f"{both[0]!r}: they are not held out"
    )


def _question(problem: Problem) -> str:
    return json.dumps([dict(message) for message in problem.messages], sort_keys=True)


def _instructed(problem: Problem, instruction: str) -> Problem:
    """The problem with the instruction in it, so that student, teacher and evaluation agree."""
    if not instruction:
        return problem
    *before, last = problem.messages
    last = {**last, "content": f"{last['content']}\n\n{instruction}"}
    return dataclasses.replace(problem, messages=(*before, last))


def _codebook(cfg: DataConfig, split: str, seed: int) -> list[Problem]:
    _check_options(cfg, ())
    return codebook.problems(split, seed=seed)


def _reasoning_gym(cfg: DataConfig, split: str, seed: int) -> list[Problem]:
    """Generated tasks. Options: `task` (required), `train_size`, `eval_size`, `system`, `shots`
    (worked examples before each question) and `task_options`, passed on to the task itself."""
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
    shots, train, held_out = options["shots"], options["train_size"], options["eval_size"]
    # One generator; worked examples, training and evaluation are disjoint ranges of its rows.
    rows = reasoning_gym.create_dataset(
        options["task"],
        size=shots + train + held_out,
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
    # A question that every prompt shows solved would train and test nothing.
    chosen = [i for i in range(shots, shots + train) if rows[i]["question"] not in shown]
    if split == "eval":
        later = range(shots + train, shots + train + held_out)
        # Leave out questions that training draws by chance.
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
    ((_, path),) = _files(cfg, [split])
    try:
        return [_row(path, number, row) for number, row in files.json_lines(path)]
    except OSError as error:
        raise files.unreadable(path, error) from error


def _row(path: pathlib.Path, number: int, row: Any) -> Problem:
    where = f"{path}, row {number}"
    if isinstance(row, DataError):
        raise DataError(f"{where}: {row}")
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}, not an object")
    problem = jsonl.problem(row, where, f"{path.name}:{number}")
    if wrong := usable.unusable(problem):
        raise DataError(f"{where}: {wrong}")
    return problem


def _check_options(cfg: DataConfig, known: Sequence[str]) -> None:
    for name in cfg.options:
        if name not in known:
            raise ConfigError(unknown(f"data.options.{name}", name, list(known) or ["nothing"]))


class _Concatenated(ProblemsOnDemand):
    """The problems of several data sets, one set after the other."""

    def __init__(self, parts: Sequence[Sequence[Problem]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def problem(self, place: int) -> Problem:
        part = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[part][place - int(self._ends[part]) + len(self._parts[part])]


def _tfds(cfg: DataConfig, split: str, seed: int) -> Sequence[Problem]:
    """Prepared data sets. Options: `dir` ("data"); `train` and `eval`, each one data set or
    several, written `name` or `name:split`; or `name` for both splits of one data set."""
    del seed
    parts = [store.StoredProblems(*which) for which in prepared(cfg, split)]
    if len(parts) == 1:
        return parts[0]
    problems = _Concatenated(parts)
    _check_ids(problems, split)
    return problems


def prepared(cfg: DataConfig, split: str) -> list[tuple[pathlib.Path, str, str]]:
    """(root, name, stored split) of every data set that a split, "train" or "eval", reads.

    A prepared data set calls its splits "train" and "test".

    Raises:
        ConfigError: the options name no data set, or a value is not a name.
    """
    _check_options(cfg, ("dir", "name", "train", "eval"))
    default = "train" if split == "train" else "test"
    value = cfg.options.get(split, cfg.options.get("name"))
    names = [value] if isinstance(value, str) else value
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise ConfigError(
            f"data.source 'tfds' needs data.options.{split}, or data.options.name: a prepared "
            f"data set or several, as name or name:split; got {value!r}"
        )
    folder = cfg.options.get("dir", "data")
    if not isinstance(folder, str) or not folder:
        raise ConfigError(f"data.options.dir is {folder!r}; it must be the path of a folder")
    root = pathlib.Path(folder)
    pairs = [name.partition(":") for name in names]
    return [(root, name, stored_split or default) for name, _, stored_split in pairs]


def record(cfg: DataConfig, splits: Sequence[str] = ("train", "eval")) -> dict[str, Any]:
    """What a run's record says of the data that it reads, {"SPLIT: NAME": values}.

    Values: `reads` is a checksum of the problems and their order; `problems` and `excluded` are
    counts; `checked` says whether `mopd data check` has judged the gold answers; `ceiling` is
    the share of the problems read whose gold answer scores 1, `ceiling_of_all` that of all,
    both None where not known. Sources that generate their problems have no entry.
    """
    if cfg.source == "jsonl":
        return {f"{split}: {path}": _file_record(path) for split, path in _files(cfg, splits)}
    if cfg.source != "tfds":
        return {}
    entries = {}
    for split in splits:
        for root, name, stored_split in prepared(cfg, split):
            manifest = store.read_manifest(root, name)
            checked = manifest.get("check", {}).get("splits", {}).get(stored_split)
            out = store.excluded(manifest, stored_split)
            reads = json.dumps([manifest["content"], stored_split, out])
            entries[f"{split}: {name}:{stored_split}"] = {
                "reads": hashlib.sha256(reads.encode()).hexdigest(),
                "problems": manifest["splits"][stored_split] - len(out),
                "excluded": len(out),
                "checked": checked is not None,
                "ceiling": None if checked is None else checked["ceiling_of_kept"],
                "ceiling_of_all": None if checked is None else checked["ceiling"],
            }
    return entries


def unchecked(data_record: Mapping[str, Any]) -> list[str]:
    """A warning for each data set of a `record` that no check has judged."""
    return [
        f"{name} was never checked: whether its verifier accepts the gold answers is not "
        "known, nor what the best possible result is. Run `mopd data check` (for files, after "
        "`mopd data prepare jsonl`)"
        for name, values in data_record.items()
        if not values["checked"]
    ]


def _files(cfg: DataConfig, splits: Sequence[str]) -> list[tuple[str, pathlib.Path]]:
    """(split, file) of source `jsonl`; raises DataError if a file is missing."""
    pairs = []
    for split in splits:
        # The config has checked that source `jsonl` has both paths.
        path = pathlib.Path(cast(str, cfg.train_path if split == "train" else cfg.eval_path))
        try:
            exists = path.is_file()
        except OSError as error:
            raise files.unreadable(path, error) from error
        if not exists:
            raise DataError(f"{path} does not exist; check data.train_path and data.eval_path")
        pairs.append((split, path))
    return pairs


def _file_record(path: pathlib.Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "reads": hashlib.sha256(content).hexdigest(),
        "problems": sum(bool(line.strip()) for line in content.split(b"\n")),
        "excluded": 0,
        "checked": False,
        "ceiling": None,
        "ceiling_of_all": None,
    }


SOURCES: dict[str, Callable[[DataConfig, str, int], Sequence[Problem]]] = {
    "codebook": _codebook,
    "reasoning_gym": _reasoning_gym,
    "jsonl": _jsonl,
    "tfds": _tfds,
}
