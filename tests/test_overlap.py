"""Work on one item while the next is made."""

import gc
import threading
import weakref

import pytest

from mopd_jax.overlap import overlapped

LONG = 30.0  # Seconds until a test that waits in vain gives up.


def test_results_stand_in_the_items_order():
    assert overlapped(iter(range(5)), lambda x: x * x)() == [0, 1, 4, 9, 16]
    assert overlapped([], lambda x: x)() == []


def test_the_first_item_is_worked_on_while_the_second_is_made():
    working, second = threading.Event(), threading.Event()

    def items():
        yield 1
        # Neither could go on, were one of them to wait for the other's end.
        assert working.wait(LONG)
        second.set()
        yield 2

    def work(item):
        working.set()
        assert second.wait(LONG)
        return item

    assert overlapped(items(), work)() == [1, 2]


def test_one_item_is_worked_on_at_a_time():
    second = threading.Event()

    def work(item):
        if item:
            second.set()
        else:
            # In vain, since the second item waits for the end of the first.
            assert not second.wait(0.2)
        return threading.get_ident()

    (thread,) = set(overlapped(range(3), work)())
    assert thread != threading.get_ident()


def test_an_item_is_let_go_after_the_work_on_it():
    class Item:
        pass

    seen = []

    def items():
        for _ in range(4):
            item = Item()
            seen.append(weakref.ref(item))
            yield item
            del item

    finish = overlapped(items(), lambda item: None)
    finish()
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 1


def test_what_the_work_raises_is_raised_by_the_wait_for_it():
    def work(item):
        if item == 1:
            raise ValueError(f"item {item}")

    finish = overlapped(range(3), work)
    with pytest.raises(ValueError, match="item 1"):
        finish()


def test_what_the_making_raises_is_raised_at_once_and_nothing_more_is_begun():
    begun, done, go_on = threading.Event(), [], threading.Event()

    def items():
        yield from (1, 2, 3)
        assert begun.wait(LONG)
        raise KeyboardInterrupt

    def work(item):
        begun.set()
        assert go_on.wait(LONG)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        overlapped(items(), work)
    assert done == []
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("overlapped"):
            thread.join(LONG)
    assert done == [1]
