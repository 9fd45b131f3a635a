"""Every implementation of `linear_divergence` against float64; masks, memory, messages."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax.kernels import Divergence, Hidden, dispatch, linear_divergence

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float64": 2.0**-52}
FIELDS = ("divergence", "logp", "teacher_logp", "entropy")
# The Pallas ones have files of their own: they run interpreted here.
XLA = ("reference", "chunked")
each_implementation = pytest.mark.parametrize("implementation", XLA)
each_kind = pytest.mark.parametrize(
    "kind, alpha", [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.25)]
)
# N, T, V, D, E, chunk_tokens. T is not a multiple of a chunk's 2 columns; the teacher is wider.
RAGGED = (2, 7, 11, 4, 6, 5)
ONE_TOKEN = (1, 1, 2, 3, 3, 1)
ONE_COLUMN = (3, 5, 33, 8, 5, 1)  # A chunk is never less than a column, three tokens here.
TEMPERATURE = 0.7  # One value, so that tests share compiled programs.


def make(shape, dtype="float32"):
    n, t, v, d, e, _ = shape
    rng = np.random.default_rng(v)
    models = (
        jnp.asarray(rng.standard_normal(s), dtype)
        for s in ((n, t, d), (v, d), (n, t, e), (v, e))
    )
    mask = rng.random((n, t)) < 0.7
    mask[0, 0] = True
    targets = np.int32(rng.integers(0, v, (n, t)))
    # float32 weights of the four outputs in the scalar that is differentiated.
    weights = rng.standard_normal((4, n, t)).astype(np.float32)
    return *models, targets, mask, weights


def outputs(hidden, head, teacher_hidden, teacher_head):
    return Hidden(hidden, head), Hidden(teacher_hidden, teacher_head)


@jax.jit(static_argnames=("kind", "alpha", "temperature", "chunk_tokens", "implementation"))
def run(*arguments, kind="jsd", alpha=None, **options):
    """The record, and the gradients of the weighted sum of its fields to the four arrays."""
    *models, targets, mask, weights = arguments
    options["divergence"] = Divergence(kind, alpha)

    def loss(*models):
        out = linear_divergence(*outputs(*models), targets, mask, **options)
        fields = [getattr(out, name) for name in FIELDS]
        return sum(jnp.sum(w * x) for w, x in zip(weights, fields, strict=True)), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*models)
    return out, grads


def check_against_float64(shape, dtype, implementation, kind, alpha, temperature):
    arguments = make(shape, dtype)
    out, grads = run(
        *arguments,
        kind=kind,
        alpha=alpha,
        temperature=temperature,
        chunk_tokens=shape[-1],
        implementation=implementation,
    )
    hidden, head, teacher_hidden, teacher_head, targets, mask, weights = arguments
    student = oracles.linear_logp(hidden, head, temperature)
    teacher = oracles.linear_logp(teacher_hidden, teacher_head, temperature)
    eps = EPS[str(out.logp.dtype)]
    bound = oracles.logp_error(hidden, head, temperature, eps)
    bound += oracles.logp_error(teacher_hidden, teacher_head, temperature, eps)
    # A log-prob's slope is p log(p/q), p - q, or less: over the vocabulary no more than this.
    slope = 2 + np.max(np.abs(student - teacher))
    wanted = {
        "divergence": (oracles.divergence(student, teacher, kind, alpha), slope),
        "logp": (np.take_along_axis(student, targets[..., None], axis=-1)[..., 0], 1),
        "teacher_logp": (np.take_along_axis(teacher, targets[..., None], axis=-1)[..., 0], 1),
        "entropy": (oracles.entropy(student), 1 + np.log(student.shape[-1])),
    }
    for name, (want, scale) in wanted.items():
        got, want = getattr(out, name), np.where(mask, want, 0)
        np.testing.assert_allclose(got, want, rtol=0, atol=bound * scale, err_msg=name)
    weights = np.where(mask, weights, 0)[..., None]
    logits_grad = weights[0] * oracles.divergence_grad(student, teacher, kind, alpha)
    logits_grad += weights[1] * oracles.logp_grad(student, targets)
    logits_grad += weights[3] * oracles.entropy_grad(student)
    wanted = oracles.linear_grads(logits_grad, hidden, head, temperature)
    for got, want, operand in zip(grads, wanted, (hidden, head), strict=False):
        assert got.dtype == operand.dtype
        # The statistics' rounding, and that of the result to the operand's dtype.
        assert oracles.relative(got, want) <= slope * bound + EPS[dtype]
    for got in grads[2:]:  # The teacher is constant.
        np.testing.assert_array_equal(got, np.zeros(got.shape))
    return out


@each_implementation
@each_kind
def test_values_and_gradients_match_float64(kind, alpha, implementation):
    check_against_float64(RAGGED, "float32", implementation, kind, alpha, TEMPERATURE)


@each_implementation
@pytest.mark.parametrize("shape", [ONE_TOKEN, ONE_COLUMN])
def test_other_shapes_match_float64(shape, implementation):
    check_against_float64(shape, "float32", implementation, "jsd", 0.9, 1.0)


@each_implementation
def test_bfloat16_operands_give_float32_statistics(implementation):
    out = check_against_float64(RAGGED, "bfloat16", implementation, "jsd", 0.5, 1.0)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}


@each_implementation
def test_float64_operands_are_not_rounded_to_float32(implementation):
    with jax.enable_x64(True):
        out = check_against_float64(RAGGED, "float64", implementation, "jsd", 0.1, 1.3)
    assert {str(x.dtype) for x in jax.tree.leaves(out)} == {"float64"}


@each_implementation
@each_kind
@pytest.mark.parametrize("filling", [np.nan, np.inf])
def test_what_is_masked_leaks_nowhere(implementation, kind, alpha, filling):
    hidden, head, teacher_hidden, teacher_head, targets, mask, weights = make(RAGGED)
    options = {"kind": kind, "alpha": alpha, "implementation": implementation}
    options |= {"temperature": TEMPERATURE, "chunk_tokens": RAGGED[-1]}
    fixed = (mask, weights)
    clean = run(hidden, head, teacher_hidden, teacher_head, targets, *fixed, **options)
    hidden = jnp.where(mask[..., None], hidden, filling)
    teacher_hidden = jnp.where(mask[..., None], teacher_hidden, filling)
    targets = np.where(mask, targets, -100)
    dirty = run(hidden, head, teacher_hidden, teacher_head, targets, *fixed, **options)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    for field in jax.tree.leaves(dirty[0]):
        assert np.all(field[~mask] == 0)
    assert np.all(dirty[1][0][~mask] == 0)


@each_implementation
@each_kind
def test_all_masked_is_all_zero(implementation, kind, alpha):
    hidden, head, teacher_hidden, teacher_head, targets, mask, weights = make(RAGGED)
    hidden = jnp.full_like(hidden, jnp.nan)
    out = run(
        *(hidden, head, teacher_hidden, teacher_head, targets, np.zeros_like(mask), weights),
        kind=kind,
        alpha=alpha,
        temperature=TEMPERATURE,
        chunk_tokens=RAGGED[-1],
        implementation=implementation,
    )
    for leaf in jax.tree.leaves(out):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@each_implementation
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(implementation):
    hidden, head, _, _, targets, mask, weights = make(RAGGED)
    weights = weights * np.float32([1, 0, 0, 0])[:, None, None]
    out, grads = run(
        *(hidden, head, hidden, head, targets, mask, weights),
        kind="jsd",
        alpha=0.25,
        chunk_tokens=RAGGED[-1],
        implementation=implementation,
    )
    for leaf in (out.divergence, *grads):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    np.testing.assert_array_equal(out.logp, out.teacher_logp)


@pytest.mark.parametrize("chunk_tokens", [1, 6, 1000])
def test_the_mean_and_its_gradient_do_not_depend_on_the_chunk(chunk_tokens):
    *models, targets, mask, weights = make(RAGGED)
    weights = np.ones_like(weights) / mask.sum()
    want = run(*models, targets, mask, weights, implementation="reference")
    got = run(*models, targets, mask, weights, chunk_tokens=chunk_tokens)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # The order of at most N T = 14 terms changes, and XLA's choice of instructions.
        np.testing.assert_allclose(a, b, rtol=16 * EPS["float32"], atol=16 * EPS["float32"])


def test_none_means_alpha_one_half_and_the_chunked_implementation():
    *models, targets, mask, _ = make(RAGGED)
    arrays = (*outputs(*models), targets, mask)
    half = Divergence("jsd", alpha=0.5)
    want = linear_divergence(*arrays, divergence=half, implementation="chunked")
    jax.tree.map(np.testing.assert_array_equal, linear_divergence(*arrays), want)
    assert {dispatch.resolve(None, p) for p in ("cpu", "gpu", "tpu")} == {"chunked"}
    assert dispatch.resolve("reference", "tpu") == "reference"


def lowered(implementation):
    """value_and_grad at [N=2, T=64, V=512, D=32] in bf16, in chunks of 8 columns."""
    *models, targets, mask, _ = make((2, 64, 512, 32, 32, 16), "bfloat16")

    def loss(hidden, head):
        options = {"chunk_tokens": 16, "implementation": implementation}
        pair = outputs(hidden, head, *models[2:])
        out = linear_divergence(*pair, targets, mask, **options)
        return jnp.sum(out.divergence) + jnp.sum(out.logp)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*models[:2])


def largest_buffer(text):
    """Elements of the largest array named in the text of a compiled program."""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[(\d[\d,]*)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_no_logits_of_all_tokens_exist_in_either_direction():
    text = lowered("chunked").compile().as_text()
    assert "f32[2,64,512]" not in text
    # Nor under another shape or dtype: the largest is the head, a quarter of them.
    assert largest_buffer(text) == 512 * 32
    assert largest_buffer(lowered("reference").compile().as_text()) >= 2 * 64 * 512


@each_implementation
def test_products_with_the_head_result_in_float32(implementation):
    # As traced: compiled for a CPU, bf16 products may be rewritten.
    text = lowered(implementation).as_text()
    products = re.findall(r"dot_general.*: \((.*), (.*)\) -> tensor<(.*)>", text)
    assert len(products) >= 4  # Two forward, two backward, and those computed again.
    assert all(result.endswith("xf32") for *_, result in products)
    forward = [p for p in products if p[2].endswith("x512xf32")]
    assert forward and all("bf16" in a and "bf16" in b for a, b, _ in forward)


DIVERGENCE = ("kind", "alpha", "clip", "support", "top_k")


def replaced(**changes):
    hidden, head, teacher_hidden, teacher_head, targets, mask, _ = make((2, 3, 5, 4, 6, 1))
    arrays = {"hidden": hidden, "head": head}
    arrays |= {"teacher_hidden": teacher_hidden, "teacher_head": teacher_head}
    changed = {name: changes.pop(name, x) for name, x in arrays.items()}
    if fields := {k: changes.pop(k) for k in DIVERGENCE if k in changes}:
        changes["divergence"] = Divergence(**fields)
    student, teacher = outputs(*changed.values())
    arguments = {"student": student, "teacher": teacher, "targets": targets, "mask": mask}
    return linear_divergence(**(arguments | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"teacher_head": np.ones((7, 6), np.float32)},
            "student.head has V=5, teacher.head has V=7: .*one vocabulary.*pass vocab_size",
        ),
        ({"head": np.ones((5, 9), np.float32)}, r"student.head: D=9 in \(5, 9\)"),
        ({"teacher_hidden": np.ones((2, 4, 6), np.float32)}, r"teacher.states: T=4"),
        ({"mask": np.ones((2,), bool)}, r"mask: expected \[N T\], got shape \(2,\)"),
        ({"teacher_head": np.ones((5, 6), np.int32)}, "teacher.head: expected a floating"),
        ({"targets": np.ones((2, 3), np.float32)}, "targets: expected an integer dtype"),
        ({"mask": np.ones((2, 3), np.int32)}, "mask: expected bool, got int32"),
        ({"kind": "kl"}, "'kl' is not one of .*'forward_kl', 'reverse_kl', 'jsd'"),
        ({"alpha": True}, "alpha=True is a bool"),
        ({"clip": True}, "clip=True is a bool"),
        ({"support": "student", "top_k": True}, "an int, got True"),
        ({"alpha": -0.5}, "0 <= alpha <= 1.*got -0.5; 0 is forward_kl and 1 is reverse_kl"),
        ({"kind": "forward_kl", "alpha": 0.5}, "alpha=0.5 does not apply to forward_kl"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1.0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
        ({"implementation": "fast"}, "'fast' is not one of .*'reference', 'chunked'"),
        ({"implementation": "pallas_tpu"}, "for a TPU, and the backend here is .cpu'.*Blocks"),
        (
            {"implementation": "pallas_gpu"},
            "for a GPU, and the backend here is .cpu'.*RowKernels",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replaced(**changes)


@pytest.mark.parametrize(
    "platform, vocab, tokens, chunk",
    [
        ("cpu", 49152, 2048, 256),
        ("cpu", 151936, 1024, 128),  # An eighth.
        ("cpu", 151936, 65536, 256),
        ("cpu", 97, 1280, 8192),  # A small vocabulary: all at once.
        ("tpu", 151936, 65536, 1024),
        ("gpu", 151936, 4096, 512),
    ],
)
def test_default_chunks(platform, vocab, tokens, chunk):
    assert dispatch.default_chunk_tokens(platform, vocab, tokens) == chunk
