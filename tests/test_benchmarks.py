"""The benchmark of the fused divergence: it runs, and it refuses what is wrong."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
SMALL = ["--shapes", "64,16,200", "--repeat", "2"]


@pytest.fixture
def divergence(monkeypatch):
    """The module of the script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("divergence", BENCHMARKS / "divergence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("divergence_contestants", None)


def test_script_reports_every_contestant(tmp_path):
    file = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "divergence.py", *SMALL, "--json", file],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert {"cpu", "cores", "load at start", "python", "jax", "device"} <= set(found["machine"])
    assert [(run["valid"], run["dtype"]) for run in found["runs"]] == [
        (1.0, "float32"),
        (0.3, "float32"),
    ]
    for run in found["runs"]:
        names = [row["contestant"] for row in run["rows"]]
        assert names == ["naive", "chunked", "statistics"]
        for row in run["rows"]:
            low, high = row["time_ratio_range"]
            assert len(row["wall_s"]) == len(row["cpu_s"]) == 2
            assert 0 < low <= high and 0 < row["time_ratio"] < math.inf
            assert row["memory_ratio"] > 0 and max(row["differences"]) <= 1e-4
    assert "| 64, 16, 200 | 0.3 | jsd 0.5 | chunked |" in done.stdout


@pytest.mark.parametrize("kind", ["jsd", "forward_kl", "reverse_kl", "cross_entropy"])
def test_contestants_agree_for_every_loss(divergence, kind):
    alpha = 0.2 if kind == "jsd" else None
    case = divergence.contestants.Case((24, 8, 50), 0.5, kind, alpha, "float32")
    labels = [
        "naive",
        "naive_rounded",
        "chunked(16)",
        "statistics(16)",
        "products",
    ]
    for row in divergence.measure(case, labels, 1):
        assert "refused" not in row and len(row["wall_s"]) == 1
        assert ("differences" in row) == (row["contestant"] != "products")


def test_the_price_of_a_schedule_is_measured_in_pairs(divergence, capsys, tmp_path):
    file = tmp_path / "out.json"
    divergence.main(["--schedule", *SMALL, "--valid", "0.5", "--json", str(file)])
    (run,) = json.loads(file.read_text())["runs"]
    assert [row["contestant"] for row in run["rows"]] == ["chunked", "reference"]
    for row in run["rows"]:
        assert [len(x) for x in row["wall_s"]] == [2, 2] and len(row["ratios"]) == 2
    assert "| 64, 16, 200 | 0.5 | chunked |" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_wrong_result_is_refused(divergence, monkeypatch, capsys, wrong):
    right = divergence.contestants.fused

    def seeded(*args):
        loss = right(*args)
        return lambda *arrays: loss(*arrays) * wrong

    monkeypatch.setattr(divergence.contestants, "fused", seeded)
    with pytest.raises(SystemExit, match="chunked is not naive: value, hidden, head"):
        divergence.main(SMALL)
    assert "| chunked |" not in capsys.readouterr().out


def test_other_libraries_are_named_where_they_are_missing(divergence, monkeypatch, capsys):
    monkeypatch.setattr(divergence.contestants, "installed", lambda module: False)
    monkeypatch.setattr(divergence.jax, "default_backend", lambda: "gpu")
    case = divergence.contestants.Case((24, 8, 50), 1.0, "jsd", 0.5, "bfloat16")
    labels = divergence.labels_of(None, case, None)
    assert labels == [
        *(
            "naive",
            "chunked",
            "statistics",
            "naive_rounded",
            "pallas_gpu",
            "products",
        )
    ]
    lines = capsys.readouterr().out.splitlines()
    assert "- liger_triton: not installed: pip install liger-kernel" in lines
    assert len(lines) == len(divergence.contestants.LIBRARIES)


def test_absent_chips(divergence, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        divergence.main(["--memory", "nochip"])
    assert "invalid choice: 'nochip'" in capsys.readouterr().err
    monkeypatch.setattr(divergence.contestants, "installed", lambda module: False)
    case = divergence.contestants.Case((24, 8, 50), 1.0, "jsd", 0.5, "bfloat16")
    rows = divergence.show_memory(["v5e", "h100"], [case], [16])
    assert ["pip install" in row["refused"] for row in rows] == [True, True]
    assert "jax[tpu]" in rows[0]["refused"] and "jax-cuda13-plugin" in rows[1]["refused"]


def test_sandbox_script_reports_rates_and_equal_verdicts(tmp_path):
    file = tmp_path / "out.json"
    options = ["--levels", "limits", "--programs", "8", "--rounds", "2", "--loads", "0", "1"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "sandbox.py", *options, "--repeats", "1", "--json", file],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    assert len(found["rates"]["limits"]) == 2 and min(found["rates"]["limits"]) > 0
    assert set(found["loads"]["limits"]) == {"0", "1"}
    assert (
        "| limits |" in done.stdout and "the same, right verdicts on 14 programs" in done.stdout
    )
