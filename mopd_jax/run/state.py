"""The state of a run: the one that it starts from, and the checkpoints that it saves."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError, RunError
from mopd_jax.models import decoder, weights
from mopd_jax.records import Params, TrainState
from mopd_jax.run import checkpoint, folder, saved_config
from mopd_jax.run.checkpoint import CheckpointError
from mopd_jax.run.lease import Lease
from mopd_jax.run.record import Run
from mopd_jax.run.solved import Solved
from mopd_jax.run.stops import Stopped
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
    if not saved and any((run.folder / "checkpoints").glob("*.damaged")):
        raise CheckpointError(
            f"{run.folder} has damaged checkpoints only; put one back, or choose another "
            "--workdir"
        )
    if saved:
        state, meta = _newest_intact(run, saved)
        folder.check_identity(run.folder, meta.pop("config"), _identity(cfg))
        for name, fingerprint in _external_inputs(run).items():
            if meta[name] != fingerprint:
                raise ConfigError(
                    f"{name} names other content than in the first {int(state.step)} steps of "
                    f"{run.folder}; put that back, or choose another --workdir"
                )
        log.info(
            "going on from the checkpoint of step %d: %d prompts sampled, %d problems solved",
            int(state.step),
            meta["position"],
            len(meta["solved"]["solved"]),
        )
    else:
        start, shardings = _initial_state(run, cfg)
        params = weights.load_params(source, run.model, shardings=shardings.params)
        # Donated: the loaded weights become the state's, so memory holds them once.
        first = jax.jit(start, out_shardings=shardings, donate_argnums=0)
        state = first(params, jax.random.key(cfg.seed))
        meta = checkpoint_meta(run, 0, Solved())
    # Not before one of them was read: the newest may be damaged.
    checkpoint.prune(run.folder / "checkpoints", keep=cfg.checkpoint.keep)
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
    return {
        "config": _identity(run.cfg),
        "position": position,
        "solved": solved.to_json(),
        **_external_inputs(run),
    }


class Saver:
    """Saves a run's checkpoints, and what is not saved yet when the run is stopped.

    A context manager around the steps. A disk that is full costs checkpoints, not the run.
    """

    def __init__(self, run: Run, held: Lease, *, step: int):
        """
        Args:
            held: of the run folder; nothing is saved where another process has taken it.
            step: of the checkpoint that the run goes on from, or 0.
        """
        self._run, self._held = run, held
        self._saved, self._done = step, step
        self._latest: tuple[TrainState, int, Solved] | None = None
        self._failure = ""

    def completed(self, state: TrainState, position: int, solved: Solved) -> None:
        """The state after a step; the next update frees its arrays."""
        self._latest, self._done = (state, position, solved), int(state.step)

    def save(self) -> None:
        """Saves the latest state; where that fails for want of room, warns.

        Raises:
            RunError: another process has taken the folder.
        """
        if self._latest is None:
            return
        self._held.check()
        run, (state, position, solved) = self._run, self._latest
        try:
            checkpoint.save(
                run.folder / "checkpoints",
                teacher.without_external(state, run.models.teacher_slot),
                checkpoint_meta(run, position, solved),
                keep=run.cfg.checkpoint.keep,
            )
        except OSError as error:
            self._failure = f"{error.strerror or error}"
            log.warning(
                "WARNING the checkpoint of step %d could not be written (%s); the run goes on, "
                "and %s",
                self._done,
                self._failure,
                f"the newest is that of step {self._saved}"
                if self._saved
                else "it has none yet",
            )
            return
        self._saved, self._failure = self._done, ""

    def check(self) -> None:
        """Raises RunError if the last save failed."""
        if self._failure:
            raise RunError(
                f"the last checkpoint could not be written ({self._failure}); make room, and "
                f"the same command goes on from step {self._saved}"
            )

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Stopped):
            return
        if self._done > self._saved:
            self.save()
        begun = f"stopped after step {self._done}" if self._done else "stopped before step 1"
        error.note = f"{begun}; the same command goes on from step {self._saved}"


def _identity(cfg: Config) -> dict[str, Any]:
    """The settings that a checkpoint belongs to, without those of `_external_inputs`: a file
    may be moved, and its content is compared."""
    tree = folder.identity(cfg)
    del tree["rollout"]["file"], tree["teacher"]["path"]
    return tree


def _external_inputs(run: Run) -> dict[str, int | str | None]:
    """Fingerprints of the files that settings name and checkpoints do not hold."""
    has_external = run.models.teacher_slot == "external"
    return {
        "rollout.file": None if run.saved is None else run.saved.checksum,
        "teacher.path": external_teacher.fingerprint(run.cfg) if has_external else None,
    }


def _newest_intact(run: Run, saved: Sequence[int]) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint that can be read; damaged ones are set aside, with a warning.

    Raises:
        CheckpointError: none can be read; all stay where they are.
    """
    damaged: list[tuple[int, CheckpointError]] = []
    for step in reversed(saved):
        try:
            found = _restored(run.folder, step, run.cfg, run)
        except CheckpointError as error:
            damaged.append((step, error))
            continue
        for bad, fault in damaged:
            aside = checkpoint.set_aside(run.folder / "checkpoints", bad)
            log.warning(
                "WARNING %s. It is kept as %s; going on from step %d", fault, aside, step
            )
        return found
    texts = "; ".join(str(fault) for _, fault in damaged)
    raise CheckpointError(
        f"no checkpoint of {run.folder} can be read: {texts}; put one back, or choose another "
        "--workdir"
    )


def _restored(
    path: pathlib.Path, step: int, cfg: Config, run: Run
) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint of the run in the folder `path` with the config `cfg`, on `run`'s mesh."""
    start, shardings = _initial_state(run, cfg)
    params, _ = decoder.abstract(run.model)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(start, params, jax.random.key(cfg.seed)),
        shardings,
    )
    return checkpoint.load(path / "checkpoints", step, like)


@dataclasses.dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that a student starts from: its run, and its number of training steps."""

    folder: pathlib.Path
    cfg: Config
    step: int


def latest_checkpoint(path: pathlib.Path, cfg: Config) -> CheckpointSource:
    """The latest checkpoint of the run in the folder `path`, whose model must be that of `cfg`.

    Raises:
        ConfigError: the folder has no run, its model is another, or it has no checkpoint.
    """
    theirs = saved_config.read(path)
    if theirs.model.path != cfg.model.path:
        raise ConfigError(
            f"{path} trains model.path={theirs.model.path}, and the config has "
            f"{cfg.model.path}; set model.path={theirs.model.path}"
        )
    steps = checkpoint.steps(path / "checkpoints")
    if not steps:
        raise ConfigError(
            f"{path} has no finished checkpoint yet; without --from the student has its "
            "initial weights"
        )
    return CheckpointSource(path, theirs, steps[-1])


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
