"""Wrong commands: at most five lines that name what, where and the remedy, and no traceback.

Each is answered before the training code is imported, so before data or weights are loaded.
"""

import pytest

from mopd_jax import cli

# Files of the folder that the commands run in.
FILES = {
    "README.md": "# A config this is not\n",
    "syntax.py": "def get_config(:\n",
    "raises.py": "import math\n\n\ndef get_config():\n    return math.sqrt(-1)\n",
    "imports.py": "import no_such_package\n",
    "empty.py": "",
    "plain.py": "from mopd_jax import config\n\n\ndef get_config():\n"
    "    return config.defaults()\n",
    "typo.py": "from mopd_jax import config\n\n\ndef get_config():\n"
    "    cfg = config.defaults()\n    cfg.optimizer.learning_rat = 1.0\n    return cfg\n",
    "runs/cut/config.json": '{"steps": ',
    "runs/none/notes.txt": "",
}
START = "config --config=quickstart "
SETTING = START + "--config."
# {command: texts of its answer: what and where; the remedy}
COMMANDS = {
    "tain": ("'tain'", "did you mean train"),
    "TRAIN": ("'TRAIN'", "known: "),
    "-v": ("'-v'", "known: "),
    "config": ("--config", "once, not 0 times"),
    "train": ("--config=NAME", "once, not 0 times"),
    "rollout --out=x": ("--config=NAME", "once, not 0 times"),
    "eval": ("--config=NAME", "--from=RUN"),
    "config --config=quickstart --config=math": ("--config=NAME", "once, not 2 times"),
    "config quickstart": ("'quickstart'", "--name=value"),
    "config --config": ("'--config'", "--name=value"),
    "config --config=": ("config ''", "known: "),
    "config --config=quickstrat": ("config 'quickstrat'", "did you mean quickstart"),
    "config --config=README.md": ("README.md", ".py"),
    "config --config=./README.md": ("README.md", ".py"),
    "config --config=runs": ("config 'runs'", "known: "),
    "config --config=runs/": ("config file runs", "is a folder; name a .py file"),
    "config --config=nowhere/at/all.py": ("nowhere/at/all.py", "known: none"),
    "config --config=no/math.py": ("no/math.py", "--config=math is the one"),
    "config --config=plain": ("config 'plain'", "--config=plain.py"),
    "config --config=syntax.py": ("syntax.py, line 1", "invalid syntax"),
    "config --config=raises.py": ("raises.py, line 5", "ValueError: math domain error"),
    "config --config=imports.py": ("imports.py, line 1", "no_such_package"),
    "config --config=empty.py": ("empty.py", "get_config(variant)"),
    "config --config=plain.py:grpo": ("plain.py", "has no variants"),
    "config --config=typo.py": ("typo.py, line 6", "did you mean learning_rate"),
    "config --config=quickstart:grp": ("'grp'", "did you mean grpo"),
    START + "--steps=3": ("--steps", "--config.steps=3"),
    START + "--optimizer.learning_rate=1": (
        "not a flag, but a setting",
        "--config.optimizer.learning_rate=1",
    ),
    START + "--wrkdir=x": ("--wrkdir", "did you mean workdir"),
    START + "--workdir=": ("--workdir=", "names no folder"),
    START + "--workdir": ("'--workdir'", "--name=value"),
    START + "-x": ("'-x'", "--name=value"),
    SETTING + "step=3": ("config.step", "did you mean steps"),
    SETTING + "steps=many": ("config.steps='many'", "must be int"),
    SETTING + "steps=": ("config.steps=''", "must be int"),
    SETTING + "steps=0": ("steps", "at least 1"),
    SETTING + "steps=1.5": ("config.steps=1.5", "must be int"),
    SETTING + "steps=99999999999999999999": ("config.steps=", "2147483647"),
    SETTING + "seed=-1": ("seed", "at least 0"),
    SETTING + "seed=99999999999999999999": ("config.seed=", "2147483647"),
    SETTING + "model=3": ("config.model=3", "must be a section"),
    SETTING + "model.path=": ("ModelConfig.path is empty", "name a folder"),
    SETTING + "model.compute_dtype=float64": ("float64", "did you mean bfloat16, float32"),
    SETTING + "peers.failure=1": ("config.peers.failure", "did you mean failures"),
    SETTING + "peers.same_text=True": ("peers.same_text", "peers.exclude"),
    SETTING + "rollout.group=1": ("group is 1", "2 or more"),
    SETTING + "rollout.batch=5": ("batch is 5", "use a divisor"),
    SETTING + "rollout.temperature=0": ("temperature is 0", "must be positive"),
    SETTING + "rollout.temperature=inf": ("temperature='inf'", "must be float"),
    SETTING + "rollout.top_p=2": ("top_p is 2", "(0, 1]"),
    SETTING + "optimizer.learning_rate=1e400": ("learning_rate=inf", "finite"),
    SETTING + "optimizer.learning_rate=nan": ("learning_rate='nan'", "must be float"),
    SETTING + "optimizer.learning_rate=0": ("learning_rate is 0", "must be positive"),
    SETTING + "optimizer.weight_decay=-1e999": ("weight_decay=-inf", "finite"),
    SETTING + "optimizer.beta1=1": ("beta1 is 1", "[0, 1)"),
    SETTING + "optimizer.mini_batches=7": ("mini_batches=7", "rollout.prompts"),
    SETTING + "loss.method=grp": ("'grp'", "did you mean grpo"),
    SETTING + "loss.alpha=0.5": ("loss.alpha", "loss.divergence.alpha"),
    SETTING + "loss.divergence.top_k=9": ("top_k=9", "leave it None, or choose"),
    SETTING + "eval.ks=(99,)": ("99", "eval.samples"),
    SETTING + "eval.ks=3": ("config.eval.ks=3", "must be a list"),
    SETTING + "data.source=jsonl": ("'jsonl'", "data.train_path"),
    SETTING + "data.train_path=x": ("reads no such files", "source 'jsonl'"),
    SETTING + "data.options=3": ("config.data.options", "must be a mapping"),
    SETTING + "log.wandb=''": ("LogConfig.wandb is empty", "None for off"),
    "rollout --config=quickstart": ("--out=FILE", "give"),
    "rollout --config=quickstart --out=x --from=": ("--from=", "names no folder"),
    "eval --config=quickstart": ("--out=FOLDER", "give"),
    "eval --from=runs/none --out=x": ("runs/none", "config.json"),
    "eval --from=runs/cut --out=x": ("runs/cut/config.json is not JSON", "is damaged"),
    "eval --from=missing --out=x": ("missing", "config.json"),
    "eval --config=quickstart --out=x --bleu=maybe": ("--bleu=maybe", "on or off"),
    "eval --config=quickstart --out=x --budget=0": ("--budget=0", "1 or more"),
    "compare --metrics=": ("--metrics=", "leave it out"),
    "compare a --metric=x": ("--metric", "did you mean metrics"),
    "compare a b": ("a/responses.jsonl", "mopd eval --out=FOLDER"),
    "data": ("mopd data prepare|check|show NAME", "with one name"),
    "data prepar gsm8k": ("command 'data prepar'", "did you mean prepare?"),
    "data prepare gsm8k": ("--source", "give"),
    "data prepare gsm8x --source=hub": ("gsm8x", "gsm8k"),
    "data show nothing": ("data/nothing/1.0.0", "run `mopd data prepare nothing"),
}


def test_there_are_enough():
    assert len(COMMANDS) >= 60


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_is_answered(command, tmp_path, monkeypatch, capsys):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*.*"))
    assert cli.main(command.split(" ")) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("mopd: ")
    assert err.count("\n") <= 5 and len(err) < 1000
    for text in COMMANDS[command]:
        assert text in err
    after = [path for path in sorted(tmp_path.rglob("*.*")) if "__pycache__" not in str(path)]
    assert after == before


def test_with_debug_there_is_a_traceback():
    with pytest.raises(ValueError, match="did you mean train"):
        cli.main(["tain", "--debug"])
