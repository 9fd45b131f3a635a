"""Programs, judged by running them on tests in the sandbox.

`Problem.meta` holds:

    tests      a list of {"input": text, "output": text, "testtype": "stdin" | "functional"};
               without a type it is "functional" where there is a `fn_name`
    fn_name    the function, or the method of `class Solution`, of functional tests
    time_limit CPU seconds of one test; else `sandbox.cpu_seconds`
    float_tolerance  instead of 1e-6 (`programs.same_output`)
    feedback   "kind" (default) or "gold": what `verify` says of a failure

as LiveCodeBench has it. Arguments of a functional test stand one on a line, each in JSON; its
output is JSON. A program gets one process for each test and never sees an expected output.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.records import Problem, Verdict
from mopd_jax.sandbox import Outcome, Program, Sandbox
from mopd_jax.verifiers import programs

LONGEST_PROGRAM = 200_000  # Characters; what is longer is no answer.
_SHOWN = 250  # Characters of one text in a feedback.
# What went wrong, without what would have been right.
_WHAT = {
    "error": "it ended with an error",
    "signal": "it was ended by a signal",
    "cpu": "it used more CPU time than allowed",
    "memory": "it used more memory than allowed",
    "idle": "it slept or waited for something that never came",
    "output": "it wrote more than allowed",
    "disk": "it wrote more to disk than allowed",
    "hostile": "it broke the process that runs it",
}
_NO_VERDICT = ("starved", "broken")
# A test that ends so costs seconds, and so would the others: two workers, or a full disk.
_SLOW = ("cpu", "idle", "hostile", "disk")
# Names that a program cannot make of what it reads.
_ERRORS = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)


@dataclasses.dataclass(frozen=True)
class Test:
    """One test: what the program is given, and what stays outside the sandbox."""

    __test__ = False  # No test of pytest's.

    program_input: str
    arguments: str | None  # JSON list, of functional tests.
    expected: Any  # Text, or a JSON value.


@dataclasses.dataclass(frozen=True)
class Task:
    """What `Problem.meta` says of the tests of a problem.

    call: name of the function of functional tests.
    cpu_seconds: of one test; None is the sandbox's own limit.
    disclose: feedback may show the tests.
    """

    tests: list[Test]
    call: str | None
    cpu_seconds: float | None
    tolerance: float
    disclose: bool = False


def task_of(problem: Problem) -> Task:
    """The tests in `problem.meta`.

    Raises:
        ValueError: naming the test, or the key of `meta`, and what is wrong with it.
    """
    rows = problem.meta.get("tests")
    if not isinstance(rows, list | tuple) or not rows:
        raise ValueError(f"problem {problem.id!r} has no tests; give meta['tests']")
    feedback = problem.meta.get("feedback", "kind")
    if feedback not in ("kind", "gold"):
        raise ValueError(
            f"problem {problem.id!r}: meta['feedback'] is {feedback!r}; it must be 'kind' or "
            "'gold'"
        )
    return Task(
        [_test(row, i, problem) for i, row in enumerate(rows, 1)],
        problem.meta.get("fn_name"),
        _number(problem, "time_limit", None),
        _number(problem, "float_tolerance", programs.TOLERANCE),
        feedback == "gold",
    )


def _number(problem: Problem, name: str, default: float | None) -> float | None:
    value = problem.meta.get(name)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1e6 or (name == "time_limit" and value == 0):
        raise ValueError(
            f"problem {problem.id!r}: meta[{name!r}] is {value!r}; give a number or nothing"
        )
    return float(value)


def _test(row: Any, number: int, problem: Problem) -> Test:
    where = f"problem {problem.id!r}, test {number}"
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be a mapping")
    given, output = row.get("input"), row.get("output")
    if not isinstance(given, str) or not isinstance(output, str):
        raise ValueError(f"{where}: 'input' and 'output' must both be texts")
    function = problem.meta.get("fn_name")
    kind = row.get("testtype", "functional" if function else "stdin")
    if kind == "stdin":
        return Test(given, None, output)
    if kind != "functional":
        raise ValueError(f"{where}: testtype {kind!r} is neither 'stdin' nor 'functional'")
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"{where} is functional, but meta['fn_name'] is {function!r}")
    try:
        # At line ends only: a list or a text may well hold blanks.
        arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
        return Test("", json.dumps(arguments), json.loads(output))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: an argument or the output is no JSON: {error}") from error


@dataclasses.dataclass(frozen=True)
class Result:
    """Of one test: whether it passed, and how the execution went."""

    passed: bool
    outcome: Outcome
    test: Test


def run_test(source: str, test: Test, task: Task, sandbox: Sandbox) -> Result:
    """Runs a program on one test and compares outside the sandbox."""
    functional = test.arguments is not None
    program = Program(
        source,
        stdin=test.program_input,
        call=task.call if functional else None,
        arguments=test.arguments if functional else "[]",
        cpu_seconds=task.cpu_seconds,
    )
    outcome = sandbox.run(program)
    if outcome.kind != "ok":
        return Result(False, outcome, test)
    if functional:
        known, value = programs.read_result(outcome.result)
        passed = known and programs.same_value(value, test.expected, tolerance=task.tolerance)
    else:
        printed = outcome.stdout.decode("utf-8", "replace")
        passed = programs.same_output(printed, test.expected, tolerance=task.tolerance)
    return Result(passed, outcome, test)


def verify(
    problem: Problem,
    response: str,
    *,
    sandbox: Sandbox | None = None,
    feedback: Literal["kind", "with_gold"] | None = None,
) -> Verdict:
    """1 if the response's program passes every test, else 0.

    All tests are run, so that `test_fraction` is of all; but after `sandbox.slow_tests` that
    ended at a limit of time or disk, or broke the sandbox, the rest are not, and count as
    failed (`Verdict.tests_skipped`).

    Args:
        sandbox: to run it in; None opens one with default settings for this call alone.
        feedback: `kind` says which test failed and how: of an exception the built-in type and
            the line, and nothing that the program wrote, since it may have read a hidden
            input. `with_gold` adds the end of the program's own traceback and the test with
            its input and expected output, and declares that. None: `with_gold` where
            `meta["feedback"]` is "gold", else `kind`.

    Raises:
        ValueError: if the problem's tests cannot be used.
        SandboxError: if no sandbox can be opened.
    """
    task = task_of(problem)
    if feedback is None:
        feedback = "with_gold" if task.disclose else "kind"
    if sandbox is None:
        with Sandbox(SandboxConfig(workers=1)) as own:
            return verify(problem, response, sandbox=own, feedback=feedback)
    for number, test in enumerate(task.tests, 1):
        if len(str(test.expected)) >= sandbox.output_kb << 10:
            raise ValueError(
                f"problem {problem.id!r}, test {number} expects more output than "
                f"sandbox.output_kb={sandbox.output_kb} allows; raise that setting"
            )
    source, well_formed = programs.extract(response)
    if source is None or len(source) > LONGEST_PROGRAM:
        said = "The response has no fenced block with a Python program."
        if source is not None:
            said = f"The program is longer than {LONGEST_PROGRAM} characters."
        return Verdict(0.0, 0.0, feedback=said, format_ok=False)
    results = _run_tests(source, task, sandbox)
    for number, result in enumerate(results, 1):
        if result.outcome.kind in _NO_VERDICT:
            kind, detail = result.outcome.kind, result.outcome.detail
            return Verdict(
                0.0,
                error=f"test {number}: sandbox {kind} {detail}".strip(),
                format_ok=well_formed,
            )
    passed = sum(result.passed for result in results)
    skipped = len(task.tests) - len(results)
    said = _feedback(results, source, skipped=skipped, with_gold=feedback == "with_gold")
    return Verdict(
        float(passed == len(task.tests)),
        passed / len(task.tests),
        feedback=said,
        feedback_has_gold=bool(said) and feedback == "with_gold",
        format_ok=well_formed,
        tests_skipped=skipped,
    )


def _run_tests(source: str, task: Task, sandbox: Sandbox) -> list[Result]:
    """Of all tests, or of those before the program was given up."""
    results: list[Result] = []
    slow = 0
    for test in task.tests:
        if sandbox.slow_tests is not None and slow >= sandbox.slow_tests:
            break
        results.append(run_test(source, test, task, sandbox))
        outcome = results[-1].outcome
        slow += outcome.kind in _SLOW or outcome.killed  # It was run twice.
    return results


def _feedback(results: list[Result], source: str, *, skipped: int, with_gold: bool) -> str:
    """What went wrong: the first test that ended badly, else the first with a wrong answer."""
    failed = [(i, r) for i, r in enumerate(results, 1) if not r.passed]
    if not failed:
        return ""
    # An error says more than a wrong answer.
    number, result = next((f for f in failed if f[1].outcome.kind != "ok"), failed[0])
    lines = [f"Passed {len(results) - len(failed)} of {len(results) + skipped} tests."]
    if skipped:
        lines = [f"{lines[0]} {skipped} were not run, since each would take long."]
    lines.append(f"Test {number}: {_how(result, source, told=with_gold)}.")
    if with_gold:
        test = result.test
        given = test.program_input if test.arguments is None else test.arguments
        expected = test.expected if test.arguments is None else json.dumps(test.expected)
        lines += [f"Input:\n{_short(given)}", f"Expected output:\n{_short(expected)}"]
    return "\n".join(lines)


def _how(result: Result, source: str, *, told: bool) -> str:
    """How a test failed; `told`: in the program's own words too."""
    outcome = result.outcome
    if outcome.kind == "ok":
        functional = result.test.arguments is not None
        if functional and not outcome.result:
            return "it ended before the function returned"
        return "wrong answer"
    said = _WHAT[outcome.kind]
    if outcome.kind != "error":
        return said
    text = outcome.stderr.decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.strip()]
    # A traceback may be forged as well, so a line must be one of the program.
    at = re.findall(r'File "<program>", line (\d{1,9})', text)
    if at and 1 <= int(at[-1]) <= len(source.split("\n")):
        said += f" at line {int(at[-1])}"
    if told:
        return f"{said}: {_short(_printable(lines[-1].strip()))}" if lines else said
    # The last, since a message may have lines of its own.
    names = [name for name in (line.partition(":")[0] for line in lines) if name in _ERRORS]
    return f"{said}: {names[-1]}" if names else said


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} [... cut]"


def gold_response(problem: Problem) -> str | None:
    """A response that must score 1: the reference solution; None where there is none.

    It is `meta["solution"]`, or the problem's own, as a program or as a response with one.
    """
    text = problem.meta.get("solution") or problem.solution
    if not text:
        return None
    return text if programs.extract(text).source is not None else f"```python\n{text}\n```\n"


def mutated(problem: Problem) -> tuple[str, ...]:
    """Responses that must score 0: the reference solution with more output than is right, the
    same with one value of its output changed, and a program that does nothing, unless nothing
    is what is right.

    None where there is no such solution.

    Raises:
        ValueError: if the problem's tests cannot be used.
    """
    gold = gold_response(problem)
    if gold is None:
        return ()
    task = task_of(problem)
    source = programs.extract(gold).source
    # Of numbers, so that none of them stays within a tolerance.
    factor = str(2 + math.ceil(task.tolerance))
    if task.call:
        tail = _WRAP.replace("NAME", task.call)
        other = _OTHER_VALUE.replace("FACTOR", factor)
        spoiled = [f"{source}\n{change}{tail}" for change in (_MORE_VALUE, other)]
    else:
        # A module's imports from the future stand first.
        future = list(re.finditer(r"^from __future__ import .*\n", source, re.MULTILINE))
        cut = future[-1].end() if future else 0
        other = _OTHER_TEXT.replace("FACTOR", factor)
        spoiled = [source[:cut] + head + source[cut:] for head in (_MORE_TEXT, other)]
    silent = all(
        test.arguments is None and programs.same_output("", test.expected)
        for test in task.tests
    )
    spoiled += [] if silent else ["pass"]
    return tuple(f"```python\n{text}\n```\n" for text in spoiled)


_MORE_TEXT = "print('spoiled', flush=True)\n"
# The rest is a child whose output is read, however it writes. The last word is changed: a
# number by more than any tolerance; else its first digit, or it gets one.
_OTHER_TEXT = r"""
def _spoil():
    import math, os, re
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.close(reading)
        os.close(writing)
        return
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as file:
        text = file.read().rstrip()
    status = os.waitpid(child, 0)[1]
    head, last = text[: -len(text.split()[-1])] if text else "", (text.split() or [""])[-1]
    digit = re.search("[0-9]", last)
    try:
        value = float(last) if re.search("[.eE]", last) else int(last)
    except ValueError:
        value = math.nan
    if isinstance(value, int) or math.isfinite(value):
        last = str((abs(value) + 1) * FACTOR)
    elif digit:
        i = digit.start()
        last = last[:i] + str((int(last[i]) + 1) % 10) + last[i + 1 :]
    else:
        last += "0"
    print(head + last, flush=True)
    os._exit(1 if status else 0)
_spoil()
"""
_MORE_VALUE = "_spoil = lambda v: ['spoiled', v]\n"
_OTHER_VALUE = """
def _spoil(v):
    if v is None or isinstance(v, bool):
        return not v
    if isinstance(v, (int, float)):  # By more than any tolerance.
        return (abs(v) + 1) * FACTOR if abs(v) < 1e300 else 0
    if isinstance(v, str):
        return v + "x"
    return [*v, None] if isinstance(v, (list, tuple)) else [v]
"""
_WRAP = """
def _wrapped(right, depth=[0]):
    def outermost(*a, **k):
        depth[0] += 1
        try:
            value = right(*a, **k)
        finally:
            depth[0] -= 1
        return value if depth[0] else _spoil(value)
    return outermost
_owner = globals().get("Solution")
if isinstance(_owner, type) and hasattr(_owner, "NAME"):
    _right = vars(_owner).get("NAME", getattr(_owner, "NAME"))
    if isinstance(_right, (staticmethod, classmethod)):
        _owner.NAME = type(_right)(_wrapped(_right.__func__))
    else:
        _owner.NAME = _wrapped(_right)
else:
    NAME = _wrapped(NAME)
"""
