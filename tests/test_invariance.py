"""Equal gradients however the rows of a step are split, placed or ordered.

With beta1 = 0 and no clipping the first moment of Adam is the gradient itself.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from mopd_jax.config import (
    Config,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
)
from mopd_jax.kernels import Divergence
from mopd_jax.models import decoder, sharding
from mopd_jax.testing import random_batch, tiny_decoder
from mopd_jax.update import train_step
from mopd_jax.update.teacher import Models

MODEL = tiny_decoder(layers=1)
PROMPTS, GROUP = 4, 4
ROWS = PROMPTS * GROUP
LOSSES = {
    "jsd": {},
    "top-k": {
        "divergence": Divergence(support="student", top_k=5),
        "aggregation": "token-mean",
    },
    "sum": {"divergence": Divergence("reverse_kl"), "aggregation": "seq-mean-token-sum"},
    "norm": {"divergence": Divergence("forward_kl"), "aggregation": "seq-mean-token-sum-norm"},
    "grpo": {"method": "grpo", "aggregation": "token-mean"},
    "dpo": {"method": "dpo"},
    "simpo": {"method": "simpo"},
    "sft": {"method": "sft"},
    "steps": {"aggregation": "seq-mean-step-mean", "every_row": True},
}
# (loss, micro-batches, devices as data, fsdp, tensor). Both kinds of split are one compilation;
# the first loss has each alone, and every other loss some of both.
CHOSEN = [
    ("jsd", 8, (1, 1, 1)),
    ("jsd", 1, (8, 1, 1)),
    ("top-k", 4, (2, 1, 2)),
    ("sum", 2, (2, 2, 2)),
    ("norm", 8, (1, 2, 1)),
    ("grpo", 4, (1, 4, 1)),
    ("dpo", 2, (1, 8, 1)),
    ("simpo", 8, (2, 1, 1)),
    ("sft", 4, (1, 2, 2)),
    ("steps", 4, (2, 1, 1)),
]
# One of each way to weigh tokens is tested every time; the others compile as long.
OFTEN = dict.fromkeys(("jsd", "grpo", "dpo", "steps"), ())
# Every loss in more ways; (1, 1, 1) in one part is what they are compared with.
SPLITS = [(2, (1, 1, 1)), (4, (2, 1, 2)), (8, (2, 1, 1)), (1, (2, 2, 2))]
GRID = [(name, *split) for name in LOSSES for split in SPLITS]


@functools.cache
def batch():
    made = random_batch(
        3, rows=ROWS, prompt=8, teacher_prompt=12, response=7, vocab=MODEL.vocab_size
    )
    mask = np.array(made.mask)
    mask[5] = False  # A row without context.
    advantage = made.advantage.copy()
    advantage[9] = advantage[8]  # Equally good rows make no pair.
    weight = np.linspace(0.1, 1.0, ROWS).astype(np.float32)
    return dataclasses.replace(made, mask=mask, advantage=advantage, row_weight=weight)


def rows_of(name):
    """The batch, with steps where the loss reads them."""
    if name != "steps":
        return batch()
    steps = np.cumsum(np.arange(7) % 3 == 2) * np.ones((ROWS, 1))
    return dataclasses.replace(batch(), steps=steps.astype(np.int32))


def config(name, micro=1):
    return Config(
        rollout=RolloutConfig(prompts=PROMPTS, group=GROUP, prompt_length=8, response_length=7),
        optimizer=OptimizerConfig(beta1=0.0, clip_norm=1e9, micro_batches=micro),
        loss=LossConfig(**LOSSES[name]),
        model=ModelConfig(head_chunk=32),
    )


def start(cfg):
    """A state whose teacher is another model, so that the divergence is not 0."""
    student, other = (decoder.init(jax.random.key(seed), MODEL) for seed in (0, 1))
    models = Models.of(cfg, MODEL)
    made = train_step.init_state(student, jax.random.key(0), cfg=cfg, models=models)
    return dataclasses.replace(made, teacher=other if made.teacher else {})


def gradient(step, state, rows):
    """(the gradient as one f64 vector, metrics) of an update."""
    new, logged = step(state, rows)
    leaves = jax.tree.leaves(new.optimizer[1][0].mu)
    flat = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in leaves])
    return flat, {name: float(ratio.mean()) for name, ratio in jax.device_get(logged).items()}


@functools.cache
def whole_step(name):
    """One device, one micro-batch; the state is kept."""
    cfg = config(name)
    models = Models.of(cfg, MODEL)
    return jax.jit(functools.partial(train_step.train_step, cfg=cfg, models=models))


@functools.cache
def whole(name):
    return gradient(whole_step(name), start(config(name)), rows_of(name))


def assert_equal(got, want):
    norm = np.linalg.norm(want[0])
    assert norm > 1e-3
    difference = got[0] - want[0]
    assert np.abs(difference).max() <= 1e-6 * norm
    # Of all entries together: float32 adds them up in another order.
    assert np.linalg.norm(difference) <= 5e-6 * norm
    for name in want[1]:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-5, atol=1e-6)


def check_split(name, micro, axes):
    cfg = config(name, micro)
    sizes = dict(zip(sharding.AXES, axes, strict=True))
    mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(axes)])
    with jax.set_mesh(mesh):
        models = Models.of(cfg, MODEL)
        placed = jax.device_put(start(cfg), train_step.state_shardings(cfg, models, mesh))
        rows = jax.device_put(rows_of(name), sharding.rows(mesh))
        got = gradient(train_step.make_train_step(cfg, models, mesh), placed, rows)
    assert_equal(got, whole(name))


@pytest.mark.parametrize(
    ("name", "micro", "axes"),
    [pytest.param(*case, marks=OFTEN.get(case[0], pytest.mark.slow)) for case in CHOSEN],
    ids=str,
)
def test_splits_do_not_matter(name, micro, axes):
    check_split(name, micro, axes)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "micro", "axes"), [case for case in GRID if case not in CHOSEN], ids=str
)
def test_no_split_matters(name, micro, axes):
    check_split(name, micro, axes)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=OFTEN.get(name, pytest.mark.slow)) for name in LOSSES]
)
@pytest.mark.parametrize("what", ["rows", "groups"])
def test_order_does_not_matter(name, what):
    rng = np.random.default_rng(0)
    order = np.arange(ROWS).reshape(PROMPTS, GROUP)
    order = rng.permuted(order, axis=1) if what == "rows" else rng.permutation(order)
    moved = jax.tree.map(lambda x: x[order.reshape(-1)], rows_of(name))
    got = gradient(whole_step(name), start(config(name)), moved)
    assert_equal(got, whole(name))
