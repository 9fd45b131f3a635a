"""Which implementation of an op runs, and in what pieces: a name is a promise, None is settled
here. Pure, so that a run can log what None means before it starts."""

from __future__ import annotations

from typing import Literal, get_args

Implementation = Literal["reference", "chunked", "pallas_tpu", "pallas_gpu"]

# f32 logits of a chunk: on a CPU they should stay in its caches, elsewhere the products must be
# large, and about 5 arrays of this size are alive at once.
_CHUNK_LOGITS = {"cpu": 2**23}
_CHUNK_LOGITS_ACCELERATOR = 2**28
# Below this many tokens a product no longer pays for reading the head once.
_LEAST_TOKENS = {"cpu": 128}
_LEAST_TOKENS_ACCELERATOR = 512


def resolve(name: Implementation | None, platform: str) -> Implementation:
    """The implementation to run on `platform` ("cpu", "gpu", "tpu", as jax names them).

    None is "chunked" everywhere: it takes the fewest matrix products, which are what costs. The
    Pallas ones need less memory for more products ("pallas_tpu"), or save trips to memory
    between the products ("pallas_gpu"); docs/linear_divergence.md says when to name them.

    Raises:
        ValueError: `name` is unknown, or is for another platform; a name is never replaced by
            another.
    """
    name = "chunked" if name is None else name
    if name not in (known := get_args(Implementation)):
        raise ValueError(f"implementation {name!r} is none of {known}")
    return name


def default_chunk_tokens(platform: str, vocab_size: int) -> int:
    """Tokens a chunk, a power of two, such that its logits have a fitting size."""
    logits = _CHUNK_LOGITS.get(platform, _CHUNK_LOGITS_ACCELERATOR)
    least = _LEAST_TOKENS.get(platform, _LEAST_TOKENS_ACCELERATOR)
    fitting = max(logits // vocab_size, 1)
    return max(least, 2 ** (fitting.bit_length() - 1))
