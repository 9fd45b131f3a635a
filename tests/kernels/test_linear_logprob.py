"""Every implementation of `linear_logprob` against float64, and what a mask must hold back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax.kernels import Hidden, linear_logprob

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float64": 2.0**-52}
each_implementation = pytest.mark.parametrize("implementation", ["reference", "chunked"])
# N, T, V, D, chunk_tokens: one token; T no multiple of a chunk of 2 columns; chunks of one
# column; everything in one chunk.
each_shape = pytest.mark.parametrize(
    "shape", [(1, 1, 2, 3, 1), (2, 7, 11, 4, 5), (3, 5, 33, 8, 1), (2, 4, 17, 5, 4096)]
)


TEMPERATURE = 0.7  # One value, so that tests share compiled programs.


def make(shape, dtype="float32"):
    n, t, v, d, _ = shape
    rng = np.random.default_rng(v)
    hidden = jnp.asarray(rng.standard_normal((n, t, d)), dtype)
    head = jnp.asarray(rng.standard_normal((v, d)), dtype)
    mask = rng.random((n, t)) < 0.7
    mask[0, 0] = True
    targets = np.int32(rng.integers(0, v, (n, t)))
    # float32 weights of the two outputs in the scalar that is differentiated.
    weights = rng.standard_normal((2, n, t)).astype(np.float32)
    return hidden, head, targets, mask, weights


@jax.jit(static_argnames=("temperature", "chunk_tokens", "implementation"))
def run(hidden, head, targets, mask, weights, **options):
    """The record, and the gradients of the weighted sum of its fields to hidden and head."""

    def loss(hidden, head):
        out = linear_logprob(Hidden(hidden, head), targets, mask, **options)
        return jnp.sum(weights[0] * out.logp) + jnp.sum(weights[1] * out.entropy), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)
    return out, grads


def check_against_float64(shape, dtype, implementation, temperature):
    hidden, head, targets, mask, weights = make(shape, dtype)
    out, grads = run(
        *(hidden, head, targets, mask, weights),
        temperature=temperature,
        chunk_tokens=shape[-1],
        implementation=implementation,
    )
    logp = oracles.linear_logp(hidden, head, temperature)
    chosen = np.take_along_axis(logp, targets[..., None], axis=-1)[..., 0]
    bound = oracles.logp_error(hidden, head, temperature, EPS[str(out.logp.dtype)])
    np.testing.assert_allclose(out.logp, np.where(mask, chosen, 0), rtol=0, atol=bound)
    # The slope of the entropy in the log-probs is p (log p + 1), so sums to H + 1 at most.
    want = np.where(mask, oracles.entropy(logp), 0)
    np.testing.assert_allclose(
        out.entropy, want, rtol=0, atol=bound * (1 + np.log(logp.shape[-1]))
    )
    weights = np.where(mask, weights, 0)[..., None]
    logits_grad = weights[0] * oracles.logp_grad(logp, targets)
    logits_grad += weights[1] * oracles.entropy_grad(logp)
    wanted = oracles.linear_grads(logits_grad, hidden, head, temperature)
    for got, want, operand in zip(grads, wanted, (hidden, head), strict=True):
        assert got.dtype == operand.dtype
        # The statistics' rounding, and that of the result to the operand's dtype.
        assert oracles.relative(got, want) <= 2 * bound + EPS[dtype]
    return out


@each_implementation
@each_shape
def test_values_and_gradients_match_float64(shape, implementation):
    check_against_float64(shape, "float32", implementation, TEMPERATURE)


@each_implementation
def test_bfloat16_operands_give_float32_statistics(implementation):
    out = check_against_float64((2, 7, 11, 4, 5), "bfloat16", implementation, 1.0)
    assert out.logp.dtype == out.entropy.dtype == jnp.float32


@each_implementation
def test_float64_operands_are_not_rounded_to_float32(implementation):
    with jax.enable_x64(True):
        out = check_against_float64((2, 7, 11, 4, 5), "float64", implementation, 1.3)
    assert out.logp.dtype == out.entropy.dtype == jnp.float64


@each_implementation
@pytest.mark.parametrize("filling", [np.nan, np.inf])
def test_what_is_masked_leaks_nowhere(implementation, filling):
    shape = (2, 7, 11, 4, 5)
    hidden, head, targets, mask, weights = make(shape)
    options = {"chunk_tokens": shape[-1], "implementation": implementation}
    options["temperature"] = TEMPERATURE
    clean = run(hidden, head, targets, mask, weights, **options)
    filled = jnp.where(mask[..., None], hidden, filling)
    ignored = np.where(mask, targets, -100)
    dirty = run(filled, head, ignored, mask, weights, **options)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for field in jax.tree.leaves(dirty[0]):
        assert np.all(field[~mask] == 0)
    assert np.all(dirty[1][0][~mask] == 0)


@each_implementation
def test_all_masked_is_all_zero(implementation):
    hidden, head, targets, mask, weights = make((2, 7, 11, 4, 5))
    hidden = jnp.full_like(hidden, jnp.nan)
    out = run(
        *(hidden, head, targets, np.zeros_like(mask), weights),
        temperature=TEMPERATURE,
        chunk_tokens=5,
        implementation=implementation,
    )
    for leaf in jax.tree.leaves(out):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@each_implementation
def test_nan_and_unknown_targets_under_the_mask_show(implementation):
    hidden, head, _, mask, _ = make((2, 4, 5, 3, 2))
    hidden = hidden.at[0, 3].set(jnp.nan)
    targets = np.int32([[5, -1, 4, 0], [0, 1, 2, 3]])
    out = linear_logprob(
        *(Hidden(hidden, head), targets, np.ones_like(mask)),
        chunk_tokens=2,
        implementation=implementation,
    )
    np.testing.assert_array_equal(np.isnan(out.logp), [[True, True, False, True], [False] * 4])
    np.testing.assert_array_equal(np.isnan(out.entropy[0]), [False, False, False, True])


def test_the_heads_gradient_is_summed_over_chunks_in_float32():
    """600 equal terms: a bf16 sum stops at the 256th, where a term is half its spacing."""
    hidden, head = jnp.ones((1, 600, 2), jnp.bfloat16), jnp.zeros((2, 2), jnp.bfloat16)
    targets, mask = jnp.zeros((1, 600), jnp.int32), jnp.ones((1, 600), bool)

    def loss(head):
        model = Hidden(hidden, head)
        return jnp.sum(linear_logprob(model, targets, mask, chunk_tokens=1).logp)

    # Each token adds (1 - 1/2) hidden to the row of the target, and takes it from the other.
    np.testing.assert_array_equal(jax.grad(loss)(head), [[300, 300], [-300, -300]])


def replaced(**changes):
    hidden, head, targets, mask, _ = make((2, 3, 5, 4, 1))
    model = Hidden(changes.pop("states", hidden), changes.pop("head", head))
    arguments = {"model": model, "targets": targets, "mask": mask}
    return linear_logprob(**(arguments | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": np.ones((5, 6), np.float32)}, r"model.head: D=6 in \(5, 6\)"),
        ({"targets": np.ones((2, 4), np.int32)}, r"targets: T=4 in \(2, 4\)"),
        ({"states": np.ones((2, 3, 4), np.int32)}, "model.states: expected a floating dtype"),
        ({"states": np.ones((2, 3, 4), np.float16)}, "model.states: float16 ends at 6e-8"),
        ({"model": np.ones((2, 3, 4))}, "model: expected Hidden.* or Logits.*, got an array"),
        ({"targets": None}, "a log-prob is that of a token; give targets"),
        ({"targets": np.ones((2, 3), np.float32)}, "targets: expected an integer dtype"),
        ({"mask": np.ones((2, 3), np.float32)}, "mask: expected bool, got float32"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
        ({"implementation": "fast"}, "'fast' is not one of .*'reference', 'chunked'"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replaced(**changes)
