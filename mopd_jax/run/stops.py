"""Stops of a command by a signal, by one rule: after the running jitted call, with one line.

Python runs a handler between two of its instructions, so never inside a jitted call. Where
nothing may be left half done, `Stops.hold` puts the stop off until the end of the block.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The command was asked to stop. Not an Exception, so that no handler of errors takes it.

    status: the exit status, 130 after Ctrl-C and 143 after SIGTERM (a preemption).
    note: what to tell the user; whoever saves something on the way out says so here.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        self.note = str(self)


class Stops:
    """Turns the first SIGINT or SIGTERM into `Stopped`; the second ends the process at once.

    A context manager, for the main thread; outside of its context, and in other threads,
    signals do what they did before and `hold` only runs its block.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._holds = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._handle) for n in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Runs the block to its end, then raises Stopped if a stop was asked for."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._asked is not None and not self._holds:
            raise Stopped(self._asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._asked is not None:
            # As after a kill: every file of a run folder is whole at any moment.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(128 + number)
        self._asked = number
        if self._holds:
            # Not by logging, whose lock the interrupted code may hold.
            os.write(2, b"stopping after the running call; once more stops at once\n")
        else:
            raise Stopped(number)
