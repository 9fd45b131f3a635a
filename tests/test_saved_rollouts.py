"""Rollouts written once, trained from by any method, as if they had just been sampled."""

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from mopd_jax import cli, collect, saved_rollouts, train, verifiers
from mopd_jax import flags as flags_of
from mopd_jax.errors import InputError
from mopd_jax.rollouts import storage
from mopd_jax.run import logbook
from mopd_jax.run.opening import prepare

CONFIG = pathlib.Path(__file__).parents[1] / "configs/quickstart.py"
SMALL = {
    "steps": 2,
    "dump_every": 1,
    "rollout.prompts": 4,
    "rollout.group": 4,
    "eval.problems": 2,
    "eval.samples": 2,
    "eval.batch": 2,
    "eval.ks": (1,),
}
FREE = ("seconds", "tokens_per_second")


def flags(variant="mopd", **changes):
    settings = {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}
    words = [f"--config.{name}={value}" for name, value in settings.items()]
    return [f"--config={CONFIG}:{variant}", *words]


def config(variant="mopd", **changes):
    return flags_of.parse(flags(variant, **changes))[0]


def run(folder, variant="mopd", **changes):
    """(final state, metrics of the training steps), on one of the eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_evaluate", lambda *_: None)  # One compilation less.
        state = train.train(config(variant, **changes), folder, devices=jax.devices()[:1])
    records = [r for r in logbook.read(folder) if r["kind"] == "train"]
    return state, [{k: v for k, v in r.items() if not k.startswith(FREE)} for r in records]


def refused(call, *args, **options):
    """What the command line would say to the user."""
    with pytest.raises(InputError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, variant="mopd", *, start=None, **changes):
    collect.collect(config(variant, **changes), path, start=start, devices=jax.devices()[:1])
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two steps of the quick start's initial student."""
    return write(tmp_path_factory.mktemp("saved") / "deep" / "saved.jsonl")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The run with the same config that samples for itself."""
    folder = tmp_path_factory.mktemp("sampled") / "run"
    return folder, *run(folder)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, file):
    """The run that trains from the file, with a checkpoint after either step."""
    folder = tmp_path_factory.mktemp("replayed") / "run"
    return folder, *run(folder, rollout__file=file, checkpoint__every=1)


def test_the_same_arguments_give_the_same_bytes(file, tmp_path):
    again = write(tmp_path / "again.jsonl")
    assert again.read_bytes() == file.read_bytes()
    saved = storage.read(file)
    assert [r.uid for r in saved.batch(1)] == [u for u in range(4, 8) for _ in range(4)]
    assert [p.name for p in file.parent.iterdir()] == ["saved.jsonl"]


def test_the_first_step_is_the_same_to_the_bit(file, sampled, replayed):
    first, second = dict(sampled[2][0]), dict(replayed[2][0])
    # The same number, and of a file it is not only what two programs round differently.
    assert first.pop("sampler_scorer_gap") == second.pop("off_policy_gap")
    assert first == second
    assert first["loss"] > 0
    assert first["grad_norm"] > 0
    # The file's student stays behind; the second step's prompts are the same.
    assert sampled[2][1]["sampler_scorer_gap"] < 1e-5 < replayed[2][1]["off_policy_gap"]
    assert sampled[2][1]["problems_seen"] == replayed[2][1]["problems_seen"] == 8


def test_the_files_own_peers_are_shown_again(file, replayed):
    """The dump of a step is a file too, and it repeats what it was trained from."""
    saved = storage.read(file)
    for step in (1, 2):
        dump = storage.read(replayed[0] / f"rollouts/step_{step:06d}.jsonl")
        assert dump.header.trained == saved.header.trained == 0
        assert dump.steps == (step,)
        for a, b in zip(dump.batch(0), saved.batch(step - 1), strict=True):
            for name in ("uid", "rollout", "problem", "messages", "context", "verdict"):
                assert getattr(a, name) == getattr(b, name)
            assert a.teacher_message == b.teacher_message
            np.testing.assert_array_equal(a.response_ids, b.response_ids)
            np.testing.assert_array_equal(a.sampled_logp, b.sampled_logp)


def test_a_resumed_run_ends_with_the_same_bits(replayed, file, tmp_path):
    folder, state, metrics = replayed
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "2")
    resumed, again = run(copy, rollout__file=file, checkpoint__every=1)
    assert again == metrics
    jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.optimizer, state.optimizer)


def test_a_resumed_run_wants_the_same_file(file, tmp_path, replayed):
    moved = tmp_path / "saved.jsonl"
    shutil.copy(file, moved)
    folder = tmp_path / "run"
    shutil.copytree(replayed[0], folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace(str(file), str(moved)))
    text = moved.read_text().replace('"feedback": ""', '"feedback": "no"', 1)
    moved.write_text(text)
    error = refused(run, folder, rollout__file=moved, checkpoint__every=1)
    assert "rollout.file names other content than in the first 2 steps" in error


def test_another_method_trains_from_it(file, tmp_path, replayed):
    """After the last step comes the first again, with other draws."""
    _, records = run(tmp_path / "grpo", "grpo", rollout__file=file, steps=3)
    assert [r["problems_seen"] for r in records] == [4, 8, 8]
    assert records[0]["solve_rate"] == records[2]["solve_rate"]
    assert all(r["gradient_finite"] for r in records)
    assert records[0]["update_applied"] == 1
    same = ("solve_rate", "reward", "mixed_groups", "response_tokens", "problems_solved_ever")
    for a, b in zip(records, replayed[2], strict=False):
        assert [a[name] for name in same] == [b[name] for name in same]
    steps = [storage.read(p).steps for p in sorted((tmp_path / "grpo/rollouts").iterdir())]
    assert steps == [(1,), (2,), (3,)]


def test_the_newest_checkpoint_of_a_run_writes_a_file(file, sampled, tmp_path):
    path = write(tmp_path / "later.jsonl", "grpo", start=sampled[0], steps=1)
    later, first = storage.read(path), storage.read(file)
    assert later.header.trained == 2
    # The same prompts and random numbers, of another student: probabilities have moved.
    pairs = list(zip(later.batch(0), first.batch(0), strict=True))
    assert all(a.messages == b.messages for a, b in pairs)
    gaps = [abs(float(a.sampled_logp[0] - b.sampled_logp[0])) for a, b in pairs]
    assert 1e-4 < np.mean(gaps) < 1.0
    new = tmp_path / "new.jsonl"
    for folder in (tmp_path / "none", file.parent, file):
        assert "is not the folder of a run" in refused(write, new, start=folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(sampled[0] / "config.json", empty)
    assert "no finished checkpoint yet" in refused(write, new, start=empty)
    other = {"start": sampled[0], "model__path": "some/model"}
    (empty / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(write, new, start=empty)
    assert "set model.path=builtin:codebook" in refused(write, new, **other)
    assert not new.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout__prompts": 8}, "rollout.prompts=4, and the config has 8; set rollout.prom"),
        ({"rollout__group": 8}, "rollout.group=4, and the config has 8; set rollout.group=4"),
        ({"rollout__response_length": 6}, "set rollout.response_length=5"),
        ({"rollout__temperature": 0.5}, "set rollout.temperature=1.0"),
        (
            {"data__instruction": "r0", "rollout__prompt_length": 8},
            "set data.instruction=''",
        ),
        ({"rollout__top_p": 0.5}, "set rollout.top_p=None"),
        ({"rollout__top_k": 5}, "set rollout.top_k=None"),
        ({"rollout__prompt_length": 5}, "more than rollout.prompt_length=5"),
        ({"rollout__file": "/no/such.jsonl"}, "/no/such.jsonl is not a file; `mopd rollout"),
        ({"rollout__file": ""}, "RolloutConfig.file is empty"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_file_that_does_not_fit(file, tmp_path, changes, words):
    folder = tmp_path / "run"
    assert words in refused(run, folder, **{"rollout__file": file, **changes})
    assert not folder.exists()


def test_a_corrupt_row_stops_the_run_before_it_begins(file, tmp_path):
    path = tmp_path / "bad.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    folder = tmp_path / "run"

    def told(number, **changes):
        row = json.dumps({**json.loads(lines[number - 1]), **changes}) + "\n"
        path.write_text("".join([*lines[: number - 1], row, *lines[number:]]))
        return refused(run, folder, rollout__file=path)

    assert "bad.jsonl, line 9: reward is 7; expected" in told(9, reward=7)
    # What only the tokenizer can tell.
    assert 'line 4: response is "r1"; expected the text of' in told(4, response="r1")
    other = [{"role": "user", "content": "d00 1 2 3"}]
    assert "line 2: prompt_ids is [1" in told(2, messages=other)
    assert not folder.exists()


def test_gold_comes_from_the_data_of_the_files_seed(file):
    """The hidden table depends on the seed, and so do the answers that the verdicts are of."""
    for seed in (0, 1):
        cfg = config("opsd", rollout__file=file, seed=seed, context__gold="answer")
        made, problems, _ = prepare(cfg, pathlib.Path("none"), devices=jax.devices()[:1])
        sampled, verdicts, _ = saved_rollouts.read_step(made, made.saved, 1)
        assert {p.id for p in sampled.problems} < {p.id for p in problems}
        for problem, texts, judged in zip(
            sampled.problems, sampled.texts, verdicts, strict=True
        ):
            assert problem.answer
            for text, verdict in zip(texts, judged, strict=True):
                assert verifiers.verify(problem, text).reward == verdict.reward


def test_who_sampled_must_be_who_the_config_says(file, tmp_path):
    path = write(tmp_path / "taught.jsonl", "gkd", steps=1)
    saved = storage.read(path)
    assert (saved.header.policy, saved.header.trained) == ("teacher", 0)
    # The frozen teacher is the initial student.
    for a, b in zip(saved.batch(0), storage.read(file).batch(0), strict=True):
        np.testing.assert_array_equal(a.response_ids, b.response_ids)
    for variant, given, want in (("gkd", file, "student"), ("sft", path, "teacher")):
        error = refused(run, tmp_path / "run", variant, rollout__file=given)
        assert f"set rollout.policy='{want}'" in error
    error = refused(write, tmp_path / "new.jsonl", "gkd", start=tmp_path)
    assert "leave --from out" in error


def test_evaluation_problems_may_not_be_in_the_file(file, tmp_path):
    held_out = tmp_path / "eval.jsonl"
    problem = list(storage.read(file).problems.values())[3]
    held_out.write_text(
        json.dumps({"messages": list(problem.messages), "answer": "r0"})
        + '\n{"prompt": "d00 1 2 3", "answer": "r0"}\n'
    )
    error = refused(
        run,
        tmp_path / "run",
        rollout__file=file,
        data__source="jsonl",
        data__train_path=held_out,
        data__eval_path=held_out,
    )
    assert "1 of 2 evaluation problems are also trained on" in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give --out=FILE"),
        (["--out="], "give --out=FILE"),
        (["--out=x", "--from="], "--from= names no folder"),
        (["--out=x", "--workdir=y"], "--workdir does not exist"),
        (["--ot=x"], "did you mean out"),
        (
            ["--out=x", "--config.rollout.file=y"],
            "`mopd rollout` samples: set rollout.file=Non",
        ),
        ([f"--out={CONFIG}"], "already exists; remove it, or choose another --out"),
    ],
)
def test_flags_of_rollout(capsys, more, words):
    assert cli.main(["rollout", *flags(), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mopd: ")
    assert words in error


def test_a_student_of_nan_writes_nothing(tmp_path, monkeypatch):
    sampled = types.SimpleNamespace(sampled_logp=np.array([0.0, np.nan]))
    gathered = types.SimpleNamespace(sampled=sampled)
    monkeypatch.setattr(collect.experience, "gather", lambda *_, **__: gathered)
    assert "step 1: a log-prob of the student is not finite" in refused(
        write, tmp_path / "nan.jsonl"
    )
    assert not list(tmp_path.iterdir())


def test_batches_of_a_run_without_a_model(file):
    """`read_step` gives back the arrays that `rows` took apart."""
    saved = storage.read(file)
    cfg = config(rollout__file=file)
    words = types.SimpleNamespace(pad_id=0, chat=lambda messages: [1, 2])
    made = types.SimpleNamespace(cfg=cfg, tokenizer=words, saved=saved)
    sampled, verdicts, draw = saved_rollouts.read_step(made, saved, 4)
    assert draw == 4
    assert sampled.response.shape == (4, 4, 5)
    assert sampled.uids.tolist() == [4, 5, 6, 7]
    assert sampled.response.dtype == np.int32
    for n, row in enumerate(saved.batch(1)):
        p, g = divmod(n, 4)
        live = sampled.mask[p, g]
        assert live.sum() == len(row.response_ids)
        assert sampled.response[p, g][live].tolist() == row.response_ids.tolist()
        assert not sampled.response[p, g][~live].any()
        assert not sampled.sampled_logp[p, g][~live].any()
        assert verdicts[p][g] == row.verdict
        assert sampled.texts[p][g] == row.response
