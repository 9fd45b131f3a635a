"""Checks of the first rollouts: their masks, their log-probs, and the teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mopd_jax.config import Config
from mopd_jax.contexts import peers, render
from mopd_jax.experience import Sampled
from mopd_jax.models import decoder, sharding
from mopd_jax.records import Batch, Problem, TrainState
from mopd_jax.run.record import Run
from mopd_jax.selfcheck.result import Result, fail
from mopd_jax.update import objectives, teacher

# Rows that are scored; few, since that takes time.
ROWS = 4
# (mean, max) nats by which sampler and scorer may differ on a token at temperature 1. Both add
# up the same products in another order: caches and one prefix a group against whole rows. In
# float32 2e-5 at most was seen on a model of 30 layers; ten times that is the mean allowed. In
# bfloat16 hidden states have 8 bits, so a logit of size 10 is known to some hundredths: 0.01 on
# average was seen. A wrong position, mask or temperature costs tenths to whole nats where the
# model is not sure.
GAPS = {"float32": (2e-4, 2e-2), "bfloat16": (0.1, 2.0)}
# Of teacher and student, which then run one program on the same numbers: the same bits, but for
# a device that does not add in the same order twice.
EQUAL = 1e-5


def completions(sampled: Sampled, batch: Batch, stop_ids: Sequence[int], pad_id: int) -> Result:
    """The mask is the response up to and with its first stop token, and nothing else.

    Rows are trained on whole or not at all, and their positions go on from the prompt's.

    Raises:
        SelfCheckError: with the first such cause and the rows it is found in.
    """
    prompts, group, length = sampled.response.shape
    response, mask = (x.reshape(-1, length) for x in (sampled.response, sampled.mask))
    stops = np.isin(response, stop_ids) & mask
    before = np.cumsum(stops, axis=1) - stops
    ended = stops.any(axis=1)
    lengths = mask.sum(axis=1)
    prefix = np.arange(length) < lengths[:, None]
    trained, trained_on = np.asarray(batch.mask), np.asarray(batch.response)
    given = np.asarray(batch.prompt_mask)
    columns = np.concatenate([given, mask], axis=1)
    positions = np.asarray(decoder.positions_of(columns))[:, given.shape[1] :]
    due = given.sum(axis=1, keepdims=True) + np.arange(length)
    padded = (response == pad_id) & (sampled.sampled_logp.reshape(mask.shape) == 0)
    whole = (trained == mask).all(axis=1) | ~trained.any(axis=1)
    for cause, wrong in (
        ("the mask has a hole or is empty", (mask != prefix).any(axis=1) | (lengths == 0)),
        ("the mask goes on after a stop token", (mask & (before > 0)).any(axis=1)),
        ("the mask ends before a stop token and before the end", ~ended & (lengths < length)),
        ("'stopped' is not what the tokens say", ended != sampled.stopped.reshape(-1)),
        ("a token or log-prob stands behind the mask", (~padded & ~mask).any(axis=1)),
        ("the prompt does not end where the response begins", ~_left_padded(given)),
        ("positions do not go on from the prompt", ((positions != due) & mask).any(axis=1)),
        ("another response is trained on", (trained_on != response).any(axis=1)),
        ("a part of the response is trained on, or more than it", ~whole),
    ):
        rows = np.flatnonzero(wrong)
        if rows.size:
            p, g = divmod(int(rows[0]), group)
            fail(
                "mask",
                f"{cause}: {rows.size} of {len(mask)} rows, rollout {g} of problem "
                f"{sampled.problems[p].id!r} for one; check the tokenizer's stop ids "
                f"{tuple(stop_ids)} and pad id {pad_id}, and changes to rollout.py and "
                "experience.batch",
            )
    numbers = {
        "rows": len(mask),
        "rows_trained": int(trained.any(axis=1).sum()),
        "stopped": int(ended.sum()),
        "tokens": int(lengths.sum()),
    }
    return Result("mask", numbers)


def _left_padded(mask: np.ndarray) -> np.ndarray:
    """bool[N], rows whose real columns are the last ones, and at least one."""
    return mask[:, -1] & (mask[:, 1:] >= mask[:, :-1]).all(axis=1)


class Rows(NamedTuple):
    """A few rows of a step, R of them."""

    problems: list[Problem]
    prompt: np.ndarray  # i32[R, S or Q], left-padded
    prompt_mask: np.ndarray
    response: np.ndarray  # i32[R, T]
    mask: np.ndarray
    sampled_logp: np.ndarray  # f32[R, T]


def _part(run: Run) -> int:
    """Rows scored at a time: no more than an update has in a micro-batch, split evenly."""
    cfg, shards = run.cfg, sharding.row_shards(run.mesh)
    parts = cfg.optimizer.mini_batches * cfg.optimizer.micro_batches
    micro = cfg.rollout.prompts * cfg.rollout.group // parts
    return min(-(-ROWS // shards) * shards, micro)


def few(run: Run, sampled: Sampled) -> Rows:
    """Rows spread over the batch, a multiple of those that are scored at a time."""
    prompts, group, length = sampled.response.shape
    part = _part(run)
    count = min(-(-ROWS // part) * part, prompts * group)
    chosen = np.arange(count) * (prompts * group // count)
    responses = (sampled.response, sampled.mask, sampled.sampled_logp)
    return Rows(
        [sampled.problems[n // group] for n in chosen],
        sampled.prompt[chosen // group],
        sampled.prompt_mask[chosen // group],
        *(x.reshape(-1, length)[chosen] for x in responses),
    )


def plain(run: Run, rows: Rows) -> Rows:
    """The same rows, with the prompts that a teacher with an empty context reads."""
    inputs, _, _ = render.teacher_inputs(
        rows.problems,
        [[""]] * len(rows.problems),
        peers.without_peers(len(rows.problems), 1),
        run.tokenizer,
        cfg=dataclasses.replace(run.cfg.context, gold="off"),
    )
    return rows._replace(prompt=inputs.prompt, prompt_mask=inputs.prompt_mask)


def scorer(run: Run) -> Callable[[TrainState, Rows], np.ndarray]:
    """The student's log-probs f32[R, T] of rows; compiles once, when first called."""
    cfg = run.cfg

    def score(state, batch):
        return objectives.student_logp(state.params, batch, cfg, run.model).logp

    return _in_parts(run, score)


def taught_scorer(run: Run) -> Callable[[TrainState, Rows], np.ndarray]:
    """The same of the teacher, by the way that its log-probs take in an update."""
    cfg = run.cfg

    def score(state, batch):
        output = teacher.teacher_output(
            state.teacher, state.params, batch, cfg=cfg.teacher, models=run.models
        )
        return objectives.logprob(output, batch, cfg).logp

    return _in_parts(run, score, taught=True)


def _in_parts(run: Run, score, *, taught: bool = False):
    """(state, rows) -> f32[R, T], `score` of a few rows at a time.

    Their prompt stands where a batch has the student's, or, with `taught`, the teacher's; the
    other is empty, so that reading the wrong one shows. Both are as wide as the teacher's, so
    that student and teacher add in the same order.
    """
    cfg, part, score = run.cfg, _part(run), jax.jit(score)
    distills = cfg.loss.method == "distill"
    width = cfg.context.teacher_prompt_length if distills else cfg.rollout.prompt_length

    def scored(state, rows):
        sides = ((0, 0), (width - rows.prompt.shape[1], 0))
        prompt = np.pad(rows.prompt, sides, constant_values=run.tokenizer.pad_id)
        mask = np.pad(rows.prompt_mask, sides)
        empty = (
            np.full_like(prompt, run.tokenizer.pad_id),
            mask & (np.arange(width) == width - 1),
        )
        student, other = (empty, (prompt, mask)) if taught else ((prompt, mask), empty)
        batch = Batch(
            prompt=student[0],
            prompt_mask=student[1],
            response=rows.response,
            mask=rows.mask,
            sampled_logp=rows.sampled_logp,
            teacher_prompt=other[0],
            teacher_prompt_mask=other[1],
            advantage=np.zeros(len(prompt), np.float32),
        )
        found = []
        for i in range(0, len(prompt), part):
            few = jax.tree.map(lambda x, i=i: x[i : i + part], batch)
            found.append(score(state, jax.device_put(few, sharding.rows(run.mesh))))
        return np.concatenate(jax.device_get(found))

    return scored


def sampler(rows: Rows, scored: np.ndarray, cfg: Config) -> Result:
    """The scorer finds the log-probs that the sampler noted.

    Args:
        scored: f32[R, T] nats.

    Raises:
        SelfCheckError: with the gaps and their limits (`GAPS`).
    """
    gap = np.abs(scored - rows.sampled_logp)[rows.mask]
    # A gap of logits counts the more the colder the distribution.
    scale = max(1.0, 1.0 / cfg.rollout.temperature)
    mean_limit, limit = (x * scale for x in GAPS[cfg.model.compute_dtype])
    mean, most = float(gap.mean()), float(gap.max())
    if not (mean <= mean_limit and most <= limit):
        fail(
            "sampler",
            f"sampler and scorer differ by {mean:.3g} nats a token on average (limit "
            f"{mean_limit:.3g}) and {most:.3g} at most (limit {limit:.3g}), {gap.size} tokens "
            f"in {cfg.model.compute_dtype}: they do not compute the same model; try "
            "model.compute_dtype='float32', and if it stays, look for the difference in "
            "positions, masks or temperature",
        )
    return Result("sampler", {"mean": mean, "max": most, "tokens": int(gap.size)})


def other_teacher(cfg: Config, state: TrainState) -> str:
    """Why the teacher need not equal the student on the plain prompt, or ""."""
    if cfg.loss.method != "distill":
        return f"loss.method {cfg.loss.method!r} has no teacher"
    if cfg.teacher.kind == "external":
        return "an external teacher has weights of its own"
    if int(state.step) > 0 and cfg.teacher.kind != "student":
        return f"student and teacher have moved in {int(state.step)} steps"
    return ""


def equal_teacher(
    student: np.ndarray, taught: np.ndarray, mask: np.ndarray, cfg: Config
) -> Result:
    """Before the first update a teacher with an empty context is the student.

    A trust region mixes their logits, in the compute dtype, so there the largest gap of `GAPS`
    is the limit.

    Args:
        student, taught: f32[R, T] nats of the response tokens, both after the plain prompt.

    Raises:
        SelfCheckError: with the largest difference.
    """
    most = float(np.abs(taught - student)[mask].max())
    mixed = cfg.teacher.kind == "trust_region"
    limit = GAPS[cfg.model.compute_dtype][1] if mixed else EQUAL
    if not most <= limit:
        fail(
            "teacher",
            f"a teacher with an empty context differs from the student by {most:.3g} nats "
            f"(limit {limit:g}) before the first update: it has other weights or reads "
            "another prompt; check that an empty context renders the problem's own messages, "
            "and that the teacher starts from the student's weights",
        )
    return Result("teacher", {"max": most, "tokens": int(mask.sum())})
