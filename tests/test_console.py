"""What a person sees of a run: its lines, and the final table."""

import logging
import re

import jax
import numpy as np

from mopd_jax import files
from mopd_jax.config import Config
from mopd_jax.evaluation import final_table
from mopd_jax.records import Problem
from mopd_jax.run import console, logbook


def test_what_has_no_verdict_is_a_dash_in_the_final_table(tmp_path):
    (tmp_path / "evaluations").mkdir()
    book = logbook.Logbook(tmp_path, step=0)
    known = {"mean@2": 0.5, "mean@2_low": 0.25, "mean@2_high": 0.75}
    unknown = {f"pass@2{end}": float("nan") for end in ("", "_low", "_high")}
    never = float("nan")
    for step, solved in ((0, [[1.0, 0.0], [never, 0.0]]), (3, [[1.0, 1.0], [0.0, 0.0]])):
        book.scalars(step, "eval", known | unknown)
        path = tmp_path / f"evaluations/step_{step:06d}.json"
        path.write_text(files.dumps({"solved": solved}))
    book.close()
    lines = final_table.final_table(tmp_path).split("\n")
    # The second problem has one verdict before and two after: 0 of them solved.
    assert lines[2] == (
        "| mean@2 | 0.500 [0.250, 0.750] | 0.500 [0.250, 0.750] | +0.250 [+0.000, +0.500] |"
    )
    # One problem has two verdicts in both, and one has no interval.
    assert lines[3] == "| pass@2 | - [-, -] | - [-, -] | - |"
    path = tmp_path / "evaluations/step_000000.json"
    path.write_text(files.dumps({"solved": [[1.0, 0.0], [0.0, 0.0]]}))
    lines = final_table.final_table(tmp_path).split("\n")
    assert lines[3] == "| pass@2 | - [-, -] | - [-, -] | +0.000 [+0.000, +0.000] |"


STEP = {
    **dict.fromkeys(("solve_rate", "mixed_groups", "active", "informed", "loss"), 0.5),
    **dict.fromkeys(("divergence", "entropy", "response_tokens", "truncated"), 0.25),
    **dict.fromkeys(("teacher_prompt_tokens", "tokens_per_second", "seconds"), 2.0),
    **{f"seconds_{name}": 0.5 for name in ("rollout", "verify", "context", "update")},
}


def test_step_lines_have_a_legend_once_and_the_time_that_is_left(caplog, monkeypatch):
    now = iter([100.0, 110.0, 120.0, 130.0])
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(now))
    progress = console.Progress(Config(steps=4))
    with caplog.at_level(logging.INFO, logger="mopd"):
        for step in (1, 2, 3, 4):
            progress.say(step, STEP)
    legend, *lines = caplog.messages
    assert legend.startswith("step lines: solved =")
    for name in ("solved", "mixed", "active", "informed", "div", "entropy", "resp", "teacher"):
        assert re.search(rf"\b{name}\b", legend) and f"  {name} " in lines[0]
    # The first step's time is that of compilation, and after the last nothing is left.
    assert [line.partition("  eta ")[2] for line in lines] == ["", "00:20", "00:10", ""]


def test_what_compiles_is_said_before_and_after(caplog, monkeypatch):
    monkeypatch.setattr(console, "_SAID_SECONDS", 0.0)
    double = jax.jit(lambda x: 2 * x)
    with caplog.at_level(logging.INFO, logger="mopd"), console.Progress(Config()) as progress:
        clock = progress.clock(1, phases=2)
        with clock.phase("rollout"):
            double(np.ones(3))
        with clock.phase("verify"):
            double(np.ones(3))
        progress.say(1, STEP)
        with progress.clock(2, phases=1).phase("rollout"):
            double(np.ones(4))
    said = [message for message in caplog.messages if "compile" in message]
    assert said[0] == "step 1/100 compiles the sampler ..."
    assert [m.split(" for ")[0] for m in said[1:]] == [
        "step 1/100 compiled",
        "step 2/100 compiled",
    ]


def problem(name, text):
    message = {"role": "user", "content": text}
    return Problem(id=name, messages=(message,), answer="", verifier="exact")


def test_samples_are_one_line_each(caplog):
    problems = [problem(f"p{i}", "What\nis 1+1?") for i in range(4)]
    texts = ["2", "x" * 500, "", "4"]
    rows = console.samples(problems, texts, [True, False, False, True])
    assert [row["problem"] for row in rows] == ["p0", "p1", "p2"]
    assert rows[1]["response"] == texts[1]
    with caplog.at_level(logging.INFO, logger="mopd"):
        console.say_samples(rows)
    assert caplog.messages[0] == "  right p0: What is 1+1? -> 2"
    assert len(caplog.messages[1]) < 150 and " ... " in caplog.messages[1]
