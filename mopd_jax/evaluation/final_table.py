"""Makes the table that ends a run: the student before and after, from the run folder."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from mopd_jax.evaluation import scores
from mopd_jax.run.logbook import read


def final_table(workdir: pathlib.Path) -> str:
    """The student before and after, as Markdown with 95 % intervals over prompts."""
    records = [r for r in read(workdir) if r["kind"] == "eval"]
    if not records:
        return f"{workdir} has no evaluation in its metrics.jsonl"
    before, after = records[0], records[-1]
    names = [n for n in before if "@" in n and not n.endswith(("_low", "_high"))]
    lines = [
        f"| held-out | before | after {after['step']} steps | gain (paired) |",
        "|---|---|---|---|",
    ]
    outcomes = []
    for record in (before, after):
        path = workdir / f"evaluations/step_{record['step']:06d}.json"
        # A response without a verdict is null, which becomes NaN.
        outcomes.append(np.array(json.loads(path.read_text())["solved"], float))
    for name in names:
        cells = [
            f"{_number(r[name])} [{_number(r[f'{name}_low'])}, {_number(r[f'{name}_high'])}]"
            for r in (before, after)
        ]
        kind, _, number = name.partition("@")
        value, (low, high) = scores.gain(*outcomes, k=int(number) if kind == "pass" else None)
        change = "-" if np.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {change} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
