"""The training loop: start reading here.

`train` is the algorithm in the paper's order, one verb a line. Everything it calls is a pure
function of arrays (the jitted ones are made once, in `run.py`) or a thin handle on files:

    take problems -> rollout -> verify -> choose peers -> render contexts -> update -> record

Run folder: `config.json`, `environment.json`, `command.txt`, `metrics.jsonl`, `tensorboard/`,
`rollouts/`, `checkpoints/`, `evaluations/`. A killed run, started again with the same command,
goes on from its last checkpoint and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import functools
import json
import logging
import pathlib
import time

import jax
import numpy as np
from tqdm import tqdm

from mopd_jax import checkpoint, console, evaluate, experience, inactive
from mopd_jax.config import Config
from mopd_jax.logbook import Logbook, write_text
from mopd_jax.records import TrainState
from mopd_jax.run import Run, open_run

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
        ConfigError, data.DataError, weights and context errors: before the first step, each
        with the setting to change.
    """
    run, state, stream = open_run(cfg, workdir, command=command, devices=devices)
    book = Logbook(workdir, step=int(state.step))
    with jax.set_mesh(run.mesh):
        if int(state.step) == 0:
            _evaluate(run, state, book)
        for step in range(int(state.step) + 1, cfg.steps + 1):
            clock = console.Clock(step, cfg.steps, phases=4)
            with clock.phase("rollout"):
                problems, uids = stream.take(cfg.rollout.prompts)
                sampled = experience.sample(
                    run,
                    run.sample,
                    state,
                    problems,
                    uids,
                    purpose=experience.TRAIN,
                    step=step,
                )
            with clock.phase("verify"):
                verdicts = experience.verify(run, sampled)
                rewards, valid, success = experience.outcomes(verdicts, cfg)
            with clock.phase("context"):
                chosen = experience.choose_peers(run, sampled, success, valid, step)
                contexts = experience.render(run, sampled, chosen, verdicts, success)
                batch = experience.batch(
                    run, sampled, contexts.inputs, chosen.usage, rewards, valid
                )
            with clock.phase("update"):
                state, logged = run.update(state, batch)
                values = {name: ratio.mean() for name, ratio in jax.device_get(logged).items()}
            values |= experience.group_metrics(
                sampled, rewards, valid, success, contexts.records
            )
            values |= experience.choice_metrics(chosen, contexts)
            if run.sandbox is not None:
                values["sandbox_level"] = run.sandbox.level
            values |= clock.seconds()
            values["tokens_per_second"] = float(sampled.mask.sum()) / values["seconds"]
            book.scalars(step, "train", values)
            console.say(step, cfg, values)
            inactive.warn(step, values, rewards, valid, success, cfg)
            if step % cfg.dump_every == 0:
                book.rollouts(
                    step, experience.readable(run, sampled, verdicts, chosen, contexts)
                )
            if step % cfg.eval.every == 0 or step == cfg.steps:
                _evaluate(run, state, book)
            if step % cfg.checkpoint.every == 0 or step == cfg.steps:
                meta = {"position": stream.position}
                checkpoint.save(workdir / "checkpoints", state, meta, keep=cfg.checkpoint.keep)
    book.close()
    if run.sandbox is not None:
        run.sandbox.close()
    log.info("%s", console.final_table(workdir))
    return state


def _evaluate(run: Run, state: TrainState, book: Logbook) -> None:
    """Held-out solve rate and pass@k of the student as it is; the outcomes are kept as well."""
    cfg, step = run.cfg, int(state.step)
    begun = time.perf_counter()

    def sample(start: int, stop: int):
        numbers = np.arange(start, start + cfg.eval.batch)
        chosen = [run.eval_problems[i] for i in np.minimum(numbers, stop - 1).tolist()]
        # The same keys at every evaluation: differences are the student's, not the draw's.
        out = experience.sample(
            run,
            run.sample_eval,
            state,
            chosen,
            numbers.astype(np.uint32),
            purpose=experience.EVALUATE,
            step=0,
        )
        _, valid, success = experience.outcomes(experience.verify(run, out), cfg)
        real = slice(0, stop - start)
        lengths = out.mask.sum(axis=2)
        return success[real], lengths[real], out.stopped[real], int((~valid[real]).sum())

    bar = functools.partial(tqdm, desc="evaluate", leave=False, disable=None)
    result = evaluate.evaluate(
        sample, len(run.eval_problems), batch=cfg.eval.batch, progress=bar
    )
    table = result.summary(cfg.eval.ks)
    table["seconds"] = time.perf_counter() - begun
    book.scalars(step, "eval", table)
    (run.folder / "evaluations").mkdir(exist_ok=True)
    success = json.dumps(result.success.astype(int).tolist())
    write_text(run.folder / "evaluations" / f"step_{step:06d}.json", success)
    name = f"mean@{cfg.eval.samples}"
    log.info(
        "eval after step %d: %s %.3f [%.3f, %.3f]",
        step,
        name,
        table[name],
        table[f"{name}_low"],
        table[f"{name}_high"],
    )
