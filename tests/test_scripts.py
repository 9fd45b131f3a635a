"""The scripts beside the package run: the warm start's maker, and the benchmarks."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mopd_jax.models import tokenizer, weights

ROOT = pathlib.Path(__file__).parents[1]


def script(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_warm_start_maker_writes_what_is_shipped(tmp_path):
    made, shipped = tmp_path / "made", weights.resolve("builtin:codebook")
    script(ROOT / "examples/codebook_warm_start.py", "--out", made, "--steps", 2, "--rows", 8)
    assert weights.load_config(made) == weights.load_config(shipped)
    assert tokenizer.load(made).fingerprint == tokenizer.load(shipped).fingerprint
    weights.load_params(made, weights.load_config(made))


@pytest.mark.parametrize("options", [(), ("--control", "unrelated", "--match", "token")])
def test_contexts(options):
    size = ["--prompts", 4, "--group", 4, "--length", 64, "--repeats", 1, "--ragged"]
    row = json.loads(script(ROOT / "benchmarks/contexts.py", *size, *options))
    assert row["rows"] == 16
    assert 40 < row["teacher_prompt_tokens"] <= 176
    assert row["peers_per_row"] > 2
    assert row["tokens_cut"] > 0
    # Next to nothing at this size: a bound that only a blow-up reaches.
    assert row["contexts"] < 0.5


@pytest.mark.slow
def test_contexts_of_a_whole_step():
    """256 rollouts of 4096 tokens, two successes and one failure, in 2 s of CPU."""
    rows = script(ROOT / "benchmarks/contexts.py", "--repeats", 2).splitlines()
    assert all(json.loads(row)["response_tokens"] == 4096 for row in rows)
    assert min(json.loads(row)["contexts"] for row in rows) < 2.0


@pytest.mark.slow
def test_sweep(tmp_path):
    small = ["--methods", "mopd", "opd", "--rates", "1e-3", "--seeds", "0", "--steps", "2"]
    out = script(ROOT / "benchmarks/quickstart_sweep.py", "--out", tmp_path / "sweep", *small)
    assert "| opd | 0.001 |" in out
