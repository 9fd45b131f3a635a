"""Any text gets a verdict: nothing raises, hangs, or leaves processes or files open."""

import dataclasses
import json
import os
import pathlib
import time

import psutil
import pytest
import wants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mopd_jax import codebook, verifiers
from mopd_jax.records import Problem, Verdict
from mopd_jax.verifiers.mathematics import rules, worker
from mopd_jax.verifiers.mathematics.pool import Pool

TURN = ({"role": "user", "content": "What?"},)
# What texts are made of, separated by spaces.
PIECES = {
    "math": r"""
        \boxed{ \boxed \fbox{ } { \frac \frac{1}{2} \sqrt \{ \} \left( \right) \pm \cup \infty
        \text{cm} \begin{pmatrix} \end{pmatrix} & \\ \int_0^1 \sum_{k=1}^n \log \sin x y i e
        0 1 7 12 1,000 0.5 . , ; + - * / ^ ^{ _ ! ( ) [ ] | = < \le \% % $ \$ \( \) \in
        \overline{3} ^\circ \pi π √ ½ ² − dollars or and""",
    "choice": r"""
        <answer> </answer> <answer A B C D a b . ) ( : ** ` _ Answer: answer is option and or
        not \boxed{ \text{ } / & + - the value""",
    "tools": r"""
        Action: Action Input: action_input: f g { } [ ] , : true null NaN 1 1.0 1e999 " "a"
        "a": \u00 \ {} {"a":1} ``` ```json <think> </think> Observation: **""",
}
GOLDS = {
    "math": ["5", r"\frac{1}{2}", r"\sqrt{2}x+1", r"\{1, \sqrt{3}\}", r"(1,\infty)", r"50\%"],
    "choice": ["A", "C"],
    "tools": [json.dumps([{"Action": "f", "Action_Input": '{"a": 1}'}])],
}
WRAPPED = {
    "math": r"so \boxed{%s}",
    "choice": "<answer>%s</answer>",
    "tools": "Action: f\nAction Input: %s",
}


def responses(name):
    glue = st.sampled_from(["", " ", "\n"])
    pieces = st.lists(st.tuples(st.sampled_from(PIECES[name].split()), glue), max_size=12)
    made = pieces.map(lambda parts: "".join(piece + g for piece, g in parts))
    wild = st.text(
        st.characters(exclude_categories=()), max_size=200
    )  # Surrogates and controls, too.
    inner = made | wild
    return st.one_of(inner, inner.map(lambda text: WRAPPED[name].replace("%s", text)))


def examples(count):
    """So many, the same at every run, however long they take."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def check_left(before):
    """What other tests left may end meanwhile; nothing may be added."""
    now = leftovers()
    assert now[0] <= before[0]
    assert all(a <= b for a, b in zip(now[1:], before[1:], strict=True))


def leftovers():
    me = psutil.Process()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return {p.pid for p in me.children(recursive=True)}, files, me.num_threads()


@pytest.fixture
def quick_pool(monkeypatch):
    """A pool whose limit lets thousands of endless formulas pass by."""
    pool = Pool(pathlib.Path(worker.__file__), size=1, cpu_seconds=0.5, wall_seconds=60.0)
    monkeypatch.setattr(rules, "POOL", pool)
    yield pool
    pool.close()


def run(name, count, pool):
    before = leftovers()
    undecided = []

    @examples(count)
    @given(gold=st.sampled_from(GOLDS[name]), response=responses(name))
    def check(gold, response):
        begun = time.monotonic()
        problem = Problem("p", TURN, gold, name)
        # The verifier itself, not the boundary that would catch what it raises.
        verdict = verifiers.VERIFIERS[name](problem, response)
        assert isinstance(verdict, Verdict)
        assert verdict.reward in (0.0, 1.0)
        assert isinstance(verdict.format_ok, bool)
        assert not verdict.feedback_has_gold
        assert verdict.answer is None or verdict.answer != ""
        if verdict.error:
            assert "CPU time" in verdict.error or "memory" in verdict.error
            undecided.append(response)
        assert time.monotonic() - begun < 60

    check()
    pool.close()
    check_left(before)
    return undecided


@pytest.mark.parametrize("name", PIECES)
def test_any_text_gets_a_verdict(name, quick_pool):
    undecided = run(name, 300, quick_pool)
    assert len(undecided) < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_ten_thousand_texts_get_a_verdict(name, quick_pool):
    undecided = run(name, 10_000, quick_pool)
    assert len(undecided) < 200


def check_texts(name, problem, count):
    """The verifiers that need no process of their own; they are quick."""
    judge = verifiers.VERIFIERS[name]
    words = [*PIECES["choice"].split(), *PIECES["math"].split(), "<think>", "</think>"]
    words += ["r0", "r9", "d07", *"0123456789", problem.answer]
    glue = st.sampled_from(["", " ", "\n"])
    made = st.lists(st.tuples(st.sampled_from(words), glue), max_size=12).map(
        lambda parts: "".join(piece + g for piece, g in parts)
    )
    wild = st.text(st.characters(exclude_categories=()), max_size=200)
    before = leftovers()

    @examples(count)
    @given(response=st.one_of(made, wild, made.map(lambda text: f"<answer>{text}</answer>")))
    def check(response):
        begun = time.monotonic()
        verdict = judge(problem, response)
        assert isinstance(verdict, Verdict)
        assert 0.0 <= verdict.reward <= 1.0
        assert not verdict.error and not verdict.feedback
        # Of the response alone, so another gold answer does not change it.
        other = dataclasses.replace(problem, answer="another gold")
        assert verdict.answer != "" and verdict.answer == judge(other, response).answer
        assert time.monotonic() - begun < 60

    check()
    check_left(before)


def plain_problem(name):
    if name == "codebook":
        return codebook.problems("eval", seed=0)[0]
    if name == "exact":
        return Problem("p", TURN, "a b", "exact")
    gym = wants.importing("reasoning_gym")
    entry = gym.create_dataset("spell_backward", size=1, seed=0)[0]
    meta = {"task": "spell_backward", "entry": entry}
    return Problem("p", TURN, str(entry["answer"]), name, meta)


PLAIN = ["codebook", "exact", "reasoning_gym"]


def test_every_verifier_is_fuzzed():
    # Programs are in tests/test_code_tests.py.
    assert {*PIECES, *PLAIN, "code"} == set(verifiers.VERIFIERS)


@pytest.mark.parametrize("name", PLAIN)
def test_any_text_gets_a_plain_verdict(name):
    check_texts(name, plain_problem(name), 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_ten_thousand_texts_get_a_plain_verdict(name):
    check_texts(name, plain_problem(name), 10_000)


@pytest.mark.parametrize("name", PLAIN)
def test_thoughts_are_not_read(name):
    problem = plain_problem(name)
    right = problem.solution or f"<answer>{problem.answer}</answer>"
    judge = verifiers.VERIFIERS[name]
    assert judge(problem, right).reward == 1.0
    assert judge(problem, f"<think>no {right}x</think>{right}").reward == 1.0
    assert judge(problem, right).answer == problem.answer
    assert judge(problem, f"<think>{right}").answer is None
    for response in (f"<think>{right}</think>", f"<think>{right}", f"{right}</think> no"):
        assert judge(problem, response).reward < 1.0


HUGE = 200_000
SHAPES = [
    "{",
    "}",
    "(",
    "[",
    "\\",
    "$",
    "\n",
    " ",
    "-",
    "9",
    "\x00",
    "\ud800",
    "\ufdfa",
    "\\boxed{",
    "\\boxed ",
    "\\frac",
    "^(",
    "<answer>",
    "</answer>",
    "answer is ",
    "B. ",
    "\\text{",
    "Action: f\n",
    "Action Input:\n",
    "Action: f\nAction Input: {\n",
    '{"a":',
    "</think>",
]


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("piece", SHAPES)
def test_huge_texts_take_a_moment(name, piece):
    text = piece * (HUGE // len(piece))
    for response in (text, WRAPPED[name].replace("%s", text)):
        begun = time.process_time()
        verdict = verifiers.VERIFIERS[name](Problem("p", TURN, GOLDS[name][0], name), response)
        assert verdict.reward == 0.0
        assert time.process_time() - begun < 3.0
