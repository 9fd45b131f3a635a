"""Work on one item while the next is made."""

import threading

import pytest

from mopd_jax.overlap import overlapped

LONG = 30.0  # Seconds until a test that waits in vain gives up.


def test_results_stand_in_the_items_order():
    made, finish = overlapped(iter(range(5)), lambda x: x * x)
    assert (made, finish()) == ([0, 1, 2, 3, 4], [0, 1, 4, 9, 16])
    made, finish = overlapped([], lambda x: x)
    assert (made, finish()) == ([], [])


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

    made, finish = overlapped(items(), work)
    assert made == finish() == [1, 2]


def test_one_item_is_worked_on_at_a_time():
    running, most = [], []

    def work(item):
        running.append(item)
        most.append(len(running))
        running.remove(item)

    _, finish = overlapped(range(50), work)
    finish()
    assert set(most) == {1}


def test_what_the_work_raises_is_raised_by_the_wait_for_it():
    def work(item):
        if item == 1:
            raise ValueError(f"item {item}")

    made, finish = overlapped(range(3), work)
    assert made == [0, 1, 2]
    with pytest.raises(ValueError, match="item 1"):
        finish()


def test_what_the_making_raises_ends_the_work():
    begun, done, go_on = threading.Event(), [], threading.Event()

    def items():
        yield from (1, 2, 3)
        assert begun.wait(LONG)
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt

    def work(item):
        begun.set()
        assert go_on.wait(LONG)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        overlapped(items(), work)
    # The item in work is finished, those behind it are not begun, and no thread is left.
    assert done == [1]
    assert not [t for t in threading.enumerate() if t.name.startswith("overlapped")]
