"""What is compiled for an H100 where there is none: row kernels, and the loss's memory.

Needs `pip install jax-cuda13-plugin jax-cuda13-pjrt` of jaxlib's version, and no driver.
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

from mopd_jax.kernels import (
    Divergence,
    Hidden,
    RowKernels,
    dispatch,
    linear_divergence_loss,
    model_shapes,
)
from mopd_jax.kernels.linear_divergence.divergence import settled
from mopd_jax.kernels.linear_divergence.options import Spec

pytestmark = [
    pytest.mark.slow,
    wants.module("jax_cuda13_plugin", "the GPU compiler"),
]

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 85029158912
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
OPTIONS = {
    # The other tests compile for a CPU with less effort, by XLA_FLAGS.
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
# A kernel that spills registers to memory is slow: an error here.
NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}
TRITON = 'custom_call_target="__gpu$xla.gpu.triton"'
TOKENS, (WIDTH, VOCABULARY) = 65_536, model_shapes.SHAPES["Qwen3-4B"]
GIB = 2**30
KINDS = ["none", "forward_kl", "reverse_kl", "jsd"]


@functools.cache
def h100():
    """Sharding of arrays that all lie on one H100."""
    device, *_ = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
    ).devices
    mesh = jax.sharding.Mesh(np.array([device]), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compiled(function, *shapes, options=NO_SPILLS):
    jitted = jax.jit(function, in_shardings=h100(), out_shardings=h100())
    return jitted.lower(*shapes).compile(compiler_options=OPTIONS | options)


def shaped(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def chunk_of(tokens):
    """The shapes of a chunk: logits of both, targets, one number a token."""
    logits, each = shaped(tokens, VOCABULARY), shaped(tokens)
    return logits, logits, shaped(tokens, dtype="int32"), each


def spec_of(kind):
    divergence = None if kind == "none" else settled(Divergence(kind))
    return Spec(divergence, 0.7, 30.0, None, VOCABULARY, 1024)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [RowKernels(), RowKernels(rows=4, block=512)])
def test_statistics_and_gradient_compile_without_spills(kind, rows):
    spec = spec_of(kind)

    def both(student, teacher, targets, each):
        teacher, to_divergence = (None, None) if kind == "none" else (teacher, each)
        stats, pull = rows(student, teacher, targets, spec=spec)
        return stats, pull(to_divergence, each, each)

    # Too much shared memory would not compile.
    program = compiled(both, *chunk_of(1023))
    assert program.as_text().count(TRITON) == 2
    # One launch after the other, and nothing of the size of the logits between them.
    assert program.memory_analysis().temp_size_in_bytes < 2**20


def token_loss(stats, aux):
    """What losses in use are made of."""
    ratio = jnp.exp(jax.lax.stop_gradient(jnp.clip(stats.logp - aux["old"], -5.0, 5.0)))
    first = getattr(stats, "divergence", stats.logp)
    kept = jnp.where(aux["flag"], ratio * first, jnp.minimum(ratio, 2.0) * first)
    return kept - aux["count"] * jnp.square(stats.entropy) + jax.nn.sigmoid(stats.logp)


def weighted(stats, aux, weights):
    def losses(stats, old):
        return token_loss(stats, aux | {"old": old})

    each, back = jax.vjp(losses, stats, aux["old"])
    to_stats, to_old = back(weights)
    return each, to_stats, [to_old]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_loss_compiles_into_one_kernel(kind, dtype):
    spec = spec_of(kind)
    rows = RowKernels()
    logits, _, targets, each = chunk_of(1024)
    flags = shaped(1024, dtype="bool")
    aux = {"old": each, "flag": flags, "count": targets}

    def fused(student, teacher, *rest):
        teacher = None if kind == "none" else teacher
        return rows.losses(weighted, student, teacher, *rest, spec=spec, dtype=jnp.dtype(dtype))

    program = compiled(fused, logits, logits, targets, each, aux, flags)
    assert program.as_text().count(TRITON) == 1
    assert program.memory_analysis().temp_size_in_bytes < 2**20


def test_what_does_not_fit_is_refused():
    """That the other tests can fail: registers spilled are an error."""
    rows = RowKernels(block=4096, warps=1)

    def statistics(student, teacher, targets, each):
        return rows(student, teacher, targets, spec=spec_of("jsd"))[0]

    with pytest.raises(jax.errors.JaxRuntimeError, match="spilling"):
        compiled(statistics, *chunk_of(8))


def whole_loss(implementation, kind):
    """Loss and both gradients of 65,536 tokens in bfloat16, in the chunks of a GPU."""

    def loss(hidden, head, teacher, targets, mask, weights):
        return linear_divergence_loss(
            lambda stats, old: stats.divergence - old * stats.logp,
            *(Hidden(hidden, head), teacher, targets, mask, weights, weights),
            divergence=Divergence(kind),
            chunk_tokens=dispatch.default_chunk_tokens("gpu", VOCABULARY, 65536),
            implementation=implementation,
        )[0]

    hidden = shaped(TOKENS, WIDTH, dtype="bfloat16")
    head = shaped(VOCABULARY, WIDTH, dtype="bfloat16")
    return compiled(
        jax.value_and_grad(loss, argnums=(0, 1)),
        *(hidden, head, Hidden(hidden, head)),
        *(shaped(TOKENS, dtype="int32"), shaped(TOKENS, dtype="bool"), shaped(TOKENS)),
        # The compiler's own products are not ours to judge.
        options={},
    )


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("implementation", ["chunked", RowKernels()])
def test_the_loss_of_65536_tokens_takes_4_gib(implementation, kind):
    program = whole_loss(implementation, kind)
    assert program.memory_analysis().temp_size_in_bytes <= 4 * GIB
    text = program.as_text()
    # No array is larger than the head's gradient, a twenty-fifth of all logits.
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[(\d[\d,]*)\]", text)
    assert max(math.prod(map(int, x.split(","))) for x in shapes) == VOCABULARY * WIDTH
    # Logits of both are float32 where the products write them, whichever instruction that is.
    tokens = dispatch.default_chunk_tokens("gpu", VOCABULARY, 65536)
    logits = re.findall(
        rf"^.*= (\w+)\[{tokens},{VOCABULARY}\]\S* (?:fusion|custom-call|dot)\(.*cd,vd->cv.*$",
        text,
        flags=re.MULTILINE,
    )
    assert logits.count("f32") >= 2
    assert set(logits) == {"f32"}
    assert (TRITON in text) == (implementation != "chunked")
