"""Saved evaluations: read back as written, and every damage answered with file and line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd_jax.evaluation import responses
from mopd_jax.testing import response

HEADER = {"problems": 2, "samples": 2, "ks": [1], "threshold": 1.0, "name": "é\u2028"}


def two():
    return [[response(problem=name, sample=i) for i in range(2)] for name in ("a", "b")]


def saved(tmp_path, edit=lambda lines: lines):
    """A folder whose lines were edited."""
    responses.write(tmp_path, HEADER, two())
    path = tmp_path / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    lines = [line if isinstance(line, str) else json.dumps(line) for line in edit(rows)]
    path.write_text("".join(line + "\n" for line in lines))
    return tmp_path


def with_row(number, **fields):
    def edit(rows):
        rows[number] = {**rows[number], **fields}
        return rows

    return edit


@settings(max_examples=20)
@given(text=st.text(), answer=st.none() | st.text(), reward=st.floats(0, 1))
def test_read_is_the_inverse_of_write(tmp_path_factory, text, answer, reward):
    folder = tmp_path_factory.mktemp("saved")
    # No tokenizer decodes to a lone surrogate.
    text, answer = (x and x.encode("utf-8", "replace").decode() for x in (text, answer))
    rows = two()
    rows[0][1] = response(
        problem="a", sample=1, text=text, answer=answer, reward=reward, test_fraction=0.5
    )
    responses.write(folder, HEADER, rows)
    found = responses.read(folder)
    assert found.responses == rows
    assert found.name == str(folder)
    assert found.header.items() >= HEADER.items()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: ["{", *rows[1:]], "line 1: not JSON"),
        (lambda rows: ["[]", *rows[1:]], "line 1: a list, not an object"),
        (lambda rows: [""], "line 1: not JSON"),
        (lambda rows: rows[1:], "is not of format 'mopd-responses'"),
        (with_row(0, format="other"), "is not of format 'mopd-responses'"),
        (with_row(0, version=1), "is of version 1, and this is for 3"),
        (with_row(0, samples="2"), "line 1: samples='2' must be int"),
        (with_row(0, samples=True), "line 1: samples=True must be int"),
        (with_row(0, threshold=None), "line 1: threshold=None must be float"),
        (with_row(0, problems=0), "no problems or no samples"),
        (with_row(0, ks=[1, 3]), "ks has 3"),
        (with_row(0, ks=["1"]), "ks has '1'"),
        (with_row(0, problems=3), "4 responses to 2 problems, and its header says 6 to 3"),
        (lambda rows: rows[:-1], "3 responses to 2 problems"),
        (lambda rows: [rows[0], rows[1], rows[1]], "line 3: problem 'a' has sample 0 where 1"),
        (with_row(2, question="f"), "line 3: problem 'a' asks for something else"),
        (lambda rows: [rows[0], "[" * 100_000], "line 2: not JSON"),
        (lambda rows: [rows[0], "9" * 5_000], "line 2: not JSON"),
        (with_row(1, reward=float("nan")), "line 2: reward=nan must be in"),
        (with_row(1, reward=float("inf")), "line 2: reward=inf must be in"),
        (with_row(1, test_fraction=7), "line 2: test_fraction=7 must be in [0, 1]"),
        (with_row(1, tokens=-1), "line 2: tokens=-1 must be in"),
        (lambda rows: [*rows[:2], "nonsense", *rows[3:]], "line 3: not JSON"),
        (with_row(1, reward="1"), "line 2: reward='1' must be float"),
        (with_row(1, reward=True), "line 2: reward=True must be float"),
        (with_row(1, stopped=1), "line 2: stopped=1 must be bool"),
        (with_row(1, text=None), "line 2: text=None must be str"),
        (with_row(1, answer=3), "line 2: answer=3 must be str or NoneType"),
        (lambda rows: [rows[0], {"problem": "a"}], "line 2: question=None must be str"),
    ],
)
def test_damage(tmp_path, edit, words):
    folder = saved(tmp_path, edit)
    with pytest.raises(responses.ResponseError) as error:
        responses.read(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_stand_for_fractions(tmp_path):
    found = responses.read(saved(tmp_path, with_row(1, reward=1, test_fraction=0)))
    assert found.responses[0][0].reward == 1


def test_a_folder_without_an_evaluation(tmp_path):
    with pytest.raises(responses.ResponseError, match="FileNotFoundError.*mopd eval --out"):
        responses.read(tmp_path)
    (tmp_path / "responses.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(responses.ResponseError, match="UnicodeDecodeError"):
        responses.read(tmp_path)


def test_no_evaluation_takes_the_place_of_another(tmp_path):
    responses.check_free(tmp_path)
    responses.check_free(tmp_path / "new")
    responses.write(tmp_path / "new", HEADER, two())
    with pytest.raises(responses.ResponseError, match=r"has a responses.jsonl already"):
        responses.check_free(tmp_path / "new")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(responses.ResponseError, match=r"has a config.json already"):
        responses.check_free(tmp_path)
    with pytest.raises(responses.ResponseError, match="is a file"):
        responses.check_free(tmp_path / "config.json")
    with pytest.raises(responses.ResponseError, match="cannot be made"):
        responses.make(tmp_path / "config.json" / "below")
