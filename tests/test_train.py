"""The whole loop on the shipped warm start: files, resume to the same bits, compilations."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import wants
from orbax.checkpoint import v1 as ocp

from mopd_jax import cli, experience, train
from mopd_jax import flags as flags_of
from mopd_jax.data.prepared import store
from mopd_jax.errors import ConfigError, RunError
from mopd_jax.evaluation import heldout
from mopd_jax.models import weights
from mopd_jax.rollouts import storage
from mopd_jax.run import checkpoint, console, lease, logbook
from mopd_jax.run import opening as runs
from mopd_jax.run.state import Saver
from mopd_jax.run.stops import Stopped

CONFIG = pathlib.Path(__file__).parents[1] / "configs/quickstart.py"
SMALL = {
    "steps": 4,
    "dump_every": 2,
    "rollout.prompts": 8,
    "rollout.group": 4,
    "eval.every": 2,
    "eval.problems": 8,
    "eval.samples": 4,
    "eval.batch": 8,
    "eval.ks": (1, 4),
    "checkpoint.every": 2,
}


def flags(folder, variant="mopd", **changes):
    settings = {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}
    words = [f"--config={CONFIG}:{variant}", f"--workdir={folder}"]
    return words + [f"--config.{name}={value}" for name, value in settings.items()]


def run(folder, variant="mopd", **changes):
    """In this process, on one of its eight devices."""
    cfg, workdir = flags_of.parse(flags(folder, variant, **changes))
    return train.train(cfg, workdir, devices=jax.devices()[:1])


def start(folder, **changes):
    """The same command in a process of its own, on one device."""
    env = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "mopd_jax.cli", "train", *flags(folder, **changes)]
    with (folder.parent / f"{folder.name}.log").open("w") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)


def checksums(folder, step):
    """What `checkpoint.save` recorded of every array, bit by bit."""
    path = folder.absolute() / "checkpoints" / str(step)
    return ocp.load_checkpointables(path, {"meta": None})["meta"]["checksums"]


def finish(folder, **changes):
    """Runs the command to its end; returns what it printed."""
    status = start(folder, **changes).wait(timeout=300)
    out = (folder.parent / f"{folder.name}.log").read_text()
    assert status == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four steps in a process of its own."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    out = finish(folder)
    return folder, out


def test_run_folder(finished):
    folder, out = finished
    assert "gain (paired)" in out
    assert "self checks: 6 pass (loss, header, gold, mask, sampler, teacher)" in out
    checks = json.loads((folder / "self_checks.json").read_text())
    assert checks["before_step"] == 1
    assert [c["name"] for c in checks["checks"]][-2:] == ["sampler", "teacher"]
    records = logbook.read(folder)
    steps = [(r["kind"], r["step"]) for r in records]
    trained = [("train", 1), ("train", 2), ("eval", 2), ("train", 3), ("train", 4), ("eval", 4)]
    assert steps == [("eval", 0), *trained]
    step = records[1]
    for name in ("solve_rate", "divergence", "entropy", "teacher_prompt_tokens"):
        assert np.isfinite(step[name])
    assert step["informed"] == 1.0
    assert step["sampler_scorer_gap"] < 1e-4
    assert step["seconds_rollout"] > 0
    seen = [r["problems_seen"] for r in records if r["kind"] == "train"]
    assert seen == [8, 16, 24, 32]
    assert step["problems_solved_ever"] == 8 * step["problems_solved_ever_fraction"]
    assert list((folder / "tensorboard").glob("events*"))
    assert json.loads((folder / "config.json").read_text())["name"] == "mopd"
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == [
        "step_000002.jsonl",
        "step_000004.jsonl",
    ]
    assert checkpoint.steps(folder / "checkpoints") == [2, 4]


def test_rollouts_say_who_was_shown(finished):
    path = finished[0] / "rollouts" / "step_000002.jsonl"
    header, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["trained"] == 1
    assert [r.step for r in storage.read(path).batch(0)] == [2] * 32
    assert len(rows) == 32
    for row in rows:
        group = [r for r in rows if r["uid"] == row["uid"]]
        shown = row["context"]["shown"]
        assert row["rollout"] not in shown
        assert row["context"]["shown_uids"] == [row["uid"]] * len(shown)
        assert row["context"]["kinds"] == [
            "success" if ok else "failure" for ok in row["context"]["succeeded"]
        ]
        blocks = [
            f"{'<ok>' if ok else '<bad>'} {group[i]['response']}"
            for i, ok in zip(shown, row["context"]["succeeded"], strict=True)
        ]
        question = row["messages"][-1]["content"]
        assert row["teacher_message"] == " ".join([question, *blocks])
        for i, ok in zip(shown, row["context"]["succeeded"], strict=True):
            assert group[i]["reward"] == float(ok)
        # The student saw the problem and nothing of this.
        assert "<ok>" not in question
        assert "<bad>" not in question


def same_log(folder, other):
    """The log has every step once, with the same numbers but for times."""

    def records(path):
        free = ("seconds", "tokens_per_second")
        return [
            {k: v for k, v in record.items() if not k.startswith(free)}
            for record in logbook.read(path)
        ]

    return records(folder) == records(other)


def test_killed_run_ends_with_the_same_bits(finished, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    deadline = time.time() + 240
    while not any(r["step"] == 3 for r in logbook.read(folder)):
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.steps(folder / "checkpoints") == [2]
    out = finish(folder)
    assert "going on from the checkpoint of step 2" in out
    moved = "student and teacher have moved in 2 steps"
    assert "self checks: 5 pass (loss, header, gold, mask, sampler); teacher" in out
    assert f"teacher does not apply: {moved}" in out
    assert checksums(folder, 4) == checksums(finished[0], 4)
    assert same_log(folder, finished[0])
    # And once more, now that it is finished: nothing is trained, the table is shown again.
    again = finish(folder)
    assert "gain (paired)" in again
    assert "step 4/4" not in again
    assert "self checks" not in again


def printed(folder):
    return (folder.parent / f"{folder.name}.log").read_text()


def wait_for(process, seen):
    """Waits until `seen()`, while the process runs."""
    deadline = time.time() + 240
    while not seen():
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)


def test_a_stopped_run_ends_with_the_same_bits_and_has_its_folder_alone(
    finished, tmp_path, capsys
):
    folder = tmp_path / "stopped"
    process = start(folder)
    wait_for(process, (folder / lease.FILE).exists)
    # Refused by the lock, before data or weights, while the first is still loading its own.
    words = flags(folder, model__path="/no/such/model")
    assert f"is in use by process {process.pid} on " in fails(capsys, *words)
    wait_for(process, lambda: any(r["step"] == 3 for r in logbook.read(folder)))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (note,) = [line for line in printed(folder).split("\n") if line.startswith("mopd: stop")]
    (step,) = checkpoint.steps(folder / "checkpoints")[-1:]
    assert note == (
        f"mopd: stopped after step {step}; the same command goes on from step {step}"
    )
    assert step >= 3 and "Traceback" not in printed(folder)
    assert not (folder / lease.FILE).exists()
    assert f"going on from the checkpoint of step {step}" in finish(folder)
    assert checksums(folder, 4) == checksums(finished[0], 4)
    assert same_log(folder, finished[0])


def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    folder, respond = tmp_path / "run", heldout.respond

    def stopped(student, state):
        if int(state.step):
            raise Stopped(signal.SIGINT)
        return respond(student, state)

    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        patch.setattr(heldout, "respond", stopped)
        run(folder, steps=2)
    assert caught.value.note == "stopped after step 2; the same command goes on from step 2"
    before = [(r["kind"], r["step"]) for r in logbook.read(folder)]
    assert before == [("eval", 0), ("train", 1), ("train", 2)]
    run(folder, steps=2)
    after = [(r["kind"], r["step"]) for r in logbook.read(folder)]
    assert after == [*before, ("eval", 2)]


@pytest.mark.slow
def test_stops_and_kills_at_any_moment(finished, tmp_path):
    folder = tmp_path / "often"
    rng = np.random.default_rng(0)
    status = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    for number in [signal.SIGINT, signal.SIGTERM] * 5 + [signal.SIGKILL] * 4:
        process = start(folder)
        time.sleep(rng.uniform(3, 20))
        process.send_signal(number)
        assert process.wait(timeout=60) in (0, status[number])
        assert "Traceback" not in printed(folder)
    finish(folder)
    assert same_log(folder, finished[0])
    assert checksums(folder, 4) == checksums(finished[0], 4)


def test_nothing_compiles_after_warm_up(tmp_path, monkeypatch):
    compiled, at_step = [], {}

    def listen(event, duration, **_):
        del duration
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    say = console.Progress.say

    def count(progress, step, values):
        at_step[step] = len(compiled)
        say(progress, step, values)

    monkeypatch.setattr(console.Progress, "say", count)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path / "run", steps=6)
        total = len(compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at_step[1] > 0
    # Step 2 is followed by the loop's first evaluation and checkpoint; from there on, none.
    assert at_step[3] == at_step[6] == total


def test_eight_devices_equal_one(tmp_path):
    one = run(tmp_path / "one", steps=2)
    cfg, workdir = flags_of.parse(
        flags(tmp_path / "eight", steps=2, mesh__fsdp=2, mesh__tensor=2)
    )
    eight = train.train(cfg, workdir)
    # Adam divides by the gradient's own size, so where that is all rounding, two steps of 1e-3
    # may differ by a part of themselves; tests/test_invariance.py bounds the gradients.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one.params, eight.params
    )
    pairs = zip(logbook.read(tmp_path / "one"), logbook.read(tmp_path / "eight"), strict=True)
    for a, b in pairs:
        for name in ("solve_rate", "informed", "loss", "divergence", "mean@4"):
            np.testing.assert_allclose(a.get(name, 0), b.get(name, 0), rtol=1e-4)


def test_batches_of_rollouts_are_the_rollouts_and_are_judged_meanwhile(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", steps=1, dump_every=1)
    second, judged = threading.Event(), []
    sample, verify = experience.sample, experience.verify

    def sampling(student, sampler, state, problems, uids, **options):
        if options["purpose"] == experience.TRAIN and uids[0] > 0:
            second.set()
        return sample(student, sampler, state, problems, uids, **options)

    def verifying(student, sampled):
        if sampler_of_training(sampled) and not judged:
            # The first batch's verdicts wait until the second batch is being sampled.
            assert second.wait(timeout=60)
        judged.append(len(sampled.problems))
        return verify(student, sampled)

    def sampler_of_training(sampled):
        return sampled.response.shape[1] == 4 and len(sampled.problems) == 2

    monkeypatch.setattr(experience, "sample", sampling)
    monkeypatch.setattr(experience, "verify", verifying)
    parts = run(tmp_path / "parts", steps=1, dump_every=1, rollout__batch=2)
    assert judged.count(2) == 4
    header, *rows = (tmp_path / "whole/rollouts/step_000001.jsonl").read_text().split("\n")
    _, *others = (tmp_path / "parts/rollouts/step_000001.jsonl").read_text().split("\n")
    assert len(rows) == len(others) == 8 * 4 + 1
    for a, b in zip(rows[:-1], others[:-1], strict=True):
        a, b = json.loads(a), json.loads(b)
        np.testing.assert_allclose(a.pop("behaviour_logp"), b.pop("behaviour_logp"), atol=1e-5)
        assert a == b
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole.params, parts.params
    )


def fails(capsys, *words):
    """Runs the command line; returns its one line of complaint."""
    status = cli.main(["train", *words])
    error = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in error
    # A library may say something of its own when it is first imported.
    _, found, line = f"\n{error}".rpartition("\nmopd: ")
    assert found
    return line


def model_folder(tmp_path, **changes):
    """A copy of the warm start's folder whose config.json is changed."""
    folder = tmp_path / "model"
    shutil.copytree(weights.resolve("builtin:codebook"), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__path": "/no/such/model"}, "/no/such/model"),
        ({"rollout__batch": 3}, "RolloutConfig.batch is 3, which does not divide"),
        ({"rollout__prompt_length": 5}, "8 of 8 problems have prompts of more than"),
        ({"rollout__group": 1}, "rollout.group to 2 or more"),
        ({"eval__problems": 10**6}, "eval.problems=1000000"),
        ({"peers__succeses": 1}, "did you mean successes"),
        ({"mesh__fsdp": 3}, "fsdp=3"),
        ({"mesh__tensor": 8}, "mesh.tensor"),
        ({"rollout__prompts": 3}, "rollout.prompts=3"),
        ({"data__options": {"seed": 1}}, "data.options.seed does not exist"),
        ({"data__source": "jsonl"}, "data.train_path"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_settings(tmp_path, capsys, changes, words):
    assert words in fails(capsys, *flags(tmp_path / "run", **changes))


def test_wrong_family(tmp_path, capsys):
    folder = model_folder(tmp_path, model_type="gpt2")
    assert "gpt2" in fails(capsys, *flags(tmp_path / "run", model__path=folder))


def test_vocabulary_mismatch(tmp_path, capsys):
    folder = model_folder(tmp_path, vocab_size=70)
    error = fails(capsys, *flags(tmp_path / "run", model__path=folder))
    assert "70" in error


def test_no_chat_template(tmp_path, capsys):
    folder = model_folder(tmp_path)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["chat_template"]
    path.write_text(json.dumps(settings))
    assert "chat template" in fails(capsys, *flags(tmp_path / "run", model__path=folder))


def test_row_without_an_answer(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "d01 1 2 3", "answer": "1 2 3"}\n{"prompt": "d01 1 2 3"}\n')
    changes = {"data__source": "jsonl", "data__train_path": rows, "data__eval_path": rows}
    error = fails(capsys, *flags(tmp_path / "run", **changes))
    assert "rows.jsonl, row 2: no 'answer'" in error


def test_fewer_steps_than_are_done(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    with pytest.raises(ConfigError, match="has done 4 steps already"):
        run(folder, steps=3)


def test_evaluation_on_what_is_trained_on(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "d01 1 2 3", "answer": "1 2 3"}\n')
    changes = {"data__source": "jsonl", "data__train_path": rows, "data__eval_path": rows}
    changes["eval__problems"] = 1
    error = fails(capsys, *flags(tmp_path / "run", **changes))
    assert "1 of 1 evaluation problems are also trained on" in error


def test_evaluation_on_what_is_trained_on_by_intention(tmp_path, caplog):
    """From a prepared data set; all that a run checks, and no training."""
    wants.importing("tensorflow_datasets")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "d01 1 2 3", "answer": "1 2 3", "verifier": "codebook"}\n')
    told = [
        "prepare",
        "jsonl",
        f"--source={rows}",
        f"--out={tmp_path}",
        "--option.test_share=1",
    ]
    assert cli.main(["data", *told]) == 0
    changes = {"data__source": "tfds", "data__options.dir": tmp_path, "eval__problems": None}
    changes |= {"data__options.train": "jsonl:test", "data__options.eval": "jsonl"}
    cfg, folder = flags_of.parse(flags(tmp_path / "run", **changes, data__held_out=False))
    with caplog.at_level("WARNING", "mopd"):
        opened, problems, _ = runs.prepare(cfg, folder, devices=jax.devices()[:1])
    assert [p.id for p in problems] == [p.id for p in opened.eval_problems]
    assert "1 of 1 evaluation problems are also trained on" in caplog.text
    # A run goes on only with the data that it began with.
    cfg = dataclasses.replace(cfg, steps=1)
    with caplog.at_level("WARNING", "mopd"):
        train.train(cfg, folder, devices=jax.devices()[:1])
    assert "train: jsonl:test was never checked" in caplog.text
    record = json.loads((folder / "environment.json").read_text())["data"]
    assert record["eval: jsonl:test"]["problems"] == 1
    manifest = store.read_manifest(tmp_path, "jsonl")
    store.write_manifest(store.folder(tmp_path, "jsonl"), {**manifest, "content": "another"})
    with pytest.raises(ConfigError, match="has changed since"):
        train.train(dataclasses.replace(cfg, steps=2), folder, devices=jax.devices()[:1])


def test_another_config_in_the_same_folder(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    error = fails(capsys, *flags(folder, peers__failures=1))
    assert "different: peers" in error


def damage_checkpoint(step, kind):
    """Damages the largest file of a checkpoint's folder."""
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    if kind == "remove":
        largest.unlink()
    else:
        if kind == "flip":
            data[len(data) // 2] ^= 16
        largest.write_bytes(data if kind == "flip" else data[: len(data) // 2])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    finished, tmp_path, caplog
):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    damage_checkpoint(folder / "checkpoints/4", "flip")
    with caplog.at_level(logging.INFO, logger="mopd"):
        run(folder, checkpoint__keep=1)  # Removes the one before only when it is not needed.
    (warning,) = [m for m in caplog.messages if "checkpoints/4 is corrupt" in m]
    assert warning.startswith("WARNING") and "It is kept as" in warning
    assert warning.endswith("checkpoints/4.damaged; going on from step 2")
    assert checkpoint.steps(folder / "checkpoints") == [4]
    assert (folder / "checkpoints/4.damaged").is_dir()
    assert [r["step"] for r in logbook.read(folder)] == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_without_an_intact_checkpoint_nothing_starts_anew(finished, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    for step in (2, 4):
        damage_checkpoint(folder / f"checkpoints/{step}", damage)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(
        checkpoint.CheckpointError, match="no checkpoint of .* can be read"
    ) as e:
        run(folder)
    assert "checkpoints/2" in str(e.value) and "checkpoints/4" in str(e.value)
    assert len(str(e.value)) < 1600
    assert checkpoint.steps(folder / "checkpoints") == [2, 4]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_knows_its_config(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "config.json").unlink()
    words = flags(folder, optimizer__learning_rate=0.5, rollout__group=2)
    assert "another config (different: optimizer, rollout)" in fails(capsys, *words)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", "", "config.json is not JSON in UTF-8"),
        ("config.json", '{"format": 2, "name": ', "config.json is not JSON in UTF-8"),
        ("environment.json", "{", "environment.json is not a JSON object"),
        ("environment.json", "[]", "environment.json is not a JSON object"),
        ("metrics.jsonl", '{"kind": "eval", "step": 0}\n{"ki\n{}\n', "metrics.jsonl, line 2,"),
        ("metrics.jsonl", "3\n", "metrics.jsonl, line 1, is not a record of a run"),
    ],
)
def test_a_damaged_small_file_is_named(finished, tmp_path, capsys, file, text, words):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / file).write_text(text)
    assert words in fails(capsys, *flags(folder))


class FullDisk:
    """Saves that find no room, and the others."""

    def __init__(self, monkeypatch, *failing):
        self.save, self.failing = checkpoint.save, failing
        monkeypatch.setattr(checkpoint, "save", self)

    def __call__(self, folder, state, meta, *, keep):
        if int(state.step) in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "2"))
        self.save(folder, state, meta, keep=keep)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, caplog):
    FullDisk(monkeypatch, 2)
    with caplog.at_level(logging.WARNING, logger="mopd"):
        run(tmp_path / "run")
    (warning,) = [m for m in caplog.messages if "could not be written" in m]
    assert "checkpoint of step 2 could not be written (No space left on device)" in warning
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [4]
    # With the last save, the command fails: what it trained is not kept.
    FullDisk(monkeypatch, 5)
    with pytest.raises(
        RunError, match=r"\(No space left on device\); make room, .* from step 4"
    ):
        run(tmp_path / "run", steps=5)


def test_nothing_is_saved_in_a_folder_that_was_taken(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda *args, **options: saved.append(args))
    held = lease.Lease(tmp_path, lease.Holder.own(), lease.Times())
    saver = Saver(None, held, step=0)
    saver.completed(types.SimpleNamespace(step=3), 0, None)
    monkeypatch.setattr(held, "_taken", "process 7 on far")
    with pytest.raises(RunError, match="was taken by process 7 on far"):
        saver.save()
    # A stop does not save there either, and the loss of the folder is what is said.
    with pytest.raises(RunError, match="was taken"), saver:
        raise Stopped(signal.SIGTERM)
    assert saved == []


def test_an_error_of_the_system_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr(train, "open_run", full)
    assert cli.main(["train", *flags(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mopd: {tmp_path}/metrics.jsonl: No space left on device; once ")
    assert error.count("\n") == 1
    with pytest.raises(OSError, match="No space"):
        cli.main(["train", "--debug", *flags(tmp_path / "run")])


def test_several_updates_resume_to_the_same_bits(tmp_path):
    """A step of four updates, a copy every third step, its drift: in one go and in two."""
    options = {
        "optimizer__mini_batches": 2,
        "optimizer__epochs": 2,
        "teacher__kind": "periodic",
        "teacher__every": 3,
        "teacher__drift_every": 2,
        "eval__every": 100,
    }
    run(tmp_path / "whole", **options)
    for steps in (2, 4):
        run(tmp_path / "parts", steps=steps, **options)
    assert checksums(tmp_path / "parts", 4) == checksums(tmp_path / "whole", 4)
    records = [r for r in logbook.read(tmp_path / "parts") if r["kind"] == "train"]
    assert ["drift_distance" in r for r in records] == [False, True, False, True]
