"""From chosen peers to the teacher's prompt: one template object, a budget per block.

The teacher reads [prompt with peers] + response. The response's token ids are appended as they
were sampled, never re-tokenised, so this module renders prompts only. A peer that is too long
loses its middle; the question, the closing line and the assistant header are never cut. Every
row carries a record of who was shown and how many tokens were left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mopd_jax.config import ContextConfig
from mopd_jax.config_dict import InputError
from mopd_jax.peers import PeerPlan
from mopd_jax.records import Message, Problem, TeacherInputs, Tokenizer

# A span opened by the prompt's header shows only its end; a truncated one only its start.
_THINKING = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)


class PromptTooLong(InputError):
    """A prompt does not fit its length; the message has both numbers and the setting."""


@dataclasses.dataclass(frozen=True)
class _Peer:
    """A response as it may be shown: thinking removed, and its own token ids for the budget."""

    text: str
    ids: list[int]


@dataclasses.dataclass(frozen=True)
class ContextRecord:
    """What one row's teacher was shown. Lengths in tokens.

    shown: rollout indices in the order of the blocks, and whether each succeeded.
    cut: tokens left out of each shown block.
    dropped: peers that were chosen but did not fit even in part, or had no text left.
    length: of the whole teacher prompt.
    reason: why the context is empty, else "".
    """

    shown: tuple[int, ...]
    succeeded: tuple[bool, ...]
    cut: tuple[int, ...]
    dropped: int
    length: int
    reason: str


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
) -> tuple[TeacherInputs, list[ContextRecord], list[list[Message]]]:
    """Teacher prompts of all N rows, their records, and the conversations as rendered.

    Args:
        problems: P problems.
        texts: [P][G] decoded responses of the group.
        plan: of `peers.choose`.
    """
    ids, records, chats = [], [], []
    for p, problem in enumerate(problems):
        shown = [plan.shown(p, g) for g in range(len(texts[p]))]
        wanted = {i for row in shown for i, _ in row}
        group = {i: _peer(texts[p][i], tokenizer, cfg) for i in wanted}
        plain = _fit(problem, group, [], tokenizer, cfg)
        for row in shown:
            chat, row, record = _fit(problem, group, row, tokenizer, cfg) if row else plain
            chats.append(chat)
            ids.append(row)
            records.append(record)
    prompt, mask = left_pad(ids, cfg.teacher_prompt_length, tokenizer.pad_id)
    informed = np.array([bool(r.shown) for r in records])
    return TeacherInputs(prompt, mask, informed), records, chats


def render(problem: Problem, blocks: Sequence[tuple[str, bool]], cfg: ContextConfig) -> list:
    """The teacher's conversation. blocks: (peer text, succeeded), in order; none: as it was."""
    if not blocks:
        return list(problem.messages)
    parts = [problem.messages[-1]["content"]]
    seen_success = False
    for text, succeeded in blocks:
        template = cfg.failure
        if succeeded:
            template = cfg.another_success if seen_success else cfg.success
            seen_success = True
        parts.append(template.replace("{text}", text))
    if cfg.closing:
        parts.append(cfg.closing)
    last = {**problem.messages[-1], "content": cfg.separator.join(parts)}
    return [*problem.messages[:-1], last]


def _fit(problem, group, shown, tokenizer, cfg):
    """Renders one row within teacher_prompt_length: (chat, ids, record)."""
    limit = cfg.teacher_prompt_length
    kept = [(i, ok) for i, ok in shown if group[i].text]
    reason = "no peer fits" if kept else "no peer to show"
    if shown and not kept:
        reason = "no peer has text but its thoughts"
    budget = _full_budget(group, kept, cfg)
    while True:
        cuts = [_cut_middle(group[i], budget, tokenizer, cfg) for i, _ in kept]
        blocks = [(text, ok) for (text, _), (_, ok) in zip(cuts, kept, strict=True)]
        chat = render(problem, blocks, cfg)
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
        # last peer goes: failures before successes.
        if budget > 2:
            lengths = [min(len(group[i].ids), budget) for i, _ in kept]
            budget = max(2, min(budget - 1, _level(lengths, sum(lengths) - over)))
        else:
            kept.pop()
            budget = _full_budget(group, kept, cfg)
    record = ContextRecord(
        shown=tuple(i for i, _ in kept),
        succeeded=tuple(ok for _, ok in kept),
        cut=tuple(cut for _, cut in cuts),
        dropped=len(shown) - len(kept),
        length=len(ids),
        reason="" if kept else reason,
    )
    return chat, ids, record


def _level(lengths, total: int) -> int:
    """The largest budget under which blocks of these lengths have at most `total` tokens."""
    left = len(lengths)
    for length in sorted(lengths):
        if length * left >= total:
            return total // left
        total, left = total - length, left - 1
    return max(lengths)


def _full_budget(group, kept, cfg) -> int:
    longest = max((len(group[i].ids) for i, _ in kept), default=0)
    return longest if cfg.peer_tokens is None else min(longest, cfg.peer_tokens)


def _cut_middle(peer, budget, tokenizer, cfg) -> tuple[str, int]:
    """Text of a peer with at most `budget` of its tokens, head and tail; and how many went."""
    if len(peer.ids) <= budget:
        return peer.text, 0
    head, tail = (budget + 1) // 2, budget // 2
    cut = len(peer.ids) - budget
    mark = cfg.cut_mark.replace("{n}", str(cut))
    start, end = peer.ids[:head], peer.ids[len(peer.ids) - tail :]
    # A cut inside a character of several tokens would leave its halves as U+FFFD.
    head_text = tokenizer.decode(start).rstrip("\ufffd")
    return head_text + mark + tokenizer.decode(end).lstrip("\ufffd"), cut


def _peer(text: str, tokenizer: Tokenizer, cfg: ContextConfig) -> _Peer:
    if cfg.strip_thinking:
        text = _THINKING.sub("", text).strip()
    # A student that spells out a special token must not end the teacher's turn with it. Again
    # until none is left: what stood around one may have been the parts of another.
    while any(special in text for special in tokenizer.specials):
        for special in tokenizer.specials:
            text = text.replace(special, "")
    text = text if text.strip() else ""
    return _Peer(text, tokenizer.encode(text) if text else [])


def left_pad(rows: Sequence[Sequence[int]], length: int, pad: int):
    """i32[B, length] with pads on the left, and bool[B, length] true on real tokens."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, tokens in enumerate(rows):
        if tokens:
            ids[row, -len(tokens) :] = tokens
            mask[row, -len(tokens) :] = True
    return ids, mask
