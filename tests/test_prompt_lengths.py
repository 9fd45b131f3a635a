"""Prompts that are too long: an error that names them, or left out and counted."""

import dataclasses
import json

import jax
import pytest

from mopd_jax import flags as flags_of
from mopd_jax import train
from mopd_jax.contexts import render
from mopd_jax.data import prompt_lengths
from mopd_jax.records import Problem


class Words:
    def chat(self, messages):
        return messages[-1]["content"].split()


def problems(*sizes):
    said = [({"role": "user", "content": " ".join(["w"] * size)},) for size in sizes]
    return [Problem(f"p{i}", turn, "", "exact") for i, turn in enumerate(said)]


def test_what_fits_stays_as_it_is():
    given = problems(1, 3, 2)
    for drop in (False, True):
        assert prompt_lengths.fitting(given, Words(), limit=3, drop=drop) == (given, 0)


def test_the_error_counts_and_names():
    message = (
        r"6 of 7 problems have prompts of more than rollout.prompt_length=3 tokens: "
        r"'p1' \(4 tokens\), .*'p5' \(8 tokens\), \.\.\.; raise it.*long_prompts='drop'"
    )
    with pytest.raises(render.PromptTooLong, match=message):
        prompt_lengths.fitting(problems(*range(3, 10)), Words(), limit=3)


def test_they_are_left_out_in_order_and_named(caplog):
    given = problems(5, 1, 4, 3, 2)
    with caplog.at_level("WARNING", "mopd"):
        found, count = prompt_lengths.fitting(given, Words(), limit=3, drop=True)
    assert count == 2
    assert list(found) == found[:] == [given[1], given[3], given[4]]
    assert (len(found), found[-1]) == (3, given[4])
    assert "2 of 5 problems" in caplog.text
    assert "'p0' (5 tokens), 'p2' (4 tokens)" in caplog.text


def test_none_left_is_an_error():
    with pytest.raises(render.PromptTooLong, match="2 of 2 problems"):
        prompt_lengths.fitting(problems(5, 4), Words(), limit=3, drop=True)


def test_a_run_counts_what_it_leaves_out(tmp_path):
    rows = {
        "train": [("a", "d01 1 2 3"), ("b", "d01 1 2 3 " * 9), ("c", "d01 2 2 3")],
        "eval": [("e", "d01 3 2 1")],
    }
    for split, made in rows.items():
        lines = [
            json.dumps({"id": name, "prompt": text, "answer": "1 2 3", "verifier": "codebook"})
            for name, text in made
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    flags = [
        "--config=configs/quickstart.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.steps=1",
        "--config.rollout.prompts=2",
        "--config.rollout.group=2",
        "--config.eval.problems=None",
        "--config.eval.samples=1",
        "--config.eval.batch=1",
        "--config.eval.ks=(1,)",
        "--config.data.source=jsonl",
        f"--config.data.train_path={tmp_path / 'train.jsonl'}",
        f"--config.data.eval_path={tmp_path / 'eval.jsonl'}",
        "--config.data.options={}",
    ]
    cfg, folder = flags_of.parse(flags)
    with pytest.raises(render.PromptTooLong, match="1 of 3 problems.*'b'"):
        train.train(cfg, folder, devices=jax.devices()[:1])
    assert not folder.exists()
    cfg, _ = flags_of.parse([*flags, "--config.data.long_prompts=drop"])
    train.train(cfg, folder, devices=jax.devices()[:1])
    assert json.loads((folder / "environment.json").read_text())["prompts_left_out"] == 1
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [r["prompts_left_out"] for r in records if r["kind"] == "train"] == [1]
    # A held-out prompt is never left out.
    data = dataclasses.replace(cfg.data, eval_path=cfg.data.train_path, held_out=False)
    with pytest.raises(render.PromptTooLong, match="1 of 3 problems"):
        train.train(
            dataclasses.replace(cfg, data=data), tmp_path / "two", devices=jax.devices()[:1]
        )
