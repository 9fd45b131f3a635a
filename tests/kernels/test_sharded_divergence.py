"""On 8 devices as on one: values and gradients, however tokens and vocabulary are split."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mopd_jax import kernels, losses
from mopd_jax.kernels import Divergence, HeadSharding, Hidden, Logits, Stored

N, T, D, E, V = 8, 5, 8, 4, 24
COLLECTIVES = ("all-gather", "reduce-scatter")
TOKENS = 21  # The last rows of the heads are padding: a whole device's share of them at most.


def mesh(*shape):
    names = ("data", "fsdp", "tensor")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def make():
    rng = np.random.default_rng(0)
    hidden, head, teacher_states, other, sampled = (
        np.float32(rng.standard_normal(s))
        for s in ((N, T, D), (V, D), (N, T, E), (V, E), (N, T))
    )
    head[TOKENS:], other[TOKENS:] = np.nan, np.inf
    targets = np.int32(rng.integers(0, TOKENS, (N, T)))
    # Rows of very different lengths, one empty: devices have different numbers of chunks.
    mask = np.arange(T) < np.int32([5, 1, 0, 2, 5, 5, 1, 3])[:, None]
    hidden[~mask], teacher_states[~mask] = np.nan, np.nan
    return hidden, head, Hidden(teacher_states, other), targets, mask, sampled


def token_loss(stats, sampled):
    ratio = jax.lax.stop_gradient(jnp.exp(stats.logp - sampled))
    return jnp.minimum(ratio, 2.0) * stats.divergence - 0.3 * stats.logp + stats.entropy**2


def run(form, sharding, kind, support):
    hidden, head, teacher, targets, mask, sampled = make()
    weights = losses.token_weights(mask, aggregation="seq-mean-token-mean")
    options = {"divergence": Divergence(kind, None, None, *support)}
    options |= {"vocab_size": TOKENS, "chunk_tokens": 3}

    def first(hidden, head):
        rest = (teacher, targets, mask, weights, sampled)
        return kernels.linear_divergence_loss(
            token_loss, Hidden(hidden, head), *rest, sharding=sharding, **options
        )

    def later(hidden, head):
        models = (Hidden(hidden, head), teacher, targets, mask)
        stats = kernels.linear_divergence(*models, sharding=sharding, **options)
        return jnp.sum(weights * jnp.where(mask, token_loss(stats, sampled), 0)), stats

    step = jax.value_and_grad({"first": first, "later": later}[form], (0, 1), has_aux=True)
    return jax.jit(step)(hidden, head)


def assert_equal_to_rounding(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.all(np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * (1 + np.max(np.abs(b))))


once = functools.cache(lambda form, kind, support: run(form, None, kind, support))


@pytest.mark.parametrize("form", ["first", "later"])
@pytest.mark.parametrize(
    "kind, support",
    [
        ("jsd", ("full",)),
        ("reverse_kl", ("full",)),
        ("reverse_kl", ("sampled",)),
        ("forward_kl", ("union", 3)),
    ],
)
@pytest.mark.parametrize(
    "shape, embed", [((2, 2, 2), "fsdp"), ((1, 1, 8), None), ((4, 2, 1), "fsdp")]
)
def test_a_mesh_does_not_matter(shape, embed, kind, support, form):
    sharding = HeadSharding(("data", "fsdp"), "tensor", embed, mesh(*shape))
    got = run(form, sharding, kind, support)
    assert_equal_to_rounding(got, once(form, kind, support))


def test_tokens_alone_may_be_split():
    sharding = HeadSharding(("data",), mesh=mesh(8))
    got = run("first", sharding, "jsd", ("full",))
    assert_equal_to_rounding(got, once("first", "jsd", ("full",)))


def test_a_stored_teacher_and_log_probs_are_split_too():
    hidden, head, teacher, targets, mask, _ = make()

    def both(sharding):
        limits = {"vocab_size": TOKENS, "chunk_tokens": 3, "sharding": sharding}

        @jax.jit
        def step(hidden, head):
            stored = kernels.linear_topk(teacher, mask, 4, **limits)
            # Places that count for nothing: no device may take them for columns of its own.
            idle = jnp.array([[-1, 24, 22]] * T)[None].repeat(N, axis=0)
            stored = Stored(
                jnp.concatenate([idle, stored.ids], axis=-1),
                jnp.concatenate([jnp.zeros(idle.shape), stored.logp], axis=-1),
            )

            def loss(hidden, head):
                student = Hidden(hidden, head)
                logp = kernels.linear_logprob(student, targets, mask, **limits)
                stats = kernels.linear_divergence(student, stored, targets, mask, **limits)
                return jnp.sum(stats.divergence + logp.logp + logp.entropy)

            return jax.value_and_grad(loss, (0, 1))(hidden, head), stored

        return step(hidden, head)

    one, many = (
        both(None),
        both(HeadSharding(("data", "fsdp"), "tensor", "fsdp", mesh(2, 2, 2))),
    )
    assert_equal_to_rounding(many[0], one[0])
    np.testing.assert_array_equal(many[1].ids, one[1].ids)
    np.testing.assert_allclose(many[1].logp, one[1].logp, rtol=1e-5, atol=1e-6)


def test_gradients_lie_as_their_parameters_do_and_heads_are_gathered_once():
    where = mesh(2, 2, 2)
    sharding = HeadSharding(("data", "fsdp"), "tensor", "fsdp", where)
    hidden, head, teacher, targets, mask, sampled = make()
    weights = np.float32(mask)
    heads = NamedSharding(where, PartitionSpec("tensor", "fsdp"))
    rows = NamedSharding(where, PartitionSpec(("data", "fsdp")))

    def loss(hidden, head, teacher):
        rest = (targets, mask, weights, sampled)
        return kernels.linear_divergence_loss(
            token_loss,
            *(Hidden(hidden, head), teacher, *rest),
            divergence=Divergence("jsd"),
            vocab_size=TOKENS,
            chunk_tokens=3,
            sharding=sharding,
        )[0]

    step = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(rows, heads, Hidden(rows, heads)))
    compiled = step.lower(hidden, head, teacher).compile()
    text = compiled.as_text()
    counts = {op: len(re.findall(rf"\b{op}(?:-start)?\(", text)) for op in COLLECTIVES}
    assert counts["all-gather"] == 2  # The student's head and the teacher's.
    assert counts["reduce-scatter"] == 1
    to_hidden, to_head = compiled(
        *jax.device_put((hidden, head, teacher), (rows, heads, Hidden(rows, heads)))
    )
    assert to_head.sharding.is_equivalent_to(heads, 2)
    assert to_hidden.sharding.is_equivalent_to(rows, 3)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("form", ["first", "later"])
def test_inside_a_callers_own_shard_map(form, checked):
    """Each device its own tokens, the head on all; the caller sums over the devices."""
    hidden, head, teacher, targets, mask, sampled = make()
    head, other = head[:TOKENS], teacher.head[:TOKENS]
    weights = np.float32(mask)

    def local(hidden, head, teacher_states, other, targets, mask, weights, sampled):
        options = {"divergence": Divergence("jsd"), "chunk_tokens": 3}
        pair = Hidden(hidden, head), Hidden(teacher_states, other)
        if form == "first":
            rest = (targets, mask, weights, sampled)
            loss, _ = kernels.linear_divergence_loss(token_loss, *pair, *rest, **options)
        else:
            stats = kernels.linear_divergence(*pair, targets, mask, **options)
            loss = jnp.sum(weights * jnp.where(mask, token_loss(stats, sampled), 0))
        return loss

    def over_devices(hidden, head):
        rows, same = PartitionSpec("data"), PartitionSpec()
        return jax.shard_map(
            lambda *a: jax.lax.psum(local(*a), "data"),
            mesh=mesh(8),
            in_specs=(rows, same, rows, same, rows, rows, rows, rows),
            out_specs=same,
            check_vma=checked,
        )(hidden, head, teacher.states, other, targets, mask, weights, sampled)

    def alone(hidden, head):
        return local(hidden, head, teacher.states, other, targets, mask, weights, sampled)

    got, want = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head) for f in (over_devices, alone)
    )
    assert_equal_to_rounding(got, want)


@pytest.mark.parametrize(
    "shape, embed", [((2, 2, 2), "fsdp"), ((1, 1, 8), None), ((8, 1, 1), None)]
)
@pytest.mark.parametrize("sides", ["teacher", "both"])
def test_logits_are_split_too(shape, embed, sides):
    """Their rows and their columns, and alpha and temperature as arrays."""
    hidden, head, teacher, targets, mask, sampled = make()
    teacher_logits = jnp.einsum("nte,ve->ntv", teacher.states, jnp.nan_to_num(teacher.head))
    student = Hidden(hidden, head)
    if sides == "both":
        student = Logits(jnp.einsum("ntd,vd->ntv", hidden, jnp.nan_to_num(head)))
    weights = losses.token_weights(mask, aggregation="seq-mean-token-mean")

    def run(sharding):
        def loss(student, alpha, temperature):
            return kernels.linear_divergence_loss(
                token_loss,
                *(student, Logits(teacher_logits), targets, mask, weights, sampled),
                divergence=Divergence(alpha=alpha),
                temperature=temperature,
                vocab_size=TOKENS,
                chunk_tokens=3,
                sharding=sharding,
            )

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return step(student, jnp.float32(0.3), jnp.float32(0.8))

    sharding = HeadSharding(("data", "fsdp"), "tensor", embed, mesh(*shape))
    assert_equal_to_rounding(run(sharding), run(None))


def refused(sharding, **changes):
    hidden, head, teacher, targets, mask, _ = make()
    models = (Hidden(hidden, head), teacher, targets, mask)
    return jax.eval_shape(
        lambda: kernels.linear_divergence(*models, sharding=sharding, **changes)
    )


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"axes \['tensor'\], the mesh has \('data',\)"):
        refused(HeadSharding(("data",), "tensor", mesh=mesh(8)))
    with pytest.raises(ValueError, match="the mesh has .*call under jax.set_mesh"):
        refused(HeadSharding(("data",)))
    with pytest.raises(ValueError, match="'data' is both in tokens and vocab"):
        HeadSharding(("data",), "data")
    with pytest.raises(ValueError, match="embed='tensor' must be one of tokens"):
        HeadSharding(("data",), None, "tensor")
    with pytest.raises(ValueError, match="implementation='reference' materialises"):
        refused(HeadSharding(("data",), mesh=mesh(8)), implementation="reference")
    hidden, head, _, targets, mask, _ = make()
    cases = ((6, V, "6 rows of the mask"), (8, 23, "23 columns of the vocabulary"))
    for rows, vocab, what in cases:
        arrays = (Hidden(hidden[:rows], head[:vocab]), targets[:rows], mask[:rows])
        sharding = HeadSharding(("data", "fsdp"), "tensor", mesh=mesh(2, 2, 2))
        with pytest.raises(ValueError, match=f"{what} do not split over"):
            kernels.linear_logprob(*arrays, sharding=sharding)
