"""The self-test of verifiers on items: gold answers score 1, wrong answers 0."""

import json
import math

import pytest

from mopd_jax.errors import InputError
from mopd_jax.records import Problem
from mopd_jax.verifiers import selftest

TURN = ({"role": "user", "content": "What?"},)
CALLS = [
    {"Action": "f", "Action_Input": '{"a": 1, "b": {"c": [1.5, "x"]}}'},
    {"Action": "g", "Action_Input": {}},
]


def item(name, answer, verifier, **meta):
    return Problem(name, TURN, answer, verifier, meta)


GOOD = [
    item("letter", "B", "choice", options={"A": "x", "B": "y"}),
    item("line", "C", "choice", format="line"),
    item("calls", json.dumps(CALLS), "tools"),
    item("ordered", json.dumps(CALLS), "tools", order="exact"),
    item("word", "yes", "exact"),
    item("integer", "12", "math"),
    item("fraction", r"\frac{1}{2}", "math"),
    item("percent", r"50\%", "math"),
    item("root", r"2\sqrt{2}", "math"),
    item("set", r"\{1, \sqrt{2}\}", "math"),
    item("interval", r"(1, \infty)", "math"),
    item("infinity", r"\infty", "math"),
    item("text", r"\text{No}", "math"),
    item("equation", "x^2 + y^2 = 1", "math"),
    item("matrix", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "math"),
]
NO_LETTER = item("bad-letter", "BC", "choice")
NO_CALLS = item("bad-calls", "f(1)", "tools")
OPEN = item("open-brace", r"\frac{1", "math")
UNREADABLE = item("unreadable", r"p \to q", "math")
OTHER = item("codebook", "r0 1 2 3", "codebook")


def test_good_items_pass_and_the_ceiling_is_one():
    found = selftest.selftest(GOOD, threads=2)
    assert found.summary() == {
        "ceiling": 1.0,
        "tested": len(GOOD),
        "gold_failed": 0,
        "unsound": 0,
        "untested": 0,
        "kept": len(GOOD),
    }
    assert found.kept == tuple(GOOD)


def test_items_are_listed_and_left_out_by_name():
    rows = [GOOD[0], NO_LETTER, NO_CALLS, OPEN, UNREADABLE, OTHER]
    found = selftest.selftest(rows, policy="exclude")
    assert [name for name, _ in found.failed] == ["bad-letter", "bad-calls", "open-brace"]
    assert [name for name, _ in found.unsound] == ["unreadable"]
    assert found.untested == ("codebook",)
    assert found.kept == (GOOD[0], OTHER)
    assert found.ceiling == pytest.approx(2 / 5)
    assert "not one letter" in found.failed[0][1]
    kept = selftest.selftest(rows, policy="keep")
    assert kept.kept == tuple(rows)
    assert kept.failed == found.failed


def test_the_default_policy_raises_with_the_ids():
    with pytest.raises(
        selftest.SelfTestError, match=r"1 of 2 .*ceiling 0\.5000[\s\S]*bad-calls"
    ):
        selftest.selftest([GOOD[0], NO_CALLS])


def test_a_verifier_that_lets_everything_pass_is_unsound(monkeypatch):
    from mopd_jax import verifiers
    from mopd_jax.records import Verdict

    monkeypatch.setitem(verifiers.VERIFIERS, "exact", lambda problem, text: Verdict(1.0))
    found = selftest.selftest([item("word", "yes", "exact")], policy="keep")
    assert "scores 1" in found.unsound[0][1]


def test_many_failures_are_counted_and_cut():
    rows = [item(f"row{i}", "BC", "choice") for i in range(30)]
    with pytest.raises(selftest.SelfTestError, match="and 10 more"):
        selftest.selftest(rows)


def test_nothing_to_test():
    assert math.isnan(selftest.selftest([OTHER]).ceiling)
    with pytest.raises(InputError, match="error, exclude, keep"):
        selftest.selftest([], policy="drop")


def test_an_item_without_a_gold_response_is_untested(monkeypatch):
    class Sometimes:
        def gold_response(self, problem):
            return f"<answer>{problem.answer}</answer>" if problem.answer else None

        def mutated(self, problem):
            return ("<answer></answer>x",)

    monkeypatch.setitem(selftest.WITH_GOLD, "exact", Sometimes())
    found = selftest.selftest([item("has", "yes", "exact"), item("none", "", "exact")])
    assert (found.tested, found.untested, len(found.kept)) == (1, ("none",), 2)
