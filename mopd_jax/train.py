"""The training loop: start reading here.

`train` is the algorithm in the paper's order. The jitted functions are made once, in
`run/opening.py`; the rest runs on the host: verifiers, contexts, files, messages.

    rollout -> verify -> choose peers -> render contexts    `experience.gather`
    -> batch -> update -> record

With `rollout.file` the rollouts and verdicts come from a file (`saved_rollouts.py`).

A run folder has these files, written by:

    config.json, environment.json, command.txt    `run/folder.py`
    self_checks.json                              `selfcheck/`
    metrics.jsonl, tensorboard/                   `run/logbook.py`
    rollouts/                                     `rollouts/storage.py`
    checkpoints/                                  `run/checkpoint.py`
    run.lock                                      `run/lease.py`, while a process is at work
    evaluations/                                  this module

A killed run, started again with the same command, resumes from its last checkpoint and ends
with the same bits as a run that was never killed.

Left out so far: several hosts (one process drives all devices), sampling of the next step
during this step's update (it would train on older rollouts), and buckets of lengths (shapes are
those of the config).
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import time

import jax

from mopd_jax import experience, saved_rollouts, selfcheck, step_metrics
from mopd_jax.config import Config
from mopd_jax.evaluation import final_table, heldout, scores
from mopd_jax.experience import Gathered
from mopd_jax.files import dumps, write_text
from mopd_jax.records import TrainState
from mopd_jax.rollouts import storage
from mopd_jax.run import alarms, console, lease
from mopd_jax.run.logbook import ROLLOUTS, Logbook
from mopd_jax.run.opening import open_run
from mopd_jax.run.record import Run
from mopd_jax.run.sinks import open_sinks
from mopd_jax.run.state import Saver
from mopd_jax.run.stops import Stops

log = logging.getLogger("mopd")

PHASES = 5  # Of a step: rollout, verify, context (peers and prompts, then the batch), update.


def train(
    cfg: Config,
    workdir: pathlib.Path,
    *,
    command: str = "",
    devices: list[jax.Device] | None = None,
    stops: Stops | None = None,
) -> TrainState:
    """Starts or resumes the run in `workdir`; returns the final state.

    Args:
        command: written to `command.txt`.
        devices: of the mesh; by default all.
        stops: the command's signals; by default nothing handles them here.

    Raises:
        ConfigError: the folder is in use, or a setting is wrong, with the setting to change.
        DataError, RolloutFileError, weights and context errors: before the first step.
        selfcheck.SelfCheckError: before the first update.
        RunError: another process took the folder, or the last checkpoint is not written.
        stops.Stopped: a signal asked for it; what was done is saved.
    """
    stops = Stops() if stops is None else stops
    with lease.held(workdir, first=jax.process_index() == 0) as held:
        run, state, stream, solved = open_run(cfg, workdir, command=command, devices=devices)
        first = int(state.step) + 1
        book = Logbook(
            workdir, step=first - 1, sinks=open_sinks(cfg, workdir, fresh=first == 1)
        )
        warnings, saver = alarms.Alarms(cfg), Saver(run, held, step=first - 1)
        take = experience.sampler(run, stream)
        if run.saved is not None:
            take = saved_rollouts.reader(run, run.saved)
        sandbox, progress = run.sandbox or contextlib.nullcontext(), console.Progress(cfg)
        with jax.set_mesh(run.mesh), sandbox, progress, contextlib.closing(book), saver:
            if first <= cfg.steps:
                checks = selfcheck.before_rollouts(run, stream.peek(selfcheck.PROBLEMS)[0])
            if _evaluates(first - 1, cfg) and not book.has("eval", first - 1):
                _evaluate(run, state, book, stops)
            for step in range(first, cfg.steps + 1):
                held.check()
                clock = progress.clock(step, phases=PHASES)
                gathered = experience.gather(run, take, state, step, clock)
                with clock.phase("context"):
                    batch = experience.make_batch(run, gathered)
                if step == first:
                    selfcheck.before_update(run, state, gathered.sampled, batch, checks)
                with stops.hold():  # The update takes the old state's arrays.
                    with clock.phase("update"):
                        state, logged = run.update(state, batch)
                        if cfg.teacher.drift_every and step % cfg.teacher.drift_every == 0:
                            logged |= run.drift(state, batch)
                        logged = jax.device_get(logged)
                    solved = solved.after(gathered.sampled.problems, gathered.outcomes)
                    values = step_metrics.of_step(
                        run, gathered, logged, solved, clock.seconds()
                    )
                    book.scalars(step, "train", values)
                    progress.say(step, values)
                    warnings.warn(step, values, gathered.outcomes)
                    if step % cfg.dump_every == 0:
                        _dump(run, gathered, step)
                    saver.completed(state, stream.position, solved)
                if _evaluates(step, cfg):
                    _evaluate(run, state, book, stops)
                if step % cfg.checkpoint.every == 0 or step == cfg.steps:
                    with stops.hold():
                        saver.save()
        saver.check()
    log.info("%s", final_table.final_table(workdir))
    return state


def _evaluates(step: int, cfg: Config) -> bool:
    """Whether the student is evaluated after `step` steps; 0 is before the first."""
    return step % cfg.eval.every == 0 or step == cfg.steps


def _dump(run: Run, gathered: Gathered, step: int) -> None:
    """Writes the step's rollouts, with each teacher's prompt, to the run folder."""
    storage.write(
        run.folder / ROLLOUTS / f"step_{step:06d}.jsonl",
        saved_rollouts.header(run, steps=1, trained=step - 1),
        saved_rollouts.rows(gathered),
    )


def _evaluate(run: Run, state: TrainState, book: Logbook, stops: Stops) -> None:
    """Evaluates the student on the held-out problems: logs mean@n and pass@k, and writes each
    outcome to `evaluations/`. A run that is stopped in between does it when it goes on."""
    cfg, step = run.cfg, int(state.step)
    problems, samples = len(run.eval_problems), cfg.eval.samples
    log.info("evaluating %d problems, %d responses each ...", problems, samples)
    begun = time.perf_counter()
    responses = heldout.respond(run, state)
    with stops.hold():
        _record(run, step, responses, time.perf_counter() - begun, book)


def _record(
    run: Run,
    step: int,
    responses: list[list[scores.Response]],
    seconds: float,
    book: Logbook,
) -> None:
    """Writes and logs an evaluation after `step` steps."""
    cfg = run.cfg
    result = scores.outcome(responses, threshold=cfg.peers.threshold)
    table = result.summary(cfg.eval.ks)
    table["seconds"] = seconds
    book.scalars(step, "eval", table)
    (run.folder / "evaluations").mkdir(exist_ok=True)
    solved = dumps({"solved": result.solved.tolist()})
    write_text(run.folder / "evaluations" / f"step_{step:06d}.json", solved)
    name = f"mean@{cfg.eval.samples}"
    log.info(
        "eval after step %d: %s %.3f [%.3f, %.3f]",
        step,
        name,
        table[name],
        table[f"{name}_low"],
        table[f"{name}_high"],
    )
    rows = console.samples(
        run.eval_problems, [row[0].text for row in responses], result.success[:, 0].tolist()
    )
    console.say_samples(rows)
    book.samples(step, rows)
