"""A run folder's format number: what is refused, and what a table of renames makes readable."""

import copy
import dataclasses
import json
import pathlib

import pytest

from mopd_jax import cli, collect, train
from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.evaluation import responses
from mopd_jax.run import saved_config

QUICKSTART = f"--config={pathlib.Path(__file__).parents[1]}/configs/quickstart.py"


@pytest.fixture
def folder(tmp_path):
    saved_config.write(tmp_path, Config(seed=5))
    return tmp_path


def edited(folder, change):
    """Rewrites config.json by `change`, which gets its settings."""
    path = folder / saved_config.FILE
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def of_format(number):
    def change(tree):
        del tree["format"]
        if number is not None:
            tree["format"] = number

    return change


def test_settings_come_back(folder):
    assert saved_config.read(folder) == Config(seed=5)
    saved_config.check(folder)
    record = json.loads((folder / saved_config.FILE).read_text())
    assert next(iter(record)) == "format"
    assert set(record) == {"format"} | {field.name for field in dataclasses.fields(Config)}


def test_a_setting_that_the_folder_does_not_have_is_the_default(folder):
    edited(folder, lambda tree: tree["rollout"].pop("group"))
    assert saved_config.read(folder) == Config(seed=5)


OTHER = pytest.mark.parametrize(
    ("number", "named"),
    [
        (None, "no format number"),
        (0, "format 0"),
        (1, "format 1"),
        (3, "format 3"),
        ("2", "format '2'"),
        (True, "format True"),
    ],
)


@OTHER
def test_another_format_is_refused_in_one_line(folder, number, named, tmp_path):
    """A resume, an evaluation, `mopd rollout --from` and a comparison."""
    edited(folder, of_format(number))
    cfg, _ = cli.parse([QUICKSTART])
    for use in (
        lambda: train.train(cfg, folder),
        lambda: cli.parse_eval([f"--from={folder}", "--out=x"]),
        lambda: collect.collect(cfg, tmp_path / "rollouts.jsonl", start=folder),
        lambda: responses.read(folder),
        lambda: saved_config.check(folder),
    ):
        with pytest.raises(ConfigError) as error:
            use()
        assert str(error.value) == (
            f"{folder} has {named}, and this version of mopd reads format "
            f"{saved_config.FORMAT}; use the version that its environment.json names, or start "
            "again in another folder"
        )
    assert [path.name for path in folder.iterdir()] == [saved_config.FILE]


def test_the_command_line_refuses_an_older_folder(folder, capsys):
    edited(folder, of_format(None))
    assert cli.main(["compare", str(folder), "other"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"mopd: {folder} has no format number")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json is not JSON in UTF-8"),
        ("[]", "config.json holds a list"),
        ('{"format": 2, "sed": 3}', "config.sed does not exist; did you mean seed"),
    ],
)
def test_damage(tmp_path, text, words):
    (tmp_path / saved_config.FILE).write_text(text)
    with pytest.raises(ConfigError, match=words):
        saved_config.read(tmp_path)


def test_no_folder_of_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: .*FileNotFoundError"):
        saved_config.read(tmp_path)


# Made up: the seed moves, two settings swap names, and a text becomes a section.
STEPS = {
    1: {"seed": "run.seed", "rollout.top_p": "rollout.top_k", "rollout.top_k": "rollout.top_p"},
    2: {"loss": "loss.kind", "peers.never": "peers.there", "a.b": "a.c"},
}


def test_renames_are_applied_in_order():
    tree = {"seed": 7, "rollout": {"top_p": 0.5, "top_k": 3, "group": 4}, "loss": "jsd", "a": 1}
    before = copy.deepcopy(tree)
    assert saved_config.renamed(tree, 1, STEPS) == {
        "run": {"seed": 7},
        "rollout": {"top_k": 0.5, "top_p": 3, "group": 4},
        "loss": {"kind": "jsd"},
        "a": 1,
    }
    assert saved_config.renamed(tree, 2, STEPS) == {**tree, "loss": {"kind": "jsd"}}
    assert saved_config.renamed(tree, 3, STEPS) == before == tree


def test_a_folder_of_the_format_before_goes_on_by_the_table(folder, monkeypatch):
    def older(tree):
        tree["sede"] = tree.pop("seed")
        tree["rollout"]["rollouts_per_prompt"] = tree["rollout"].pop("group")

    edited(folder, older)
    row = {"sede": "seed", "rollout.rollouts_per_prompt": "rollout.group"}
    monkeypatch.setattr(saved_config, "FORMAT", 3)
    monkeypatch.setattr(saved_config, "RENAMES", {2: row})
    assert saved_config.read(folder) == Config(seed=5)
    saved_config.check(folder)
    # Of two formats before there is no row, so that folder cannot be read.
    monkeypatch.setattr(saved_config, "FORMAT", 4)
    with pytest.raises(ConfigError, match="has format 2, and this version of mopd reads"):
        saved_config.read(folder)


def test_every_format_since_the_first_row_can_be_read():
    rows = sorted(saved_config.RENAMES)
    assert rows == list(range(saved_config.FORMAT))[-len(rows) :] if rows else True
    names = {field.name for field in dataclasses.fields(Config)}
    for new in saved_config.RENAMES.get(saved_config.FORMAT - 1, {}).values():
        assert new.split(".")[0] in names
