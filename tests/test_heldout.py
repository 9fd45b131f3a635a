"""`mopd eval` and `mopd compare` on the quick start: files, weights, flags, errors."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from mopd_jax import cli, collect, records, train, verifiers
from mopd_jax import flags as flags_of
from mopd_jax.errors import ConfigError
from mopd_jax.evaluation import heldout, responses, scores
from mopd_jax.models import weights
from mopd_jax.run import checkpoint
from mopd_jax.run import opening as runs
from mopd_jax.run.stops import Stops

CONFIG = pathlib.Path(__file__).parents[1] / "configs/quickstart.py"
SMALL = {
    "eval.problems": 6,
    "eval.samples": 4,
    "eval.batch": 4,
    "eval.ks": (1, 4),
    "rollout.prompts": 4,
    "rollout.group": 2,
}
FLAGS = [f"--config={CONFIG}", *(f"--config.{k}={v}" for k, v in SMALL.items())]


def evaluated(out, *words):
    """`mopd eval` in this process, on one of its eight devices."""
    asked = flags_of.parse_eval([*words, f"--out={out}"])
    return heldout.run_eval(
        asked.cfg, asked.out, source=asked.source, bleu=None, devices=jax.devices()[:1]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a checkpoint whose weights are not the initial ones; none was made
    by an update, which would cost its compilation."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cfg, _ = flags_of.parse([*FLAGS, f"--workdir={folder}", "--config.seed=3"])
    run, state, *_ = runs.open_run(cfg, folder, command="", devices=jax.devices()[:1])
    worse = jax.tree.map(lambda x: x * -0.3, state.params)
    for step, params in ((1, state.params), (2, worse)):
        state = dataclasses.replace(state, params=params, step=jax.numpy.int32(step))
        checkpoint.save(folder / "checkpoints", state, {"position": 0}, keep=2)
    return folder, run, state


@pytest.fixture(scope="module")
def pair(tmp_path_factory, trained):
    """Evaluations of the initial weights and of the checkpoint."""
    folder = tmp_path_factory.mktemp("evaluations")
    before = evaluated(folder / "before", *FLAGS, "--config.seed=3")
    after = evaluated(folder / "after", f"--from={trained[0]}")
    return folder, before, after


def test_the_folder_of_an_evaluation(pair):
    folder, table, _ = pair
    names = {path.name for path in (folder / "before").iterdir()}
    assert names == {
        *("responses.jsonl", "table.md", "table.json"),
        *("config.json", "command.txt", "environment.json"),
    }
    saved = responses.read(folder / "before")
    assert len(saved.responses) == 6
    assert all([r.sample for r in row] == [0, 1, 2, 3] for row in saved.responses)
    for response in sum(saved.responses, []):
        # Four words and the end, or a response that was cut at five tokens.
        assert response.tokens == 5 or response.stopped
        assert response.text
        assert response.reward in (0.0, 1.0)
        assert response.test_fraction is None
        assert response.format_ok is None
    result = scores.outcome(saved.responses, threshold=1.0)
    want = result.summary([1, 4])
    document = json.loads((folder / "before/table.json").read_text())
    for name in ("mean@4", "pass@1", "pass@4"):
        found = document["metrics"][name]
        assert [found["value"], found["low"], found["high"]] == pytest.approx(
            [want[name], want[f"{name}_low"], want[f"{name}_high"]]
        )
    assert (folder / "before/table.md").read_text() == table.markdown() + "\n"
    assert document["evaluation"]["step"] is None
    assert document["evaluation"]["weights"] == "builtin:codebook"


def test_the_newest_checkpoint_is_evaluated_with_the_settings_of_its_run(pair, trained):
    folder, before, after = pair
    source, run, state = trained
    assert after.header["step"] == 2
    assert after.header["seed"] == 3
    assert after.header["weights"] == str(source)
    # The loop's own evaluation of these weights, on the same keys, has the same outcomes.
    with jax.set_mesh(run.mesh):
        own = heldout.respond(run, state)
    assert responses.read(folder / "after").responses == own
    assert responses.read(folder / "before").responses != own


def test_the_evaluation_of_a_training_run_is_the_same_code(trained, tmp_path):
    _, run, state = trained
    book = []

    class Book:
        def scalars(self, step, kind, values):
            book.append((step, kind, values))

        def samples(self, step, rows):
            assert step == 2 and {row["verdict"] for row in rows} <= {"right", "wrong"}

    with jax.set_mesh(run.mesh):
        train._evaluate(run, state, Book(), Stops())
    ((step, kind, values),) = book
    assert (step, kind) == (2, "eval")
    kept = json.loads((run.folder / "evaluations/step_000002.json").read_text())
    assert np.mean(kept["solved"]) == pytest.approx(values["mean@4"])
    assert values["problems"] == 6


def test_compare(pair, tmp_path, capsys):
    folder = pair[0]
    words = ["compare", str(folder / "before"), str(folder / "after"), f"--out={tmp_path}/c"]
    assert cli.main([*words, "--budget=16"]) == 0
    out = capsys.readouterr().out
    assert f"baseline: {folder / 'before'}" in out
    assert (tmp_path / "c/comparison.md").read_text() == out
    document = json.loads((tmp_path / "c/comparison.json").read_text())
    rows = {row["metric"]: row for row in document["rows"]}
    values = [table.metrics["mean@4"].value for table in pair[1:]]
    assert rows["mean@4"]["difference"] == pytest.approx(values[1] - values[0])
    assert rows["self-BLEU-4"]["problems"] == 6
    assert rows["test fraction"]["difference"] is None
    assert document["counts"][str(folder / "after")]["budget"] == 16
    metrics = "--metrics=mean@4,bigram similarity, all"
    assert cli.main([*words[:3], metrics, "--bleu=off"]) == 0
    assert "all 2 tests" in capsys.readouterr().out


def test_a_question_is_all_that_decides_a_verdict():
    chat = ({"role": "user", "content": "add"},)

    def digest(verifier="code", **meta):
        return heldout.question(records.Problem("p", chat, "", verifier, meta))

    tests = [{"input": "1", "output": "2"}]
    asked = digest(tests=tests, fn_name=None)
    assert re.fullmatch("[0-9a-f]{12}", asked)
    assert digest(fn_name=None, tests=[dict(reversed(tests[0].items()))]) == asked
    assert digest(tests=[{"input": "1", "output": "3"}], fn_name=None) != asked
    assert digest("exact", tests=tests, fn_name=None) != asked
    assert digest(path=pathlib.Path("a")) != digest(path=pathlib.Path("b"))


class _Box:
    """In place of a sandbox; programs are not run."""

    description, level, closed = "none", "limits", False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True


def _broken(*args):
    raise RuntimeError("broken off")
    yield


def test_the_sandbox_is_closed_whatever_happens(tmp_path, monkeypatch):
    boxes = []
    monkeypatch.setattr(
        runs, "_sandbox", lambda cfg, problems: boxes.append(_Box()) or boxes[-1]
    )
    monkeypatch.setattr(heldout, "respond", lambda *args: next(_broken()))
    with pytest.raises(RuntimeError, match="broken off"):
        evaluated(tmp_path / "eval", *FLAGS)
    monkeypatch.setattr(collect, "_rows", _broken)
    cfg, _ = flags_of.parse([*FLAGS, f"--workdir={tmp_path}"])
    with pytest.raises(RuntimeError, match="broken off"):
        collect.collect(cfg, tmp_path / "rollouts.jsonl", devices=jax.devices()[:1])
    assert len(boxes) == 2 and all(box.closed for box in boxes)


def test_parameters_alone_are_checked_too(trained, monkeypatch):
    folder, run, state = trained
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params
    )
    found = checkpoint.load_params(folder / "checkpoints", 2, like)
    jax.tree.map(np.testing.assert_array_equal, found, state.params)
    sums = checkpoint._checksums({"params": state.params})
    flipped = {**sums, next(iter(sums)): 0}
    with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError) as error:
        patch.setattr(checkpoint, "_checksums", lambda tree: flipped)
        checkpoint.load_params(folder / "checkpoints", 2, like)
    assert "checkpoints/2 is corrupt" in str(error.value)
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/7 cannot be read"):
        checkpoint.load_params(folder / "checkpoints", 7, like)
    wider = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), like)
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load_params(folder / "checkpoints", 2, wider)


def test_flags(trained, tmp_path):
    source = trained[0]
    asked = flags_of.parse_eval([f"--from={source}", "--out=x", "--config.eval.samples=8"])
    assert asked.cfg.eval.samples == 8
    assert asked.cfg.seed == 3
    assert asked.differ == ["eval"]
    assert (asked.bleu, asked.budget, asked.source) == (True, None, source)
    asked = flags_of.parse_eval([*FLAGS, f"--from={source}", "--out=x"])
    assert asked.differ == ["seed"]
    model = weights.resolve("builtin:codebook")
    asked = flags_of.parse_eval(
        [*FLAGS, f"--model={model}", "--out=x", "--bleu=off", "--budget=9"]
    )
    assert asked.cfg.model.path == str(model)
    assert (asked.bleu, asked.budget, asked.source, asked.differ) == (False, 9, None, [])


def fails(capsys, *words):
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("mopd: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", *FLAGS], "give --out=FOLDER"),
        (["eval", "--out=x"], "or --from=RUN for a run's own, once, not 0 times"),
        (["eval", *FLAGS, "--out="], "--out= names no folder"),
        (["eval", *FLAGS, "--out=x", "--form=y"], "did you mean from"),
        (["eval", *FLAGS, "--out=x", "--from=nowhere"], "nowhere/config.json cannot be read"),
        (["eval", *FLAGS, "--out=x", "--bleu=of"], "--bleu=of is not understood"),
        (["eval", *FLAGS, "--out=x", "--budget=0"], "--budget=0 is not a number of tokens"),
        (["eval", *FLAGS, "--out=x", "--config.eval.ks=(9,)"], "ks has 9"),
        (["eval", *FLAGS, "--config.eval.batch=8", "--out=x", "--model=/no/such"], "/no/such"),
        (["compare"], "give two or more different evaluations"),
        (["compare", "nowhere"], "nowhere/responses.jsonl cannot be read"),
        (["compare", "a", "b", "--metric=x"], "did you mean metrics"),
        (["compare", "a", "b", "--budget=x"], "--budget=x is not a number"),
        (["compare", "a", "b", "--metrics=,"], "--metrics= names no metric"),
    ],
)
def test_bad_flags(words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_those_of_the_run(trained, tmp_path, capsys):
    source = trained[0]
    words = ["eval", *FLAGS, f"--from={source}", f"--out={tmp_path}/x"]
    error = fails(capsys, *words, "--config.model.path=other")
    assert "give --config.model.path=builtin:codebook" in error
    assert "give one of them" in fails(capsys, *words, "--model=other")


def test_a_run_without_a_checkpoint(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text((trained[0] / "config.json").read_text())
    with pytest.raises(ConfigError, match="has no finished checkpoint"):
        evaluated(tmp_path / "x", f"--from={tmp_path}/run")
    assert not (tmp_path / "x").exists()


def test_an_evaluation_is_not_written_over(pair):
    with pytest.raises(responses.ResponseError, match="already"):
        evaluated(pair[0] / "before", *FLAGS)


def test_ids_that_are_not_unique(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "q", "prompt": "d01 1 2 3", "answer": "1 2 3"}\n' * 6)
    words = ["data.source=jsonl", f"data.train_path={rows}", f"data.eval_path={rows}"]
    with pytest.raises(ValueError, match="eval split has two problems with the id 'q'"):
        evaluated(tmp_path / "x", *FLAGS, *(f"--config.{word}" for word in words))
    assert not (tmp_path / "x").exists()


def test_answers():
    def ask(verifier, text):
        problem = records.Problem(id="a", messages=(), answer="1 2 3", verifier=verifier)
        return verifiers.vote(problem, verifiers.verify(problem, text))

    assert ask("codebook", " r1  1 2 3") == "1 2 3"
    assert ask("codebook", "r1 1 2") == ask("codebook", "1 1 2 3") == ""
    assert ask("exact", "so <answer> 4 </answer>") == "4"
    assert ask("reasoning_gym", "4 ") == "4"
    assert (
        ask("choice", "<answer>(b)</answer>") == ask("choice", "<answer>B. 3</answer>") == "B"
    )
    assert ask("choice", "we get a value") == ""
    assert ask("math", r"\boxed{0.5}") == ask("math", r"so \boxed{\frac{1}{2}}") == "1/2"
    assert ask("math", r"\boxed{x + 1}") == "x+1"
    assert ask("math", "1/2") == ""
    one, two = (
        'Action: {}\nAction Input: {{"a": {}}}'.format(*x) for x in (("f", 1), ("g", 2))
    )
    assert ask("tools", f"{one}\n{two}") == ask("tools", f"{two}\n{one}") != ask("tools", one)
    assert ask("tools", "Action: f\nAction Input: {") == ""
    assert ask("a verifier of programs", "x") is None


def test_a_question_is_its_text_and_its_answer():
    def digest(content, answer, name="a"):
        messages = ({"role": "user", "content": content},)
        problem = records.Problem(id=name, messages=messages, answer=answer, verifier="exact")
        return heldout.question(problem)

    assert len(digest("q", "1")) == 12
    assert digest("q", "1") == digest("q", "1", name="b")
    assert len({digest("q", "1"), digest("q", "2"), digest("r", "1")}) == 3


def test_the_command_hands_on_what_it_was_asked(trained, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(heldout, "run_eval", lambda *a, **k: asked.append((a, k)))
    words = ["eval", f"--from={trained[0]}", f"--out={tmp_path}", "--config.seed=4"]
    assert cli.main([*words, "--budget=5", "--bleu=off"]) == cli.main(words) == 0
    (cfg, out), options = asked[0]
    assert (cfg.seed, out) == (4, tmp_path)
    command = " ".join(["mopd", *words, "--budget=5", "--bleu=off"])
    want = {"source": trained[0], "bleu": None, "budget": 5, "command": command}
    assert options == want
    assert asked[1][1]["bleu"]("a b", ["a b"]) == pytest.approx(1.0)
    out = capsys.readouterr().out
    assert f"settings that are not those of {trained[0]}: seed" in out
