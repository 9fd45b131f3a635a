"""The metrics that a training step logs: `of_step` joins them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mopd_jax.contexts.render import ContextRecord
from mopd_jax.experience import Chosen, Gathered, Rendered
from mopd_jax.records import Outcomes, Sampled, Verdict
from mopd_jax.run.record import Run
from mopd_jax.run.solved import Solved
from mopd_jax.update.means import Ratio
from mopd_jax.update.objectives import log_name


def of_step(
    run: Run,
    gathered: Gathered,
    logged: Mapping[str, Ratio],
    solved: Solved,
    seconds: Mapping[str, float],
) -> dict[str, float | str]:
    """All metrics of a training step by name.

    Args:
        logged: what the update returned, on the host.
        solved: the problems solved so far, with this step.
        seconds: of the step, and of its phases.
    """
    values: dict[str, float | str] = {
        log_name(name, run.cfg): ratio.mean() for name, ratio in logged.items()
    }
    values |= of_rollouts(gathered)
    values |= choice_metrics(gathered.chosen, gathered.contexts)
    values |= verdict_metrics(gathered.verdicts)
    values |= solved.metrics()
    if run.sandbox is not None:
        values["sandbox_level"] = run.sandbox.level
    if run.cfg.data.long_prompts == "drop":
        values["prompts_left_out"] = run.prompts_left_out
    values |= seconds
    values["tokens_per_second"] = float(gathered.sampled.mask.sum()) / seconds["seconds"]
    return values


def of_rollouts(gathered: Gathered) -> dict[str, float]:
    """Metrics of the rollouts and their contexts, which training and `mopd rollout` share."""
    return group_metrics(gathered.sampled, gathered.outcomes, gathered.contexts.records)


def group_metrics(
    sampled: Sampled, outcomes: Outcomes, contexts: list[ContextRecord]
) -> dict[str, float]:
    """Solve rates, groups by outcome, lengths. Rates are of all rows, truncated ones too."""
    rewards, valid, success = outcomes.rewards, outcomes.valid, outcomes.success
    failed = outcomes.failure
    lengths = sampled.mask.sum(axis=2)
    prompt_tokens = [record.length for record in contexts]
    return {
        "solve_rate": float(success.mean()),
        "reward": float(rewards[valid].mean()) if valid.any() else float("nan"),
        "mixed_groups": float(outcomes.mixed.mean()),
        "all_failed_groups": float((valid.any(axis=1) & ~success.any(axis=1)).mean()),
        "all_solved_groups": float((success.any(axis=1) & ~failed.any(axis=1)).mean()),
        "one_success_groups": float((success.sum(axis=1) == 1).mean()),
        "one_failure_groups": float((failed.sum(axis=1) == 1).mean()),
        "verifier_errors": int((~valid).sum()),
        "truncated": float((~sampled.stopped).mean()),
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "teacher_prompt_tokens": float(np.mean(prompt_tokens)),
        "teacher_prompt_tokens_max": int(np.max(prompt_tokens)),
        "contexts_clipped": float(
            np.mean(
                [
                    r.peer_tokens_cut + r.dropped + r.feedback_cut + r.gold_cut > 0
                    for r in contexts
                ]
            )
        ),
        "peer_tokens_cut": int(sum(record.peer_tokens_cut for record in contexts)),
        "peers_dropped": int(sum(record.dropped for record in contexts)),
        **_shares(contexts),
    }


def _shares(contexts: list[ContextRecord]) -> dict[str, float]:
    """Fractions of rows by what their contexts, as rendered, hold."""
    good = np.array([any(peer.succeeded for peer in record.peers) for record in contexts])
    bad = np.array([not all(peer.succeeded for peer in record.peers) for record in contexts])
    return {
        "informed": float(np.mean([record.informed for record in contexts])),
        "shows_success": float(good.mean()),
        "shows_failure": float(bad.mean()),
        "shows_failures_only": float((bad & ~good).mean()),
        "peers_per_row": float(np.mean([len(record.peers) for record in contexts])),
    }


def verdict_metrics(verdicts: list[list[Verdict]]) -> dict[str, float]:
    """Means of the verdicts' fields besides the reward, over the rows with a value, and how
    many tests were not run."""
    every = [verdict for row in verdicts for verdict in row]
    metrics: dict[str, float] = {}
    for name in ("test_fraction", "format_ok"):
        values = [v for v in (getattr(verdict, name) for verdict in every) if v is not None]
        if values:
            metrics[name] = float(np.mean(values))
    if "test_fraction" in metrics:
        metrics["tests_skipped"] = sum(verdict.tests_skipped for verdict in every)
    return metrics


def choice_metrics(chosen: Chosen, rendered: Rendered) -> dict[str, float]:
    """How the rows are used, and all that was withheld, cut, replaced or left empty.

    `own_text_shown` is the share of rows that were shown a peer whose text, as it is shown, is
    the target's own (`peers.exclude="text"` shows none).
    """
    records, texts = rendered.records, chosen.texts
    own = [text for row in texts for text in row]
    copies = [
        any(texts[peer.prompt][peer.rollout] == own[n] for peer in record.peers)
        for n, record in enumerate(records)
    ]
    metrics: dict[str, float] = {
        "rows_left_out": float((chosen.usage.left_out != "").mean()),
        "rows_plain": float(chosen.usage.plain.mean()),
        "peers_without_text": chosen.without_text,
        "own_text_shown": float(np.mean(copies)),
        "shows_feedback": float(np.mean([r.feedback is not None for r in records])),
        "feedback_tokens_cut": sum(r.feedback_cut for r in records),
        "feedback_dropped": sum(r.feedback_dropped for r in records),
        "feedback_withheld": rendered.withheld,
        "shows_gold": float(np.mean([r.gold is not None for r in records])),
        "gold_tokens_cut": sum(r.gold_cut for r in records),
        "summaries": sum(peer.kind.startswith("summary") for r in records for peer in r.peers),
        "summary_fallbacks": sum(r.fallbacks for r in records),
    }
    if chosen.match is None:
        return metrics
    # The match is that of the chosen blocks; the prompt's limit then removed this many of them.
    cut = int(chosen.match.given.sum()) - sum(r.peer_tokens for r in records)
    return metrics | chosen.match.metrics() | {"control_tokens_cut": cut}
