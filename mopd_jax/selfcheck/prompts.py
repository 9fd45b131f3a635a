"""Checks of the prompts of a few problems, rendered as in a step; they need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mopd_jax import experience, verifiers
from mopd_jax.contexts import render
from mopd_jax.records import Message, Problem, Sampled, Tokenizer, Verdict
from mopd_jax.run.record import Run
from mopd_jax.sandbox import Sandbox
from mopd_jax.selfcheck.result import Result, fail


def header(run: Run, problems: Sequence[Problem]) -> Result:
    """Checks that student and teacher continue the same assistant header, whatever is cut.

    Raises:
        SelfCheckError: with the text that a prompt ends with instead.
    """
    cfg, tokenizer = run.cfg.context, run.tokenizer
    due = tokenizer.header(problems[0].messages)
    if not due:
        return Result("header", skipped="the chat template has no assistant header of its own")
    sampled = pretended(run, problems)
    verdicts, _ = _verdicts(sampled)
    gathered = experience.add_contexts(run, sampled, verdicts, 0)
    longest = max(record.length for record in gathered.contexts.records)
    least = max(len(tokenizer.chat(render.render(p, [], cfg, bare=True))) for p in problems)
    # Two thirds of the blocks fit; the question and the closing line always do.
    length = least + max(0, 2 * (longest - least) // 3)
    tight = dataclasses.replace(cfg, teacher_prompt_length=length)
    short, records, _ = render.teacher_inputs(
        sampled.problems, sampled.texts, gathered.chosen.plan, tokenizer, cfg=tight
    )
    for whose, prompt in (
        ("the student's prompt", sampled.prompt),
        ("the teacher's prompt", gathered.contexts.inputs.prompt),
        (f"the teacher's prompt, cut to {length} tokens,", short.prompt),
    ):
        wrong = np.flatnonzero((np.asarray(prompt)[:, -len(due) :] != due).any(axis=1))
        if wrong.size:
            ends = tokenizer.decode(prompt[wrong[0], -len(due) :].tolist())
            fail(
                "header",
                f"{whose} ends with {ends!r} and not with the assistant header "
                f"{tokenizer.decode(due)!r} ({len(due)} tokens) in {wrong.size} of "
                f"{len(prompt)} rows, so student and teacher would continue different texts; "
                "check the model's chat template, and that nothing is cut from or added to its "
                "end",
            )
    pairs = zip(gathered.contexts.records, records, strict=True)
    numbers: dict[str, float] = {
        "header_tokens": len(due),
        "rows_with_context": sum(record.informed for record in gathered.contexts.records),
        "rows_cut": sum(cut.length < whole.length for whole, cut in pairs),
    }
    return Result("header", numbers)


def gold(run: Run, problems: Sequence[Problem]) -> Result:
    """Checks that no prompt has a problem's answer, solution or meta, unless asked by name.

    The gold of the problems is replaced by words that occur nowhere else, and everything that
    the chat template reads is searched for them.

    Raises:
        SelfCheckError: with whose prompt has which gold.
    """
    cfg = run.cfg
    drawn = np.random.default_rng([0xCA9A, cfg.seed]).integers(1 << 62, size=3)
    canaries = dict(
        zip(("answer", "solution", "meta"), (f"canary{x:x}" for x in drawn), strict=True)
    )
    marked = [
        dataclasses.replace(
            p,
            answer=canaries["answer"],
            solution=canaries["solution"],
            meta=_marked(p.meta, canaries["meta"]),
        )
        for p in problems
    ]
    recorder = _PromptRecorder(run.tokenizer)
    recorded = dataclasses.replace(run, tokenizer=recorder)
    sampled = pretended(recorded, marked)
    student = recorder.take()
    if any(canary in text for text in student for canary in canaries.values()):
        fail(
            "gold",
            "the student's prompt has the problem's answer, solution or meta in it; it must "
            "have its messages only: see student_prompts of contexts/render.py",
        )
    # Feedback that may show gold by its setting is left out, else it would hide other leaks.
    judge = cfg.context.feedback != "off" and not cfg.context.feedback_with_gold
    verdicts, judged = _verdicts(sampled, judge=judge, sandbox=run.sandbox)
    for p, row in enumerate(verdicts):
        for verdict in row:
            leaks = any(canary in verdict.feedback for canary in canaries.values())
            if leaks and not verdict.feedback_has_gold:
                fail(
                    "gold",
                    f"verifier {marked[p].verifier!r} writes the gold answer into feedback "
                    "and does not declare it; let it set Verdict.feedback_has_gold, or set "
                    "context.feedback='off'",
                )
    experience.add_contexts(recorded, sampled, verdicts, 0)
    teacher = recorder.take()
    shown = {name: sum(canary in text for text in teacher) for name, canary in canaries.items()}
    for name, count in shown.items():
        if count and cfg.context.gold != name:
            fail(
                "gold",
                f"{count} of {len(teacher)} teacher prompts have the problem's {name} in them, "
                f"and context.gold={cfg.context.gold!r} does not ask for it; see "
                "teacher_inputs of contexts/render.py",
            )
    numbers = {
        "student_prompts": len(student),
        "teacher_prompts": len(teacher),
        "shown": sum(shown.values()),
    }
    if judge:
        # Fewer than all: a verifier may have no verdict on gold that is a meaningless word.
        numbers["feedback_judged"] = judged
    return Result("gold", numbers)


def _marked(value: Any, canary: str) -> Any:
    """The same mapping or sequence with every text in it replaced; keys stay."""
    if isinstance(value, str):
        return canary
    if hasattr(value, "items"):
        return {key: _marked(item, canary) for key, item in value.items()}
    return [_marked(v, canary) for v in value] if isinstance(value, list | tuple) else value


class _PromptRecorder:
    """A tokenizer that keeps the text of every prompt it makes."""

    def __init__(self, inner: Tokenizer):
        self._inner = inner
        self._prompts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        ids = self._inner.chat(messages)
        self._prompts.append("\n".join([*(m["content"] for m in messages), self.decode(ids)]))
        return ids

    def take(self) -> list[str]:
        """The prompts since the last call."""
        prompts, self._prompts = self._prompts, []
        return prompts


def pretended(run: Run, problems: Sequence[Problem]) -> Sampled:
    """Three made-up rollouts of each problem, no two equal.

    They repeat the question, because any tokenizer of the problems can encode that.
    """
    prompt, mask = render.student_prompts(
        problems, run.tokenizer, length=run.cfg.rollout.prompt_length
    )
    group, asked = 3, [problem.messages[-1]["content"][:400] for problem in problems]
    texts = [[" ".join([question] * (2 + g)) for g in range(group)] for question in asked]
    shape = (len(problems), group)
    return Sampled(
        problems=list(problems),
        uids=np.arange(len(problems), dtype=np.uint32),
        prompt=prompt,
        prompt_mask=mask,
        response=np.zeros((*shape, 1), np.int32),
        mask=np.ones((*shape, 1), bool),
        sampled_logp=np.zeros((*shape, 1), np.float32),
        stopped=np.ones(shape, bool),
        texts=texts,
    )


def _verdicts(
    sampled: Sampled, *, judge: bool = False, sandbox: Sandbox | None = None
) -> tuple[list[list[Verdict]], int]:
    """Two successes and a failure of each problem, of every second one three failures.

    Args:
        judge: the failures have the feedback of the problem's own verifier.

    Returns:
        The verdicts [P][3], and how many problems their verifier could judge.
    """
    verdicts, judged = [], 0
    for p, (problem, texts) in enumerate(zip(sampled.problems, sampled.texts, strict=True)):
        bad = verifiers.verify(problem, texts[-1], sandbox=sandbox) if judge else Verdict(0.0)
        judged += judge and not bad.error
        bad = dataclasses.replace(bad, reward=0.0, error="")
        good = bad if p % 2 else Verdict(1.0)
        verdicts.append([good, good, bad])
    return verdicts, judged
