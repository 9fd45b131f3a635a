"""Chooses the implementation of an op and its chunk size; a named one is never replaced."""

from __future__ import annotations

from typing import Literal, get_args

import jax

from mopd_jax.kernels.linear_divergence import tuning
from mopd_jax.kernels.linear_divergence.chunked import Operands
from mopd_jax.kernels.linear_divergence.outputs import Hidden, Output
from mopd_jax.kernels.linear_divergence.pallas_gpu import RowKernels
from mopd_jax.kernels.linear_divergence.tuning import Blocks

Implementation = Literal["reference", "chunked", "pallas_tpu", "pallas_gpu"]

# By platform, the last for accelerators. Logits of a chunk: the products must be large, and the
# logits of both models and their gradient are alive at once.
_LOGITS = {"cpu": 2**23, None: 2**28}
# Floor of a usual chunk's tokens, however large the vocabulary: each chunk reads the head and
# adds to its gradient.
_USUAL_TOKENS = {"cpu": 256, None: 512}
# Below these a chunk is not divided further for the sake of the last one.
_LEAST = {"cpu": (128, 2**20), None: (512, 2**24)}  # tokens, logits


def resolve(name: Implementation | None, platform: str) -> Implementation:
    """The implementation to run on `platform` ("cpu", "gpu", "tpu", as jax names them).

    None is "chunked" everywhere: it takes the fewest matrix products, the main cost. The
    Pallas ones need less memory for more products ("pallas_tpu"), or save trips to memory
    between the products ("pallas_gpu"); docs/linear_divergence.md says when to name them.

    Raises:
        ValueError: `name` is unknown, or is for another platform; a name is never replaced by
            another.
    """
    name = "chunked" if name is None else name
    if name not in (known := get_args(Implementation)):
        raise ValueError(f"implementation {name!r} is not one of {known}")
    if name.startswith("pallas_") and name != f"pallas_{platform}":
        raise ValueError(
            f"implementation={name!r} is compiled for a {name[7:].upper()}, and the backend"
            f" here is {platform!r}; use 'chunked', or, to interpret it or to compile it ahead"
            f" of time, give {_SETTINGS[name]} in place of the name"
        )
    return name


_SETTINGS = {"pallas_tpu": "kernels.Blocks(...)", "pallas_gpu": "kernels.RowKernels(...)"}


def settle(
    given: Implementation | Blocks | RowKernels | None, student: Output, operands: Operands
) -> tuple[Implementation, Blocks | RowKernels | None]:
    """The implementation and its settings; a name takes the settings of the current device.

    Args:
        given: settings name their implementation, on whatever platform.

    Raises:
        ValueError: as `resolve`; where a chip has no settings; where alpha or temperature is an
            array, which the Pallas kernels compile in.
    """
    name, settings = _settings(given, student, operands)
    if name.startswith("pallas_"):
        for dial, value in operands.dials._asdict().items():
            if value is not None:
                raise ValueError(
                    f"{dial} is a JAX array, and implementation={name!r} compiles its value in;"
                    " give a Python float, or use implementation='chunked'"
                )
    return name, settings


def _settings(
    given: Implementation | Blocks | RowKernels | None, student: Output, operands: Operands
) -> tuple[Implementation, Blocks | RowKernels | None]:
    if isinstance(given, Blocks):
        return "pallas_tpu", given
    if isinstance(given, RowKernels):
        return "pallas_gpu", given
    name = resolve(given, jax.default_backend())
    if name == "pallas_tpu":
        sides = (student, operands.teacher)
        width, other = (x.head.shape[-1] if isinstance(x, Hidden) else 0 for x in sides)
        floating = jax.tree.leaves((student, operands.teacher))
        itemsize = max(x.dtype.itemsize for x in floating)
        return name, tuning.blocks(jax.devices()[0].device_kind, width, other, itemsize)
    return name, RowKernels() if name == "pallas_gpu" else None


def default_chunk_tokens(platform: str, vocab_size: int, tokens: int) -> int:
    """Tokens a chunk, a power of two, for `tokens` on a device.

    At most an eighth of them, so that the last chunk, which may be nearly empty, costs little.
    """
    key = platform if platform in _LOGITS else None
    usual = max(_power_of_two(_LOGITS[key] // vocab_size), _USUAL_TOKENS[key])
    least, logits = _LEAST[key]
    least = max(_power_of_two(logits // vocab_size), least)
    return max(min(usual, _power_of_two(tokens // 8)), least)


def _power_of_two(number: int) -> int:
    """The largest power of two up to `number`, at least 1."""
    return 2 ** (max(number, 1).bit_length() - 1)
