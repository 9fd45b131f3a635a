"""Checks of the first rollouts: their masks, the sampler's log-probs, the teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mopd_jax.config import Config
from mopd_jax.contexts import peers, render
from mopd_jax.models import decoder, sharding
from mopd_jax.records import Batch, Problem, Sampled, TrainState
from mopd_jax.run.record import Run
from mopd_jax.selfcheck.result import Result, fail
from mopd_jax.update import objectives, teacher

# Rows that are scored; few, because scoring takes time.
ROWS = 4
# (mean, max) nats by which sampler and scorer may differ on a token at temperature 1. Both add
# the same products in another order: with caches and one prefix a group, or as whole rows. In
# float32 a model of 30 layers differed by 2e-5 at most; the mean may be ten times that. In
# bfloat16 hidden states have 8 bits, so a logit of size 10 is known to some hundredths, and the
# mean was 0.01. A wrong position, mask or temperature costs tenths to whole nats where the
# model is uncertain.
GAPS = {"float32": (2e-4, 2e-2), "bfloat16": (0.1, 2.0)}
# Nats by which teacher and student may differ. Both run one program on the same numbers, so
# only a device that adds in another order each time makes a difference.
EQUAL = 1e-5


def completions(sampled: Sampled, batch: Batch, stop_ids: Sequence[int], pad_id: int) -> Result:
    """Checks that masks are the responses up to and with their first stop token.

    Rows are trained on whole or not at all, and their positions continue the prompt's.

    Raises:
        SelfCheckError: with the first cause, how many rows have it, and one of them.
    """
    prompts, group, length = sampled.response.shape
    response, mask = (x.reshape(-1, length) for x in (sampled.response, sampled.mask))
    stops = np.isin(response, stop_ids) & mask
    before = np.cumsum(stops, axis=1) - stops
    ended = stops.any(axis=1)
    lengths = mask.sum(axis=1)
    prefix = np.arange(length) < lengths[:, None]
    trained, trained_on = np.asarray(batch.mask), np.asarray(batch.response)
    prompt = np.asarray(batch.prompt_mask)
    columns = jnp.asarray(np.concatenate([prompt, mask], axis=1))
    positions = np.asarray(decoder.positions_of(columns))[:, prompt.shape[1] :]
    due = prompt.sum(axis=1, keepdims=True) + np.arange(length)
    padded = (response == pad_id) & (sampled.sampled_logp.reshape(mask.shape) == 0)
    whole = (trained == mask).all(axis=1) | ~trained.any(axis=1)
    for cause, wrong in (
        ("the mask has a hole or is empty", (mask != prefix).any(axis=1) | (lengths == 0)),
        ("the mask goes on after a stop token", (mask & (before > 0)).any(axis=1)),
        ("the mask ends before a stop token and before the end", ~ended & (lengths < length)),
        ("'stopped' is not what the tokens say", ended != sampled.stopped.reshape(-1)),
        ("a token or log-prob follows the mask", (~padded & ~mask).any(axis=1)),
        ("the prompt does not end where the response begins", ~_left_padded(prompt)),
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
                f"{tuple(stop_ids)} and pad id {pad_id}, and changes to rollouts/generate.py "
                "and experience.make_batch",
            )
    numbers: dict[str, float] = {
        "rows": len(mask),
        "rows_trained": int(trained.any(axis=1).sum()),
        "stopped": int(ended.sum()),
        "tokens": int(lengths.sum()),
    }
    return Result("mask", numbers)


def _left_padded(mask: np.ndarray) -> np.ndarray:
    """Rows bool[N] whose true columns are the last ones, and at least one."""
    return mask[:, -1] & (mask[:, 1:] >= mask[:, :-1]).all(axis=1)


class ScoredRows(NamedTuple):
    """R rows of a step, whose log-probs are compared."""

    problems: list[Problem]
    prompt: np.ndarray  # i32[R, S or Q], left-padded
    prompt_mask: np.ndarray
    response: np.ndarray  # i32[R, T]
    mask: np.ndarray
    sampled_logp: np.ndarray  # f32[R, T]


def _part(run: Run) -> int:
    """Rows scored at a time: at most those of a micro-batch, and a multiple of the shards."""
    cfg, shards = run.cfg, sharding.row_shards(run.mesh)
    parts = cfg.optimizer.mini_batches * cfg.optimizer.micro_batches
    micro = cfg.rollout.prompts * cfg.rollout.group // parts
    return min(-(-ROWS // shards) * shards, micro)


def spread_rows(run: Run, sampled: Sampled) -> ScoredRows:
    """Rows spread over the batch, a multiple of the number scored at a time."""
    prompts, group, length = sampled.response.shape
    part = _part(run)
    count = min(-(-ROWS // part) * part, prompts * group)
    chosen = np.arange(count) * (prompts * group // count)
    responses = (sampled.response, sampled.mask, sampled.sampled_logp)
    response, mask, sampled_logp = (x.reshape(-1, length)[chosen] for x in responses)
    return ScoredRows(
        problems=[sampled.problems[n // group] for n in chosen],
        prompt=sampled.prompt[chosen // group],
        prompt_mask=sampled.prompt_mask[chosen // group],
        response=response,
        mask=mask,
        sampled_logp=sampled_logp,
    )


def with_plain_prompts(run: Run, rows: ScoredRows) -> ScoredRows:
    """The same rows, with the prompts that a teacher with an empty context reads."""
    inputs, _, _ = render.teacher_inputs(
        rows.problems,
        [[""]] * len(rows.problems),
        peers.without_peers(len(rows.problems), 1),
        run.tokenizer,
        cfg=dataclasses.replace(run.cfg.context, gold="off"),
    )
    return rows._replace(
        prompt=np.asarray(inputs.prompt), prompt_mask=np.asarray(inputs.prompt_mask)
    )


def student_scorer(run: Run) -> Callable[[TrainState, ScoredRows], np.ndarray]:
    """A function that returns the student's log-probs f32[R, T]; its first call compiles."""
    cfg = run.cfg

    def score(state: TrainState, batch: Batch) -> jax.Array:
        return objectives.student_logp(state.params, batch, cfg, run.model).logp

    return _in_parts(run, score)


def teacher_scorer(run: Run) -> Callable[[TrainState, ScoredRows], np.ndarray]:
    """As `student_scorer` for the teacher, by the same calls as in an update."""
    cfg = run.cfg

    def score(state: TrainState, batch: Batch) -> jax.Array:
        output = teacher.teacher_output(
            state.teacher, state.params, batch, cfg=cfg.teacher, models=run.models
        )
        return objectives.logprob(output, batch, cfg).logp

    return _in_parts(run, score, teacher_prompts=True)


def _in_parts(
    run: Run, score: Callable[[TrainState, Batch], jax.Array], *, teacher_prompts: bool = False
) -> Callable[[TrainState, ScoredRows], np.ndarray]:
    """(state, rows) -> f32[R, T], `score` of a few rows at a time.

    A batch has the rows' prompts as the student's, or with `teacher_prompts` as the teacher's;
    the other's are empty, so that a scorer that reads the wrong ones is caught. Both are as
    wide as the teacher's, so that student and teacher add in the same order.
    """
    cfg, part, jitted = run.cfg, _part(run), jax.jit(score)
    width = cfg.rollout.prompt_length
    if cfg.loss.method == "distill":
        width = cfg.context.teacher_prompt_length or width

    def scored(state: TrainState, rows: ScoredRows) -> np.ndarray:
        sides = ((0, 0), (width - rows.prompt.shape[1], 0))
        prompt = np.pad(rows.prompt, sides, constant_values=run.tokenizer.pad_id)
        mask = np.pad(rows.prompt_mask, sides)
        empty = (
            np.full_like(prompt, run.tokenizer.pad_id),
            mask & (np.arange(width) == width - 1),
        )
        student, other = (prompt, mask), empty
        if teacher_prompts:
            student, other = other, student
        fields = {
            "prompt": student[0],
            "prompt_mask": student[1],
            "response": rows.response,
            "mask": rows.mask,
            "sampled_logp": rows.sampled_logp,
            "teacher_prompt": other[0],
            "teacher_prompt_mask": other[1],
            "advantage": np.zeros(len(prompt), np.float32),
        }
        logps = []
        for i in range(0, len(prompt), part):
            few = {name: values[i : i + part] for name, values in fields.items()}
            batch = Batch(**jax.device_put(few, sharding.rows(run.mesh)))
            logps.append(jitted(state, batch))
        return np.concatenate(jax.device_get(logps))

    return scored


def sampler(rows: ScoredRows, scored: np.ndarray, cfg: Config) -> Result:
    """Checks that the scorer's log-probs are the sampler's.

    Args:
        scored: f32[R, T] nats.

    Raises:
        SelfCheckError: with the differences and their limits (`GAPS`).
    """
    gap = np.abs(scored - rows.sampled_logp)[rows.mask]
    # The colder the distribution, the more a difference of logits changes log-probs.
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
    student_logp: np.ndarray, teacher_logp: np.ndarray, mask: np.ndarray, cfg: Config
) -> Result:
    """Checks that before the first update a teacher with an empty context is the student.

    A trust region mixes their logits in the compute dtype, so its limit is the largest of
    `GAPS`.

    Args:
        student_logp, teacher_logp: f32[R, T] nats, both after the plain prompt.

    Raises:
        SelfCheckError: with the largest difference.
    """
    most = float(np.abs(teacher_logp - student_logp)[mask].max())
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
