"""Shape checks at public boundaries: they run while tracing and cost nothing after."""

from __future__ import annotations

from typing import Any


def check_shapes(**arrays: tuple[Any, str]) -> dict[str, int]:
    """Checks `name=(array, "N T V")` pairs and returns the size of every dimension.

    A dimension is a letter of the legend in `records.py`; a number fixes a size.

    Raises:
        ValueError: names both arrays that disagree, their shapes and the dimension.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, (array, dims) in arrays.items():
        names, shape = dims.split(), tuple(array.shape)
        if len(names) != len(shape):
            raise ValueError(f"{name}: expected [{dims}], got shape {shape}")
        for dim, size in zip(names, shape, strict=True):
            want = int(dim) if dim.isdigit() else sizes.setdefault(dim, size)
            if want != size:
                other = "the fixed size" if dim.isdigit() else f"{owner[dim]} has {dim}"
                raise ValueError(
                    f"{name}: {dim}={size} in {shape} [{dims}], but {other}={want}"
                )
            owner.setdefault(dim, name)
    return sizes
