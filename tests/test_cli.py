"""The command line: what is printed, the exit status, and the default run folder."""

import json
import pathlib
import subprocess
import sys

import pytest

from mopd_jax import cli
from mopd_jax import flags as flags_of
from mopd_jax.errors import ConfigError

QUICKSTART = str(pathlib.Path(__file__).parents[1] / "configs/quickstart.py")
FLAG = f"--config={QUICKSTART}"


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help(argv, capsys):
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: mopd train --config=NAME")
    assert not err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tain"], "'tain' does not exist; did you mean train"),
        (["config"], "give --config=NAME[:VARIANT] once, not 0 times"),
        (["config", FLAG, FLAG], "once, not 2 times"),
        (["config", "quickstart"], "flags are written --name=value"),
        (["config", FLAG, "--workdir"], "flags are written --name=value"),
        (["config", FLAG, "--wrkdir=x"], "did you mean workdir"),
        (["config", f"--config={QUICKSTART[:-3]}s.py"], "did you mean"),
        (["config", "--config=nowhere/at/all.py"], "does not exist"),
        (
            ["config", "--config=quickstrat"],
            "config 'quickstrat' does not exist; did you mean quick",
        ),
        (["config", "--config=quickstart:grp"], "did you mean grpo"),
        (["config", "--config="], "config '' does not exist; known: livecodebench, math"),
        (
            ["config", "--config=no/math.py"],
            "; --config=math is the one that the package ships",
        ),
        (["config", f"{FLAG}:grp"], "did you mean grpo"),
        (["config", FLAG, "--config.peers.failure=1"], "did you mean failures"),
        (["config", FLAG, "--config.rollout.group=1"], "set rollout.group to 2 or more"),
        (["config", FLAG, "--config.steps=many"], "must be int"),
        (["config", FLAG, "--config.steps="], "must be int"),
        (["train", FLAG, "--config.seed=-1"], "at least 0"),
        (["config", FLAG, "--config.model=3"], "config.model"),
        (["config", FLAG, "--config.data.options=3"], "config.data.options"),
        (["config", FLAG, "--config.seed={[]: 1}"], "config.seed"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("mopd: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_wrong_flag_is_answered_before_jax_is_asked_for_devices(tmp_path):
    code = (
        "import sys; from mopd_jax import cli; status = cli.main(['train', '--confg=x']);"
        "assert 'mopd_jax.train' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_flag_may_be_written_with_a_space(capsys):
    assert cli.main(["config", FLAG, "--config.seed=7"]) == 0
    want = capsys.readouterr().out
    assert cli.main(["config", "--config", QUICKSTART, "--config.seed", "7"]) == 0
    assert capsys.readouterr().out == want
    words = ["prepare", "--source", "hub", "gsm8k", "--option.a", "-1", "--out=x", "y"]
    assert flags_of.joined(words) == [
        *("prepare", "--source=hub", "gsm8k", "--option.a=-1", "--out=x", "y")
    ]


def test_config_prints_every_setting_as_json(capsys):
    assert cli.main(["config", f"{FLAG}:grpo", "--config.eval.ks=(1, 8)"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "grpo"
    assert shown["loss"]["method"] == "grpo"
    assert shown["eval"]["ks"] == [1, 8]
    assert shown["rollout"]["top_p"] is None


def test_the_default_workdir_is_a_function_of_the_settings():
    cfg, workdir = flags_of.parse([f"{FLAG}:sdpo"])
    assert cfg.peers.successes == 1
    assert workdir.parts[0] == "runs"
    assert workdir.name.startswith("quickstart-sdpo-")
    assert flags_of.parse([f"{FLAG}:sdpo"])[1] == workdir
    same = flags_of.parse([f"{FLAG}:sdpo", f"--config.seed={cfg.seed}"])[1]
    assert same == workdir
    for change in ("--config.seed=7", "--config.context.closing=Go", "--config.steps=3"):
        assert flags_of.parse([f"{FLAG}:sdpo", change])[1] != workdir


def test_workdir_and_order_of_flags():
    first = flags_of.parse(
        ["--config.seed=2", FLAG, "--workdir=here/it=is", "--config.steps=5"]
    )
    assert first[1] == pathlib.Path("here/it=is")
    assert (first[0].seed, first[0].steps) == (2, 5)
    # The last of two values for one setting holds.
    assert flags_of.parse([FLAG, "--config.seed=2", "--config.seed=3"])[0].seed == 3


def test_a_config_file_without_get_config_of_its_own_path(tmp_path):
    """Only the named file is run; a neighbour with the same stem is not imported."""
    (tmp_path / "mine.py").write_text(
        "from mopd_jax import config\n\n\ndef get_config():\n    return config.defaults()\n"
    )
    assert flags_of.parse([f"--config={tmp_path}/mine.py"])[0].name == "mopd"
    with pytest.raises(ConfigError, match="did you mean .*mine.py"):
        flags_of.parse([f"--config={tmp_path}/mime.py"])


@pytest.mark.parametrize(
    ("text", "variant", "words"),
    [
        ("x = 1", "", "has no get_config"),
        ("def get_config(:", "", "line 1"),
        ("def get_config():\n    return None", "grpo", "no variants, so not 'grpo'"),
    ],
)
def test_a_config_file_that_is_none(tmp_path, text, variant, words):
    path = tmp_path / "made.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        flags_of.load(path, variant)


def test_a_shipped_config_has_a_name_in_every_folder(tmp_path, monkeypatch):
    """A local file of the same name is meant only where it is spelled as a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math.py").write_text(pathlib.Path(QUICKSTART).read_text())
    shipped, folder = flags_of.parse(["--config=math:sdpo"])
    assert (shipped.name, shipped.data.source) == ("sdpo", "tfds")
    assert folder.name.startswith("math-sdpo-")
    for path in ("math.py", "./math.py", f"{tmp_path}/math.py"):
        assert flags_of.parse([f"--config={path}:sdpo"])[0].data.source == "codebook"
    (tmp_path / "mine.py").write_text(pathlib.Path(QUICKSTART).read_text())
    with pytest.raises(
        ConfigError, match="'mine' does not exist.*file of this folder is .*mine.py"
    ):
        flags_of.parse(["--config=mine"])
    assert flags_of.parse(["--config=sciknoweval:physics/grpo"])[0].name == "physics-grpo"
    assert flags_of.parse(["--config=quickstart"])[0] == flags_of.parse([FLAG])[0]
