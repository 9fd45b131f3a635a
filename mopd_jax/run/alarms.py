"""Warnings for steps that train few or no tokens, and for trends: the cause and a remedy."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mopd_jax.config import Config, PeerConfig
from mopd_jax.records import Outcomes

log = logging.getLogger("mopd")

WINDOW = 20  # Steps that a trend needs.
_NO_PEERS = PeerConfig(successes=0, failures=0)
# Why a method without a teacher has nothing to train on.
_UNSUPERVISED = {
    "grpo": "every advantage is 0",
    "dpo": "no group has two rewards that differ, so there is no pair",
    "simpo": "no group has two rewards that differ, so there is no pair",
    "sft": "no response may be imitated: none succeeded, or all are empty",
}


def causes(values: Mapping[str, Any], outcomes: Outcomes, cfg: Config) -> list[str]:
    """Why a step was inactive, one sentence each; empty for a step that trained.

    Args:
        values: the step's metrics.
    """
    return [
        *(_of_rewards(outcomes) if _reads_rewards(cfg) else ()),
        *(
            ["every response was cut: raise rollout.response_length"]
            * (values["truncated"] == 1)
        ),
        *([_nothing_trained(values, cfg)] if values["trained_tokens"] == 0 else ()),
        *_of_updates(values),
    ]


def _of_rewards(outcomes: Outcomes) -> list[str]:
    """The first reason that applies why all rewards in every group are equal, if any."""
    rewards = outcomes.rewards[outcomes.valid]
    if not outcomes.valid.any():
        return ["no rollout has a verdict: the verifier fails on every response"]
    if np.ptp(rewards) == 0:
        return [
            f"every reward is {rewards[0]:g}: the reward is flat. Are the problems too "
            "hard or too easy for the student, or is the answer format never met?"
        ]
    if not outcomes.mixed.any():
        return [
            "no group is mixed: peers of one kind only, and no advantage within a group. Raise "
            "rollout.group, or choose problems the student solves sometimes"
        ]
    return []


def _nothing_trained(values: Mapping[str, Any], cfg: Config) -> str:
    """Why no token was trained on: the first row of the table that applies."""
    without_text, dropped = values["peers_without_text"], values["peers_dropped"]
    policies = ("targets", "no_success", "all_success")
    table = (
        (cfg.loss.method != "distill", _UNSUPERVISED.get(cfg.loss.method, "")),
        (
            cfg.loss.row_weight != "equal" and values["mixed_groups"] == 0,
            "loss.row_weight gives groups of one outcome the weight p (1 - p) = 0",
        ),
        (values["informed"] > 0, "no token carries a signal"),
        (
            values["rows_left_out"] == 1.0,
            "peers."
            + ", ".join(f"{name}={getattr(cfg.peers, name)!r}" for name in policies)
            + " leave every row out",
        ),
        (
            without_text and not dropped,
            f"{without_text} rollouts have no text but their thoughts, and no context shows a "
            "peer: raise rollout.response_length, or set context.strip_thinking=False",
        ),
        (
            dropped,
            f"{dropped} peers were chosen and none fits, so every row is masked: raise "
            "context.teacher_prompt_length",
        ),
        (True, "every row is masked because no context shows a peer"),
    )
    return next(cause for applies, cause in table if applies)


def _of_updates(values: Mapping[str, Any]) -> list[str]:
    """Updates that were skipped."""
    finite, applied = values["gradient_finite"], values["update_applied"]
    skipped = []
    if finite == 0:
        skipped.append("a gradient was not finite, so the update was skipped")
    elif finite < 1:
        skipped.append(
            f"{1 - finite:.0%} of the updates had a gradient not finite, and were skipped"
        )
    if finite > applied > 0:
        skipped.append(
            f"{finite - applied:.0%} of the updates had nothing to train on, and were skipped"
        )
    return skipped


def _reads_rewards(cfg: Config) -> bool:
    """Whether training reads rewards: in the loss, or to choose peers, feedback or rows."""
    if cfg.loss.method != "distill":
        return cfg.loss.method != "sft" or cfg.loss.sft_rows == "success"
    shown = cfg.peers.successes + cfg.peers.failures + cfg.peers.summaries
    return shown > 0 or cfg.context.feedback != "off" or cfg.peers != _NO_PEERS


def trends(latest: Sequence[Mapping[str, Any]], cfg: Config) -> dict[str, str]:
    """What the metrics of the last `WINDOW` steps show, {metric: warning}; {} for fewer steps.

    The limits are those of docs/metrics.md.
    """
    gap = 0.05 if cfg.model.compute_dtype == "bfloat16" else 0.001
    rollouts = cfg.rollout.prompts * cfg.rollout.group
    # Metric, whether a value is out of its range, text of the mean, cause and remedy.
    table: tuple[tuple[str, Callable[[float], bool], str, str], ...] = (
        (
            "solve_rate",
            lambda x: x == 0,
            "solve rate {:.2f}",
            "no rollout succeeds, so there is nothing to learn from. Look at a sample in"
            " rollouts/; choose easier problems or a stronger model, or ask for the answer's"
            " form in data.instruction",
        ),
        (
            "truncated",
            lambda x: x > 0.5,
            "{:.0%} of the responses cut",
            "a cut response counts as a failure and is shown to nobody. Raise"
            " rollout.response_length, or ask for shorter answers in data.instruction",
        ),
        (
            "entropy",
            lambda x: x < 0.01,
            "entropy {:.3f} nats",
            "the student answers always the same, so its groups show nothing new. Lower"
            " optimizer.learning_rate, or raise rollout.temperature",
        ),
        (
            "sampler_scorer_gap",
            lambda x: x > gap,
            "sampler_scorer_gap {:.4f} nats",
            f"sampler and update disagree on the same tokens by more than {gap}. Set"
            " model.compute_dtype='float32'; if it stays, report it",
        ),
        (
            "verifier_errors",
            lambda x: x > 0.1 * rollouts,
            "{:.0f} rollouts a step without a verdict",
            "the verifier fails on them, and they are masked. The reasons are in rollouts/",
        ),
    )
    found = {}
    for name, out_of_range, text, remedy in table:
        values = [float(step[name]) for step in latest if name in step]
        if len(values) == WINDOW and all(map(out_of_range, values)):
            mean = text.format(sum(values) / WINDOW)
            found[name] = f"{mean} for {WINDOW} steps: {remedy}"
    return found


class Alarms:
    """Warns of inactive steps, and of what many steps in a row show and one does not."""

    def __init__(self, cfg: Config):
        self._cfg = cfg
        self._latest: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=WINDOW)
        self._said: dict[str, int] = {}  # The step of the last warning of each trend.

    def warn(self, step: int, values: Mapping[str, Any], outcomes: Outcomes) -> None:
        """Logs the causes of an inactive step, and each trend once in `WINDOW` steps."""
        for cause in causes(values, outcomes, self._cfg):
            effect = "" if values["update_applied"] else " NOTHING WAS TRAINED."
            log.warning("WARNING step %d:%s %s", step, effect, cause)
        self._latest.append(values)
        for name, text in trends(self._latest, self._cfg).items():
            if step - self._said.get(name, step - WINDOW) >= WINDOW:
                self._said[name] = step
                log.warning("WARNING step %d: %s", step, text)
