"""Problems from a source, and a seekable stream over them.

The order of an epoch is a pure function of (seed, epoch), so a position, one number, says all
there is to resume from. Sources: `codebook` and `reasoning_gym` generate their rows, `jsonl`
reads rows `{"id"?, "prompt" | "messages", "answer", "solution"?, "verifier"?, "meta"?}` from
files (the verifier is `exact` where none is named, docs/verifiers.md), `tfds` reads what `mopd
data prepare` wrote (docs/data.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mopd_jax import codebook
from mopd_jax.config import DataConfig, unknown
from mopd_jax.data.on_demand import LazyProblems
from mopd_jax.data.prepared import files, jsonl, store, usable
from mopd_jax.data.prepared.rows import DataError
from mopd_jax.errors import ConfigError
from mopd_jax.records import Problem

_EPOCH_ORDER = 0xDA7A  # Separates this use of the seed from others.


class ProblemStream:
    """Endless shuffled stream; every draw has a number that never repeats within a run.

    Hosts share one position and each takes its part of every draw, so that a run may go on with
    another number of hosts.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        seed: int,
        position: int = 0,
        host: int = 0,
        hosts: int = 1,
    ):
        """Stream of host `host` of `hosts`; raises DataError without problems."""
        if not len(problems):
            raise DataError("the training split has no problems")
        if not 0 <= host < hosts:
            raise DataError(f"host {host} is none of {hosts} hosts")
        self._problems = problems
        self._seed = seed
        self._host, self._hosts = host, hosts
        self.position = position

    def take(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """This host's part of the next `count` problems, and its draw numbers u32[count/hosts].

        Moves `position` on by `count`. Raises DataError if the hosts cannot share them evenly.
        """
        found = self.peek(count)
        self.position += count
        return found

    def peek(self, count: int) -> tuple[list[Problem], np.ndarray]:
        """What `take` would give; moves nothing."""
        if count % self._hosts:
            raise DataError(
                f"{count} prompts cannot be split over {self._hosts} hosts; use a multiple"
            )
        share = count // self._hosts
        uids = np.arange(share) + self.position + self._host * share
        epochs, places = np.divmod(uids, len(self._problems))
        orders = {
            epoch: np.random.default_rng([_EPOCH_ORDER, self._seed, epoch]).permutation(
                len(self._problems)
            )
            for epoch in np.unique(epochs).tolist()
        }
        chosen = [orders[e][i] for e, i in zip(epochs.tolist(), places.tolist(), strict=True)]
        return [self._problems[i] for i in chosen], uids.astype(np.uint32)


class _Instructed(LazyProblems):
    """Problems with an instruction at their end, made when they are asked for."""

    def __init__(self, problems: Sequence[Problem], instruction: str):
        self._problems, self._instruction = problems, instruction

    def __len__(self) -> int:
        return len(self._problems)

    def problem(self, place: int) -> Problem:
        return _instructed(self._problems[place], self._instruction)


def load(cfg: DataConfig, split: str, *, seed: int) -> Sequence[Problem]:
    """All problems of a split, "train" or "eval", with `cfg.instruction` at their end.

    Those of prepared data sets stay on disk and are read when they are asked for.

    Raises:
        ConfigError: an option that the source does not have.
        DataError: a missing file, or a row that cannot be used.
    """
    problems = SOURCES[cfg.source](cfg, split, seed)
    if not len(problems):
        raise DataError(
            f"the {split} split of data.source={cfg.source!r} has no problems; see its path or "
            "options, and `mopd data show` for what a prepared set has"
        )
    if not isinstance(problems, list):  # Their ids were checked when they were prepared.
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


def overlap(trained: Iterable[Problem], held: Sequence[Problem]) -> str:
    """What of `held` is also trained on, word for word, as a sentence; "" if nothing is."""
    asked = {_question(problem) for problem in trained}
    both = [problem.id for problem in held if _question(problem) in asked]
    if not both:
        return ""
    return (
        f"{len(both)} of {len(held)} evaluation problems are also trained on, {both[0]!r} for "
        "one: they are not held out"
    )


def _question(problem: Problem) -> str:
    return json.dumps([dict(message) for message in problem.messages], sort_keys=True)


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


class _Chain(Sequence[Problem]):
    """Several data sets, one behind the other."""

    def __init__(self, parts: Sequence[Sequence[Problem]]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        part = int(np.searchsorted(self._ends, place, side="right"))
        return self._parts[part][place - int(self._ends[part]) + len(self._parts[part])]


def _tfds(cfg: DataConfig, split: str, seed: int) -> Sequence[Problem]:
    """Prepared data sets. options: dir ("data"), train and eval, each a data set or several,
    written `name` or `name:split`; or `name` for both splits of one."""
    del seed
    parts = [store.Stored(*which) for which in prepared(cfg, split)]
    if len(parts) == 1:
        return parts[0]
    chain = _Chain(parts)
    _check_ids(chain, split)
    return chain


def prepared(cfg: DataConfig, split: str) -> list[tuple[pathlib.Path, str, str]]:
    """(root, name, split on disk) of every data set that a split, "train" or "eval", reads.

    Raises:
        ConfigError: the options name none, or one that cannot be.
    """
    _check_options(cfg, ("dir", "name", "train", "eval"))
    default = "train" if split == "train" else "test"
    given = cfg.options.get(split, cfg.options.get("name"))
    names = [given] if isinstance(given, str) else given
    several = isinstance(names, list | tuple) and len(names) > 0
    if not several or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"data.source 'tfds' needs data.options.{split}, or data.options.name: a prepared "
            f"data set or several, as name or name:split; got {given!r}"
        )
    place = cfg.options.get("dir", "data")
    if not isinstance(place, str) or not place:
        raise ConfigError(f"data.options.dir is {place!r}; it must be the path of a folder")
    root = pathlib.Path(place)
    pairs = [name.partition(":") for name in names]
    return [(root, name, part or default) for name, _, part in pairs]


def record(cfg: DataConfig, splits: Sequence[str] = ("train", "eval")) -> dict[str, Any]:
    """What the record of a run says of data that it reads: content, ceiling, exclusions.

    `checked` says whether `mopd data check` has judged the gold answers; without, and without
    gold answers, the ceiling is None.
    """
    if cfg.source == "jsonl":
        return {f"{split}: {path}": _file_record(path) for split, path in _files(cfg, splits)}
    if cfg.source != "tfds":
        return {}
    found = {}
    for split in splits:
        for root, name, part in prepared(cfg, split):
            manifest = store.read_manifest(root, name)
            checked = manifest.get("check", {}).get("splits", {}).get(part)
            out = store.excluded(manifest, part)
            # Equal where the same problems are read in the same order.
            reads = json.dumps([manifest["content"], part, out])
            found[f"{split}: {name}:{part}"] = {
                "reads": hashlib.sha256(reads.encode()).hexdigest(),
                "problems": manifest["splits"][part] - len(out),
                "excluded": len(out),
                "checked": checked is not None,
                # Of what is read, and before any item was excluded.
                "ceiling": None if checked is None else checked["ceiling_of_kept"],
                "ceiling_of_all": None if checked is None else checked["ceiling"],
            }
    return found


def unchecked(found: dict[str, Any]) -> list[str]:
    """A warning for each data set of a `record` that no check has judged."""
    return [
        f"{name} was never checked: whether its verifier accepts the gold answers is not "
        "known, nor what the best possible result is. Run `mopd data check` (of files, after "
        "`mopd data prepare jsonl`)"
        for name, said in found.items()
        if not said["checked"]
    ]


def _files(cfg: DataConfig, splits: Sequence[str]) -> list[tuple[str, pathlib.Path]]:
    """(split, file) of source `jsonl`; raises DataError where one is missing."""
    found = []
    for split in splits:
        path = pathlib.Path(cfg.train_path if split == "train" else cfg.eval_path)
        try:
            there = path.is_file()
        except OSError as error:
            raise files.unreadable(path, error) from error
        if not there:
            raise DataError(f"{path} does not exist; check data.train_path and data.eval_path")
        found.append((split, path))
    return found


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
