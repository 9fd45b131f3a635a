"""Data sets: rows of every source format, what is refused, what is written, its self-test."""

import json
import os

import numpy as np
import pytest
import wants
from dataset_rows import lines, mopd, needs_tfds, parsed

from mopd_jax import verifiers
from mopd_jax.config import DataConfig, SandboxConfig
from mopd_jax.data import sources
from mopd_jax.data.prepared import catalogue, check, files, prepare, splits, store
from mopd_jax.data.prepared.rows import DataError, ParsedProblem
from mopd_jax.errors import ConfigError, InputError
from mopd_jax.records import Problem
from mopd_jax.sandbox import SandboxError

# SciKnowEval.


def science(i, *, domain="Chemistry", level="L3", kind="mcq-4-choices", **fields):
    texts = [f"{i + k} mol" for k in range(2 if "2" in kind else 4)]
    return {
        "question": f"How much of substance number {i} is left?",
        "choices": {"text": texts, "label": list("ABCD")[: len(texts)]},
        "answerKey": "B",
        "type": kind,
        "domain": domain,
        "details": {"level": level, "task": "t", "subtask": "s", "source": "x"},
        "answer": "",
        **fields,
    }


def built(i, question="Which one?", options=("one", "two"), answer="A"):
    shown = "\n".join(
        f"{letter}: {text}" for letter, text in zip("ABCD", options, strict=False)
    )
    prompt = f"{question}\n\n{shown}\nPlease reason step by step."
    return {"idx": i, "kind": "mcq", "answer": answer, "prompt": prompt, "system": "s"}


def test_sciknoweval_from_the_hub():
    (problem,) = parsed("sciknoweval_chemistry", science(3))
    system, user = problem.messages
    assert "<answer>" in system["content"]
    assert "number 3 is left?\n\nA: 3 mol\nB: 4 mol\nC: 5 mol\nD: 6 mol\n" in user["content"]
    assert (problem.answer, problem.verifier) == ("B", "choice")
    assert problem.meta["options"]["D"] == "6 mol"
    assert verifiers.verify(problem, "<answer>B. 4 mol</answer>").reward == 1


def test_sciknoweval_as_built():
    question = "What follows?\n\nA: not an option\nit goes on"
    (problem,) = parsed("sciknoweval_physics", built(7, question, ("x", "y: z"), "B"))
    assert problem.id == "sciknoweval-physics-7"
    assert problem.meta["options"] == {"A": "x", "B": "y: z"}
    assert question in problem.messages[-1]["content"]
    assert "Please reason" not in problem.messages[-1]["content"]


@pytest.mark.parametrize("between", ["\n\n", "\n \n", "\n\n\n"])
def test_blank_lines_may_stand_between_options(between):
    """The text of an option may have ended in a line end."""
    shown = between.join(["A: one", "B: two", "C: three", "D: four"])
    question = "Which?\n\nA: no option\n\nwith more"
    prompt = f"{question}\n\n{shown}\n\nPlease reason step by step."
    (problem,) = parsed("sciknoweval_material", {**built(0, answer="D"), "prompt": prompt})
    assert list(problem.meta["options"].items()) == list(
        zip("ABCD", ("one", "two", "three", "four"), strict=True)
    )
    assert problem.messages[-1]["content"].startswith(f"{question}\n\nA: one\nB: two")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answerKey": "E"}, "'answerKey' is 'E'; it must be one of A, B, C, D"),
        ({"answerKey": 2}, "'answerKey' is of type int; it must be text"),
        ({"answerKey": None}, "no 'answerKey'"),
        ({"question": " "}, "'question' is empty"),
        ({"question": "a\x00b"}, r"control character '\\x00' at 1"),
        ({"question": "\x08eta"}, "a backslash that was read as an escape"),
        ({"question": "q" * 200_001}, "200,001 characters; at most 200,000"),
        ({"question": "\ud800"}, "not Unicode text"),
        ({"choices": ["a", "b"]}, "'choices' is of type list"),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "1 letters for 2 options"),
        ({"choices": {"text": ["a", "b"], "label": ["B", "A"]}}, "they must be A, B"),
        ({"choices": {"text": ["a", 3], "label": ["A", "B"]}}, "option B is 3"),
        ({"choices": {"text": "ab", "label": "AB"}}, "no lists 'label' and 'text'"),
        ({"details": "L3"}, "'details' is of type str"),
        ({"details": {}}, "'details.level' is None, .* such as 'L3'"),
        ({"details": {"level": 3}}, "'details.level' is 3, of type int"),
    ],
)
def test_a_bad_science_row_is_named(fields, message):
    with pytest.raises(DataError, match=rf"rows.jsonl, row 2: .*{message}"):
        parsed("sciknoweval_chemistry", science(0), science(1, **fields))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("no options", "does not end with a blank line and options"),
        ("q\n\nA: x\nC: y", "they must be A, B"),
        ("q\nA: x\nB: y", "does not end with a blank line and options"),
        ("\n\nA: x\nB: y", "does not end with a blank line and options"),
        ("A: x\nB: y", "does not end with a blank line and options"),
        ("q\n\nB: y\n\nC: z", "does not end with a blank line and options"),
        ("q\n\nA: x\nmore\nB: y", "does not end with a blank line and options"),
        ("q\n\nA: x", "1 letters for 1 options"),
        ("q\n\nA: x\nB: ", "option B is ''"),
    ],
)
def test_a_bad_built_row_is_named(prompt, message):
    with pytest.raises(DataError, match=message):
        parsed("sciknoweval_physics", {**built(0), "prompt": prompt})


def test_the_published_split_of_sciknoweval():
    """The first rows of both splits as published, which are this permutation."""
    rows = [
        ParsedProblem(p, "all")
        for p in parsed("sciknoweval_chemistry", *map(science, range(2100)))
    ]
    made = catalogue.find("sciknoweval_chemistry").split(rows, {"test_share": 0.1, "seed": 42})
    numbers = {split: [int(p.id.split("-")[-1]) for p in made[split]] for split in made}
    assert {split: len(made[split]) for split in made} == {"train": 1890, "test": 210}
    assert numbers["test"][:5] == [1522, 1033, 1476, 837, 1966]
    assert numbers["train"][:5] == [743, 608, 2026, 283, 357]
    order = np.random.default_rng(42).permutation(2100)
    assert numbers["test"] + numbers["train"] == order.tolist()


@pytest.mark.parametrize(("rows", "held"), [(500, 50), (800, 80), (935, 94)])
def test_the_published_sizes(rows, held):
    problem = Problem("x", ({"role": "user", "content": "q"},), "a", "exact")
    made = splits.permuted([ParsedProblem(problem, "all")] * rows, share=0.1, seed=42)
    assert (len(made["train"]), len(made["test"])) == (rows - held, held)


@pytest.mark.parametrize(
    ("part", "split"),
    [
        ("train", "train"),
        ("chemistry_test", "test"),
        ("test-00000-of-00002", "test"),
        ("Train2", "train"),
        ("latest", None),
        ("contest", None),
        ("train_test", None),
        ("all", None),
    ],
)
def test_what_a_files_name_says(part, split):
    assert splits.split_of(part) == split


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (["test-00000-of-00002", "test-00001-of-00002"], {"train": 18, "test": 2}),
        (["chemistry_train", "chemistry_test"], {"train": 10, "test": 10}),
        (["all"], {"train": 9, "test": 1}),
    ],
)
def test_sciknoweval_is_split_unless_it_is(parts, sizes):
    form = catalogue.find("sciknoweval_chemistry")
    rows = [
        ParsedProblem(p, x) for x in parts for p in parsed("sciknoweval_chemistry", science(1))
    ] * 10
    made = form.split(rows, form.options)
    assert {split: len(made[split]) for split in made} == sizes


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ([("physics_test", "mcq")], {"train": 0, "test": 10}),
        ([("physics_train", "mcq")], {"train": 10, "test": 0}),
        ([("physics", "mcq")], {"train": 9, "test": 1}),
        ([("physics_train", "mcq"), ("more", "mcq")], {"train": 19, "test": 1}),
        ([("physics_test", "mcq"), ("test-00000", "")], {"train": 9, "test": 11}),
    ],
)
def test_built_rows_are_split_as_their_file_says(parts, sizes):
    form = catalogue.find("sciknoweval_physics")
    rows = [
        ParsedProblem(p, part, kind)
        for part, kind in parts
        for i in range(10)
        for p in parsed("sciknoweval_physics", built(i))
    ]
    made = form.split(rows, form.options)
    assert {split: len(made[split]) for split in made} == sizes


@needs_tfds
def test_a_test_file_alone_is_the_test_split(tmp_path):
    lines(tmp_path / "physics_test.jsonl", *(built(i, f"q{i}") for i in range(20)))
    mopd("prepare", "sciknoweval_physics", f"--source={tmp_path}", f"--out={tmp_path}")
    manifest = store.read_manifest(tmp_path, "sciknoweval_physics")
    assert manifest["splits"] == {"train": 0, "test": 20}


@pytest.mark.parametrize(
    ("path", "domain", "said"),
    [
        ("x/physics_train.jsonl", "biology", "the file physics_train is of physics"),
        ("materials/train.jsonl", "physics", "the folder materials is of material"),
        ("physics/chemistry_train.jsonl", "physics", "the file chemistry_train is of chem"),
        ("physics/material_train.jsonl", "material", ""),
        ("materials/train.jsonl", "material", ""),
        ("x/train.jsonl", "biology", ""),
        ("geophysics/train.jsonl", "biology", ""),
        ("study_materials/train.jsonl", "physics", ""),
        (
            "sciknoweval_material/train.jsonl",
            "physics",
            "the folder sciknoweval_material is of",
        ),
    ],
)
def test_built_rows_of_another_domain_are_refused(tmp_path, path, domain, said):
    path = lines(tmp_path / path, *(built(i, f"q{i}") for i in range(3)))
    (*_, row) = files.rows(path)
    form = catalogue.find(f"sciknoweval_{domain}")
    if not said:
        assert form.parse(row, form.options)
        return
    with pytest.raises(DataError, match=f"row 3: .*{said}.* not of {domain}"):
        form.parse(row, form.options)
    # All of the file is wrong, so its rows are not excluded one by one.
    with pytest.raises(DataError, match=f"^{path}, row 1: .*{said}"):
        prepare.prepare(
            f"sciknoweval_{domain}", path, tmp_path, options=form.options, bad_rows="exclude"
        )


# Tool use.

CALLS = [{"Action": "find", "Action_Input": '{"city": "Bonn", "days": 3}'}]


def tool(**fields):
    return {
        "Name": "Weather",
        "Description": "Forecasts",
        "NLDocumentation": "find: the weather of a city.\nParameters: {}",
        "Instructions": ["Weather in Bonn for 3 days, please", "And now?"],
        "Golden_Answers": [CALLS, [{"Action": "now", "Action_Input": {"in": {"a": [1]}}}]],
        **fields,
    }


def test_tool_use_from_toolalpaca():
    first, second = parsed("tooluse", tool())
    assert first.id != second.id
    text = first.messages[-1]["content"]
    assert "find: the weather" in text
    assert text.endswith("Request: Weather in Bonn for 3 days, please")
    said = 'Action: find\nAction Input: {"days": 3, "city": "Bonn"}'
    assert verifiers.verify(first, said).reward == 1
    assert verifiers.verify(second, 'Action: now\nAction Input: {"in": {"a": [1]}}').reward == 1


def test_tool_use_as_built():
    row = {"kind": "tooluse", "idx": 9, "prompt": "p", "answer": json.dumps(CALLS)}
    (problem,) = parsed("tooluse", {**row, "system": None}, order="exact")
    assert (problem.id, problem.meta) == ("tooluse-9", {"order": "exact"})
    assert problem.messages == ({"role": "user", "content": "p"},)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Golden_Answers": [CALLS]}, "2 instructions for 1 golden answers"),
        ({"Golden_Answers": "x"}, "must be lists"),
        ({"Golden_Answers": [CALLS, []]}, "golden answer 2 is not a list of one call or more"),
        (
            {"Golden_Answers": [CALLS, [{"Action": "a"}]]},
            "not an object of Action and Action_Input",
        ),
        (
            {"Golden_Answers": [[{"Action": " ", "Action_Input": "{}"}], CALLS]},
            "call 1: 'Action' is not a name",
        ),
        (
            {"Golden_Answers": [[{"Action": "a", "Action_Input": "{"}], CALLS]},
            "'Action_Input' is not JSON ",
        ),
        (
            {"Golden_Answers": [[{"Action": "a", "Action_Input": "[]"}], CALLS]},
            "'Action_Input' is not a JSON object",
        ),
        ({"Instructions": ["a", 3]}, "instruction 2 is empty or not text"),
        ({"Name": None}, "no 'Name'"),
    ],
)
def test_a_bad_tool_row_is_named(fields, message):
    with pytest.raises(DataError, match=rf"row 1: .*{message}"):
        parsed("tooluse", tool(**fields))


@needs_tfds
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"Action": "a", "Action_Input": '{"x": NaN}'}, "NaN is no JSON"),
        ({"Action": "a", "Action_Input": '{"x": 1, "x": 2}'}, "a key is given twice"),
        ({"Action": "a\nAction: b", "Action_Input": "{}"}, "a name of several lines"),
        ({"Action": "**", "Action_Input": "{}"}, "has no name"),
    ],
)
def test_gold_calls_that_the_verifier_cannot_read_are_bad_rows(tmp_path, capsys, call, message):
    lines(tmp_path / "test.jsonl", tool(), tool(Golden_Answers=[CALLS, [call]]))
    flags = (f"--source={tmp_path}", f"--out={tmp_path}")
    mopd("prepare", "tooluse", *flags, status=2)
    err = capsys.readouterr().err
    assert "test.jsonl, row 2: gold call 1" in err and message in err
    mopd("prepare", "tooluse", *flags, "--bad-rows=exclude")
    assert store.read_manifest(tmp_path, "tooluse")["splits"] == {"train": 0, "test": 2}


@needs_tfds
def test_a_tool_without_instructions_is_counted(tmp_path, capsys):
    lines(tmp_path / "test.jsonl", tool(), tool(Instructions=[], Golden_Answers=[]))
    mopd("prepare", "tooluse", f"--source={tmp_path}", f"--out={tmp_path}")
    assert "left out, a tool without instructions: 1" in capsys.readouterr().out


# Splits and duplicates.


def problem(name, text, answer="a"):
    return Problem(name, ({"role": "user", "content": text},), answer, "exact")


def test_duplicates_are_found_and_counted():
    made, found = splits.without_duplicates(
        {
            "train": [
                problem("1", "in both"),
                problem("2", "once"),
                problem("3", "twice"),
                problem("4", " twice "),
                problem("10", "Twice"),
                problem("5", "odd", "x"),
                problem("6", "odd", "y"),
            ],
            "test": [problem("7", "in  both"), problem("8", "own"), problem("9", "own")],
        }
    )
    assert [p.id for p in made["train"]] == ["2", "3", "10"]
    assert [p.id for p in made["test"]] == ["7", "8", "9"]
    assert found == {
        "train_in_test": ["1"],
        "train_repeated": ["4"],
        "train_contradicted": ["5", "6"],
        "test_repeated": ["9"],
    }


def test_a_chat_is_all_of_its_turns():
    def chat(name, system, topic, answer):
        texts = (topic, "Say more.", "Give the answer.")
        turns = zip(("user", "assistant", "user"), texts, strict=True)
        said = [{"role": "system", "content": system}]
        said += [{"role": role, "content": text} for role, text in turns]
        return Problem(name, tuple(said), answer, "exact")

    rows = [chat("1", "s", "2 + 2?", "4"), chat("2", "s", "3 + 3?", "6")]
    made, found = splits.without_duplicates({"train": rows, "test": []})
    assert made["train"] == rows and not any(found.values())
    rows = [*rows, chat("3", "other words", "2  + 2?", "5")]
    made, found = splits.without_duplicates({"train": rows, "test": []})
    assert [p.id for p in made["train"]] == ["2"]
    assert found["train_contradicted"] == ["1", "3"]
    # In a user's rows the question may be in the system turn.
    made, found = splits.without_duplicates({"train": rows, "test": []}, by_system=True)
    assert made["train"] == rows and not any(found.values())
    assert catalogue.find("jsonl").by_system and not catalogue.find("gsm8k").by_system
    twice = [rows[0], chat("4", "s", "2  + 2?", "4")]
    made, found = splits.without_duplicates({"train": twice, "test": []}, by_system=True)
    assert found["train_repeated"] == ["4"]


# Files.


def read(path):
    return list(files.rows(path))


def test_every_kind_of_file(tmp_path):
    want = [{"a": "1\u2028", "b": "x"}, {"a": "2", "b": 'y, "z"\nw'}]
    (tmp_path / "a.json").write_text(json.dumps(want))
    lines(tmp_path / "b.jsonl", *want)
    lines(tmp_path / "c.json", *want)
    (tmp_path / "d.json").write_text(json.dumps({"data": want}))
    (tmp_path / "e.csv").write_text('\ufeffa,b\n1\u2028,x\n2,"y, ""z""\nw"\n')
    paths = files.find(tmp_path).paths
    assert [path.name for path in paths] == ["a.json", "b.jsonl", "c.json", "d.json", "e.csv"]
    for path in paths:
        assert [dict(row.fields) for row in read(path)] == want, path
    assert [row.where for row in read(paths[1])] == [f"{paths[1]}, row {i}" for i in (1, 2)]


def test_parquet(tmp_path):
    parquet = wants.importing("pyarrow.parquet")
    pyarrow = wants.importing("pyarrow")
    rows = [{"a": f"{i}", "b": {"text": ["x", "y"]}} for i in range(150)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-00000.parquet")
    assert [dict(row.fields) for row in read(tmp_path / "train-00000.parquet")] == rows
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path / "bad.parquet")


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n[1]\n{"a":\n')
    good, *bad = read(path)
    assert good.fields == {"a": 1}
    assert f"{path}, row 2: a list, not an object" in str(bad[0])
    assert f"{path}, row 3: not JSON" in str(bad[1])
    for name, content, message in (
        ("d.json", b'["\xff"]', "d.json is not UTF-8"),
        ("d.csv", b"a\n\xff\n", "d.csv is not UTF-8"),
        ("e.json", b'{"rows": [{"a": 1, "a": 2}]}', "e.json: the key 'a' is given twice"),
        ("b.json", b"{", "is not JSON"),
        ("c.json", b"3", "holds a int"),
        ("b.csv", b'a,b\n"1', "unexpected end of data"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    (tmp_path / "c.csv").write_text("a,b\n1\n")
    assert "more or fewer cells" in str(read(tmp_path / "c.csv")[0])
    with pytest.raises(DataError, match="does not exist"):
        files.find(tmp_path / "nowhere")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match="must end in one of .jsonl, .json, .csv, .parquet"):
        files.find(tmp_path / "x.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        files.find(tmp_path / "empty")


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_bad_byte_is_its_rows_own(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b'{"a": "x"}\n' * 9000 + b'{"a": "\xff"}\n{"a": "y"}\n')
    *_, bad, good = read(path)
    assert str(bad).startswith(f"{path}, row 9001: not UTF-8 text (invalid start byte at byte ")
    assert good.fields == {"a": "y"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "NaN is not a number in JSON"),
        ("[[-Infinity]]", "-Infinity is not a number in JSON"),
        ('{"y": [{"z": 1e999}]}', "1e999 is out of range"),
        ('{"y": 1, "y": 1}', "the key 'y' is given twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_json_does_not_have_is_its_rows_error(tmp_path, value, message):
    bad = f'{{"x": {value}}}'
    (tmp_path / "a.jsonl").write_text(f'{{"x": 1.5e3}}\n{bad}\n')
    first, second = read(tmp_path / "a.jsonl")
    assert first.fields == {"x": 1500.0}
    assert f"a.jsonl, row 2: {message}" in str(second).replace("its JSON is ", "")
    if not value.startswith("[[["):
        (tmp_path / "b.json").write_text(f'[{{"x": 1.5e3}},\n{bad}]')
        first, second = read(tmp_path / "b.json")
        assert first.fields == {"x": 1500.0} and f"b.json, row 2: {message}" in str(second)


def test_what_is_not_read_is_counted(tmp_path):
    lines(tmp_path / "a/train.jsonl", {"a": 1})
    for name in ("a/b.jsonl.gz", "a/c.JSONL", "d.txt", "e.txt", "README", ".git/f.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "back").symlink_to(tmp_path)
    found = files.find(tmp_path)
    assert found.paths == [tmp_path / "a/train.jsonl"]
    assert found.skipped == {
        ".JSONL": 1,
        ".gz": 1,
        ".txt": 2,
        "hidden": 1,
        "linked folder": 1,
        "without ending": 1,
    }
    with pytest.raises(DataError, match="holds no file"):
        files.find(tmp_path, ("main/*.jsonl",))
    assert files.find(tmp_path, ("main/*.jsonl",), strict=False) == found


def test_what_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="xxx cannot be read: File name too long"):
        files.find(tmp_path / ("x" * 300))
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "nothing")
    (path,) = files.find(tmp_path).paths
    for act in (read, files.checksum):
        with pytest.raises(DataError, match=r"a.jsonl cannot be read: No such file"):
            act(path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read: Permission denied"):
        files.find(tmp_path)


# Prepare, check, show, load.


@pytest.fixture
def chemistry(tmp_path):
    """A prepared data set of 36 train and 4 test problems, and its folder."""
    rows = [science(i) for i in range(40)]
    others = [
        science(1, level="L1"),
        science(2, domain="Biology"),
        science(3, kind="open-ended"),
    ]
    lines(tmp_path / "src/all.jsonl", *rows, *others)
    mopd(
        "prepare", "sciknoweval_chemistry", f"--source={tmp_path / 'src'}", f"--out={tmp_path}"
    )
    return tmp_path


@needs_tfds
def test_prepare_check_show_load(chemistry, capsys):
    flags = (f"--source={chemistry / 'src'}", f"--out={chemistry / 'again'}")
    mopd("prepare", "sciknoweval_chemistry", *flags)
    out = capsys.readouterr().out
    assert "36 train, 4 test problems from 43 rows" in out
    assert out.count("left out, ") == 3
    mopd("check", "sciknoweval_chemistry", f"--dir={chemistry}")
    out = capsys.readouterr().out
    assert "train: 36 items, 36 tested, ceiling 1.0000; 0 fail" in out
    mopd("show", "sciknoweval_chemistry", f"--dir={chemistry}", "--row=2", "--split=test")
    out = capsys.readouterr().out
    cfg = DataConfig(
        source="tfds",
        options={"dir": str(chemistry), "name": "sciknoweval_chemistry"},
        instruction="Be brief.",
    )
    train, held = (sources.load(cfg, split, seed=0) for split in ("train", "eval"))
    assert (len(train), len(held)) == (36, 4)
    text = held[2].messages[-1]["content"]
    assert text.endswith("Be brief.")
    assert text.removesuffix("\n\nBe brief.") in out
    ids = [int(p.id.split("-")[-1]) for p in (*held, *train)]
    assert ids == np.random.default_rng(42).permutation(40).tolist()
    assert train[-1] == train[35]
    assert [p.id for p in train[2:4]] == [train[2].id, train[3].id]
    assert all(verifiers.verify(p, f"<answer>{p.answer}</answer>").reward == 1 for p in held)
    said = sources.record(cfg)
    assert said["eval: sciknoweval_chemistry:test"]["ceiling"] == 1.0
    stream = sources.ProblemStream(train, seed=0)
    assert len({p.id for p in stream.take(36)[0]}) == 36


@needs_tfds
def test_the_manifest(chemistry):
    manifest = store.read_manifest(chemistry, "sciknoweval_chemistry")
    (source,) = manifest["files"]
    path = chemistry / "src/all.jsonl"
    assert source == {"name": "all.jsonl", "sha256": files.checksum(path), "rows": 43}
    assert manifest["splits"] == {"train": 36, "test": 4}
    assert manifest["options"]["seed"] == 42
    assert [rows["count"] for rows in manifest["left_out"].values()] == [1, 1, 1]
    assert manifest["left_out"]["another level"]["first"] == ["all.jsonl, row 41"]
    again = prepare.prepare(
        "sciknoweval_chemistry",
        path,
        chemistry / "again",
        options=manifest["options"],
    )
    assert again["content"] == manifest["content"]
    other = prepare.prepare(
        "sciknoweval_chemistry",
        path,
        chemistry / "other",
        options={**manifest["options"], "seed": 1},
    )
    assert other["content"] != manifest["content"]
    assert not list(chemistry.glob("**/.*"))


@needs_tfds
def test_a_prepared_data_set_is_not_overwritten(chemistry, capsys):
    flags = (f"--source={chemistry / 'src'}", f"--out={chemistry}")
    mopd("prepare", "sciknoweval_chemistry", *flags, status=2)
    assert "exists; remove it, or give another --out or --as" in capsys.readouterr().err
    mopd("prepare", "sciknoweval_chemistry", *flags, "--as=other", "--option.seed=1")
    assert store.read_manifest(chemistry, "other")["format"] == "sciknoweval_chemistry"


@needs_tfds
def test_bad_rows_stop_it_or_are_listed(tmp_path, capsys):
    lines(tmp_path / "train.jsonl", {"prompt": "q", "answer": "a"}, {"prompt": "q2"}, 3)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"prompt": "q4", "answer": "AB", "verifier": "choice"}\n')
    lines(tmp_path / "test.jsonl", {"prompt": "q3", "answer": "a"})
    flags = (f"--source={tmp_path}", f"--out={tmp_path / 'out'}", "--as=mine")
    mopd("prepare", "jsonl", *flags, status=2)
    err = capsys.readouterr().err
    assert "3 of 5 rows cannot be used" in err
    assert f"{tmp_path / 'train.jsonl'}, row 2: no 'answer'" in err
    assert f"{tmp_path / 'train.jsonl'}, row 4: the gold answer 'AB' is not one letter" in err
    assert not (tmp_path / "out").exists()
    mopd("prepare", "jsonl", *flags, "--bad-rows=exclude")
    manifest = store.read_manifest(tmp_path / "out", "mine")
    assert len(manifest["rejected"]) == 3
    assert manifest["splits"] == {"train": 1, "test": 1}


@needs_tfds
@pytest.mark.parametrize(
    "row",
    [
        {"id": "\ud800", "prompt": "q", "answer": "a"},
        {"prompt": "q", "answer": "a", "meta": {"k": ["\ud800"]}},
        {"messages": [{"role": "user", "content": "q", "x": "\ud800"}], "answer": "a"},
        {
            "prompt": "q",
            "verifier": "code",
            "meta": {"tests": [{"input": "\ud800", "output": ""}]},
        },
        {"prompt": " ", "answer": "a"},
        {"prompt": "q", "\ud800": "a"},
    ],
)
def test_a_row_that_cannot_be_stored_is_a_bad_row(tmp_path, capsys, row):
    lines(tmp_path / "train.jsonl", {"prompt": "good", "answer": "a"}, row)
    flags = (f"--source={tmp_path}", f"--out={tmp_path / 'out'}")
    mopd("prepare", "jsonl", *flags, status=2)
    assert "train.jsonl, row 2: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    mopd("prepare", "jsonl", *flags, "--bad-rows=exclude")
    manifest = store.read_manifest(tmp_path / "out", "jsonl")
    assert (manifest["splits"], len(manifest["rejected"])) == ({"train": 1, "test": 0}, 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["jsonl"]


@needs_tfds
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_id_that_stands_twice_is_the_later_rows_error(tmp_path, capsys, seed):
    rows = [{"id": f"r{i % 9}", "prompt": f"q{i}", "answer": "a"} for i in range(10)]
    lines(tmp_path / "a.jsonl", *rows[:9])
    lines(tmp_path / "b.jsonl", *rows[9:])
    flags = (f"--source={tmp_path}", f"--out={tmp_path / 'out'}", f"--option.seed={seed}")
    mopd("prepare", "jsonl", *flags, "--option.test_share=0.5", status=2)
    err = capsys.readouterr().err
    assert f"{tmp_path / 'b.jsonl'}, row 1: the id 'r0' is that of" in err
    assert f"{tmp_path / 'a.jsonl'}, row 1, too" in err
    mopd("prepare", "jsonl", *flags, "--bad-rows=exclude")
    assert len(store.read_manifest(tmp_path / "out", "jsonl")["rejected"]) == 1
    made = [
        problem
        for split in ("train", "test")
        for problem in store.StoredProblems(tmp_path / "out", "jsonl", split)
    ]
    assert sorted(p.messages[0]["content"] for p in made) == [f"q{i}" for i in range(9)]


@needs_tfds
def test_the_files_of_two_splits_may_count_alike(tmp_path):
    for part in ("train", "test"):
        rows = [{"id": i, "prompt": f"{part} {i}", "answer": "a"} for i in range(3)]
        lines(tmp_path / f"{part}.jsonl", *rows)
    # A row again is counted; with another question it would be an error.
    lines(tmp_path / "more_train.jsonl", {"id": 1, "prompt": "train 1", "answer": "a"})
    mopd("prepare", "jsonl", f"--source={tmp_path}", f"--out={tmp_path / 'out'}")
    manifest = store.read_manifest(tmp_path / "out", "jsonl")
    assert manifest["splits"] == {"train": 3, "test": 3}
    assert manifest["left_out"]["the same row again"]["count"] == 1


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    row = '{"prompt": "q", "answer": "a"}'
    for name, text in (("a.jsonl", row + "\n"), ("a.json", f"[{row}]")):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        (found,) = files.rows(tmp_path / name)
        assert found.fields == {"prompt": "q", "answer": "a"}


def test_an_empty_result_says_what_became_of_the_rows(tmp_path, capsys):
    lines(tmp_path / "a.jsonl", science(1, level="L1"), science(2, level="L1"), {"x": 1})
    flags = (f"--source={tmp_path}", f"--out={tmp_path}", "--bad-rows=exclude")
    mopd("prepare", "sciknoweval_chemistry", *flags, status=2)
    err = capsys.readouterr().err
    assert "sciknoweval_chemistry would have no problems from 3 rows" in err
    assert "left out, another level: 2" in err
    assert "rejected: " in err and "a.jsonl, row 3: no 'domain'" in err


@needs_tfds
def test_where_nothing_can_be_written_is_said(chemistry, capsys, monkeypatch):
    rows = ("prepare", "sciknoweval_chemistry", f"--source={chemistry / 'src'}")
    (chemistry / "file").write_text("")
    (chemistry / "o/sciknoweval_chemistry").parent.mkdir()
    (chemistry / "o/sciknoweval_chemistry").write_text("")
    (chemistry / "p").mkdir()
    (chemistry / "p/.sciknoweval_chemistry.partial").write_text("")
    for out, message in (
        ("file", f"{chemistry / 'file'} is a file"),
        ("o", f"{chemistry / 'o/sciknoweval_chemistry'} is a file"),
        ("p", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
    ):
        mopd(*rows, f"--out={chemistry / out}", status=2)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    mopd(*rows, f"--out={chemistry / 'new'}", status=2)
    assert f"{chemistry} cannot be written: no permission" in capsys.readouterr().err
    mopd("check", "sciknoweval_chemistry", f"--dir={chemistry}", status=2)
    assert "1.0.0 cannot be written: no permission" in capsys.readouterr().err


def _manifest(**fields):
    """The manifest with other fields; without those that are None."""

    def act(where):
        said = {**json.loads((where / "manifest.json").read_text()), **fields}
        said = {key: value for key, value in said.items() if value is not None}
        (where / "manifest.json").write_text(json.dumps(said))

    return act


def _bytes(pattern, change):
    def act(where):
        (path,) = where.glob(pattern)
        path.write_bytes(change(path.read_bytes()))

    return act


def _gone(pattern):
    return lambda where: next(where.glob(pattern)).unlink()


@needs_tfds
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (_bytes("manifest.json", lambda b: b[:200]), "manifest.json: "),
        (_bytes("manifest.json", lambda b: b""), "manifest.json: "),
        (_bytes("manifest.json", lambda b: b"\xff"), "manifest.json: "),
        (_bytes("manifest.json", lambda b: b"[]"), "it is not an object"),
        (_gone("manifest.json"), "it has no manifest.json"),
        (_manifest(version="0.9.0"), "of version '0.9.0', not 1.0.0"),
        (_manifest(content=None), "it has no 'content'"),
        (_manifest(splits=None), "'splits' are not numbers"),
        (_manifest(splits={"train": "36", "test": 4}), "'splits' are not numbers"),
        (_manifest(splits={"train": 40, "test": 4}), "40 problems in train"),
        (_manifest(splits={"test": 4}), "not those that were written"),
        (_manifest(check=3), "'check' is not an object"),
        (_manifest(check={"splits": {"train": {}}, "excluded": {}}), "is not complete"),
        (_manifest(check={"splits": {}, "excluded": {"train": [36]}}), "is not in its splits"),
        (_manifest(check={"splits": {}, "excluded": {"dev": [0]}}), "is not in its splits"),
        (_manifest(check={"splits": {}, "excluded": []}), "is not in its splits"),
        (_gone("*train*record*"), "RuntimeError"),
        (_bytes("*train*record*", lambda b: b[: len(b) // 2]), "damaged"),
        (_bytes("*train*record*", lambda b: b""), "RuntimeError"),
        (_bytes("*train*record*", lambda b: bytes(200) + b[200:]), "damaged"),
        (_gone("features.json"), "ValueError"),
        (_gone("dataset_info.json"), "dataset_info.json"),
        (_bytes("dataset_info.json", lambda b: b"{"), "ParseError"),
    ],
)
def test_a_damaged_data_set_is_named(chemistry, capsys, act, message):
    where = chemistry / "sciknoweval_chemistry/1.0.0"
    act(where)
    mopd("check", "sciknoweval_chemistry", f"--dir={chemistry}", status=2)
    err = capsys.readouterr().err
    assert f"{where} is damaged (" in err and message in err
    assert "prepare it again with `mopd data prepare`" in err


@needs_tfds
def test_problems_that_were_swapped_are_noticed(chemistry, capsys):
    flags = (f"--source={chemistry / 'src'}", f"--out={chemistry / 'b'}", "--option.seed=1")
    mopd("prepare", "sciknoweval_chemistry", *flags)
    (other,) = (chemistry / "b/sciknoweval_chemistry/1.0.0").glob("*train*record*")
    where = chemistry / "sciknoweval_chemistry/1.0.0"
    (where / other.name).write_bytes(other.read_bytes())
    mopd("check", "sciknoweval_chemistry", f"--dir={chemistry}", status=2)
    assert "its problems are not those that were written" in capsys.readouterr().err
    with pytest.raises(DataError, match="manifest.json cannot be read: Is a directory"):
        (where / "manifest.json").unlink()
        (where / "manifest.json").mkdir()
        store.read_manifest(chemistry, "sciknoweval_chemistry")


@needs_tfds
def test_a_data_set_of_an_older_version_is_named(chemistry):
    where = chemistry / "sciknoweval_chemistry/1.0.0"
    where.rename(where.with_name("0.9.0"))
    with pytest.raises(
        DataError, match="has no prepared .*there is version 0.9.0, but this code reads 1.0.0"
    ):
        store.read_manifest(chemistry, "sciknoweval_chemistry")


def test_show_prints_nothing_that_steers_a_terminal():
    said = [{"role": "user", "content": "tab\tand\nline\x9b1m"}]
    odd = Problem("a\x1b[31m\r", tuple(said), "", "code", {"tests": [{}, {}]})
    head, *_, content, _, title, tests = check._prompt(odd)
    assert head == r"id a\x1b[31m\r, verifier code"
    assert content == "tab\tand\nline\\x9b1m"
    assert title.startswith("[gold answer") and tests == "2 tests"


@needs_tfds
def test_items_whose_gold_fails_are_excluded_by_name(tmp_path, capsys):
    row = {"answer": "a</answer>b"}  # Can be judged, and no tag can hold it.
    good = {"answer": json.dumps(CALLS), "verifier": "tools"}
    rows = [{"id": f"r{i}", "prompt": f"q{i}", **(row if i == 1 else good)} for i in range(4)]
    lines(tmp_path / "train.jsonl", *rows)
    lines(tmp_path / "test.jsonl", {"id": "t", "prompt": "t", **good})
    mopd("prepare", "jsonl", f"--source={tmp_path}", f"--out={tmp_path}", "--as=mine")
    fresh = DataConfig(source="tfds", options={"dir": str(tmp_path), "name": "mine"})
    assert sources.record(fresh)["eval: mine:test"]["ceiling"] is None
    train, held = sources.unchecked(sources.record(fresh))
    assert "train: mine:train was never checked" in train and "mopd data check" in held
    mopd("check", "mine", f"--dir={tmp_path}", status=1)
    out = capsys.readouterr().out
    assert "ceiling 0.7500; 1 fail on their own gold answer" in out
    assert "r1: " in out
    cfg = DataConfig(source="tfds", options={"dir": str(tmp_path), "name": "mine"})
    assert sources.unchecked(sources.record(cfg)) == []
    assert len(sources.load(cfg, "train", seed=0)) == 4
    for policy, ids in (("exclude", ["r0", "r2", "r3"]), ("keep", ["r0", "r1", "r2", "r3"])):
        mopd("check", "mine", f"--dir={tmp_path}", f"--policy={policy}")
        assert [p.id for p in sources.load(cfg, "train", seed=0)] == ids
        record = store.read_manifest(tmp_path, "mine")["check"]
        assert record["policy"] == policy
        assert record["splits"]["train"]["failed"][0][0] == "r1"
    mopd("check", "mine", f"--dir={tmp_path}", "--policy=exclude")
    said = sources.record(cfg)["train: mine:train"]
    assert (said["ceiling"], said["ceiling_of_all"]) == (1.0, 0.75)
    assert (said["excluded"], said["problems"]) == (1, 3)
    mopd("check", "mine", f"--dir={tmp_path}", "--policy=keep")
    assert sources.record(cfg)["train: mine:train"]["reads"] != said["reads"]


@needs_tfds
def test_a_gold_formula_that_cannot_be_read_stops_it(tmp_path, capsys):
    wants.importing("math_verify")
    good = ["5", r"\frac{1}{2}", r"x^2+1", r"\{1, \sqrt{2}\}", r"\text{No}", "Paris"]
    rows = [{"prompt": f"q{i}", "answer": a, "verifier": "math"} for i, a in enumerate(good)]
    lines(tmp_path / "train.jsonl", *rows, {**rows[0], "prompt": "r", "answer": r"p \to q"})
    lines(tmp_path / "test.jsonl", {**rows[0], "prompt": "t"})
    flags = (f"--source={tmp_path}", f"--out={tmp_path / 'out'}", "--as=mine")
    mopd("prepare", "jsonl", *flags, status=2)
    err = capsys.readouterr().err
    assert "1 of 8 rows cannot be used" in err
    assert (
        "train.jsonl, row 7: the gold answer is not a formula that the checker can read" in err
    )


@needs_tfds
def test_a_check_takes_the_settings_of_the_sandbox(tmp_path, capsys, monkeypatch):
    made = []

    class Box:
        def __init__(self, cfg):
            made.append(cfg)
            raise SandboxError("no sandbox today")

    monkeypatch.setattr(check, "Sandbox", Box)
    task = {"tests": [{"input": "", "output": "1"}], "solution": "print(1)"}
    row = {"prompt": "q", "answer": "", "verifier": "code", "meta": task}
    lines(tmp_path / "train.jsonl", row)
    lines(tmp_path / "test.jsonl", {**row, "prompt": "t"})
    mopd("prepare", "jsonl", f"--source={tmp_path}", f"--out={tmp_path}", "--as=mine")
    words = ("check", "mine", f"--dir={tmp_path}", "--threads=3")
    mopd(*words, "--sandbox=limits", "--sandbox.memory_mb=99", status=2)
    assert (made[0].level, made[0].memory_mb, made[0].workers) == ("limits", 99, 3)
    mopd(*words, "--sandbox.workers=1", status=2)
    assert made[1] == SandboxConfig(workers=1)
    capsys.readouterr()
    for flag, said in (
        ("--sandbox.memory_gb=1", "did you mean"),
        ("--sandbox.memory_mb=1", "it must be at least 64"),
        ("--sandbox=docker", "namespaces"),
    ):
        mopd(*words, flag, status=2)
        assert said in capsys.readouterr().err
    mopd("show", "mine", f"--dir={tmp_path}", "--sandbox.memory_mb=99", status=2)
    assert "--sandbox belongs to `mopd data check`" in capsys.readouterr().err


@needs_tfds
def test_show_takes_the_split_that_there_is(tmp_path, capsys):
    lines(tmp_path / "eval.jsonl", {"problem": "1 + 1?", "answer": 2})
    mopd("prepare", "aime24", f"--source={tmp_path}", f"--out={tmp_path}")
    mopd("show", "aime24", f"--dir={tmp_path}")
    assert "1 + 1?" in capsys.readouterr().out
    mopd("show", "aime24", f"--dir={tmp_path}", "--split=train", status=2)
    assert "has no problems in train" in capsys.readouterr().err


@needs_tfds
def test_several_data_sets_in_one_split(chemistry):
    lines(chemistry / "train.jsonl", *({"prompt": f"q{i}", "answer": "a"} for i in range(36)))
    mopd(
        "prepare",
        "jsonl",
        f"--source={chemistry / 'train.jsonl'}",
        f"--out={chemistry}",
        "--as=other",
    )
    names = ("sciknoweval_chemistry", "other:train")
    options = {"dir": str(chemistry), "train": "other", "eval": names}
    cfg = DataConfig(source="tfds", options=options)
    held = sources.load(cfg, "eval", seed=0)
    assert len(held) == 4 + 36
    assert [p.id for p in held][4:] == [p.id for p in sources.load(cfg, "train", seed=0)]
    assert held[-1] == held[39]
    with pytest.raises(IndexError):
        held[40]
    twice = DataConfig(
        source="tfds", options={**options, "eval": ("other:train", "other:train")}
    )
    with pytest.raises(DataError, match="two problems with the id 'train:1'"):
        sources.load(twice, "eval", seed=0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give `mopd data prepare|check|show NAME`"),
        (["prepare"], "with one name"),
        (["preprae", "x"], "did you mean prepare"),
        (["prepare", "tooluze", "--source=x"], "did you mean tooluse"),
        (["prepare", "tooluse"], "give --source=PATH"),
        (["prepare", "tooluse", "--source=x", "--sorce=y"], "did you mean source"),
        (["prepare", "tooluse", "--source=/nowhere"], "does not exist"),
        (["prepare", "tooluse", "--source=x", "--option.ordr=any"], "did you mean order"),
        (["prepare", "tooluse", "--source=x", "--revision=y"], "belongs to --source=hub"),
        (["prepare", "tooluse", "--source=x", "--as=A b"], "cannot be called 'A b'"),
        (["prepare", "tooluse", "--source=x", "--as="], "--as= is empty"),
        (["prepare", "tooluse", "--source=x", "--out="], "--out= is empty"),
        (["show", "tooluse", "--dir="], "--dir= is empty"),
        (["prepare", "tooluse", "--source=x", "--bad-rows=skip"], "must be error or exclude"),
        (["prepare", "jsonl", "--source=x", "--option.seed=1.5"], "it must be int"),
        (["prepare", "jsonl", "--source=x", "--option.test_share=1.5"], "between 0 and 1"),
        (["prepare", "jsonl", "--source=x", "--option.seed=-1"], "between 0 and"),
        (["prepare", "mbppplus", "--source=x", "--option.max_tests=0"], "between 1 and"),
        (["prepare", "tooluse", "--source=x", "--option.order=exakt"], "did you mean exact"),
        (["prepare", "livecodebench", "--source=x", "--option.split=test"], "mean tests"),
        (["prepare", "livecodebench", "--source=x", "--option.end=May"], "must be dates"),
        (["check", "nothing", "--dir=/nowhere"], "has no prepared data set"),
        (["check", "nothing", "--policy=drop"], "must be one of error"),
        (["check", "nothing", "--threads=0"], "1 or more"),
        (["check", "nothing", "--sandbox=none"], "known: limits, namespaces"),
        (["check", "nothing", "--option.seed=1"], "--option belongs to"),
        (["show", "nothing", "--row=-1"], "give a whole number"),
    ],
)
def test_bad_commands(argv, message, capsys):
    mopd(*argv, status=2)
    assert message in capsys.readouterr().err


@needs_tfds
def test_what_is_not_there_is_named(chemistry):
    def load(split="eval", **options):
        options = {"dir": str(chemistry), **options}
        return sources.load(DataConfig(source="tfds", options=options), split, seed=0)

    with pytest.raises(DataError, match="prepared there: sciknoweval_chemistry"):
        load(name="sciknoweval")
    with pytest.raises(DataError, match="no split 'dev'; it has test, train"):
        load(eval="sciknoweval_chemistry:dev")
    with pytest.raises(ConfigError, match="needs data.options.eval"):
        load(train="sciknoweval_chemistry")
    with pytest.raises(ConfigError, match="did you mean name"):
        load(nam="sciknoweval_chemistry")
    for name in (5, (), ("a", 5), "", {"a": 1}):
        with pytest.raises(ConfigError, match="needs data.options.eval, .* got "):
            load(name=name)
    for place in (5, "", None):
        with pytest.raises(ConfigError, match=f"data.options.dir is {place!r}; it must be"):
            load(name="sciknoweval_chemistry", dir=place)
    with pytest.raises(InputError, match="has rows 0 to 3 in test"):
        from mopd_jax.data.prepared import check

        check.show(chemistry, "sciknoweval_chemistry", split="test", row=4)
