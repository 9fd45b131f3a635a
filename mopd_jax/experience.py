"""From a step's rollouts to its batch, on the host: decode, verify, choose peers, lay out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mopd_jax import verifiers
from mopd_jax.config import Config, ContextConfig
from mopd_jax.contexts import controls, peers, render
from mopd_jax.models import sharding
from mopd_jax.overlap import overlapped
from mopd_jax.records import Batch, Message, Problem, TeacherInputs, TrainState, Verdict
from mopd_jax.run.record import Run, Student
from mopd_jax.update import advantages, reasoning_steps

# Purposes of random keys, folded into the root key before the step.
TRAIN, EVALUATE = 1, 2


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Rollouts of a step on the host, with what was made of them. Lists are [P][G]."""

    problems: list[Problem]
    uids: np.ndarray  # u32[P]
    prompt: np.ndarray  # i32[P, S]
    prompt_mask: np.ndarray  # bool[P, S]
    response: np.ndarray  # i32[P, G, T]
    mask: np.ndarray  # bool[P, G, T]
    behaviour_logp: np.ndarray  # f32[P, G, T]
    stopped: np.ndarray  # bool[P, G]
    texts: list[list[str]]


def sample(
    run: Student,
    sampler: Callable[..., Any],
    state: TrainState,
    problems: list[Problem],
    uids: np.ndarray,
    *,
    purpose: int,
    step: int,
) -> Sampled:
    """Rollouts on the problem's own messages and nothing else: of the student, or of the
    teacher where `rollout.policy` says so and the purpose is training.

    Args:
        sampler: `run.sample` or `run.sample_eval`.
        uids: u32[P], numbers of the prompts; with purpose and step they key the randomness.
    """
    prompt, mask = render.student_prompts(
        problems, run.tokenizer, length=run.cfg.rollout.prompt_length
    )
    folds = np.array([purpose, step], np.uint32)
    taught = purpose == TRAIN and run.cfg.rollout.policy == "teacher"
    params = state.teacher if taught else state.params
    out = jax.device_get(sampler(params, prompt, mask, state.key, folds, uids))
    shape = (len(problems), -1)
    response = out.response.reshape(*shape, out.response.shape[-1])
    live = out.response_mask.reshape(response.shape)
    texts = [
        [run.tokenizer.decode(ids[keep].tolist()) for ids, keep in zip(r, m, strict=True)]
        for r, m in zip(response, live, strict=True)
    ]
    return Sampled(
        problems=problems,
        uids=uids,
        prompt=prompt,
        prompt_mask=mask,
        response=response,
        mask=live,
        behaviour_logp=out.behaviour_logp.reshape(response.shape),
        stopped=out.stopped.reshape(shape),
        texts=texts,
    )


def sample_and_verify(
    run: Run, state: TrainState, problems: list[Problem], uids: np.ndarray, *, step: int
) -> tuple[Sampled, Callable[[], list[list[Verdict]]]]:
    """The rollouts of a training step, `rollout.batch` prompts at a time.

    A batch is judged while the next is sampled; verdicts do not depend on the load
    (docs/sandbox.md), so neither do they on this.

    Returns:
        The rollouts, and a function that waits for the verdicts [P][G] that are still due.
    """
    size = run.cfg.rollout.batch or len(problems)
    parts: list[Sampled] = []

    def batches() -> Iterator[Sampled]:
        keys = {"purpose": TRAIN, "step": step}
        for i in range(0, len(problems), size):
            part = problems[i : i + size], uids[i : i + size]
            parts.append(sample(run, run.sample, state, *part, **keys))
            yield parts[-1]

    verdicts = overlapped(batches(), functools.partial(verify, run))
    return _joined(parts), lambda: [row for part in verdicts() for row in part]


def _joined(parts: list[Sampled]) -> Sampled:
    """Batches one behind the other."""
    columns = {f.name: [getattr(p, f.name) for p in parts] for f in dataclasses.fields(Sampled)}
    return Sampled(
        **{
            name: sum(values, []) if isinstance(values[0], list) else np.concatenate(values)
            for name, values in columns.items()
        }
    )


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Who sees whom, which rows are used for what, and, in a control, how well it matches."""

    plan: peers.PeerPlan
    usage: peers.Usage
    match: controls.Match | None
    texts: list[list[str]]  # [P][G] responses as they are shown.
    without_text: int  # Rollouts that are no peers since nothing of them can be shown.


@dataclasses.dataclass(frozen=True)
class Rendered:
    """What the teachers of all N rows read. Lists are [N]."""

    inputs: TeacherInputs
    records: list[render.ContextRecord]
    chats: list[list[Message]]
    withheld: int  # Feedback that may contain gold and was not shown.


def verify(run: Run, sampled: Sampled) -> list[list[Verdict]]:
    """One typed verdict per rollout."""
    prompts, group = sampled.stopped.shape
    verdicts = verifiers.verify_all(
        [problem for problem in sampled.problems for _ in range(group)],
        [text for texts in sampled.texts for text in texts],
        (~sampled.stopped).reshape(-1).tolist(),
        sandbox=run.sandbox,
        disclose=run.cfg.context.feedback_with_gold,
        progress=functools.partial(tqdm, desc="verify", leave=False, disable=None),
    )
    return [verdicts[p * group : (p + 1) * group] for p in range(prompts)]


def outcomes(verdicts, cfg: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rewards f64[P, G], which rows have a verdict bool[P, G], successes bool[P, G]."""
    rewards = np.array([[v.reward for v in row] for row in verdicts])
    valid = np.array([[not v.error for v in row] for row in verdicts])
    return rewards, valid, valid & advantages.successes(rewards, threshold=cfg.peers.threshold)


def choose_peers(run: Run, sampled: Sampled, success, valid, step: int) -> Chosen:
    """Who sees whom. Labels are the verifier's; truncation decides who may be shown at all."""
    cfg = run.cfg
    usage = peers.usage(success, valid, cfg.peers)
    texts = render.shown_texts(sampled.texts, run.tokenizer, cfg.context)
    readable = np.array([[text != "" for text in row] for row in texts])
    eligible = valid & (sampled.stopped | (cfg.peers.truncated == "outcome"))
    without_text = int((eligible & ~readable).sum())
    given = (
        success,
        eligible & readable,
        texts,
        sampled.mask.sum(axis=2),
        sampled.uids.tolist(),
    )
    keys = {"seed": cfg.seed, "step": step, "cfg": cfg.peers, "rows": usage.taught}
    if cfg.peers.control == "off":
        return Chosen(peers.choose(*given, **keys), usage, None, texts, without_text)
    plan, match = controls.choose(
        *given,
        **keys,
        tokens=render.block_tokens(texts, run.tokenizer, cfg.context),
        questions=[str(problem.messages) for problem in sampled.problems],
    )
    return Chosen(plan, usage, match, texts, without_text)


def render_contexts(run: Run, sampled: Sampled, chosen: Chosen, verdicts, success) -> Rendered:
    """What the teachers read. Feedback is on the target itself, and only where it failed."""
    cfg = run.cfg.context
    reads = chosen.usage.taught
    if cfg.feedback == "no_success":
        reads = reads & ~(chosen.plan.success >= 0).any(axis=2)
    advice, withheld = own_feedback(verdicts, success, reads, cfg)
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
    verdicts, success: np.ndarray, reads: np.ndarray, cfg: ContextConfig
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


def batch(
    run: Run, sampled: Sampled, inputs: TeacherInputs, usage: peers.Usage, rewards, valid
) -> Batch:
    """Rows of the update, laid over the mesh. Masked: pads, and rows that teach nothing."""
    cfg = run.cfg
    prompts, group, length = sampled.response.shape
    rows = prompts * group
    used = np.repeat(valid.reshape(rows)[:, None], length, axis=1)
    if cfg.loss.method == "distill":
        # The teacher needs no verdict of its target.
        trained = usage.left_out.reshape(rows) == ""
        if cfg.teacher.no_context == "mask":
            trained &= inputs.informed | usage.plain.reshape(rows)
        used = np.repeat(trained[:, None], length, axis=1)
    if cfg.loss.method == "sft" and cfg.loss.sft_rows == "all":
        used = np.ones_like(used)
    elif cfg.loss.method == "sft":
        success = advantages.successes(rewards, threshold=cfg.peers.threshold)
        used &= success.reshape(rows)[:, None]
    mask = sampled.mask.reshape(rows, length) & used
    advantage = advantages.advantages(rewards, valid, scale_by_std=cfg.loss.scale_by_std)
    batch = Batch(
        prompt=np.repeat(sampled.prompt, group, axis=0),
        prompt_mask=np.repeat(sampled.prompt_mask, group, axis=0),
        response=sampled.response.reshape(rows, length),
        mask=mask,
        behaviour_logp=np.where(mask, sampled.behaviour_logp.reshape(rows, length), 0.0),
        teacher_prompt=inputs.prompt,
        teacher_prompt_mask=inputs.prompt_mask,
        advantage=advantage.reshape(rows),
        row_weight=_row_weight(rewards, valid, group, cfg),
        steps=_step_ids(run, sampled, rows),
    )
    return jax.device_put(batch, sharding.rows(run.mesh))


def _row_weight(rewards, valid, group, cfg: Config) -> np.ndarray | None:
    """f32[N] of `loss.row_weight`, or None where all rows weigh the same."""
    if cfg.loss.row_weight == "equal":
        return None
    success = advantages.successes(rewards, threshold=cfg.peers.threshold)
    return np.repeat(advantages.solve_variance(success, valid), group).astype(np.float32)


def _step_ids(run: Run, sampled: Sampled, rows: int) -> np.ndarray | None:
    """i32[N, T] where the aggregation reads them."""
    loss = run.cfg.loss
    if loss.aggregation != "seq-mean-step-mean":
        return None
    ids, mask = (x.reshape(rows, -1) for x in (sampled.response, sampled.mask))
    return reasoning_steps.step_ids(ids, mask, run.tokenizer.decode, loss.step_separator)
