"""What a person sees of a run: the final table."""

from mopd_jax import files
from mopd_jax.evaluation import final_table
from mopd_jax.run import logbook


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
