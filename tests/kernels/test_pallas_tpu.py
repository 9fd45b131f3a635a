"""The TPU kernels, interpreted: against float64, the reference, and what must not leak."""

from __future__ import annotations

import importlib
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from mopd_jax import kernels
from mopd_jax.kernels import Blocks, Divergence, HeadSharding, Hidden, Logits, Stored
from mopd_jax.kernels.linear_divergence import pallas_tpu_kernels, tuning

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-8}
KINDS = {
    "logprob": (None, None),
    "forward_kl": ("forward_kl", None),
    "reverse_kl": ("reverse_kl", None),
    "jsd": ("jsd", 0.1),
}
each_kind = pytest.mark.parametrize("name", KINDS)
SLOW = pytest.mark.slow
# The head's blocks are others, so that the two kinds of grid cannot be mistaken for each other.
BLOCKS = Blocks(8, 16, 32, 2**24, interpret=True)
# N, T, V, D, E: 27 tokens are 4 blocks, of which about half are valid; V is not a multiple.
RAGGED = (3, 9, 37, 8, 8)
# One value of each, so that tests share compiled programs.
TEMPERATURE = 0.7
OPTIONS = {
    "kind": None,
    "alpha": None,
    "temperature": TEMPERATURE,
    "soft_caps": (None, None),
    "vocab_size": None,
    "sharding": None,
    "implementation": BLOCKS,
}


def make(shape, dtype="float32"):
    n, t, v, d, e = shape
    rng = np.random.default_rng(v)
    models = (
        jnp.asarray(rng.standard_normal(s), dtype)
        for s in ((n, t, d), (v, d), (n, t, e), (v, e))
    )
    mask = rng.random((n, t)) < 0.4
    mask[0, 0] = True
    targets = np.int32(rng.integers(0, v, (n, t)))
    # float32 weights of the four outputs in the scalar that is differentiated.
    weights = rng.standard_normal((4, n, t)).astype(np.float32)
    return *models, targets, mask, weights


def run(*arguments, **options):
    """The record, and the gradients of the weighted sum of its fields to the student."""
    return compiled(*arguments, **(OPTIONS | options))


@jax.jit(static_argnames=tuple(OPTIONS))
def compiled(*arguments, kind, alpha, soft_caps, **options):
    *models, targets, mask, weights = arguments

    def loss(hidden, head):
        student = Hidden(hidden, head, soft_caps[0])
        if kind is None:
            out = kernels.linear_logprob(student, targets, mask, **options)
        else:
            teacher = Hidden(*models[2:], soft_caps[1])
            out = kernels.linear_divergence(
                *(student, teacher, targets, mask),
                divergence=Divergence(kind, alpha),
                **options,
            )
        fields = jax.tree.leaves(out)
        return sum(jnp.sum(w * x) for w, x in zip(weights, fields, strict=False)), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(*models[:2])
    return out, grads


def check_against_float64(shape, kind, alpha, *, dtype="float32", **options):
    hidden, head, other, other_head, targets, mask, weights = arguments = make(shape, dtype)
    out, grads = run(*arguments, kind=kind, alpha=alpha, **options)
    temperature = options.get("temperature", TEMPERATURE)
    student = oracles.linear_logp(hidden, head, temperature)
    teacher = oracles.linear_logp(other, other_head, temperature)
    eps = EPS["float32"]
    bound = oracles.logp_error(hidden, head, temperature, eps)
    bound += oracles.logp_error(other, other_head, temperature, eps)
    # A log-prob's slope is p log(p/q), p - q, or less: over the vocabulary no more than this.
    slope = 2 + np.max(np.abs(student - teacher))
    entropy_slope = 1 + np.log(student.shape[-1])
    wanted = [
        (np.take_along_axis(student, targets[..., None], axis=-1)[..., 0], 1),
        (oracles.entropy(student), entropy_slope),
    ]
    logits_grads = [oracles.logp_grad(student, targets), oracles.entropy_grad(student)]
    if kind is not None:
        value = oracles.divergence(student, teacher, kind, alpha)
        teacher_at_target = np.take_along_axis(teacher, targets[..., None], axis=-1)[..., 0]
        wanted = [(value, slope), wanted[0], (teacher_at_target, 1), wanted[1]]
        grad = oracles.divergence_grad(student, teacher, kind, alpha)
        logits_grads = [grad, logits_grads[0], 0 * grad, logits_grads[1]]
    for got, (want, scale) in zip(jax.tree.leaves(out), wanted, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, np.where(mask, want, 0), rtol=0, atol=bound * scale)
        np.testing.assert_array_equal(got[~mask], 0)
    weights = np.where(mask, weights, 0)[..., None]
    total = sum(w * g for w, g in zip(weights, logits_grads, strict=False))
    wanted = oracles.linear_grads(total, hidden, head, temperature)
    for got, want, operand in zip(grads, wanted, (hidden, head), strict=True):
        assert got.dtype == operand.dtype
        # The statistics' rounding; that of the result to the operand's dtype, and in bfloat16
        # that of the logits' gradient before it.
        assert oracles.relative(got, want) <= slope * bound + 2 * EPS[dtype]
    np.testing.assert_array_equal(grads[0][~mask], 0)


@pytest.mark.parametrize(
    "kind, alpha",
    [
        (None, None),
        ("forward_kl", None),
        ("reverse_kl", None),
        ("jsd", 0.1),
        pytest.param("jsd", 0.5, marks=SLOW),
        ("jsd", 0.9),
    ],
)
def test_values_and_gradients_match_float64(kind, alpha):
    check_against_float64(RAGGED, kind, alpha)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 37, 3, 3),  # One token.
        (2, 8, 5, 4, 6),  # A vocabulary smaller than a block.
        (2, 8, 64, 4, 6),  # A multiple of both blocks.
    ],
)
def test_other_shapes_match_float64(shape):
    check_against_float64(shape, "jsd", 0.5, temperature=1.0)


@pytest.mark.parametrize("name", ["logprob", "jsd"])
def test_bfloat16_operands_give_float32_statistics(name):
    check_against_float64((3, 9, 37, 8, 6), *KINDS[name], dtype="bfloat16", temperature=1.0)


@SLOW
@pytest.mark.parametrize("seed", range(24))
def test_any_shape_and_blocks_match_float64(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.integers(1, most)) for most in (5, 12, 90, 12, 12))
    sizes = (int(2 ** rng.integers(0, 5)) for _ in range(3))
    kind, alpha = list(KINDS.values())[seed % 4]
    alpha = None if alpha is None else float(rng.choice([0.1, 0.5, 0.9]))
    blocks = Blocks(*sizes, 2**24, interpret=True)
    dtype = "bfloat16" if rng.random() < 0.3 else "float32"
    check_against_float64(shape, kind, alpha, dtype=dtype, implementation=blocks)


def assert_close(got, want, factor=64):
    """Equal but for the order of sums, and XLA's choice of instructions."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        bound = factor * EPS["float32"] * (1 + np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["logprob", "jsd"])
def test_soft_caps_match_the_reference(name):
    kind, alpha = KINDS[name]
    options = {"kind": kind, "alpha": alpha, "soft_caps": (3.0, 5.0)}
    got = run(*make(RAGGED), **options)
    assert_close(got, run(*make(RAGGED), **options, implementation="reference"))


@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_any_mask_matches_the_reference(name):
    *models, targets, mask, weights = make(RAGGED)
    flat = np.arange(mask.size).reshape(mask.shape)
    kind, alpha = KINDS[name]
    options = {"kind": kind, "alpha": alpha}
    masks = [flat >= 0, flat < 8, flat >= 8, flat % 2 == 0, flat == 26, flat // 8 == 1]
    for mask in masks:
        got = run(*models, targets, mask, weights, **options)
        want = run(*models, targets, mask, weights, **options, implementation="reference")
        assert_close(got, want)
        for leaf in (*jax.tree.leaves(got[0]), got[1][0]):
            np.testing.assert_array_equal(leaf[~mask], 0)


@each_kind
def test_all_masked_is_all_zero(name):
    kind, alpha = KINDS[name]
    hidden, *models, targets, mask, weights = make(RAGGED)
    hidden = jnp.full_like(hidden, jnp.nan)
    arguments = (hidden, *models, targets, np.zeros_like(mask), weights)
    out = run(*arguments, kind=kind, alpha=alpha)
    for leaf in jax.tree.leaves(out):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


@pytest.mark.parametrize(
    "name", ["logprob", pytest.param("forward_kl", marks=SLOW), "reverse_kl", "jsd"]
)
def test_neither_masked_rows_nor_padding_of_the_vocabulary_leak(name):
    kind, alpha = KINDS[name]
    hidden, head, other, other_head, targets, mask, weights = make(RAGGED)
    real = 33  # One column of the last block of the sweeps, and of the head's.
    options = {"kind": kind, "alpha": alpha, "soft_caps": (4.0, 4.0), "vocab_size": real}
    targets = targets % real
    clean = run(hidden, head, other, other_head, targets, mask, weights, **options)
    for filling in (np.nan, np.inf):
        dirty = run(
            jnp.where(mask[..., None], hidden, filling),
            head.at[real:].set(filling),
            jnp.where(mask[..., None], other, filling),
            other_head.at[real:].set(filling),
            np.where(mask, targets, -100),
            *(mask, weights),
            **options,
        )
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    np.testing.assert_array_equal(clean[1][1][real:], 0)


@pytest.mark.parametrize("rows, teacher_rows", [(37, 35), pytest.param(33, 33, marks=SLOW)])
def test_how_the_vocabulary_is_padded_does_not_matter(rows, teacher_rows):
    hidden, head, other, other_head, targets, mask, weights = make(RAGGED)
    real = 33
    options = {"kind": "jsd", "alpha": 0.1, "soft_caps": (4.0, 4.0), "vocab_size": real}
    rest = (targets % real, mask, weights)
    out, (to_hidden, to_head) = run(hidden, head, other, other_head, *rest, **options)
    got = run(hidden, head[:rows], other, other_head[:teacher_rows], *rest, **options)
    assert_close(got, (out, (to_hidden, to_head[:rows])))


@pytest.mark.parametrize("target", [-1, 33, 36, 47, 10**6])
def test_a_target_that_does_not_exist_is_nan_and_harms_no_other(target):
    *models, targets, mask, weights = make(RAGGED)
    # 33 is a padding row of the head; 37 to 47 the part of the last block beyond its rows.
    targets = targets % 33
    options = {"kind": "jsd", "alpha": 0.1, "soft_caps": (4.0, 4.0), "vocab_size": 33}
    weights = weights * np.float32([1, 0, 0, 1])[:, None, None]
    want = run(*models, targets, mask, weights, **options)
    targets[0, 0] = target
    got, grads = run(*models, targets, mask, weights, **options)
    assert np.isnan(got.logp[0, 0]) and np.isnan(got.teacher_logp[0, 0])
    for values, clean in zip(jax.tree.leaves(got), jax.tree.leaves(want[0]), strict=True):
        np.testing.assert_array_equal(values.ravel()[1:], clean.ravel()[1:])
    np.testing.assert_array_equal(got.divergence, want[0].divergence)
    jax.tree.map(np.testing.assert_array_equal, grads, want[1])


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(name):
    kind, alpha = KINDS[name]
    hidden, head, _, _, targets, mask, weights = make(RAGGED)
    weights = weights * np.float32([1, 0, 0, 0])[:, None, None]
    out, grads = run(hidden, head, hidden, head, targets, mask, weights, kind=kind, alpha=alpha)
    for leaf in (out.divergence, *grads):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    np.testing.assert_array_equal(out.logp, out.teacher_logp)


@pytest.mark.parametrize(
    "kind, alpha",
    [
        ("forward_kl", None),
        ("reverse_kl", None),
        ("jsd", 0.1),
        pytest.param("jsd", 0.5, marks=SLOW),
        pytest.param("jsd", 0.9, marks=SLOW),
    ],
)
def test_a_divergence_of_one_millionth_is_exact(kind, alpha):
    rng = np.random.default_rng(0)
    vocab, tokens = 500, 8
    # A head of unit vectors makes the hidden states the logits, with nothing rounded.
    head = jnp.eye(vocab)
    student = 3 * rng.standard_normal((tokens, vocab)).astype(np.float32)
    student += np.float32(20)
    teacher = student + 1.4e-3 * rng.standard_normal(student.shape).astype(np.float32)
    weights = np.zeros((4, tokens), np.float32)
    weights[0] = 1
    arguments = (student, head, teacher, head, np.zeros(tokens, np.int32))
    out, (grad, _) = run(
        *arguments,
        *(np.ones(tokens, bool), weights),
        kind=kind,
        alpha=alpha,
        temperature=1.0,
        implementation=Blocks(8, 16, 128, 2**24, interpret=True),
    )
    logps = oracles.log_softmax(student), oracles.log_softmax(teacher)
    want = oracles.divergence(*logps, kind, alpha)
    assert 1e-8 < want.min() < want.max() < 3e-6
    assert oracles.relative(out.divergence, want) < 3e-4
    assert oracles.relative(grad, oracles.divergence_grad(*logps, kind, alpha)) < 1e-3


def test_large_logits_stay_finite():
    hidden, head, other, other_head, targets, mask, weights = make(RAGGED)
    for name in ("reverse_kl", "jsd"):
        kind, alpha = KINDS[name]
        options = {"kind": kind, "alpha": alpha}
        arguments = (300 * hidden, head, -300 * other, other_head, targets, mask, weights)
        got = run(*arguments, **options)
        want = run(*arguments, **options, implementation="reference")
        # Rounding of the logits, which their difference does not lose.
        size = 300 * np.max(np.abs(hidden @ head.T)) / TEMPERATURE
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            bound = 8 * EPS["float32"] * size * (1 + np.max(np.abs(b)))
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def test_the_loss_from_the_kernels_is_that_of_chunks():
    hidden, head, other, other_head, targets, mask, weights = make(RAGGED)
    rest = (Hidden(other, other_head), targets, mask, weights[0], weights[1])

    def token_loss(stats, sampled):
        ratio = jax.lax.stop_gradient(jnp.exp(stats.logp - sampled))
        return jnp.minimum(ratio, 2.0) * stats.divergence + stats.entropy**2

    def loss(implementation):
        return jax.jit(
            jax.value_and_grad(
                lambda hidden, head: kernels.linear_divergence_loss(
                    *(token_loss, Hidden(hidden, head), *rest),
                    divergence=Divergence("reverse_kl"),
                    chunk_tokens=8,
                    implementation=implementation,
                ),
                argnums=(0, 1),
                has_aux=True,
            )
        )(hidden, head)

    assert_close(loss(BLOCKS), loss("chunked"))


def test_without_targets_the_rest_is_the_same():
    hidden, head, other, other_head, targets, mask, weights = make(RAGGED)
    teacher, of = Hidden(other, other_head), Divergence("reverse_kl")

    def run(targets):
        def loss(student):
            stats = kernels.linear_divergence(
                *(student, teacher, targets, mask), divergence=of, implementation=BLOCKS
            )
            return jnp.sum(weights[0] * stats.divergence + weights[1] * stats.entropy), stats

        return jax.jit(jax.grad(loss, has_aux=True))(Hidden(hidden, head))

    (want, stats), (got, same) = run(targets), run(None)
    assert same.logp is None and same.teacher_logp is None
    np.testing.assert_array_equal(same.divergence, stats.divergence)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_mesh_does_not_matter(name, shape, embed):
    n, t, v, tokens = 8, 5, 24, 21
    hidden, head, other, other_head, targets, mask, weights = make((n, t, v, 8, 4))
    # Lengths differ, one is 0: devices have different numbers of live blocks.
    mask = np.arange(t) < np.int32([5, 1, 0, 2, 5, 5, 1, 3])[:, None]
    head, other_head = head.at[tokens:].set(np.nan), other_head.at[tokens:].set(np.inf)
    hidden = jnp.where(mask[..., None], hidden, np.nan)
    targets = targets % tokens
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3)
    kind, alpha = KINDS[name]
    options = {"kind": kind, "alpha": alpha, "vocab_size": tokens}
    # Blocks beyond a device's rows, whose padding the ids of the next device's targets hit.
    options["implementation"] = Blocks(4, 8, 16, 2**24, interpret=True)
    arguments = (hidden, head, other, other_head, targets, mask, weights)
    want = run(*arguments, **options)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(want))
    sharding = HeadSharding(("data", "fsdp"), "tensor", embed, mesh)
    assert_close(run(*arguments, **options, sharding=sharding), want)


def test_a_mesh_does_not_matter():
    assert_mesh_does_not_matter("jsd", (2, 2, 2), "fsdp")


@SLOW
@each_kind
@pytest.mark.parametrize(
    # In the second a device's whole share of the vocabulary is padding.
    "shape, embed",
    [((2, 2, 2), "fsdp"), ((1, 1, 8), None), ((4, 2, 1), "fsdp")],
)
def test_no_mesh_matters(name, shape, embed):
    assert_mesh_does_not_matter(name, shape, embed)


def run_simulated(name, shape, **settings):
    """With memory, transfers and their order simulated as on the chip."""
    kind, alpha = KINDS[name]
    interpret = pltpu.InterpretParams(uninitialized_memory="nan", **settings)
    blocks = Blocks(8, 16, 32, 2**24, interpret=interpret)
    options = {"kind": kind, "alpha": alpha}
    got = run(*make(shape), **options, implementation=blocks)
    assert_close(got, run(*make(shape), **options, implementation="reference"))


def test_memory_that_nobody_wrote_is_not_read():
    run_simulated("jsd", (3, 9, 37, 4, 4))


@SLOW
@pytest.mark.parametrize("name", ["logprob", "forward_kl", "reverse_kl"])
@pytest.mark.parametrize("shape", [(3, 9, 37, 4, 4), (1, 1, 5, 4, 4), (2, 8, 32, 4, 4)])
def test_memory_that_nobody_wrote_is_not_read_elsewhere(name, shape):
    run_simulated(name, shape)


@SLOW
@pytest.mark.parametrize("name", ["reverse_kl", "jsd"])
def test_nothing_races(name):
    try:
        # Not public: where jax moves it, nobody tells whether a race was found.
        module = importlib.import_module(
            "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
        )
        _ = module.races
    except (ImportError, AttributeError):
        pytest.skip("this jax keeps what its race detector found elsewhere")
    run_simulated(name, (3, 9, 37, 4, 4), detect_races=True)
    assert module.races is not None and not module.races.races_found


@pytest.mark.parametrize("blocks", range(1, 8))
def test_every_block_has_its_step(blocks):
    steps = [int(pallas_tpu_kernels.place(i, blocks)) for i in range(blocks)]
    assert sorted(steps) == list(range(blocks))


def call(dtype="float32", implementation=BLOCKS, **options):
    *models, targets, mask, _ = make(RAGGED, dtype)
    arguments = {"student": Hidden(*models[:2]), "teacher": Hidden(*models[2:])}
    arguments |= {"targets": targets, "mask": mask, "implementation": implementation}
    return kernels.linear_divergence(**(arguments | options))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"divergence": Divergence("reverse_kl", support="sampled")},
            "support='sampled', only 'full'; use",
        ),
        (
            {"divergence": Divergence(support="student", top_k=3)},
            "support='student', only 'full'; use implementation='chunked'",
        ),
        ({"student": Logits(np.ones((3, 9, 37)))}, "a student given as Logits, only Hidden"),
        ({"teacher": Logits(np.ones((3, 9, 37)))}, "a teacher given as Logits, only Hidden"),
        ({"implementation": Blocks(8, 128, 128, 2**24)}, r"blocks of \(8, 128, 128\); choose"),
    ],
)
def test_what_the_kernels_cannot_compute_is_named(options, message):
    with pytest.raises(ValueError, match="implementation='pallas_tpu' cannot serve " + message):
        call(**options)


def test_operands_of_float32_are_served_where_float64_is_allowed():
    with jax.enable_x64(True):
        out, grads = run(*make(RAGGED), kind="reverse_kl")
    assert {x.dtype for x in jax.tree.leaves((out, grads))} == {jnp.dtype("float32")}
    assert_close((out, grads), run(*make(RAGGED), kind="reverse_kl"))


def test_float64_is_refused():
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match="student.states of dtype float64"),
    ):
        call("float64")


def test_a_teacher_of_stored_logps_is_refused():
    hidden, head, *_, targets, mask, weights = make(RAGGED)
    ids = np.zeros((*mask.shape, 1), np.int32)
    stored = Stored(jnp.asarray(ids), jnp.zeros(ids.shape))
    with pytest.raises(ValueError, match="cannot serve a teacher given as Stored"):
        kernels.linear_divergence_loss(
            lambda stats, aux: stats.divergence,
            *(Hidden(hidden, head), stored, targets, mask, weights[0]),
            divergence=Divergence("forward_kl"),
            implementation=BLOCKS,
        )


def test_inside_a_checking_shard_map_it_is_refused():
    hidden, head, *_, targets, mask, _ = make((2, 8, 5, 4, 6))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def local(hidden, head, targets, mask):
        return kernels.linear_logprob(
            Hidden(hidden, head), targets, mask, implementation=BLOCKS
        )

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(data, whole, data, data), out_specs=data)
    with pytest.raises(ValueError, match=r"differs over \['data'\].*check_vma=False"):
        mapped(hidden, head, targets, mask)


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_blocks_shrink_as_heads_widen(kind):
    sizes = []
    for width in (1024, 2560, 4096, 5120, 8192):
        blocks = tuning.blocks(kind, width, width, 2)
        sizes.append((blocks.tokens, blocks.vocab, blocks.head_vocab))
        assert all(size % 128 == 0 for size in sizes[-1])
    assert all(
        a >= b for one, wider in pairwise(sizes) for a, b in zip(one, wider, strict=True)
    )
    assert tuning.blocks(kind, 2560, 0, 2).tokens >= tuning.blocks(kind, 2560, 2560, 4).tokens
    with pytest.raises(ValueError, match=f"width 65536 and 4096 at 2 bytes.*{kind!r}"):
        tuning.blocks(kind, 65536, 4096, 2)


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v3", "TPU v4 lite"])
def test_old_chips_are_refused(kind):
    with pytest.raises(ValueError, match=f"cannot serve {kind!r}.*implementation='chunked'"):
        tuning.blocks(kind, 1024, 1024, 2)


def test_an_unknown_chip_is_an_error():
    with pytest.raises(ValueError, match="no block sizes for 'TPU v9'.*kernels.Blocks"):
        tuning.blocks("TPU v9", 1024, 1024, 2)
