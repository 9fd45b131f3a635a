"""Makes the table of one evaluation and the paired table of several, as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mopd_jax.errors import InputError, unknown
from mopd_jax.evaluation import diversity, estimates, scores
from mopd_jax.evaluation.diversity import Bleu, Budgets, Embed
from mopd_jax.evaluation.estimates import Estimate, Paired
from mopd_jax.evaluation.scores import Response

# Settings that may differ between compared evaluations, and are printed if they do.
_PRINTED = ("temperature", "top_p", "top_k", "response_length", "seed", "tokenizer")


class CompareError(InputError):
    """Evaluations that cannot be compared; the message names what differs."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Values f64[P] of every metric, in the order of the table, and counts."""

    values: dict[str, np.ndarray]
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Table:
    """One evaluation: every metric's mean over problems with its interval."""

    header: dict[str, Any]
    metrics: dict[str, Estimate]
    counts: dict[str, int]

    def markdown(self) -> str:
        """A heading line, the table, and what was counted."""
        head = self.header
        at = "initial weights" if head.get("step") is None else f"step {head['step']}"
        lines = [
            f"{head.get('name')}, {head.get('weights')}, {at}: {head['problems']} problems, "
            f"{head['samples']} responses each",
            *_ceilings(head.get("ceilings", {})),
            "",
            "| metric | mean [95 % interval] | problems |",
            "|---|---|---|",
        ]
        for name, e in self.metrics.items():
            lines.append(
                f"| {name} | {_cell(e.value, e.low, e.high)} | {e.problems} of {e.of} |"
            )
        return "\n".join([*lines, "", _counted(self.counts)])

    def document(self) -> dict[str, Any]:
        """The same as JSON values; undefined numbers are NaN."""
        return {
            "format": "mopd-evaluation",
            "version": 1,
            "evaluation": self.header,
            "metrics": {name: dataclasses.asdict(e) for name, e in self.metrics.items()},
            "counts": self.counts,
        }


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A metric of one run compared with the baseline's; `holm` is p adjusted for all rows."""

    metric: str
    run: str
    paired: Paired
    holm: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs compared with the first, the baseline, on the same problems.

    family: tests that Holm's adjustment counts: the rows with a p-value.
    counts: {run: its counts}.
    differ: settings that differ, as sentences.
    """

    baseline: str
    runs: list[str]
    rows: list[TableRow]
    family: int
    counts: dict[str, dict[str, int]]
    differ: list[str]

    def markdown(self) -> str:
        """One line a metric and run; the p-values are of the difference to the baseline."""
        lines = [
            f"baseline: {self.baseline}",
            *self.differ,
            "",
            "| metric | run | baseline | run's | difference [95 % interval] | p | p (Holm) | "
            "problems |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            e = row.paired
            change = _cell(e.difference, e.low, e.high, sign="+")
            lines.append(
                f"| {row.metric} | {row.run} | {_number(e.before)} | {_number(e.after)} "
                f"| {change} | {_p(e.p_value)} | {_p(row.holm)} | {e.problems} of {e.of} |"
            )
        lines += [
            "",
            f"p: sign-flip test over problems, two-sided; Holm: adjusted for all {self.family} "
            "tests of this table",
        ]
        lines += [f"{name}: {_counted(counts)}" for name, counts in self.counts.items()]
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """The same as JSON values; undefined numbers are NaN."""
        return {
            "format": "mopd-comparison",
            "version": 1,
            "baseline": self.baseline,
            "runs": self.runs,
            "differ": self.differ,
            "tests": self.family,
            "rows": [
                {
                    "metric": r.metric,
                    "run": r.run,
                    **dataclasses.asdict(r.paired),
                    "holm": r.holm,
                }
                for r in self.rows
            ],
            "counts": self.counts,
        }


def measure(
    responses: Sequence[Sequence[Response]],
    *,
    threshold: float,
    ks: Sequence[int],
    budget: Budgets | None = None,
    bleu: Bleu | None = None,
    embed: Embed | None = None,
) -> Measured:
    """Every metric of responses [P][n]; a response without a verdict is left out and counted.

    Args:
        ks: of pass@k, at most n.
        budget, bleu, embed: of the diversity measures (`diversity.measure`).
    """
    n = len(responses[0])
    result = scores.outcome(responses, threshold=threshold)

    def field(read: Callable[[Response], float | None]) -> np.ndarray:
        rows = [[read(r) for r in row] for row in responses]
        return np.array([[np.nan if x is None else x for x in row] for row in rows], float)

    solved, valid = result.solved, result.valid
    rewards = field(lambda r: None if r.error else r.reward)
    fractions = field(lambda r: None if r.error else r.test_fraction)
    answers = [[r.answer for r in row] for row in responses]
    diverse = diversity.measure(
        [[r.text for r in row] for row in responses],
        result.success,
        valid,
        budget=budget,
        bleu=bleu,
        embed=embed,
    )
    values = {f"mean@{n}": estimates.mean(solved)}
    values |= {f"pass@{k}": estimates.pass_at_k(result.success, valid, k=k) for k in ks}
    values |= {
        f"best@{n}": estimates.best_at(solved, n=n),
        f"worst@{n}": estimates.worst_at(solved, n=n),
        f"majority@{n}": estimates.majority(answers, solved),
    }
    for name, x in (("reward", rewards), ("test fraction", fractions)):
        values |= {
            name: estimates.mean(x),
            f"{name}, best@{n}": estimates.best_at(x, n=n),
            f"{name}, worst@{n}": estimates.worst_at(x, n=n),
        }
    values |= {
        "format ok": estimates.mean(field(lambda r: r.format_ok)),
        "verifier errors": 1.0 - valid.mean(axis=1),
        "truncated": 1.0 - result.stopped.mean(axis=1),
        "response tokens": result.lengths.mean(axis=1),
        "response tokens of successes": estimates.mean(
            np.where(result.success, result.lengths, np.nan)
        ),
    }
    counts = {
        "responses": valid.size,
        "verifier_errors": int((~valid).sum()),
        "tests_skipped": sum(r.tests_skipped for row in responses for r in row),
        **diverse.counts,
    }
    return Measured(values | diverse.values, counts)


def table(
    header: Mapping[str, Any],
    responses: Sequence[Sequence[Response]],
    *,
    bleu: Bleu | None = None,
    embed: Embed | None = None,
    budget: int | None = None,
) -> Table:
    """The table of one evaluation.

    Args:
        budget: tokens a problem for Distinct-n, by default what nine of ten problems reach.
    """
    measured = measure(
        responses,
        threshold=header["threshold"],
        ks=header["ks"],
        budget=_budgets([responses], header["threshold"], budget),
        bleu=bleu,
        embed=embed,
    )
    metrics = {name: estimates.estimate(values) for name, values in measured.values.items()}
    return Table(dict(header), metrics, measured.counts)


def compare(
    names: Sequence[str],
    headers: Sequence[Mapping[str, Any]],
    responses: Sequence[Sequence[Sequence[Response]]],
    *,
    metrics: Sequence[str] | None = None,
    bleu: Bleu | None = None,
    embed: Embed | None = None,
    budget: int | None = None,
) -> Comparison:
    """Every run after the first, paired with the first problem by problem.

    Args:
        names, headers, responses: of each run, two or more.
        metrics: the rows, which are also the family of tests; by default all.
        budget: tokens a problem for Distinct-n, the same for all runs; by default what nine of
            ten problems of all runs together reach.

    Raises:
        CompareError: other problems, samples or thresholds, or an unknown metric.
    """
    _check_same(names, headers, responses)
    first = [row[0].problem for row in responses[0]]
    aligned = []
    for run in responses:
        by_id = {row[0].problem: row for row in run}
        aligned.append([by_id[problem] for problem in first])
    threshold = headers[0]["threshold"]
    common = _budgets(aligned, threshold, budget)
    ks = [k for k in headers[0]["ks"] if all(k in header["ks"] for header in headers)]
    measured = [
        measure(run, threshold=threshold, ks=ks, budget=common, bleu=bleu, embed=embed)
        for run in aligned
    ]
    known = list(measured[0].values)
    metrics = known if metrics is None else list(dict.fromkeys(metrics))
    for metric in metrics:
        if metric not in known:
            raise CompareError(unknown(f"metric {metric!r}", metric, known))
    pairs = [
        (metric, name, estimates.paired(measured[0].values[metric], run.values[metric]))
        for metric in metrics
        for name, run in zip(names[1:], measured[1:], strict=True)
    ]
    adjusted = estimates.holm(np.array([paired.p_value for _, _, paired in pairs]))
    return Comparison(
        baseline=names[0],
        runs=list(names[1:]),
        rows=[TableRow(*pair, float(p)) for pair, p in zip(pairs, adjusted, strict=True)],
        family=int(np.isfinite(adjusted).sum()),
        counts={name: run.counts for name, run in zip(names, measured, strict=True)},
        differ=[
            f"{key} differs: {', '.join(str(header.get(key)) for header in headers)}"
            for key in _PRINTED
            if len({str(header.get(key)) for header in headers}) > 1
        ],
    )


def _check_same(
    names: Sequence[str],
    headers: Sequence[Mapping[str, Any]],
    responses: Sequence[Sequence[Sequence[Response]]],
) -> None:
    """Raises CompareError unless all runs are of the same problems, samples and threshold."""
    if len(names) < 2 or len(set(names)) < len(names):
        raise CompareError(f"give two or more different evaluations, not {', '.join(names)}")
    first = {row[0].problem: row[0].question for row in responses[0]}
    for name, header, run in zip(names[1:], headers[1:], responses[1:], strict=True):
        for key in ("samples", "threshold"):
            if header[key] != headers[0][key]:
                raise CompareError(
                    f"{key} is {headers[0][key]} in {names[0]} and {header[key]} in {name}; "
                    "evaluate one of them again with the other's"
                )
        own = {row[0].problem: row[0].question for row in run}
        for kind, ids in (
            (f"only in {names[0]}", first.keys() - own.keys()),
            (f"only in {name}", own.keys() - first.keys()),
            (
                "of another question, answer, verifier or tests",
                {i for i in first if own.get(i, first[i]) != first[i]},
            ),
        ):
            if ids:
                shown = ", ".join(map(repr, sorted(ids)[:5]))
                raise CompareError(
                    f"{names[0]} and {name} are not on the same problems: {len(ids)} {kind}: "
                    f"{shown}{', ...' if len(ids) > 5 else ''}; evaluate both with the same "
                    "data, eval.problems and seed"
                )


def _ceilings(values: Mapping[str, float | None]) -> list[str]:
    """The scores that no model can exceed on these problems, one line for each data set."""
    return [
        f"ceiling of all of {name}: "
        + ("not known (`mopd data check`)" if value is None else f"{value:.4f}")
        for name, value in values.items()
    ]


def _budgets(
    runs: Sequence[Sequence[Sequence[Response]]], threshold: float, budget: int | None
) -> Budgets:
    """The budgets of Distinct-n, the same for all problems of all runs."""
    every = [row for run in runs for row in run]
    success = scores.outcome(every, threshold=threshold).success
    return diversity.budgets([[r.text for r in row] for row in every], success, one=budget)


def _number(value: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "-"
    value = round(value, 1 if abs(value) >= 100 else 3) + 0.0  # No minus before a zero.
    return f"{value:{sign}.{1 if abs(value) >= 100 else 3}f}"


def _cell(value: float, low: float, high: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "-"
    ends = f"{_number(low, sign)}, {_number(high, sign)}"
    return f"{_number(value, sign)} [{ends}]"


def _p(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return "<0.0005" if value < 0.0005 else f"{value:.3f}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())
