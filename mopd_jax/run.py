"""A run as it is opened: everything that is checked, loaded and compiled for before step 1."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mopd_jax import (
    checkpoint,
    context,
    data,
    drift,
    external,
    prompt_lengths,
    rollout,
    rollout_file,
    run_folder,
    sharding,
    teacher,
    tokenizer,
    train_step,
    verifiers,
    weights,
)
from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.models import decoder
from mopd_jax.records import Batch, Params, Problem, Tokenizer, TrainState
from mopd_jax.rollout_file import Saved
from mopd_jax.sandbox import Sandbox
from mopd_jax.solved import Solved

log = logging.getLogger("mopd")

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
    sandbox: Sandbox | None  # Where the verifier runs programs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Student):
    """What stays the same during a run."""

    folder: pathlib.Path
    teacher_model: decoder.DecoderConfig
    sample: Callable[..., Any]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    drift: Callable[[TrainState, Batch], dict]
    saved: Saved | None = None  # The rollouts that are trained from, where none are sampled.
    prompts_left_out: int = 0  # Training problems that are too long, by `data.long_prompts`.


def open_run(
    cfg: Config, workdir: pathlib.Path, *, command: str, devices: list[jax.Device] | None
) -> tuple[Run, TrainState, data.ProblemStream, Solved]:
    """The run in `workdir`, its state (new, or the newest checkpoint's), and its problems.

    Also which problems it has solved so far.

    Raises:
        ConfigError, data.DataError, context.PromptTooLong, checkpoint.CheckpointError,
        ValueError: for every input that cannot work, before any time is spent on it.
    """
    begun = time.perf_counter()
    run_folder.compare(cfg, workdir)
    run, train_problems, source = prepare(cfg, workdir, devices=devices)
    state, meta = _state(run, source)
    write_records(run, workdir, command)
    stream = data.ProblemStream(train_problems, seed=cfg.seed, position=meta["position"])
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
    """All of a run but its weights: the run, the problems to train on, the weights' path.

    Nothing is written. Raises as `open_run` does.
    """
    student = open_student(cfg, devices)
    mesh, model, words = student.mesh, student.model, student.tokenizer
    _check_split(cfg, sharding.row_shards(mesh))
    chosen = cfg.loss.divergence.chosen or 0
    if cfg.loss.method == "distill" and chosen > model.vocab_size:
        raise ConfigError(
            f"loss.divergence.top_k={chosen} is more than the {model.vocab_size} tokens of the "
            "model; lower it, or set loss.divergence.support='full'"
        )
    taught = cfg.rollout.policy == "teacher"
    beside = model
    if teacher.kept(cfg) == "external":
        beside = external.check(cfg, model, words)
    saved = _saved(cfg, words, model)
    if saved is None:
        train_problems = data.load(cfg.data, "train", seed=cfg.seed)
    else:
        train_problems = list(saved.problems.values())
    if said := data.overlap(train_problems, student.eval_problems):
        if cfg.data.held_out:
            raise data.DataError(
                f"{said}; remove them from one of the splits, or set data.held_out=False"
            )
        log.warning("WARNING %s (data.held_out=False)", said)
    if saved is None:  # The verdicts of a file's rollouts are in the file.
        verifiers.check(train_problems)
    train_problems, left_out = prompt_lengths.fitting(
        train_problems,
        words,
        limit=cfg.rollout.prompt_length,
        drop=cfg.data.long_prompts == "drop" and saved is None,
    )
    if cfg.peers.control == "shell":
        context.check_shells(train_problems, words, cfg.context)
    if cfg.context.gold != "off":
        for problem in train_problems:
            context.gold(problem, cfg.context)

    if student.sandbox is None:
        student = dataclasses.replace(student, sandbox=_sandbox(cfg, train_problems))
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
        saved=saved,
        prompts_left_out=left_out,
    )
    return run, train_problems, weights.resolve(cfg.model.path)


def _saved(cfg: Config, words: Tokenizer, model: decoder.DecoderConfig) -> Saved | None:
    """The file of rollouts that the config names, checked from its first line to its last."""
    if cfg.rollout.file is None:
        return None
    path = pathlib.Path(cfg.rollout.file)
    header = rollout_file.read_header(path)
    rollout_file.check_fit(header, path, cfg, words)
    saved = rollout_file.read(path, words, vocab_size=model.vocab_size)
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
    known = {rollout_file.key(p): p for p in data.load(cfg.data, "train", seed=header.seed)}
    return dataclasses.replace(
        saved, problems={name: known.get(name, p) for name, p in saved.problems.items()}
    )


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
    if cfg.eval.problems is not None and len(problems) < cfg.eval.problems:
        raise ConfigError(
            f"eval.problems={cfg.eval.problems}, but the eval split has {len(problems)}; "
            "lower it, or set it to None for all of them"
        )
    # A draw and not the head, since splits are often sorted; the same for every run seed.
    chosen = np.random.default_rng(_EVAL_SUBSET).permutation(len(problems))
    problems = [problems[i] for i in chosen[: cfg.eval.problems]]
    verifiers.check(problems)
    prompt_lengths.fitting(problems, words, limit=cfg.rollout.prompt_length)
    return Student(
        cfg=cfg,
        model=model,
        mesh=mesh,
        tokenizer=words,
        eval_problems=problems,
        sample_eval=_sampler(
            cfg, mesh, words, sampling=cfg.eval, group=cfg.eval.samples, model=model
        ),
        sandbox=_sandbox(cfg, problems),
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


def _sandbox(cfg: Config, problems: list[Problem]) -> Sandbox | None:
    if not verifiers.needs_sandbox(problems):
        return None
    sandbox = Sandbox(cfg.sandbox)
    log.info("generated programs run in the sandbox level %s", sandbox.description)
    return sandbox


def write_records(run: Student, folder: pathlib.Path, command: str) -> None:
    """The config, the command and the surroundings of a run, in its folder."""
    trains = isinstance(run, Run)
    run_folder.write(
        run.cfg,
        folder,
        command,
        devices=run.mesh.devices.flat,
        tokenizer=run.tokenizer,
        sandbox=run.sandbox,
        trains=trains,
        prompts_left_out=run.prompts_left_out if trains else 0,
    )


def _state(run: Run, source: pathlib.Path) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint's state and what belongs to it, or those before the first step."""
    cfg = run.cfg
    # An external teacher is in no checkpoint: its weights never move, and stay where they are.
    outside = teacher.kept(cfg) == "external"
    beside = external.load(cfg, run.teacher_model, run.mesh) if outside else {}
    saved = checkpoint.steps(run.folder / "checkpoints")
    if saved and saved[-1] > cfg.steps:
        raise ConfigError(
            f"{run.folder} has done {saved[-1]} steps already, more than steps={cfg.steps}; "
            "choose another --workdir, or raise steps"
        )
    checkpoint.prune(run.folder / "checkpoints", keep=cfg.checkpoint.keep)
    if saved:
        state, meta = _restore(run.folder, saved[-1], cfg, run)
        for name, now in _outside(run).items():
            if meta[name] != now:
                raise ConfigError(
                    f"{name} names other content than in the first {saved[-1]} steps of "
                    f"{run.folder}; put that back, or choose another --workdir"
                )
        log.info("going on from the checkpoint of step %d", saved[-1])
    else:
        start, shardings = _start(run, cfg)
        params = weights.load_params(source, run.model, shardings=shardings.params)
        # Donated: the loaded weights become the state's, so that they stand in memory once.
        made = jax.jit(start, out_shardings=shardings, donate_argnums=0)
        state = made(params, jax.random.key(cfg.seed))
        meta = meta_of(run, 0, Solved())
    return (dataclasses.replace(state, teacher=beside) if outside else state), meta


def _start(run: Run, cfg: Config) -> tuple[Callable[..., TrainState], TrainState]:
    """The function that makes the first state, without an external teacher; its shardings."""
    shardings = train_step.state_shardings(cfg, run.model, run.mesh, run.teacher_model)
    shardings = teacher.without_external(shardings, cfg)
    return functools.partial(train_step.init_state, cfg=cfg, external={}), shardings


def meta_of(run: Run, position: int, solved: Solved) -> dict[str, Any]:
    """What a checkpoint holds beside the state."""
    return {"position": position, "solved": solved.to_json(), **_outside(run)}


def _outside(run: Run) -> dict[str, int | str | None]:
    """Settings that name files which a checkpoint does not hold: what these have in them."""
    external_teacher = teacher.kept(run.cfg) == "external"
    return {
        "rollout.file": None if run.saved is None else run.saved.checksum,
        "teacher.path": external.fingerprint(run.cfg) if external_teacher else None,
    }


def _restore(
    folder: pathlib.Path, step: int, cfg: Config, run: Run
) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint of the run in `folder`, whose config is `cfg`, on the mesh of `run`."""
    start, shardings = _start(run, cfg)
    params, _ = decoder.abstract(run.model)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(start, params, jax.random.key(cfg.seed)),
        shardings,
    )
    return checkpoint.load(folder / "checkpoints", step, like)


@dataclasses.dataclass(frozen=True)
class Origin:
    """A checkpoint that a student is taken from: of which run, and after how many steps."""

    folder: pathlib.Path
    cfg: Config
    step: int


def newest(folder: pathlib.Path, cfg: Config) -> Origin:
    """The newest checkpoint of the run in `folder`, whose model must be that of `cfg`.

    Raises:
        ConfigError: it holds no run, one of another model, or one without a checkpoint.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.json")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON in UTF-8 ({error})") from error
    theirs = configs.from_config_dict(Config, fields)
    if theirs.model.path != cfg.model.path:
        raise ConfigError(
            f"{folder} trains model.path={theirs.model.path}, and the config has "
            f"{cfg.model.path}; set model.path={theirs.model.path}"
        )
    found = checkpoint.steps(folder / "checkpoints")
    if not found:
        raise ConfigError(
            f"{folder} has no finished checkpoint yet; without --from the student has its "
            "initial weights"
        )
    return Origin(folder, theirs, found[-1])


def policy(run: Run, source: pathlib.Path, origin: Origin | None) -> Params:
    """The weights that sample while training, without an optimizer.

    Args:
        source: of the initial weights.
        origin: the student is this checkpoint's.
    """
    if run.cfg.rollout.policy == "teacher" and teacher.kept(run.cfg) == "external":
        return external.load(run.cfg, run.teacher_model, run.mesh)
    if origin is not None:
        return _restore(origin.folder, origin.step, origin.cfg, run)[0].params
    return weights.load_params(source, run.model, shardings=_start(run, run.cfg)[1].params)
