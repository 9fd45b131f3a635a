"""Work on one item while the next is made."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def overlapped(
    items: Iterable[Item], work: Callable[[Item], Done]
) -> tuple[list[Item], Callable[[], list[Done]]]:
    """Goes through `items`, which makes them, and meanwhile does `work` on those that are made.

    Args:
        work: called in one other thread, on one item after the other in their order; it must
            share nothing with what makes the items that either of them changes.

    Returns:
        The items, and a function that waits for what is left of the work and returns it in
        the items' order, or raises what the work raised.
    """
    pool = concurrent.futures.ThreadPoolExecutor(1, "overlapped")
    made: list[Item] = []
    due: list[concurrent.futures.Future[Done]] = []

    def finish() -> list[Done]:
        try:
            return [future.result() for future in due]
        finally:
            pool.shutdown(cancel_futures=True)

    try:
        for item in items:
            made.append(item)
            due.append(pool.submit(work, item))
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    return made, finish
