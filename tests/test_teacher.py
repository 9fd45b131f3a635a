"""Each kind of teacher: its weights, what it says, and what a checkpoint keeps of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_train_step import CFG, assert_trees_close, batch, config, run, state

from mopd_jax.config import LossConfig, OptimizerConfig, RolloutConfig, TeacherConfig
from mopd_jax.kernels import Divergence
from mopd_jax.models import decoder, scoring
from mopd_jax.testing import tiny_decoder
from mopd_jax.update import drift, teacher, train_step
from mopd_jax.update.teacher import Models


def logp(params, rows, *, plain=False, model=CFG):
    """float64[N, T, V], of a model after the teacher's prompt or the plain one."""
    prompt, mask = rows.teacher_prompt, rows.teacher_prompt_mask
    if plain:
        prompt, mask = rows.prompt, rows.prompt_mask
    hidden = scoring.response_states(params, prompt, mask, rows.response, rows.mask, cfg=model)
    return oracles.linear_logp(hidden, decoder.head(params), 1.0)


def mean(values, mask):
    return values[mask].mean()


def test_the_live_student_keeps_no_copy():
    cfg = config(teacher=TeacherConfig(kind="student"))
    start = state(cfg)
    assert start.teacher == {}
    new, logged = run(cfg, None, start)
    assert new.teacher == {}
    rows = batch()
    student, teacher_logp = (logp(start.params, rows, plain=plain) for plain in (True, False))
    want = mean(oracles.jsd(student, teacher_logp, 0.5), rows.mask)
    np.testing.assert_allclose(logged["divergence"], want, rtol=1e-3)


def test_periodic_copies_only_when_due():
    cfg = config(teacher=TeacherConfig(kind="periodic", every=3))
    now = start = state(cfg)
    for step in range(1, 5):
        before = now.teacher
        now, _ = run(cfg, None, now)
        want = now.params if step % 3 == 0 else before
        jax.tree.map(np.testing.assert_array_equal, now.teacher, want)
    with pytest.raises(AssertionError):
        assert_trees_close(now.teacher, start.teacher, atol=1e-6)


def test_a_copy_that_is_due_needs_no_update():
    """Step 3 trains nothing, and the student of step 2 is copied all the same."""
    cfg = config(teacher=TeacherConfig(kind="periodic", every=3))
    empty = dataclasses.replace(batch(), mask=np.zeros_like(batch().mask))
    now = state(cfg)
    for rows in (None, None, empty):
        now, _ = run(cfg, rows, now)
    jax.tree.map(np.testing.assert_array_equal, now.teacher, now.params)


def test_trust_region_mixes_logits():
    """(1 - r) of the frozen reference's and r of the student's, both after the context."""
    cfg = config(teacher=TeacherConfig(kind="trust_region", rate=0.3))
    start, rows = state(cfg), batch()
    new, logged = run(cfg, None, start)
    jax.tree.map(np.testing.assert_array_equal, new.teacher, start.teacher)
    mixed = 0.7 * logp(start.teacher, rows) + 0.3 * logp(start.params, rows)
    student = logp(start.params, rows, plain=True)
    want = mean(oracles.jsd(student, oracles.log_softmax(mixed), 0.5), rows.mask)
    np.testing.assert_allclose(logged["divergence"], want, rtol=1e-3)


def test_an_external_teacher_has_a_width_of_its_own():
    wide = tiny_decoder(width=48, layers=1, mlp_width=32)
    cfg = config(teacher=TeacherConfig(kind="external", path="elsewhere"))
    params = decoder.init(jax.random.key(0), CFG)
    outside = decoder.init(jax.random.key(5), wide)
    models = Models.of(cfg, CFG, wide)
    start = train_step.init_state(
        params, jax.random.key(0), cfg=cfg, models=models, external=outside
    )
    step = functools.partial(train_step.train_step, cfg=cfg, models=models)
    new, logged = jax.jit(step)(start, batch())
    jax.tree.map(np.testing.assert_array_equal, new.teacher, outside)
    assert teacher.without_external(new, models.teacher_slot).teacher == {}
    rows = batch()
    student, teacher_logp = logp(params, rows, plain=True), logp(outside, rows, model=wide)
    want = mean(oracles.jsd(student, teacher_logp, 0.5), rows.mask)
    np.testing.assert_allclose(logged["divergence"].mean(), want, rtol=1e-3)


@pytest.mark.parametrize(
    ("loss", "options", "want"),
    [
        ({}, {}, "copy"),
        ({}, {"teacher": TeacherConfig(kind="student")}, "nothing"),
        ({"method": "grpo"}, {}, "nothing"),
        ({"method": "grpo", "kl_coef": 0.1}, {}, "copy"),
        ({"method": "dpo"}, {}, "copy"),
        ({"method": "sft"}, {}, "nothing"),
        ({}, {"teacher": TeacherConfig(kind="external", path="x")}, "external"),
        (
            {"method": "sft", "sft_rows": "all"},
            {
                "teacher": TeacherConfig(kind="frozen"),
                "rollout": RolloutConfig(policy="teacher", prompts=4, group=4),
                "optimizer": OptimizerConfig(),
            },
            "copy",
        ),
    ],
)
def test_what_the_state_holds_beside_the_student(loss, options, want):
    assert teacher.teacher_slot(config(loss=LossConfig(**loss), **options)) == want


def test_a_cached_teacher_trains_the_same():
    """With two epochs it is scored once, and gives what it gives when scored anew."""
    loss = LossConfig(divergence=Divergence(support="teacher", top_k=6))
    optimizer = dataclasses.replace(config().optimizer, epochs=2, micro_batches=2)
    free, cached = (
        config(loss=loss, optimizer=optimizer, teacher=TeacherConfig(cache=cache))
        for cache in (False, True)
    )
    (want, logged), (got, kept) = run(free), run(cached)
    assert_trees_close(got.params, want.params, atol=1e-6)
    np.testing.assert_allclose(kept["divergence"], logged["divergence"], rtol=1e-5)
    # The log-prob of a target is known where it is among the stored ones.
    assert np.isfinite(kept["teacher_minus_student_logp"])


def test_drift_against_float64():
    cfg = config(optimizer=dataclasses.replace(config().optimizer, micro_batches=2))
    start, rows = state(cfg), batch()
    measure = jax.jit(functools.partial(drift.drift, cfg=cfg, models=Models.of(cfg, CFG)))
    found = measure(start, rows)
    got = {name: ratio.mean() for name, ratio in found.items()}
    student, plain = (logp(x, rows, plain=True) for x in (start.params, start.teacher))
    informed = logp(start.teacher, rows)
    apart = jax.tree.map(lambda a, b: a - b, start.teacher, start.params)
    norms = [
        np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tree)))
        for tree in (apart, start.params)
    ]
    want = {
        "drift_plain_kl": mean(oracles.reverse_kl(student, plain), rows.mask),
        "drift_context_kl": mean(oracles.reverse_kl(informed, plain), rows.mask),
        "teacher_entropy": mean(oracles.entropy(informed), rows.mask),
        "drift_distance": norms[0] / norms[1],
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-3, err_msg=name)
    same = dataclasses.replace(start, teacher=start.params)
    still = measure(same, rows)
    assert still["drift_plain_kl"].mean() < 1e-6
    assert still["drift_distance"].mean() == 0
