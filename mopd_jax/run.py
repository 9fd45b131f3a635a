"""A run as it is opened: everything that is checked, loaded and compiled for before step 1."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import logging
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mopd_jax import (
    checkpoint,
    context,
    data,
    drift,
    external,
    rollout,
    sharding,
    teacher,
    tokenizer,
    train_step,
    weights,
)
from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.logbook import write_text
from mopd_jax.models import decoder
from mopd_jax.records import Batch, Problem, Tokenizer, TrainState

log = logging.getLogger("mopd")

# Settings that a resumed run may change: they do not touch what is computed up to a step.
_FREE_TO_CHANGE = ("steps", "dump_every", "checkpoint")
_EVAL_SUBSET = 0xE7A1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """What it takes to sample the student on held-out problems."""

    cfg: Config
    model: decoder.DecoderConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    eval_problems: list[Problem]
    sample_eval: Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Student):
    """What stays the same during a run."""

    folder: pathlib.Path
    teacher_model: decoder.DecoderConfig
    sample: Callable[..., Any]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    drift: Callable[[TrainState, Batch], dict]


def open_run(
    cfg: Config, workdir: pathlib.Path, *, command: str, devices: list[jax.Device] | None
) -> tuple[Run, TrainState, data.ProblemStream]:
    """The run in `workdir`, its state (new, or the newest checkpoint's), and its problems.

    Raises:
        ConfigError, data.DataError, context.PromptTooLong, checkpoint.CheckpointError,
        ValueError: for every input that cannot work, before any time is spent on it.
    """
    begun = time.perf_counter()
    _compare_with_folder(cfg, workdir)
    student = open_student(cfg, devices)
    mesh, model, words = student.mesh, student.model, student.tokenizer
    _check_split(cfg, sharding.row_shards(mesh))
    taught = cfg.rollout.policy == "teacher"
    beside = model
    if teacher.kept(cfg) == "external":
        beside = external.check(cfg, model, words)
    train_problems = data.load(cfg.data, "train", seed=cfg.seed)
    trained = {_question(problem) for problem in train_problems}
    both = [problem.id for problem in student.eval_problems if _question(problem) in trained]
    if both:
        raise data.DataError(
            f"{len(both)} of {len(student.eval_problems)} evaluation problems are also "
            f"trained on, {both[0]!r} for one: they are not held out; remove them from one of "
            "the splits"
        )
    context.student_prompts(train_problems, words, length=cfg.rollout.prompt_length)
    if cfg.context.gold != "off":
        for problem in train_problems:
            context.gold(problem, cfg.context)

    run = Run(
        **vars(student),
        folder=workdir,
        teacher_model=beside,
        sample=_sampler(
            cfg,
            mesh,
            words,
            sampling=cfg.rollout,
            group=cfg.rollout.group,
            model=beside if taught else model,
        ),
        update=train_step.make_train_step(cfg, model, mesh, beside),
        drift=drift.make_drift(cfg, model, mesh, beside),
    )
    state, position = _state(run, weights.resolve(cfg.model.path))
    write_records(run, workdir, command)
    stream = data.ProblemStream(train_problems, seed=cfg.seed, position=position)
    log.info(
        "%s: %.1f M parameters, %d train and %d eval problems, %d devices, ready in %.1f s",
        cfg.name,
        sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
        len(train_problems),
        len(run.eval_problems),
        mesh.size,
        time.perf_counter() - begun,
    )
    return run, state, stream


def open_student(cfg: Config, devices: list[jax.Device] | None) -> Student:
    """All but the weights of a student that answers the held-out problems.

    Raises:
        ConfigError, data.DataError, context.PromptTooLong, ValueError: as `open_run`.
    """
    mesh = sharding.make_mesh(cfg.mesh, devices)
    _check_rows("eval.batch", cfg.eval.batch, sharding.row_shards(mesh))
    source = weights.resolve(cfg.model.path)
    model = weights.load_config(source, dtype=cfg.model.compute_dtype, remat=cfg.model.remat)
    words = tokenizer.load(source)
    tokenizer.check_vocabulary(words, model)
    problems = data.load(cfg.data, "eval", seed=cfg.seed)
    if len(problems) < cfg.eval.problems:
        raise ConfigError(
            f"eval.problems={cfg.eval.problems}, but the eval split has {len(problems)}"
        )
    # A draw and not the head, since splits are often sorted; the same for every run seed.
    chosen = np.random.default_rng(_EVAL_SUBSET).permutation(len(problems))
    problems = [problems[i] for i in chosen[: cfg.eval.problems]]
    context.student_prompts(problems, words, length=cfg.rollout.prompt_length)
    return Student(
        cfg=cfg,
        model=model,
        mesh=mesh,
        tokenizer=words,
        eval_problems=problems,
        sample_eval=_sampler(
            cfg, mesh, words, sampling=cfg.eval, group=cfg.eval.samples, model=model
        ),
    )


def _sampler(cfg: Config, mesh: jax.sharding.Mesh, words: Tokenizer, **settings):
    return rollout.make_rollout(
        mesh=mesh,
        length=cfg.rollout.response_length,
        stop_ids=words.stop_ids,
        pad_id=words.pad_id,
        **settings,
    )


def _check_split(cfg: Config, shards: int) -> None:
    """Every set of rows that is computed at once must split over the devices."""
    prompts = cfg.rollout.prompts // cfg.optimizer.mini_batches
    micro = prompts * cfg.rollout.group // cfg.optimizer.micro_batches
    for name, size in (
        ("rollout.prompts", cfg.rollout.prompts),
        ("prompts of a mini-batch", prompts),
        ("rows of a micro-batch", micro),
    ):
        _check_rows(name, size, shards)


def _check_rows(name: str, size: int, shards: int) -> None:
    if size % shards:
        raise ConfigError(
            f"{name}={size} cannot be split over the {shards} devices of mesh data x fsdp; "
            f"use a multiple of {shards}, or give devices to mesh.tensor"
        )


def _question(problem: Problem) -> str:
    return json.dumps([dict(message) for message in problem.messages], sort_keys=True)


def _compare_with_folder(cfg: Config, workdir: pathlib.Path) -> None:
    """A folder holds one run: its config may differ in what changes no number only."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file; name a folder")
    path = workdir / "config.json"
    new = json.loads(configs.to_json(cfg))
    if path.exists():
        old = json.loads(path.read_text())
        differ = sorted(
            name
            for name in new.keys() | old.keys()
            if name not in _FREE_TO_CHANGE and new.get(name) != old.get(name)
        )
        if differ:
            raise ConfigError(
                f"{workdir} holds a run with another config (different: {', '.join(differ)}); "
                "choose another --workdir, or use the settings of its config.json"
            )


def write_records(run: Student, folder: pathlib.Path, command: str) -> None:
    """The config, the command, and what neither says: versions, devices, fingerprints.

    Last of all checks, so that a run that could not start leaves no folder behind.
    """
    packages = ("mopd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    devices = run.mesh.devices.flat
    record = {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": f"{run.mesh.size} x {devices[0].platform} {devices[0].device_kind}",
        "config": configs.fingerprint(run.cfg),
        "templates": configs.fingerprint(run.cfg.context),
        "tokenizer": run.tokenizer.fingerprint,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", configs.to_json(run.cfg) + "\n")
    write_text(folder / "command.txt", command + "\n")
    write_text(folder / "environment.json", json.dumps(record, indent=2) + "\n")


def _state(run: Run, source: pathlib.Path) -> tuple[TrainState, int]:
    """The newest checkpoint's state and data position, or the state before the first step."""
    cfg = run.cfg
    shardings = train_step.state_shardings(cfg, run.model, run.mesh, run.teacher_model)
    key = jax.random.key(cfg.seed)
    # An external teacher is in no checkpoint: its weights never move, and stay where they are.
    outside = teacher.kept(cfg) == "external"
    beside = external.load(cfg, run.teacher_model, run.mesh) if outside else {}
    if outside:
        shardings = dataclasses.replace(shardings, teacher={})
    start = functools.partial(train_step.init_state, cfg=cfg, external={})
    saved = checkpoint.steps(run.folder / "checkpoints")
    if saved and saved[-1] > cfg.steps:
        raise ConfigError(
            f"{run.folder} has done {saved[-1]} steps already, more than steps={cfg.steps}; "
            "choose another --workdir, or raise steps"
        )
    checkpoint.prune(run.folder / "checkpoints", keep=cfg.checkpoint.keep)
    if saved:
        params, _ = decoder.abstract(run.model)
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(start, params, key),
            shardings,
        )
        state, meta = checkpoint.load(run.folder / "checkpoints", saved[-1], like)
        log.info("going on from the checkpoint of step %d", saved[-1])
        position = meta["position"]
        return (dataclasses.replace(state, teacher=beside) if outside else state), position
    params = weights.load_params(source, run.model, shardings=shardings.params)
    # Donated: the loaded weights become the state's, so that they stand in memory once.
    state = jax.jit(start, out_shardings=shardings, donate_argnums=0)(params, key)
    return (dataclasses.replace(state, teacher=beside) if outside else state), 0
