"""Compiled for TPUs that are not here: that the kernels fit, and what memory the programs take.

Needs libtpu (`pip install 'jax[tpu]'`), which compiles for a chip by its name alone.
Interpreted kernels know neither tiling nor the size of VMEM nor what Mosaic can lower; here all
of that is checked, and nothing is run.
"""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wants
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mopd_jax import kernels
from mopd_jax.kernels import Divergence, HeadSharding, Hidden, model_shapes
from mopd_jax.kernels.linear_divergence import tuning

wants.importing("libtpu", "the TPU compiler")
pytestmark = pytest.mark.slow

# A bf16 head without and with a teacher of the same size.
TOKENS, (WIDTH, VOCAB) = 4096, model_shapes.SHAPES["Qwen3-4B"]
TOPOLOGIES = {
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
CALLS = {"jsd": 4, "reverse_kl": 3, None: 3}
OFTEN = {("v5e", "reverse_kl"), ("tpu7x", None)}  # The rest of the grid takes minutes.
GRID = [
    pytest.param(chip, kind, calls, marks=() if (chip, kind) in OFTEN else pytest.mark.long)
    for chip in TOPOLOGIES
    for kind, calls in CALLS.items()
]
COLLECTIVES = ("all-gather", "reduce-scatter")
MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """What the compiler would else ask a TPU host, or lock against others of its kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        patch.setenv("TPU_WORKER_ID", "0")
        patch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        yield


@functools.cache
def devices(chip):
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices


def compiled(step, chip, tokens, vocab=VOCAB, dtype=jnp.bfloat16):
    """`step(hidden, head, teacher, targets, mask, weights)` for one chip."""
    whole = NamedSharding(Mesh(np.array(devices(chip)[:1]), ("chip",)), PartitionSpec())

    def of(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    hidden, head = of(tokens, WIDTH), of(vocab, WIDTH)
    each = (of(tokens, dtype=kind) for kind in (jnp.int32, jnp.bool_, jnp.float32))
    arguments = (hidden, head, Hidden(hidden, head), *each)
    return jax.jit(step, out_shardings=whole).lower(*arguments).compile()


def total(kind, alpha=None, soft_caps=(None, None), **options):
    """A weighted sum of all statistics, of what `compiled` gives."""

    def loss(hidden, head, teacher, targets, mask, weights):
        student = Hidden(hidden, head, soft_caps[0])
        teacher = Hidden(teacher.states, teacher.head, soft_caps[1])
        if kind is None:
            stats = kernels.linear_logprob(student, targets, mask, **options)
        else:
            of = Divergence(kind, alpha)
            stats = kernels.linear_divergence(
                student, teacher, targets, mask, divergence=of, **options
            )
        return sum(jnp.sum(weights * x) for x in jax.tree.leaves(stats))

    return loss


def blocks(chip, kind, itemsize=2):
    name = devices(chip)[0].device_kind
    return tuning.blocks(name, WIDTH, 0 if kind is None else WIDTH, itemsize)


def kernel_calls(program):
    return program.as_text().count('custom_call_target="tpu_custom_call"')


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


def largest_buffer(program):
    """Elements of the largest array named in the text of a compiled program."""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[(\d[\d,]*)\]", program.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


# One sweep and two gradients; a jsd has a second sweep.
@pytest.mark.parametrize(("chip", "kind", "calls"), GRID)
def test_values_and_gradients_compile_and_keep_no_logits(chip, kind, calls):
    loss = total(kind, implementation=blocks(chip, kind))
    program = compiled(jax.value_and_grad(loss, argnums=(0, 1)), chip, TOKENS)
    assert kernel_calls(program) == calls
    # The valid tokens' hidden states in their order, 20 MiB a model, and a few floats a token.
    models = 1 if kind is None else 2
    assert temporaries(program) <= models * TOKENS * WIDTH * 2 + 8 * MIB
    assert largest_buffer(program) == VOCAB * WIDTH


@pytest.mark.parametrize("chip", ["v5e", "tpu7x"])
def test_a_scorer_is_one_kernel(chip):
    program = compiled(total(None, implementation=blocks(chip, None)), chip, TOKENS)
    assert kernel_calls(program) == 1
    assert temporaries(program) <= TOKENS * WIDTH * 2 + 8 * MIB
    # One product, 2 N D V; the rest of what the compiler counts is a trifle.
    assert program.cost_analysis()["flops"] < 2.1 * TOKENS * WIDTH * VOCAB


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_options_that_change_the_kernels_compile(dtype):
    """Soft caps, a temperature, a padded vocabulary, and float32."""
    loss = total(
        "jsd",
        soft_caps=(30.0, 50.0),
        temperature=0.7,
        vocab_size=20000 - 77,
        implementation=blocks("tpu7x", "jsd", jnp.dtype(dtype).itemsize),
    )
    step = jax.value_and_grad(loss, argnums=(0, 1))
    assert kernel_calls(compiled(step, "tpu7x", 1000, 20000, dtype)) == 4


def test_a_token_and_a_vocabulary_below_a_block_compile():
    loss = total("jsd", implementation=blocks("tpu7x", "jsd"))
    step = jax.value_and_grad(loss, argnums=(0, 1))
    assert kernel_calls(compiled(step, "tpu7x", 1, 11)) == 4


def test_a_mesh_adds_the_collectives_that_it_must():
    """FSDP by 4 and the vocabulary by 2, on 8 cores."""
    axes = (AxisType.Auto,) * 2
    mesh = Mesh(np.array(devices("tpu7x")).reshape(4, 2), ("data", "vocab"), axis_types=axes)
    sharding = HeadSharding(("data",), "vocab", "data", mesh)
    rows, heads = PartitionSpec("data"), PartitionSpec("vocab", "data")

    def of(shape, spec, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    hidden, head = of((4 * TOKENS, WIDTH), rows), of((VOCAB, WIDTH), heads)
    each = (of((4 * TOKENS,), rows, kind) for kind in (jnp.int32, jnp.bool_, jnp.float32))
    loss = total("jsd", sharding=sharding, implementation=blocks("tpu7x", "jsd"))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = step.lower(hidden, head, Hidden(hidden, head), *each).compile()
    assert kernel_calls(program) == 4
    text = program.as_text()
    counts = {name: len(re.findall(rf"{name}(?:-start)?\(", text)) for name in COLLECTIVES}
    # Both heads, once for both passes, and the statistics; the gradient of the head.
    assert counts == {"all-gather": 3, "reduce-scatter": 1}
    # Half of the vocabulary: two heads of 2 bytes, their gradient of 4 bytes twice, for it is
    # brought in the order of its scattering, and the scattered quarter.
    part = VOCAB // 2 * WIDTH
    assert temporaries(program) <= (2 * 2 + 2 * 4 + 1) * part
    assert largest_buffer(program) == part


# The default of an accelerator at this vocabulary.
@pytest.mark.parametrize("chunk_tokens", [1024])
def test_the_chunked_loss_of_65536_tokens_takes_less_than_4_gib(chunk_tokens):
    tokens = 65536

    def loss(hidden, head, teacher, targets, mask, weights):
        return kernels.linear_divergence_loss(
            lambda stats, aux: stats.divergence - 0.1 * stats.logp,
            *(Hidden(hidden, head), teacher, targets, mask, weights),
            divergence=Divergence("jsd"),
            chunk_tokens=chunk_tokens,
            implementation="chunked",
        )[0]

    program = compiled(jax.value_and_grad(loss, argnums=(0, 1)), "v5e", tokens)
    assert temporaries(program) <= 4 * GIB
    # No logits of all tokens, under whatever shape: the largest is a head.
    assert largest_buffer(program) == VOCAB * WIDTH
    text = program.as_text()
    logits = re.findall(rf"= (\w+)\[{chunk_tokens},{VOCAB}\]\S* convolution\(", text)
    # From operands of bf16, as the arguments are: results of that dtype would lose a small
    # divergence, and a CPU's compiler would not show it.
    assert logits == ["f32", "f32"]
    operands = re.findall(rf"= (\w+)\[{VOCAB},{WIDTH}\]\S* parameter\(", text)
    assert "bf16" in operands
