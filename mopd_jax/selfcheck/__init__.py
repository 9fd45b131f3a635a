"""Checks at every start of a run: each passes, does not apply, or stops it with its cause.

They use what the run itself uses: its tokenizer and templates, its sampler, its scorer, its
loss, on a few of its problems. What needs no rollout comes before any time is spent; the rest
sees the first step's own rollouts, before the first update.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

from mopd_jax.experience import Sampled
from mopd_jax.files import write_text
from mopd_jax.records import Batch, Problem, TrainState
from mopd_jax.run.record import Run
from mopd_jax.selfcheck import loss, prompts, rollouts
from mopd_jax.selfcheck.result import Result, SelfCheckError

__all__ = ["PROBLEMS", "Result", "SelfCheckError", "before_rollouts", "before_update"]

log = logging.getLogger("mopd")

PROBLEMS = 4  # Whose prompts are rendered.


def before_rollouts(run: Run, problems: Sequence[Problem]) -> list[Result]:
    """The checks that need no model.

    Args:
        problems: a few of the training split.

    Raises:
        SelfCheckError: of the first check that fails.
    """
    return [loss.check(run.cfg), prompts.header(run, problems), prompts.gold(run, problems)]


def before_update(
    run: Run, state: TrainState, sampled: Sampled, batch: Batch, before: Sequence[Result]
) -> list[Result]:
    """The checks of the first step's rollouts and of the batch made of them; then all results
    in one line of the log, and their numbers in `self_checks.json`.

    Args:
        state: of the student before the step.
        before: what `before_rollouts` found.

    Raises:
        SelfCheckError: of the first check that fails.
    """
    results = [*before, *_of_rollouts(run, state, sampled, batch)]
    passed = [r.name for r in results if not r.skipped]
    rest = [f"{r.name} does not apply: {r.skipped}" for r in results if r.skipped]
    line = "; ".join([f"{len(passed)} pass ({', '.join(passed)})", *rest])
    log.info("self checks: %s", line)
    checks = [dataclasses.asdict(result) for result in results]
    record = {"before_step": int(state.step) + 1, "checks": checks}
    write_text(run.folder / "self_checks.json", json.dumps(record, indent=2) + "\n")
    return results


def _of_rollouts(run, state, sampled, batch) -> list[Result]:
    stop_ids, pad_id = run.tokenizer.stop_ids, run.tokenizer.pad_id
    masks = rollouts.completions(sampled, batch, stop_ids, pad_id)
    rows, score = rollouts.few(run, sampled), rollouts.scorer(run)
    scored = score(state, rows)
    agreed = Result("sampler", skipped="the rollouts are not of this student")
    if run.saved is None and run.cfg.rollout.policy == "student":
        agreed = rollouts.sampler(rows, scored, run.cfg)
    if why := rollouts.other_teacher(run.cfg, state):
        return [masks, agreed, Result("teacher", skipped=why)]
    taught = rollouts.taught_scorer(run)(state, rollouts.plain(run, rows))
    return [masks, agreed, rollouts.equal_teacher(scored, taught, rows.mask, run.cfg)]
