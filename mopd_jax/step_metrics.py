"""What a training step logs."""

from __future__ import annotations

import numpy as np

from mopd_jax.experience import Chosen, Rendered
from mopd_jax.records import Verdict


def group_metrics(sampled, rewards, valid, success, contexts) -> dict[str, float]:
    """Metrics of a step that need no device. Rates are of all rows, truncated ones included."""
    failed = valid & ~success
    mixed = success.any(axis=1) & failed.any(axis=1)
    lengths = sampled.mask.sum(axis=2)
    prompt_tokens = [record.length for record in contexts]
    return {
        "solve_rate": float(success.mean()),
        "reward": float(rewards[valid].mean()) if valid.any() else float("nan"),
        "mixed_groups": float(mixed.mean()),
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
                [sum(r.cut) + r.dropped + r.feedback_cut + r.gold_cut > 0 for r in contexts]
            )
        ),
        "peer_tokens_cut": int(sum(sum(record.cut) for record in contexts)),
        "peers_dropped": int(sum(record.dropped for record in contexts)),
        **_shares(contexts),
    }


def _shares(contexts) -> dict[str, float]:
    """Fractions of rows by what their contexts, as rendered, hold."""
    good = np.array([any(record.succeeded) for record in contexts])
    bad = np.array([not all(record.succeeded) for record in contexts])
    return {
        "informed": float(np.mean([record.informed for record in contexts])),
        "shows_success": float(good.mean()),
        "shows_failure": float(bad.mean()),
        "shows_failures_only": float((bad & ~good).mean()),
        "peers_per_row": float(np.mean([len(record.shown) for record in contexts])),
    }


def verdict_metrics(verdicts: list[list[Verdict]]) -> dict[str, float]:
    """What verifiers say beside the reward, means over the rows of which they say it; and how
    many tests were not run."""
    every = [verdict for row in verdicts for verdict in row]
    found = {}
    for name in ("test_fraction", "format_ok"):
        said = [v for v in (getattr(verdict, name) for verdict in every) if v is not None]
        if said:
            found[name] = float(np.mean(said))
    if "test_fraction" in found:
        found["tests_skipped"] = sum(verdict.tests_skipped for verdict in every)
    return found


def choice_metrics(chosen: Chosen, rendered: Rendered) -> dict[str, float]:
    """How the rows are used, and all that was withheld, cut, replaced or left empty.

    `own_text_shown` is the part of rows that were shown a peer whose text, as it is shown, is
    the target's own (`peers.same_text`).
    """
    records, texts = rendered.records, chosen.texts
    own = [text for row in texts for text in row]
    copies = [
        any(texts[q][i] == own[n] for q, i in zip(r.prompts, r.shown, strict=True))
        for n, r in enumerate(records)
    ]
    found = {
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
        "summaries": sum(kind.startswith("summary") for r in records for kind in r.kinds),
        "summary_fallbacks": sum(r.fallbacks for r in records),
    }
    if chosen.match is None:
        return found
    # The match is that of the blocks as chosen; this much of them the prompt's limit took.
    cut = int(chosen.match.given.sum()) - sum(sum(r.tokens) for r in records)
    return found | chosen.match.metrics() | {"control_tokens_cut": cut}
