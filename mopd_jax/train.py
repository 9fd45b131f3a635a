"""The training loop: start reading here.

`train` is the algorithm in the paper's order, one verb a line. Everything it calls is a pure
function of arrays (the jitted ones are made once, in `run.py`) or a thin handle on files:

    take problems -> rollout -> verify -> choose peers -> render contexts -> update -> record

With `rollout.file` the first three are read from a file of rollouts (`offline.py`).

Run folder: `config.json`, `environment.json`, `command.txt`, `self_checks.json`,
`metrics.jsonl`, `tensorboard/`, `rollouts/`, `checkpoints/`, `evaluations/`. A killed run,
started again with the same command, goes on from its last checkpoint and ends with the same
bits as one that was never killed.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import time

import jax

from mopd_jax import experience, saved_rollouts, selfcheck, step_metrics
from mopd_jax.config import Config
from mopd_jax.data.sources import ProblemStream
from mopd_jax.evaluation import final_table, heldout, scores
from mopd_jax.files import dumps, write_text
from mopd_jax.records import TrainState
from mopd_jax.rollouts import storage
from mopd_jax.run import alarms, checkpoint, console
from mopd_jax.run.logbook import ROLLOUTS, Logbook
from mopd_jax.run.opening import open_run
from mopd_jax.run.record import Run
from mopd_jax.run.state import checkpoint_meta
from mopd_jax.update import teacher

log = logging.getLogger("mopd")


def train(
    cfg: Config,
    workdir: pathlib.Path,
    *,
    command: str = "",
    devices: list[jax.Device] | None = None,
) -> TrainState:
    """Runs, or goes on with, the run in `workdir`; returns the final state.

    Args:
        command: noted in the run folder.
        devices: that the mesh is laid over, by default all.

    Raises:
        ConfigError, data.DataError, RolloutFileError, weights and context errors: before the
        first step, each with the setting to change. selfcheck.SelfCheckError: before the first
        update.
    """
    run, state, stream, solved = open_run(cfg, workdir, command=command, devices=devices)
    book = Logbook(workdir, step=int(state.step))
    first = int(state.step) + 1
    with jax.set_mesh(run.mesh), run.sandbox or contextlib.nullcontext():
        if first <= cfg.steps:
            checks = selfcheck.before_rollouts(run, stream.peek(selfcheck.PROBLEMS)[0])
        if first == 1:
            _evaluate(run, state, book)
        for step in range(first, cfg.steps + 1):
            clock = console.Clock(step, cfg.steps, phases=4)
            with clock.phase("rollout"):
                sampled, judged, draw = _rollouts(run, state, stream, step)
            with clock.phase("verify"):
                verdicts = judged()  # Of the last batch; the others' are there.
                rewards, valid, success = experience.outcomes(verdicts, cfg)
            with clock.phase("context"):
                chosen = experience.choose_peers(run, sampled, success, valid, draw)
                contexts = experience.render_contexts(run, sampled, chosen, verdicts, success)
                batch = experience.batch(
                    run, sampled, contexts.inputs, chosen.usage, rewards, valid
                )
            if step == first:
                selfcheck.before_update(run, state, sampled, batch, checks)
            with clock.phase("update"):
                state, logged = run.update(state, batch)
                if cfg.teacher.drift_every and step % cfg.teacher.drift_every == 0:
                    logged |= run.drift(state, batch)
                values = {name: ratio.mean() for name, ratio in jax.device_get(logged).items()}
            values |= step_metrics.group_metrics(
                sampled, rewards, valid, success, contexts.records
            )
            values |= step_metrics.choice_metrics(chosen, contexts)
            values |= step_metrics.verdict_metrics(verdicts)
            solved = solved.after([problem.id for problem in sampled.problems], success)
            values |= solved.metrics()
            if run.sandbox is not None:
                values["sandbox_level"] = run.sandbox.level
            if cfg.data.long_prompts == "drop":
                values["prompts_left_out"] = run.prompts_left_out
            values |= clock.seconds()
            values["tokens_per_second"] = float(sampled.mask.sum()) / values["seconds"]
            book.scalars(step, "train", values)
            console.say(step, cfg, values)
            alarms.warn(step, values, rewards, valid, success, cfg)
            if step % cfg.dump_every == 0:
                storage.write(
                    workdir / ROLLOUTS / f"step_{step:06d}.jsonl",
                    saved_rollouts.header(run, steps=1, trained=step - 1),
                    saved_rollouts.rows(sampled, verdicts, chosen, contexts, step=draw),
                )
            if step % cfg.eval.every == 0 or step == cfg.steps:
                _evaluate(run, state, book)
            if step % cfg.checkpoint.every == 0 or step == cfg.steps:
                meta = checkpoint_meta(run, stream.position, solved)
                checkpoint.save(
                    workdir / "checkpoints",
                    teacher.without_external(state, cfg),
                    meta,
                    keep=cfg.checkpoint.keep,
                )
    book.close()
    log.info("%s", final_table.final_table(workdir))
    return state


def _rollouts(run: Run, state: TrainState, stream: ProblemStream, step: int):
    """(Sampled, function that waits for its verdicts, number that keys the step's draws): of
    the student as it is, or from the file of the run."""
    if run.saved is not None:
        sampled, verdicts, draw = saved_rollouts.take(run, step)
        return sampled, lambda: verdicts, draw
    problems, uids = stream.take(run.cfg.rollout.prompts)
    return *experience.sample_and_verify(run, state, problems, uids, step=step), step


def _evaluate(run: Run, state: TrainState, book: Logbook) -> None:
    """Held-out solve rate and pass@k of the student as it is; the outcomes are kept as well."""
    cfg, step = run.cfg, int(state.step)
    begun = time.perf_counter()
    responses = heldout.respond(run, state)
    result = scores.outcome(responses, threshold=cfg.peers.threshold)
    table = result.summary(cfg.eval.ks)
    table["seconds"] = time.perf_counter() - begun
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
