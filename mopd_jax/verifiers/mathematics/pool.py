"""Warm worker processes that answer one request at a time, each within a real limit.

For work that may never end, or end the process that does it: a worker that passes its limit is
killed and replaced, and nothing else notices. Any thread may ask. Workers start when they are
first needed, and end with the pool, with the program, or when their input closes.
"""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

# An empty pipe takes this much without waiting for its reader, on every system we know.
_PIPE = 60_000
_START_SECONDS = 120.0
# Requests after which a worker is replaced, so that what libraries keep cannot pile up.
_LIFE = 2000


class Undecided(Exception):
    """A request has no answer; the message says which limit it met."""


class OverLimit(Undecided):
    """It met the limit of CPU time or memory, as it would on any machine."""


class Pool:
    """At most `size` workers that run the Python file `program`."""

    def __init__(
        self, program: pathlib.Path, *, size: int, cpu_seconds: float, wall_seconds: float
    ):
        """
        Args:
            cpu_seconds: what a request may use; the verdict does not depend on the load.
            wall_seconds: the limit for a worker that does not even get its CPU time.
        """
        self._program = program
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._free = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        # Runs when the pool is forgotten and when the program ends, whichever is first.
        self._end = weakref.finalize(self, _stop_all, self._all, self._lock)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to a JSON-able request.

        Raises:
            OverLimit: the request met the limit of CPU time or memory.
            Undecided: it met another one, or the worker ended under it.
        """
        line = json.dumps({**request, "seconds": self._cpu_seconds}).encode() + b"\n"
        if len(line) > _PIPE:
            raise Undecided(f"a request of {len(line)} bytes; at most {_PIPE} are checked")
        with self._free:
            worker = self._take()
            try:
                answer = worker.ask(line, self._wall_seconds)
            except BaseException as error:
                self._drop(worker)
                if isinstance(error, _Killed):
                    kind = OverLimit if error.status == -signal.SIGPROF else Undecided
                    raise kind(self._why(error)) from None
                raise
            if "broken" in answer:
                self._drop(worker)
                raise OverLimit(answer["broken"])
            self._give_back(worker)
            return answer

    def close(self) -> None:
        """Ends all workers. A later request starts new ones."""
        with self._lock:
            self._idle.clear()
        _stop_all(self._all, self._lock)

    def _take(self) -> _Worker:
        with self._lock:
            if self._owner != os.getpid():
                # After a fork the workers, and their pipes, are the parent's.
                self._owner = os.getpid()
                self._idle.clear()
                self._all.clear()
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self._program)
        with self._lock:
            self._all.add(worker)
        try:
            worker.wait_ready()
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _give_back(self, worker: _Worker) -> None:
        if worker.asked >= _LIFE:
            self._drop(worker)
            return
        with self._lock:
            if worker in self._all:  # Else the pool was closed meanwhile.
                self._idle.append(worker)

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.stop()

    def _why(self, killed: _Killed) -> str:
        if killed.status == -signal.SIGPROF:
            return f"not decided in {self._cpu_seconds:g} s of CPU time"
        if killed.status is None:
            return f"not decided in {self._wall_seconds:g} s; the machine may be overloaded"
        return f"the worker ended with status {killed.status}"


class _Killed(Exception):
    """The worker is gone (its exit status), or it did not answer in time (None)."""

    def __init__(self, status: int | None):
        super().__init__(status)
        self.status = status


class _Worker:
    """One process and the two pipes to it."""

    def __init__(self, program: pathlib.Path):
        # -P: not the program's folder, whose modules have names of the standard library.
        # The fixed hash seed makes the orders of sets, and so all decisions, reproducible.
        path = os.pathsep.join(p for p in sys.path if p)
        kept = {n: os.environ[n] for n in ("PATH", "LD_LIBRARY_PATH") if n in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            start_new_session=True,  # An interrupt at the keyboard is for the program.
            bufsize=0,
        )
        self._read = b""
        self.asked = 0

    def wait_ready(self) -> None:
        """Raises Undecided where the worker cannot start."""
        try:
            answer = self._line(_START_SECONDS)
        except _Killed as error:
            raise Undecided(f"the worker did not start (status {error.status})") from None
        if "broken" in answer:
            raise Undecided(f"the worker did not start: {answer['broken']}")

    def ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        self.asked += 1
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise _Killed(self._status()) from None
        return self._line(seconds)

    def _line(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0:
                raise _Killed(None)
            if not poll.poll(left * 1000):
                continue
            piece = self._process.stdout.read(1 << 16)
            if not piece:
                raise _Killed(self._status())
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _status(self) -> int:
        """Exit status of a worker whose pipe has ended."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _stop_all(workers: set[_Worker], lock: threading.Lock) -> None:
    with lock:
        found = list(workers)
        workers.clear()
    for worker in found:
        worker.stop()
