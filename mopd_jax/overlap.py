"""Works on one item in a thread while the caller makes the next."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


class Background(Generic[Item, Done]):
    """Works on items in one thread, in the order in which they are submitted.

    Use it as a context manager around the code that makes the items: if that code fails, the
    running work is not waited for and the queued work is cancelled. An item is freed after
    its work.

    Args:
        work: must not change anything that the code making the items reads or changes.
    """

    def __init__(self, work: Callable[[Item], Done]) -> None:
        self._work = work
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "overlapped")
        self._due: list[concurrent.futures.Future[Done]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, item: Item) -> None:
        """Queues the item; returns at once."""
        self._due.append(self._pool.submit(self._work, item))

    def results(self) -> list[Done]:
        """Waits for all work: its results in the items' order, or the first error it raised."""
        try:
            return [future.result() for future in self._due]
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)


def overlapped(items: Iterable[Item], work: Callable[[Item], Done]) -> Callable[[], list[Done]]:
    """Iterates over `items` while a thread does `work` on the earlier ones, by `Background`.

    Returns:
        A function that waits for the work that is left and returns all results.
    """
    with Background(work) as background:
        for item in items:
            background.submit(item)
    return background.results
