"""Source formats of mathematics, code and GPQA, on rows of our own in the hub's form."""

import ast
import base64
import csv
import datetime
import json
import pickle
import zlib

import pytest
import wants
from dataset_rows import mopd, needs_tfds, parsed
from hypothesis import given
from hypothesis import strategies as st
from sandbox_yard import open_or_skip

from mopd_jax import verifiers
from mopd_jax.data.prepared import catalogue, commands, files, livecodebench, programs, store
from mopd_jax.data.prepared.rows import DataError, LeftOut, ParsedProblem
from mopd_jax.verifiers import selftest


def sound(problems):
    """Every gold answer scores 1, and no mutation of it does."""
    found = selftest.selftest(problems, policy="error")
    return found.tested == len(problems) and found.ceiling == 1.0


# Mathematics.


def deep(difficulty, **fields):
    row = {"question": "Halve $1$.", "final_answer": r"\frac{1}{2}", "difficulty": difficulty}
    return {**row, "topic": "t", "r1_solution_1": "so 1/2", **fields}


def test_deepmath():
    (problem,) = parsed("deepmath", deep(6.0))
    assert problem.messages[-1]["content"].startswith("Halve $1$.\n\n")
    assert "\\boxed{}" in problem.messages[-1]["content"]
    assert (problem.answer, problem.solution) == (r"\frac{1}{2}", "")
    assert parsed("deepmath", deep(9), solutions=True)[0].solution == "so 1/2"
    with pytest.raises(LeftOut, match="difficulty below 6"):
        parsed("deepmath", deep(5.5))
    assert sound([problem])


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"answer": "204"}, "204"),
        ({"answer": 204}, "204"),
        ({"answer": r"\frac{9\sqrt{23}}{23}", "problem_idx": 7}, r"\frac{9\sqrt{23}}{23}"),
        ({"solution": r"first \boxed{1}, then \boxed{20\frac{1}{2}}"}, r"20\frac{1}{2}"),
    ],
)
def test_contests(fields, answer):
    (problem,) = parsed("hmmt_nov25", {"problem": "What?", **fields})
    assert problem.answer == answer
    assert problem.id == f"hmmt_nov25-{fields.get('problem_idx', 0)}"
    assert sound([problem])


@pytest.mark.parametrize(
    ("answer", "gold"), [("-12", "-12"), (" 1,234", "1,234"), ("0.5", "0.5"), ("$18", "$18")]
)
def test_gsm8k_keeps_signs_and_separators(answer, gold):
    row = {"question": "How many?", "answer": f"<<1+1=2>>\nso #### no\n#### {answer}"}
    (problem,) = parsed("gsm8k", row)
    assert problem.answer == gold
    assert problem.solution == "<<1+1=2>>\nso #### no"
    assert verifiers.verify(problem, rf"\boxed{{{gold.strip('$')}}}").reward == 1
    assert verifiers.verify(problem, r"\boxed{12}").reward == 0


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("deepmath", deep("hard"), "'difficulty' is 'hard'; it must be a number"),
        ("aime24", {"problem": "p", "answer": 1, "id": None}, "'id' is None, of type NoneT"),
        ("aime24", {"problem": "p", "answer": 1, "id": [1]}, r"'id' is \[1\], of type list"),
        ("hmmt_feb25", {"problem": "p", "answer": 1, "problem_idx": {}}, "'problem_idx' is"),
        ("deepmath", deep(float("nan")), "must be a number"),
        ("deepmath", deep(7, final_answer=0.5), "'final_answer' is of type float"),
        ("deepmath", deep(7, question=None), "no 'question'"),
        ("aime24", {"answer": "1"}, "none of problem, question"),
        ("aime24", {"problem": "p", "answer": True}, "of type bool"),
        ("aime24", {"problem": "p", "answer": 1.5}, "of type float"),
        ("aime24", {"problem": "p"}, "no 'solution'"),
        ("aime24", {"problem": "p", "solution": r"\boxed{1"}, "no box in 'solution'"),
        ("gsm8k", {"question": "q", "answer": "18"}, "does not end with ####"),
        ("gsm8k", {"question": "q", "answer": "x ####  "}, "does not end with ####"),
        ("gsm8k", {"question": "q", "answer": "x #### 1\n2"}, "does not end with ####"),
    ],
)
def test_bad_mathematics(name, row, message):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        parsed(name, row)


# GPQA.


def science(i, **fields):
    wrong = {f"Incorrect Answer {k}": f"{i + k} J" for k in (1, 2, 3)}
    return {
        "Record ID": f"rec{i}",
        "Question": "E?",
        "Correct Answer": f"{i} J",
        **wrong,
        **fields,
    }


def test_gpqa(tmp_path):
    path = tmp_path / "gpqa_diamond.csv"
    rows = [science(i, Question=f'line\n"quoted", {i}') for i in range(40)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    problems = parsed("gpqa", *(row.fields for row in files.rows(path)))
    assert len({p.id for p in problems}) == 40
    assert {p.answer for p in problems} == set("ABCD")
    for i, problem in enumerate(problems):
        assert problem.meta["options"][problem.answer] == f"{i} J"
        assert f'line\n"quoted", {i}\n\nA: ' in problem.messages[-1]["content"]
    assert sound(problems)
    again = parsed("gpqa", *(row.fields for row in files.rows(path)))
    assert again == problems
    assert parsed("gpqa", *rows, seed=1) != problems
    assert parsed("gpqa", science(1, **{"Record ID": ""}))[0].id == "gpqa-0"
    with pytest.raises(DataError, match=r"'Record ID' is \['x'\], of type list"):
        parsed("gpqa", science(1, **{"Record ID": ["x"]}))
    with pytest.raises(DataError, match="also among the wrong ones"):
        parsed("gpqa", science(1, **{"Incorrect Answer 2": "1 J"}))


# LiveCodeBench.

TESTS = [{"input": f"{i}\n", "output": f"{2 * i}\n", "testtype": "stdin"} for i in range(7)]
CALLS = [{"input": '[1, 2]\n"a b"', "output": "[1, 2]", "testtype": "functional"}] * 3


def packed(tests, protocol=4):
    """As the hub has private tests."""
    made = pickle.dumps(json.dumps(tests), protocol)
    return base64.b64encode(zlib.compress(made)).decode()


def contest(i=0, tests=TESTS, **fields):
    return {
        "question_title": "Double",
        "question_content": f"Double the number, task {i}.",
        "platform": "atcoder",
        "question_id": f"abc{i}_a",
        "contest_id": "abc",
        "contest_date": "2025-03-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests),
        "metadata": "{}",
        **fields,
    }


def test_livecodebench():
    (problem,) = parsed("livecodebench", contest(3))
    assert problem.meta == {"tests": TESTS, "time_limit": 6.0}
    assert (problem.id, problem.verifier) == ("livecodebench-abc3_a", "code")
    assert "6 seconds" in problem.messages[-1]["content"]
    (problem,) = parsed("livecodebench", contest(private_test_cases=json.dumps(TESTS)))
    assert problem.meta["tests"] == TESTS
    (problem,) = parsed("livecodebench", contest(private_test_cases=TESTS), public=True)
    assert problem.meta["tests"] == TESTS[:1] + TESTS
    starter = "class Solution:\n    def f(self, a, b):"
    row = contest(tests=CALLS, metadata='{"func_name": "f"}', starter_code=starter)
    (problem,) = parsed("livecodebench", row)
    assert problem.meta["fn_name"] == "f"
    assert starter in problem.messages[-1]["content"]


@pytest.mark.parametrize(
    ("date", "inside"),
    [
        ("2025-02-01", 1),
        ("2025-04-30T23:00:00", 1),
        ("2025-04-30 23:00:00.5", 1),
        (datetime.date(2025, 2, 1), 1),
        (datetime.datetime(2025, 4, 30, 23), 1),
    ],
)
def test_the_window_of_dates(date, inside):
    assert len(parsed("livecodebench", contest(contest_date=date))) == inside
    for outside in ("2025-01-31", "2025-05-01T00:00:00", datetime.datetime(2025, 5, 1)):
        with pytest.raises(LeftOut, match="outside of the window"):
            parsed("livecodebench", contest(contest_date=outside, private_test_cases="junk"))


@given(text=st.text(st.characters(exclude_categories=["Cs"])), protocol=st.integers(1, 5))
def test_a_packed_text_is_read_without_unpickling(text, protocol):
    made = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
    assert livecodebench.packed_text(made) == text


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 70_000, 1 << 20])
def test_packed_texts_of_every_size(size):
    made = base64.b64encode(zlib.compress(pickle.dumps("é" * size))).decode()
    assert livecodebench.packed_text(made) == "é" * size


class Trap:
    """Unpickling it would raise."""

    def __reduce__(self):
        return ast.literal_eval, ("boom!",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Trap()),
        pickle.dumps(["a", "b"]),
        pickle.dumps(("a",)),
        pickle.dumps({"a": "b"}),
        pickle.dumps(b"a"),
        pickle.dumps("a", 0),
        pickle.dumps("a") + b"x",
        pickle.dumps("a")[:-1],
        pickle.dumps("abc")[:-4],
        b"\x80\x04\x8c\x01a\x8c\x01b.",
        b"\x80\x04.",
        b"cos\nsystem\n(S'ls'\ntR.",
        b"\x8c\x02\xff\xfe.",
        b"\x8c",
        b"",
    ],
)
def test_other_pickles_are_refused(data):
    blob = base64.b64encode(zlib.compress(data)).decode()
    with pytest.raises(ValueError, match=r"not unpickled|utf-8"):
        livecodebench.packed_text(blob)
    with pytest.raises(DataError, match="row 1: 'private_test_cases' cannot be read"):
        parsed("livecodebench", contest(private_test_cases=blob))


@given(data=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    blob = base64.b64encode(zlib.compress(data)).decode()
    try:
        livecodebench.packed_text(blob)
    except ValueError:
        return


def test_a_packed_bomb_is_refused():
    bomb = base64.b64encode(zlib.compress(b"\0" * 100_000)).decode()
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        livecodebench.packed_text(bomb, most=1000)
    behind = base64.b64encode(zlib.compress(pickle.dumps("[]")) + b"more").decode()
    with pytest.raises(ValueError, match="4 bytes follow its end"):
        livecodebench.packed_text(behind)
    for junk in ("no base64!", "AAAA", bomb[:20]):
        with pytest.raises(ValueError, match=r"neither JSON nor|cut short"):
            livecodebench.packed_text(junk)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"contest_date": "soon"}, "'contest_date' is not a date: 'soon'"),
        ({"contest_date": "2025-03-01garbage"}, "'contest_date' is not a date: '2025-03-01gar"),
        ({"contest_date": "2025-03-01T00:00:00x"}, "'contest_date' is not a date"),
        ({"contest_date": "2025-03-01T"}, "'contest_date' is not a date"),
        ({"contest_date": "20250301"}, "write it as 2025-03-01 or"),
        ({"contest_date": "2025-W10-1"}, "write it as 2025-03-01 or"),
        ({"contest_date": "2025-02-30"}, "'contest_date' is not a date"),
        ({"contest_date": 3}, "'contest_date' is of type int"),
        ({"private_test_cases": None}, "no 'private_test_cases'"),
        ({"private_test_cases": "[]"}, "there is no test"),
        ({"private_test_cases": "[1]"}, "test 1 is of type int"),
        ({"private_test_cases": '[{"input": "1"}]'}, "'input' and 'output' must be texts"),
        ({"private_test_cases": packed([{**TESTS[0], "testtype": "x"}])}, "testtype 'x'"),
        ({"private_test_cases": packed(CALLS)}, "calls a function, but its name is None"),
        ({"metadata": "["}, "'metadata' is not JSON"),
        ({"metadata": "[1]"}, "'metadata' is of type list"),
        (
            {
                "metadata": '{"func_name": "f"}',
                "private_test_cases": packed([{**CALLS[0], "input": "[1 2]"}]),
            },
            "test 1: an argument or the output is not JSON",
        ),
        ({"starter_code": 3}, "'starter_code' is of type int"),
        ({"question_content": ""}, "'question_content' is empty"),
    ],
)
def test_a_bad_contest_row_is_named(fields, message):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        parsed("livecodebench", contest(**fields))


def test_both_splits_of_livecodebench():
    form = catalogue.find("livecodebench")
    problems = parsed("livecodebench", *map(contest, range(12)))
    rows = [ParsedProblem(p, "test6") for p in problems]
    made = form.split(rows, form.options)
    ids = {split: {p.id for p in made[split]} for split in made}
    assert (len(made["train"]), len(made["test"])) == (9, 3)
    assert not ids["train"] & ids["test"]
    assert not form.shared(form.options)

    options = {**form.options, "split": "tests"}
    made = form.split(rows, options)
    assert form.shared(options)
    assert made["test"] == problems
    for half, whole in zip(made["train"], problems, strict=True):
        assert half.id == whole.id
        assert len(half.meta["tests"]) == 3
        assert all(test in whole.meta["tests"] for test in half.meta["tests"])
    assert len({str(p.meta["tests"]) for p in made["train"]}) > 1
    assert form.split(rows, options) == made
    single = parsed("livecodebench", contest(tests=TESTS[:1]))
    half = form.split([ParsedProblem(single[0], "x")], options)["train"]
    assert half[0].meta["tests"] == TESTS[:1]
    for wrong in ({"split": "x"}, {"start": "2025-05-01"}, {"end": "tomorrow"}):
        with pytest.raises(DataError, match="--option"):
            parsed("livecodebench", contest(), **wrong)
            form.split(rows, {**form.options, **wrong})


# HumanEval+ and MBPP+.

CHECK = """
def assertion(out, exp, atol):
    assert out == exp

def check(candidate):
    inputs = {inputs}
    results = {results}
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion({call}, exp, 0)
"""


def humaneval(inputs, results, call="candidate(*inp)"):
    return {
        "task_id": "HumanEval/7",
        "prompt": 'def add(a, b):\n    """Adds."""\n',
        "canonical_solution": "    return a + b\n",
        "entry_point": "add",
        "test": CHECK.format(inputs=inputs, results=results, call=call),
    }


def mbpp(inputs="[[(1, 2), (3,)]]", results="[(1, 2, 3)]", call="join(*inp)", **fields):
    return {
        "task_id": 2,
        "code": "def join(a, b):\n    return tuple(a) + tuple(b)",
        "prompt": "Write a function to join two tuples.",
        "test_imports": [],
        "test_list": ["assert join((1,), (2,)) == (1, 2)"],
        "test": CHECK.format(inputs=inputs, results=results, call=call),
        **fields,
    }


def test_humaneval_plus():
    (problem,) = parsed("humanevalplus", humaneval("[[1, 2], ['a b', 'c']]", "[3, 'a bc']"))
    first, second = problem.meta["tests"]
    assert (first["input"], first["output"]) == ("1\n2", "3")
    assert (second["input"], second["output"]) == ('"a b"\n"c"', '"a bc"')
    assert problem.meta["fn_name"] == "add"
    assert problem.id == "humanevalplus-7"
    assert problem.solution.endswith("return a + b\n")
    assert problem.solution not in problem.messages[-1]["content"]


def test_tests_that_json_cannot_say_are_counted():
    row = humaneval("[[{1}, 2], [1, 2], [float('inf'), 1], [{1: 2}, 1]]", "[1, 3, 2, 4]")
    (problem,) = parsed("humanevalplus", row)
    assert [test["output"] for test in problem.meta["tests"]] == ["3"]
    assert problem.meta["tests_left_out"] == 3
    many = str([[i, 1] for i in range(1000)])
    (problem,) = parsed("humanevalplus", humaneval(many, str(list(range(1, 1001)))))
    chosen = [int(test["output"]) for test in problem.meta["tests"]]
    assert (len(chosen), chosen[0], problem.meta["tests_not_drawn"]) == (64, 1, 936)
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (humaneval("[[{1}]]", "[1]"), "JSON can express none"),
        (humaneval("[[1]]", "[f(i) for i in range(3)]"), "computed, not written down"),
        (humaneval("[[1]]", "[1]", "abs(candidate(*inp))"), "more than compare"),
        (humaneval("[[1]]", "[1]", "candidate(*inp, k=1)"), "more than compare"),
        ({**humaneval("[[1]]", "[1]"), "entry_point": "find_zero"}, "a rule of its own"),
        ({**humaneval("[[1]]", "[1]"), "test": "assert candidate(1)"}, "more than compare"),
    ],
)
def test_problems_without_usable_tests_are_left_out(row, message):
    with pytest.raises(LeftOut, match=message):
        parsed("humanevalplus", row)


def test_mbpp_plus():
    (problem,) = parsed("mbppplus", mbpp())
    assert problem.meta["tests"][0]["input"] == "[1, 2]\n[3]"
    assert "`join`" in problem.messages[-1]["content"]
    assert "assert join((1,), (2,)) == (1, 2)" in problem.messages[-1]["content"]
    assert "float_tolerance" not in problem.meta
    loose = mbpp()["test"].replace("exp, 0)", "exp, 1e-4)")
    assert parsed("mbppplus", mbpp(test=loose))[0].meta["float_tolerance"] == 1e-4
    with pytest.raises(LeftOut, match="more than compare"):
        parsed("mbppplus", mbpp(call="set(join(*inp))"))
    with pytest.raises(LeftOut, match="a rule of its own"):
        parsed("mbppplus", mbpp(call="similar_elements(*inp)"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (humaneval("[[1], [2]]", "[1]"), "2 inputs for 1 results"),
        (mbpp(test="def ("), "'test' is not a Python program"),
        (mbpp(test="x" * (1 << 25)), "33,554,432 characters"),
        (mbpp(test_list=[3]), "'test_list' must be a list of assertions"),
        (mbpp(test=None), "no 'test'"),
        (mbpp(code=3), "'code' is of type int"),
        (mbpp(task_id=None), "'task_id' is None, of type NoneType"),
        (mbpp(task_id=[1]), "'task_id' is .1., of type list"),
    ],
)
def test_bad_rows_of_evalplus(row, message):
    name = "humanevalplus" if "entry_point" in row else "mbppplus"
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        parsed(name, row)


def test_nothing_of_a_test_program_is_run(tmp_path):
    trap = tmp_path / "ran"
    row = mbpp(inputs=f"[[open({str(trap)!r}, 'w')], [1, 2]]", results="[1, 3]")
    (problem,) = parsed("mbppplus", row)
    assert len(problem.meta["tests"]) == 1
    assert not trap.exists()


@needs_tfds
def test_programs_are_checked_in_a_sandbox(tmp_path, capsys):
    open_or_skip("namespaces").close()
    rows = [mbpp(), {**mbpp(results="[(0,)]"), "task_id": 3, "prompt": "Another."}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    mopd("prepare", "mbppplus", f"--source={tmp_path}", f"--out={tmp_path}")
    mopd("check", "mbppplus", f"--dir={tmp_path}", "--policy=exclude", "--threads=2")
    assert "ceiling 0.5000; 1 fail on their own gold answer" in capsys.readouterr().out
    assert [p.id for p in store.StoredProblems(tmp_path, "mbppplus", "test")] == ["mbppplus-2"]


@needs_tfds
def test_tests_that_a_set_does_not_have_are_counted(tmp_path, capsys):
    many = str([[{1}, 2]] + [[i, 1] for i in range(100)])
    rows = [{**humaneval(many, str([1, *range(1, 101)])), "task_id": i} for i in (1, 2)]
    rows[1]["prompt"] = 'def add(a, b):\n    """Sums up."""\n'
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    mopd("prepare", "humanevalplus", f"--source={tmp_path}", f"--out={tmp_path}")
    out = capsys.readouterr().out
    assert "tests left out, JSON cannot express them: 2\n" in out
    assert "tests not drawn, above max_tests: 72\n" in out
    manifest = store.read_manifest(tmp_path, "humanevalplus")
    assert manifest["tests"] == {"tests_left_out": 2, "tests_not_drawn": 72}
    # The user's own meta counts nothing.
    row = {"prompt": "q", "answer": "a", "meta": {"tests_left_out": "many"}}
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.json").write_text(json.dumps([row]))
    mopd("prepare", "jsonl", f"--source={tmp_path / 'own'}", f"--out={tmp_path}")
    assert store.read_manifest(tmp_path, "jsonl")["tests"] == {}


def test_gold_programs_pass_and_spoiled_ones_fail():
    open_or_skip("namespaces").close()
    problems = parsed("humanevalplus", humaneval("[[1, 2], ['a b', 'c']]", "[3, 'a bc']"))
    assert sound(problems + parsed("mbppplus", mbpp()))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_what_json_has_stays_as_it_is(value):
    assert programs.json_value(value) == value
    (line,) = programs.call([value], value)["input"].split("\n")
    assert json.loads(line) == value


# The hub.


class FakeHub:
    """Two commits of one repository, in folders."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def resolve(self, repo, revision):
        self.asked.append((repo, revision))
        if revision == "gone":
            raise RuntimeError("404")
        return "main" if revision == "odd" else "a" * 40

    def download(self, repo, commit, patterns):
        self.asked.append((repo, commit, tuple(patterns)))
        return str(self.folder)


@needs_tfds
def test_the_hub_is_asked_for_one_commit(tmp_path):
    pyarrow = wants.importing("pyarrow")
    wants.importing("pyarrow.parquet")
    source = tmp_path / "snapshot"
    (source / "main").mkdir(parents=True)
    for part in ("train", "test"):
        rows = [{"question": f"{part} {i}?", "answer": f"#### {i}"} for i in range(3)]
        path = source / f"main/{part}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    (source / ".cache").mkdir()
    (source / ".cache/x.json").write_text("not a row")
    # What others downloaded of that commit is not asked for, and not read.
    (source / "socratic").mkdir()
    (source / "socratic/train-00000-of-00001.parquet").write_text("not read")
    fake = FakeHub(source)
    flags = [("source", "hub"), ("out", str(tmp_path / "out"))]
    text, status = commands.run(["prepare", "gsm8k"], flags, client=fake)
    assert status == 0
    assert "3 train, 3 test problems from 6 rows" in text
    assert fake.asked == [
        ("openai/gsm8k", "main"),
        ("openai/gsm8k", "a" * 40, ("main/*.parquet",)),
    ]
    manifest = store.read_manifest(tmp_path / "out", "gsm8k")
    assert manifest["origin"]["commit"] == "a" * 40
    assert manifest["files"][0]["name"] == "main/test-00000-of-00001.parquet"
    mopd("check", "gsm8k", f"--dir={tmp_path / 'out'}")

    # A copy of the repository is read as the hub is.
    mopd("prepare", "gsm8k", f"--source={source}", f"--out={tmp_path / 'copy'}")
    copy = store.read_manifest(tmp_path / "copy", "gsm8k")
    assert copy["files"] == manifest["files"]
    assert copy["skipped"] == {".parquet": 1, "hidden": 1}
    # What is wrong with the command is said before anything is fetched.
    fake.asked.clear()
    for more, message in (
        ((), "exists; remove it"),
        ((("as", "A"),), "cannot be called 'A'"),
        ((("as", "x"), ("bad-rows", "skip")), "must be error or exclude"),
    ):
        with pytest.raises(DataError, match=message):
            commands.run(["prepare", "gsm8k"], [*flags, *more], client=fake)
    assert fake.asked == []

    for revision, message in (("gone", r"RuntimeError: 404"), ("odd", "names no commit")):
        with pytest.raises(DataError, match=message):
            commands.run(["prepare", "gpqa"], [*flags, ("revision", revision)], client=fake)
    with pytest.raises(DataError, match="It is gated"):
        commands.run(["prepare", "gpqa"], [*flags, ("revision", "gone")], client=fake)
    with pytest.raises(DataError, match="the catalogue has no hub for tooluse"):
        commands.run(["prepare", "tooluse"], flags, client=fake)


def test_every_data_set_says_where_it_comes_from():
    for name, form in catalogue.FORMATS.items():
        assert form.licence
        assert (form.hub is None) == (name in ("tooluse", "jsonl"))
