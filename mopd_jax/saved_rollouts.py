"""Converts a step's rollouts to rows of a file, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mopd_jax import config as configs
from mopd_jax.contexts import render
from mopd_jax.experience import Gathered, Take
from mopd_jax.records import Sampled, TrainState, Verdict
from mopd_jax.rollouts import storage
from mopd_jax.rollouts.schema import Header, RolloutRow
from mopd_jax.rollouts.storage import Saved
from mopd_jax.run.record import Run


def header(run: Run, *, steps: int, trained: int) -> Header:
    """The header of a file that this run writes.

    Args:
        steps: how many steps the file will have.
        trained: steps that the student has been trained for. For rollouts that came from a
            file, the header keeps that file's record of who sampled them.
    """
    cfg = run.cfg
    model = cfg.model.path
    by_teacher = cfg.rollout.policy == "teacher"  # Its weights never move.
    if by_teacher and cfg.teacher.kind == "external" and cfg.teacher.path is not None:
        model = cfg.teacher.path
    header = Header(
        tokenizer=run.tokenizer.fingerprint,
        vocab_size=run.model.vocab_size,
        stop_ids=tuple(run.tokenizer.stop_ids),
        policy=cfg.rollout.policy,
        model=model,
        trained=0 if by_teacher else trained,
        seed=cfg.seed,
        instruction=cfg.data.instruction,
        steps=steps,
        prompts=cfg.rollout.prompts,
        group=cfg.rollout.group,
        prompt_length=cfg.rollout.prompt_length,
        response_length=cfg.rollout.response_length,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
        top_k=cfg.rollout.top_k,
        config=configs.fingerprint(cfg),
    )
    if run.saved is None:
        return header
    old = run.saved.header
    kept = {name: getattr(old, name) for name in ("model", "trained", "seed")}
    return dataclasses.replace(header, **kept)


def _context_fields(record: render.ContextRecord, uids: np.ndarray) -> dict[str, Any]:
    """The context shown to a teacher, as the file stores it: one list for each peer field."""
    shown = dataclasses.asdict(record)
    peers = record.peers
    del shown["peers"]
    return {
        "shown": [peer.rollout for peer in peers],
        "succeeded": [peer.succeeded for peer in peers],
        "cut": [peer.cut for peer in peers],
        "kinds": [peer.kind for peer in peers],
        "tokens": [peer.tokens for peer in peers],
        "shown_uids": [int(uids[peer.prompt]) for peer in peers],
        **shown,
    }


def rows(gathered: Gathered) -> Iterator[RolloutRow]:
    """One row a rollout. In `context`, `shown_uids` are the numbers of the prompts shown."""
    sampled, chosen, rendered = gathered.sampled, gathered.chosen, gathered.contexts
    group = sampled.response.shape[1]
    pairs = zip(rendered.records, rendered.chats, strict=True)
    for n, (record, chat) in enumerate(pairs):
        p, g = divmod(n, group)
        keep = sampled.mask[p, g]
        told = record.informed and record.gold is None
        seen = _context_fields(record, sampled.uids)
        if chosen.match is not None:
            seen["control"] = chosen.match.row(p, g)
        yield RolloutRow(
            step=gathered.draw,
            problem=sampled.problems[p].id,
            uid=int(sampled.uids[p]),
            rollout=g,
            messages=sampled.problems[p].messages,
            response=sampled.texts[p][g],
            verdict=gathered.verdicts[p][g],
            stopped=bool(sampled.stopped[p, g]),
            context=seen,
            # Gold is never written, even if a teacher was shown it.
            teacher_message=chat[-1]["content"] if told else None,
            prompt_ids=tuple(sampled.prompt[p][sampled.prompt_mask[p]].tolist()),
            response_ids=sampled.response[p, g][keep],
            sampled_logp=sampled.sampled_logp[p, g][keep],
        )


def reader(run: Run, saved: Saved) -> Take:
    """Reads each step's rollouts and verdicts from a file of rollouts."""

    def take(
        state: TrainState, step: int
    ) -> tuple[Sampled, Callable[[], list[list[Verdict]]], int]:
        del state  # The file's header names the student that sampled its rollouts.
        sampled, verdicts, draw = read_step(run, saved, step)
        return sampled, lambda: verdicts, draw

    return take


def read_step(run: Run, saved: Saved, step: int) -> tuple[Sampled, list[list[Verdict]], int]:
    """The rollouts that step `step` trains on, their verdicts [P][G], and the number that keys
    the draws of the step (`Saved.turn`)."""
    index, draw = saved.turn(step)
    rows = saved.batch(index)
    cfg, tokenizer = run.cfg.rollout, run.tokenizer
    shape = (cfg.prompts, cfg.group, cfg.response_length)
    firsts = rows[:: cfg.group]
    problems = [saved.problems[storage.key(row.asked)] for row in firsts]
    prompt, prompt_mask = render.student_prompts(problems, tokenizer, length=cfg.prompt_length)
    response = np.full(shape, tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    logp = np.zeros(shape, np.float32)
    for n, row in enumerate(rows):
        at = (*divmod(n, cfg.group), slice(len(row.response_ids)))
        response[at], mask[at], logp[at] = row.response_ids, True, row.sampled_logp

    def groups(values: list[Any]) -> list[list[Any]]:
        return [values[n : n + cfg.group] for n in range(0, len(values), cfg.group)]

    sampled = Sampled(
        problems=problems,
        uids=np.array([row.uid for row in firsts], np.uint32),
        prompt=prompt,
        prompt_mask=prompt_mask,
        response=response,
        mask=mask,
        sampled_logp=logp,
        stopped=np.array(groups([row.stopped for row in rows])),
        texts=groups([row.response for row in rows]),
    )
    return sampled, groups([row.verdict for row in rows]), draw
