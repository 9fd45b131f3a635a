"""Runs generated programs so that they can harm nothing and forge nothing (docs/sandbox.md).

A `Sandbox` has a few workers. Each is an interpreter that was started once inside its own
namespaces, without network and without files of the host; every program is a fork of it in
further namespaces of its own, with an empty disk. The host hands in source and input and takes
out bytes. Expected outputs stay with the host.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from concurrent.futures import Future

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.sandbox import layout
from mopd_jax.sandbox.layout import SandboxError
from mopd_jax.sandbox.worker import Outcome, Program, Worker

__all__ = ["Outcome", "Program", "Sandbox", "SandboxError"]


class _Starter:
    """One thread that starts every worker and stays: its end would be theirs.

    A thread of its own and no executor's, which ends while other threads may still verify.
    """

    def __init__(self):
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="sandbox-starter", daemon=True).start()

    def _serve(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, answer = asked
            try:
                answer.set_result(call())
            except Exception as error:
                answer.set_exception(error)

    def call(self, function):
        """What the function returns or raises, called in that thread."""
        answer: Future = Future()
        self._calls.put((function, answer))
        return answer.result()

    def close(self) -> None:
        self._calls.put(None)


class Sandbox:
    """A pool of workers for all threads of a process; use as a context manager, or close it.

    A fork of the process must not use it. Whatever is left ends with the process.
    """

    def __init__(self, cfg: SandboxConfig):
        """Opens the sandbox and starts its first worker, so that what cannot work fails here.

        Raises:
            SandboxError: if the level cannot be had, with what is missing and what to do.
        """
        self._cfg = cfg
        self._layout = layout.find(cfg)
        self.workers = cfg.workers or len(os.sched_getaffinity(0))
        self._starter = _Starter()
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._closed = False
        try:
            first = self._start()
        except BaseException:
            self._starter.close()
            raise
        for _ in range(1, self.workers):
            self._free.put(None)  # Started when it is needed.
        self._free.put(first)

    @property
    def level(self) -> str:
        """The level in use, which is the one asked for."""
        return self._layout.level

    @property
    def output_kb(self) -> int:
        """How much a program may write."""
        return self._cfg.output_kb

    @property
    def slow_tests(self) -> int | None:
        """After how many tests that cost much a program's others are not run."""
        return self._cfg.slow_tests

    @property
    def description(self) -> str:
        """The level and what it consists of here, for the start of a run and its record."""
        return f"{self._layout.level} ({'; '.join(self._layout.parts)}), {self.workers} workers"

    def run(self, program: Program) -> Outcome:
        """Runs one program to its end; waits for a free worker. Threads may call it together.

        A worker that breaks is replaced, and the program tried again. If it breaks two that
        have run an honest program before, it is to blame; but a worker in namespaces that is
        itself dead was none of its doing, for no program can reach it there. A program that a
        SIGKILL of nobody's ended is tried once more, too: the kernel picks one when the machine
        is out of memory.
        """
        worker = self._free.get()
        try:
            if self._closed:
                return Outcome("broken", detail="the sandbox is closed")
            broken = blamed = killed = 0
            while True:
                worker = worker or self._start()
                outcome = worker.run(program)
                if outcome.kind == "broken":
                    lived = worker.close() or self.level != "namespaces"
                    worker = None
                    broken, blamed = broken + 1, blamed + (outcome.started and lived)
                    if blamed == 2:
                        return Outcome("hostile", detail=outcome.detail)
                killed += outcome.killed
                if broken == 3 or killed == 2 or not (outcome.killed or worker is None):
                    return outcome
        except (SandboxError, OSError) as error:  # No descriptor is left for its end, or so.
            return Outcome("broken", detail=str(error))
        finally:
            self._free.put(worker)

    def _start(self) -> Worker:
        """A worker that has run an honest program."""
        worker = Worker(self._layout, self._cfg, self._starter.call)
        tried = worker.run(Program("print(1)"))
        if tried.stdout != b"1\n":
            worker.close()
            raise SandboxError(
                f"sandbox.level={self.level!r} starts here but does not run a program "
                f"({tried.kind} {tried.detail}); a kernel older than 5.4, or one that is none "
                "of Linux itself, may be why. docs/sandbox.md says what is needed"
            )
        return worker

    def close(self) -> None:
        """Ends all workers; waits for programs that still run. Those that wait are not run."""
        if self._closed:
            return
        self._closed = True
        for worker in [self._free.get() for _ in range(self.workers)]:
            if worker is not None:
                with contextlib.suppress(OSError):  # The others are to be ended all the same.
                    worker.close()
            self._free.put(None)  # Whoever still waits gets it, and is turned away.
        self._starter.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error) -> None:
        self.close()
