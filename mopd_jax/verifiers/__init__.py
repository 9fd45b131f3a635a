"""One verifier per kind of problem, for training and evaluation alike."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

from mopd_jax import codebook
from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.errors import InputError, unknown
from mopd_jax.records import Problem, Verdict
from mopd_jax.sandbox import Sandbox
from mopd_jax.verifiers import choice, code_tests, exact, gym, tools
from mopd_jax.verifiers.mathematics import rules

VERIFIERS: dict[str, Callable[..., Verdict]] = {
    "choice": choice.verify,
    "code": code_tests.verify,
    "codebook": codebook.verify,
    "exact": exact.verify,
    "math": rules.verify,
    "reasoning_gym": gym.verify,
    "tools": tools.verify,
}
# Raise InputError where what a verifier needs is not installed.
_INSTALLED: dict[str, Callable[[], None]] = {"math": rules.check_installed}
# They run programs of the response: in a sandbox, and as many at a time as that has workers.
EXTERNAL = {"code"}
# They ask worker processes of their own, from any thread.
WORKERS = {"math"}


def check(problems: Iterable[Problem]) -> None:
    """Called before any time is spent on a run.

    Raises:
        InputError: a problem names a verifier that does not exist, or one whose packages are
            not installed.
    """
    checked: set[str] = set()
    for problem in problems:
        name = problem.verifier
        if name in checked:
            continue
        if name not in VERIFIERS:
            where = f"problem {problem.id!r}: verifier {name!r}"
            raise InputError(unknown(where, name, VERIFIERS))
        _INSTALLED.get(name, lambda: None)()
        checked.add(name)


def needs_sandbox(problems: Iterable[Problem]) -> bool:
    """Whether any of the problems is judged by running programs."""
    return any(problem.verifier in EXTERNAL for problem in problems)


def verify(
    problem: Problem,
    response: str,
    *,
    truncated: bool = False,
    sandbox: Sandbox | None = None,
    disclose: bool = False,
) -> Verdict:
    """The verdict on a response. Never raises: a verifier's own failure is its `error`.

    A row with an error is neither success nor failure, and the metrics count it. `truncated`
    says that the response was cut before it ended; it is noted, and changes no reward.
    Verifiers that run programs do so in `sandbox`, or open one of their own for this call.
    `disclose` lets those that can write gold or hidden tests into their feedback, which they
    then declare.
    """
    if disclose:
        problem = dataclasses.replace(problem, meta={**problem.meta, "feedback": "gold"})
    return dataclasses.replace(_judge(problem, response, sandbox), truncated=truncated)


def verify_all(
    problems: Sequence[Problem],
    responses: Sequence[str],
    truncated: Sequence[bool],
    *,
    sandbox: Sandbox | None = None,
    disclose: bool = False,
    progress: Callable[[Iterable], Iterable] = lambda rows: rows,
) -> list[Verdict]:
    """The verdicts on many responses, in their order; each is that of `verify`.

    Rows whose verifier has processes of its own, or runs programs in the sandbox's, are judged
    several at a time, and the others meanwhile, in this thread.

    Args:
        progress: wraps as many items as there are rows, to show how many are done.

    Raises:
        SandboxError: if one is needed, none is given, and none can be opened.
    """
    rows = list(zip(problems, responses, truncated, strict=True))
    if sandbox is None and needs_sandbox(problems):
        with Sandbox(SandboxConfig()) as own:
            options = {"disclose": disclose, "progress": progress}
            return verify_all(*zip(*rows, strict=True), sandbox=own, **options)

    def one(row) -> Verdict:
        problem, response, cut = row
        options = {"sandbox": sandbox, "disclose": disclose}
        return verify(problem, response, truncated=cut, **options)

    # Twice the workers, so that none waits while a verdict is made of what it returned.
    threads = max(2, os.cpu_count() or 1, 0 if sandbox is None else 2 * sandbox.workers)
    verdicts: dict[int, Verdict] = {}
    pool = concurrent.futures.ThreadPoolExecutor(threads, "verify")
    try:
        waiting = {
            pool.submit(one, row): i
            for i, row in enumerate(rows)
            if row[0].verifier in EXTERNAL | WORKERS
        }
        apart = set(waiting.values())
        direct = (i for i in range(len(rows)) if i not in apart)
        finished = itertools.chain(
            ((i, one(rows[i])) for i in direct),
            ((waiting[f], f.result()) for f in concurrent.futures.as_completed(waiting)),
        )
        for _ in progress(range(len(rows))):
            i, verdict = next(finished)
            verdicts[i] = verdict
    finally:
        # After an interrupt what is not begun is not begun.
        pool.shutdown(cancel_futures=True)
    return [verdicts[i] for i in range(len(rows))]


def unusable(problem: Problem) -> str:
    """Why no response to this problem can be judged; "" where nothing is known against it.

    No program is run: a gold letter, gold calls, a gold formula and tests are read, a scorer of
    reasoning-gym is asked for its own gold, and the name is looked up.

    Raises:
        InputError: what reads formulas, or has the scorers, is not installed.
    """
    name = problem.verifier
    if name not in VERIFIERS:
        return unknown(f"verifier {name!r}", name, VERIFIERS)
    if name in ("choice", "tools"):
        return verify(problem, "").error
    if name == "math":
        rules.check_installed()
        return rules.unusable(problem)
    if name == "codebook":
        return codebook.unusable(problem)
    if name == "reasoning_gym":
        return gym.unusable(problem) or verify(problem, problem.answer).error
    if name == "code":
        try:
            code_tests.task_of(problem)
        except ValueError as error:
            return str(error)
    return ""


def _judge(problem: Problem, response: str, sandbox: Sandbox | None) -> Verdict:
    try:
        options = {"sandbox": sandbox} if problem.verifier in EXTERNAL else {}
        verdict = VERIFIERS[problem.verifier](problem, response, **options)
        if not 0.0 <= verdict.reward <= 1.0:  # False of nan too.
            return Verdict(0.0, error=f"reward {verdict.reward} is outside [0, 1]")
        return verdict
    except Exception as error:  # The boundary to verifiers: model text may break any parser.
        return Verdict(0.0, error=f"{type(error).__name__}: {error}")
