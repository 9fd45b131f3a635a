"""Plans of peers and of controls, recorded: every draw stays what it was.

`tests/golden/peer_plans.json` has one line a case, made before plans were tuples of entries.
An entry is written as heading (S, F, N, s, f for success, failure, neutral and the two
summaries), prompt.rollout, and its verified outcome (+ or -).
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from mopd_jax.config import PeerConfig
from mopd_jax.contexts import controls, peers

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden/peer_plans.json").read_text(encoding="utf-8")
)
LETTERS = {
    "success": "S",
    "failure": "F",
    "neutral": "N",
    "summary_success": "s",
    "summary_failure": "f",
}

# Four prompts of six rollouts: mixed twice, one success, all failed. Prompts 1 and 3 ask alike.
SUCCESS = np.array([[1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6], bool)
ELIGIBLE = np.array([[1] * 6, [1, 1, 1, 1, 0, 1], [1] * 6, [1, 0, 1, 1, 1, 1]], bool)
TEXTS = [
    ["a b c d", "a b c e", "a b c d", "x y z d", "a b c e", "p q"],
    ["u v w", "u v", "u w v", "v w", "w", "u v w x"],
    ["k l m", "l m n", "m n o", "n o p", "o p q", "k l m"],
    ["g", "h i", "i j", "h i j", "j", "g h i j"],
]
TOKENS = np.array(
    [
        [40, 43, 40, 61, 43, 22],
        [33, 21, 34, 20, 0, 45],
        [30, 31, 32, 33, 34, 30],
        [10, 20, 0, 30, 11, 41],
    ]
)
UIDS = [907, 12, 55, 300]
QUESTIONS = ["q0", "q1", "q2", "q1"]


def cases():
    """Names of all cases, with seed, step and settings."""
    rules = ("first", "uniform", "shortest", "longest", "most_similar", "least_similar")
    plain = [{"rule": rule} for rule in rules]
    plain += [{"rule": rule, "exclude": "text"} for rule in ("uniform", "most_similar")]
    plain += [
        {"rule": "first", "failure_rule": "uniform", "failures": 2},
        {"rule": "uniform", "failure_rule": "longest", "successes": 1, "failures": 3},
        {"successes": 3, "failures": 3, "slots": 4},
        {"successes": 1, "failures": 1, "slots": 1},
        {"successes": 0, "failures": 2},
        {"successes": 1, "failures": 1, "summaries": 2, "summary_source": "all"},
        {"successes": 1, "failures": 0, "summaries": 3, "summary_source": "failure"},
        {"successes": 2, "failures": 1, "summaries": 1, "exclude": "text"},
    ]
    filled = []
    for control in controls.CONTROLS:
        matches = ("block",) if control in ("shuffled", "shell") else ("block", "token")
        for match in matches:
            one = {"control": control, "control_match": match}
            filled.append({**one, "failures": 2})
            filled.append({**one, "rule": "longest", "slots": 3, "exclude": "text"})
            filled.append({**one, "successes": 3, "failures": 3, "failure_rule": "first"})
    keys = ((0, 1), (3, 17))
    for settings in plain + filled:
        for seed, step in keys:
            name = " ".join(f"{key}={value}" for key, value in settings.items())
            yield f"{name} seed={seed} step={step}", seed, step, settings


CASES = list(cases())


def written(entry):
    return f"{LETTERS[entry.kind]}{entry.prompt}.{entry.rollout}{'-+'[entry.succeeded]}"


def test_every_case_is_recorded():
    assert [name for name, *_ in CASES] == list(GOLDEN)


@pytest.mark.parametrize(
    ("name", "seed", "step", "settings"), CASES, ids=[name for name, *_ in CASES]
)
def test_a_recorded_plan(name, seed, step, settings):
    cfg = PeerConfig(**settings)
    rows = np.ones(SUCCESS.shape, bool)
    rows[0, 5] = False  # Left out: it draws nothing.
    candidates = peers.Candidates(SUCCESS, ELIGIBLE, TEXTS, TOKENS, UIDS)
    keys = {"seed": seed, "step": step, "cfg": cfg, "rows": rows}
    want = GOLDEN[name]
    if cfg.control == "off":
        plan = peers.choose(candidates, **keys)
    else:
        plan, match = controls.choose(candidates, **keys, tokens=TOKENS, questions=QUESTIONS)
        zeros = np.zeros(SUCCESS.shape, int).tolist()
        for field in dataclasses.fields(match):
            got = getattr(match, field.name)
            assert got.dtype == np.int64
            assert got.tolist() == want["match"].get(field.name, zeros)
    texts = [" | ".join(" ".join(map(written, row)) for row in group) for group in plan.entries]
    assert texts == want["rows"]
    bare = np.array(want.get("bare", np.zeros(SUCCESS.shape)), bool)
    np.testing.assert_array_equal(plan.bare, bare)
    some = [[bool(row) for row in group] for group in plan.entries]
    np.testing.assert_array_equal(plan.informed(), np.array(some) | bare)
