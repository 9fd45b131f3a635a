"""Chooses which rollouts of its prompt each rollout's teacher is shown: the heart of MOPD.

Pure, seeded functions on the host. No context contains its own target, and of candidates with
equal text one is shown. The draw of a row depends on (seed, step, prompt, rollout) alone, not
on the order of the batch (arXiv 2605.12652; docs/contexts.md). `controls.py` fills the same
slots with one thing taken away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mopd_jax.config import PeerConfig
from mopd_jax.config.contexts import Rule
from mopd_jax.records import Outcomes

# Separates these draws from other uses of the same seed.
_PURPOSE = 0x9EE5

Kind = Literal["success", "failure", "neutral", "summary_success", "summary_failure"]


class Entry(NamedTuple):
    """One block of a context: which rollout it shows, and under which heading."""

    prompt: int  # Place in the batch of the prompt that the rollout answers.
    rollout: int
    succeeded: bool  # As verified, whatever the heading says.
    kind: Kind


# Of every prompt and rollout, the blocks of its context in their order: [P][G] entries.
Entries = tuple[tuple[tuple[Entry, ...], ...], ...]


@dataclasses.dataclass(frozen=True)
class PeerPlan:
    """The peers that each row's teacher reads.

    entries: [P][G] blocks of every row in the order of its context: successes, summaries,
        failures.
    bare: bool[P, G], rows without a block that read the closing line all the same (control
        `shell`).
    """

    entries: Entries
    bare: np.ndarray

    def shows(self, kind: Kind) -> np.ndarray:
        """bool[P, G], rows with a block under this heading."""
        return np.array(
            [[any(e.kind == kind for e in row) for row in group] for group in self.entries]
        )

    def informed(self) -> np.ndarray:
        """bool[P, G], rows whose context has something to read."""
        return np.array([[bool(row) for row in group] for group in self.entries]) | self.bare


def without_peers(prompts: int, group: int) -> PeerPlan:
    """The plan in which nobody sees anybody."""
    return PeerPlan((((),) * group,) * prompts, np.zeros((prompts, group), bool))


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rollouts of a step, as peers are chosen from them.

    success: bool[P, G], by the verifier.
    eligible: bool[P, G], rollouts that may be shown at all: they have a verdict and a text, and
        were not truncated unless `peers.truncated` says so.
    texts: [P][G] responses as they would be shown; equal texts are shown once.
    lengths: i[P, G] response lengths in tokens, for the rules that order by length.
    uids: [P], a number of each prompt that does not depend on its place in the batch.
    """

    success: np.ndarray
    eligible: np.ndarray
    texts: Sequence[Sequence[str]]
    lengths: np.ndarray
    uids: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Usage:
    """What becomes of every row before its peers are known.

    left_out: str[P, G], why the row is not trained on; "" if it is.
    plain: bool[P, G], rows held to the teacher on the plain prompt.
    """

    left_out: np.ndarray
    plain: np.ndarray

    @property
    def has_context(self) -> np.ndarray:
        """bool[P, G], rows that get a context."""
        return (self.left_out == "") & ~self.plain

    @property
    def reasons(self) -> np.ndarray:
        """str[P, G], why a row gets no peers; "" if it does."""
        return np.where(self.plain, "held to the plain prompt", self.left_out)


def usage(outcomes: Outcomes, cfg: PeerConfig) -> Usage:
    """How the rows are used by their outcomes: `targets`, `no_success`, `all_success`.

    Truncated responses count as they scored. A group without any verdict is under none of the
    three but `targets`.
    """
    success, failure = outcomes.success, outcomes.failure
    succeeds, fails = (x.any(axis=1, keepdims=True) for x in (success, failure))
    none, every = fails & ~succeeds, succeeds & ~fails
    left_out = np.full(success.shape, "", object)
    for rows, reason in (
        (~outcomes.valid & (cfg.targets == "failed"), "the target has no verdict"),
        (success & (cfg.targets == "failed"), "the target succeeded"),
        (none & (cfg.no_success == "mask"), "no rollout of the group succeeded"),
        (every & (cfg.all_success == "mask"), "every rollout of the group succeeded"),
    ):
        left_out[np.broadcast_to(rows, success.shape)] = reason
    plain = none & (cfg.no_success == "plain_prompt")
    plain = plain | (every & (cfg.all_success == "plain_prompt"))
    return Usage(left_out, plain & (left_out == ""))


def choose(
    candidates: Candidates,
    *,
    seed: int,
    step: int,
    cfg: PeerConfig,
    rows: np.ndarray | None = None,
) -> PeerPlan:
    """Chooses the peers of every row.

    Args:
        rows: bool[P, G], rows that get peers, by default all.

    Returns:
        PeerPlan with at most cfg.successes and cfg.failures entries a row, cfg.slots in all,
        and at most cfg.summaries in addition.
    """
    prompts, group = candidates.success.shape
    by_likeness = any("similar" in rule for rule in (cfg.rule, cfg.failure_rule or ""))
    entries = []
    for p in range(prompts):
        texts = candidates.texts[p]
        alike = similarity(texts) if by_likeness else np.zeros((group, group))
        of_prompt: list[tuple[Entry, ...]] = []
        for g in range(group):
            if rows is None or rows[p, g]:
                rng = np.random.default_rng([_PURPOSE, seed, step, candidates.uids[p], g])
                of_prompt.append(_row(rng, candidates, p, g, alike[g], cfg))
            else:
                of_prompt.append(())
        entries.append(tuple(of_prompt))
    return PeerPlan(tuple(entries), np.zeros((prompts, group), bool))


def _row(
    rng: np.random.Generator,
    candidates: Candidates,
    p: int,
    target: int,
    alike: np.ndarray,
    cfg: PeerConfig,
) -> tuple[Entry, ...]:
    """The blocks of one row; `alike` f64[G] is the likeness of every text to the target's."""
    success, texts = candidates.success[p], candidates.texts[p]

    def ordered(rule: Rule) -> list[int]:
        order = _order(rng, candidates.lengths[p], alike, rule)
        return [
            i
            for i in order
            if candidates.eligible[p, i]
            and i != target
            and may_show(texts[i], texts[target], cfg)
        ]

    order = ordered(cfg.rule)
    # One draw serves both kinds where they have the same rule.
    failure_rule = cfg.failure_rule or cfg.rule
    failure_order = order if failure_rule == cfg.rule else ordered(failure_rule)
    slots = cfg.successes + cfg.failures if cfg.slots is None else cfg.slots
    successes = _distinct([i for i in order if success[i]], texts)
    successes = successes[: min(cfg.successes, slots)]
    failures = _distinct([i for i in failure_order if not success[i]], texts)
    failures = failures[: min(cfg.failures, slots - len(successes))]
    summaries = _summarised(order, success, texts, [*successes, *failures], cfg)
    return (
        *(Entry(p, i, True, "success") for i in successes),
        *(_summary(p, i, bool(success[i])) for i in summaries),
        *(Entry(p, i, False, "failure") for i in failures),
    )


def _summary(p: int, i: int, succeeded: bool) -> Entry:
    return Entry(p, i, succeeded, "summary_success" if succeeded else "summary_failure")


def similarity(texts: Sequence[str]) -> np.ndarray:
    """f64[G, G], Jaccard index of the sets of word bigrams: shared / all that either has.

    Words are what white space separates; a text of one word has that word instead of bigrams.
    Two empty texts are alike (1).
    """
    grams: list[set[tuple[str, str]] | set[str]] = []
    for text in texts:
        words = text.split()
        grams.append(set(zip(words, words[1:], strict=False)) or set(words))
    alike = np.ones((len(texts), len(texts)))
    for a in range(len(texts)):
        for b in range(a):
            both = len(grams[a] & grams[b])
            either = len(grams[a]) + len(grams[b]) - both
            alike[a, b] = alike[b, a] = both / either if either else 1.0
    return alike


def _summarised(
    order: Sequence[int],
    success: np.ndarray,
    texts: Sequence[str],
    shown: Sequence[int],
    cfg: PeerConfig,
) -> list[int]:
    """The rollouts shown by their summary: of the chosen outcome, and not in `shown`."""
    outcomes = {"success": (True,), "failure": (False,), "all": (True, False)}
    wanted = outcomes[cfg.summary_source]
    in_full = {texts[i] for i in shown}
    left = [i for i in order if bool(success[i]) in wanted and texts[i] not in in_full]
    return _distinct(left, texts)[: cfg.summaries]


def _order(
    rng: np.random.Generator, lengths: np.ndarray, alike: np.ndarray, rule: Rule
) -> list[int]:
    """Rollout indices of one group, most wanted first; ties keep the order of the rollouts."""
    orders = {
        "first": lambda: np.arange(len(lengths)),
        "uniform": lambda: rng.permutation(len(lengths)),
        "shortest": lambda: np.argsort(lengths, kind="stable"),
        "longest": lambda: np.argsort(-lengths, kind="stable"),
        "most_similar": lambda: np.argsort(-alike, kind="stable"),
        "least_similar": lambda: np.argsort(alike, kind="stable"),
    }
    return orders[rule]().tolist()


def may_show(text: str, target: str, cfg: PeerConfig) -> bool:
    """Whether a peer with this text may be shown for a target with that one."""
    return cfg.exclude == "rollout" or text != target


def _distinct(indices: Sequence[int], texts: Sequence[str]) -> list[int]:
    """The first index of every distinct text, in order."""
    first: dict[str, int] = {}
    for i in indices:
        first.setdefault(texts[i], i)
    return list(first.values())
