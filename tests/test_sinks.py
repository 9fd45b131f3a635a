"""Services get what the run folder gets, and none of them can stop a run."""

import json
import logging
import sqlite3

import pytest
import wants

from mopd_jax.config import Config, ConfigError, LogConfig
from mopd_jax.run import logbook, sinks

ROWS = [
    {"verdict": "right", "problem": "p1", "prompt": "1+1?", "response": "2"},
    {"verdict": "wrong", "problem": "p2", "prompt": "2+2?", "response": "5"},
]
VALUES = {"loss": 0.5, "reward": float("nan"), "sandbox_level": "namespaces", "pairs": 3}


def write(folder, cfg, *, step=0):
    """A logbook after `step` steps that records one step and one evaluation."""
    services = sinks.open_sinks(cfg, folder, fresh=step == 0)
    book = logbook.Logbook(folder, step=step, sinks=services)
    book.scalars(step + 1, "train", VALUES)
    book.samples(step + 1, ROWS)
    book.close()


def identity(folder):
    return json.loads((folder / sinks.FILE).read_text())["id"]


def test_trackio_has_config_metrics_and_samples(tmp_path, monkeypatch):
    wants.importing("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):  # They read the variable when they are imported.
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = Config(log=LogConfig(trackio="mopd-test"))
    write(folder, cfg)
    name = identity(folder)
    write(folder, cfg, step=1)  # Resumed: under the same name.
    assert identity(folder) == name
    (path,) = (tmp_path / "trackio").glob("mopd-test*.db")
    with sqlite3.connect(path) as base:
        logged = base.execute("select run_name, step, metrics from metrics").fetchall()
        (config,) = {row[0] for row in base.execute("select config from configs").fetchall()}
    assert {row[0] for row in logged} == {f"run-{name}"}
    records = [(row[1], json.loads(row[2])) for row in logged]
    assert (1, {"train/loss": 0.5, "train/pairs": 3}) in records
    assert {step for step, values in records if "train/loss" in values} == {1, 2}
    assert any("1+1?" in json.dumps(values) for _, values in records)
    assert json.loads(config)["rollout"]["group"] == 8


def test_wandb_has_config_metrics_and_samples(tmp_path, monkeypatch):
    wants.importing("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder, Config(log=LogConfig(wandb="mopd-test")))
    (saved,) = folder.glob("wandb/offline-run-*")
    (data,) = saved.glob("run-*.wandb")
    assert data.name == f"run-run-{identity(folder)}.wandb"
    raw = data.read_bytes()
    assert b"train/loss" in raw and b"train/reward" not in raw and b"response_length" in raw
    (table,) = saved.glob("files/media/table/eval/*.json")
    assert json.loads(table.read_text()) == {
        "columns": [*ROWS[0]],
        "data": [[*row.values()] for row in ROWS],
    }


class Failing:
    def __init__(self, at):
        self.at, self.calls = at, []

    def call(self, name):
        self.calls.append(name)
        if name == self.at:
            raise ConnectionError("no route\nto host")

    def log(self, step, values):
        self.call("log")

    def table(self, step, name, columns, rows):
        self.call("table")

    def close(self):
        self.call("close")


@pytest.mark.parametrize("at", ["open", "log", "table", "close"])
def test_a_service_that_fails_is_left_and_the_run_goes_on(at, tmp_path, caplog):
    failing, whole = Failing(at), Failing(None)

    def opened():
        failing.call("open")
        return failing

    with caplog.at_level(logging.WARNING, logger="mopd"):
        services = sinks.Sinks({"wandb": opened, "trackio": lambda: whole})
        book = logbook.Logbook(tmp_path, step=0, sinks=services)
        for step in (1, 2):
            book.scalars(step, "train", VALUES)
            book.samples(step, ROWS)
        book.close()
    (message,) = caplog.messages
    assert "log.wandb: Weights & Biases failed (ConnectionError: no route to host)" in message
    assert failing.calls.count(at) == 1
    assert whole.calls == ["log", "table", "log", "table", "close"]
    assert [r["step"] for r in logbook.read(tmp_path)] == [1, 2]


def test_no_service_writes_nothing(tmp_path):
    write(tmp_path, Config())
    assert not (tmp_path / sinks.FILE).exists()


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="log.wandb='p' needs .*pip install wandb"):
        sinks.check(Config(log=LogConfig(wandb="p")))
    sinks.check(Config())


def test_an_empty_project_is_an_error():
    with pytest.raises(ConfigError, match="LogConfig.trackio is empty"):
        LogConfig(trackio="")
