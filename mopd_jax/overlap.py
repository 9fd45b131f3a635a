"""Work on one item while the next is made."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def overlapped(items: Iterable[Item], work: Callable[[Item], Done]) -> Callable[[], list[Done]]:
    """Goes through `items`, which makes them, and meanwhile does `work` on those that are made.

    An item is let go after the work on it. If the making fails, the work that is under way is
    not waited for, and what was not begun is not begun.

    Args:
        work: called in one other thread, on one item after the other in their order; it must
            share nothing with what makes the items that either of them changes.

    Returns:
        A function that waits for what is left of the work and returns it in the items' order,
        or raises what the work raised.
    """
    pool = concurrent.futures.ThreadPoolExecutor(1, "overlapped")
    due: list[concurrent.futures.Future[Done]] = []

    def finish() -> list[Done]:
        try:
            return [future.result() for future in due]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    try:
        for item in items:
            due.append(pool.submit(work, item))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return finish
