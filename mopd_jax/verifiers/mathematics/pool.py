"""Warm worker processes that answer one request at a time, within a limit of CPU seconds.

For work that may never end, or may end its process: a worker that passes the limit is killed
and replaced, and other requests do not notice. Any thread may ask. Workers start when they are
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

# Bytes of a request: an empty pipe takes so many without waiting for its reader.
_PIPE = 60_000
_START_SECONDS = 120.0
# Requests after which a worker is replaced, because caches of its libraries may grow.
_LIFE = 2000


class Undecided(Exception):
    """A request has no answer; the message says which limit was met."""


class OverLimit(Undecided):
    """The request met the limit of CPU time or memory, as it would on any machine."""


class Pool:
    """At most `size` workers that run the Python file `program`."""

    def __init__(
        self, program: pathlib.Path, *, size: int, cpu_seconds: float, wall_seconds: float
    ):
        """
        Args:
            size: how many requests are answered at a time.
            cpu_seconds: limit of a request, which does not depend on the machine's load.
            wall_seconds: limit of a request whose worker does not get that CPU time.
        """
        self._program = program
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._free = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        # Runs when the pool is garbage collected or the program ends, whichever is first.
        self._end = weakref.finalize(self, _stop_all, self._all, self._lock)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to a JSON-able request.

        Raises:
            OverLimit: the request met the limit of CPU time or memory.
            Undecided: it met another limit, or its worker ended for another reason.
        """
        line = json.dumps({**request, "seconds": self._cpu_seconds}).encode() + b"\n"
        if len(line) > _PIPE:
            raise Undecided(f"a request of {len(line)} bytes; at most {_PIPE} are possible")
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
                # This process is a fork: the workers and their pipes belong to its parent.
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
            if worker in self._all:  # False if the pool was closed meanwhile.
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
    """A worker ended or was too slow.

    status: its exit status; None if it did not answer in time.
    """

    def __init__(self, status: int | None):
        super().__init__(status)
        self.status = status


class _Worker:
    """One process and the two pipes to it."""

    def __init__(self, program: pathlib.Path):
        # -P keeps the program's folder off the path, -s the user's own packages. The fixed hash
        # seed makes the order of sets, and so every decision, reproducible.
        path = os.pathsep.join(p for p in sys.path if p)
        inherited = {n: os.environ[n] for n in ("PATH", "LD_LIBRARY_PATH") if n in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**inherited, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            start_new_session=True,  # An interrupt at the keyboard must not reach it.
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._read = b""
        self.asked = 0

    def wait_ready(self) -> None:
        """Waits for the worker to load its libraries. Raises Undecided if it cannot."""
        try:
            answer = self._line(_START_SECONDS)
        except _Killed as error:
            raise Undecided(f"the worker did not start (status {error.status})") from None
        if "broken" in answer:
            raise Undecided(f"the worker did not start: {answer['broken']}")

    def ask(self, line: bytes, seconds: float) -> dict[str, Any]:
        """The answer to one request. Raises _Killed if there is none in time."""
        self.asked += 1
        try:
            self._requests.write(line)
        except BrokenPipeError:
            raise _Killed(self._status()) from None
        return self._line(seconds)

    def _line(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._answers, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._read:
            left = end - time.monotonic()
            if left <= 0:
                raise _Killed(None)
            if not poll.poll(left * 1000):
                continue
            piece = self._answers.read(1 << 16)
            if not piece:
                raise _Killed(self._status())
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _status(self) -> int:
        """Exit status of a worker that closed its pipe; one that still runs is killed."""
        try:
            return self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def stop(self) -> None:
        """Kills the worker and closes its pipes."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()


def _stop_all(workers: set[_Worker], lock: threading.Lock) -> None:
    with lock:
        stopped = list(workers)
        workers.clear()
    for worker in stopped:
        worker.stop()
