"""Loud warnings when a step trains nothing or nearly nothing, with the cause and a remedy."""

from __future__ import annotations

import logging

import numpy as np

from mopd_jax.config import Config, PeerConfig

log = logging.getLogger("mopd")

_NO_PEERS = PeerConfig(successes=0, failures=0)
# Why a method without a teacher has nothing to train on.
_UNSUPERVISED = {
    "grpo": "every advantage is 0",
    "dpo": "no group has two rewards that differ, so there is no pair",
    "simpo": "no group has two rewards that differ, so there is no pair",
    "sft": "no response may be imitated: none succeeded, or all are empty",
}


def causes(
    values: dict[str, float],
    rewards: np.ndarray,
    valid: np.ndarray,
    success: np.ndarray,
    cfg: Config,
) -> list[str]:
    """Why a step was inactive, one sentence each; empty for a step that trained.

    Args:
        values: the step's metrics.
        rewards, valid, success: f64[P, G], bool[P, G], bool[P, G].
    """
    found = []
    if not _reads_rewards(cfg):
        pass  # Nothing follows from them.
    elif not valid.any():
        found.append("no rollout has a verdict: the verifier fails on every response")
    elif np.ptp(rewards[valid]) == 0:
        found.append(
            f"every reward is {rewards[valid][0]:g}: the reward is flat. Are the problems too "
            "hard or too easy for the student, or is the answer format never met?"
        )
    elif not (success.any(axis=1) & (valid & ~success).any(axis=1)).any():
        found.append(
            "no group is mixed: peers of one kind only, and no advantage within a group. Raise "
            "rollout.group, or choose problems the student solves sometimes"
        )
    if values["truncated"] == 1.0:
        found.append("every response was cut: raise rollout.response_length")
    if values["trained_tokens"] == 0:
        if cfg.loss.method != "distill":
            found.append(_UNSUPERVISED[cfg.loss.method])
        elif cfg.loss.row_weight != "equal" and values["mixed_groups"] == 0:
            found.append("loss.row_weight gives groups of one outcome the weight p (1 - p) = 0")
        elif values["informed"] > 0:
            found.append("no token carries a signal")
        elif values["rows_left_out"] == 1.0:
            found.append(
                f"peers.targets={cfg.peers.targets!r}, groups={cfg.peers.groups!r}, no_success="
                f"{cfg.peers.no_success!r} and all_success={cfg.peers.all_success!r} leave "
                "every row out"
            )
        elif values["peers_without_text"] and not values["peers_dropped"]:
            found.append(
                f"{values['peers_without_text']} rollouts have no text but their thoughts, and "
                "no context shows a peer: raise rollout.response_length, or set "
                "context.strip_thinking=False"
            )
        elif values["peers_dropped"]:
            found.append(
                f"{values['peers_dropped']} peers were chosen and none fits, so every row is "
                "masked: raise context.teacher_prompt_length"
            )
        else:
            found.append("every row is masked because no context shows a peer")
    if values["gradient_finite"] == 0:
        found.append("a gradient was not finite, so the update was skipped")
    elif values["gradient_finite"] < 1:
        share = 1 - values["gradient_finite"]
        found.append(f"{share:.0%} of the updates had a gradient not finite, and were skipped")
    empty = values["gradient_finite"] - values["update_applied"]
    if empty > 0 and values["update_applied"] > 0:
        found.append(f"{empty:.0%} of the updates had nothing to train on, and were skipped")
    return found


def _reads_rewards(cfg: Config) -> bool:
    """By a loss of them, or by the choice of peers, of feedback or of rows."""
    if cfg.loss.method != "distill":
        return cfg.loss.method != "sft" or cfg.loss.sft_rows == "success"
    shown = cfg.peers.successes + cfg.peers.failures + cfg.peers.summaries
    return shown > 0 or cfg.context.feedback != "off" or cfg.peers != _NO_PEERS


def warn(step, values, rewards, valid, success, cfg) -> None:
    """Logs the causes of an inactive step; arguments as for `causes`."""
    for cause in causes(values, rewards, valid, success, cfg):
        effect = "" if values["update_applied"] else " NOTHING WAS TRAINED."
        log.warning("WARNING step %d:%s %s", step, effect, cause)
