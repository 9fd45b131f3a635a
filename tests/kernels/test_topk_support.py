"""Divergences over chosen tokens: golden values, float64, stored teachers."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax import kernels, losses
from mopd_jax.kernels import Divergence, Hidden, Logits, Stored
from mopd_jax.kernels.linear_divergence import token_stats

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "sdpo_losses.npz")
K = int(GOLDEN["k"])
SIDES = ["student", "teacher", "union"]


# p = (0.6, 0.25, 0.1, 0.05), q = (0.3, 0.4, 0.05, 0.25); the student's two likeliest are the
# first two, which leave 0.15 and 0.3. Forward with tail: 0.3 ln(0.3/0.6) + 0.4 ln(0.4/0.25)
# + 0.3 ln(0.3/0.15) = 0.18800.
@pytest.mark.parametrize(
    "tail, kind, value",
    [
        (True, "forward_kl", 0.1880014517),
        (True, "reverse_kl", 0.1944153239),
        (True, "jsd", 0.0469596232),
        (False, "forward_kl", 0.1656664395),
        (False, "reverse_kl", 0.1568879868),
        (False, "jsd", 0.0397280360),
    ],
)
def test_values_by_hand(tail, kind, value):
    with jax.enable_x64(True):
        p, q = np.log([[[0.6, 0.25, 0.1, 0.05]], [[0.3, 0.4, 0.05, 0.25]]])
        got = kernels.linear_divergence(
            *(Logits(p), Logits(q), np.int32([0]), np.ones(1, bool)),
            divergence=Divergence(kind, support="student", top_k=2, tail=tail),
        )
    np.testing.assert_allclose(got.divergence, value, atol=6e-11)


@pytest.mark.parametrize("name, tail", [("topk_tail", True), ("topk_renorm", False)])
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_matches_the_reference_codes_loss(name, tail, alpha, implementation):
    """The students' logits are the states of a head that is the identity."""
    eye = jnp.eye(128)

    def loss(logits):
        return losses.distill_loss(
            *(Hidden(logits, eye), Hidden(GOLDEN["teacher"], eye)),
            GOLDEN["ids"],
            GOLDEN["mask"] != 0,
            divergence=Divergence("jsd", alpha, support="student", top_k=K, tail=tail),
            chunk_tokens=5,
            implementation=implementation,
        )

    (value, stats), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(GOLDEN["student"])
    name = f"{name}_a{alpha}"
    want = GOLDEN[f"{name}_per_token"] * GOLDEN["mask"]
    np.testing.assert_allclose(stats.divergence, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, GOLDEN[f"{name}_loss"], rtol=3e-6)
    np.testing.assert_allclose(grad, GOLDEN[f"{name}_grad"], rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("support", ["full", "topk_tail"])
@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_matches_the_reference_codes_loss_with_importance(support, alpha):
    eye = jnp.eye(128)
    over = ("full",) if support == "full" else ("student", K)

    def loss(logits):
        return losses.distill_loss(
            *(Hidden(logits, eye), Hidden(GOLDEN["teacher"], eye)),
            GOLDEN["ids"],
            GOLDEN["mask"] != 0,
            divergence=Divergence("jsd", alpha, None, *over),
            sampled_logp=GOLDEN["old_logprobs"],
            importance_cap=float(GOLDEN["clip"]),
        )

    value, grad = jax.jit(jax.value_and_grad(lambda x: loss(x)[0]))(GOLDEN["student"])
    name = f"{support}_a{alpha}_is"
    np.testing.assert_allclose(value, GOLDEN[f"{name}_loss"], rtol=3e-6)
    np.testing.assert_allclose(grad, GOLDEN[f"{name}_grad"], rtol=1e-5, atol=2e-7)


def test_matches_the_reference_codes_sampled_token():
    got = kernels.linear_divergence(
        *(Logits(GOLDEN["student"]), Logits(GOLDEN["teacher"])),
        *(GOLDEN["ids"], GOLDEN["mask"] != 0),
        divergence=Divergence("reverse_kl", support="sampled"),
    )
    want = GOLDEN["sampled_token_per_token"] * GOLDEN["mask"]
    np.testing.assert_allclose(got.divergence, want, rtol=1e-5, atol=1e-6)


def test_the_sampled_estimators_expected_gradient_is_the_reverse_kls():
    rng = np.random.default_rng(0)
    student, teacher = np.float32(rng.standard_normal((2, 1, 6)))

    def grad(target, support):
        def value(logits):
            pair = Logits(logits), Logits(teacher)
            of = Divergence("reverse_kl", support=support)
            return kernels.linear_divergence(
                *pair, np.int32([target]), np.ones(1, bool), divergence=of
            ).divergence[0]

        return jax.grad(value)(student)

    p = np.exp(oracles.log_softmax(student))[0]
    mean = sum(p[y] * grad(y, "sampled") for y in range(6))
    np.testing.assert_allclose(mean, grad(0, "full"), rtol=1e-5, atol=1e-7)


def coarse(logp, ids, tail):
    """float64 log-probs of the chosen and, with `tail`, the rest; else renormalised."""
    kept = np.take_along_axis(logp, ids, axis=-1)
    if tail:
        rest = np.log1p(-np.sum(np.exp(kept), axis=-1, keepdims=True))
        return np.append(kept, rest, axis=-1)
    return kept - np.log(np.sum(np.exp(kept), axis=-1, keepdims=True))


def chosen(logp, logq, k, of):
    tops = {"student": [logp], "teacher": [logq], "union": [logp, logq]}[of]
    return [np.argsort(-x, axis=-1)[..., :k] for x in tops]


@pytest.mark.parametrize("of", SIDES)
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(
    "kind, alpha", [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3)]
)
def test_values_match_float64(of, tail, kind, alpha):
    rng = np.random.default_rng(1)
    student, teacher = np.float32(2 * rng.standard_normal((2, 9, 31)))
    logp, logq = oracles.log_softmax(student), oracles.log_softmax(teacher)
    want = []
    for row in range(9):
        ids = np.unique(np.concatenate(chosen(logp[row], logq[row], 4, of)))
        sides = coarse(logp[row], ids, tail), coarse(logq[row], ids, tail)
        want.append(oracles.divergence(*sides, kind, alpha))
    got = kernels.linear_divergence(
        *(Logits(student), Logits(teacher), np.zeros(9, np.int32), np.ones(9, bool)),
        divergence=Divergence(kind, alpha, None, of, 4, tail),
    )
    np.testing.assert_allclose(got.divergence, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", SIDES)
def test_with_a_tail_it_is_a_lower_bound_and_exact_at_the_whole_vocabulary(of):
    rng = np.random.default_rng(2)
    student, teacher = np.float32(2 * rng.standard_normal((2, 16, 12)))
    arrays = (Logits(student), Logits(teacher), np.zeros(16, np.int32), np.ones(16, bool))
    full = kernels.linear_divergence(*arrays).divergence
    last = 0
    for k in (1, 3, 6, 12):
        over = Divergence(support=of, top_k=k)
        part = kernels.linear_divergence(*arrays, divergence=over).divergence
        assert np.all(part <= full + 1e-6) and np.all(part >= 0)
        assert of == "union" or np.all(part >= last - 1e-6)
        last = part
    # The tail's floor of 1e-7 is all that is left.
    np.testing.assert_allclose(last, full, atol=1e-6)


def test_all_mass_in_the_choice_gives_a_finite_tail_without_gradient():
    student = np.float32([[60.0, 50.0, 0.0, 0.0]])
    teacher = np.float32([[60.0, 58.0, 0.0, 0.0]])

    def value(logits):
        arrays = (Logits(logits), Logits(teacher), np.zeros(1, np.int32), np.ones(1, bool))
        over = Divergence("forward_kl", support="student", top_k=2)
        return kernels.linear_divergence(*arrays, divergence=over).divergence[0]

    got, grad = jax.value_and_grad(value)(student)
    assert np.isfinite(got) and np.all(np.isfinite(grad))
    np.testing.assert_allclose(grad[0, 2:], 0, atol=1e-7)


def test_rest_is_exact_on_both_sides_of_one_half():
    """log(1 - x) at masses x from 1e-6 to 1 - 1e-6, and the floor of 1e-7 above."""
    mass = np.float64([1e-6, 0.01, 0.4999, 0.5001, 0.9, 0.999])
    got = token_stats.rest(np.float32(np.log(mass))[:, None])[:, 0]
    np.testing.assert_allclose(got, np.log1p(-mass), rtol=2e-4)
    np.testing.assert_allclose(got[2:5], np.log1p(-mass[2:5]), rtol=1e-6)
    floor = token_stats.rest(jnp.zeros((1, 1)))[0, 0]
    np.testing.assert_allclose(floor, np.log(1e-7), rtol=1e-6)  # -16.1181
    grad = jax.grad(lambda x: token_stats.rest(x)[0])(jnp.zeros(1))
    np.testing.assert_array_equal(grad, 0)


def models(seed=3):
    rng = np.random.default_rng(seed)
    shapes = ((2, 5, 4), (19, 4), (2, 5, 6), (19, 6))
    arrays = [np.float32(rng.standard_normal(s)) for s in shapes]
    return arrays, np.int32(rng.integers(0, 17, (2, 5))), rng.random((2, 5)) < 0.7


@pytest.mark.parametrize("tail", [True, False])
def test_a_stored_teacher_serves_as_the_teacher_itself(tail):
    """Values and gradients; and the log-prob of a target that was not stored is unknown."""
    (hidden, head, *teacher), targets, mask = models()
    options = {"vocab_size": 17, "temperature": 0.8}
    options["divergence"] = Divergence("jsd", 0.3, None, "teacher", 4, tail)
    teacher[0][~mask] = np.nan
    limits = {"temperature": 0.8, "vocab_size": 17}
    stored = kernels.linear_topk(Hidden(*teacher), mask, 4, chunk_tokens=3, **limits)
    np.testing.assert_array_equal(stored.ids[~mask], 0)
    np.testing.assert_array_equal(stored.logp[~mask], 0)
    logq = oracles.linear_logp(teacher[0], teacher[1][:17], 0.8)
    want = -np.sort(-logq, axis=-1)[..., :4]
    np.testing.assert_allclose(stored.logp[mask], want[mask], rtol=1e-5, atol=1e-6)

    def now(hidden, head):
        pair = Hidden(hidden, head), Hidden(*teacher)
        stats = kernels.linear_divergence(*pair, targets, mask, **options)
        return jnp.sum(stats.divergence + stats.logp), stats

    def then(implementation, hidden, head):
        arrays = (Hidden(hidden, head), stored, targets, mask)
        stats = kernels.linear_divergence(*arrays, implementation=implementation, **options)
        return jnp.sum(stats.divergence + stats.logp), stats

    (_, stats), grads = jax.value_and_grad(now, (0, 1), has_aux=True)(hidden, head)
    for implementation in ("reference", "chunked"):
        step = jax.value_and_grad(lambda *a: then(implementation, *a), (0, 1), has_aux=True)  # noqa: B023
        (_, kept), got = step(hidden, head)
        np.testing.assert_allclose(kept.divergence, stats.divergence, rtol=1e-5, atol=1e-7)
        for a, b in zip(got, grads, strict=True):
            assert oracles.relative(a, b) < 1e-5
        known = np.any(stored.ids == targets[..., None], axis=-1) & mask
        np.testing.assert_array_equal(np.isnan(kept.teacher_logp), mask & ~known)
        np.testing.assert_allclose(
            kept.teacher_logp[known], stats.teacher_logp[known], rtol=1e-5, atol=1e-6
        )


def test_an_id_stored_twice_counts_once():
    (hidden, head, *_), targets, mask = models()
    ids = np.broadcast_to(np.int32([3, 5, 3]), (2, 5, 3))
    logp = np.broadcast_to(np.log(np.float32([0.5, 0.25, 0.5])), (2, 5, 3))
    twice = Stored(ids, logp)
    once = Stored(ids[..., :2], logp[..., :2])
    got, want = (
        kernels.linear_divergence(Hidden(hidden, head), x, targets, mask).divergence
        for x in (twice, once)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("pad_id, pad_logp", [(-1, -1.0), (19, -1.0), (0, -np.inf)])
def test_a_shorter_list_is_padded_with_what_counts_for_nothing(
    pad_id, pad_logp, implementation
):
    (hidden, head, *teacher), targets, mask = models()
    short = kernels.linear_topk(Hidden(*teacher), mask, 3)
    ids = jnp.concatenate([jnp.full((2, 5, 1), pad_id), short.ids], axis=-1)
    logp = jnp.concatenate([jnp.full((2, 5, 1), pad_logp), short.logp], axis=-1)

    def run(stored):
        def loss(hidden, head):
            arrays = (Hidden(hidden, head), stored, targets, mask)
            stats = kernels.linear_divergence(*arrays, implementation=implementation)
            return jnp.sum(stats.divergence), stats.teacher_logp

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

    got, want = run(Stored(ids, logp)), run(short)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_union_counts_a_shared_token_once():
    logits = np.float32([[3.0, 2.0, 1.0, 0.0]])
    other = np.float32([[3.0, 1.0, 2.0, 0.0]])
    arrays = (Logits(logits), Logits(other), np.zeros(1, np.int32), np.ones(1, bool))
    over = Divergence("forward_kl", support="union", top_k=2)
    got = kernels.linear_divergence(*arrays, divergence=over)
    sides = (
        coarse(oracles.log_softmax(x), np.array([[0, 1, 2]]), True) for x in (logits, other)
    )
    np.testing.assert_allclose(got.divergence, oracles.forward_kl(*sides), rtol=1e-5)
