"""Controls: the run with one thing taken away, and all else held fixed.

A control first chooses the peers of the very run it controls, by the same draws, and then fills
the same slots. Every row says how well its tokens match, which slots were topped up and which
stayed empty: nothing is silent. Controls read responses and outcomes, never a gold answer
(docs/contexts.md has the table). Pools of several prompts are ordered by the
prompts' numbers, so the order of the batch changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mopd_jax.config import PeerConfig
from mopd_jax.contexts import peers
from mopd_jax.contexts.peers import Entry, PeerPlan

# Separates these draws from other uses of the same seed.
_PURPOSE = 0xC0A7
# A row counts as matched if its tokens differ by no more than this part of the run's.
TOLERANCE = 0.02
# Sets drawn in token mode until one matches: so many at a time, so many times.
_DRAWS, _ROUNDS = 64, 8


@dataclasses.dataclass(frozen=True)
class Match:
    """How a control differs from the run it controls; i64[P, G] of every row.

    wanted, given: tokens of the blocks of the run and of the control, before
        `teacher_prompt_length` cuts, and without headings.
    slots: blocks that the control has to fill: as many as the run shows, and none for `shell`.
    topped_up: blocks of other prompts in place of missing ones of the own.
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
        """f64[P, G], |given - wanted| / wanted; nan where there is no slot to fill: the run
        shows nothing, or the control is to show nothing."""
        wanted = np.where(self.slots > 0, self.wanted, np.nan)
        return np.abs(self.given - wanted) / wanted

    def row(self, p: int, g: int) -> dict[str, float]:
        """All of one row, by name, with its error."""
        names = [field.name for field in dataclasses.fields(self)]
        counts = {name: int(getattr(self, name)[p, g]) for name in names}
        return counts | {"error": float(self.error()[p, g])}

    def metrics(self) -> dict[str, float]:
        """Of a step: errors over the rows with slots to fill, nan if there is none."""
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
    success: np.ndarray,
    candidate: np.ndarray,
    texts: Sequence[Sequence[str]],
    lengths: np.ndarray,
    uids: Sequence[int],
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
        questions: [P], what was asked. Equal ones are one prompt: none is unrelated to itself.
    """
    options = {"seed": seed, "step": step, "cfg": cfg, "rows": rows}
    real = peers.choose(success, candidate, texts, lengths, uids, **options)
    pool = Pool(success, candidate & (tokens > 0), texts, uids, questions, tokens, cfg)
    prompts, group = success.shape
    width = cfg.successes + cfg.failures
    slots = np.full((2, 2, prompts, group, width), -1, np.int32)
    shell = np.zeros((prompts, group), bool)
    counts = np.zeros((len(dataclasses.fields(Match)), prompts, group), np.int64)
    for p in range(prompts):
        for g in range(group):
            wanted = [e for e in real.entries(p, g) if tokens[p, e.rollout] > 0]
            if not wanted:
                continue
            rng = np.random.default_rng([_PURPOSE, seed, step, uids[p], g])
            blocks, topped_up = CONTROLS[cfg.control](rng, wanted, pool, p, g)
            for k, kind in enumerate(("success", "failure")):
                chosen = [e for e in blocks if (e.kind == "failure") == (kind == "failure")]
                slots[k, 0, p, g, : len(chosen)] = [e.rollout for e in chosen]
                slots[k, 1, p, g, : len(chosen)] = [e.prompt for e in chosen]
            shell[p, g] = cfg.control == "shell"
            to_fill = 0 if shell[p, g] else len(wanted)
            shown = {(e.prompt, e.rollout) for e in wanted}
            counts[:, p, g] = (
                pool.total(wanted),
                pool.total(blocks),
                to_fill,
                topped_up,
                to_fill - len(blocks),
                sum((e.prompt, e.rollout) in shown for e in blocks),
                sum(e.kind == ("failure" if e.succeeded else "success") for e in blocks),
            )
    plan = PeerPlan(
        success=slots[0, 0],
        failure=slots[1, 0],
        success_prompt=slots[0, 1],
        failure_prompt=slots[1, 1],
        outcome=success,
        neutral=cfg.control == "random",
        shell=shell,
    )
    return plan, Match(*counts)


@dataclasses.dataclass(frozen=True)
class Pool:
    """What a control may draw from: arguments of `choose`, candidates with text only."""

    success: np.ndarray
    candidate: np.ndarray
    texts: Sequence[Sequence[str]]
    uids: Sequence[int]
    questions: Sequence[str]
    tokens: np.ndarray
    cfg: PeerConfig

    def entry(self, q: int, i: int, kind: str) -> Entry:
        return Entry(q, i, bool(self.success[q, i]), kind)

    def total(self, entries: Sequence[Entry]) -> int:
        """Tokens of the blocks."""
        return sum(int(self.tokens[e.prompt, e.rollout]) for e in entries)

    def own(self, p: int, g: int) -> list[tuple[int, int]]:
        """(p, rollout) of the candidates of prompt p that the target may be shown."""
        said = self.texts[p][g]
        return [
            (p, i)
            for i in np.flatnonzero(self.candidate[p]).tolist()
            if i != g and peers.may_show(self.texts[p][i], said, self.cfg)
        ]

    @functools.cached_property
    def everyone(self) -> list[tuple[int, int]]:
        """(prompt, rollout) of all candidates, in the order of the prompts' numbers."""
        by_number = np.argsort(np.asarray(self.uids), kind="stable").tolist()
        return [(q, i) for q in by_number for i in np.flatnonzero(self.candidate[q]).tolist()]

    def others(self, p: int, g: int, succeeded: bool) -> list[tuple[int, int]]:
        """(prompt, rollout) of the candidates of other questions with this outcome that the
        target may be shown."""
        asked, said = self.questions[p], self.texts[p][g]
        return [
            (q, i)
            for q, i in self.everyone
            if bool(self.success[q, i]) == succeeded
            and self.questions[q] != asked
            and peers.may_show(self.texts[q][i], said, self.cfg)
        ]

    def fill(
        self,
        rng: np.random.Generator,
        slots: Sequence[Entry],
        options: list[tuple[int, int]],
        shown: Sequence[Entry] = (),
        *,
        owed: int = 0,
    ) -> list[tuple[int, int]]:
        """A drawn set of the options, one for every slot as long as there are some.

        No text twice, nor one of `shown`. In token mode the set is drawn among those whose
        tokens are within TOLERANCE of the slots' and what is `owed` besides; where none is
        found, it is the nearest that is.
        """
        texts = {self.texts[e.prompt][e.rollout] for e in shown}
        left = []
        for k in rng.permutation(len(options)).tolist():
            q, i = options[k]
            if self.texts[q][i] not in texts:
                texts.add(self.texts[q][i])
                left.append((q, i))
        if self.cfg.control_match == "block" or len(left) <= len(slots) or not slots:
            return left[: len(slots)]
        sizes = np.array([self.tokens[q, i] for q, i in left])
        total = self.total(slots) + owed
        return [left[k] for k in _matching(rng, sizes, len(slots), total)]


def _matching(rng: np.random.Generator, sizes: np.ndarray, count: int, total: int) -> list[int]:
    """Places of `count` sizes whose sum is within TOLERANCE of the total: the first such set
    of many drawn ones, which is a uniform choice. Failing that, the nearest that was seen."""
    # One after the other, each the nearest to its share of what is left.
    left, rest, free = [], total, np.ones(len(sizes), bool)
    for k in range(count):
        gaps = np.where(free, np.abs(sizes - rest / (count - k)), np.inf)
        left.append(int(np.argmin(gaps)))
        free[left[-1]] = False
        rest -= int(sizes[left[-1]])
    best, least = left, abs(rest)
    for _ in range(_ROUNDS):
        # Sorting keys, and not a partial sort, whose order is not the same on every machine.
        sets = np.argsort(rng.random((_DRAWS, len(sizes))), axis=1, kind="stable")[:, :count]
        gaps = np.abs(sizes[sets].sum(axis=1) - total)
        found = np.flatnonzero(gaps <= TOLERANCE * abs(total))
        k = int(found[0]) if len(found) else int(np.argmin(gaps))
        if len(found) or gaps[k] < least:
            best, least = sets[k].tolist(), int(gaps[k])
        if len(found):
            break
    return best


def _random(rng, wanted, pool, p, g):
    """Peers of the same prompt whatever their outcome, under headings that do not tell it."""
    chosen = pool.fill(rng, wanted, pool.own(p, g))
    return [pool.entry(q, i, "neutral") for q, i in chosen], 0


def _shuffled(rng, wanted, pool, p, g):
    """The same peers and the same headings, in a drawn permutation."""
    del pool, p, g
    order = rng.permutation(len(wanted)).tolist()
    pairs = zip(order, wanted, strict=True)
    return [wanted[k]._replace(kind=slot.kind) for k, slot in pairs], 0


def _unrelated(rng, wanted, pool, p, g):
    """Successes of other prompts in every slot."""
    chosen = pool.fill(rng, wanted, pool.others(p, g, True))
    return [pool.entry(q, i, "success") for q, i in chosen], 0


def _cross_failures(rng, wanted, pool, p, g):
    """The successes as they are, and failures of other prompts in the slots of failures."""
    kept = [e for e in wanted if e.kind == "success"]
    slots = [e for e in wanted if e.kind == "failure"]
    chosen = pool.fill(rng, slots, pool.others(p, g, False), kept)
    return kept + [pool.entry(q, i, "failure") for q, i in chosen], 0


def _success_only(rng, wanted, pool, p, g):
    """The successes as they are, and further ones in the slots of failures."""
    kept = [e for e in wanted if e.kind == "success"]
    slots = [e for e in wanted if e.kind == "failure"]
    own = [(q, i) for q, i in pool.own(p, g) if pool.success[q, i]]
    more = [pool.entry(q, i, "success") for q, i in pool.fill(rng, slots, own, kept)]
    left = slots[len(more) :]
    if not (left and pool.cfg.control_topup):
        return kept + more, 0
    owed = pool.total(slots[: len(more)]) - pool.total(more)
    rest = pool.fill(rng, left, pool.others(p, g, True), kept + more, owed=owed)
    return kept + more + [pool.entry(q, i, "success") for q, i in rest], len(rest)


def _shell(rng, wanted, pool, p, g):
    """No peer: the closing line alone, on the rows that the run trains."""
    del rng, wanted, pool, p, g
    return [], 0


# (draws, slots of the run, pool, prompt, target) -> (blocks, how many are topped up)
CONTROLS: dict[str, Callable[..., tuple[list[Entry], int]]] = {
    "random": _random,
    "shuffled": _shuffled,
    "unrelated": _unrelated,
    "cross_failures": _cross_failures,
    "success_only": _success_only,
    "shell": _shell,
}
