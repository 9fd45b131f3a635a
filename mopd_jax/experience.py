"""From a step's rollouts to its batch, on the host: decode, verify, choose peers, lay out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mopd_jax import context, groups, peers, sharding, verifiers
from mopd_jax.config import Config
from mopd_jax.records import Batch, Problem, TrainState, Verdict
from mopd_jax.run import Run

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
    run: Run,
    sampler: Callable[..., Any],
    state: TrainState,
    problems: list[Problem],
    uids: np.ndarray,
    *,
    purpose: int,
    step: int,
) -> Sampled:
    """Rollouts of the student, which sees the problem's own messages and nothing else.

    Args:
        sampler: `run.sample` or `run.sample_eval`.
        uids: u32[P], numbers of the prompts; with purpose and step they key the randomness.
    """
    prompt, mask = context.student_prompts(
        problems, run.tokenizer, length=run.cfg.rollout.prompt_length
    )
    folds = np.array([purpose, step], np.uint32)
    out = jax.device_get(sampler(state.params, prompt, mask, state.key, folds, uids))
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


def verify(sampled: Sampled) -> list[list[Verdict]]:
    """One typed verdict per rollout."""
    rows = tqdm(sampled.problems, desc="verify", leave=False, disable=None)
    return [
        [verifiers.verify(problem, text) for text in texts]
        for problem, texts in zip(rows, sampled.texts, strict=True)
    ]


def outcomes(verdicts, cfg: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rewards f64[P, G], which rows have a verdict bool[P, G], successes bool[P, G]."""
    rewards = np.array([[v.reward for v in row] for row in verdicts])
    valid = np.array([[not v.error for v in row] for row in verdicts])
    return rewards, valid, valid & groups.successes(rewards, threshold=cfg.peers.threshold)


def choose_peers(run: Run, sampled: Sampled, success, valid, step: int) -> peers.PeerPlan:
    """Who sees whom. A truncated response is no peer, or a failure where the config says so."""
    whole = sampled.stopped | (run.cfg.peers.truncated == "failure")
    return peers.choose(
        success & sampled.stopped,
        valid & whole,
        sampled.texts,
        sampled.mask.sum(axis=2),
        sampled.uids.tolist(),
        seed=run.cfg.seed,
        step=step,
        cfg=run.cfg.peers,
    )


def batch(run: Run, sampled: Sampled, inputs, rewards, valid) -> Batch:
    """Rows of the update, laid over the mesh. Masked: pads, and rows that teach nothing."""
    cfg = run.cfg
    prompts, group, length = sampled.response.shape
    rows = prompts * group
    used = np.repeat(valid.reshape(rows)[:, None], length, axis=1)
    if cfg.loss.method == "distill":
        used = np.ones((rows, length), bool)  # The teacher needs no verdict of its target.
        if cfg.teacher.no_context == "mask":
            used &= inputs.informed[:, None]
    if cfg.loss.method == "sft":
        success = groups.successes(rewards, threshold=cfg.peers.threshold)
        used &= success.reshape(rows)[:, None]
    mask = sampled.mask.reshape(rows, length) & used
    advantage = groups.advantages(rewards, valid, scale_by_std=cfg.loss.scale_by_std)
    batch = Batch(
        prompt=np.repeat(sampled.prompt, group, axis=0),
        prompt_mask=np.repeat(sampled.prompt_mask, group, axis=0),
        response=sampled.response.reshape(rows, length),
        mask=mask,
        behaviour_logp=np.where(mask, sampled.behaviour_logp.reshape(rows, length), 0.0),
        teacher_prompt=inputs.prompt,
        teacher_prompt_mask=inputs.prompt_mask,
        advantage=advantage.reshape(rows),
    )
    return jax.device_put(batch, sharding.rows(run.mesh))


def group_metrics(sampled, rewards, valid, success, contexts) -> dict[str, float]:
    """Metrics of a step that need no device. Rates are of all rows, truncated ones included."""
    mixed = success.any(axis=1) & (valid & ~success).any(axis=1)
    lengths = sampled.mask.sum(axis=2)
    prompt_tokens = [record.length for record in contexts]
    return {
        "solve_rate": float(success.mean()),
        "reward": float(rewards[valid].mean()) if valid.any() else float("nan"),
        "mixed_groups": float(mixed.mean()),
        "all_failed_groups": float((valid.any(axis=1) & ~success.any(axis=1)).mean()),
        "verifier_errors": int((~valid).sum()),
        "truncated": float((~sampled.stopped).mean()),
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "teacher_prompt_tokens": float(np.mean(prompt_tokens)),
        "teacher_prompt_tokens_max": int(np.max(prompt_tokens)),
        "peer_tokens_cut": int(sum(sum(record.cut) for record in contexts)),
        "peers_dropped": int(sum(record.dropped for record in contexts)),
        **_shares(contexts, sampled.texts),
    }


def _shares(contexts, texts) -> dict[str, float]:
    """Fractions of rows by what their contexts, as rendered, hold.

    `target_text_shown` counts rows that were shown a peer with exactly the target's text; the
    teacher could copy it.
    """
    group = len(texts[0])
    good = np.array([any(record.succeeded) for record in contexts])
    bad = np.array([not all(record.succeeded) for record in contexts])
    equal = [
        any(texts[n // group][i] == texts[n // group][n % group] for i in record.shown)
        for n, record in enumerate(contexts)
    ]
    return {
        "informed": float((good | bad).mean()),
        "shows_success": float(good.mean()),
        "shows_failure": float(bad.mean()),
        "shows_failures_only": float((bad & ~good).mean()),
        "peers_per_row": float(np.mean([len(record.shown) for record in contexts])),
        "target_text_shown": float(np.mean(equal)),
    }


def readable(run, sampled, verdicts, contexts, chats) -> Iterator[dict[str, Any]]:
    """One row a rollout for people and for offline use: what was said, seen and judged."""
    group = sampled.response.shape[1]
    for n, (record, chat) in enumerate(zip(contexts, chats, strict=True)):
        p, g = divmod(n, group)
        keep = sampled.mask[p, g]
        verdict = verdicts[p][g]
        yield {
            "problem": sampled.problems[p].id,
            "uid": int(sampled.uids[p]),
            "rollout": g,
            "messages": list(sampled.problems[p].messages),
            "response": sampled.texts[p][g],
            "reward": verdict.reward,
            "feedback": verdict.feedback,
            "error": verdict.error,
            "stopped": bool(sampled.stopped[p, g]),
            "context": dataclasses.asdict(record),
            "teacher_message": chat[-1]["content"] if record.shown else None,
            "response_ids": sampled.response[p, g][keep].tolist(),
            "behaviour_logp": [round(float(x), 6) for x in sampled.behaviour_logp[p, g][keep]],
        }
