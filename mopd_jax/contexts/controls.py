"""Chooses the blocks of a control: the run with one thing taken away, all else held fixed.

A control first chooses the peers of the very run it controls, by the same draws, and then fills
the same slots. `Match` says of every row how well its tokens match, which slots were topped up
and which stayed empty. Controls read responses and outcomes, never a gold answer
(docs/contexts.md has the table). Candidates of several prompts are ordered by the prompts'
numbers, so the order of the batch changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mopd_jax.config import PeerConfig
from mopd_jax.contexts import peers
from mopd_jax.contexts.peers import Candidates, Entries, Entry, Kind, PeerPlan

# Separates these draws from other uses of the same seed.
_PURPOSE = 0xC0A7
# A row counts as matched if its tokens differ by no more than this share of the run's.
TOLERANCE = 0.02
# Sets drawn in token mode until one matches: so many at a time, so many times.
_DRAWS, _ROUNDS = 64, 8

Place = tuple[int, int]  # A rollout of the batch: (prompt, rollout).


@dataclasses.dataclass(frozen=True)
class Match:
    """How a control differs from the run it controls; i64[P, G] of every row.

    wanted, given: tokens of the blocks of the run and of the control, before
        `teacher_prompt_length` cuts, and without headings.
    slots: blocks that the control has to fill: as many as the run shows, and none for `shell`.
    topped_up: blocks of other prompts where the row's own prompt has too few.
    empty: slots for which there was no candidate.
    same: blocks that the run shows as well.
    relabelled: blocks under the heading of the other outcome.
    """

    wanted: np.ndarray
    given: np.ndarray
    slots: np.ndarray
    topped_up: np.ndarray
    empty: np.ndarray
    same: np.ndarray
    relabelled: np.ndarray

    def error(self) -> np.ndarray:
        """f64[P, G], |given - wanted| / wanted; nan where there is no slot to fill, because
        the run shows nothing or the control is `shell`."""
        wanted = np.where(self.slots > 0, self.wanted, np.nan)
        return np.abs(self.given - wanted) / wanted

    def row(self, p: int, g: int) -> dict[str, float]:
        """All of one row, by name, with its error."""
        names = [field.name for field in dataclasses.fields(self)]
        counts: dict[str, float] = {name: int(getattr(self, name)[p, g]) for name in names}
        return counts | {"error": float(self.error()[p, g])}

    def metrics(self) -> dict[str, float]:
        """What a step logs: errors over the rows with slots to fill (nan without such a row),
        and sums of the counts."""
        errors = self.error()[self.slots > 0]
        some = errors if errors.size else np.array([np.nan])
        within = np.where(np.isnan(some), np.nan, some <= TOLERANCE)
        return {
            "control_match_error": float(some.mean()),
            "control_match_error_max": float(some.max()),
            "control_matched": float(within.mean()),
            "control_topped_up": int(self.topped_up.sum()),
            "control_empty_slots": int(self.empty.sum()),
            "control_same_blocks": int(self.same.sum()),
            "control_relabelled": int(self.relabelled.sum()),
        }


def choose(
    candidates: Candidates,
    *,
    seed: int,
    step: int,
    cfg: PeerConfig,
    rows: np.ndarray | None = None,
    tokens: np.ndarray,
    questions: Sequence[str],
) -> tuple[PeerPlan, Match]:
    """Fills the slots of `peers.choose` as `cfg.control` says; arguments as there, and:

    Args:
        tokens: i[P, G], tokens of each rollout as a block; 0 for one that cannot be shown.
        questions: [P], what was asked. Equal ones are one prompt, so that a prompt is never
            unrelated to itself.

    Returns:
        The control's plan, and how it differs from the plan of the run.
    """
    run = peers.choose(candidates, seed=seed, step=step, cfg=cfg, rows=rows)
    readable = dataclasses.replace(candidates, eligible=candidates.eligible & (tokens > 0))
    pool = Pool(readable, tokens, questions, cfg)
    fill = CONTROLS[cfg.control]

    def blocks(p: int, g: int, slots: Sequence[Entry]) -> tuple[Entry, ...]:
        rng = np.random.default_rng([_PURPOSE, seed, step, candidates.uids[p], g])
        return tuple(fill(rng, slots, pool, p, g)) if slots else ()

    slots = tuple(
        tuple(tuple(e for e in row if tokens[e.prompt, e.rollout] > 0) for row in group)
        for group in run.entries
    )
    entries = tuple(
        tuple(blocks(p, g, row) for g, row in enumerate(group)) for p, group in enumerate(slots)
    )
    some = np.array([[bool(row) for row in group] for group in slots])
    plan = PeerPlan(entries, bare=some & (cfg.control == "shell"))
    return plan, _match(slots, entries, tokens, cfg)


def _match(run: Entries, control: Entries, tokens: np.ndarray, cfg: PeerConfig) -> Match:
    """Compares the blocks of the run, which are the slots to fill, with those of a control."""

    def count(of_row: Callable[[Sequence[Entry], Sequence[Entry]], int]) -> np.ndarray:
        groups = zip(run, control, strict=True)
        return np.array(
            [[of_row(slots, blocks) for slots, blocks in zip(*g, strict=True)] for g in groups],
            np.int64,
        )

    def topped_up(slots: Sequence[Entry], blocks: Sequence[Entry]) -> int:
        elsewhere = sum(block.prompt != slots[0].prompt for block in blocks)
        return elsewhere if cfg.control == "success_only" else 0

    def same(slots: Sequence[Entry], blocks: Sequence[Entry]) -> int:
        return len(set(map(_place, slots)) & set(map(_place, blocks)))

    def relabelled(_: Sequence[Entry], blocks: Sequence[Entry]) -> int:
        return sum(e.kind == ("failure" if e.succeeded else "success") for e in blocks)

    to_fill = count(lambda slots, _: 0 if cfg.control == "shell" else len(slots))
    return Match(
        wanted=count(lambda slots, _: _total(slots, tokens)),
        given=count(lambda _, blocks: _total(blocks, tokens)),
        slots=to_fill,
        topped_up=count(topped_up),
        empty=to_fill - count(lambda _, blocks: len(blocks)),
        same=count(same),
        relabelled=count(relabelled),
    )


def _place(entry: Entry) -> Place:
    return entry.prompt, entry.rollout


def _total(entries: Sequence[Entry], tokens: np.ndarray) -> int:
    """Tokens of the blocks."""
    return sum(int(tokens[e.prompt, e.rollout]) for e in entries)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What a control may draw from: the arguments of `choose`, with candidates that have text
    only."""

    candidates: Candidates
    tokens: np.ndarray
    questions: Sequence[str]
    cfg: PeerConfig

    def entries(self, places: Sequence[Place], kind: Kind) -> list[Entry]:
        """Blocks of these rollouts under one heading."""
        success = self.candidates.success
        return [Entry(q, i, bool(success[q, i]), kind) for q, i in places]

    def own(self, p: int, g: int) -> list[Place]:
        """The candidates of prompt p that the target g may be shown."""
        texts = self.candidates.texts[p]
        return [
            (p, i)
            for i in np.flatnonzero(self.candidates.eligible[p]).tolist()
            if i != g and peers.may_show(texts[i], texts[g], self.cfg)
        ]

    @functools.cached_property
    def everyone(self) -> list[Place]:
        """All candidates, in the order of the prompts' numbers."""
        by_number = np.argsort(np.asarray(self.candidates.uids), kind="stable").tolist()
        eligible = self.candidates.eligible
        return [(q, i) for q in by_number for i in np.flatnonzero(eligible[q]).tolist()]

    def others(self, p: int, g: int, *, succeeded: bool) -> list[Place]:
        """The candidates of other questions with this outcome that target g of prompt p may be
        shown."""
        success, texts = self.candidates.success, self.candidates.texts
        return [
            (q, i)
            for q, i in self.everyone
            if bool(success[q, i]) == succeeded
            and self.questions[q] != self.questions[p]
            and peers.may_show(texts[q][i], texts[p][g], self.cfg)
        ]

    def draw(
        self,
        rng: np.random.Generator,
        slots: Sequence[Entry],
        places: Sequence[Place],
        shown: Sequence[Entry] = (),
        *,
        extra_tokens: int = 0,
    ) -> list[Place]:
        """A drawn set of the places, at most one for each slot, and fewer if they run out.

        No text is drawn twice, nor one of `shown`. In token mode the set is drawn among those
        whose tokens are within TOLERANCE of the tokens of the slots plus `extra_tokens`; where
        no drawn set is, the result is the nearest of them.
        """
        texts = self.candidates.texts
        used = {texts[e.prompt][e.rollout] for e in shown}
        distinct = []
        for k in rng.permutation(len(places)).tolist():
            q, i = places[k]
            if texts[q][i] not in used:
                used.add(texts[q][i])
                distinct.append((q, i))
        if self.cfg.control_match == "block" or len(distinct) <= len(slots) or not slots:
            return distinct[: len(slots)]
        sizes = np.array([self.tokens[q, i] for q, i in distinct])
        total = _total(slots, self.tokens) + extra_tokens
        return [distinct[k] for k in _matching(rng, sizes, len(slots), total)]


def _matching(rng: np.random.Generator, sizes: np.ndarray, count: int, total: int) -> list[int]:
    """Indices of `count` sizes whose sum is within TOLERANCE of the total: the first such set
    of many drawn ones, which is a uniform choice. Failing that, the nearest set."""
    nearest = _greedy(sizes, count, total)
    least = abs(total - int(sizes[nearest].sum()))
    for _ in range(_ROUNDS):
        # A full sort of keys: the order of a partial sort depends on the machine.
        sets = np.argsort(rng.random((_DRAWS, len(sizes))), axis=1, kind="stable")[:, :count]
        gaps = np.abs(sizes[sets].sum(axis=1) - total)
        within = np.flatnonzero(gaps <= TOLERANCE * abs(total))
        if len(within):
            return sets[within[0]].tolist()
        k = int(np.argmin(gaps))
        if gaps[k] < least:
            nearest, least = sets[k].tolist(), int(gaps[k])
    return nearest


def _greedy(sizes: np.ndarray, count: int, total: int) -> list[int]:
    """Indices of `count` sizes, one after the other the nearest to its share of what is left
    of the total."""
    chosen: list[int] = []
    free = np.ones(len(sizes), bool)
    for k in range(count):
        gaps = np.where(free, np.abs(sizes - total / (count - k)), np.inf)
        chosen.append(int(np.argmin(gaps)))
        free[chosen[-1]] = False
        total -= int(sizes[chosen[-1]])
    return chosen


def _of_kind(slots: Sequence[Entry], kind: Kind) -> list[Entry]:
    return [slot for slot in slots if slot.kind == kind]


def _random(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """Peers of the same prompt whatever their outcome, under headings that do not tell it."""
    return pool.entries(pool.draw(rng, slots, pool.own(p, g)), "neutral")


def _shuffled(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """The same peers and the same headings, in a drawn permutation."""
    del pool, p, g
    order = rng.permutation(len(slots)).tolist()
    pairs = zip(order, slots, strict=True)
    return [slots[k]._replace(kind=slot.kind) for k, slot in pairs]


def _unrelated(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """Successes of other prompts in every slot."""
    return pool.entries(pool.draw(rng, slots, pool.others(p, g, succeeded=True)), "success")


def _cross_failures(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """The successes as they are, and failures of other prompts in the slots of failures."""
    successes, failures = _of_kind(slots, "success"), _of_kind(slots, "failure")
    places = pool.draw(rng, failures, pool.others(p, g, succeeded=False), successes)
    return successes + pool.entries(places, "failure")


def _success_only(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """The successes as they are, and further ones in the slots of failures: of the same prompt
    as long as it has some, then of others."""
    successes, failures = _of_kind(slots, "success"), _of_kind(slots, "failure")
    own = [(q, i) for q, i in pool.own(p, g) if pool.candidates.success[q, i]]
    more = pool.entries(pool.draw(rng, failures, own, successes), "success")
    filled, left = failures[: len(more)], failures[len(more) :]
    if not left:
        return successes + more
    # Own successes may be shorter than the failures that they replace: the successes of other
    # prompts make up for the difference.
    lacking = _total(filled, pool.tokens) - _total(more, pool.tokens)
    others = pool.others(p, g, succeeded=True)
    rest = pool.draw(rng, left, others, successes + more, extra_tokens=lacking)
    return successes + more + pool.entries(rest, "success")


def _shell(
    rng: np.random.Generator, slots: Sequence[Entry], pool: Pool, p: int, g: int
) -> list[Entry]:
    """No peer: the closing line alone, on the rows that the run trains."""
    del rng, slots, pool, p, g
    return []


# (draws, slots of the run, pool, prompt, target) -> blocks
CONTROLS: dict[
    str, Callable[[np.random.Generator, Sequence[Entry], Pool, int, int], list[Entry]]
] = {
    "random": _random,
    "shuffled": _shuffled,
    "unrelated": _unrelated,
    "cross_failures": _cross_failures,
    "success_only": _success_only,
    "shell": _shell,
}
