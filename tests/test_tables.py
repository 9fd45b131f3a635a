"""The tables of evaluations: what stands in them, what is refused, what stays undefined."""

import dataclasses
import json

import numpy as np
import pytest

from mopd_jax import files
from mopd_jax.evaluation import diversity, estimates, tables
from mopd_jax.testing import response

HEADER = {
    "name": "mopd",
    "weights": "runs/x",
    "step": 3,
    "problems": 3,
    "samples": 2,
    "ks": [1, 2],
    "threshold": 1.0,
    "temperature": 1.0,
    "seed": 0,
}


def group(problem, *rows):
    """Responses to one problem, each a dict of what differs."""
    return [response(problem=problem, sample=i, **row) for i, row in enumerate(rows)]


def run():
    return [
        group(
            "a",
            {"reward": 1.0, "text": "one two", "answer": "1", "tokens": 4},
            {"reward": 0.5, "text": "one three", "answer": "1", "test_fraction": 0.5},
        ),
        group("b", {"answer": "2", "format_ok": True}, {"answer": "3", "format_ok": False}),
        group("c", {"reward": 1.0}, {"error": "SyntaxError: x", "stopped": False}),
    ]


def changed(rows, problem, sample, **fields):
    return [
        [
            dataclasses.replace(r, **fields)
            if (r.problem, r.sample) == (problem, sample)
            else r
            for r in row
        ]
        for row in rows
    ]


def test_the_metrics_by_hand():
    found = tables.measure(run(), threshold=1.0, ks=[1, 2])
    want = {
        # Of the last problem one response has a verdict, and pass@2 needs two.
        "mean@2": [0.5, 0, 1],
        "pass@1": [0.5, 0, 1],
        "pass@2": [1, 0, np.nan],
        "best@2": [0.75, 0, 1],
        "worst@2": [0.25, 0, 1],
        "majority@2": [0.5, 0, 1],  # Where there is no verdict, a vote and no value.
        "reward": [0.75, 0, 1],
        "reward, best@2": [0.875, 0, 1],
        "reward, worst@2": [0.625, 0, 1],
        "test fraction": [0.5, np.nan, np.nan],
        "format ok": [np.nan, 0.5, np.nan],
        "verifier errors": [0, 0, 0.5],
        "truncated": [0, 0, 0.5],
        "response tokens": [3.5, 3, 3],
        "response tokens of successes": [4, np.nan, 3],
        "unique ratio": [1, 0.5, 0.5],
    }
    for name, values in want.items():
        np.testing.assert_allclose(found.values[name], values, err_msg=name)
    assert found.counts["responses"] == 6
    assert found.counts["verifier_errors"] == 1
    assert found.counts["below_two_successes"] == 3


def test_a_table_says_how_many_problems_stand_behind_a_number():
    table = tables.table(HEADER, run())
    text = table.markdown()
    assert text.startswith("mopd, runs/x, step 3: 3 problems, 2 responses each\n")
    lines = text.split("\n")
    assert "| test fraction | 0.500 [-, -] | 1 of 3 |" in lines
    assert "| AST distance | - | 0 of 3 |" in lines
    (mean,) = [line for line in lines if line.startswith("| mean@2 ")]
    assert mean == "| mean@2 | 0.500 [0.000, 1.000] | 3 of 3 |"
    assert "verifier_errors 1" in text
    assert not any("BLEU" in line for line in lines)
    document = json.loads(files.dumps(table.document()))
    assert document["metrics"]["AST distance"] == {
        "value": None,
        "low": None,
        "high": None,
        "problems": 0,
        "of": 3,
    }
    assert document["metrics"]["mean@2"]["value"] == 0.5
    assert document["evaluation"] == HEADER
    assert {key: document[key] for key in ("format", "version")} == {
        "format": "mopd-evaluation",
        "version": 1,
    }


def test_bleu_is_in_the_table_where_it_is_asked_for():
    table = tables.table(HEADER, run(), bleu=diversity.bleu_scorer())
    assert table.metrics["self-BLEU-4"].problems == 3
    assert table.metrics["pairwise BLEU-4, success-failure"].problems == 1


def test_embeddings_are_a_callable():
    def embed(texts):
        return np.array([[1.0, float(text == "one two")] for text in texts])

    table = tables.table(HEADER, run(), embed=embed)
    assert table.metrics["embedding cosine, all"].value == pytest.approx((0.5**0.5 + 2) / 3)
    result = tables.compare(["x", "y"], [HEADER] * 2, [run(), run()], embed=embed)
    assert "embedding cosine, success-failure" in {row.metric for row in result.rows}


def test_a_table_begins_with_what_no_model_can_exceed():
    ceilings = {"eval: a:test": 0.9876, "eval: b:test": None}
    lines = tables.table({**HEADER, "ceilings": ceilings}, run()).markdown().split("\n")
    assert lines[1:4] == [
        "ceiling of all of eval: a:test: 0.9876",
        "ceiling of all of eval: b:test: not known (`mopd data check`)",
        "",
    ]
    assert "ceiling" not in tables.table(HEADER, run()).markdown()


def test_a_comparison_is_paired_by_the_problem_whatever_the_order():
    better = changed(run(), "b", 1, reward=1.0)
    result = tables.compare(["x", "y"], [HEADER, HEADER], [run(), [*better[1:], better[0]]])
    rows = {row.metric: row for row in result.rows}
    found = rows["mean@2"].paired
    assert found == estimates.paired(np.array([0.5, 0, 1]), np.array([0.5, 0.5, 1]))
    assert found.difference == pytest.approx(1 / 6)
    assert rows["AST distance"].paired.problems == 0
    assert np.isnan(rows["AST distance"].holm)
    assert result.family == sum(np.isfinite(row.holm) for row in result.rows)
    for row in result.rows:
        assert not row.holm < row.paired.p_value


def test_the_family_is_the_table():
    better = changed(run(), "b", 0, reward=1.0)
    runs = (["x", "y", "z"], [HEADER] * 3, [run(), better, better])
    result = tables.compare(*runs, metrics=["pass@2", "bigram similarity, all"])
    assert [(row.metric, row.run) for row in result.rows] == [
        ("pass@2", "y"),
        ("pass@2", "z"),
        ("bigram similarity, all", "y"),
        ("bigram similarity, all", "z"),
    ]
    p = np.array([row.paired.p_value for row in result.rows])
    np.testing.assert_array_equal([row.holm for row in result.rows], estimates.holm(p))
    assert result.family == 4
    text = result.markdown()
    assert (
        "| pass@2 | y | 0.500 | 1.000 | +0.500 [+0.000, +1.000] | 1.000 | 1.000 | 2 of 3 |"
        in text
    )
    assert "all 4 tests" in text
    twice = tables.compare(*runs, metrics=["pass@2", "pass@2"])
    assert twice.family == 2
    document = json.loads(files.dumps(result.document()))
    assert [row["run"] for row in document["rows"]] == ["y", "z"] * 2
    assert document["rows"][0]["p_value"] == 1.0
    with pytest.raises(
        tables.CompareError, match=r"'pas@2' does not exist; did you mean pass@2"
    ):
        tables.compare(*runs, metrics=["pas@2"])


def test_distinct_is_compared_at_one_budget():
    long = [[dataclasses.replace(r, text="w " * 50) for r in row] for row in run()]
    result = tables.compare(["x", "y"], [HEADER] * 2, [run(), long])
    budgets = {name: counts["budget"] for name, counts in result.counts.items()}
    assert len(set(budgets.values())) == 1
    own = [tables.table(HEADER, rows).counts["budget"] for rows in (run(), long)]
    assert own[0] == budgets["x"] < own[1]
    fixed = tables.compare(["x", "y"], [HEADER] * 2, [run(), long], budget=3)
    assert fixed.counts["y"]["budget"] == 3


def test_settings_that_differ_are_told():
    warm = {**HEADER, "temperature": 0.5, "ks": [2], "weights": "runs/y", "step": 4}
    result = tables.compare(["x", "y"], [HEADER, warm], [run(), run()])
    assert result.differ == ["temperature differs: 1.0, 0.5"]
    assert "temperature differs" in result.markdown()
    assert "pass@1" not in {row.metric for row in result.rows}


@pytest.mark.parametrize(
    ("names", "header", "rows", "words"),
    [
        (["x"], {}, None, "give two or more different evaluations, not x"),
        (["x", "x"], {}, None, "different evaluations, not x, x"),
        (["x", "y"], {"samples": 4}, None, "samples is 2 in x and 4 in y"),
        (["x", "y"], {"threshold": 0.5}, None, "threshold is 1.0 in x and 0.5 in y"),
        (["x", "y"], {}, run()[1:], "1 only in x: 'a'; evaluate both"),
        (["x", "y"], {}, [*run(), group("d", {}, {})], "1 only in y: 'd'"),
        (
            ["x", "y"],
            {},
            changed(changed(run(), "c", 0, question="f"), "c", 1, question="f"),
            "1 of another question, answer, verifier or tests: 'c'",
        ),
        (["x", "y"], {}, [group(str(i), {}, {}) for i in range(9)], "'a', 'b', 'c'"),
    ],
)
def test_what_cannot_be_compared(names, header, rows, words):
    given = [run(), run() if rows is None else rows][: len(names)]
    with pytest.raises(tables.CompareError) as error:
        tables.compare(names, [HEADER, {**HEADER, **header}][: len(names)], given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_of_many_ids_five_are_shown():
    with pytest.raises(
        tables.CompareError, match=r"7 only in y: '0', '1', '2', '3', '4', \.\.\."
    ):
        tables.compare(
            ["x", "y"],
            [HEADER] * 2,
            [run(), [*run(), *(group(str(i), {}, {}) for i in range(7))]],
        )
