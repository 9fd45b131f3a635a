"""Makes a step's rollouts into the batch of its update, on the host.

`gather` is the first half of a training step, shared by `mopd train` and `mopd rollout`:

    rollout -> verify -> choose peers -> render contexts

`make_batch` lays the result out as the rows of the update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mopd_jax import verifiers
from mopd_jax.bars import bar
from mopd_jax.config import Config, ContextConfig
from mopd_jax.contexts import blocks, controls, peers, render
from mopd_jax.data.sources import ProblemStream
from mopd_jax.models import sharding
from mopd_jax.overlap import Background
from mopd_jax.records import (
    Batch,
    Message,
    Outcomes,
    Problem,
    Sampled,
    TeacherInputs,
    TrainState,
    Verdict,
)
from mopd_jax.run.console import Clock
from mopd_jax.run.record import Run, Student
from mopd_jax.update import advantages, reasoning_steps

# Purposes of random keys, folded into the root key before the step.
TRAIN, EVALUATE = 1, 2


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The peer plan, what each row is used for and, in a control, how well it matches."""

    plan: peers.PeerPlan
    usage: peers.Usage
    match: controls.Match | None
    texts: list[list[str]]  # [P][G] responses as they are shown.
    without_text: int  # Eligible rollouts whose shown text is empty, so they cannot be peers.


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What the teachers of all N rows read. Lists are [N]."""

    inputs: TeacherInputs
    records: list[render.ContextRecord]
    chats: list[list[Message]]
    withheld: int  # Feedback that may contain gold and was not shown.


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A step's rollouts and everything that the host computes from them before the update."""

    sampled: Sampled
    verdicts: list[list[Verdict]]  # [P][G]
    outcomes: Outcomes
    chosen: Chosen
    contexts: Rendered
    draw: int  # The number that keyed the draws: the step, or the step of a file of rollouts.


# (state, step) -> the step's rollouts, a function that waits for their verdicts [P][G], `draw`.
Take = Callable[[TrainState, int], tuple[Sampled, Callable[[], list[list[Verdict]]], int]]


def gather(run: Run, take: Take, state: TrainState, step: int, clock: Clock) -> Gathered:
    """The first half of a step: its rollouts, their verdicts and each row's teacher prompt.

    Args:
        take: `sampler`, or `saved_rollouts.reader` for rollouts from a file.
        clock: times the phases rollout, verify and context.
    """
    with clock.phase("rollout"):
        sampled, wait_for_verdicts, draw = take(state, step)
    with clock.phase("verify"):
        verdicts = wait_for_verdicts()
    with clock.phase("context"):
        return add_contexts(run, sampled, verdicts, draw)


def add_contexts(
    run: Run, sampled: Sampled, verdicts: list[list[Verdict]], draw: int
) -> Gathered:
    """Judged rollouts with their outcomes, and the peers and teacher prompt of every row.

    Args:
        draw: keys the choice of peers, with the seed, the prompt and the rollout.
    """
    outcomes = Outcomes.of(verdicts, threshold=run.cfg.peers.threshold)
    chosen = choose_peers(run, sampled, outcomes, draw)
    contexts = render_contexts(run, sampled, chosen, verdicts, outcomes)
    return Gathered(sampled, verdicts, outcomes, chosen, contexts, draw)


def sampler(run: Run, stream: ProblemStream) -> Take:
    """Samples the next problems of the stream, `rollout.batch` prompts at a time.

    A batch is judged while the next is sampled. Verdicts do not depend on the load
    (docs/sandbox.md), so this overlap does not change them.
    """

    def take(
        state: TrainState, step: int
    ) -> tuple[Sampled, Callable[[], list[list[Verdict]]], int]:
        problems, uids = stream.take(run.cfg.rollout.prompts)
        size = run.cfg.rollout.batch or len(problems)
        parts: list[Sampled] = []
        with Background(functools.partial(verify, run)) as judged:
            for i in bar(range(0, len(problems), size), "rollout"):
                part = problems[i : i + size], uids[i : i + size]
                parts.append(sample(run, run.sample, state, *part, purpose=TRAIN, step=step))
                judged.submit(parts[-1])
        return _joined(parts), lambda: [row for part in judged.results() for row in part], step

    return take


def sample(
    student: Student,
    sampler: Callable[..., Any],
    state: TrainState,
    problems: list[Problem],
    uids: np.ndarray,
    *,
    purpose: int,
    step: int,
) -> Sampled:
    """Samples responses to the plain prompts. The student samples; for training,
    `rollout.policy` may name the teacher.

    Args:
        sampler: `run.sample` or `run.sample_eval`.
        uids: u32[P], numbers of the prompts; with purpose and step they key the randomness.
    """
    prompt, mask = render.student_prompts(
        problems, student.tokenizer, length=student.cfg.rollout.prompt_length
    )
    folds = np.array([purpose, step], np.uint32)
    by_teacher = purpose == TRAIN and student.cfg.rollout.policy == "teacher"
    params = state.teacher if by_teacher else state.params
    out = jax.device_get(sampler(params, prompt, mask, state.key, folds, uids))
    shape = (len(problems), -1)
    response = out.response.reshape(*shape, out.response.shape[-1])
    live = out.response_mask.reshape(response.shape)
    texts = [
        [student.tokenizer.decode(ids[keep].tolist()) for ids, keep in zip(r, m, strict=True)]
        for r, m in zip(response, live, strict=True)
    ]
    return Sampled(
        problems=problems,
        uids=uids,
        prompt=prompt,
        prompt_mask=mask,
        response=response,
        mask=live,
        sampled_logp=out.sampled_logp.reshape(response.shape),
        stopped=out.stopped.reshape(shape),
        texts=texts,
    )


def _joined(parts: list[Sampled]) -> Sampled:
    """Concatenates the batches."""

    def join(values: list[Any]) -> Any:
        return sum(values, []) if isinstance(values[0], list) else np.concatenate(values)

    names = [field.name for field in dataclasses.fields(Sampled)]
    return Sampled(**{name: join([getattr(p, name) for p in parts]) for name in names})


def verify(student: Student, sampled: Sampled) -> list[list[Verdict]]:
    """One typed verdict per rollout, [P][G]."""
    prompts, group = sampled.stopped.shape
    verdicts = verifiers.verify_all(
        [problem for problem in sampled.problems for _ in range(group)],
        [text for texts in sampled.texts for text in texts],
        (~sampled.stopped).reshape(-1).tolist(),
        sandbox=student.sandbox,
        disclose=student.cfg.context.feedback_with_gold,
        progress=functools.partial(bar, title="verify"),
    )
    return [verdicts[p * group : (p + 1) * group] for p in range(prompts)]


def choose_peers(run: Run, sampled: Sampled, outcomes: Outcomes, draw: int) -> Chosen:
    """Chooses the peers of every row. A rollout may be shown if it has a verdict and a text,
    and was not truncated (or `peers.truncated` allows it)."""
    cfg = run.cfg
    usage = peers.usage(outcomes, cfg.peers)
    texts = blocks.shown_texts(sampled.texts, run.tokenizer, cfg.context)
    readable = np.array([[text != "" for text in row] for row in texts])
    eligible = outcomes.valid & (sampled.stopped | (cfg.peers.truncated == "outcome"))
    without_text = int((eligible & ~readable).sum())
    candidates = peers.Candidates(
        outcomes.success,
        eligible & readable,
        texts,
        sampled.mask.sum(axis=2),
        sampled.uids.tolist(),
    )
    rows = usage.has_context
    if cfg.peers.control == "off":
        plan = peers.choose(candidates, seed=cfg.seed, step=draw, cfg=cfg.peers, rows=rows)
        return Chosen(plan, usage, None, texts, without_text)
    plan, match = controls.choose(
        candidates,
        seed=cfg.seed,
        step=draw,
        cfg=cfg.peers,
        rows=rows,
        tokens=blocks.block_tokens(texts, run.tokenizer, cfg.context),
        questions=[str(problem.messages) for problem in sampled.problems],
    )
    return Chosen(plan, usage, match, texts, without_text)


def render_contexts(
    run: Run,
    sampled: Sampled,
    chosen: Chosen,
    verdicts: list[list[Verdict]],
    outcomes: Outcomes,
) -> Rendered:
    """The teachers' prompts. Feedback is on the target itself, and only if it failed."""
    cfg = run.cfg.context
    reads = chosen.usage.has_context
    if cfg.feedback == "no_success":
        reads = reads & ~chosen.plan.shows("success")
    advice, withheld = own_feedback(verdicts, outcomes.success, reads, cfg)
    inputs, records, chats = render.teacher_inputs(
        sampled.problems,
        chosen.texts,
        chosen.plan,
        run.tokenizer,
        cfg=cfg,
        feedback=advice,
        reasons=chosen.usage.reasons,
    )
    return Rendered(inputs, records, chats, withheld)


def own_feedback(
    verdicts: list[list[Verdict]], success: np.ndarray, reads: np.ndarray, cfg: ContextConfig
) -> tuple[list[list[str]], int]:
    """Feedback [P][G] on the row's own failed attempt, "" for none; and how many are withheld
    because their verifier declares that they may contain gold.

    Args:
        verdicts: [P][G].
        success: bool[P, G].
        reads: bool[P, G], rows that would be shown feedback if there is some.
    """
    advice = [["" for _ in row] for row in verdicts]
    withheld = 0
    if cfg.feedback == "off":
        return advice, withheld
    for p, g in np.argwhere(reads & ~success).tolist():
        verdict = verdicts[p][g]
        if verdict.error or not verdict.feedback.strip():
            continue
        if verdict.feedback_has_gold and not cfg.feedback_with_gold:
            withheld += 1
        else:
            advice[p][g] = verdict.feedback
    return advice, withheld


def make_batch(run: Run, gathered: Gathered) -> Batch:
    """Rows of the update, laid over the mesh. Masked: pads, and rows that teach nothing."""
    cfg, sampled, outcomes = run.cfg, gathered.sampled, gathered.outcomes
    inputs = gathered.contexts.inputs
    prompts, group, length = sampled.response.shape
    rows = prompts * group
    mask = sampled.mask.reshape(rows, length) & _trained_rows(cfg, gathered)[:, None]
    advantage = advantages.advantages(
        outcomes.rewards, outcomes.valid, scale_by_std=cfg.loss.scale_by_std
    )
    fields: dict[str, Any] = {
        "prompt": np.repeat(sampled.prompt, group, axis=0),
        "prompt_mask": np.repeat(sampled.prompt_mask, group, axis=0),
        "response": sampled.response.reshape(rows, length),
        "mask": mask,
        "sampled_logp": np.where(mask, sampled.sampled_logp.reshape(rows, length), 0.0),
        "teacher_prompt": inputs.prompt,
        "teacher_prompt_mask": inputs.prompt_mask,
        "advantage": advantage.reshape(rows),
        "row_weight": _row_weight(outcomes, cfg),
        "steps": _step_ids(run, sampled, rows),
    }
    return Batch(**jax.device_put(fields, sharding.rows(run.mesh)))


def _trained_rows(cfg: Config, gathered: Gathered) -> np.ndarray:
    """bool[N], rows whose tokens the method of the loss trains on."""
    valid = gathered.outcomes.valid.reshape(-1)
    if cfg.loss.method == "distill":
        # The teacher needs no verdict of its target.
        usage = gathered.chosen.usage
        trained = usage.left_out.reshape(-1) == ""
        if cfg.teacher.no_context == "mask":
            trained &= gathered.contexts.inputs.informed | usage.plain.reshape(-1)
        return trained
    if cfg.loss.method == "sft" and cfg.loss.sft_rows == "all":
        return np.ones_like(valid)
    if cfg.loss.method == "sft":
        return gathered.outcomes.success.reshape(-1)
    return valid


def _row_weight(outcomes: Outcomes, cfg: Config) -> np.ndarray | None:
    """f32[N] of `loss.row_weight`, or None where all rows weigh the same."""
    if cfg.loss.row_weight == "equal":
        return None
    by_group = advantages.solve_variance(outcomes.success, outcomes.valid)
    return np.repeat(by_group, outcomes.valid.shape[1]).astype(np.float32)


def _step_ids(run: Run, sampled: Sampled, rows: int) -> np.ndarray | None:
    """i32[N, T] where the aggregation reads them."""
    loss = run.cfg.loss
    if loss.aggregation != "seq-mean-step-mean":
        return None
    ids, mask = (x.reshape(rows, -1) for x in (sampled.response, sampled.mask))
    return reasoning_steps.step_ids(ids, mask, run.tokenizer.decode, loss.step_separator)
