"""Files of rollouts: what is written comes back to the bit; what is damaged is named."""

import dataclasses
import json
import math
import pathlib
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax import files
from mopd_jax.config import Config, DataConfig, RolloutConfig
from mopd_jax.errors import ConfigError
from mopd_jax.records import Verdict
from mopd_jax.rollouts import schema, storage
from mopd_jax.rollouts.schema import Header, RolloutFileError, RolloutRow

STOP = 9
HEADER = Header(
    tokenizer="abc",
    vocab_size=10,
    stop_ids=(STOP, 8),
    policy="student",
    model="some/model",
    trained=3,
    seed=7,
    instruction="Please.",
    steps=2,
    prompts=2,
    group=3,
    prompt_length=4,
    response_length=4,
    temperature=0.7,
    top_p=None,
    top_k=5,
    config="0123",
)


def row(step=1, uid=0, rollout=0, **changes):
    """A response of three tokens that ends, to a prompt that names its uid."""
    others = [i for i in range(3) if i != rollout]
    fields = {
        "step": step,
        "problem": f"p{uid}",
        "uid": uid,
        "rollout": rollout,
        "messages": ({"role": "user", "content": f"question {uid}"},),
        "response": f"{rollout} 2",
        "verdict": Verdict(0.5, test_fraction=0.25, feedback="é\u2028", format_ok=True),
        "stopped": True,
        "context": {
            "shown": others,
            "shown_uids": [uid, uid],
            "succeeded": [True, False],
            "kinds": ["success", "failure"],
        },
        "teacher_message": "which?",
        "prompt_ids": (1, uid % 10),
        "response_ids": np.array([rollout, 2, STOP], np.int32),
        "sampled_logp": np.array([-0.1, -1e-30, 0.0], np.float32),
    }
    return RolloutRow(**fields | changes)


def rows():
    return [row(s, 4 * s + p, g) for s in (1, 2) for p in range(2) for g in range(3)]


def equal(a, b):
    for field in dataclasses.fields(RolloutRow):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y, field.name


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "saved.jsonl"
    storage.write(found, HEADER, rows())
    return found


def damage(path, number, change):
    """Line `number`, from 1, is replaced: by other fields, or by the bytes that `change` is."""
    lines = path.read_bytes().splitlines(keepends=True)
    if callable(change):
        fields = json.loads(lines[number - 1])
        change(fields)
        lines[number - 1] = json.dumps(fields).encode() + b"\n"
    else:
        lines[number - 1] = change
    path.write_bytes(b"".join(lines))


def put(name, value):
    """A damage: one field, or one place in a list, or no field."""

    def change(fields):
        if value is KeyError:
            del fields[name]
        elif isinstance(name, tuple):
            fields[name[0]][name[1]] = value
        else:
            fields[name] = value

    return change


def complaint(path, **options):
    with pytest.raises(RolloutFileError) as error:
        storage.read(path, **options)
    text = str(error.value)
    assert text.startswith(str(path))
    assert len(text) < 400
    return text[len(str(path)) :].lstrip(" ,")


def test_round_trip(path):
    saved = storage.read(path)
    assert saved.header == HEADER == storage.read_header(path)
    assert saved.steps == (1, 2)
    back = [r for i in range(2) for r in saved.batch(i)]
    for a, b in zip(back, rows(), strict=True):
        equal(a, b)
    assert [p.id for p in saved.problems.values()] == ["p4", "p5", "p8", "p9"]
    assert all(p.answer == p.solution == "" for p in saved.problems.values())
    # A person can read it: one line a rollout, in UTF-8.
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 1 + 12 + 1
    assert '"feedback": "é' in lines[1]
    assert '"behaviour_logp": [-0.100000001, -1e-30, 0.0]' in lines[1]


@given(
    bits=st.lists(st.integers(0x80000000, 0xFF7FFFFF), min_size=3, max_size=3),
    text=st.text(st.characters(), max_size=8),
    reward=st.floats(0, 1),
    share=st.none() | st.floats(0, 1),
)
def test_every_log_prob_and_text_comes_back(tmp_path_factory, bits, text, reward, share):
    """All finite float32 at or below 0, and text that UTF-8 does not even have."""
    values = np.array(bits, np.uint32).view(np.float32)
    verdict = Verdict(reward, test_fraction=share, feedback=text, error=text)
    made = row(
        verdict=verdict,
        response=text,
        sampled_logp=values,
        messages=({"role": "system", "content": text}, {"role": "user", "content": text}),
    )
    path = tmp_path_factory.mktemp("saved") / "one.jsonl"
    storage.write(path, dataclasses.replace(HEADER, steps=1, prompts=1, group=1), [made])
    equal(storage.read(path).batch(0)[0], made)


def test_the_table_of_a_verdict_is_the_verdict():
    """A new field of a verdict must be checked, or it would be lost on the way."""
    assert {*schema._VERDICT, "answer"} == {f.name for f in dataclasses.fields(Verdict)}
    assert "answer" not in schema.row_fields(row(verdict=Verdict(1.0, answer="7")))
    assert set(schema._HEADER) == {f.name for f in dataclasses.fields(Header)}
    docs = pathlib.Path(__file__).parents[1] / "docs/rollouts.md"
    text = docs.read_text()
    names = {*schema._HEADER, *schema._ROW, *schema._ARRAYS, "rollout"}
    assert not [name for name in names if f"`{name}`" not in text]


def test_rows_of_a_step_may_stand_in_any_order(path):
    header, *lines = path.read_bytes().splitlines(keepends=True)
    shuffled = [lines[i] for i in (5, 1, 3, 0, 4, 2)]
    path.write_bytes(b"".join([header, *shuffled, *lines[6:]]))
    found = storage.read(path).batch(0)
    assert [(r.uid, r.rollout) for r in found] == [(u, g) for u in (5, 4) for g in range(3)]


DAMAGES = [
    (5, put("reward", KeyError), "line 5: reward is missing; expected a number in [0, 1]"),
    (5, put("context", KeyError), "line 5: context is missing"),
    (5, put("behaviour_logp", KeyError), "line 5: behaviour_logp is missing"),
    (5, put("reward", 1.5), "line 5: reward is 1.5; expected a number in [0, 1]"),
    (5, put("reward", None), "line 5: reward is null; expected"),
    (5, put("reward", math.nan), "line 5: reward is NaN"),
    (5, put("reward", True), "line 5: reward is true"),
    (5, put("test_fraction", -0.1), "line 5: test_fraction is -0.1"),
    (5, put("uid", 4.0), "line 5: uid is 4.0; expected a whole number from 0"),
    (5, put("uid", "4"), 'line 5: uid is "4"'),
    (5, put("uid", 1 << 32), "line 5: uid is 4294967296"),
    (5, put("rollout", 3), "line 5: rollout is 3; expected a whole number from 0 to 2"),
    (5, put("stopped", 1), "line 5: stopped is 1; expected true or false"),
    (5, put("messages", []), "line 5: messages is []; expected messages of role and content"),
    (5, put("teacher_message", 3), "line 5: teacher_message is 3; expected text, or null"),
    (5, put("format_ok", 0), "line 5: format_ok is 0; expected true or false, or null"),
    (5, put("feedback", None), "line 5: feedback is null; expected text"),
    (5, put("truncated", True), "line 5: truncated is true; expected the opposite of stopped"),
    (
        5,
        put("behaviour_logp", [-1.0, -2.0]),
        "line 5: behaviour_logp has 2 numbers; expected 3",
    ),
    (5, put(("behaviour_logp", 1), 0.5), "line 5: behaviour_logp[1] is 0.5; expected a finite"),
    (5, put(("behaviour_logp", 1), None), "line 5: behaviour_logp[1] is null"),
    (5, put(("behaviour_logp", 1), -math.inf), "line 5: behaviour_logp[1] is -Infinity"),
    (5, put(("behaviour_logp", 1), math.nan), "line 5: behaviour_logp[1] is NaN"),
    (5, put(("behaviour_logp", 1), -1e39), "line 5: behaviour_logp[1] is -1e+39"),
    (5, put("behaviour_logp", 3), "line 5: behaviour_logp is 3; expected a list"),
    (
        5,
        put(("response_ids", 0), 10),
        "line 5: response_ids[0] is 10; expected a whole number ",
    ),
    (5, put(("response_ids", 0), -1), "line 5: response_ids[0] is -1; expected a whole number"),
    (5, put(("response_ids", 0), True), "line 5: response_ids[0] is true"),
    (5, put(("response_ids", 1), 8), "line 5: response_ids[1] is 8; expected a stop token at"),
    (5, put(("response_ids", 2), 3), "line 5: response_ids[2] is 3; expected one of the stop"),
    (5, put("response_ids", []), "line 5: response_ids is []; expected a list, not empty"),
    (5, put("prompt_ids", [1] * 5), "line 5: prompt_ids has 5 tokens; expected at most prompt"),
    (
        5,
        lambda f: f.update(response_ids=[1, 1, 1, 1, STOP], behaviour_logp=[0.0] * 5),
        "line 5: response_ids has 5 tokens; expected at most response_length=4",
    ),
    (
        5,
        lambda f: f.update(stopped=False, truncated=True),
        "line 5: response_ids[2] is 9; expected no stop token, since stopped is false",
    ),
    (
        5,
        lambda f: f.update(stopped=False, truncated=True, response_ids=[1, 2, 3]),
        "line 5: response_ids has 3 tokens; expected response_length=4",
    ),
    (5, put(("context", "shown"), [0]), "line 5: context.shown_uids is [5, 5]; expected 1 val"),
    (5, put(("context", "shown"), [1, 0]), "line 5: context.shown is [1, 0]; expected other"),
    (5, put(("context", "kinds"), None), "line 5: context.kinds is null; expected a list"),
    (5, put("context", []), "line 5: context is []; expected an object"),
    (6, put("messages", [{"role": "user", "content": "other"}]), "line 6: messages is [{"),
    (6, put("problem", "q"), 'line 6: problem is "q"; expected the same as on line 5'),
    (6, put("prompt_ids", [3]), "line 6: prompt_ids is [3]; expected the same as on line 5"),
    (
        6,
        lambda f: f.update(rollout=0, context={**f["context"], "shown": [1, 2]}),
        "line 6: step 1, uid 5, rollout 0 is on line 5 already",
    ),
    (6, put("uid", 77), "line 6: uid is 77; expected one of the 2 prompts of step 1: [4, 5]"),
    (8, put("step", 1), "line 8: uid is 8; expected one of the 2 prompts of step 1: [4, 5]"),
    (8, put("step", 0), "line 8: step is 0; expected a whole number from 1"),
    (3, b"", "line 2: the group that begins here (step 1, uid 4) is incomplete: no rollout 1"),
    (
        13,
        b"",
        "line 11: the group that begins here (step 2, uid 9) is incomplete: no rollout 2",
    ),
    (4, b"\n", "line 4: not JSON in UTF-8"),
    (4, b"[1]\n", "line 4: the line is [1]; expected an object"),
    (4, b'{"a": \n', "line 4: not JSON"),
    (4, b"\xff\n", "line 4: not JSON"),
    (4, b"[" * 100_000 + b"\n", "line 4: not JSON"),
    (13, b'{"step": 2, "problem"', "line 13: cut short, it has no end"),
]


@pytest.mark.parametrize(("number", "change", "words"), DAMAGES, ids=[d[2] for d in DAMAGES])
def test_damage_is_named(path, number, change, words):
    damage(path, number, change)
    assert words in complaint(path)


def test_whole_steps_and_prompts_may_not_be_missing(path):
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:7]))
    assert "has 1 steps, and its header says 2" in complaint(path)
    path.write_bytes(b"".join([*whole[:4], *whole[7:]]))
    assert complaint(path).startswith("line 4: step 1 ends after 1 of its 2 prompts")
    path.write_bytes(b"".join([whole[0], *whole[7:], *whole[1:7]]))
    assert complaint(path).startswith("line 8: step is 1; expected more than 2")
    path.write_bytes(whole[0])
    assert "has 0 steps" in complaint(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("format", KeyError, "line 1: format is missing"),
        ("format", "rows", 'line 1: format is "rows"; expected "mopd-rollouts"'),
        ("version", 3, "line 1: version is 3; expected 2: it was written by a newer mopd_jax"),
        ("version", 1, "line 1: version is 1; expected 2: it was written by an older mopd_jax"),
        ("version", "1", 'line 1: version is "1"'),
        ("tokenizer", KeyError, "line 1: tokenizer is missing"),
        ("temperature", 0, "line 1: temperature is 0; expected a positive number"),
        ("top_p", 2, "line 1: top_p is 2; expected a number in (0, 1], or null"),
        ("group", 0, "line 1: group is 0"),
        ("stop_ids", [-1], "line 1: stop_ids is [-1]"),
    ],
)
def test_a_wrong_header(path, name, value, words):
    damage(path, 1, put(name, value))
    assert complaint(path).startswith(words)


def test_no_file(tmp_path):
    assert "is not a file" in complaint(tmp_path / "none.jsonl")
    assert "is not a file" in complaint(tmp_path)
    (tmp_path / "empty").touch()
    assert "is empty" in complaint(tmp_path / "empty")


def words_of(**changes):
    """A tokenizer that makes what `row` says."""
    fields = {
        "chat": lambda messages: [1, int(messages[-1]["content"].split()[1])],
        "decode": lambda ids: " ".join(str(i) for i in ids if i != STOP),
        "fingerprint": "abc",
        "stop_ids": (STOP, 8),
    }
    return types.SimpleNamespace(**fields | changes)


def test_with_the_tokenizer_in_hand(path):
    saved = storage.read(path, words_of(), vocab_size=10)
    assert saved == storage.read(path)
    assert "line 2: prompt_ids is [1, 4]; expected the ids of messages" in complaint(
        path, tokenizer=words_of(chat=lambda messages: [2])
    )
    # A smaller model of the same tokenizer: fine, unless a token has no embedding in it.
    assert "response_ids[2] is 9; expected a whole number from 0 to 8" in complaint(
        path, vocab_size=9
    )
    damage(path, 4, put("response", "2 3"))
    assert "line 4: response is" in complaint(path, tokenizer=words_of())


@pytest.mark.parametrize("name", ["prompts", "group", "response_length", "temperature"])
def test_settings_that_must_fit(path, name):
    fits = {n: getattr(HEADER, n) for n in ("prompts", "group", "response_length")}
    fits |= {"temperature": HEADER.temperature, "prompt_length": 9}
    fits |= {"top_p": HEADER.top_p, "top_k": HEADER.top_k}

    def check(words, **changes):
        data = DataConfig(instruction=changes.pop("instruction", "Please."))
        cfg = Config(rollout=RolloutConfig(**fits | changes), data=data)
        storage.check_fit(HEADER, path, cfg, words)

    check(words_of())
    with pytest.raises(ConfigError, match="set data.instruction='Please.', or"):
        check(words_of(), instruction="")
    with pytest.raises(ConfigError, match=f"set rollout.{name}={getattr(HEADER, name)}, or"):
        check(words_of(), **{name: 6})
    for other in ({"fingerprint": "abd"}, {"stop_ids": (STOP,)}):
        with pytest.raises(ConfigError, match="set model.path .it was some/model."):
            check(words_of(**other))


def test_turns_go_round(path):
    saved = storage.read(path)
    assert [saved.turn(s) for s in range(1, 6)] == [(0, 1), (1, 2), (0, 3), (1, 4), (0, 5)]
    # Steps with gaps, as of a run that writes every third.
    saved = dataclasses.replace(saved, steps=(3, 6))
    assert [saved.turn(s) for s in range(1, 6)] == [(0, 3), (1, 6), (0, 7), (1, 10), (0, 11)]
    draws = [saved.turn(s)[1] for s in range(1, 50)]
    assert len(set(draws)) == len(draws)


def test_a_file_that_changes_under_the_run(path):
    saved = storage.read(path)
    damage(path, 9, put("reward", 2))
    assert saved.batch(0)
    with pytest.raises(RolloutFileError, match="line 9: reward is 2"):
        saved.batch(1)
    assert storage._checksum(path) != saved.checksum
    path.write_bytes(path.read_bytes()[:200])
    for i in range(2):
        with pytest.raises(RolloutFileError, match=r"saved.jsonl(, line 2: cut| has changed)"):
            saved.batch(i)
    path.unlink()
    with pytest.raises(RolloutFileError, match="has changed since it was opened"):
        saved.batch(0)


def test_written_whole_or_not_at_all_and_row_by_row(tmp_path):
    path = tmp_path / "saved.jsonl"
    size = []

    def some():
        for made in rows()[:2]:
            size.append([p.name for p in tmp_path.iterdir()])
            yield made
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write(path, HEADER, some())
    assert size == [["saved.jsonl.tmp"]] * 2
    assert not list(tmp_path.iterdir())
    storage.write(path, HEADER, rows())
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        storage.write(path, HEADER, some())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_finite_is_written_and_refused(tmp_path):
    path = tmp_path / "saved.jsonl"
    bad = np.array([-1.0, np.nan, -np.inf], np.float32)
    made = [*rows()[:4], row(1, 5, 1, sampled_logp=bad), *rows()[5:]]
    storage.write(path, HEADER, made)
    assert files.dumps({"x": [float("nan")]}) == '{"x": [null]}'
    assert complaint(path).startswith("line 6: behaviour_logp[1] is null; expected a finite")
