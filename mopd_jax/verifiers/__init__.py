"""Verdicts on responses: one verifier per kind of problem, for training and evaluation."""

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
# Called once per run; they raise InputError if a package that the verifier needs is missing.
_CHECK_INSTALLED: dict[str, Callable[[], None]] = {"math": rules.check_installed}
# They run the response's program in a sandbox, so they are limited by the sandbox's workers.
EXTERNAL = {"code"}
# They have worker processes of their own, which any thread may ask.
WORKERS = {"math"}
# Their answers are compared as strings: they write equal answers alike.
COMPARED = {"choice", "codebook", "exact", "math", "reasoning_gym", "tools"}


def check(problems: Iterable[Problem]) -> None:
    """Checks, before a run spends any time, that every problem's verifier can be used.

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
        if name in _CHECK_INSTALLED:
            _CHECK_INSTALLED[name]()
        checked.add(name)


def needs_sandbox(problems: Iterable[Problem]) -> bool:
    """Whether the verifier of any problem runs programs."""
    return any(problem.verifier in EXTERNAL for problem in problems)


def verify(
    problem: Problem,
    response: str,
    *,
    truncated: bool = False,
    sandbox: Sandbox | None = None,
    disclose: bool = False,
) -> Verdict:
    """The verdict on a response. Never raises: a verifier's failure is the verdict's `error`.

    A response with an error is neither success nor failure, and the metrics count it.

    Args:
        truncated: the response was cut before it ended. The verdict notes it; the reward is
            that of the text as it is.
        sandbox: where programs run; None: a verifier that runs some opens one for this call.
        disclose: lets verifiers write gold answers or hidden tests into their feedback, which
            they then declare (`Verdict.feedback_has_gold`).
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
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rows: rows,
) -> list[Verdict]:
    """The verdicts on many responses, in their order; each equals that of `verify`.

    Verifiers with worker processes, of their own or in the sandbox, judge several responses at
    a time. All other responses are judged meanwhile in the calling thread.

    Args:
        progress: wraps one number per response, to show how many are judged.

    Raises:
        SandboxError: a sandbox is needed, none was passed, and none can be opened.
    """
    if sandbox is None and needs_sandbox(problems):
        with Sandbox(SandboxConfig()) as opened:
            return verify_all(
                problems,
                responses,
                truncated,
                sandbox=opened,
                disclose=disclose,
                progress=progress,
            )
    rows = list(zip(problems, responses, truncated, strict=True))

    def judged(i: int) -> tuple[int, Verdict]:
        problem, response, cut = rows[i]
        return i, verify(problem, response, truncated=cut, sandbox=sandbox, disclose=disclose)

    # Two threads per sandbox worker: one scores a result while the other keeps the worker busy.
    threads = max(2, os.cpu_count() or 1, 0 if sandbox is None else 2 * sandbox.workers)
    verdicts: dict[int, Verdict] = {}
    pool = concurrent.futures.ThreadPoolExecutor(threads, "verify")
    try:
        pooled = [i for i, row in enumerate(rows) if row[0].verifier in EXTERNAL | WORKERS]
        futures = [pool.submit(judged, i) for i in pooled]
        direct = sorted(set(range(len(rows))) - set(pooled))
        finished = itertools.chain(
            map(judged, direct),
            (future.result() for future in concurrent.futures.as_completed(futures)),
        )
        for _ in progress(range(len(rows))):
            i, verdict = next(finished)
            verdicts[i] = verdict
    finally:
        # After an interrupt, responses whose verification has not begun are dropped.
        pool.shutdown(cancel_futures=True)
    return [verdicts[i] for i in range(len(rows))]


def vote(problem: Problem, verdict: Verdict) -> str | None:
    """The answer that a judged response votes for; a verdict with an error has a vote, too.

    Returns:
        "" for a response without an answer; None where answers to this kind of problem are not
        compared as strings.
    """
    return (verdict.answer or "") if problem.verifier in COMPARED else None


def unusable(problem: Problem) -> str:
    """Why no response to this problem can be judged, or "" if no reason is known.

    It runs no program: it looks up the verifier, reads a gold letter, gold calls, a gold
    formula or tests, and asks a scorer of reasoning-gym for the score of its own gold answer.

    Raises:
        InputError: math-verify or reasoning-gym is needed and not installed.
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
        verify_one = VERIFIERS[problem.verifier]
        if problem.verifier in EXTERNAL:
            verdict = verify_one(problem, response, sandbox=sandbox)
        else:
            verdict = verify_one(problem, response)
        if 0.0 <= verdict.reward <= 1.0:  # False for NaN, too.
            return verdict
        message = f"reward {verdict.reward} is outside [0, 1]"
        return Verdict(0.0, error=message, answer=verdict.answer)
    except Exception as error:  # Verifiers are not trusted: model text may break any parser.
        return Verdict(0.0, error=f"{type(error).__name__}: {error}")
