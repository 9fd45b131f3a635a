"""Every variant by name trains the quick start."""

import re

import jax
import numpy as np
import pytest
from test_docs import explained
from test_train import flags

from mopd_jax import flags as flags_of
from mopd_jax import train
from mopd_jax.config import methods
from mopd_jax.run import logbook


def unexplained(records):
    """Names of metrics that docs/metrics.md leaves out."""
    names = {name for record in records for name in record} - {"step", "kind"}
    short = {re.sub(r"(_low|_high)$", "", name) for name in names}
    known = {re.sub(r"@\d+", {"mean": "@N", "pass": "@K"}.get(n[:4], "@"), n) for n in short}
    return known - explained()


@pytest.mark.parametrize("variant", methods.METHODS)
def test_trains_the_quick_start(variant, tmp_path):
    changes = {"steps": 2, "rollout__prompts": 16, "eval__every": 100, "eval__problems": 4}
    changes |= {"eval__batch": 4, "eval__samples": 1, "eval__ks": (1,), "dump_every": 1}
    cfg, folder = flags_of.parse(flags(tmp_path / "run", variant, **changes))
    state = train.train(cfg, folder, devices=jax.devices()[:1])
    assert int(state.step) == 2
    records = logbook.read(folder)
    assert unexplained(records) == set()
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["gradient_finite"] for r in steps] == [1, 1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert all(r["update_applied"] > 0 and r["trained_tokens"] > 0 for r in steps)
    if variant == "opd":
        assert all(r["informed"] == 0 for r in steps)
        # Student and frozen teacher start equal and read the same: no signal at step 1.
        assert steps[0]["divergence"] < 1e-6
    if variant == "positive":
        assert all(r["shows_failure"] == 0 for r in steps)
    if variant == "opsd":
        assert all(r["shows_gold"] == 1 for r in steps)
    if variant.startswith("control_"):
        # Every answer has four tokens and the end, so equally many blocks match exactly.
        assert variant == "control_shell" or steps[0]["control_matched"] > 0.9
        assert steps[0]["informed"] > 0.9
