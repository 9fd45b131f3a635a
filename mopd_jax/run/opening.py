"""Opens a run: checks the inputs, loads data and weights, builds the jitted functions."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mopd_jax import verifiers
from mopd_jax.config import Config
from mopd_jax.contexts import render
from mopd_jax.data import prompt_lengths, sources
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, sharding, weights
from mopd_jax.models import tokenizer as tokenizers
from mopd_jax.records import Problem, Tokenizer, TrainState
from mopd_jax.rollouts import generate, storage
from mopd_jax.rollouts.storage import Saved
from mopd_jax.run import folder as run_folder
from mopd_jax.run import sinks
from mopd_jax.run.record import Run, Student
from mopd_jax.run.solved import Solved
from mopd_jax.run.state import open_state
from mopd_jax.sandbox import Sandbox
from mopd_jax.update import drift, external_teacher, train_step
from mopd_jax.update.teacher import Models

log = logging.getLogger("mopd")

_EVAL_SUBSET = 0xE7A1


def open_run(
    cfg: Config, workdir: pathlib.Path, *, command: str, devices: list[jax.Device] | None
) -> tuple[Run, TrainState, sources.ProblemStream, Solved]:
    """The run in `workdir`, its state (new, or the newest checkpoint's), and its problems.

    Also which problems it has solved so far.

    Raises:
        ConfigError, sources.DataError, render.PromptTooLong, checkpoint.CheckpointError,
        ValueError: for every input that cannot work, before any time is spent on it.
    """
    begun = time.perf_counter()
    run_folder.compare(cfg, workdir)
    sinks.check(cfg)
    run, train_problems, source = prepare(cfg, workdir, devices=devices)
    state, meta = open_state(run, source)
    write_records(run, workdir, command)
    stream = sources.ProblemStream(train_problems, seed=cfg.seed, position=meta["position"])
    log.info(
        "%s: %.1f M parameters, %d train and %d eval problems, %d devices, ready in %.1f s",
        cfg.name,
        sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
        len(train_problems),
        len(run.eval_problems),
        run.mesh.size,
        time.perf_counter() - begun,
    )
    return run, state, stream, Solved.from_json(meta["solved"])


def prepare(
    cfg: Config, workdir: pathlib.Path, *, devices: list[jax.Device] | None
) -> tuple[Run, Sequence[Problem], pathlib.Path]:
    """A run without its weights: the run, the problems to train on, the weights' path.

    Writes no file. Raises as `open_run` does.
    """
    student = open_student(cfg, devices)
    mesh, model, tokenizer = student.mesh, student.model, student.tokenizer
    _check_split(cfg, sharding.row_shards(mesh))
    _check_top_k(cfg, model)
    models = Models.of(cfg, model)
    if models.teacher_slot == "external":
        external = external_teacher.check(cfg, model, tokenizer)
        models = dataclasses.replace(models, teacher=external)
    saved = _saved(cfg, tokenizer, model)
    train_problems, left_out = _train_problems(student, saved)
    if student.sandbox is None:
        student = dataclasses.replace(student, sandbox=_sandbox(cfg, train_problems))
    run = Run(
        **vars(student),
        folder=workdir,
        models=models,
        sample=_sampler(
            cfg,
            mesh,
            tokenizer,
            settings=cfg.rollout,
            group=cfg.rollout.group,
            model=models.teacher if cfg.rollout.policy == "teacher" else model,
        ),
        update=train_step.make_train_step(cfg, models, mesh),
        drift=drift.make_drift(cfg, models, mesh),
        saved=saved,
        prompts_left_out=left_out,
    )
    return run, train_problems, weights.resolve(cfg.model.path)


def _train_problems(student: Student, saved: Saved | None) -> tuple[Sequence[Problem], int]:
    """The problems to train on, checked, and how many were left out as too long."""
    cfg, tokenizer = student.cfg, student.tokenizer
    if saved is None:
        problems = sources.load(cfg.data, "train", seed=cfg.seed)
    else:
        problems = list(saved.problems.values())
    if overlap := sources.overlap(problems, student.eval_problems):
        if cfg.data.held_out:
            raise sources.DataError(
                f"{overlap}; remove them from one of the splits, or set data.held_out=False"
            )
        log.warning("WARNING %s (data.held_out=False)", overlap)
    if saved is None:  # The verdicts of a file's rollouts are in the file.
        verifiers.check(problems)
    problems, left_out = prompt_lengths.fitting(
        problems,
        tokenizer,
        limit=cfg.rollout.prompt_length,
        drop=cfg.data.long_prompts == "drop" and saved is None,
    )
    if cfg.peers.control == "shell":
        render.check_shells(problems, tokenizer, cfg.context)
    if cfg.context.gold != "off":
        for problem in problems:
            render.gold(problem, cfg.context)
    return problems, left_out


def _check_top_k(cfg: Config, model: decoder.DecoderConfig) -> None:
    """Raises ConfigError if `top_k` of the divergence exceeds the vocabulary."""
    chosen = cfg.loss.divergence.chosen or 0
    if cfg.loss.method == "distill" and chosen > model.vocab_size:
        raise ConfigError(
            f"loss.divergence.top_k={chosen} is more than the {model.vocab_size} tokens of the "
            "model; lower it, or set loss.divergence.support='full'"
        )


def _saved(cfg: Config, tokenizer: Tokenizer, model: decoder.DecoderConfig) -> Saved | None:
    """The file of rollouts that the config names, checked from its first line to its last."""
    if cfg.rollout.file is None:
        return None
    path = pathlib.Path(cfg.rollout.file)
    header = storage.read_header(path)
    storage.check_fit(header, path, cfg, tokenizer)
    saved = storage.read(path, tokenizer, vocab_size=model.vocab_size)
    log.info(
        "rollouts from %s: %d steps of %s after %d steps of training, seed %d",
        path,
        len(saved.steps),
        header.model,
        header.trained,
        header.seed,
    )
    if header.seed != cfg.seed:
        log.warning(
            "WARNING seed=%d, and the rollouts are of seed %d: peers are drawn anew, and a "
            "data.source that makes its problems from the seed evaluates on others",
            cfg.seed,
            header.seed,
        )
    if cfg.context.gold == "off":
        return saved
    # Answers are not in the file. Problems that the seed makes must be those of its seed.
    known = {storage.key(p): p for p in sources.load(cfg.data, "train", seed=header.seed)}
    return dataclasses.replace(
        saved, problems={name: known.get(name, p) for name, p in saved.problems.items()}
    )


def open_student(cfg: Config, devices: list[jax.Device] | None) -> Student:
    """All but the weights of a student that answers the held-out problems.

    Raises:
        ConfigError, sources.DataError, render.PromptTooLong, ValueError: as `open_run`.
    """
    mesh = sharding.make_mesh(cfg.mesh, devices)
    _check_rows("eval.batch", cfg.eval.batch, sharding.row_shards(mesh))
    source = weights.resolve(cfg.model.path)
    model = weights.load_config(source, dtype=cfg.model.compute_dtype, remat=cfg.model.remat)
    tokenizer = tokenizers.load(source)
    tokenizers.check_vocabulary(tokenizer, model)
    problems = sources.load(cfg.data, "eval", seed=cfg.seed)
    if cfg.eval.problems is not None and len(problems) < cfg.eval.problems:
        raise ConfigError(
            f"eval.problems={cfg.eval.problems}, but the eval split has {len(problems)}; "
            "lower it, or set it to None for all of them"
        )
    # Drawn at random, since splits are often sorted; the same for every run seed.
    chosen = np.random.default_rng(_EVAL_SUBSET).permutation(len(problems))
    problems = [problems[i] for i in chosen[: cfg.eval.problems]]
    verifiers.check(problems)
    prompt_lengths.fitting(problems, tokenizer, limit=cfg.rollout.prompt_length)
    return Student(
        cfg=cfg,
        model=model,
        mesh=mesh,
        tokenizer=tokenizer,
        eval_problems=problems,
        sample_eval=_sampler(
            cfg, mesh, tokenizer, settings=cfg.eval, group=cfg.eval.samples, model=model
        ),
        sandbox=_sandbox(cfg, problems),
    )


def _sampler(
    cfg: Config, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, **settings: Any
) -> Callable[..., Any]:
    return generate.make_rollout(
        mesh=mesh,
        length=cfg.rollout.response_length,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        **settings,
    )


def _check_split(cfg: Config, shards: int) -> None:
    """Raises unless every set of rows that is computed at once splits over the devices."""
    prompts = cfg.rollout.prompts // cfg.optimizer.mini_batches
    micro = prompts * cfg.rollout.group // cfg.optimizer.micro_batches
    for name, size in (
        ("rollout.prompts", cfg.rollout.prompts),
        ("rollout.batch", cfg.rollout.batch or cfg.rollout.prompts),
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


def _sandbox(cfg: Config, problems: Sequence[Problem]) -> Sandbox | None:
    if not verifiers.needs_sandbox(problems):
        return None
    sandbox = Sandbox(cfg.sandbox)
    log.info("generated programs run in the sandbox level %s", sandbox.description)
    return sandbox


def write_records(run: Student, folder: pathlib.Path, command: str) -> None:
    """Writes a run's config, command and environment to its folder."""
    run_folder.write(
        run.cfg,
        folder,
        command,
        devices=list(run.mesh.devices.flat),
        tokenizer=run.tokenizer,
        sandbox=run.sandbox,
        trains=isinstance(run, Run),
        prompts_left_out=run.prompts_left_out if isinstance(run, Run) else 0,
    )
