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
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mopd_jax.config import ContextConfig
from mopd_jax.contexts.peers import Entry, Kind, PeerPlan
from mopd_jax.errors import InputError
from mopd_jax.records import Message, Problem, TeacherInputs, Tokenizer
from mopd_jax.thinking import without_thinking

# The mark in the place of tokens that were cut; {n} is their number.
CUT_MARK = " [... {n} tokens left out ...] "
# Headings that no setting varies; the others are settings of `context`.
SUMMARY_SUCCESS = "Summary of another correct solution: {text}"
SUMMARY_FAILURE = "Summary of another failed attempt: {text}"
FEEDBACK = "Feedback on your own earlier attempt, which failed:\n\n{text}"

# What a block shows: a peer under one of its headings, or a text that is no response.
BlockKind = Kind | Literal["feedback", "gold"]


class PromptTooLong(InputError):
    """A prompt does not fit its length; the message has both numbers and the setting."""


class NoGold(InputError):
    """A context is to show gold that a problem does not have; the message names both."""


@dataclasses.dataclass(frozen=True)
class _Block:
    """A text as it may be shown: cleaned, with its own token ids.

    kind: decides the heading.
    entry: the peer; None for feedback and gold.
    budget: the most of its tokens that are shown.
    fell_back: a summary that is the head of the response, which had none.
    """

    kind: BlockKind
    entry: Entry | None
    text: str
    ids: list[int]
    budget: int
    fell_back: bool = False


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


def shown_texts(
    texts: Sequence[Sequence[str]], tokenizer: Tokenizer, cfg: ContextConfig
) -> list[list[str]]:
    """[P][G] decoded responses as a full block shows them, before any cut: without special
    tokens and, by `cfg.strip_thinking`, without thoughts; "" where nothing else is left.

    Peers are chosen, compared, counted and rendered by this text.
    """

    def shown(text: str) -> str:
        while True:
            text = _clean(text, tokenizer)
            left = without_thinking(text) if cfg.strip_thinking else text
            # The texts before and after a span may be the parts of a special token.
            if left == text:
                return text
            text = left

    return [[shown(text) for text in row] for row in texts]


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
        texts: [P][G] of `shown_texts`; only their middles are cut here.
        plan: from `peers.choose` or `controls.choose`.
        feedback: [P][G] what the verifier says of the row's own failed attempt, "" for none;
            `cfg.feedback` decides which rows read it.
        reasons: str[P, G] why a row gets no peers, or "" (`peers.Usage`).

    Raises:
        PromptTooLong: not even the plain prompt fits in `cfg.teacher_prompt_length`.
        NoGold: `cfg.gold` names a text that a problem does not have.
    """
    ids, records, chats = [], [], []
    make = _Blocks(texts, tokenizer, cfg)
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


def block_tokens(
    texts: Sequence[Sequence[str]], tokenizer: Tokenizer, cfg: ContextConfig
) -> np.ndarray:
    """i64[P, G], tokens of each of the `shown_texts` as a full peer, before the whole prompt's
    limit."""

    blocks = _Blocks(texts, tokenizer, cfg)
    return np.array(
        [
            [blocks.peer(Entry(p, g, True, "success")).budget for g in range(len(row))]
            for p, row in enumerate(texts)
        ]
    )


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
        bare: add the closing line even where there is no block.
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
    wanted: Sequence[_Block],
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
        cuts = [_cut_middle(block, budget, tokenizer) for block in kept]
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
    wanted: Sequence[_Block], kept: Sequence[_Block], cuts: Sequence[int], length: int
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


def _cut_middle(block: _Block, budget: int, tokenizer: Tokenizer) -> tuple[str, int]:
    """Text of a block with at most `budget` of its tokens, head and tail; and how many are
    left out."""
    budget = min(budget, block.budget)
    if len(block.ids) <= budget:
        return block.text, 0
    head, tail = (budget + 1) // 2, budget // 2
    cut = len(block.ids) - budget
    mark = CUT_MARK.replace("{n}", str(cut))
    start, end = block.ids[:head], block.ids[len(block.ids) - tail :]
    # A cut inside a character of several tokens would leave its halves as U+FFFD.
    head_text = tokenizer.decode(start).rstrip("\ufffd")
    return head_text + mark + tokenizer.decode(end).lstrip("\ufffd"), cut


class _Blocks:
    """Makes the blocks of a step; each rollout is tokenised once, in full and as a summary.

    texts: [P][G] of `shown_texts`.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], tokenizer: Tokenizer, cfg: ContextConfig
    ) -> None:
        self._texts, self._tokenizer, self._cfg = texts, tokenizer, cfg
        self._made: dict[tuple[int, int, bool], _Block] = {}

    def peer(self, entry: Entry) -> _Block:
        """The block of a peer, in full or by its summary."""
        brief = entry.kind.startswith("summary")
        key = entry.prompt, entry.rollout, brief
        if key not in self._made:
            text = self._texts[entry.prompt][entry.rollout]
            fell_back = False
            if brief:
                text, fell_back = _summary(text, self._cfg)
            block = self._block(entry.kind, text, self._cfg.peer_tokens)
            self._made[key] = dataclasses.replace(block, fell_back=fell_back)
        return dataclasses.replace(self._made[key], entry=entry, kind=entry.kind)

    def text(self, kind: BlockKind, text: str, budget: int | None) -> _Block:
        """The block of a text that is no response; feedback may quote one."""
        return self._block(kind, _clean(text, self._tokenizer), budget)

    def _block(self, kind: BlockKind, text: str, budget: int | None) -> _Block:
        """The block of a clean text, with at most `budget` tokens; None: no limit."""
        ids = self._tokenizer.encode(text) if text else []
        most = len(ids) if budget is None else min(len(ids), budget)
        return _Block(kind, None, text, ids, most)


def _summary(text: str, cfg: ContextConfig) -> tuple[str, bool]:
    """The summary that a response holds, else its head; and whether it is the head."""
    tag = re.escape(cfg.summary_tag)
    span = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    summary = span.group(1).strip() if span else ""
    return summary or text[: cfg.summary_chars].strip(), not summary


def _clean(text: str, tokenizer: Tokenizer) -> str:
    """Without special tokens, and "" where nothing but space is left."""
    # A student that spells out a special token must not end the teacher's turn with it. Again
    # until none is left: the texts before and after one may be the parts of another.
    while any(special in text for special in tokenizer.specials):
        for special in tokenizer.specials:
            text = text.replace(special, "")
    return text if text.strip() else ""


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
