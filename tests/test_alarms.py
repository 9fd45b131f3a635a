"""Steps that train nothing say so, and why; healthy steps say nothing."""

import logging
import re

import numpy as np
import pytest

from mopd_jax.config import (
    Config,
    LossConfig,
    ModelConfig,
    defaults,
    from_config_dict,
    methods,
)
from mopd_jax.records import Outcomes
from mopd_jax.run import alarms

HEALTHY = {
    "truncated": 0.1,
    "trained_tokens": 100.0,
    "peers_dropped": 0,
    "peers_without_text": 0,
    "mixed_groups": 0.5,
    "informed": 0.9,
    "rows_left_out": 0.0,
    "gradient_finite": 1.0,
    "update_applied": 1.0,
}
MIXED = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
WEIGHED = Config(loss=LossConfig(row_weight="solve_variance"))


def method(name):
    return Config(loss=LossConfig(method=name))


GRPO = method("grpo")


def causes(rewards=MIXED, valid=True, cfg=None, **values):
    rewards = np.asarray(rewards, float)
    valid = np.broadcast_to(valid, rewards.shape)
    success = valid & (rewards >= 1)
    outcomes = Outcomes(rewards, valid, success)
    return alarms.causes({**HEALTHY, **values}, outcomes, cfg or Config())


@pytest.mark.parametrize("cfg", [Config(), GRPO])
def test_a_healthy_step_is_silent(cfg):
    assert causes(cfg=cfg) == []
    assert causes(np.eye(4), cfg=cfg, truncated=0.99) == []


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"valid": False}, "no rollout has a verdict"),
        ({"rewards": np.zeros((2, 3))}, "every reward is 0: the reward is flat"),
        ({"rewards": np.ones((2, 3))}, "every reward is 1: the reward is flat"),
        ({"rewards": [[1, 1], [0, 0]]}, "no group is mixed"),
        ({"truncated": 1.0}, "every response was cut: raise rollout.response_length"),
        ({"trained_tokens": 0.0, "informed": 0.0}, "masked because no context shows a peer"),
        ({"trained_tokens": 0.0}, "no token carries a signal"),
        (
            {"trained_tokens": 0.0, "informed": 0.0, "rows_left_out": 1.0},
            "peers.targets='all', no_success='failures'.* leave every row out",
        ),
        (
            {"trained_tokens": 0.0, "informed": 0.0, "peers_dropped": 3},
            "3 peers were chosen and none fits",
        ),
        (
            {"trained_tokens": 0.0, "informed": 0.0, "peers_without_text": 5},
            "5 rollouts have no text but their thoughts",
        ),
        ({"trained_tokens": 0.0, "informed": 0.0, "cfg": GRPO}, "every advantage is 0"),
        ({"trained_tokens": 0.0, "cfg": method("dpo")}, "so there is no pair"),
        ({"trained_tokens": 0.0, "cfg": method("simpo")}, "so there is no pair"),
        ({"trained_tokens": 0.0, "cfg": method("sft")}, "no response may be imitated"),
        (
            {"trained_tokens": 0.0, "mixed_groups": 0.0, "cfg": WEIGHED},
            r"groups of one outcome the weight p \(1 - p\) = 0",
        ),
        (
            {"gradient_finite": 0.0, "update_applied": 0.0},
            "a gradient was not finite, so the update was skipped",
        ),
        (
            {"gradient_finite": 0.75, "update_applied": 0.75},
            "25% of the updates had a gradient not finite",
        ),
        ({"update_applied": 0.5}, "50% of the updates had nothing to train on"),
    ],
)
def test_each_cause_alone(given, cause):
    (found,) = causes(**given)
    assert re.search(cause, found)


@pytest.mark.parametrize("variant", ["opd", "gkd"])
def test_rewards_that_nobody_reads_are_no_cause(variant):
    cfg = from_config_dict(Config, methods.apply(defaults(), variant))
    assert causes(np.ones((2, 3)), cfg=cfg, informed=0.0) == []


def test_rows_without_a_verdict_are_no_reward():
    # What is left is flat, though the array is not.
    (found,) = causes([[1.0, 0.0], [1.0, 0.0]], valid=[[True, False], [True, False]])
    assert "every reward is 1" in found


def test_causes_add_up():
    found = causes(np.zeros((2, 3)), truncated=1.0, trained_tokens=0.0, informed=0.0)
    assert len(found) == 3


def warned(caplog, **values):
    with caplog.at_level(logging.WARNING, logger="mopd"):
        rewards = np.zeros((1, 2))
        valid = np.ones((1, 2), bool)
        alarms.Alarms(Config()).warn(7, {**HEALTHY, **values}, Outcomes(rewards, valid, ~valid))
    return caplog.messages


def test_a_warning_is_loud_where_nothing_was_trained(caplog):
    (message,) = warned(caplog, update_applied=0.0)
    assert message.startswith("WARNING step 7: NOTHING WAS TRAINED. every reward is 0")


def trend(count=alarms.WINDOW, cfg=None, **values):
    fine = {"solve_rate": 0.4, "truncated": 0.1, "entropy": 0.7, "verifier_errors": 0}
    steps = [{**fine, "sampler_scorer_gap": 1e-6, **values}] * count
    return alarms.trends(steps, cfg or Config())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"solve_rate": 0.0}, "solve rate 0.00 for 20 steps: no rollout succeeds"),
        ({"truncated": 0.75}, "75% of the responses cut for 20 steps: .*response_length"),
        ({"entropy": 0.004}, "entropy 0.004 nats for 20 steps: .*learning_rate"),
        (
            {"sampler_scorer_gap": 0.02},
            "sampler_scorer_gap 0.0200 nats for 20 .*float32",
        ),
        ({"verifier_errors": 64}, "64 rollouts a step without a verdict for 20 steps"),
    ],
)
def test_a_trend_says_what_to_do(values, text):
    assert trend() == {}
    ((name, found),) = trend(**values).items()
    assert name in values and re.match(text, found)
    assert trend(alarms.WINDOW - 1, **values) == {}


def test_a_gap_that_bfloat16_explains_is_no_trend():
    cfg = Config(model=ModelConfig(compute_dtype="bfloat16"))
    assert trend(cfg=cfg, sampler_scorer_gap=0.02) == {}
    # On rollouts of a file the gap has another name, and is no fault.
    steps = [{"solve_rate": 0.4, "off_policy_gap": 2.0}] * alarms.WINDOW
    assert alarms.trends(steps, Config()) == {}


def test_one_better_step_ends_a_trend():
    bad, good = {"solve_rate": 0.0}, {"solve_rate": 0.01}
    assert alarms.trends([bad] * 19 + [good], Config()) == {}
    assert alarms.trends([bad] * 20, Config())


def test_a_lasting_trend_is_said_once_in_a_window(caplog):
    told = alarms.Alarms(Config())
    outcomes = Outcomes(MIXED, np.ones(MIXED.shape, bool), MIXED >= 1)
    with caplog.at_level(logging.WARNING, logger="mopd"):
        for step in range(1, 2 * alarms.WINDOW + 1):
            told.warn(step, {**HEALTHY, "solve_rate": 0.0}, outcomes)
    assert [m.split(":")[0] for m in caplog.messages] == ["WARNING step 20", "WARNING step 40"]


def test_a_warning_does_not_claim_more(caplog):
    (message,) = warned(caplog)
    assert message.startswith("WARNING step 7: every reward is 0")
