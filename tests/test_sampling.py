"""The sampler against its definition in float64: inverse CDF, top-k, top-p, log-probs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax.rollouts import sampling

VOCABULARIES = [2, 3, 97, 1000]


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def draw(logits, uniform, temperature=1.0, top_k=None, top_p=None):
    """One row of logits, many uniforms: tokens and their log-probs."""
    rows = jnp.broadcast_to(logits, (*uniform.shape, logits.shape[-1]))
    return sampling.sample(rows, uniform, temperature=temperature, top_k=top_k, top_p=top_p)


def row(vocab, scale=2.0, seed=0):
    return (scale * np.random.default_rng([vocab, seed]).normal(size=vocab)).astype(np.float32)


def grid(count):
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def kept(logits, top_k=None, top_p=None):
    """bool[V] by the definition: the k largest with ties, then the fewest that reach p."""
    keep = np.ones(len(logits), bool)
    if top_k is not None:
        keep = logits >= np.sort(logits)[::-1][:top_k][-1]
    if top_p is not None:
        p = np.where(keep, np.exp(oracles.log_softmax(logits)), 0.0)
        p /= p.sum()
        ordered = np.sort(p)[::-1]
        count = np.flatnonzero(np.cumsum(ordered) >= top_p - 1e-12)[0]
        keep &= p >= ordered[count]
    return keep


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_frequencies_are_the_softmax(vocab, temperature):
    logits, count = row(vocab), 20001 if vocab < 1000 else 4001
    tokens, logp = draw(logits, grid(count), temperature=temperature)
    want = oracles.log_softmax(logits.astype(np.float64) / temperature)
    got = np.bincount(tokens, minlength=vocab) / count
    # Each end of a token's interval lands within one step of the grid, and f32 rounding.
    np.testing.assert_allclose(got, np.exp(want), atol=2 / count + 1e-5)
    np.testing.assert_allclose(logp, want[tokens], atol=1e-5)
    assert tokens.dtype == jnp.int32


@pytest.mark.parametrize("vocab", [*VOCABULARIES, 151936])
def test_a_uniform_number_is_turned_into_its_place_in_the_distribution(vocab):
    logits = row(vocab)
    uniform = np.concatenate([[0.0, np.nextafter(np.float32(1), 0)], grid(5)])
    tokens, logp = draw(logits, uniform.astype(np.float32))
    p = np.exp(oracles.log_softmax(logits))
    after = np.cumsum(p)
    # The f32 sums of a few hundred blocks of a few hundred weights err by about 1e-5.
    assert (after[tokens] > uniform - 3e-5).all()
    assert ((after - p)[tokens] < uniform + 3e-5).all()
    np.testing.assert_allclose(logp, np.log(p[tokens]), atol=2e-5)


@pytest.mark.parametrize("vocab", [*VOCABULARIES, 151936])
def test_an_impossible_token_is_never_drawn(vocab):
    rng = np.random.default_rng(vocab)
    ends = np.array([0.0, 1e-7, 0.5, np.nextafter(np.float32(1), 0)], np.float32)
    for left in {1, max(1, vocab // 3)}:
        logits = np.full(vocab, -np.inf, np.float32)
        possible = rng.permutation(vocab)[:left]
        logits[possible] = rng.normal(size=left)
        tokens, logp = draw(logits, ends)
        assert np.isin(tokens, possible).all()
        assert np.isfinite(logp).all()
        # Weights that underflow are as good as impossible.
        tokens, _ = draw(np.where(np.isinf(logits), -500, logits), ends)
        assert np.isin(tokens, possible).all()


@pytest.mark.parametrize("first", [True, False])
def test_the_ends_of_the_vocabulary_are_not_special(first):
    logits = np.full(97, -np.inf, np.float32)
    logits[0 if first else 96] = 3.0
    tokens, logp = draw(logits, np.array([0.0, 0.3, np.nextafter(np.float32(1), 0)]))
    assert (np.asarray(tokens) == (0 if first else 96)).all()
    np.testing.assert_allclose(logp, 0.0, atol=1e-6)


TIED = np.array([0.0, 2.0, 1.0, 2.0, 1.0, 1.0, -3.0], np.float32)


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p"),
    [
        (row(97), 5, None),
        (row(97), 96, None),
        (row(97), 97, None),
        (row(97), 500, None),
        (row(97), None, 0.5),
        (row(97), None, 0.95),
        (row(97), None, 1e-6),
        (row(97), None, 1.0),
        (row(97), 10, 0.7),
        (row(97), 2, 0.9),
        (row(2), None, 0.3),
        (row(3), 2, 0.99),
        (row(1000, scale=4.0), 50, 0.9),
        (TIED, 2, None),
        (TIED, 3, None),
        (TIED, 4, None),
        (TIED, None, 0.2),
        (TIED, None, 0.7),
        (TIED, 5, 0.8),
        (np.zeros(9, np.float32), 3, 0.4),
    ],
)
def test_truncation(logits, top_k, top_p):
    keep = kept(logits, top_k, top_p)
    p = np.where(keep, np.exp(oracles.log_softmax(logits)), 0.0)
    p /= p.sum()
    count = 2001
    tokens, logp = draw(logits, grid(count), top_k=top_k, top_p=top_p)
    got = np.bincount(tokens, minlength=len(logits)) / count
    assert (got[~keep] == 0).all()
    np.testing.assert_allclose(got, p, atol=2 / count + 1e-5)
    # The log-prob is of the whole distribution, whatever was cut off it.
    np.testing.assert_allclose(logp, oracles.log_softmax(logits)[tokens], atol=1e-5)


def test_truncation_comes_after_the_temperature():
    logits = np.log(np.array([0.6, 0.3, 0.1], np.float32))
    # At temperature 2 the shares are 0.473, 0.334, 0.193: 0.7 needs two, at 0.25 it needs one.
    for temperature, want in ((2.0, {0, 1}), (0.25, {0})):
        tokens, _ = draw(logits, grid(999), temperature=temperature, top_p=0.7)
        assert set(tokens.tolist()) == want


@pytest.mark.parametrize("vocab", [*VOCABULARIES, 151936])
def test_greedy(vocab):
    logits = row(vocab)
    tokens, logp = draw(logits, grid(3), temperature=0.7, top_k=1, top_p=0.9)
    assert (np.asarray(tokens) == logits.argmax()).all()
    want = oracles.log_softmax(logits.astype(np.float64) / 0.7).max()
    np.testing.assert_allclose(logp, want, atol=2e-5)
    assert draw(np.array([1.0, 3.0, 3.0]), grid(1), top_k=1)[0].tolist() == [1]


def test_leading_dimensions_are_rows():
    logits = np.stack([row(97, seed=s) for s in range(6)]).reshape(2, 3, 97)
    uniform = grid(6).reshape(2, 3)
    tokens, logp = sampling.sample(logits, uniform, temperature=1.0, top_p=0.8)
    assert tokens.shape == logp.shape == (2, 3)
    for place in np.ndindex(2, 3):
        alone, _ = draw(logits[place], uniform[place][None], top_p=0.8)
        assert tokens[place] == alone[0]


def test_low_precision_logits_are_widened_first():
    logits = row(97).astype(jnp.bfloat16)
    tokens, logp = draw(logits, grid(101))
    assert logp.dtype == jnp.float32
    want = oracles.log_softmax(logits.astype(np.float64))
    np.testing.assert_allclose(logp, want[np.asarray(tokens)], atol=1e-5)
