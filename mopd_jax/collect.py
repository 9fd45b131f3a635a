"""Rollouts without training: `mopd rollout` samples, verifies, and writes one file."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mopd_jax import experience, saved_rollouts, step_metrics
from mopd_jax.config import Config
from mopd_jax.data import sources
from mopd_jax.errors import ConfigError
from mopd_jax.records import Problem, TrainState
from mopd_jax.rollouts import storage
from mopd_jax.rollouts.schema import RolloutFileError, RolloutRow
from mopd_jax.run import console
from mopd_jax.run.opening import prepare
from mopd_jax.run.record import Run
from mopd_jax.run.state import latest_checkpoint, sampling_params

log = logging.getLogger("mopd")


def collect(
    cfg: Config,
    out: pathlib.Path,
    *,
    start: pathlib.Path | None = None,
    devices: list[jax.Device] | None = None,
) -> None:
    """Writes the file `out` with `cfg.steps` steps of rollouts of one student.

    Problems and random keys are those of a run with the same config, so the first step of the
    run and of this file agree. The same arguments on the same devices give the same bytes.

    Args:
        start: folder of a run whose newest checkpoint is the student, by default the initial
            weights.
        devices: that the mesh is laid over, by default all.

    Raises:
        ConfigError, and what `opening.prepare` raises: before anything is sampled.
    """
    if cfg.rollout.file is not None:
        raise ConfigError(
            f"rollout.file={cfg.rollout.file} is for training; `mopd rollout` samples: set "
            "rollout.file=None"
        )
    if start is not None and cfg.rollout.policy == "teacher":
        raise ConfigError(
            f"--from={start} is for a student, and rollout.policy='teacher' samples a teacher "
            "that stays as it is; leave --from out"
        )
    if out.exists():
        raise ConfigError(f"{out} already exists; remove it, or choose another --out")
    origin = None if start is None else latest_checkpoint(start, cfg)
    run, problems, source = prepare(cfg, out.parent, devices=devices)
    weights, zero = sampling_params(run, source, origin), jnp.int32(0)
    state = TrainState(
        params=weights,
        teacher=weights,  # The sampler reads these under either `rollout.policy`.
        optimizer=None,
        step=zero,
        skipped=zero,
        key=jax.random.key(cfg.seed),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    trained = 0 if origin is None else origin.step
    header = saved_rollouts.header(run, steps=cfg.steps, trained=trained)
    sandbox, progress = run.sandbox or contextlib.nullcontext(), console.Progress(cfg)
    with jax.set_mesh(run.mesh), sandbox, progress:
        storage.write(out, header, _rows(run, state, problems, progress))
    rows = cfg.steps * cfg.rollout.prompts * cfg.rollout.group
    log.info("%s: %d rollouts in %.1f MB", out, rows, out.stat().st_size / 1e6)


def _rows(
    run: Run, state: TrainState, problems: Sequence[Problem], progress: console.Progress
) -> Iterator[RolloutRow]:
    """The rows of all steps; logs a line for each step."""
    cfg = run.cfg
    take = experience.sampler(run, sources.ProblemStream(problems, seed=cfg.seed))
    for step in range(1, cfg.steps + 1):
        clock = progress.clock(step, phases=3)
        gathered = experience.gather(run, take, state, step, clock)
        if not np.isfinite(gathered.sampled.sampled_logp).all():
            raise RolloutFileError(
                f"step {step}: a log-prob of the student is not finite, so nothing can be "
                "trained from it; check the weights and model.compute_dtype"
            )
        values = step_metrics.of_rollouts(gathered)
        progress.say_rollouts(step, values | clock.seconds())
        yield from saved_rollouts.rows(gathered)
