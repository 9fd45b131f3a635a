"""Block sizes of `pallas_tpu` by generation of TPU.

A block of tokens stays in VMEM while the head passes by, so each weight that is read serves as
many products as the block has tokens; to be bound by arithmetic and not by memory that must be
the chip's operations per byte: 240 on a v5e, 166 on a v5p, 560 on a v6e, 312 on a TPU7x. In the
gradient of the head the roles are exchanged. Beyond that, larger blocks buy little and cost
compile time. The ahead-of-time tests compile these blocks for each generation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_MIB = 2**20
_LANES = 128
# f32 [tokens, vocab] arrays that are alive at once between the products, spills included.
_TEMPORARIES = 8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks that a kernel has in VMEM."""

    tokens: int
    vocab: int  # Columns, in the sweeps and the gradient of the hidden states.
    head_vocab: int  # Columns, in the gradient of the head, which is kept in f32.
    vmem_limit_bytes: int
    # False compiles; True or `pltpu.InterpretParams` interprets, on any platform.
    interpret: Any = False


@dataclasses.dataclass(frozen=True)
class _Generation:
    vmem_bytes: int  # Of a core, less what the compiler keeps for itself.
    tokens: int
    vocab: int
    head_vocab: int


_V5E = _Generation(100 * _MIB, 1024, 512, 512)
_V5P = _Generation(60 * _MIB, 512, 512, 512)
_V6E = _Generation(100 * _MIB, 1024, 512, 512)
_7X = _Generation(58 * _MIB, 512, 512, 512)
# As `jax.Device.device_kind` names them.
_GENERATIONS = {
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _7X,
}
_TOO_OLD = ("TPU v2", "TPU v3", "TPU v4 lite", "TPU v4")


def blocks(device_kind: str, width: int, teacher_width: int, itemsize: int) -> Blocks:
    """Blocks for heads [V, width] and [V, teacher_width], of `itemsize` bytes an element.

    `teacher_width` is 0 without a teacher. The generation's blocks are halved until
    they fit into VMEM.

    Raises:
        ValueError: a chip without blocks here, or heads too wide for it.
    """
    if device_kind in _TOO_OLD:
        raise ValueError(
            f"implementation='pallas_tpu' cannot serve {device_kind!r}: its VMEM of at most 16"
            " MiB holds no useful block of a head; use implementation='chunked'"
        )
    if device_kind not in _GENERATIONS:
        raise ValueError(
            f"implementation='pallas_tpu' has no block sizes for {device_kind!r}, only for"
            f" {sorted(_GENERATIONS)}; give `kernels.Blocks(...)` in place of the name, or use"
            " implementation='chunked'"
        )
    chip = _GENERATIONS[device_kind]
    tokens, vocab, head_vocab = chip.tokens, chip.vocab, chip.head_vocab
    budget = chip.vmem_bytes
    while _sweep_bytes(tokens, vocab, width, teacher_width, itemsize) > budget:
        if tokens == vocab == _LANES:
            raise _too_wide(device_kind, width, teacher_width, itemsize)
        if vocab > _LANES and vocab >= tokens // 2:
            vocab //= 2
        else:
            tokens //= 2
    while _head_bytes(tokens, head_vocab, width, teacher_width, itemsize) > budget:
        if tokens == head_vocab == _LANES:
            raise _too_wide(device_kind, width, teacher_width, itemsize)
        if head_vocab > _LANES:
            head_vocab //= 2
        else:
            tokens //= 2
    return Blocks(tokens, vocab, head_vocab, chip.vmem_bytes)


def _sweep_bytes(tokens: int, vocab: int, width: int, teacher_width: int, itemsize: int) -> int:
    """VMEM of the gradient of the hidden states, the largest of the kernels by tokens."""
    inputs = _input_bytes(tokens + vocab, width + teacher_width, itemsize)
    return inputs + tokens * width * (4 + 2 * itemsize) + _TEMPORARIES * 4 * tokens * vocab


def _head_bytes(tokens: int, vocab: int, width: int, teacher_width: int, itemsize: int) -> int:
    """VMEM of the gradient of the head; over a mesh it leaves the kernel in f32."""
    inputs = _input_bytes(tokens + vocab, width + teacher_width, itemsize)
    return inputs + vocab * width * (4 + 2 * 4) + _TEMPORARIES * 4 * tokens * vocab


def _input_bytes(rows: int, width: int, itemsize: int) -> int:
    # Two of each, so that one is copied while the other is used; and the three bf16 parts that
    # an f32 product splits its operands into.
    return rows * width * (2 * itemsize + (6 if itemsize == 4 else 0))


def _too_wide(device_kind: str, width: int, teacher_width: int, itemsize: int) -> ValueError:
    return ValueError(
        f"implementation='pallas_tpu' cannot serve heads of width {width} and {teacher_width}"
        f" at {itemsize} bytes an element on {device_kind!r}: blocks of {_LANES} tokens and"
        f" {_LANES} columns exceed its VMEM; use implementation='chunked'"
    )
