"""The code verifier: what a program is, what a right output is, and nothing else passes."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import types

import forging_programs
import hypothesis
import legitimate_programs
import numpy as np
import pytest
import sandbox_yard
from hypothesis import strategies as st
from sandbox_yard import open_or_skip

from mopd_jax import config, experience, verifiers
from mopd_jax.config import Config
from mopd_jax.records import Problem, Verdict
from mopd_jax.run import opening
from mopd_jax.sandbox import Outcome, Program
from mopd_jax.verifiers import code_tests, programs, selftest


@pytest.fixture(scope="module", params=["namespaces", "limits"])
def box(request):
    with open_or_skip(request.param, cpu_seconds=4.0, wall_seconds=240.0, workers=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def any_box():
    """The weaker level: for tests of what happens outside."""
    with open_or_skip("limits", workers=2) as opened:
        yield opened


def problem(*tests, fn_name=None, **meta):
    """A problem of (input, output) pairs."""
    rows = [{"input": given, "output": wanted} for given, wanted in tests]
    return Problem("p", (), "", "code", {"tests": rows, "fn_name": fn_name, **meta})


def fenced(source):
    return f"I think this is it.\n\n```python\n{source}\n```\n"


# --- right programs pass, wrong ones do not


@pytest.mark.parametrize("name", legitimate_programs.SCRIPTS)
def test_legitimate_script_passes(box, name):
    source, given, wanted = legitimate_programs.SCRIPTS[name]
    verdict = verifiers.verify(problem((given, wanted)), fenced(source), sandbox=box)
    assert (verdict.reward, verdict.test_fraction, verdict.error) == (1.0, 1.0, ""), verdict


@pytest.mark.parametrize("name", legitimate_programs.FUNCTIONS)
def test_legitimate_function_passes(box, name):
    source, given, wanted = legitimate_programs.FUNCTIONS[name]
    task = problem((given, wanted), fn_name="answer")
    verdict = verifiers.verify(task, fenced(source), sandbox=box)
    assert (verdict.reward, verdict.test_fraction, verdict.error) == (1.0, 1.0, ""), verdict


@pytest.mark.parametrize("name", forging_programs.FUNCTIONS)
def test_forging_function_fails(box, name):
    task = problem(("5", '"HIDDEN-EXPECTED-7"'), ("6", "[[1], 2]"), fn_name="answer")
    verdict = verifiers.verify(task, fenced(forging_programs.FUNCTIONS[name]), sandbox=box)
    assert (verdict.reward, verdict.test_fraction, verdict.error) == (0.0, 0.0, ""), verdict
    assert "HIDDEN" not in verdict.feedback


@pytest.mark.parametrize("name", forging_programs.SCRIPTS)
def test_forging_script_fails(box, name):
    task = problem(("5", "HIDDEN-EXPECTED-7"), ("6", "0"))
    verdict = verifiers.verify(task, fenced(forging_programs.SCRIPTS[name]), sandbox=box)
    assert (verdict.reward, verdict.test_fraction, verdict.error) == (0.0, 0.0, ""), verdict
    assert "HIDDEN" not in verdict.feedback


@pytest.mark.parametrize(
    "name",
    [
        *("result_without_an_end", "raises_the_answer", "killed_after_its_result"),
        *("finaliser", "exit_call", "several_results", "exits_early", "deep_by_hand"),
    ],
)
def test_the_right_answer_by_the_wrong_way_fails(box, name):
    task = problem(("5", "0"), fn_name="answer")
    verdict = verifiers.verify(task, fenced(forging_programs.FUNCTIONS[name]), sandbox=box)
    assert (verdict.reward, verdict.error) == (0.0, "")


def test_every_test_is_run_and_counts(any_box):
    task = problem(*[(str(n), str(n * n)) for n in range(5)])
    source = "n = int(input())\nprint(n * n if n % 2 else 1 // n)"
    verdict = verifiers.verify(task, fenced(source), sandbox=any_box)
    assert (verdict.reward, verdict.test_fraction) == (0.0, 0.4)
    assert verdict.feedback == (
        "Passed 2 of 5 tests.\nTest 1: it ended with an error at line 2: ZeroDivisionError."
    )


def test_verdicts_by_default_need_no_sandbox_from_outside():
    open_or_skip("namespaces").close()
    verdict = verifiers.verify(problem(("2", "4")), fenced("print(int(input()) * 2)"))
    assert (verdict.reward, verdict.error) == (1.0, "")


def test_programs_have_no_answer_to_compare(any_box):
    task = problem(("2", "4"))
    for response in (fenced("print(int(input()) * 2)"), fenced("print(4"), "4"):
        verdict = verifiers.verify(task, response, sandbox=any_box)
        assert verdict.answer is None and verifiers.vote(task, verdict) is None


# --- feedback


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("print(1)", "Test 1: wrong answer."),
        ("import os\nos._exit(3)", "Test 1: it ended with an error."),
        ("while True: pass", "Test 1: it used more CPU time than allowed."),
        ("import time\ntime.sleep(99)", "Test 1: it slept or waited"),
        ("x = 'x' * 10 ** 12", "at line 1: MemoryError"),
        ("while True: print('x' * 999)", "Test 1: it wrote more than allowed."),
        ("def f(:", "at line 1: SyntaxError."),
        ("raise ValueError('a\\nb\\x1b[2J')", "at line 1: ValueError."),
        ("class Own(Exception): pass\nraise Own('x')", "with an error at line 2."),
    ],
)
def test_feedback_says_what_went_wrong_and_not_what_is_right(any_box, source, message):
    task = problem(("5", "THE-GOLD"), time_limit=0.5)
    verdict = verifiers.verify(task, fenced(source), sandbox=any_box)
    assert verdict.reward == 0.0 and not verdict.feedback_has_gold
    assert message in verdict.feedback and "THE-GOLD" not in verdict.feedback
    assert len(verdict.feedback) < 600


@pytest.mark.parametrize(
    "source",
    [
        "raise Exception(text)",
        "raise type(text, (Exception,), {})",
        "sys.exit(text)",
        "sys.stderr.write(text)\nsys.exit(1)",
        "sys.stderr.write(f'File \"<program>\", line {text}\\n')\nsys.exit(1)",
        "print(text)\n1 / 0",
    ],
)
@pytest.mark.parametrize("hidden", ["HIDDEN", "31337"])
def test_a_program_cannot_write_a_hidden_input_into_the_feedback(any_box, source, hidden):
    task = problem((hidden, "THE-GOLD"))
    response = fenced(f"import sys\ntext = sys.stdin.read()\n{source}")
    verdict = verifiers.verify(task, response, sandbox=any_box)
    assert (verdict.reward, verdict.feedback_has_gold) == (0.0, False)
    assert verdict.feedback and hidden not in verdict.feedback


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('a\\nb\\x1b[2J')", "at line 1: b [2J."),
        ("raise ValueError('x' * 9999)", "[... cut]."),
        ("import os\nos._exit(3)", "it ended with an error."),
    ],
)
def test_a_problem_may_ask_for_the_disclosing_feedback(any_box, source, message):
    task = problem(("5", "THE-GOLD"), feedback="gold")
    verdict = verifiers.verify(task, fenced(source), sandbox=any_box)
    assert verdict.feedback_has_gold
    assert message in verdict.feedback and verdict.feedback.endswith("THE-GOLD")
    told = code_tests.verify(task, fenced(source), sandbox=any_box, feedback="kind")
    assert not told.feedback_has_gold and "THE-GOLD" not in told.feedback
    wrong = problem(("5", "7"), feedback="all")
    assert "'kind' or 'gold'" in verifiers.verify(wrong, "x", sandbox=any_box).error


def test_feedback_with_gold_is_asked_for_by_name_and_declared(any_box):
    for task, gold in (
        (problem(("5", "THE-GOLD")), "THE-GOLD"),
        (problem(("5", '"THE-GOLD"'), fn_name="f"), '"THE-GOLD"'),
    ):
        verdict = code_tests.verify(
            task, fenced("x = 1"), sandbox=any_box, feedback="with_gold"
        )
        assert verdict.feedback_has_gold and verdict.feedback.endswith(gold)
    right = code_tests.verify(
        problem(("", "1")), fenced("print(1)"), sandbox=any_box, feedback="with_gold"
    )
    assert (right.feedback, right.feedback_has_gold) == ("", False)


def test_a_response_without_a_program_is_told_so(any_box):
    for response in (
        "",
        "print(1)",
        "```c++\nint main() {}\n```",
        f"```py\n{'x' * 200_001}\n```",
    ):
        verdict = verifiers.verify(problem(("", "1")), response, sandbox=any_box)
        assert (verdict.reward, verdict.test_fraction, verdict.error) == (0.0, 0.0, "")
        assert verdict.format_ok is False and "program" in verdict.feedback


# --- errors are neither success nor failure


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "has no tests"),
        ({"tests": []}, "has no tests"),
        ({"tests": "x"}, "has no tests"),
        ({"tests": [1]}, "test 1 is a int"),
        (
            {"tests": [{"input": "", "output": ""}, {"input": 1, "output": ""}]},
            "test 2: 'input'",
        ),
        ({"tests": [{"input": "", "output": "", "testtype": "x"}]}, "'x' is neither"),
        ({"tests": [{"input": "", "output": "", "testtype": "functional"}]}, "'fn_name'"),
        ({"tests": [{"input": "1 2", "output": "1"}], "fn_name": "f"}, "not JSON"),
        ({"tests": [{"input": "1", "output": "x"}], "fn_name": "f"}, "not JSON"),
        ({"tests": [{"input": "1", "output": "1"}], "fn_name": "f()"}, "'f()'"),
        ({"tests": [{"input": "", "output": ""}], "time_limit": "1 s"}, "'1 s'"),
        ({"tests": [{"input": "", "output": "x" * 300_000}]}, "sandbox.output_kb"),
    ],
)
def test_tests_that_cannot_be_used_are_an_error(any_box, meta, message):
    verdict = verifiers.verify(Problem("p", (), "", "code", meta), fenced(""), sandbox=any_box)
    assert verdict.reward == 0.0 and message in verdict.error


@pytest.mark.parametrize("kind", ["starved", "broken"])
def test_what_the_machine_did_is_an_error(kind):
    class Box:
        output_kb, slow_tests = 1, None

        def run(self, program):
            right = program.stdin == "1"
            return Outcome("ok", b"1\n") if right else Outcome(kind, detail="of late")

    verdict = verifiers.verify(problem(("1", "1"), ("2", "2")), fenced("x"), sandbox=Box())
    assert verdict.error == f"test 2: sandbox {kind} of late"


# --- the program in a response


@pytest.mark.parametrize(
    ("response", "source", "well_formed"),
    [
        ("```python\na\n```", "a", True),
        ("```python \na\n```", "a", True),
        ("``` Python3\na\n```", "a", True),
        ("```py\na\n```", "a", True),
        ("```{python}\na\n```", "a", True),
        ("```{.python .numberLines}\na\n```", "a", True),
        ('```python title="x.py"\na\n```', "a", True),
        ("~~~python\na\n~~~", "a", True),
        ("````python\na\n```\nb\n````", "a\n```\nb", True),
        ("```\na\n```", "a", True),
        ("```python\na", "a", False),
        ("```python\na\n```\nor\n```python\nb", "b", False),
        ("```python\nlonger\n```\n```python\nb\n```", "b", True),
        ("```python\na\n```\n```\noutput\n```", "a", True),
        ("```python\na\n```\n```text\noutput\n```", "a", True),
        ("```c++\na\n```", None, False),
        ("```cpp\nint\n```\n```\na\n```", "a", True),
        ("```python\n```\n```python\na\n```\n```python\n \n```", "a", True),
        ("1. so\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b", True),
        ("```python\r\na\r\nb\r\n```\r\n", "a\nb", True),
        ("```python\n\ufeffa = '\ufeff'\n```", "a = '\ufeff'", True),
        ("```python\nx = '''\n```'''\n```", "x = '''\n```'''", True),
        ("use `x` or ```inline``` here", None, False),
        ("```python a``` b", None, False),
        ("no program", None, False),
        ("", None, False),
        ("```", None, False),
        ("```python", None, False),
    ],
)
def test_extraction(response, source, well_formed):
    assert programs.extract(response) == (source, well_formed)


def test_extraction_takes_linear_time():
    begun = time.process_time()
    for text in (
        "```" + " " * 200_000 + "x",
        "```\n" * 50_000,
        "`" * 200_000,
        "~" * 3 + "{" * 200_000,
    ):
        programs.extract(text)
    assert time.process_time() - begun < 2.0


# --- right outputs


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2 \n3\t\n\n\n", "1 2\n3", True),
        ("\n\n1", "1", True),
        ("1\r\n2\r\n", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        ("1\n2", "1\n\n2", False),
        ("1 2", "1\n2", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        (" a", "a", True),
        ("  *\n ***\n*****\n", "*\n ***\n*****", True),
        ("*\n ***", "\n\n  *\n ***", True),
        ("  *\n***", "  *\n ***", False),
        ("*\n  ***", "*\n ***", False),
        ("a ", "a", True),
        ("Yes", "YES", False),
        ("-", "-", True),
        ("a-", "a-", True),
        ("a", "a-", False),
        ("0.3333333", "0.33333333333", True),
        ("0.33", "0.33333333", False),
        ("1000000.5", "1000000.9", True),
        ("1.0", "1", True),
        ("1", "1.0", True),
        ("1.0000001", "1", False),
        ("1000000000000000000001", "1000000000000000000000", False),
        ("1e3", "1000", True),
        ("1.0000001", "1.0", True),
        ("1.00001", "1.0", False),
        ("-0.0", "0", True),
        ("007", "7", False),
        ("101", "0101", False),
        ("1_000", "1000", False),
        ("\u0661", "1", False),
        ("nan", "1.0", False),
        ("inf", "1e99", False),
        ("x 1.0", "x 1", True),
        ("Case #1: 2.50", "Case #1: 2.5", True),
        ("", "", True),
        ("\n \n", "", True),
        ("0", "", False),
        ("", "0", False),
    ],
)
def test_comparison_of_outputs(found, expected, right):
    assert programs.same_output(found, expected) is right


def test_the_tolerance_is_the_problems(any_box):
    for tolerance, reward in ((None, 1.0), (0, 0.0), (0.1, 1.0)):
        task = problem(("", "0.5"), float_tolerance=tolerance)
        verdict = verifiers.verify(task, fenced("print(0.5000001)"), sandbox=any_box)
        assert verdict.reward == reward


@pytest.mark.parametrize(
    ("found", "expected", "right"),
    [
        (1, 1, True),
        (1.0, 1, True),
        (1, 1.0, True),
        (True, 1, True),
        (1, True, True),
        (1.0000001, 1, False),
        (1.0000001, 1.0, True),
        (10**400, 1.5, False),
        ("1", 1, False),
        (1, "1", False),
        (None, 0, False),
        (0, None, False),
        (None, None, True),
        ([], None, False),
        ([1, [2]], [1, [2.0]], True),
        ([1, 2], [1], False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ([["a"]], [["a"]], True),
        ("", [], False),
        ({}, [], False),
    ],
)
def test_comparison_of_values(found, expected, right):
    assert programs.same_value(found, expected) is right


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (b"1\n", True),
        (b'"a"\n', True),
        (b"1", False),
        (b"", False),
        (b"\n", False),
        (b"1\n1\n", False),
        (b"1 2\n", False),
        (b"NaN\n", False),
        (b"[Infinity]\n", False),
        (b"\xff\n", False),
        (b"[" * 10**5 + b"]" * 10**5 + b"\n", False),
        (b"[" * 200 + b"]" * 200 + b"\n", True),
        (b"9" * 5000 + b"\n", False),
    ],
)
def test_a_result_is_one_line_of_json(line, known):
    assert programs.read_result(line)[0] is known


TEXTS = st.text(st.sampled_from("a1 0.-+e\n\t\r`~_#:\u0661\x00\ud800pythonc"), max_size=60)


def check_fuzzed(pieces, found, expected):
    """No exception, and what must hold of any text."""
    response = "".join(pieces)
    source, well_formed = programs.extract(response)
    assert source is None or (source.strip() and isinstance(well_formed, bool))
    assert programs.same_output(expected, expected)
    if programs.same_output(found, expected):
        assert programs.same_output(found, expected, tolerance=0.1)
        assert len(found.split()) == len(expected.split())
    known, value = programs.read_result(found.encode("utf-8", "replace"))
    assert not known or programs.same_value(value, value)
    body = found.replace("`", "").replace("~", "")
    if body.strip():
        wrapped = programs.extract(f"{body}\n```python\n{body}\n```\n{body}")
        lines = [line.removesuffix("\r") for line in body.split("\n")]
        assert wrapped == ("\n".join(lines), True)


PIECES = st.lists(
    st.one_of(TEXTS, st.sampled_from(["```python\n", "```\n", "\n```\n", "~~~", "print(1)\n"])),
    max_size=8,
)
# Words that are equal to many others: numbers in many forms.
NUMBERS = st.lists(
    st.from_regex(r"[+-]?[0-9]{0,3}\.?[0-9]{0,3}(e[0-9]{1,3})?", fullmatch=True), max_size=6
).map(" ".join)


@hypothesis.settings(max_examples=300)
@hypothesis.given(PIECES, st.one_of(TEXTS, NUMBERS), st.one_of(TEXTS, NUMBERS))
def test_fuzzed_text(pieces, found, expected):
    check_fuzzed(pieces, found, expected)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000)
@hypothesis.given(PIECES, st.one_of(TEXTS, NUMBERS), st.one_of(TEXTS, NUMBERS))
def test_fuzzed_text_for_long(pieces, found, expected):
    check_fuzzed(pieces, found, expected)


def run_fuzzed(box, count):
    """Random bytes of programs: there is a verdict on each, and it is not a success."""
    rng = random.Random(0)
    parts = [
        *(
            "print",
            "(",
            ")",
            "[",
            "]",
            ":",
            "\n",
            "  ",
            "1",
            "x",
            "=",
            "for x in ",
            "import os",
        ),
        *(
            "lambda",
            "'",
            '"""',
            "\\",
            "\0",
            "\ud800",
            "é",
            "while 1",
            "def answer(n)",
            "return",
        ),
    ]
    texts = ["".join(rng.choices(parts, k=rng.randrange(1, 30))) for _ in range(count)]
    task = problem(("5", '"HIDDEN"'), fn_name="answer", time_limit=0.3)
    verdicts = verifiers.verify_all(
        [task] * count, [fenced(text) for text in texts], [False] * count, sandbox=box
    )
    assert {(v.reward, v.error) for v in verdicts} == {(0.0, "")}


def test_fuzzed_programs(any_box):
    run_fuzzed(any_box, 60)


@pytest.mark.slow
def test_fuzzed_programs_for_long(box):
    run_fuzzed(box, 10_000)


# --- self-test, batches, load

REFERENCES = [
    problem(("3", "9"), ("4", "16"), solution="n = int(input())\nprint(n * n)"),
    problem(
        ("3", "9"),
        solution="from __future__ import annotations\nprint(int(input()) ** 2)\nexit(0)",
    ),
    problem(("[1, 2]\n3", "6"), fn_name="f", solution="def f(a, b): return sum(a) + b"),
    problem(
        ("[1, 2]\n3", "6"),
        fn_name="f",
        solution="```py\nclass Solution:\n def f(self, a: List, b): return sum(a) + b\n```",
    ),
]


@pytest.mark.parametrize("task", REFERENCES)
def test_references_pass_and_spoiled_ones_fail(any_box, task):
    gold = verifiers.verify(task, code_tests.gold_response(task), sandbox=any_box)
    assert gold.reward == 1.0
    more, other, nothing = (
        verifiers.verify(task, wrong, sandbox=any_box) for wrong in code_tests.mutated(task)
    )
    for spoiled in (more, other, nothing):
        assert (spoiled.reward, spoiled.error) == (0.0, "")
    # They do run, and to the end: what is wrong is what they answer.
    assert "wrong answer" in more.feedback and "wrong answer" in other.feedback


@pytest.mark.parametrize(
    ("printed", "instead"),
    [
        ("9", "30"),
        ("a -3.5e4", "a 105003.0"),
        ("0.01", "3.0300000000000002"),
        ("1e-09", "3.0000000030000002"),
        ("0.0", "3.0"),
        ("12:30", "22:30"),
        ("nan", "nan0"),
        ("yes", "yes0"),
        ("1\n2 NO\n\n", "1\n2 NO0"),
        ("", "0"),
    ],
)
def test_one_value_of_an_output_is_changed(any_box, printed, instead):
    source = f"import sys\nsys.stdout.write({printed!r})\nsys.stdout.buffer.flush()"
    task = problem(("", printed), solution=source)
    _, other, *_ = code_tests.mutated(task)
    outcome = any_box.run(Program(programs.extract(other).source))
    assert (outcome.kind, outcome.stdout.decode()) == ("ok", f"{instead}\n")


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ("1", 6),
        ("-0.5", 4.5),
        ("-1.0", 6.0),
        ("2e300", 0),
        ("10 ** 400", 0),
        ("True", False),
        ("None", True),
        ("'a'", "ax"),
        ("(1, [2])", [1, [2], None]),
        ("{'a': 1}", [{"a": 1}]),
    ],
)
def test_one_value_of_a_result_is_changed(any_box, value, instead):
    task = problem(("1", "1"), fn_name="f", solution=f"def f(x): return {value}")
    _, other, _ = code_tests.mutated(task)
    program = Program(programs.extract(other).source, call="f", arguments="[1]")
    assert json.loads(any_box.run(program).result) == instead


# Names that judges of function tests provide, and that a problem may ask for.
OWN = {
    "add": ("1\n2", "3"),
    "gcd": ("4\n6", "2"),
    "factorial": ("4", "24"),
    "comb": ("4\n2", "6"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_function_must_be_the_programs_own(any_box, name):
    task = problem(OWN[name], fn_name=name)

    def reward(source):
        return verifiers.verify(task, fenced(source), sandbox=any_box).reward

    assert reward("pass") == reward(f"x = {name}(1, 1) if 0 else 0") == 0.0
    home = "operator" if name == "add" else "math"
    assert reward(f"from {home} import {name}") == 1.0
    assert reward(f"class Solution:\n def {name}(self, *a): return {name}(*a)") == 1.0
    assert reward(f"def {name}(*a):\n import {home}\n return {home}.{name}(*a)") == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "return len(sys.argv) and maxsize",
        "import builtins\n builtins.foo = sys.maxsize\n return foo",
        "return json.loads(StringIO(str(sys.maxsize)).read())",
        "sys.setrecursionlimit(9999)\n return __builtins__ and max(1, sys.maxsize)",
        "return eval('gcd(0, sys.maxsize)')",
    ],
)
def test_function_tests_provide_the_names_that_their_judges_import(any_box, body):
    task = problem(("1", str(sys.maxsize)), fn_name="f")
    verdict = verifiers.verify(task, fenced(f"def f(x):\n {body}"), sandbox=any_box)
    assert verdict.reward == 1.0, verdict.feedback


SOUND = {
    "large float": ("[1.5]", "18518517.0", "def f(x): return 12345678.0 * x[0]"),
    "huge float": ("1", "1e+300", "def f(x): return 1e300"),
    "recursion": (
        "3",
        "true",
        "def f(n): return n == 0 or not f(n - 1) if n != 3 else not f(2) or 1 == 1",
    ),
    "static": ("3", "4", "class Solution:\n @staticmethod\n def f(n): return n + 1"),
    "class": ("3", "4", "class Solution:\n @classmethod\n def f(cls, n): return n + 1"),
    "inherited": ("3", "4", "class A:\n def f(self, n): return n + 1\nclass Solution(A): pass"),
    "itself": ("3", "6", "class Solution:\n def f(self, n): return n and n + self.f(n - 1)"),
    "whole for a large float": ("1", "5000000.0", "def f(x): return 5000000"),
    "whole for zero": ("1", "0.0", "def f(x): return 0"),
    "small": ("", "1e-07", "print(1e-7)"),
    "smaller": ("", "1e-09", "print(1e-9)"),
    "large text": ("", "5000000.0", "print(5e6)"),
    "nothing printed": ("0", "\n", "for i in range(int(input())): print(i)"),
    "file of its own": ("", "9", "open(1, 'w').write('9')"),
    "file that ends late": ("", "0", "out = open(1, 'w')\nout.write('0')"),
    "exit of its own": ("", "9", "import os\nos.write(1, b'9')\nos._exit(0)"),
    "wide tolerance": ("", "3.5", "print(3.5)"),
    "small decimal": ("", "0.0000000", "print('0.0000000')"),
    "negative": ("", "-0.05", "print(-0.05)"),
    "futures": (
        "",
        "1",
        "from __future__ import annotations\nfrom __future__ import division\nprint(1)",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_items_pass_their_self_test(any_box, name):
    given, output, source = SOUND[name]
    functional = {"fn_name": "f"} if "def f" in source else {}
    wide = {"float_tolerance": 100} if "wide" in name else {}
    task = problem((given, output), solution=source, **functional, **wide)
    found = selftest.selftest([task], policy="error", sandbox=any_box)
    assert (found.tested, found.ceiling) == (1, 1.0)
    # What is wrong is what they answer, and not that they cannot run.
    for wrong in code_tests.mutated(task)[:2]:
        assert "wrong answer" in verifiers.verify(task, wrong, sandbox=any_box).feedback


def test_a_program_that_does_nothing_is_wrong_unless_nothing_is_right():
    source = "n = int(input())\nif n: print(n)"
    assert len(code_tests.mutated(problem(("0", "\n"), solution=source))) == 2
    assert len(code_tests.mutated(problem(("0", "\n"), ("1", "1"), solution=source))) == 3


def test_a_program_that_loops_is_given_up_after_two_tests(any_box):
    rows = [("1", "1"), ("0", "0"), ("2", "2"), ("0", "0"), ("0", "0"), ("3", "3")]
    source = "n = int(input())\nprint(n)\nwhile n == 0: pass"
    task = problem(*rows, time_limit=0.2)
    verdict = verifiers.verify(task, fenced(source), sandbox=any_box)
    assert (verdict.reward, verdict.test_fraction, verdict.tests_skipped) == (0.0, 2 / 6, 2)
    assert verdict.feedback.startswith("Passed 2 of 6 tests. 2 were not run")
    # As many slow tests as may be, and then no more: nothing is left out.
    verdict = verifiers.verify(
        problem(*rows[:4], time_limit=0.2), fenced(source), sandbox=any_box
    )
    assert (verdict.test_fraction, verdict.tests_skipped) == (0.5, 0)
    with open_or_skip(any_box.level, slow_tests=None, workers=1) as patient:
        verdict = verifiers.verify(task, fenced(source), sandbox=patient)
    assert (verdict.test_fraction, verdict.tests_skipped) == (0.5, 0)


@pytest.mark.parametrize(
    "kind",
    ["cpu", "idle", "hostile", "disk", "error", "memory", "signal SIGKILL", "signal SIGSEGV"],
)
def test_only_what_costs_much_gives_a_program_up(kind):
    class Box:
        output_kb, slow_tests = 1, 1

        def run(self, program):
            name, _, detail = kind.partition(" ")
            bad = Outcome(name, detail=detail)
            return bad if program.stdin == "0" else Outcome("ok", b"1\n")

    task = problem(("1", "1"), ("0", "1"), ("1", "1"), ("1", "1"))
    verdict = verifiers.verify(task, fenced("x"), sandbox=Box())
    slow = kind in ("cpu", "idle", "hostile", "disk", "signal SIGKILL")
    assert (verdict.test_fraction, verdict.tests_skipped) == ((0.25, 2) if slow else (0.75, 0))


def test_a_closed_sandbox_gives_no_verdict():
    box = open_or_skip("limits", workers=1)
    box.close()
    box.close()
    for _ in range(2):
        verdict = verifiers.verify(problem(("", "1")), fenced("print(1)"), sandbox=box)
        assert verdict.error == "test 1: sandbox broken the sandbox is closed"


def test_programs_that_wait_for_a_sandbox_that_is_closed_are_not_run():
    box = open_or_skip("limits", workers=1, cpu_seconds=20.0)
    found = []

    def judge():
        found.append(box.run(Program("import time\ntime.sleep(0.4)")))

    threads = [threading.Thread(target=judge) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    box.close()
    for thread in threads:
        thread.join(30)
    assert sorted(outcome.kind for outcome in found) == ["broken"] * 3 + ["ok"]


def test_rows_with_workers_are_judged_together_and_counted_as_they_finish(monkeypatch):
    both, counted = threading.Barrier(2), threading.Event()

    def judge(problem, response):
        both.wait(timeout=30)
        # The first row ends only when another has been counted.
        if response == "slow" and not counted.wait(timeout=30):
            raise AssertionError("a row waits for its turn to be counted")
        return Verdict(1.0, feedback=response)

    def progress(rows):
        for row in rows:
            yield row
            counted.set()

    monkeypatch.setitem(verifiers.VERIFIERS, "math", judge)
    tasks = [Problem(str(i), (), "7", "math") for i in range(2)]
    done = verifiers.verify_all(tasks, ["slow", "fast"], [False] * 2, progress=progress)
    assert [(v.feedback, v.error) for v in done] == [("slow", ""), ("fast", "")]


def test_without_a_reference_nothing_is_tested():
    assert code_tests.gold_response(problem(("", ""))) is None
    assert code_tests.mutated(problem(("", ""))) == ()
    named = Problem("p", (), "", "code", {}, solution="print(1)")
    assert programs.extract(code_tests.gold_response(named)).source == "print(1)"


def batch():
    rows = []
    for name, (source, given, wanted) in legitimate_programs.SCRIPTS.items():
        rows.append((problem((given, wanted)), fenced(source), f"right script {name}"))
    for name, (source, given, wanted) in legitimate_programs.FUNCTIONS.items():
        task = problem((given, wanted), fn_name="answer")
        rows.append((task, fenced(source), f"right function {name}"))
    for name, source in forging_programs.FUNCTIONS.items():
        task = problem(("5", '"HIDDEN"'), fn_name="answer")
        rows.append((task, fenced(source), f"wrong function {name}"))
    for name, source in forging_programs.SCRIPTS.items():
        rows.append((problem(("5", "HIDDEN")), fenced(source), f"wrong script {name}"))
    return rows


def test_a_batch_is_judged_in_its_order_and_other_verifiers_with_it(any_box):
    exact = Problem("e", (), "7", "exact")
    tasks, texts = [], []
    for n in range(12):
        tasks += [problem(("", str(n))), exact]
        texts += [fenced(f"print({n if n % 3 else 'no'})"), "7" if n % 2 else "8"]
    cut = [n % 5 == 0 for n in range(24)]
    done = verifiers.verify_all(tasks, texts, cut, sandbox=any_box)
    assert [v.reward for v in done[::2]] == [float(n % 3 > 0) for n in range(12)]
    assert [v.reward for v in done[1::2]] == [float(n % 2) for n in range(12)]
    assert [v.truncated for v in done] == cut
    alone = [
        verifiers.verify(t, x, truncated=c, sandbox=any_box)
        for t, x, c in zip(tasks, texts, cut, strict=True)
    ]
    assert done == alone


def test_a_batch_without_programs_opens_nothing(monkeypatch):
    monkeypatch.setattr(verifiers, "Sandbox", None)
    exact = Problem("e", (), "7", "exact")
    assert [v.reward for v in verifiers.verify_all([exact] * 2, ["7", "8"], [False] * 2)] == [
        1,
        0,
    ]
    assert verifiers.verify_all([], [], []) == []
    broken = Problem("e", (), "7", "no such verifier")
    assert "no such verifier" in verifiers.verify_all([broken], ["7"], [False])[0].error


class Load:
    """Busy processes of the least and of equal priority."""

    def __init__(self, count):
        self.running = [
            subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            for _ in range(count)
        ]

    def __enter__(self):
        time.sleep(0.5)

    def __exit__(self, *error):
        for process in self.running:
            process.kill()
            process.wait()


def judged(box, rows):
    tasks, texts, names = zip(*rows, strict=True)
    assert len(set(names)) == len(names)
    verdicts = verifiers.verify_all(tasks, texts, [False] * len(tasks), sandbox=box)
    return {
        n: (v.reward, v.test_fraction, v.error) for n, v in zip(names, verdicts, strict=True)
    }


@pytest.mark.slow
def test_verdicts_are_the_same_at_load_1_and_load_8(box):
    rows = batch()
    with Load(1):
        calm = judged(box, rows)
    assert all(kept[0] == name.startswith("right") for name, kept in calm.items())
    with Load(8):
        assert judged(box, rows) == calm


ATTACKS = [
    "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
    "x = []\nwhile True: x.append(bytes(1 << 20))",
    "while True: print('x' * 9999)",
    "while True: pass",
]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["namespaces", "limits"])
def test_legitimate_programs_pass_beside_hostile_ones_on_a_machine_at_twice_its_load(level):
    rows = [row for row in batch() if row[2].startswith("right")]
    task = problem(("", "HIDDEN"), time_limit=0.5)
    rows += [(task, fenced(source), f"attack {i}") for i, source in enumerate(ATTACKS * 4)]
    random.Random(0).shuffle(rows)
    load = Load(2 * len(os.sched_getaffinity(0)))
    with load, open_or_skip(level, cpu_seconds=4.0, wall_seconds=240.0, workers=4) as box:
        done = judged(box, rows)
    for name, kept in done.items():
        assert kept == ((0.0, 0.0, "") if name.startswith("attack") else (1.0, 1.0, "")), name


def test_a_run_opens_a_sandbox_only_where_its_data_needs_one(caplog):
    open_or_skip("namespaces").close()
    cfg = config.Config(sandbox=sandbox_yard.config("namespaces"))
    assert opening._sandbox(cfg, [Problem("e", (), "7", "exact")]) is None
    caplog.set_level("INFO", "mopd")
    with opening._sandbox(cfg, [Problem("e", (), "7", "exact"), problem(("", ""))]) as box:
        assert f"sandbox level {box.description}" in caplog.text
        assert box.description.startswith("namespaces (Python 3.")


def test_a_steps_rollouts_are_judged_in_the_runs_sandbox(any_box):
    sampled = types.SimpleNamespace(
        problems=[problem(("", "1")), Problem("e", (), "x", "exact")],
        texts=[[fenced("print(1)"), fenced("print(2)"), "1"], ["x", "y", "x"]],
        stopped=np.array([[True, True, False], [False, True, True]]),
    )
    verdicts = experience.verify(types.SimpleNamespace(sandbox=any_box, cfg=Config()), sampled)
    assert [[v.reward for v in row] for row in verdicts] == [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    assert [[v.truncated for v in row] for row in verdicts] == (~sampled.stopped).tolist()


def test_livecodebench_rows_map_on_the_format(any_box):
    """As that data set stores a row: JSON texts, a type per test, `fn_name` in the metadata."""
    row = {
        "public_test_cases": json.dumps(
            [{"input": "[3, 1]\n2", "output": "8", "testtype": "functional"}]
        ),
        "metadata": json.dumps({"func_name": "f"}),
    }
    task = Problem(
        "lcb",
        (),
        "",
        "code",
        {
            "tests": json.loads(row["public_test_cases"]),
            "fn_name": json.loads(row["metadata"])["func_name"],
        },
    )
    source = "class Solution:\n  def f(self, a: List[int], k: int): return sum(a) * k"
    assert verifiers.verify(task, fenced(source), sandbox=any_box).reward == 1.0
