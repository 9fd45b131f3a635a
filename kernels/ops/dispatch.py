"""Which implementation of an op runs: a name is a promise, None is settled here."""

from __future__ import annotations

from typing import Literal, get_args

Implementation = Literal["reference", "chunked"]


def resolve(name: Implementation | None, platform: str) -> Implementation:
    """The implementation to run on `platform` ("cpu", "gpu", "tpu", as jax names them).

    Pure, so that a run can log what None means before it starts. Today that is "chunked" on
    every platform, plain XLA that needs no kernel language.

    Raises:
        ValueError: `name` is unknown; a name is never replaced by another.
    """
    del platform  # In the signature because a kernel written for one platform will need it.
    name = "chunked" if name is None else name
    if name not in (known := get_args(Implementation)):
        raise ValueError(f"implementation {name!r} is none of {known}")
    return name
