"""The state that a run starts from: initial weights or the latest checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, weights
from mopd_jax.records import Params, TrainState
from mopd_jax.run import checkpoint, saved_config
from mopd_jax.run.record import Run
from mopd_jax.run.solved import Solved
from mopd_jax.update import external_teacher, teacher, train_step
from mopd_jax.update.teacher import Models

log = logging.getLogger("mopd")


def open_state(run: Run, source: pathlib.Path) -> tuple[TrainState, dict[str, Any]]:
    """The state to start from, the latest checkpoint's or the initial one, and its metadata."""
    cfg = run.cfg
    # Checkpoints leave out an external teacher: its weights never change and are read again.
    has_external = run.models.teacher_slot == "external"
    teacher_params = (
        external_teacher.load(cfg, run.models.teacher, run.mesh) if has_external else {}
    )
    saved = checkpoint.steps(run.folder / "checkpoints")
    if saved and saved[-1] > cfg.steps:
        raise ConfigError(
            f"{run.folder} has done {saved[-1]} steps already, more than steps={cfg.steps}; "
            "choose another --workdir, or raise steps"
        )
    checkpoint.prune(run.folder / "checkpoints", keep=cfg.checkpoint.keep)
    if saved:
        state, meta = _restored(run.folder, saved[-1], cfg, run)
        for name, fingerprint in _external_inputs(run).items():
            if meta[name] != fingerprint:
                raise ConfigError(
                    f"{name} names other content than in the first {saved[-1]} steps of "
                    f"{run.folder}; put that back, or choose another --workdir"
                )
        log.info("going on from the checkpoint of step %d", saved[-1])
    else:
        start, shardings = _initial_state(run, cfg)
        params = weights.load_params(source, run.model, shardings=shardings.params)
        # Donated: the loaded weights become the state's, so memory holds them once.
        first = jax.jit(start, out_shardings=shardings, donate_argnums=0)
        state = first(params, jax.random.key(cfg.seed))
        meta = checkpoint_meta(run, 0, Solved())
    if has_external:
        state = dataclasses.replace(state, teacher=teacher_params)
    return state, meta


def _initial_state(run: Run, cfg: Config) -> tuple[Callable[..., TrainState], TrainState]:
    """The function that makes the first state, without an external teacher; its shardings.

    Args:
        cfg: of the run, or of the one whose checkpoint it samples from.
    """
    models = Models.of(cfg, run.models.student, run.models.teacher)
    shardings = train_step.state_shardings(cfg, models, run.mesh)
    shardings = teacher.without_external(shardings, models.teacher_slot)
    start = functools.partial(train_step.init_state, cfg=cfg, models=models, external={})
    return start, shardings


def checkpoint_meta(run: Run, position: int, solved: Solved) -> dict[str, Any]:
    """The metadata that a checkpoint holds besides the state."""
    return {"position": position, "solved": solved.to_json(), **_external_inputs(run)}


def _external_inputs(run: Run) -> dict[str, int | str | None]:
    """Fingerprints of the files that settings name and checkpoints do not hold."""
    has_external = run.models.teacher_slot == "external"
    return {
        "rollout.file": None if run.saved is None else run.saved.checksum,
        "teacher.path": external_teacher.fingerprint(run.cfg) if has_external else None,
    }


def _restored(
    folder: pathlib.Path, step: int, cfg: Config, run: Run
) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint of the run in `folder`, whose config is `cfg`, on the mesh of `run`."""
    start, shardings = _initial_state(run, cfg)
    params, _ = decoder.abstract(run.model)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(start, params, jax.random.key(cfg.seed)),
        shardings,
    )
    return checkpoint.load(folder / "checkpoints", step, like)


@dataclasses.dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that a student starts from: its run, and its number of training steps."""

    folder: pathlib.Path
    cfg: Config
    step: int


def latest_checkpoint(folder: pathlib.Path, cfg: Config) -> CheckpointSource:
    """The latest checkpoint of the run in `folder`, whose model must be that of `cfg`.

    Raises:
        ConfigError: the folder has no run, its model is another, or it has no checkpoint.
    """
    theirs = saved_config.read(folder)
    if theirs.model.path != cfg.model.path:
        raise ConfigError(
            f"{folder} trains model.path={theirs.model.path}, and the config has "
            f"{cfg.model.path}; set model.path={theirs.model.path}"
        )
    steps = checkpoint.steps(folder / "checkpoints")
    if not steps:
        raise ConfigError(
            f"{folder} has no finished checkpoint yet; without --from the student has its "
            "initial weights"
        )
    return CheckpointSource(folder, theirs, steps[-1])


def sampling_params(run: Run, source: pathlib.Path, origin: CheckpointSource | None) -> Params:
    """The weights that sample while training, without an optimizer.

    Args:
        source: of the initial weights.
        origin: the checkpoint to take the student from.
    """
    if run.cfg.rollout.policy == "teacher" and run.models.teacher_slot == "external":
        return external_teacher.load(run.cfg, run.models.teacher, run.mesh)
    if origin is not None:
        return _restored(origin.folder, origin.step, origin.cfg, run)[0].params
    return weights.load_params(
        source, run.model, shardings=_initial_state(run, run.cfg)[1].params
    )
