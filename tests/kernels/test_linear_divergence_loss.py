"""The loss with gradients made in the forward pass, and what all XLA forms have in common."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd_jax import kernels
from mopd_jax.kernels import Divergence, Hidden, Logits, Stored
from mopd_jax.kernels.linear_divergence import chunked, formulas, token_stats
from mopd_jax.kernels.linear_divergence.divergence import settled
from mopd_jax.kernels.linear_divergence.options import Spec

N, T, D, E, V = 3, 7, 5, 6, 23


def make(seed=0, share=0.6, vocab=V, dtype="float32"):
    """student hidden and head, teacher, targets, mask, weights, aux."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    hidden, head = normal((N, T, D)), normal((vocab, D))
    teacher = Hidden(*(jnp.asarray(normal(s), dtype) for s in ((N, T, E), (vocab, E))))
    targets = np.int32(rng.integers(0, vocab, (N, T)))
    mask = rng.random((N, T)) < share
    weights = np.float32(normal((N, T)))
    aux = {"a": np.float32(normal((N, T))), "flag": np.int32(rng.integers(0, 2, (N, T)))}
    return (
        *(jnp.asarray(x, dtype) for x in (hidden, head)),
        *(teacher, targets, mask, weights, aux),
    )


def linear(stats, aux):
    return stats.divergence + aux["a"] * stats.logp - 0.5 * stats.entropy


def crooked(stats, aux):
    """A ratio with and without gradient, a clip, a square: what policy losses are made of."""
    ratio = jnp.exp(stats.logp - aux["a"])
    clipped = jnp.clip(ratio, 0.8, 1.28)
    policy = -jnp.minimum(ratio, clipped) * aux["a"]
    still = jax.lax.stop_gradient(jnp.minimum(ratio, 2.0))
    return still * stats.divergence + aux["flag"] * policy + 0.1 * stats.entropy**2


JSD = Divergence("jsd")


def value_and_grads(token_loss, arrays, soft_cap=None, **options):
    """((loss, stats), gradients to hidden, head, weights and the floating aux)."""
    hidden, head, teacher, targets, mask, weights, aux = arrays

    @jax.jit
    def run(hidden, head, weights, a):
        def loss(hidden, head, weights, a):
            return kernels.linear_divergence_loss(
                token_loss,
                Hidden(hidden, head, soft_cap),
                *(teacher, targets, mask, weights, aux | {"a": a}),
                **options,
            )

        return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(hidden, head, weights, a)

    return run(hidden, head, weights, aux["a"])


def assert_close(got, want, rtol=2e-6, terms=0.0):
    """Leaves that agree; the first, the loss, to the rounding of the terms it sums."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = max(float(np.max(np.abs(b))), terms)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * (0.05 + size))
        terms = 0.0


@pytest.mark.parametrize(
    "kind, alpha", [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3)]
)
def test_value_and_gradients_match_float64(kind, alpha):
    arrays = make()
    hidden, head, teacher, targets, mask, weights, aux = arrays
    (loss, _), grads = value_and_grads(
        linear, arrays, divergence=Divergence(kind, alpha), chunk_tokens=4
    )
    student = oracles.linear_logp(hidden, head, 1.0)
    teacher_logp = oracles.linear_logp(teacher.states, teacher.head, 1.0)
    each = oracles.divergence(student, teacher_logp, kind, alpha)
    each += aux["a"] * np.take_along_axis(student, targets[..., None], axis=-1)[..., 0]
    each -= 0.5 * oracles.entropy(student)
    weights = np.where(mask, weights, 0).astype(np.float64)
    np.testing.assert_allclose(loss, np.sum(weights * each), rtol=1e-5)
    logits_grad = oracles.divergence_grad(student, teacher_logp, kind, alpha)
    logits_grad += aux["a"][..., None] * oracles.logp_grad(student, targets)
    logits_grad -= 0.5 * oracles.entropy_grad(student)
    wanted = oracles.linear_grads(weights[..., None] * logits_grad, hidden, head, 1.0)
    for got, want in zip(grads, wanted, strict=False):
        assert oracles.relative(got, want) < 1e-5
    assert oracles.relative(grads[2], np.where(mask, each, 0)) < 1e-5


SUPPORTS = [("full",), ("sampled",), ("student", 4), ("union", 3), ("teacher", 5, False)]
SUPPORTS += [("union", 3, False)]


@settings(max_examples=16)
@given(
    seed=st.integers(0, 1000),
    kind_alpha=st.sampled_from([("forward_kl", None), ("reverse_kl", None), ("jsd", 0.2)]),
    support=st.sampled_from(SUPPORTS),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    chunk_tokens=st.sampled_from([1, 4, 64]),
    temperature=st.sampled_from([0.6, 1.0]),
    soft_caps=st.sampled_from([(None, None), (2.0, 2.0), (3.0, None)]),
    padding=st.sampled_from([0, 3]),
)
def test_equals_the_reference(seed, kind_alpha, support, share, padding, soft_caps, **options):
    """Any options: both forms of the chunked op, and the reference by autodiff."""
    kind, alpha = ("reverse_kl", None) if support == ("sampled",) else kind_alpha
    options["divergence"] = Divergence(kind, alpha, None, *support)
    options["vocab_size"] = V - padding
    mine, theirs = soft_caps
    hidden, head, teacher, targets, *rest = make(seed, share)
    mask = rest[0]
    targets = np.minimum(targets, V - padding - 1)
    # What must reach nothing: masked states, and rows of the heads that are padding.
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)
    real = np.arange(V)[:, None] < V - padding
    teacher = Hidden(teacher.states, jnp.where(real, teacher.head, jnp.inf), theirs)
    arrays = (hidden, jnp.where(real, head, jnp.nan), teacher, targets, *rest)
    want = value_and_grads(crooked, arrays, mine, implementation="reference", **options)
    # The gradient to the weights is the loss of each token.
    terms = float(np.sum(np.abs(arrays[5] * want[1][2])))
    assert_close(value_and_grads(crooked, arrays, mine, **options), want, terms=terms)

    def later(hidden, head):
        *_, mask, weights, aux = arrays
        models = (Hidden(hidden, head, mine), teacher, targets, mask)
        stats = kernels.linear_divergence(*models, **options)
        return jnp.sum(weights * jnp.where(mask, crooked(stats, aux), 0)), stats

    got = jax.jit(jax.value_and_grad(later, (0, 1), has_aux=True))(*arrays[:2])
    assert_close(got, (want[0], want[1][:2]), terms=terms)
    assert np.all(np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(got)])))


def test_a_loss_of_log_probs_needs_no_teacher():
    hidden, head, _, *rest = make()
    arrays = (hidden, head, None, *rest)

    def policy(stats, aux):
        return -jnp.exp(stats.logp - aux["a"]) + 0.1 * stats.entropy

    want = value_and_grads(policy, arrays, implementation="reference")
    assert_close(value_and_grads(policy, arrays, chunk_tokens=4), want)
    assert isinstance(want[0][1], kernels.TokenLogprob)


def test_the_statistics_that_are_returned_carry_no_gradient():
    hidden, head, teacher, *rest = make()

    def loss(hidden, implementation):
        _, stats = kernels.linear_divergence_loss(
            *(linear, Hidden(hidden, head), teacher, *rest),
            divergence=JSD,
            implementation=implementation,
        )
        return jnp.sum(stats.divergence)

    for implementation in ("reference", "chunked"):
        np.testing.assert_array_equal(jax.grad(loss)(hidden, implementation), 0 * hidden)


def products(function, *arguments):
    """Matrix products in a traced function, those inside loops counted once."""
    return len(re.findall(r"dot_general", str(jax.make_jaxpr(function)(*arguments))))


def test_how_many_products_it_takes():
    hidden, head, teacher, targets, mask, weights, aux = make()
    student = Hidden(hidden, head)

    def first(student):
        rest = (teacher, targets, mask, weights, aux)
        return kernels.linear_divergence_loss(linear, student, *rest, divergence=JSD)[0]

    def later(student):
        return jnp.sum(kernels.linear_divergence(student, teacher, targets, mask).divergence)

    assert products(first, student) == 2
    assert products(jax.grad(first), student) == 4
    assert products(later, student) == 2
    assert products(jax.grad(later), student) == 6
    assert products(lambda *a: kernels.linear_logprob(*a), student, targets, mask) == 1


@pytest.mark.parametrize("valid", [0, 1, 6, 7, 21])
def test_only_chunks_with_a_valid_token_are_computed(valid):
    hidden, head, _, targets, *_ = make()
    mask = np.random.default_rng(valid).permutation(N * T).reshape(N, T) < valid
    computed = []

    def rows(*arguments, **options):
        jax.debug.callback(lambda: computed.append(1))
        return token_stats.token_statistics(*arguments, **options)

    spec = Spec(None, 1.0, None, None, V, chunk_tokens=3)
    operands = chunked.Operands(None, *map(jnp.asarray, (targets, mask)))
    out = jax.jit(functools.partial(chunked.differentiable_statistics, spec, rows))(
        Hidden(hidden, head), operands
    )
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert len(computed) == -(-valid // 3)


def test_parts_of_a_batch_add_up_and_order_does_not_matter():
    hidden, head, teacher, *rest = make()
    whole = value_and_grads(crooked, (hidden, head, teacher, *rest), divergence=JSD)

    def rows(order):
        def at(x):
            return x[order]

        other = Hidden(at(teacher.states), teacher.head)
        return (at(hidden), head, other, *jax.tree.map(at, tuple(rest)))

    parts = [value_and_grads(crooked, rows(np.array([i])), divergence=JSD) for i in range(N)]
    np.testing.assert_allclose(sum(p[0][0] for p in parts), whole[0][0], rtol=1e-5)
    assert_close(sum(p[1][1] for p in parts), whole[1][1])
    order = np.array([2, 0, 1])
    moved = value_and_grads(crooked, rows(order), divergence=JSD)
    assert_close(moved[1][1], whole[1][1])
    assert_close(moved[1][0], whole[1][0][order])


@pytest.mark.parametrize(
    "kind, alpha", [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.5)]
)
def test_bfloat16_gradients_where_teacher_and_student_are_close(kind, alpha):
    """KL about 1e-3: logits rounded to bfloat16 would be off by tens of percent."""
    rng = np.random.default_rng(0)
    tokens, width, vocab = 64, 256, 2048
    hidden = rng.standard_normal((tokens, width))
    head = jnp.asarray(rng.standard_normal((vocab, width)) * 3 / width**0.5, jnp.bfloat16)
    near = jnp.asarray(hidden + 0.015 * rng.standard_normal((tokens, width)), jnp.bfloat16)
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    targets, mask = jnp.zeros(tokens, jnp.int32), jnp.ones(tokens, bool)

    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def grads(hidden, head):
        return kernels.linear_divergence_loss(
            lambda stats, _: stats.divergence,
            *(Hidden(hidden, head), Hidden(near, head), targets, mask, jnp.ones(tokens)),
            divergence=Divergence(kind, alpha),
        )

    got, stats = jax.jit(grads)(hidden, head)
    logp = [
        oracles.linear_logp(x.astype(jnp.float32), head.astype(jnp.float32), 1.0)
        for x in (hidden, near)
    ]
    want = oracles.divergence(*logp, kind, alpha)
    assert 3e-4 < np.mean(oracles.reverse_kl(*logp)) < 3e-3
    assert oracles.relative(stats.divergence, want) < 0.005
    logits_grad = oracles.divergence_grad(*logp, kind, alpha)
    wanted = oracles.linear_grads(
        logits_grad[None], hidden[None].astype(jnp.float32), head.astype(jnp.float32), 1.0
    )
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        assert oracles.relative(a, np.reshape(b, a.shape)) < 0.005


def test_lists_are_arrays():
    hidden, head, _, targets, mask, *_ = make()
    *lists, ids, flags = [x.tolist() for x in (hidden, head, targets, mask)]
    got, want = (
        kernels.linear_logprob(Hidden(*lists), ids, flags),
        kernels.linear_logprob(Hidden(hidden, head), targets, mask),
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_logits_are_enough():
    hidden, head, teacher, targets, mask, _, _ = make()
    logits = jnp.einsum("ntd,vd->ntv", hidden, head)
    teacher_logits = jnp.einsum("nte,ve->ntv", teacher.states, teacher.head)
    options = {"divergence": Divergence(alpha=0.3), "temperature": 0.7, "chunk_tokens": 4}

    def total(stats):
        return jnp.sum(stats.divergence - 0.3 * stats.logp + stats.entropy**2), stats

    def from_logits(logits):
        pair = Logits(logits), Logits(teacher_logits)
        return total(kernels.linear_divergence(*pair, targets, mask, **options))

    def by_autodiff(logits):
        logp, logq = (jax.nn.log_softmax(x / 0.7) for x in (logits, teacher_logits))
        chosen = targets[..., None]
        each = {
            "divergence": formulas.value(logp, logq, settled(Divergence(alpha=0.3))),
            "logp": jnp.take_along_axis(logp, chosen, axis=-1)[..., 0],
            "teacher_logp": jnp.take_along_axis(logq, chosen, axis=-1)[..., 0],
            "entropy": formulas.entropy(logp),
        }
        return total(kernels.TokenStats(**{k: jnp.where(mask, x, 0) for k, x in each.items()}))

    got, want = (
        jax.jit(jax.value_and_grad(f, has_aux=True))(logits) for f in (from_logits, by_autodiff)
    )
    assert_close(got, want)
    # What is masked, or beyond the vocabulary, reaches nothing.
    ruined = jnp.pad(logits, ((0, 0), (0, 0), (0, 2)), constant_values=jnp.nan)
    ruined = jnp.where(mask[..., None], ruined, jnp.inf)
    # One rule for all outputs: the two sides need not have the same padding.
    padded = jnp.pad(teacher_logits, ((0, 0), (0, 0), (0, 3)), constant_values=jnp.nan)

    def from_ruined(ruined):
        arrays = (Logits(ruined), Logits(padded), targets, mask)
        return total(kernels.linear_divergence(*arrays, vocab_size=V, **options))

    value, grad = jax.jit(jax.value_and_grad(from_ruined, has_aux=True))(ruined)
    assert_close((value, grad[..., :V]), want)
    np.testing.assert_array_equal(grad[..., V:], 0)


def test_it_composes_with_vmap_and_remat():
    hidden, head, teacher, targets, mask, _, _ = make()
    models = (head, teacher.states, teacher.head, targets, mask)

    def total(hidden, head, other, other_head, targets, mask):
        pair = Hidden(hidden, head), Hidden(other, other_head)
        stats = kernels.linear_divergence(*pair, targets, mask, chunk_tokens=4)
        return jnp.sum(stats.divergence)

    def mapped(hidden):
        axes = (0, None, 0, None, 0, 0)
        return jnp.sum(jax.vmap(total, axes)(hidden, *models))

    want = jax.jit(jax.value_and_grad(total))(hidden, *models)
    assert_close(jax.jit(jax.value_and_grad(mapped))(hidden), want)
    assert_close(jax.jit(jax.value_and_grad(jax.checkpoint(total)))(hidden, *models), want)


def refused(**changes):
    hidden, head, teacher, targets, mask, weights, aux = make()
    arguments = {
        "token_loss": linear,
        "student": Hidden(hidden, changes.pop("head", head)),
        "teacher": teacher,
        "targets": targets,
        "mask": mask,
        "weights": weights,
        "aux": aux,
        "divergence": JSD,
    }
    return jax.eval_shape(lambda: kernels.linear_divergence_loss(**(arguments | changes)))


STORED = Stored(np.zeros((N, T, 2), np.int32), np.zeros((N, T, 2), np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"token_loss": lambda s, a: jnp.sum(s.logp)}, r"token_loss must return one number a"),
        ({"aux": {"a": np.ones(3)}}, r"aux\['a'\]: expected \(3, 7\) first"),
        ({"weights": np.ones((N, 2), np.float32)}, r"weights: T=2"),
        ({"weights": np.ones((N, T), np.int32)}, "weights: expected a floating dtype"),
        ({"divergence": None}, "divergence=None with teacher=Hidden"),
        ({"teacher": None}, "divergence=Divergence.* with teacher=NoneType"),
        (
            {"teacher": np.ones(3)},
            "teacher: expected Hidden.*, Logits.* or Stored.*an array",
        ),
        ({"student": np.ones(3)}, "student: expected Hidden.* or Logits.*one argument"),
        ({"divergence": "jsd"}, r"divergence='jsd' is a str; give a Divergence\(kind="),
        ({"temperature": "1"}, "temperature='1' is a str; give a Python float, or a JAX"),
        ({"temperature": None}, "temperature=None is a NoneType; give a Python float"),
        ({"temperature": np.ones(2)}, r"temperature: expected a floating scalar.*\(2,\)"),
        ({"chunk_tokens": 2.0}, "chunk_tokens=2.0 is a float; .*Python int"),
        ({"head": np.ones((V, D), np.float16)}, "student.head: float16 ends at 6e-8"),
        (
            {"teacher": STORED, "divergence": Divergence(support="teacher", top_k=3)},
            "top_k=3: a Stored teacher has only its own 2 tokens",
        ),
        (
            {"teacher": STORED, "divergence": Divergence(support="union")},
            "support='union', .*: a Stored teacher has only its own 2 tokens",
        ),
        (
            {"divergence": Divergence(support="student", top_k=V + 1)},
            "top_k=24 is more than the vocabulary of 23",
        ),
        (
            {"divergence": Divergence("reverse_kl", support="sampled"), "targets": None},
            "support='sampled' reads the sampled tokens; give targets",
        ),
        ({"vocab_size": V + 1}, "vocab_size=24 must be between 1 and the 23 columns of"),
        ({"temperature": float("inf")}, "temperature must be positive and finite, got inf"),
        ({"mask": np.ones((0, T), bool)}, "N=0"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        refused(**changes)


def test_float64_beside_float32_states_is_computed():
    """Weights, aux or a teacher that are wider than the student."""
    with jax.enable_x64(True):
        hidden, head, teacher, targets, mask, weights, aux = make()
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), teacher)
        changed = [(wide, weights, aux), (teacher, np.float64(weights), aux)]
        changed.append((teacher, weights, aux | {"a": np.float64(aux["a"])}))
        arrays = (hidden, head, teacher, targets, mask, weights, aux)
        want = value_and_grads(linear, arrays, divergence=JSD)
        for other, factors, extra in changed:
            arrays = (hidden, head, other, targets, mask, factors, extra)
            got = value_and_grads(linear, arrays, divergence=JSD)
            assert_close(got, want)
            assert got[1][0].dtype == jnp.float32


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"top_k": 0}, "top_k must be at least 1, an int, got 0"),
        ({"support": "most"}, "support='most' is not one of .*'student', 'teacher', 'union'"),
        ({"support": "sampled"}, "'sampled' estimates the reverse KL only, got kind='jsd'"),
        ({"tail": False}, "tail=False, and support='full' has no tail"),
        ({"alpha": "half"}, "alpha='half' is a str; give a Python float, or a JAX scalar"),
        ({"alpha": np.ones(2, np.float32)}, r"alpha: expected a floating scalar.*\(2,\)"),
        ({"kind": "reverse_kl", "alpha": jnp.float32(0.5)}, "does not apply to reverse_kl"),
    ],
)
def test_a_divergence_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Divergence(**fields)


@pytest.mark.parametrize("cap", [-1.0, 0.0, float("inf"), (1.0, 2.0), "1"])
def test_a_soft_cap_that_means_nothing_is_refused(cap):
    with pytest.raises(ValueError, match="soft_cap must be a positive and finite number"):
        Hidden(np.ones((1, 2)), np.ones((3, 2)), cap)
