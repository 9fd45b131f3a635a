"""Checks at every start of a run: each passes, does not apply, or stops the run with its cause.

They run the run's own code (tokenizer, templates, sampler, scorer, loss) on a few of its
problems. Checks that need no rollout come first; the others read the first step's rollouts,
before the first update.
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

PROBLEMS = 4  # Training problems whose prompts are checked.


def before_rollouts(run: Run, problems: Sequence[Problem]) -> list[Result]:
    """Results of the checks that need no model.

    Args:
        problems: a few of the training split.

    Raises:
        SelfCheckError: the first check that fails.
    """
    return [loss.check(run.cfg), prompts.header(run, problems), prompts.gold(run, problems)]


def before_update(
    run: Run, state: TrainState, sampled: Sampled, batch: Batch, before: Sequence[Result]
) -> list[Result]:
    """Checks the first step's rollouts and batch; logs one line and writes self_checks.json.

    Args:
        state: before the step.
        before: results of `before_rollouts`.

    Returns:
        All results, those of `before` first.

    Raises:
        SelfCheckError: the first check that fails.
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


def _of_rollouts(run: Run, state: TrainState, sampled: Sampled, batch: Batch) -> list[Result]:
    """Results of the checks that need the first step's rollouts."""
    stop_ids, pad_id = run.tokenizer.stop_ids, run.tokenizer.pad_id
    masks = rollouts.completions(sampled, batch, stop_ids, pad_id)
    rows = rollouts.spread_rows(run, sampled)
    student_logp = rollouts.student_scorer(run)(state, rows)
    sampler = Result("sampler", skipped="the rollouts are not of this student")
    if run.saved is None and run.cfg.rollout.policy == "student":
        sampler = rollouts.sampler(rows, student_logp, run.cfg)
    if why := rollouts.other_teacher(run.cfg, state):
        return [masks, sampler, Result("teacher", skipped=why)]
    plain = rollouts.with_plain_prompts(run, rows)
    teacher_logp = rollouts.teacher_scorer(run)(state, plain)
    teacher = rollouts.equal_teacher(student_logp, teacher_logp, rows.mask, run.cfg)
    return [masks, sampler, teacher]
