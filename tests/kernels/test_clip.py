"""Point-wise clipping: no token of the vocabulary adds more than the bound, in every form."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax import kernels
from mopd_jax.kernels import Blocks, Divergence, Hidden, RowKernels
from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_divergence.divergence import settled

CLIP = 0.05
KINDS = [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3), ("jsd", 0.8)]
each_kind = pytest.mark.parametrize("kind, alpha", KINDS)
IMPLEMENTATIONS = {
    "reference": "reference",
    "chunked": "chunked",
    "pallas_gpu": RowKernels(block=16, interpret=True),
    "pallas_tpu": Blocks(8, 16, 32, 2**24, interpret=True),
}


def make(seed=0, shape=(3, 9, 37, 8, 8)):
    n, t, v, d, e = shape
    rng = np.random.default_rng(seed)
    sizes = ((n, t, d), (v, d), (n, t, e), (v, e))
    models = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in sizes]
    mask = rng.random((n, t)) < 0.5
    weights = np.float32(rng.standard_normal((n, t)))
    return models, np.int32(rng.integers(0, v, (n, t))), mask, weights


def wanted(models, mask, weights, kind, alpha):
    student, teacher = (oracles.linear_logp(*models[i : i + 2], 0.7) for i in (0, 2))
    value, grad = oracles.clipped(student, teacher, kind, alpha, CLIP)
    whole = oracles.divergence(student, teacher, kind, alpha)
    assert np.mean(whole - value > 0.01) > 0.5, "the bound must act on many tokens"
    weights = np.where(mask, weights, 0)
    grads = oracles.linear_grads(weights[..., None] * grad, *models[:2], 0.7)
    return np.where(mask, value, 0), grads


@each_kind
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_statistics_match_float64(name, kind, alpha):
    models, targets, mask, weights = make()
    options = {"divergence": Divergence(kind, alpha, CLIP), "temperature": 0.7}
    options["implementation"] = IMPLEMENTATIONS[name]

    @jax.jit
    def run(hidden, head):
        def loss(hidden, head):
            pair = Hidden(hidden, head), Hidden(*models[2:])
            out = kernels.linear_divergence(*pair, targets, mask, **options)
            return jnp.sum(weights * out.divergence), out.divergence

        return jax.grad(loss, (0, 1), has_aux=True)(hidden, head)

    grads, value = run(*models[:2])
    want, want_grads = wanted(models, mask, weights, kind, alpha)
    np.testing.assert_allclose(value, want, atol=2e-5)
    for got, each in zip(grads, want_grads, strict=True):
        assert oracles.relative(got, each) < 2e-5


@each_kind
def test_the_loss_matches_float64(kind, alpha):
    models, targets, mask, weights = make(1)

    def loss(hidden, head):
        return kernels.linear_divergence_loss(
            lambda stats, aux: stats.divergence,
            *(Hidden(hidden, head), Hidden(*models[2:]), targets, mask, weights),
            divergence=Divergence(kind, alpha, CLIP),
            temperature=0.7,
            chunk_tokens=4,
        )[0]

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*models[:2])
    want, want_grads = wanted(models, mask, weights, kind, alpha)
    np.testing.assert_allclose(value, np.sum(weights * want), rtol=1e-4)
    for got, each in zip(grads, want_grads, strict=True):
        assert oracles.relative(got, each) < 2e-5


@each_kind
def test_a_bound_that_is_never_reached_changes_no_bit(kind, alpha):
    rng = np.random.default_rng(2)
    p, q = jax.nn.log_softmax(np.float32(rng.standard_normal((2, 5, 40))))
    free = formulas.terms(p, q, settled(Divergence(kind, alpha)))
    bound = formulas.terms(p, q, settled(Divergence(kind, alpha, 100.0)))
    jax.tree.map(np.testing.assert_array_equal, bound, free)


@each_kind
def test_derivatives_are_those_of_the_value(kind, alpha):
    """To both log-probs, as free variables, by central differences in float64."""
    of = settled(Divergence(kind, alpha, CLIP))
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        p, q = jax.nn.log_softmax(rng.standard_normal((2, 4, 30)))
        each = formulas.terms(p, q, of)
        h = 1e-6
        for index, got in ((0, each.to_student), (1, each.to_teacher)):
            up, down = (
                formulas.terms(*(x + s * (i == index) for i, x in enumerate((p, q))), of)
                for s in (h, -h)
            )
            np.testing.assert_allclose(got, (up.value - down.value) / (2 * h), atol=1e-8)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_what_cannot_be_said_gives_no_nan(kind):
    """A forward KL is infinite where the student cannot say what the teacher can: bounded."""
    p = jnp.log(jnp.asarray([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    q = jnp.log(jnp.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    each = formulas.terms(p, q, settled(Divergence(kind, clip=CLIP)))
    assert all(np.isfinite(x).all() for x in each)
    assert np.sum(each.value, axis=-1).max() < 3 * CLIP


def test_over_a_support_the_outcomes_are_what_is_bounded():
    models, targets, mask, _ = make(4)
    of = Divergence("jsd", support="student", top_k=4, clip=0.02)
    arrays = (Hidden(*models[:2]), Hidden(*models[2:]), targets, mask)
    got, want = (
        kernels.linear_divergence(*arrays, divergence=of, implementation=name).divergence
        for name in ("chunked", "reference")
    )
    unbounded = dataclasses.replace(of, clip=None)
    free = kernels.linear_divergence(*arrays, divergence=unbounded).divergence
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.max(got) <= 5 * 0.02 + 1e-6 < np.max(free)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"clip": 0.0}, "clip must be positive and finite"),
        ({"clip": float("nan")}, "clip must be positive and finite"),
        ({"clip": "1"}, "clip='1' is a str"),
        ({"clip": 1.0, "kind": "reverse_kl", "support": "sampled"}, "clip=1.0 bounds what"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**options)
