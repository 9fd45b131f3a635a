"""The host's side of one worker: starts its zygote, hands it jobs, collects what comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Literal

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.sandbox import layout

_READY = 60.0  # Seconds a worker may take to start, and to answer beyond a program's limits.
_FIXED_TASKS = 4  # Zygote, supervisors and the program itself, which count as tasks too.
_TAIL = 1 << 16  # Bytes of standard error that are kept: its end has the error.

Kind = Literal[
    "ok",  # Exit status 0.
    "error",  # Another exit status; standard error says why.
    "signal",  # Ended by a signal that was not the sandbox's.
    "cpu",
    "memory",
    "idle",
    "output",
    "disk",
    "hostile",  # Its supervisor broke twice, and worked for an honest program in between.
    "starved",  # The machine gave it no CPU time: no verdict.
    "broken",  # The sandbox failed: no verdict.
]


@dataclasses.dataclass(frozen=True)
class Program:
    """One execution: source text, and what it reads or is called with. No expected output.

    call: the function, or the method of `class Solution`, to call; None: run as a script.
    arguments: JSON text of the list of its arguments.
    cpu_seconds: instead of the sandbox's own limit.
    """

    source: str
    stdin: str = ""
    call: str | None = None
    arguments: str = "[]"
    cpu_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an execution went. All bytes are the program's own words.

    result: what the function returned as one line of JSON, of function calls only.
    cpu, wall: seconds of all its processes together, and of the clock.
    memory: the most bytes that were seen in use.
    detail: what broke, or the signal or exit status.
    started: the program may have run; a worker that broke before was not broken by it.
    """

    kind: Kind
    stdout: bytes = b""
    stderr: bytes = b""
    result: bytes = b""
    cpu: float = 0.0
    wall: float = 0.0
    memory: int = 0
    detail: str = ""
    started: bool = True

    @property
    def killed(self) -> bool:
        """Ended by a SIGKILL that was not the sandbox's: its own, or the machine's."""
        return self.kind == "signal" and self.detail == "SIGKILL"


def make_job(program: Program, cfg: SandboxConfig, *, others: int = 0) -> dict:
    """What the supervisor is told: the program and its limits, in seconds and bytes.

    Args:
        others: tasks that the kernel counts as the program's and that are not its own.
    """
    limit = cfg.cpu_seconds if program.cpu_seconds is None else program.cpu_seconds
    return {
        "source": program.source,
        "call": program.call,
        "arguments": program.arguments,
        "cpu": limit,
        # A longer limit has the same share of the clock.
        "wall": cfg.wall_seconds * max(1.0, limit / cfg.cpu_seconds),
        "idle": cfg.idle_seconds,
        "memory": cfg.memory_mb << 20,
        "file": cfg.file_mb << 20,
        "tasks": cfg.processes + _FIXED_TASKS + others,
        "output": cfg.output_kb << 10,
    }


class Worker:
    """One zygote in its sandbox. Not for use by two threads at a time."""

    def __init__(
        self,
        found: layout.Layout,
        cfg: SandboxConfig,
        start: Callable[[Callable[[], subprocess.Popen]], subprocess.Popen],
    ):
        """Starts the worker and waits until it is ready.

        Args:
            start: calls its argument in a thread that lives as long as the worker may: the
                kernel ends the worker when the thread that started it ends.

        Raises:
            SandboxError: if it does not come up, with what it said.
        """
        self._cfg = cfg
        self._others = 0
        if not found.other_user and (found.level == "limits" or _old_kernel()):
            self._others = _tasks_of(os.getuid())
        self._ended_well = False
        self._held = contextlib.ExitStack()  # Given back in the opposite order, at its end.
        try:
            said = self._launch(found, start)
        except BaseException as error:
            self._held.close()
            known = isinstance(error, OSError | subprocess.SubprocessError | ValueError)
            if not known or isinstance(error, layout.SandboxError):
                raise
            raise layout.SandboxError(
                f"a sandbox worker could not be started: {type(error).__name__}: {error}. It "
                "needs a temporary folder (TMPDIR) at the level 'limits', descriptors (ulimit "
                "-n) and processes (ulimit -u)"
            ) from error
        self._wait_until_ready(said, found.level)

    def _launch(self, found: layout.Layout, start: Callable) -> int:
        """Starts the process; a descriptor of what it says. Raises OSError and others."""
        held = self._held
        user = held.enter_context(layout.User(found.other_user))
        self.uid, scratch = user.uid, ""
        if found.level == "limits":
            scratch = tempfile.mkdtemp(prefix="mopd-sandbox-")
            held.callback(_remove, scratch)
            if found.other_user:
                os.chown(scratch, user.uid, user.uid)
                held.callback(_kill_all, user)
        with contextlib.ExitStack() as starting:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            held.enter_context(self._control)
            starting.enter_context(theirs)
            said = os.memfd_create("said")
            on_failure = starting.enter_context(contextlib.ExitStack())
            on_failure.callback(os.close, said)
            argv, environment = layout.command(
                found, self._cfg, control=theirs.fileno(), scratch=scratch
            )
            self._process = start(
                lambda: subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    **user.options,
                )
            )
            on_failure.pop_all()
        held.callback(self._end)
        return said

    def _wait_until_ready(self, said: int, level: str) -> None:
        self._control.settimeout(_READY)
        try:
            ready = self._control.recv(16) == b"ready"
        except OSError:
            ready = False
        words = os.pread(said, 4000, 0).decode(errors="replace").strip()
        os.close(said)
        if not ready:
            self.close()
            raise layout.SandboxError(
                f"sandbox.level={level!r} does not work here: {words or 'no answer'}. Where "
                "user namespaces are switched off (some containers, Colab, Ubuntu's AppArmor "
                "restriction) allow them, or set sandbox.level='limits', which is weaker "
                "(docs/sandbox.md)"
            )

    def run(self, program: Program) -> Outcome:
        """Runs one program to its end. A kind of `broken` says that the worker is of no use."""
        job = make_job(program, self._cfg, others=self._others)
        started = False
        try:
            with contextlib.ExitStack() as kept:
                channel, streams = self._hand_in(program, job, kept)
                started = True
                return _collect(channel, streams, job["output"], job["wall"] + _READY)
        except OSError as error:
            detail = f"{type(error).__name__}: {error}"
            return Outcome("broken", detail=detail, started=started)

    def _hand_in(
        self, program: Program, job: dict, kept: contextlib.ExitStack
    ) -> tuple[socket.socket, list[int]]:
        """Gives the worker a job; the channel of its report, and the program's streams.

        Args:
            kept: closes what is returned.
        """
        payload = json.dumps(job).encode()
        with contextlib.ExitStack() as given:
            ours, theirs = socket.socketpair()
            kept.enter_context(ours)
            given.enter_context(theirs)
            stdin = _sealed(program.stdin.encode("utf-8", "surrogateescape"))
            given.callback(os.close, stdin)
            streams, ends = [], []
            for _ in range(2 if program.call is None else 3):
                reading, writing = os.pipe()
                kept.callback(os.close, reading)
                given.callback(os.close, writing)
                streams.append(reading)
                ends.append(writing)
            socket.send_fds(self._control, [b"job"], [theirs.fileno(), stdin, *ends])
        ours.settimeout(_READY)
        ours.sendall(struct.pack("=Q", len(payload)) + payload)
        return ours, streams

    def close(self) -> bool:
        """Ends the worker and everything in it; the call returns when they are gone.

        Returns:
            Whether it lived until now and ended as it was told to.
        """
        self._held.close()
        return self._ended_well

    def _end(self) -> None:
        self._control.close()
        try:
            self._ended_well = self._process.wait(timeout=2) == 0
        except subprocess.TimeoutExpired:
            # It lived, held up by a program. Of a session of its own: nobody else is in it.
            self._ended_well = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _kill_all(user: layout.User) -> None:
    """No namespace ends what is left, but it has a uid that nothing else has."""
    end = ["/bin/sh", "-c", "kill -9 -1"]
    subprocess.run(end, capture_output=True, check=False, **user.options)


def _remove(folder: str) -> None:
    """Not shutil's: a program can nest folders deeper than Python can follow."""
    remove = ["/bin/sh", "-c", 'chmod -R u+rwx -- "$1"; rm -rf -- "$1"', "sh", folder]
    subprocess.run(remove, capture_output=True, check=False)


def _collect(channel: socket.socket, streams: list[int], cap: int, patience: float) -> Outcome:
    """Reads the streams and the report of a running program until its supervisor is gone."""
    report, held = b"", [bytearray() for _ in streams]
    counts = [0] * len(streams)
    number = {fd: i for i, fd in enumerate(streams)}
    poll = select.poll()
    for fd in (channel.fileno(), *streams):
        poll.register(fd, select.POLLIN)
    flooded, alive = False, True
    deadline = time.monotonic() + patience
    # Streams end when the last of its processes does, which is before the supervisor's end.
    while alive or number:
        left = deadline - time.monotonic()
        if left <= 0:
            return Outcome("broken", detail="no report within the time of any program")
        for fd, _ in poll.poll(left * 1000):
            if fd == channel.fileno():
                part = b""
                # It is gone, and a word to it was too late.
                with contextlib.suppress(ConnectionError):
                    part = channel.recv(1 << 16)
                report += part
                if not part:
                    alive = False
                    poll.unregister(fd)
                continue
            part = os.read(fd, 1 << 20)
            i = number[fd]
            if not part:
                poll.unregister(fd)
                del number[fd]
                continue
            counts[i] += len(part)
            held[i] += part
            keep = _TAIL if i == 1 else cap
            if len(held[i]) > 2 * keep or (i == 1 and len(held[i]) > keep):
                del held[i][:-keep]
            if counts[i] > cap and not flooded:
                flooded = True
                with contextlib.suppress(ConnectionError):
                    channel.send(b"end")
    stdout, stderr, *result = (bytes(part) for part in held)
    return _outcome(report, flooded, (stdout[:cap], stderr, result[0] if result else b""))


def _outcome(report: bytes, flooded: bool, streams: tuple[bytes, bytes, bytes]) -> Outcome:
    try:
        told = json.loads(report)
        if "broken" in told:
            return Outcome("broken", detail=told["broken"])
        status, reason = os.waitstatus_to_exitcode(told["status"]), told["reason"]
    except (ValueError, KeyError) as error:
        return Outcome("broken", detail=f"no report: {error}")
    if flooded:
        kind, detail = "output", ""
    elif reason in ("cpu", "memory", "idle", "starved", "disk"):
        kind, detail = reason, ""
    elif status == -signal.SIGXCPU:
        kind, detail = "cpu", ""
    elif status < 0:
        kind, detail = "signal", _signal_name(-status)
    else:
        kind, detail = ("error", f"exit status {status}") if status else ("ok", "")
    return Outcome(
        kind, *streams, cpu=told["cpu"], wall=told["wall"], memory=told["memory"], detail=detail
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sealed(content: bytes) -> int:
    """A file in memory that nobody can change any more; its descriptor stands at the start."""
    fd = os.memfd_create("stdin", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(os.close, fd)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        on_failure.pop_all()
    return fd


def _old_kernel() -> bool:
    """Whether the limit of processes counts all of a user, also those outside the sandbox."""
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(n) for n in numbers) < (5, 14)


def _tasks_of(uid: int) -> int:
    """Threads that a user has now."""
    total = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total
