"""Makes the blocks of a context: texts as they are shown, their token ids, their middles cut.

A peer's text loses its thoughts and its special tokens before it is compared, counted or shown.
A text over its budget keeps head and tail.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mopd_jax.config import ContextConfig
from mopd_jax.contexts.peers import Entry, Kind
from mopd_jax.records import Tokenizer
from mopd_jax.thinking import without_thinking

# The mark in the place of tokens that were cut; {n} is their number.
CUT_MARK = " [... {n} tokens left out ...] "

# A peer under one of its headings, the verifier's feedback on the target, or a gold text.
BlockKind = Kind | Literal["feedback", "gold"]


@dataclasses.dataclass(frozen=True)
class Block:
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


def block_tokens(
    texts: Sequence[Sequence[str]], tokenizer: Tokenizer, cfg: ContextConfig
) -> np.ndarray:
    """i64[P, G], tokens of each of the `shown_texts` as a peer in full, before the limit of the
    whole prompt."""
    blocks = Blocks(texts, tokenizer, cfg)
    return np.array(
        [
            [blocks.peer(Entry(p, g, True, "success")).budget for g in range(len(row))]
            for p, row in enumerate(texts)
        ]
    )


class Blocks:
    """Makes the blocks of a step; each rollout is tokenised once, in full and as a summary.

    texts: [P][G] of `shown_texts`.
    """

    def __init__(
        self, texts: Sequence[Sequence[str]], tokenizer: Tokenizer, cfg: ContextConfig
    ) -> None:
        self._texts, self._tokenizer, self._cfg = texts, tokenizer, cfg
        self._made: dict[tuple[int, int, bool], Block] = {}

    def peer(self, entry: Entry) -> Block:
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

    def text(self, kind: BlockKind, text: str, budget: int | None) -> Block:
        """The block of feedback or gold. It is cleaned here: feedback may quote a response."""
        return self._block(kind, _clean(text, self._tokenizer), budget)

    def _block(self, kind: BlockKind, text: str, budget: int | None) -> Block:
        """The block of a clean text, with at most `budget` tokens; None: no limit."""
        ids = self._tokenizer.encode(text) if text else []
        most = len(ids) if budget is None else min(len(ids), budget)
        return Block(kind, None, text, ids, most)


def cut_middle(block: Block, budget: int, tokenizer: Tokenizer) -> tuple[str, int]:
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


def _summary(text: str, cfg: ContextConfig) -> tuple[str, bool]:
    """The summary that a response holds, else its head; and whether it is the head."""
    tag = re.escape(cfg.summary_tag)
    span = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    summary = span.group(1).strip() if span else ""
    return summary or text[: cfg.summary_chars].strip(), not summary


def _clean(text: str, tokenizer: Tokenizer) -> str:
    """Without special tokens, and "" where nothing but space is left."""
    # A student that spells out a special token must not end the teacher's turn with it.
    # Repeated, since the texts before and after one token may be the parts of another.
    while any(special in text for special in tokenizer.specials):
        for special in tokenizer.specials:
            text = text.replace(special, "")
    return text if text.strip() else ""
