"""The self-test of verifiers: each gold answer must score 1, and wrong answers made of it 0.

The share of items whose gold answer scores 1 is the ceiling of every result on these items,
since no model can do better. Report it beside the result.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from mopd_jax import verifiers
from mopd_jax.errors import InputError
from mopd_jax.records import Problem
from mopd_jax.sandbox import Sandbox
from mopd_jax.verifiers import choice, code_tests, exact, tools
from mopd_jax.verifiers.mathematics import rules

Policy = Literal["error", "exclude", "keep"]
Finding = tuple[str, str]  # (id of the item, what is wrong with it)

_SHOWN = 20  # Items that an error lists.


class _WithGold(Protocol):
    """What a verifier must offer to be tested: right and wrong responses in its format."""

    def gold_response(self, problem: Problem) -> str | None:
        """A response that must score 1; None where the problem has no gold answer to show."""

    def mutated(self, problem: Problem) -> tuple[str, ...]:
        """Responses that must score 0."""


# Name of a verifier -> the module with its right and wrong responses.
WITH_GOLD: dict[str, _WithGold] = {
    "choice": choice,
    "code": code_tests,
    "exact": exact,
    "math": rules,
    "tools": tools,
}


class SelfTestError(InputError):
    """Items are judged wrongly or not at all; the message lists them with the reason."""


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """The outcome on all items.

    tested: number of items for which there are right and wrong responses.
    failed: items whose gold answer does not score 1.
    unsound: items of which a wrong response scores more than 0, or has no verdict.
    untested: ids of the items without such responses; neither failed nor sound.
    mutations: how many wrong responses were judged: small changes of gold answers, and gold
        answers of other items, except those that the policy calls equal.
    passed: how many of these were judged right.
    kept: the problems that the policy keeps, in their order.
    """

    tested: int
    failed: tuple[Finding, ...]
    unsound: tuple[Finding, ...]
    untested: tuple[str, ...]
    kept: tuple[Problem, ...]
    mutations: int = 0
    passed: int = 0

    @property
    def mutation_rate(self) -> float:
        """Share of the wrong responses that were judged right; NaN if none was judged."""
        return self.passed / self.mutations if self.mutations else float("nan")

    @property
    def ceiling(self) -> float:
        """Share of the tested items whose gold answer scores 1; NaN if none was tested."""
        return 1.0 - len(self.failed) / self.tested if self.tested else float("nan")

    def summary(self) -> dict[str, float | int]:
        """The counts and the ceiling, for the record of a run."""
        return {
            "ceiling": self.ceiling,
            "tested": self.tested,
            "gold_failed": len(self.failed),
            "unsound": len(self.unsound),
            "untested": len(self.untested),
            "kept": len(self.kept),
        }


def selftest(
    problems: Sequence[Problem],
    *,
    policy: Policy = "error",
    threads: int = 1,
    sandbox: Sandbox | None = None,
) -> SelfTest:
    """Judges the gold answer and wrong answers of every problem.

    Args:
        policy: what to do with items that failed or are unsound: "error" raises, "exclude"
            leaves them out of `kept`, "keep" leaves them in. Untested items are always kept.
        threads: how many problems are judged at a time.
        sandbox: where programs run; None: each judgement of a program opens one of its own.

    Raises:
        InputError: the policy is unknown, or `verifiers.check` raises.
        SelfTestError: an item failed or is unsound, and the policy is "error".
    """
    if policy not in ("error", "exclude", "keep"):
        raise InputError(f"policy={policy!r}; it must be one of error, exclude, keep")
    verifiers.check(problems)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        findings = list(pool.map(functools.partial(_judge, sandbox=sandbox), problems))
        others = pool.map(_other_gold, problems, [*problems[1:], *problems[:1]])
        crossed = [other for other in others if other is not None]
    failed: list[Finding] = []
    unsound: list[Finding] = []
    untested: list[str] = []
    kept: list[Problem] = []
    mutations, passed = len(crossed), sum(crossed)
    for problem, (gold, wrong, tried, right) in zip(problems, findings, strict=True):
        mutations, passed = mutations + tried, passed + right
        if gold is None:
            untested.append(problem.id)
        if gold:
            failed.append((problem.id, gold))
        if wrong:
            unsound.append((problem.id, wrong))
        if policy == "keep" or not (gold or wrong):
            kept.append(problem)
    outcome = SelfTest(
        tested=len(problems) - len(untested),
        failed=tuple(failed),
        unsound=tuple(unsound),
        untested=tuple(untested),
        kept=tuple(kept),
        mutations=mutations,
        passed=passed,
    )
    if policy == "error" and (failed or unsound):
        raise SelfTestError(_complaint(outcome))
    return outcome


class _Judged(NamedTuple):
    """What the judgements of one item show."""

    gold: str | None  # Why its gold answer fails; "" if it does not, None without one to try.
    wrong: str = ""  # Why the first wrong answer passes, or "".
    tried: int = 0  # Wrong answers that were judged.
    passed: int = 0  # Those that were judged right.


def _judge(problem: Problem, *, sandbox: Sandbox | None) -> _Judged:
    """Judges the gold answer and the wrong answers of an item."""
    forms = WITH_GOLD.get(problem.verifier)
    if forms is None:
        return _Judged(None)
    try:
        right, wrong = forms.gold_response(problem), forms.mutated(problem)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        # The gold answer is too broken to be written as a response.
        return _Judged(f"{type(error).__name__}: {error}")
    if right is None:
        return _Judged(None)
    gold = verifiers.verify(problem, right, sandbox=sandbox)
    if gold.error or gold.reward != 1.0:
        return _Judged(gold.error or f"the gold answer scores {gold.reward:g}")
    first, passed = "", 0
    for response in wrong:
        verdict = verifiers.verify(problem, response, sandbox=sandbox)
        passed += verdict.reward > 0
        if not first and (verdict.error or verdict.reward):
            what = verdict.error or f"scores {verdict.reward:g}"
            first = f"the wrong response {response[:80]!r}: {what}"
    return _Judged("", first, len(wrong), passed)


def _other_gold(problem: Problem, other: Problem) -> bool | None:
    """Whether the gold answer of another item is judged right; None where that is not to be
    tried: no gold answer, programs, another verifier, or the policy calls the two golds equal,
    which it does where each is right for the other's item."""
    if problem is other or problem.verifier != other.verifier or problem.verifier == "code":
        return None
    if (forms := WITH_GOLD.get(problem.verifier)) is None:
        return None
    try:
        golds = [forms.gold_response(p) for p in (problem, other)]
    except (ValueError, TypeError, KeyError, IndexError):
        return None  # Too broken to be written; `_judge` reports it.
    if golds[0] is None or golds[1] is None:
        return None
    right = verifiers.verify(problem, golds[1]).reward > 0
    return None if right and verifiers.verify(other, golds[0]).reward > 0 else right


def _complaint(outcome: SelfTest) -> str:
    """The error message: how many items are bad, the first of them, and the remedy."""
    bad = [*outcome.failed, *outcome.unsound]
    lines = [
        f"{len(outcome.failed)} of {outcome.tested} items fail on their own gold answer "
        f"(ceiling {outcome.ceiling:.4f}), {len(outcome.unsound)} let a wrong answer pass:"
    ]
    lines += [f"  {name}: {why}" for name, why in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more")
    lines.append("repair the items, or choose the policy 'exclude' or 'keep'")
    return "\n".join(lines)
