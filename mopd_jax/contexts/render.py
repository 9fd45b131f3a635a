"""From chosen peers to the teacher's prompt: one template object, a budget per block.

The teacher reads [prompt with peers] + response. The response's token ids are appended as they
were sampled, never re-tokenised, so this module renders prompts only. A peer that is too long
loses its middle; the question, the closing line and the assistant header are never cut. Every
row carries a record of who was shown and how many tokens were left out. Beside peers a context
may hold their summaries, and the verifier's feedback on the target itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mopd_jax.config import ContextConfig
from mopd_jax.contexts.peers import Entry, PeerPlan
from mopd_jax.errors import InputError
from mopd_jax.records import Message, Problem, TeacherInputs, Tokenizer
from mopd_jax.thinking import without_thinking


class PromptTooLong(InputError):
    """A prompt does not fit its length; the message has both numbers and the setting."""


class NoGold(InputError):
    """A context is to show gold that a problem does not have; the message names both."""


@dataclasses.dataclass(frozen=True)
class _Block:
    """A text as it may be shown: cleaned, with its own token ids and the most of them shown."""

    kind: str  # A `peers.Kind`, "feedback" or "gold".
    entry: Entry | None  # None of the last two.
    text: str
    ids: list[int]
    most: int
    fell_back: bool = False  # A summary that is the head of the response.


@dataclasses.dataclass(frozen=True)
class ContextRecord:
    """What one row's teacher was shown. Lengths in tokens.

    shown: rollout indices in the order of the blocks, and whether each succeeded.
    cut: tokens left out of each shown block.
    dropped: peers that were chosen but did not fit even in part, or had no text left.
    length: of the whole teacher prompt.
    reason: why the context is empty, else "".
    prompts: which prompt of the batch each shown rollout answers; the own, but in controls.
    kinds: the heading of each shown block; in a control it need not say what `succeeded` says.
    tokens: shown of each block.
    fallbacks: summaries that are the head of a response, which had none.
    feedback, feedback_cut: tokens shown and left out of the feedback; None: none was shown.
    feedback_dropped: there was feedback to show, and it did not fit.
    gold, gold_cut: the same of the gold text, where a config asks for it by name.
    informed: the context has something to read.
    """

    shown: tuple[int, ...]
    succeeded: tuple[bool, ...]
    cut: tuple[int, ...]
    dropped: int
    length: int
    reason: str
    prompts: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    fallbacks: int = 0
    feedback: int | None = None
    feedback_cut: int = 0
    feedback_dropped: bool = False
    gold: int | None = None
    gold_cut: int = 0
    informed: bool = False


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

    What is chosen, compared, counted and rendered is this text.
    """

    def shown(text):
        while True:
            text = _clean(text, tokenizer)
            left = without_thinking(text) if cfg.strip_thinking else text
            # What stood around a span may be the parts of a special token.
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
        texts: [P][G] of `shown_texts`; nothing but their middles is taken out here.
        plan: of `peers.choose` or `controls.choose`.
        feedback: [P][G] what the verifier says of the row's own failed attempt, "" for none;
            `cfg.feedback` decides which rows read it.
        reasons: str[P, G] why a row was given no peers, or "" (`peers.Usage`).
    """
    ids, records, chats = [], [], []
    ready: dict[tuple[int, int, bool], _Block] = {}
    for p, problem in enumerate(problems):
        plain = _fit(problem, [], tokenizer, cfg)
        for g in range(len(texts[p])):
            blocks = [_ready(e, texts, ready, tokenizer, cfg) for e in plan.entries(p, g)]
            if cfg.gold != "off" and (reasons is None or not reasons[p, g]):
                blocks.insert(0, _given("gold", gold(problem, cfg), None, tokenizer))
            if feedback and feedback[p][g]:
                advice = _given("feedback", feedback[p][g], cfg.feedback_tokens, tokenizer)
                blocks.append(advice)
            bare = plan.shell is not None and bool(plan.shell[p, g])
            chat, row, record = plain
            if blocks or bare:
                chat, row, record = _fit(problem, blocks, tokenizer, cfg, bare=bare)
            if reasons is not None and reasons[p, g]:
                record = dataclasses.replace(record, reason=reasons[p, g])
            chats.append(chat)
            ids.append(row)
            records.append(record)
    prompt, mask = left_pad(ids, cfg.teacher_prompt_length, tokenizer.pad_id)
    informed = np.array([r.informed for r in records])
    return TeacherInputs(prompt, mask, informed), records, chats


def check_shells(problems: Sequence[Problem], tokenizer: Tokenizer, cfg: ContextConfig) -> None:
    """The closing line alone must fit behind every question: there is no block to cut.

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

    def tokens(text):
        return _peer(text, Entry(0, 0, True, "success"), tokenizer, cfg).most

    return np.array([[tokens(text) for text in row] for row in texts])


def render(
    problem: Problem,
    blocks: Sequence[tuple[str, str]],
    cfg: ContextConfig,
    *,
    bare: bool = False,
) -> list:
    """The teacher's conversation; without blocks it is the problem's own.

    Args:
        blocks: (kind, text) in order.
        bare: add the closing line even where there is no block.
    """
    if not blocks and not bare:
        return list(problem.messages)
    parts = [problem.messages[-1]["content"]]
    templates = {
        "success": cfg.success,
        "failure": cfg.failure,
        "neutral": cfg.neutral,
        "summary_success": cfg.summary_success,
        "summary_failure": cfg.summary_failure,
        "feedback": cfg.feedback_block,
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


def _fit(problem, wanted, tokenizer, cfg, *, bare=False):
    """Renders one row within teacher_prompt_length: (chat, ids, record)."""
    limit = cfg.teacher_prompt_length
    kept = [block for block in wanted if block.text]
    # "no_success" asks for a full success that can be read, not for one that was chosen.
    if cfg.feedback != "always" and any(block.kind == "success" for block in kept):
        wanted = [block for block in wanted if block.kind != "feedback"]
        kept = [block for block in kept if block.kind != "feedback"]
    reason = "no peer fits" if kept else "no peer to show"
    if wanted and not kept:
        reason = "no peer has text but its thoughts"
    budget = max((block.most for block in kept), default=0)
    while True:
        cuts = [_cut_middle(block, budget, tokenizer, cfg) for block in kept]
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
            lengths = [min(block.most, budget) for block in kept]
            budget = max(2, min(budget - 1, _level(lengths, sum(lengths) - over)))
        else:
            kept.pop()
            budget = max((block.most for block in kept), default=0)
    record = _record(wanted, kept, [cut for _, cut in cuts], len(ids))
    informed = bool(kept) or bare
    reason = "" if informed else reason
    return chat, ids, dataclasses.replace(record, informed=informed, reason=reason)


def _record(wanted, kept, cuts, length) -> ContextRecord:
    """The record of the blocks that were kept, each with the tokens cut from it."""
    peers = [(b, cut) for b, cut in zip(kept, cuts, strict=True) if b.entry]
    both = zip(kept, cuts, strict=True)
    given = {b.kind: (len(b.ids) - cut, cut) for b, cut in both if not b.entry}
    feedback, feedback_cut = given.get("feedback", (None, 0))
    gold_shown, gold_cut = given.get("gold", (None, 0))
    return ContextRecord(
        shown=tuple(b.entry.rollout for b, _ in peers),
        succeeded=tuple(b.entry.succeeded for b, _ in peers),
        cut=tuple(cut for _, cut in peers),
        dropped=sum(b.entry is not None for b in wanted) - len(peers),
        length=length,
        reason="",
        prompts=tuple(b.entry.prompt for b, _ in peers),
        kinds=tuple(b.kind for b, _ in peers),
        tokens=tuple(len(b.ids) - cut for b, cut in peers),
        fallbacks=sum(b.fell_back for b, _ in peers),
        feedback=feedback,
        feedback_cut=feedback_cut,
        feedback_dropped=any(b.kind == "feedback" for b in wanted) and feedback is None,
        gold=gold_shown,
        gold_cut=gold_cut,
    )


def _level(lengths, total: int) -> int:
    """The largest budget under which blocks of these lengths have at most `total` tokens."""
    left = len(lengths)
    for length in sorted(lengths):
        if length * left >= total:
            return total // left
        total, left = total - length, left - 1
    return max(lengths)


def _cut_middle(block, budget, tokenizer, cfg) -> tuple[str, int]:
    """Text of a block with at most `budget` of its tokens, head and tail; and how many went."""
    budget = min(budget, block.most)
    if len(block.ids) <= budget:
        return block.text, 0
    head, tail = (budget + 1) // 2, budget // 2
    cut = len(block.ids) - budget
    mark = cfg.cut_mark.replace("{n}", str(cut))
    start, end = block.ids[:head], block.ids[len(block.ids) - tail :]
    # A cut inside a character of several tokens would leave its halves as U+FFFD.
    head_text = tokenizer.decode(start).rstrip("\ufffd")
    return head_text + mark + tokenizer.decode(end).lstrip("\ufffd"), cut


def _ready(entry: Entry, texts, ready, tokenizer, cfg) -> _Block:
    """The block of an entry; `ready` has those of the same rollout, tokenised once."""
    key = (entry.prompt, entry.rollout, entry.kind.startswith("summary"))
    if key not in ready:
        ready[key] = _peer(texts[entry.prompt][entry.rollout], entry, tokenizer, cfg)
    return dataclasses.replace(ready[key], entry=entry, kind=entry.kind)


def _peer(text: str, entry: Entry, tokenizer: Tokenizer, cfg: ContextConfig) -> _Block:
    """The block of a shown text, in full or by its summary."""
    fell_back = False
    if entry.kind.startswith("summary"):
        tag = re.escape(cfg.summary_tag)
        found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        summary = found.group(1).strip() if found else ""
        fell_back = not summary
        text = summary or text[: cfg.summary_chars].strip()
    ids = tokenizer.encode(text) if text else []
    most = len(ids) if cfg.peer_tokens is None else min(len(ids), cfg.peer_tokens)
    return _Block(entry.kind, entry, text, ids, most, fell_back)


def _given(kind: str, text: str, budget: int | None, tokenizer: Tokenizer) -> _Block:
    """The block of a text that is no response; feedback may quote one."""
    text = _clean(text, tokenizer)
    ids = tokenizer.encode(text) if text else []
    most = len(ids) if budget is None else min(len(ids), budget)
    return _Block(kind, None, text, ids, most)


def _clean(text: str, tokenizer: Tokenizer) -> str:
    """Without special tokens, and "" where nothing but space is left."""
    # A student that spells out a special token must not end the teacher's turn with it. Again
    # until none is left: what stood around one may have been the parts of another.
    while any(special in text for special in tokenizer.specials):
        for special in tokenizer.specials:
            text = text.replace(special, "")
    return text if text.strip() else ""


def left_pad(rows: Sequence[Sequence[int]], length: int, pad: int):
    """i32[B, length] with pads on the left, and bool[B, length] true on real tokens."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for row, tokens in enumerate(rows):
        if tokens:
            ids[row, -len(tokens) :] = tokens
            mask[row, -len(tokens) :] = True
    return ids, mask
