"""Runs generated programs isolated from the machine and from each other (docs/sandbox.md).

A `Sandbox` has a few workers. A worker is a Python interpreter, started once inside namespaces
of its own, without network and without the host's files. It forks once for every program, and
each fork gets further namespaces and an empty disk. The host sends source and input and
receives bytes. Expected outputs stay with the host, so a program cannot read them.

This package imports nothing of mopd_jax but `errors` and its settings, `config.sandbox`: it
could be a distribution of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.sandbox import layout
from mopd_jax.sandbox.layout import SandboxError
from mopd_jax.sandbox.worker import Outcome, Program, Worker

__all__ = ["Outcome", "Program", "Sandbox", "SandboxError"]

T = TypeVar("T")


class _Starter:
    """A thread that starts every worker and lives until the sandbox closes.

    The kernel ends a worker together with the thread that started it. The thread of an executor
    would not do: executors stop at the interpreter's exit, while other threads still verify.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="sandbox-starter", daemon=True).start()

    def _serve(self) -> None:
        while (request := self._calls.get()) is not None:
            function, answer = request
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

    def call(self, function: Callable[[], T]) -> T:
        """Calls the function in that thread; returns or raises what it does."""
        answer: Future[T] = Future()
        self._calls.put((function, answer))
        return answer.result()

    def close(self) -> None:
        """Ends the thread, and with it every worker that still runs."""
        self._calls.put(None)


class Sandbox:
    """A pool of workers for all threads of a process; use as a context manager, or close it.

    A forked child of the process must not use it. Whatever still runs ends with the process.
    """

    def __init__(self, cfg: SandboxConfig):
        """Opens the sandbox and starts its first worker, so that a fault shows up here.

        Raises:
            SandboxError: the level does not work on this machine; says what is missing and what
                to do.
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
        """The level in use, always the one that the config names."""
        return self._layout.level

    @property
    def output_kb(self) -> int:
        """KiB that a program may write to one stream."""
        return self._cfg.output_kb

    @property
    def slow_tests(self) -> int | None:
        """After this many tests that hit a limit a program's other tests are skipped."""
        return self._cfg.slow_tests

    @property
    def description(self) -> str:
        """The level and its parts on this machine, for the start of a run and its record."""
        return f"{self._layout.level} ({'; '.join(self._layout.parts)}), {self.workers} workers"

    def run(self, program: Program) -> Outcome:
        """Runs one program to its end; waits for a free worker. Safe to call from any thread.

        A worker that breaks is replaced and the program is tried again, three times at most. A
        program that breaks two healthy workers is judged hostile. With namespaces, a dead
        worker is not held against the program, which cannot reach it. A program killed by a
        SIGKILL that the sandbox did not send (usually the kernel's, when memory runs out) is
        retried once.
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
        except (SandboxError, OSError) as error:  # No file descriptors left, for example.
            return Outcome("broken", detail=str(error))
        finally:
            self._free.put(worker)

    def _start(self) -> Worker:
        """A new worker that has already run an honest program, so it is healthy."""
        worker = Worker(self._layout, self._cfg, self._starter.call)
        outcome = worker.run(Program("print(1)"))
        if outcome.stdout != b"1\n":
            worker.close()
            raise SandboxError(
                f"sandbox.level={self.level!r} starts here but does not run a program "
                f"({outcome.kind} {outcome.detail}); the kernel may be older than Linux 5.4 "
                "or an emulation of Linux. docs/sandbox.md says what is needed"
            )
        return worker

    def close(self) -> None:
        """Ends all workers after the programs that run now; queued programs are not run."""
        if self._closed:
            return
        self._closed = True
        for worker in [self._free.get() for _ in range(self.workers)]:
            if worker is not None:
                with contextlib.suppress(OSError):  # The other workers must end all the same.
                    worker.close()
            self._free.put(None)  # A thread that still waits gets it and is turned away.
        self._starter.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
