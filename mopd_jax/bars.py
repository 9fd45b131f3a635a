"""A bar on a terminal for work of more than a second; elsewhere nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterator[Item]:
    """Yields the items; after a second a bar says how many are done, and it goes at the end.

    Args:
        total: how many there are, where `items` has no length.
    """
    yield from tqdm(items, desc=title, total=total, leave=False, disable=None, delay=1)
