"""The row kernels for GPUs, interpreted, against XLA's rows and float64.

`test_aot_gpu.py` compiles them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, PartitionSpec

from mopd_jax.kernels.linear_divergence import chunked, token_stats
from mopd_jax.kernels.linear_divergence.chunked import Operands
from mopd_jax.kernels.linear_divergence.divergence import Divergence
from mopd_jax.kernels.linear_divergence.options import Spec
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Stored
from mopd_jax.kernels.linear_divergence.pallas_gpu import RowKernels
from mopd_jax.kernels.linear_divergence.token_stats import Part, TokenLogprob

EPS = 2.0**-23
DIVERGENCES = {
    "none": None,
    "forward_kl": Divergence("forward_kl"),
    "reverse_kl": Divergence("reverse_kl"),
    "jsd_0.1": Divergence("jsd", 0.1),
    "jsd_0.5": Divergence("jsd", 0.5),
    "jsd_0.9": Divergence("jsd", 0.9),
}
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)
each_kind = pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd_0.1"])
# C, V and the kernels' sizes: many blocks, the last of them ragged; rows that do not fill
# a program's; a vocabulary below a block; one that blocks divide; a single token.
SHAPES = {
    "ragged": (5, 77, RowKernels(block=16, interpret=True)),
    "rows": (5, 40, RowKernels(block=16, rows=4, interpret=True)),
    "below": (3, 11, RowKernels(block=32, rows=2, interpret=True)),
    "even": (4, 64, RowKernels(block=32, rows=2, interpret=True)),
    "single": (1, 1, RowKernels(block=1, interpret=True)),
}
RAGGED = SHAPES["ragged"]


def make_spec(divergence, vocab_size, **changes):
    spec = Spec(
        divergence=divergence,
        temperature=1.0,
        student_cap=None,
        teacher_cap=None,
        vocab_size=vocab_size,
        chunk_tokens=3,
    )
    return dataclasses.replace(spec, **changes)


def make(tokens, columns):
    """Logits of both, targets, the last two outside the vocabulary, cotangents."""
    rng = np.random.default_rng(columns)
    student, teacher = np.float32(3 * rng.standard_normal((2, tokens, columns)))
    targets = rng.integers(0, columns, tokens)
    targets[0] = columns - 1
    if tokens > 2:
        targets[-2:] = -1, columns
    return student, teacher, np.int32(targets), np.float32(rng.standard_normal((3, tokens)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(rows, spec, student, teacher, targets, cotangents):
    """Statistics and the gradient to the student's logits."""
    if spec.divergence is None:
        stats, pull = rows(student, None, targets, spec=spec, part=Part())
        return stats, pull(None, *cotangents[1:])
    stats, pull = rows(student, teacher, targets, spec=spec, part=Part())
    return stats, pull(*cotangents)


def check_against_float64(got, spec, student, teacher, targets, cotangents, tolerance):
    stats, grad = got
    caps = (spec.student_cap, spec.teacher_cap)
    both = [softened(x, cap, spec) for x, cap in zip((student, teacher), caps, strict=True)]
    logp, teacher_logp = (oracles.log_softmax(x) for x, _ in both)
    known = (targets >= 0) & (targets < logp.shape[-1])
    index = np.where(known, targets, 0)[:, None]
    wanted = {"entropy": oracles.entropy(logp)}
    for name, of in {"logp": logp, "teacher_logp": teacher_logp}.items():
        wanted[name] = np.where(known, np.take_along_axis(of, index, axis=-1)[:, 0], np.nan)
    want_grad = cotangents[1][:, None] * oracles.logp_grad(logp, targets)
    want_grad += cotangents[2][:, None] * oracles.entropy_grad(logp)
    if spec.divergence is not None:
        arguments = (logp, teacher_logp, spec.divergence.kind, spec.divergence.alpha)
        wanted["divergence"] = oracles.divergence(*arguments)
        slopes = oracles.divergence_grad(*arguments)
        want_grad += cotangents[0][:, None] * slopes
    for name, value in vars(stats).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted[name], atol=tolerance, err_msg=name)
    assert grad.dtype == np.float32
    np.testing.assert_allclose(grad, want_grad * both[0][1], atol=tolerance)


def softened(logits, cap, spec):
    """Logits after cap and temperature, and their derivative: float64."""
    logits = np.float64(logits)
    squashed = logits if cap is None else cap * np.tanh(logits / cap)
    slope = 1 if cap is None else 1 - (squashed / cap) ** 2
    return squashed / spec.temperature, slope / spec.temperature


@each_divergence
def test_statistics_and_gradient_match_float64(name):
    tokens, columns, rows = RAGGED
    spec = make_spec(
        DIVERGENCES[name], columns, temperature=0.7, student_cap=5.0, teacher_cap=4.0
    )
    arguments = make(tokens, columns)
    got = run(rows, spec, *arguments)
    # Logits up to 8 units large.
    check_against_float64(got, spec, *arguments, tolerance=32 * EPS)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"ragged"}))
def test_other_shapes_match_float64(shape):
    tokens, columns, rows = SHAPES[shape]
    for name in ("reverse_kl", "jsd_0.5"):
        spec = make_spec(DIVERGENCES[name], columns)
        arguments = make(tokens, columns)
        got = run(rows, spec, *arguments)
        check_against_float64(got, spec, *arguments, tolerance=64 * EPS)


def relative_errors(rows, name, columns, noise, offset=0.0):
    """Of value and gradient, from float64, for a teacher that is the student with noise."""
    rng = np.random.default_rng(0)
    student = np.float32(2 * rng.standard_normal((2, columns)) + offset)
    teacher = np.float32(student + noise * rng.standard_normal((2, columns)))
    spec = make_spec(DIVERGENCES[name], columns)
    cotangents = np.float32([[1, 1], [0, 0], [0, 0]])
    stats, grad = run(rows, spec, student, teacher, np.int32([0, 1]), cotangents)
    logp, teacher_logp = oracles.log_softmax(student), oracles.log_softmax(teacher)
    arguments = (logp, teacher_logp, spec.divergence.kind, spec.divergence.alpha)
    value = oracles.relative(stats.divergence, oracles.divergence(*arguments))
    return value, oracles.relative(grad, oracles.divergence_grad(*arguments))


@each_kind
def test_a_small_divergence_is_as_accurate_as_the_log_probs(name):
    # A KL of 1e-6: what `formulas` promises there, though put together from blocks.
    value, grad = relative_errors(RowKernels(block=256, interpret=True), name, 4096, 1.4e-3)
    assert value < 4e-5
    assert grad < 3e-4


@each_kind
def test_a_constant_added_to_all_logits_costs_only_their_own_rounding(name):
    # Logits near 1000 are 6e-5 apart, the noise is 0.1.
    value, grad = relative_errors(RowKernels(block=64, interpret=True), name, 512, 0.1, 1000.0)
    assert value < 1e-5
    assert grad < 1e-5


@each_kind
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    tokens, columns, rows = RAGGED
    student, _, targets, cotangents = make(tokens, columns)
    cotangents[1:] = 0
    spec = make_spec(DIVERGENCES[name], columns)
    stats, grad = run(rows, spec, student, student, targets, cotangents)
    np.testing.assert_array_equal(stats.divergence, 0)
    np.testing.assert_array_equal(grad, np.zeros_like(grad))
    np.testing.assert_array_equal(stats.logp, stats.teacher_logp)


@each_kind
def test_nan_stays_in_its_row(name):
    _, columns, rows = SHAPES["rows"]
    student, teacher, targets, cotangents = make(6, columns)
    targets[-2:] = 0
    spec = make_spec(DIVERGENCES[name], columns)
    clean = run(rows, spec, student, teacher, targets, cotangents)
    student[1, 20] = np.nan
    teacher[3, 30] = np.nan
    student[4, 0] = np.inf
    dirty = run(rows, spec, student, teacher, targets, cotangents)
    kept, lost = np.array([0, 2, 5]), np.array([1, 3, 4])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[kept], b[kept]), clean, dirty)
    stats, grad = dirty
    assert np.all(np.isnan(stats.divergence[lost]))
    assert np.all(np.isnan(grad[lost]))
    assert np.all(np.isnan(stats.logp[np.array([1, 4])]))
    assert np.isfinite(stats.logp[3]) and np.isnan(stats.teacher_logp[3])


@each_kind
def test_impossible_tokens_are_as_in_xla(name):
    tokens, columns, rows = RAGGED
    student, teacher, targets, cotangents = make(tokens, columns)
    student[0, :20] = teacher[0, :40] = -np.inf  # Whole blocks of both, one of the teacher.
    student[1, 3] = teacher[2, 3] = -np.inf
    teacher[3] = -np.inf  # No distribution.
    spec = make_spec(DIVERGENCES[name], columns)
    got = run(rows, spec, student, teacher, targets, cotangents)
    want = run(token_stats.token_statistics, spec, student, teacher, targets, cotangents)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=64 * EPS)


def token_loss(stats, aux):
    """Of every kind of aux, and with a derivative of NaN where all is zero."""
    gap = stats.logp - aux["old"]
    ratio = jnp.clip(jnp.exp(gap), 0.5, 2.0)
    first = stats.entropy if isinstance(stats, TokenLogprob) else stats.divergence
    signed = jnp.where(aux["flag"], -ratio, ratio) * first
    return signed + aux["count"] * stats.logp + jnp.sqrt(aux["old"] * stats.entropy)


def weighted(stats, aux, weights):
    def losses(stats, old):
        return token_loss(stats, aux | {"old": old})

    each, back = jax.vjp(losses, stats, aux["old"])
    to_stats, to_old = back(weights)
    return each, to_stats, [to_old]


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("none", "float32"),
        ("forward_kl", "bfloat16"),
        ("reverse_kl", "float32"),
        ("jsd_0.1", "bfloat16"),
    ],
)
def test_one_launch_gives_what_two_and_a_loss_between_give(name, dtype):
    tokens, columns, rows = SHAPES["rows"]
    student, teacher, targets, cotangents = make(tokens, columns)
    targets[:] = np.arange(tokens)
    valid = np.arange(tokens) < tokens - 1
    student, teacher = (np.where(valid[:, None], x, 0) for x in (student, teacher))
    weights = np.where(valid, cotangents[0], 0)
    aux = {"old": np.where(valid, np.abs(cotangents[1]), 0), "flag": np.arange(tokens) % 2 == 0}
    aux["count"] = np.arange(tokens, dtype=np.int32)
    spec = make_spec(DIVERGENCES[name], columns)
    teacher = None if spec.divergence is None else teacher
    assert rows.fuses(aux)

    @jax.jit
    def fused(*arrays):
        return rows.losses(weighted, *arrays, spec=spec, dtype=jnp.dtype(dtype))

    @jax.jit
    def apart(student, teacher, targets, weights, aux, valid):
        stats, pull = token_stats.token_statistics(student, teacher, targets, spec=spec)
        each, to_stats, to_aux = weighted(stats, aux, weights)
        to_stats = {k: jnp.where(valid, x, 0) for k, x in vars(to_stats).items()}
        grad = pull(to_stats.get("divergence"), to_stats["logp"], to_stats["entropy"])
        return stats, each, to_aux, grad

    arrays = (student, teacher, targets, weights, aux, valid)
    got, want = fused(*arrays), apart(*arrays)
    assert got[3].dtype == dtype
    assert np.isnan(got[2][0][-1])  # The derivative is NaN where no token is, as was asked for.
    np.testing.assert_array_equal(got[3][-1], 0)
    eps = EPS if dtype == "float32" else 2.0**-8
    for a, b in zip(jax.tree.leaves(got[:3]), jax.tree.leaves(want[:3]), strict=True):
        np.testing.assert_allclose(a, b, atol=64 * EPS, rtol=8 * EPS)
    np.testing.assert_allclose(np.float32(got[3]), want[3], atol=32 * EPS, rtol=eps)


def test_aux_of_more_dimensions_is_not_fused():
    rows = RowKernels()
    assert rows.fuses(None) and rows.fuses({"a": np.zeros(3), "b": np.zeros(3, bool)})
    assert not rows.fuses({"a": np.zeros(3), "b": np.zeros((3, 1))})


def operands_of(dtype, columns=19):
    """Student's hidden states and head, Operands, weights; two chunks of tokens and a bit."""
    rng = np.random.default_rng(1)
    hidden, teacher = (jnp.asarray(rng.standard_normal((2, 4, d)), dtype) for d in (6, 8))
    head, other = (jnp.asarray(rng.standard_normal((columns, d)), dtype) for d in (6, 8))
    mask = np.array([[1, 0, 1, 1], [1, 1, 1, 1]], bool)
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)
    targets = np.where(mask, rng.integers(0, columns, mask.shape), -100).astype(np.int32)
    operands = Operands(Hidden(teacher, other), jnp.asarray(targets), jnp.asarray(mask))
    return hidden, head, operands, jnp.float32(rng.standard_normal(mask.shape))


def wide_loss(stats, aux):
    return jnp.sum(aux["pair"], axis=-1) * stats.divergence + aux["one"] * stats.logp


def narrow_loss(stats, aux):
    return jnp.exp(aux["one"]) * stats.divergence * stats.logp


@pytest.mark.parametrize("name", ["none", "reverse_kl"])
def test_statistics_in_bfloat16_is_as_with_rows_of_xla(name):
    hidden, head, operands, weights = operands_of("bfloat16")
    spec = make_spec(DIVERGENCES[name], 19)
    if spec.divergence is None:
        operands = operands._replace(teacher=None)

    def both(rows):
        def loss(hidden, head):
            student = Hidden(hidden, head)
            stats = chunked.differentiable_statistics(spec, rows, student, operands)
            return sum(jnp.sum(weights * x) for x in jax.tree.leaves(stats)), stats

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)

    got = both(RowKernels(block=8, interpret=True))
    want = both(token_stats.token_statistics)
    check_bfloat16(got, want)
    assert {x.dtype for x in jax.tree.leaves(got[1])} == {jnp.dtype("float32")}


@pytest.mark.parametrize("loss", [narrow_loss, wide_loss])
def test_the_loss_in_bfloat16_is_as_with_rows_of_xla(loss):
    hidden, head, operands, weights = operands_of("bfloat16")
    spec = make_spec(DIVERGENCES["jsd_0.1"], 19)
    aux = {"one": jnp.abs(weights)}
    if loss is wide_loss:
        aux["pair"] = jnp.stack([weights, weights], axis=-1)

    def both(rows):
        def total(hidden, head, weights, aux):
            return chunked.loss_with_gradients(
                spec, rows, loss, Hidden(hidden, head), operands, weights, aux
            )

        run = jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(run)(hidden, head, weights, aux)

    got = both(RowKernels(block=8, rows=2, interpret=True))
    check_bfloat16(got, both(token_stats.token_statistics))


def test_without_targets_it_is_as_with_rows_of_xla():
    hidden, head, operands, weights = operands_of("float32")
    operands = operands._replace(targets=None)
    spec = make_spec(DIVERGENCES["reverse_kl"], 19)

    def total(rows):
        def statistics_alone(hidden, head):
            stats = chunked.differentiable_statistics(
                spec, rows, Hidden(hidden, head), operands
            )
            assert stats.logp is None and stats.teacher_logp is None
            return jnp.sum(weights * stats.divergence * stats.entropy)

        def loss(hidden, head):
            return chunked.loss_with_gradients(
                *(spec, rows, lambda stats, aux: aux * stats.divergence * stats.entropy),
                *(Hidden(hidden, head), operands, weights, weights),
            )[0]

        return [
            jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head)
            for f in (statistics_alone, loss)
        ]

    got = total(RowKernels(block=8, rows=2, interpret=True))
    for a, b in zip(
        jax.tree.leaves(got), jax.tree.leaves(total(token_stats.token_statistics)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def check_bfloat16(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        # Of sums that differ by float32's rounding, few are rounded to another bfloat16.
        eps = 2.0**-7 if a.dtype == jnp.bfloat16 else 32 * EPS
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps * np.max(np.abs(b)))


def test_tokens_split_over_a_mesh():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    _, columns, rows = RAGGED
    spec = make_spec(DIVERGENCES["reverse_kl"], columns)
    student, teacher, targets, cotangents = make(4, columns)
    local = functools.partial(run, rows, spec)
    by = PartitionSpec("data")
    # Interpreted, Pallas itself has no types for what varies over a mesh.
    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by, by, by, PartitionSpec(None, "data")),
        out_specs=by,
        check_vma=False,
    )
    arguments = (student, teacher, targets, cotangents)
    got, want = jax.jit(split)(*arguments), local(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=8 * EPS), got, want)


def test_float32_with_64_bits_enabled():
    tokens, columns, rows = RAGGED
    arguments = make(tokens, columns)
    spec = make_spec(DIVERGENCES["jsd_0.5"], columns)
    with jax.enable_x64(True):
        got = run(rows, spec, *arguments[:2], np.int64(arguments[2]), arguments[3])
    check_against_float64(got, spec, *arguments, tolerance=64 * EPS)


STORED = Stored(np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32))
LOGITS = np.zeros((1, 4), np.float32)


@pytest.mark.parametrize(
    "changes, teacher, part, message",
    [
        ({"support": "student"}, LOGITS, Part(), "support='student', .*whole vocabulary"),
        ({"support": "sampled"}, LOGITS, Part(), "support='sampled', .*whole vocabulary"),
        ({"support": "teacher", "top_k": 2}, STORED, Part(), "a Stored teacher, .*logits"),
        ({}, LOGITS, Part("model", 0), "split over the mesh axis 'model', .*whole rows"),
        ({}, LOGITS, Part(padded=True), "padded columns"),
        ({}, np.float64(LOGITS), Part(), "logits of float64, .*float32"),
    ],
)
def test_what_the_kernels_cannot_serve_is_named(changes, teacher, part, message):
    spec = make_spec(Divergence("reverse_kl", **changes), 4)
    student = LOGITS if isinstance(teacher, Stored) else teacher
    refused = f"implementation='pallas_gpu' cannot serve .*{message}.*implementation='chunked'"
    targets = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match=refused):
        RowKernels()(student, teacher, targets, spec=spec, part=part)
    weights, valid = np.ones(1, np.float32), np.ones(1, bool)
    with pytest.raises(ValueError, match=refused):
        RowKernels().losses(
            *(weighted, student, teacher, targets, weights, None, valid),
            spec=spec,
            part=part,
            dtype=jnp.dtype("float32"),
        )


def test_sizes_are_powers_of_two_and_settings_are_compared_by_value():
    with pytest.raises(ValueError, match="block must be a power of two, got 1000"):
        RowKernels(block=1000)
    assert hash(RowKernels(rows=2)) == hash(RowKernels(rows=2))
    assert RowKernels(rows=2) == RowKernels(rows=2) != RowKernels()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd_0.1"])
@pytest.mark.parametrize(
    "noise, most_value, most_grad", [(1.4e-3, 4e-5, 3e-4), (0.1, 5e-6, 1e-5)]
)
def test_a_whole_vocabulary_in_the_default_blocks(name, noise, most_value, most_grad):
    value, grad = relative_errors(RowKernels(interpret=True), name, 151_936, noise)
    assert value < most_value
    assert grad < most_grad
