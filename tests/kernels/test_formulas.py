"""Divergences of log-probs: golden values, a float64 oracle, properties, accuracy, messages."""

from __future__ import annotations

import pathlib

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd_jax.kernels.linear_divergence import formulas
from mopd_jax.kernels.linear_divergence.divergence import Divergence, settled

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sdpo_losses.npz"
EPS = np.finfo(np.float32).eps
KINDS = [("forward_kl", None), ("reverse_kl", None)]
KINDS += [("jsd", alpha) for alpha in (0.1, 0.5, 0.9)]
each_kind = pytest.mark.parametrize("kind, alpha", KINDS)


@jax.jit(static_argnums=(2, 3))
def divergence(student, teacher, kind, alpha):
    return formulas.value(student, teacher, settled(Divergence(kind, alpha)))


def jsd(student, teacher, alpha):
    return divergence(student, teacher, "jsd", alpha)


def forward_kl(student, teacher):
    return divergence(student, teacher, "forward_kl", None)


def reverse_kl(student, teacher):
    return divergence(student, teacher, "reverse_kl", None)


@jax.jit(static_argnums=(2, 3))
def value_and_grad(student_logits, teacher_logits, kind, alpha):
    """Logits [..., V] -> values [...] and the gradient of their sum to the student's logits."""

    def value(logits):
        logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher_logits)
        each = divergence(*logp, kind, alpha)
        return jnp.sum(each), each

    grad, each = jax.grad(value, has_aux=True)(student_logits)
    return each, grad


# p = (0.7, 0.2, 0.1), q = (0.5, 0.3, 0.2). By hand: forward 0.5 ln(5/7) + 0.3 ln(3/2) +
# 0.2 ln 2 = 0.09203; its gradient is p - q. Reverse 0.7 ln(7/5) + 0.2 ln(2/3) + 0.1 ln(1/2) =
# 0.08512; its gradient p (ln(p/q) - 0.08512), for the second token 0.2 (-0.40547 - 0.08512).
@pytest.mark.parametrize(
    "kind, alpha, value, grad",
    [
        ("forward_kl", None, 0.0920328502, (0.2, -0.1, -0.1)),
        ("reverse_kl", None, 0.0851228260, (0.1759445874, -0.0981175868, -0.0778270007)),
        ("jsd", 0.5, 0.0219011790, (0.0459971487, -0.0245873806, -0.0214097681)),
        ("jsd", 0.1, 0.0081847558, (0.0176307465, -0.0089626300, -0.0086681164)),
        ("jsd", 0.9, 0.0076946877, (0.0159371490, -0.0088228305, -0.0071143185)),
        ("jsd", 0.01, 0.0009099894, None),
    ],
)
def test_values_and_gradients_by_hand(kind, alpha, value, grad):
    with jax.enable_x64(True):
        p, q = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], jnp.float64))
        got, got_grad = value_and_grad(p, q, kind, alpha)
    np.testing.assert_allclose(got, value, atol=6e-11)  # Printed to ten digits.
    if grad is not None:
        np.testing.assert_allclose(got_grad, grad, atol=6e-11)


@pytest.mark.parametrize(
    "kind, alpha, value",
    [
        ("forward_kl", None, 0.3477594166),
        ("reverse_kl", None, 0.2872302235),
        ("jsd", 0.5, 0.0748525671),
    ],
)
def test_values_by_hand_on_four_tokens(kind, alpha, value):
    p, q = np.log(np.float32([[0.6, 0.25, 0.1, 0.05], [0.3, 0.4, 0.05, 0.25]]))
    np.testing.assert_allclose(divergence(p, q, kind, alpha), value, rtol=4 * EPS)


@pytest.mark.parametrize(
    "name, kind, alpha",
    [
        ("a0", "forward_kl", None),
        ("a0.25", "jsd", 0.25),
        ("a0.5", "jsd", 0.5),
        ("a1", "reverse_kl", None),
    ],
)
def test_matches_the_reference_codes_full_vocabulary_loss(name, kind, alpha):
    golden = np.load(GOLDEN)
    mask = golden["mask"].astype(np.float64)
    each, grad = value_and_grad(golden["student"], golden["teacher"], kind, alpha)
    want = golden[f"full_{name}_per_token"]
    np.testing.assert_allclose(each, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.sum(each * mask) / mask.sum(), golden[f"full_{name}_loss"], rtol=1e-6
    )
    got = grad * mask[..., None] / mask.sum()
    np.testing.assert_allclose(got, golden[f"full_{name}_grad"], rtol=1e-5, atol=1e-8)


@each_kind
@pytest.mark.parametrize("vocab", [2, 33, 4096])
def test_matches_float64(kind, alpha, vocab):
    rng = np.random.default_rng(vocab)
    logp = oracles.log_softmax(4.0 * rng.standard_normal((2, 3, 5, vocab)))
    logp32 = np.float32(logp)
    want = oracles.divergence(*logp, kind, alpha)
    got = divergence(*logp32, kind, alpha)
    # Rounding log p to float32 moves p log p by eps/2 |p log p|; through the centred terms it
    # moves the divergence by that times |log p/q| at most, or by q - p.
    p, q = np.exp(logp)
    moved = np.abs(p * logp[0]) + np.abs(q * logp[1]) + p + q
    bound = EPS * np.sum(moved * (1 + np.abs(logp[0] - logp[1])), axis=-1)
    assert np.all(np.abs(got - want) <= bound)


@each_kind
def test_gradient_matches_float64(kind, alpha):
    rng = np.random.default_rng(1)
    student, teacher = np.float32(4.0 * rng.standard_normal((2, 3, 5, 257)))
    _, grad = value_and_grad(student, teacher, kind, alpha)
    logp = oracles.log_softmax(student), oracles.log_softmax(teacher)
    want = oracles.divergence_grad(*logp, kind, alpha)
    # Each log-prob is off by its own rounding and by that of the log-sum-exp.
    bound = 4 * EPS * (1 + np.max(np.abs(logp))) * np.max(np.exp(logp[0]) + np.exp(logp[1]))
    assert np.max(np.abs(grad - want)) <= bound


@each_kind
def test_teacher_side_can_be_differentiated_too(kind, alpha):
    """Exchanging the sides exchanges the two KLs, and alpha with 1 - alpha."""
    rng = np.random.default_rng(2)
    a, b = jax.nn.log_softmax(np.float32(rng.standard_normal((2, 4, 33))))
    exchanged = {"forward_kl": "reverse_kl", "reverse_kl": "forward_kl"}.get(kind, kind)
    other = None if alpha is None else 1.0 - alpha

    @jax.jit
    def both(b):
        got = jax.grad(lambda t: jnp.sum(divergence(a, t, kind, alpha)))(b)
        return got, jax.grad(lambda s: jnp.sum(divergence(s, a, exchanged, other)))(b)

    got, want = both(b)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@each_kind
@pytest.mark.parametrize("noise", [1e-3, 1.4e-3, 1e-2])
def test_value_and_gradient_hold_where_the_two_are_close(kind, alpha, noise):
    """KL 5e-7, 1e-6 and 6e-5 nats over 4096 tokens."""
    rng = np.random.default_rng(3)
    student = np.float32(2.0 * rng.standard_normal((4, 4096)))
    teacher = np.float32(student + noise * rng.standard_normal(student.shape))
    value, grad = value_and_grad(student, teacher, kind, alpha)
    logp = oracles.log_softmax(student), oracles.log_softmax(teacher)
    want = oracles.divergence(*logp, kind, alpha)
    want_grad = oracles.divergence_grad(*logp, kind, alpha)
    # Each log-prob of about -10 is off by up to 2**-21, which is independent between tokens;
    # beside log p/q = noise that is 2**-20 / noise in the gradient, and less in the sum of
    # the value, over hundreds of tokens of comparable weight.
    bound = 2.0**-20 / noise
    assert np.all(np.abs(value / want - 1) <= bound / 4)
    error = np.linalg.norm(grad - want_grad, axis=-1) / np.linalg.norm(want_grad, axis=-1)
    assert np.all(error <= bound)


@each_kind
@pytest.mark.parametrize("noise", [1e-4, 1.0])
def test_the_sum_adds_no_error_to_that_of_its_log_probs(kind, alpha, noise):
    """Against float64 on the very float32 log-probs: only the arithmetic is left to be off."""
    rng = np.random.default_rng(7)
    logits = 2.0 * rng.standard_normal((4, 4096))
    student = np.float32(oracles.log_softmax(logits))
    teacher = np.float32(oracles.log_softmax(logits + noise * rng.standard_normal((4, 4096))))
    wide = np.float64(student), np.float64(teacher)
    want = oracles.divergence(*wide, kind, alpha)
    if kind != "jsd":  # Rounded, they no longer sum to 1: the generalised KL.
        excess = np.sum(np.exp(wide[0]) - np.exp(wide[1]), axis=-1)
        want += excess if kind == "forward_kl" else -excess
    np.testing.assert_allclose(divergence(student, teacher, kind, alpha), want, rtol=16 * EPS)


FLOATS = st.floats(-30, 30, width=32)
LOGITS = hnp.arrays(np.float32, (2, 1, 7), elements=FLOATS)
properties = settings(max_examples=30, derandomize=True, deadline=None)


@properties
@given(LOGITS, st.floats(0.01, 0.99))
def test_jsd_is_a_bounded_divergence(logits, alpha):
    p, q = jax.nn.log_softmax(logits)
    d = jsd(p, q, alpha)[0]
    bound = -(alpha * np.log(alpha) + (1 - alpha) * np.log1p(-alpha))
    assert 0 <= d <= bound * (1 + 8 * EPS)
    assert jsd(p, p, alpha)[0] == 0
    # Exchanging student and teacher is exchanging their weights.
    exchanged = jsd(q, p, 1 - alpha)[0]
    np.testing.assert_allclose(d, exchanged, rtol=1e-5, atol=1e-9)


@properties
@given(LOGITS)
def test_kls_are_divergences(logits):
    p, q = jax.nn.log_softmax(logits)
    forward, reverse = forward_kl(p, q)[0], reverse_kl(p, q)[0]
    assert forward >= 0 and reverse >= 0
    assert forward_kl(p, p)[0] == 0 == reverse_kl(p, p)[0]
    np.testing.assert_array_equal(forward, reverse_kl(q, p)[0])


def test_scaled_jsd_approaches_the_kls():
    p, q = jax.nn.log_softmax(np.float32(np.random.default_rng(4).standard_normal((2, 3, 9))))
    small = 1e-4
    forward = jsd(p, q, small) / small
    reverse = jsd(p, q, 1 - small) / small
    np.testing.assert_allclose(forward, forward_kl(p, q), rtol=1e-2)
    np.testing.assert_allclose(reverse, reverse_kl(p, q), rtol=1e-2)


@each_kind
@pytest.mark.parametrize("impossible", ["both", "student", "teacher"])
def test_impossible_tokens(kind, alpha, impossible):
    """A token of probability 0 adds 0 to its own side; a KL is infinite where it must be."""
    logits = np.float32(np.random.default_rng(5).standard_normal((2, 3, 8)))
    for side in {"both": (0, 1), "student": (0,), "teacher": (1,)}[impossible]:
        logits[side, :, 2] = -np.inf
    value, grad = value_and_grad(*logits, kind, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        logp = oracles.log_softmax(logits)
        want = oracles.divergence(*logp, kind, alpha)
        want_grad = oracles.divergence_grad(*logp, kind, alpha)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    infinite = (kind, impossible) in {("forward_kl", "student"), ("reverse_kl", "teacher")}
    assert np.all(np.isinf(value)) if infinite else np.all(np.isfinite(value))
    if (kind, impossible) != ("reverse_kl", "teacher"):
        np.testing.assert_allclose(grad, want_grad, rtol=1e-5, atol=1e-7)


@each_kind
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_disjoint_peaks_neither_overflow_nor_turn_nan(kind, alpha, size):
    logits = np.float32([[size, 0, 0], [0, size, 0]])
    value, grad = value_and_grad(*logits, kind, alpha)
    want = oracles.divergence(*oracles.log_softmax(logits), kind, alpha)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert np.all(np.isfinite(grad))


@each_kind
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_hidden(kind, alpha, side):
    logp = np.log(np.full((2, 2, 4), 0.25, np.float32))
    logp[side, 0, 1] = np.nan
    value = divergence(*logp, kind, alpha)
    assert np.isnan(value[0]) and value[1] == 0
    each = formulas.terms(*logp, settled(Divergence(kind, alpha)))
    assert np.all(np.isnan([x[0, 1] for x in each]))


def test_entropy_matches_float64_with_an_impossible_token():
    logits = np.float32(np.random.default_rng(6).standard_normal((3, 8)))
    logits[:, 3] = -np.inf
    got, vjp = jax.vjp(jax.jit(lambda x: formulas.entropy(jax.nn.log_softmax(x))), logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        logp = oracles.log_softmax(logits)
        np.testing.assert_allclose(got, oracles.entropy(logp), rtol=4 * EPS)
        np.testing.assert_allclose(
            vjp(jnp.ones(3))[0], oracles.entropy_grad(logp), rtol=1e-5, atol=4 * EPS
        )


@pytest.mark.parametrize("alpha", [1.5, -0.5, float("nan")])
def test_alpha_outside_its_interval_names_the_kls(alpha):
    with pytest.raises(ValueError, match="forward_kl.*reverse_kl"):
        Divergence("jsd", alpha)


def test_the_ends_of_alpha_are_the_kls():
    p, q = jax.nn.log_softmax(np.float32(np.random.default_rng(8).standard_normal((2, 3, 9))))
    ends = [settled(Divergence("jsd", a)) for a in (0.0, 1.0)]
    assert ends == [Divergence("forward_kl"), Divergence("reverse_kl")]
    np.testing.assert_array_equal(jsd(p, q, 0), forward_kl(p, q))
    np.testing.assert_array_equal(jsd(p, q, 1), reverse_kl(p, q))


def test_the_rescaled_family_meets_the_kls():
    """Appendix B: jsd at 0.01 over 0.01 * 0.99, beside the forward KL 0.0920328502."""
    with jax.enable_x64(True):
        p, q = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], jnp.float64))

        def rescaled(alpha):
            return jsd(p, q, alpha) / (alpha * (1 - alpha))

        np.testing.assert_allclose(rescaled(0.01), 0.0919181186, atol=6e-11)
        np.testing.assert_allclose(rescaled(1e-7), forward_kl(p, q), rtol=1e-6)
        np.testing.assert_allclose(rescaled(1 - 1e-7), reverse_kl(p, q), rtol=1e-6)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.3, 0.999, 1 - 1e-6])
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_jsd_is_exact_at_every_alpha(alpha, noise):
    """Value and slopes against float64 on the very float32 log-probs."""
    rng = np.random.default_rng(9)
    logits = 2.0 * rng.standard_normal((4, 4096))
    student = np.float32(oracles.log_softmax(logits))
    teacher = np.float32(oracles.log_softmax(logits + noise * rng.standard_normal((4, 4096))))
    wide = np.float64(student), np.float64(teacher)
    got = formulas.terms(student, teacher, settled(Divergence("jsd", alpha)))
    np.testing.assert_allclose(
        np.sum(got.value, axis=-1), oracles.jsd(*wide, alpha), rtol=16 * EPS
    )
    log_mixture = oracles.mixture(*wide, alpha)
    to_student = (1 - alpha) * np.exp(wide[0]) * (wide[0] - log_mixture)
    to_teacher = alpha * np.exp(wide[1]) * (wide[1] - log_mixture)
    assert oracles.relative(got.to_student, to_student) < 8 * EPS
    assert oracles.relative(got.to_teacher, to_teacher) < 8 * EPS


def test_what_means_nothing_is_refused():
    with pytest.raises(
        ValueError, match="'js' is not one of.*'forward_kl', 'reverse_kl', 'jsd'"
    ):
        Divergence("js", 0.5)
    with pytest.raises(ValueError, match="alpha=0.5 does not apply to reverse_kl"):
        Divergence("reverse_kl", 0.5)
