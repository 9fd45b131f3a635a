"""Ever solved: counts by problem over a whole run, whatever the order and the repetition."""

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax.records import Outcomes, Problem
from mopd_jax.run.solved import Solved


def after(solved, ids, success):
    problems = [Problem(name, (), "", "exact") for name in ids]
    success = np.array(success)
    return solved.after(problems, Outcomes(success * 1.0, np.ones_like(success), success))


def test_by_hand():
    none, all_ = [False, False], [True, True]
    first = after(Solved(), "ab", [none, [False, True]])
    assert first.metrics() == {
        "problems_seen": 2,
        "problems_solved_ever": 1,
        "problems_solved_never": 1,
        "problems_solved_ever_fraction": 0.5,
    }
    # A problem solved once stays solved; one batch may have it twice.
    later = after(first, "bcca", [none, none, all_, none])
    assert later.metrics()["problems_seen"] == 3
    assert later.metrics()["problems_solved_ever"] == 2
    assert later.to_json() == {"solved": ["b", "c"], "unsolved": ["a"]}
    assert first.metrics()["problems_seen"] == 2
    assert math.isnan(Solved().metrics()["problems_solved_ever_fraction"])


step = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), min_size=1)


@given(steps=st.lists(step, max_size=6), cut=st.integers(0, 6))
def test_a_resumed_run_counts_the_same(steps, cut):
    def after_all(solved, rows):
        for row in rows:
            solved = after(solved, [r[0] for r in row], [r[1:] for r in row])
        return solved

    whole = after_all(Solved(), steps)
    stored = json.loads(json.dumps(after_all(Solved(), steps[:cut]).to_json()))
    assert after_all(Solved.from_json(stored), steps[cut:]) == whole
    rows = [r for s in steps for r in s]
    assert whole.seen == {r[0] for r in rows}
    assert whole.solved == {r[0] for r in rows if r[1] or r[2]}
