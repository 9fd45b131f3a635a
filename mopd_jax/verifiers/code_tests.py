"""The verifier `code`: the program of a response, judged by running it on tests in the sandbox.

`Problem.meta` is in the form of LiveCodeBench:

    tests      a list of {"input": text, "output": text, "testtype": "stdin" | "functional"};
               without a type it is "functional" where there is a `fn_name`
    fn_name    the function, or the method of `class Solution`, that functional tests call
    time_limit CPU seconds of one test; without it `sandbox.cpu_seconds`
    float_tolerance  in place of 1e-6 (`programs.same_output`)
    feedback   "kind" (default) or "gold": what `verify` says of a failure

A functional test has one argument a line, each in JSON, and its output is JSON. A program gets
one process for each test and never sees an expected output.
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

LONGEST_PROGRAM = 200_000  # Characters; a longer program is not run.
_SHOWN = 250  # Characters of a program's text, or of a test's, in feedback.
# How a test ended, in words that hold nothing of the test.
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
# Ends that the machine is to blame for.
_NO_VERDICT = ("starved", "broken")
# Ends that cost seconds, broken workers or a full disk, as further tests probably would.
_SLOW = ("cpu", "idle", "hostile", "disk")
# Exceptions that feedback names: a program cannot make up such a name from a hidden input.
_ERRORS = frozenset(
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
)


@dataclasses.dataclass(frozen=True)
class Test:
    """One test: what the program reads, and what stays outside the sandbox."""

    __test__ = False  # The name would make pytest collect it.

    program_input: str
    arguments: str | None  # A JSON list; None for a test of standard input and output.
    expected: Any  # Text, or the JSON value of a functional test.


@dataclasses.dataclass(frozen=True)
class Task:
    """The tests of a problem, and how they are judged.

    call: name of the function that functional tests call.
    cpu_seconds: limit of one test; None: the sandbox's own limit.
    tolerance: of numbers (`programs.same_output`).
    disclose: feedback may show a failed test.
    """

    tests: list[Test]
    call: str | None
    cpu_seconds: float | None
    tolerance: float
    disclose: bool = False


def task_of(problem: Problem) -> Task:
    """The tests in `problem.meta`.

    Raises:
        ValueError: names the test, or the key of `meta`, and what is wrong with it.
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
    tolerance = _number(problem, "float_tolerance")
    return Task(
        [_test(row, i, problem) for i, row in enumerate(rows, 1)],
        call=problem.meta.get("fn_name"),
        cpu_seconds=_number(problem, "time_limit"),
        tolerance=programs.TOLERANCE if tolerance is None else tolerance,
        disclose=feedback == "gold",
    )


def _number(problem: Problem, name: str) -> float | None:
    """The number under a key of `meta`; None where it is missing."""
    value = problem.meta.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1e6 or (name == "time_limit" and value == 0):
        raise ValueError(
            f"problem {problem.id!r}: meta[{name!r}] is {value!r}; give a number "
            f"{'above' if name == 'time_limit' else 'from'} 0 and below 1e6, or leave it out"
        )
    return float(value)


def _test(row: Any, number: int, problem: Problem) -> Test:
    where = f"problem {problem.id!r}, test {number}"
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be a mapping")
    text, output = row.get("input"), row.get("output")
    if not isinstance(text, str) or not isinstance(output, str):
        raise ValueError(f"{where}: 'input' and 'output' must both be texts")
    function = problem.meta.get("fn_name")
    kind = row.get("testtype", "functional" if function else "stdin")
    if kind == "stdin":
        return Test(text, None, output)
    if kind != "functional":
        raise ValueError(f"{where}: testtype {kind!r} is neither 'stdin' nor 'functional'")
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"{where} is functional, but meta['fn_name'] is {function!r}")
    try:
        # Arguments end with their line only, since a list or a text may hold blanks.
        arguments = [json.loads(line) for line in text.split("\n") if line.strip()]
        return Test("", json.dumps(arguments), json.loads(output))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: an argument or the output is not JSON: {error}") from error


@dataclasses.dataclass(frozen=True)
class Result:
    """Whether a program passed one test, and how its execution ended."""

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
        arguments="[]" if test.arguments is None else test.arguments,
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

    All tests are run, because `test_fraction` is the share of all. But once
    `sandbox.slow_tests` of them have ended at a limit of time or disk, or broken the sandbox,
    the rest are skipped and count as failed (`Verdict.tests_skipped`). Programs are not
    compared as strings, so the verdict has no `answer`.

    Args:
        sandbox: where programs run; None: one with default settings, for this call alone.
        feedback: `kind` says which test failed and how: of an exception the built-in type and
            the line, and nothing that the program wrote, since it may have read a hidden
            input. `with_gold` adds the end of the program's own traceback and the test with
            its input and expected output, and declares that. None: `with_gold` where
            `meta["feedback"]` is "gold", else `kind`.

    Raises:
        ValueError: the problem's tests cannot be used.
        SandboxError: no sandbox can be opened.
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
        message = "The response has no fenced block with a Python program."
        if source is not None:
            message = f"The program is longer than {LONGEST_PROGRAM} characters."
        return Verdict(0.0, 0.0, feedback=message, format_ok=False)
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
    message = _feedback(results, source, skipped=skipped, with_gold=feedback == "with_gold")
    return Verdict(
        float(passed == len(task.tests)),
        passed / len(task.tests),
        feedback=message,
        feedback_has_gold=bool(message) and feedback == "with_gold",
        format_ok=well_formed,
        tests_skipped=skipped,
    )


def _run_tests(source: str, task: Task, sandbox: Sandbox) -> list[Result]:
    """The results of all tests, or of those before too many were slow."""
    results: list[Result] = []
    slow = 0
    for test in task.tests:
        if sandbox.slow_tests is not None and slow >= sandbox.slow_tests:
            break
        results.append(run_test(source, test, task, sandbox))
        outcome = results[-1].outcome
        slow += outcome.kind in _SLOW or outcome.killed  # A killed program was run twice.
    return results


def _feedback(results: list[Result], source: str, *, skipped: int, with_gold: bool) -> str:
    """How the program failed: on the first test that did not end well, else on the first with a
    wrong answer; "" if it passed all."""
    failed = [(i, r) for i, r in enumerate(results, 1) if not r.passed]
    if not failed:
        return ""
    # An error tells more than a wrong answer.
    number, result = next((f for f in failed if f[1].outcome.kind != "ok"), failed[0])
    lines = [f"Passed {len(results) - len(failed)} of {len(results) + skipped} tests."]
    if skipped:
        lines = [f"{lines[0]} {skipped} were not run, since each would take long."]
    lines.append(f"Test {number}: {_how(result, source, quote=with_gold)}.")
    if with_gold:
        test = result.test
        read = test.program_input if test.arguments is None else test.arguments
        expected = test.expected if test.arguments is None else json.dumps(test.expected)
        lines += [f"Input:\n{_short(read)}", f"Expected output:\n{_short(expected)}"]
    return "\n".join(lines)


def _how(result: Result, source: str, *, quote: bool) -> str:
    """How a test failed; `quote`: with the last line that the program wrote as its error."""
    outcome = result.outcome
    if outcome.kind == "ok":
        functional = result.test.arguments is not None
        if functional and not outcome.result:
            return "it ended before the function returned"
        return "wrong answer"
    message = _WHAT[outcome.kind]
    if outcome.kind != "error":
        return message
    text = outcome.stderr.decode("utf-8", "replace")
    lines = [line for line in text.split("\n") if line.strip()]
    # The program may have forged the traceback, so the line must be one that it has.
    at = re.findall(r'File "<program>", line (\d{1,9})', text)
    if at and 1 <= int(at[-1]) <= len(source.split("\n")):
        message += f" at line {int(at[-1])}"
    if quote:
        return f"{message}: {_short(_printable(lines[-1].strip()))}" if lines else message
    # The last name, since an exception's message may have lines of its own.
    names = [name for name in (line.partition(":")[0] for line in lines) if name in _ERRORS]
    return f"{message}: {names[-1]}" if names else message


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} [... cut]"


def gold_response(problem: Problem) -> str | None:
    """A response that must score 1: the reference solution; None where there is none.

    The solution is `meta["solution"]` or `problem.solution`, either a program or a response
    that holds one.
    """
    text = problem.meta.get("solution") or problem.solution
    if not text:
        return None
    return text if programs.extract(text).source is not None else f"```python\n{text}\n```\n"


def mutated(problem: Problem) -> tuple[str, ...]:
    """Wrong responses, which must score 0: the reference solution with more output than is
    right and with one value of its output changed, and a program that does nothing, unless no
    output is right. () where there is no reference solution.

    Raises:
        ValueError: the problem's tests cannot be used.
    """
    gold = gold_response(problem)
    source = None if gold is None else programs.extract(gold).source
    if source is None:
        return ()
    task = task_of(problem)
    # Changed numbers are multiplied by it, which moves them by more than the tolerance.
    factor = str(2 + math.ceil(task.tolerance))
    if task.call:
        tail = _WRAP.replace("NAME", task.call)
        other = _OTHER_VALUE.replace("FACTOR", factor)
        spoiled = [f"{source}\n{change}{tail}" for change in (_MORE_VALUE, other)]
    else:
        # Python wants imports from __future__ first in a module.
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


# What is put in front of a script, or behind functions, to spoil what they give.
_MORE_TEXT = "print('spoiled', flush=True)\n"
# The script itself runs in a child whose output is read, however it writes. The last word of
# the output is changed: a number by more than the tolerance, else the first digit, and a word
# without a digit gets a 0.
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
