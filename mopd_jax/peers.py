"""Which rollouts of the same prompt each rollout's teacher is shown: the heart of MOPD.

A pure, seeded function on the host. Self-exclusion is always on: no context contains its own
target. Candidates with equal text are one candidate. The draw of a row depends on (seed, step,
prompt, rollout) alone, not on the order of the batch (arXiv 2605.12652; method.md 2.4, 2.12).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mopd_jax.config import PeerConfig

# Separates these draws from other uses of the same seed.
_PURPOSE = 0x9EE5


@dataclasses.dataclass(frozen=True)
class PeerPlan:
    """Who sees whom. Entries are rollout indices within the group; -1 is an empty slot."""

    success: np.ndarray  # i32[P, G, A], A = peers.successes
    failure: np.ndarray  # i32[P, G, B], B = peers.failures

    def shown(self, p: int, g: int) -> list[tuple[int, bool]]:
        """[(rollout, succeeded)] of one row in the order of its context."""
        good = [(int(i), True) for i in self.success[p, g] if i >= 0]
        return good + [(int(i), False) for i in self.failure[p, g] if i >= 0]

    def informed(self) -> np.ndarray:
        """bool[P, G], rows whose context shows at least one peer."""
        return (self.success >= 0).any(axis=2) | (self.failure >= 0).any(axis=2)


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
) -> PeerPlan:
    """Chooses the peers of every row.

    Args:
        success: bool[P, G].
        candidate: bool[P, G], rollouts that may be shown at all: they have a verdict, and were
            not truncated unless `cfg.truncated` says so.
        texts: [P][G] responses; equal texts are shown once.
        lengths: i[P, G] response lengths in tokens, for the rules that order by length.
        uids: [P], a number of each prompt that does not depend on its place in the batch.

    Returns:
        PeerPlan with at most cfg.successes and cfg.failures entries a row, cfg.slots in all.
    """
    prompts, group = success.shape
    plan_success = np.full((prompts, group, cfg.successes), -1, np.int32)
    plan_failure = np.full((prompts, group, cfg.failures), -1, np.int32)
    slots = cfg.successes + cfg.failures if cfg.slots is None else cfg.slots
    for p in range(prompts):
        for g in range(group):
            rng = np.random.default_rng([_PURPOSE, seed, step, uids[p], g])
            order = _order(rng, lengths[p], cfg.rule)
            others = [i for i in order if i != g and candidate[p, i]]
            good = _distinct([i for i in others if success[p, i]], texts[p])
            good = good[: min(cfg.successes, slots)]
            bad = _distinct([i for i in others if not success[p, i]], texts[p])
            if cfg.failures_when == "no_success" and good:
                bad = []
            bad = bad[: min(cfg.failures, slots - len(good))]
            plan_success[p, g, : len(good)] = good
            plan_failure[p, g, : len(bad)] = bad
    return PeerPlan(plan_success, plan_failure)


def _order(rng: np.random.Generator, lengths: np.ndarray, rule: str) -> list[int]:
    """Rollout indices of one group, most wanted first."""
    orders = {
        "first": lambda: np.arange(len(lengths)),
        "uniform": lambda: rng.permutation(len(lengths)),
        "shortest": lambda: np.argsort(lengths, kind="stable"),
        "longest": lambda: np.argsort(-lengths, kind="stable"),
    }
    return orders[rule]().tolist()


def _distinct(indices: list[int], texts: Sequence[str]) -> list[int]:
    """The first index of every distinct text, in order."""
    first: dict[str, int] = {}
    for i in indices:
        first.setdefault(texts[i], i)
    return list(first.values())
