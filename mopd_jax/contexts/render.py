"""Renders the teacher's prompt from the chosen peers: one set of templates, a budget a block.

The teacher reads [prompt with peers] + response. The response's token ids are appended as they
were sampled, never re-tokenised, so this module renders prompts only. A peer that is too long
loses its middle; the question, the closing line and the assistant header are never cut. Every
row carries a record of who was shown and how many tokens were left out. Beside peers in full a
context may hold summaries of peers, the verifier's feedback on the target itself and, by
explicit name, gold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mopd_jax.config import ContextConfig
from mopd_jax.contexts.blocks import Block, BlockKind, Blocks, cut_middle
from mopd_jax.contexts.peers import Kind, PeerPlan
from mopd_jax.errors import InputError
from mopd_jax.records import Message, Problem, TeacherInputs, Tokenizer

# Headings that no setting varies; the others are settings of `context`.
SUMMARY_SUCCESS = "Summary of another correct solution: {text}"
SUMMARY_FAILURE = "Summary of another failed attempt: {text}"
FEEDBACK = "Feedback on your own earlier attempt, which failed:\n\n{text}"


class PromptTooLong(InputError):
    """A prompt does not fit its length; the message has both numbers and the setting."""


class NoGold(InputError):
    """A context is to show gold that a problem does not have; the message names both."""


@dataclasses.dataclass(frozen=True)
class ShownPeer:
    """A peer as a context shows it.

    prompt: of the batch, which the rollout answers; the row's own, but in controls.
    kind: its heading; in a control it need not say what `succeeded` says.
    tokens, cut: tokens shown and left out.
    """

    prompt: int
    rollout: int
    succeeded: bool
    kind: Kind
    tokens: int
    cut: int


@dataclasses.dataclass(frozen=True)
class ContextRecord:
    """What one row's teacher was shown. Lengths in tokens.

    peers: in the order of their blocks.
    dropped: peers that were chosen but did not fit even in part, or had no text left.
    length: of the whole teacher prompt.
    reason: why the context is empty, else "".
    fallbacks: summaries that are the head of a response, which had none.
    feedback, feedback_cut: tokens shown and left out of the feedback; None: none was shown.
    feedback_dropped: there was feedback to show, and it did not fit.
    gold, gold_cut: the same of the gold text, where a config asks for it by name.
    informed: the context has something to read.
    """

    peers: tuple[ShownPeer, ...]
    dropped: int
    length: int
    reason: str
    fallbacks: int = 0
    feedback: int | None = None
    feedback_cut: int = 0
    feedback_dropped: bool = False
    gold: int | None = None
    gold_cut: int = 0
    informed: bool = False

    @property
    def peer_tokens(self) -> int:
        """Tokens shown of all peers."""
        return sum(peer.tokens for peer in self.peers)

    @property
    def peer_tokens_cut(self) -> int:
        """Tokens left out of the peers that are shown."""
        return sum(peer.cut for peer in self.peers)


def student_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, *, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompt ids i32[P, S] and mask bool[P, S]; the problem and nothing else.

    Raises:
        PromptTooLong: names the problem, its tokens and the limit.
    """
    rows = []
    for problem in problems:
        ids = tokenizer.chat(problem.messages)
        if len(ids) > length:
            raise PromptTooLong(
                f"problem {problem.id!r} has a prompt of {len(ids)} tokens, more than "
                f"rollout.prompt_length={length}; raise it or remove the problem from the data"
            )
        rows.append(ids)
    return left_pad(rows, length, tokenizer.pad_id)


def teacher_inputs(
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    plan: PeerPlan,
    tokenizer: Tokenizer,
    *,
    cfg: ContextConfig,
    feedback: Sequence[Sequence[str]] | None = None,
    reasons: np.ndarray | None = None,
) -> tuple[TeacherInputs, list[ContextRecord], list[list[Message]]]:
    """Teacher prompts of all N rows, their records, and the conversations as rendered.

    Args:
        problems: P problems.
        texts: [P][G] of `blocks.shown_texts`; only their middles are cut here.
        plan: from `peers.choose` or `controls.choose`.
        feedback: [P][G] what the verifier says of the row's own failed attempt, "" for none;
            `cfg.feedback` decides which rows read it.
        reasons: str[P, G] why a row gets no peers, or "" (`peers.Usage`).

    Raises:
        PromptTooLong: not even the plain prompt fits in `cfg.teacher_prompt_length`.
        NoGold: `cfg.gold` names a text that a problem does not have.
    """
    ids, records, chats = [], [], []
    make = Blocks(texts, tokenizer, cfg)
    for p, problem in enumerate(problems):
        plain = _fit(problem, [], tokenizer, cfg)
        for g, entries in enumerate(plan.entries[p]):
            blocks = [make.peer(entry) for entry in entries]
            reason = "" if reasons is None else str(reasons[p, g])
            if cfg.gold != "off" and not reason:
                blocks.insert(0, make.text("gold", gold(problem, cfg), None))
            if feedback and feedback[p][g]:
                blocks.append(make.text("feedback", feedback[p][g], cfg.feedback_tokens))
            bare = bool(plan.bare[p, g])
            chat, row, record = plain
            if blocks or bare:
                chat, row, record = _fit(problem, blocks, tokenizer, cfg, bare=bare)
            records.append(dataclasses.replace(record, reason=reason) if reason else record)
            chats.append(chat)
            ids.append(row)
    prompt, mask = left_pad(ids, _limit(cfg), tokenizer.pad_id)
    informed = np.array([record.informed for record in records])
    return TeacherInputs(prompt, mask, informed), records, chats


def check_shells(problems: Sequence[Problem], tokenizer: Tokenizer, cfg: ContextConfig) -> None:
    """Checks that the closing line alone fits behind every question, where no block can be cut.

    Raises:
        PromptTooLong: names the problem, its tokens and the limit.
    """
    for problem in problems:
        _fit(problem, [], tokenizer, cfg, bare=True)


def gold(problem: Problem, cfg: ContextConfig) -> str:
    """What `cfg.gold` names, "answer" or "solution", of a problem.

    Raises:
        NoGold: the problem has none.
    """
    text = {"answer": problem.answer, "solution": problem.solution}[cfg.gold]
    if not text.strip():
        raise NoGold(
            f"context.gold={cfg.gold!r}, but problem {problem.id!r} has no {cfg.gold}; use "
            "data that has one for every problem, or another value of context.gold"
        )
    return text


def render(
    problem: Problem,
    blocks: Sequence[tuple[BlockKind, str]],
    cfg: ContextConfig,
    *,
    bare: bool = False,
) -> list[Message]:
    """The teacher's conversation; without blocks it is the problem's own.

    Args:
        blocks: (kind, text) in order.
        bare: add the closing line even without a block.
    """
    if not blocks and not bare:
        return list(problem.messages)
    parts = [problem.messages[-1]["content"]]
    templates: dict[BlockKind, str] = {
        "success": cfg.success,
        "failure": cfg.failure,
        "neutral": cfg.neutral,
        "summary_success": SUMMARY_SUCCESS,
        "summary_failure": SUMMARY_FAILURE,
        "feedback": FEEDBACK,
        "gold": cfg.gold_block,
    }
    for kind, text in blocks:
        parts.append(templates[kind].replace("{text}", text))
        if kind == "success":
            templates["success"] = cfg.another_success
    if cfg.closing:
        parts.append(cfg.closing)
    last = {**problem.messages[-1], "content": cfg.separator.join(parts)}
    return [*problem.messages[:-1], last]


def _fit(
    problem: Problem,
    wanted: Sequence[Block],
    tokenizer: Tokenizer,
    cfg: ContextConfig,
    *,
    bare: bool = False,
) -> tuple[list[Message], list[int], ContextRecord]:
    """Renders one row within teacher_prompt_length: (chat, ids, record)."""
    limit = _limit(cfg)
    kept = [block for block in wanted if block.text]
    # "no_success" asks for a full success that can be read, not for one that was chosen.
    if cfg.feedback != "always" and any(block.kind == "success" for block in kept):
        wanted = [block for block in wanted if block.kind != "feedback"]
        kept = [block for block in kept if block.kind != "feedback"]
    reason = "no peer fits" if kept else "no peer to show"
    if wanted and not kept:
        reason = "no peer has text but its thoughts"
    budget = max((block.budget for block in kept), default=0)
    while True:
        cuts = [cut_middle(block, budget, tokenizer) for block in kept]
        shown = [(block.kind, text) for block, (text, _) in zip(kept, cuts, strict=True)]
        chat = render(problem, shown, cfg, bare=bare)
        ids = tokenizer.chat(chat)
        over = len(ids) - limit
        if over <= 0:
            break
        if not kept:
            raise PromptTooLong(
                f"problem {problem.id!r} has {len(ids)} tokens before any peer is added, more "
                f"than context.teacher_prompt_length={limit}; raise it"
            )
        # Every block longer than the budget is cut alike. Where nothing is left to cut, the
        # last block goes: feedback, then failures, before successes.
        if budget > 2:
            lengths = [min(block.budget, budget) for block in kept]
            budget = max(2, min(budget - 1, _level(lengths, sum(lengths) - over)))
        else:
            kept.pop()
            budget = max((block.budget for block in kept), default=0)
    record = _record(wanted, kept, [cut for _, cut in cuts], len(ids))
    informed = bool(kept) or bare
    reason = "" if informed else reason
    return chat, ids, dataclasses.replace(record, informed=informed, reason=reason)


def _record(
    wanted: Sequence[Block], kept: Sequence[Block], cuts: Sequence[int], length: int
) -> ContextRecord:
    """The record of the blocks that were kept, each with the tokens cut from it."""
    peers = []
    others: dict[BlockKind, tuple[int, int]] = {}
    for block, cut in zip(kept, cuts, strict=True):
        tokens = len(block.ids) - cut
        if block.entry is None:
            others[block.kind] = tokens, cut
        else:
            peers.append(ShownPeer(*block.entry, tokens, cut))
    feedback, feedback_cut = others.get("feedback", (None, 0))
    gold_shown, gold_cut = others.get("gold", (None, 0))
    return ContextRecord(
        peers=tuple(peers),
        dropped=sum(block.entry is not None for block in wanted) - len(peers),
        length=length,
        reason="",
        fallbacks=sum(block.fell_back for block in kept),
        feedback=feedback,
        feedback_cut=feedback_cut,
        feedback_dropped=any(b.kind == "feedback" for b in wanted) and feedback is None,
        gold=gold_shown,
        gold_cut=gold_cut,
    )


def _level(lengths: Sequence[int], total: int) -> int:
    """The largest budget under which blocks of these lengths have at most `total` tokens."""
    left = len(lengths)
    for length in sorted(lengths):
        if length * left >= total:
            return total // left
        total, left = total - length, left - 1
    return max(lengths)


def _limit(cfg: ContextConfig) -> int:
    """Q in tokens. `Config` puts `rollout.prompt_length` in the place of None."""
    if cfg.teacher_prompt_length is None:
        raise ValueError("context.teacher_prompt_length is None outside of a Config; set it")
    return cfg.teacher_prompt_length


def left_pad(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """i32[B, length] with pads on the left, and bool[B, length] true on real tokens."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, tokens in enumerate(rows):
        if tokens:
            ids[row, -len(tokens) :] = tokens
            mask[row, -len(tokens) :] = True
    return ids, mask
