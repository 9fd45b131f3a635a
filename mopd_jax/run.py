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
    rollout,
    sharding,
    tokenizer,
    train_step,
    verifiers,
    weights,
)
from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.logbook import write_text
from mopd_jax.models import decoder
from mopd_jax.records import Batch, Problem, Tokenizer, TrainState
from mopd_jax.sandbox import Sandbox

log = logging.getLogger("mopd")

# Settings that a resumed run may change: they do not touch what is computed up to a step.
_FREE_TO_CHANGE = ("steps", "dump_every", "checkpoint")
_EVAL_SUBSET = 0xE7A1


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same during a run."""

    cfg: Config
    folder: pathlib.Path
    model: decoder.DecoderConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    eval_problems: list[Problem]
    sample: Callable[..., Any]
    sample_eval: Callable[..., Any]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    sandbox: Sandbox | None = None  # Where the verifier runs programs.


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
    mesh = sharding.make_mesh(cfg.mesh, devices)
    shards = sharding.row_shards(mesh)
    micro = cfg.rollout.prompts * cfg.rollout.group // cfg.optimizer.micro_batches
    for name, size in (
        ("rollout.prompts", cfg.rollout.prompts),
        ("eval.batch", cfg.eval.batch),
        ("rows of a micro-batch", micro),
    ):
        if size % shards:
            raise ConfigError(
                f"{name}={size} cannot be split over the {shards} devices of mesh data x fsdp; "
                f"use a multiple of {shards}, or give devices to mesh.tensor"
            )
    source = weights.resolve(cfg.model.path)
    model = weights.load_config(source, dtype=cfg.model.compute_dtype, remat=cfg.model.remat)
    words = tokenizer.load(source)
    tokenizer.check_vocabulary(words, model)
    train_problems = data.load(cfg.data, "train", seed=cfg.seed)
    eval_problems = data.load(cfg.data, "eval", seed=cfg.seed)
    if len(eval_problems) < cfg.eval.problems:
        raise ConfigError(
            f"eval.problems={cfg.eval.problems}, but the eval split has {len(eval_problems)}"
        )
    # A draw and not the head, since splits are often sorted; the same for every run seed.
    chosen = np.random.default_rng(_EVAL_SUBSET).permutation(len(eval_problems))
    eval_problems = [eval_problems[i] for i in chosen[: cfg.eval.problems]]
    trained = {_question(problem) for problem in train_problems}
    both = [problem.id for problem in eval_problems if _question(problem) in trained]
    if both:
        raise data.DataError(
            f"{len(both)} of {len(eval_problems)} evaluation problems are also trained on, "
            f"{both[0]!r} for one: they are not held out; remove them from one of the splits"
        )
    for problems in (train_problems, eval_problems):
        context.student_prompts(problems, words, length=cfg.rollout.prompt_length)

    sampler = functools.partial(
        rollout.make_rollout,
        model=model,
        mesh=mesh,
        length=cfg.rollout.response_length,
        stop_ids=words.stop_ids,
        pad_id=words.pad_id,
    )
    run = Run(
        cfg=cfg,
        folder=workdir,
        model=model,
        mesh=mesh,
        tokenizer=words,
        eval_problems=eval_problems,
        sample=sampler(sampling=cfg.rollout, group=cfg.rollout.group),
        sample_eval=sampler(sampling=cfg.eval, group=cfg.eval.samples),
        update=train_step.make_train_step(cfg, model, mesh),
        sandbox=_sandbox(cfg, [*train_problems, *eval_problems]),
    )
    state, position = _state(run, source)
    _write_records(run, command)
    stream = data.ProblemStream(train_problems, seed=cfg.seed, position=position)
    log.info(
        "%s: %.1f M parameters, %d train and %d eval problems, %d devices, ready in %.1f s",
        cfg.name,
        sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
        len(train_problems),
        len(eval_problems),
        mesh.size,
        time.perf_counter() - begun,
    )
    return run, state, stream


def _sandbox(cfg: Config, problems: list[Problem]) -> Sandbox | None:
    if not verifiers.needs_sandbox(problems):
        return None
    sandbox = Sandbox(cfg.sandbox)
    log.info("generated programs run in the sandbox level %s", sandbox.description)
    return sandbox


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


def _write_records(run: Run, command: str) -> None:
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
        "sandbox": None if run.sandbox is None else run.sandbox.description,
    }
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / "config.json", configs.to_json(run.cfg) + "\n")
    write_text(run.folder / "command.txt", command + "\n")
    write_text(run.folder / "environment.json", json.dumps(record, indent=2) + "\n")


def _state(run: Run, source: pathlib.Path) -> tuple[TrainState, int]:
    """The newest checkpoint's state and data position, or the state before the first step."""
    cfg = run.cfg
    shardings = train_step.state_shardings(cfg, run.model, run.mesh)
    key = jax.random.key(cfg.seed)
    start = functools.partial(train_step.init_state, cfg=cfg)
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
        return state, meta["position"]
    params = weights.load_params(source, run.model, shardings=shardings.params)
    # Donated: the loaded weights become the state's, so that they stand in memory once.
    return jax.jit(start, out_shardings=shardings, donate_argnums=0)(params, key), 0
