"""Which rollouts of the same prompt each rollout's teacher is shown: the heart of MOPD.

Pure, seeded functions on the host. Self-exclusion is always on: no context contains its own
target. Candidates with equal text are one candidate. The draw of a row depends on (seed, step,
prompt, rollout) alone, not on the order of the batch (arXiv 2605.12652; docs/contexts.md).
`controls.py` has the selectors that take one thing away from these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mopd_jax.config import PeerConfig

# Separates these draws from other uses of the same seed.
_PURPOSE = 0x9EE5

Kind = Literal["success", "failure", "neutral", "summary_success", "summary_failure"]


class Entry(NamedTuple):
    """One block of a context: which rollout it shows, and under which heading."""

    prompt: int  # Place in the batch of the prompt that the rollout answers.
    rollout: int
    succeeded: bool  # As verified, whatever the heading says.
    kind: Kind


@dataclasses.dataclass(frozen=True)
class PeerPlan:
    """Who sees whom. Entries are rollout indices within the group; -1 is an empty slot."""

    success: np.ndarray  # i32[P, G, A], shown under headings of a success
    failure: np.ndarray  # i32[P, G, B], shown under headings of a failure
    summary: np.ndarray | None = None  # i32[P, G, K], shown by their summary
    # Of which prompt the rollouts are, in the shapes of `success` and `failure`; None: the own.
    success_prompt: np.ndarray | None = None
    failure_prompt: np.ndarray | None = None
    outcome: np.ndarray | None = None  # bool[P, G] as verified; None: as the headings say
    neutral: bool = False  # Full peers have a heading that does not tell their outcome.
    shell: np.ndarray | None = None  # bool[P, G], rows that read the closing line alone

    def entries(self, p: int, g: int) -> list[Entry]:
        """The blocks of one row in the order of its context."""

        def read(slots, prompts, kind):
            for k, i in enumerate(slots[p, g].tolist()):
                if i < 0:
                    continue
                q = p if prompts is None else int(prompts[p, g, k])
                known = self.outcome is not None
                ok = bool(self.outcome[q, i]) if known else kind == "success"
                if kind == "summary":
                    yield Entry(q, i, ok, "summary_success" if ok else "summary_failure")
                else:
                    yield Entry(q, i, ok, "neutral" if self.neutral else kind)

        found = list(read(self.success, self.success_prompt, "success"))
        if self.summary is not None:
            found += read(self.summary, None, "summary")
        return found + list(read(self.failure, self.failure_prompt, "failure"))

    def shown(self, p: int, g: int) -> list[tuple[int, bool]]:
        """[(rollout, succeeded)] of one row in the order of its context."""
        return [(entry.rollout, entry.succeeded) for entry in self.entries(p, g)]

    def informed(self) -> np.ndarray:
        """bool[P, G], rows whose context has something to read."""
        parts = [self.success, self.failure]
        parts += [] if self.summary is None else [self.summary]
        some = np.concatenate(parts, axis=2) >= 0
        return some.any(axis=2) if self.shell is None else some.any(axis=2) | self.shell


@dataclasses.dataclass(frozen=True)
class Usage:
    """What becomes of every row before its peers are known."""

    left_out: np.ndarray  # str[P, G], why the row is not trained on; "" if it is
    plain: np.ndarray  # bool[P, G], held to the teacher on the plain prompt

    @property
    def taught(self) -> np.ndarray:
        """bool[P, G], rows that get a context."""
        return (self.left_out == "") & ~self.plain

    @property
    def reasons(self) -> np.ndarray:
        """str[P, G], why a row gets no peers; "" if it does."""
        return np.where(self.plain, "held to the plain prompt", self.left_out)


def usage(success: np.ndarray, valid: np.ndarray, cfg: PeerConfig) -> Usage:
    """Outcome-dependent use of the rows: `targets`, `groups`, `no_success`, `all_success`.

    Args:
        success, valid: bool[P, G], by the verifier; truncated responses count as they scored.
            A group without any verdict has neither policy.
    """
    failed = valid & ~success
    none = (failed.any(axis=1) & ~success.any(axis=1))[:, None]
    every = (success.any(axis=1) & ~failed.any(axis=1))[:, None]
    mixed = (success.any(axis=1) & failed.any(axis=1))[:, None]
    left_out = np.full(success.shape, "", object)
    for rows, reason in (
        (~valid & (cfg.targets == "failed"), "the target has no verdict"),
        (success & (cfg.targets == "failed"), "the target succeeded"),
        (none & (cfg.no_success == "mask"), "no rollout of the group succeeded"),
        (every & (cfg.all_success == "mask"), "every rollout of the group succeeded"),
        (~mixed & (cfg.groups == "mixed"), "the group is not mixed"),
    ):
        left_out[np.broadcast_to(rows, success.shape)] = reason
    plain = none & (cfg.no_success == "plain_prompt")
    plain = plain | (every & (cfg.all_success == "plain_prompt"))
    return Usage(left_out, plain & (left_out == ""))


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
) -> PeerPlan:
    """Chooses the peers of every row.

    Args:
        success: bool[P, G].
        candidate: bool[P, G], rollouts that may be shown at all: they have a verdict and a
            text, and were not truncated unless `cfg.truncated` says so.
        texts: [P][G] responses as they would be shown; equal texts are shown once.
        lengths: i[P, G] response lengths in tokens, for the rules that order by length.
        uids: [P], a number of each prompt that does not depend on its place in the batch.
        rows: bool[P, G], rows that get peers, by default all.

    Returns:
        PeerPlan with at most cfg.successes and cfg.failures entries a row, cfg.slots in all,
        and at most cfg.summaries beside them.
    """
    prompts, group = success.shape
    plan_success = np.full((prompts, group, cfg.successes), -1, np.int32)
    plan_failure = np.full((prompts, group, cfg.failures), -1, np.int32)
    plan_summary = np.full((prompts, group, cfg.summaries), -1, np.int32)
    slots = cfg.successes + cfg.failures if cfg.slots is None else cfg.slots
    for p in range(prompts):
        rules = (cfg.rule, cfg.rule if cfg.failure_rule is None else cfg.failure_rule)
        by_likeness = any("similar" in rule for rule in rules)
        alike = similarity(texts[p]) if by_likeness else np.zeros((group, group))
        for g in range(group):
            if rows is not None and not rows[p, g]:
                continue
            rng = np.random.default_rng([_PURPOSE, seed, step, uids[p], g])
            allowed = _allowed(g, candidate[p], texts[p], cfg)
            others = [i for i in _order(rng, lengths[p], alike[g], rules[0]) if allowed[i]]
            worse = others
            if rules[1] != rules[0]:
                order = _order(rng, lengths[p], alike[g], rules[1])
                worse = [i for i in order if allowed[i]]
            good = _distinct([i for i in others if success[p, i]], texts[p])
            good = good[: min(cfg.successes, slots)]
            bad = _distinct([i for i in worse if not success[p, i]], texts[p])
            if cfg.failures_when == "no_success" and good:
                bad = []
            bad = bad[: min(cfg.failures, slots - len(good))]
            brief = _summarised(others, success[p], texts[p], [*good, *bad], cfg)
            plan_success[p, g, : len(good)] = good
            plan_failure[p, g, : len(bad)] = bad
            plan_summary[p, g, : len(brief)] = brief
    return PeerPlan(plan_success, plan_failure, plan_summary, outcome=success)


def similarity(texts: Sequence[str]) -> np.ndarray:
    """f64[G, G], Jaccard index of the sets of word bigrams: shared / all that either has.

    Words are what white space separates; a text of one word has that word instead of bigrams.
    Two empty texts are alike (1).
    """
    grams = []
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


def _summarised(others, success, texts, shown, cfg) -> list[int]:
    """The rollouts shown by their summary: of the chosen outcome, and not in `shown`."""
    wanted = {"success": (True,), "failure": (False,), "all": (True, False)}
    labels = wanted[cfg.summary_source]
    taken = {texts[i] for i in shown}
    pool = [i for i in others if bool(success[i]) in labels and texts[i] not in taken]
    return _distinct(pool, texts)[: cfg.summaries]


def _order(
    rng: np.random.Generator, lengths: np.ndarray, alike: np.ndarray, rule: str
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
    return cfg.same_text or text != target


def _allowed(
    target: int, candidate: np.ndarray, texts: Sequence[str], cfg: PeerConfig
) -> list[bool]:
    """Of every rollout of a group: the target may be shown it."""
    return [
        bool(some) and i != target and may_show(texts[i], texts[target], cfg)
        for i, some in enumerate(candidate)
    ]


def _distinct(indices: list[int], texts: Sequence[str]) -> list[int]:
    """The first index of every distinct text, in order."""
    first: dict[str, int] = {}
    for i in indices:
        first.setdefault(texts[i], i)
    return list(first.values())
