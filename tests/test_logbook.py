"""The run folder: what a resumed run finds, and what a kill can leave."""

import json

import numpy as np
import pytest

from mopd_jax import files
from mopd_jax.run import logbook
from mopd_jax.run.logbook import Logbook


def write(folder, *, step, until):
    """A logbook opened after `step` updates that records every later step up to `until`."""
    book = Logbook(folder, step=step)
    for s in range(step + 1, until + 1):
        book.scalars(s, "train", {"loss": s / 2})
    book.close()


def steps(folder):
    return [(r["kind"], r["step"]) for r in logbook.read(folder)]


def test_records_come_back(tmp_path):
    book = Logbook(tmp_path, step=0)
    book.scalars(0, "eval", {"mean@8": 0.25, "problems": 64, "note": "é\u2028"})
    # Flushed at once: a kill loses no finished record.
    assert logbook.read(tmp_path) == [
        {"step": 0, "kind": "eval", "mean@8": 0.25, "problems": 64, "note": "é\u2028"}
    ]
    book.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_drops_what_it_will_repeat(tmp_path):
    write(tmp_path, step=0, until=5)
    book = Logbook(tmp_path, step=3)
    assert steps(tmp_path) == [("train", s) for s in (1, 2, 3)]
    book.scalars(4, "train", {"loss": 9.0})
    book.close()
    assert steps(tmp_path) == [("train", s) for s in (1, 2, 3, 4)]
    assert logbook.read(tmp_path)[-1]["loss"] == 9.0


def test_a_run_from_the_start_drops_everything(tmp_path):
    book = Logbook(tmp_path, step=0)
    book.scalars(0, "eval", {"mean@8": 0.1})
    book.close()
    Logbook(tmp_path, step=0).close()
    assert steps(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 2, 10, 20])
def test_a_cut_last_line_is_dropped(tmp_path, cut):
    write(tmp_path, step=0, until=3)
    path = tmp_path / logbook.METRICS
    path.write_bytes(path.read_bytes()[:-cut])
    assert steps(tmp_path) == [("train", 1), ("train", 2)]
    write(tmp_path, step=2, until=3)
    assert steps(tmp_path) == [("train", 1), ("train", 2), ("train", 3)]
    assert path.read_bytes().endswith(b"\n")


def test_a_folder_without_records(tmp_path):
    assert logbook.read(tmp_path) == []


def test_what_is_not_finite_is_null(tmp_path):
    book = Logbook(tmp_path, step=0)
    values = {"a": float("nan"), "b": np.float64("inf"), "c": [1.0, float("-inf")], "d": {}}
    book.scalars(1, "train", {**values, "d": {"e": float("nan")}})
    book.close()
    (line,) = (tmp_path / logbook.METRICS).read_text().splitlines()
    assert "NaN" not in line
    assert "Infinity" not in line
    want = {"step": 1, "kind": "train", "a": None, "b": None, "c": [1.0, None]}
    assert json.loads(line) == {**want, "d": {"e": None}}


def test_text_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    files.write_text(path, "old")
    seen = []
    replace = files.os.replace

    def watch(source, target):
        seen.append((source.read_text(), target.read_text()))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    files.write_text(path, "new")
    assert seen == [("new", "old")]
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
