"""The host's side of one worker: starts it, sends it jobs, reads outputs and reports."""

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

_READY = 60.0  # Seconds to start, and to report after a program has reached its limits.
_FIXED_TASKS = 4  # Zygote, supervisors and the program itself also count as tasks.
_TAIL = 1 << 16  # Bytes of standard error that are kept, from its end, where the error is.

Kind = Literal[
    "ok",  # Exit status 0.
    "error",  # Another exit status; standard error says why.
    "signal",  # Ended by a signal that the sandbox did not send.
    "cpu",
    "memory",
    "idle",
    "output",
    "disk",
    "hostile",  # It broke two workers, both of which had run an honest program.
    "starved",  # The machine gave it too little CPU time: no verdict.
    "broken",  # The sandbox failed: no verdict.
]


@dataclasses.dataclass(frozen=True)
class Program:
    """One execution: source text, and the input or arguments. It holds no expected output.

    call: name of the function, or of the method of `class Solution`, to call; None: run as a
        script.
    arguments: JSON text of the list of arguments of `call`.
    cpu_seconds: replaces the sandbox's own limit.
    """

    source: str
    stdin: str = ""
    call: str | None = None
    arguments: str = "[]"
    cpu_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an execution ended. The program controls all bytes: never trust them.

    result: of a function call, its return value as one line of JSON.
    cpu, wall: CPU seconds of all its processes together, and seconds of the clock.
    memory: the most bytes seen in use.
    detail: what broke, or the signal or exit status.
    started: the program may have run. If not, it cannot have broken the worker.
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
        """Whether a SIGKILL that the sandbox did not send ended it: its own or the kernel's."""
        return self.kind == "signal" and self.detail == "SIGKILL"


def make_job(program: Program, cfg: SandboxConfig, *, others: int = 0) -> dict:
    """What the supervisor receives: the program and its limits, in seconds and bytes.

    Args:
        others: tasks outside the sandbox that the kernel counts towards the program's limit.
    """
    limit = cfg.cpu_seconds if program.cpu_seconds is None else program.cpu_seconds
    return {
        "source": program.source,
        "call": program.call,
        "arguments": program.arguments,
        "cpu": limit,
        # A problem's longer CPU limit lengthens this one in proportion.
        "wall": cfg.wall_seconds * max(1.0, limit / cfg.cpu_seconds),
        "idle": cfg.idle_seconds,
        "memory": cfg.memory_mb << 20,
        "file": cfg.file_mb << 20,
        "tasks": cfg.processes + _FIXED_TASKS + others,
        "output": cfg.output_kb << 10,
    }


class Worker:
    """One worker process. Two threads must not use it at the same time."""

    def __init__(
        self,
        how: layout.Layout,
        cfg: SandboxConfig,
        start: Callable[[Callable[[], subprocess.Popen]], subprocess.Popen],
    ):
        """Starts the worker and waits until it is ready.

        Args:
            how: the way to start it, from `layout.find`.
            start: calls its argument in a thread that outlives the worker, because the kernel
                ends the worker when the thread that started it ends.

        Raises:
            SandboxError: it does not start; the message has what it printed.
        """
        self._cfg = cfg
        self._others = 0
        if not how.other_user and (how.level == "limits" or _old_kernel()):
            self._others = _tasks_of(os.getuid())
        self._ended_well = False
        self._resources = contextlib.ExitStack()  # Released at the end, the latest first.
        try:
            printed = self._launch(how, start)
        except BaseException as error:
            self._resources.close()
            known = isinstance(error, OSError | subprocess.SubprocessError | ValueError)
            if not known or isinstance(error, layout.SandboxError):
                raise
            raise layout.SandboxError(
                f"a sandbox worker could not be started: {type(error).__name__}: {error}. It "
                "needs a temporary folder (TMPDIR) at the level 'limits', descriptors (ulimit "
                "-n) and processes (ulimit -u)"
            ) from error
        self._wait_until_ready(printed, how.level)

    def _launch(
        self,
        how: layout.Layout,
        start: Callable[[Callable[[], subprocess.Popen]], subprocess.Popen],
    ) -> int:
        """Starts the process; returns a descriptor of the file that it prints to.

        Raises:
            OSError, SubprocessError, ValueError, SandboxError: a resource is not available.
        """
        resources = self._resources
        user = resources.enter_context(layout.User(how.other_user))
        self.uid, scratch = user.uid, ""
        if how.level == "limits":
            scratch = tempfile.mkdtemp(prefix="mopd-sandbox-")
            resources.callback(_remove, scratch)
            if how.other_user:
                os.chown(scratch, user.uid, user.uid)
                resources.callback(_kill_all, user)
        with contextlib.ExitStack() as starting:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            resources.enter_context(self._control)
            starting.enter_context(theirs)
            printed = os.memfd_create("printed")
            on_failure = starting.enter_context(contextlib.ExitStack())
            on_failure.callback(os.close, printed)
            argv, environment = layout.command(
                how, self._cfg, control=theirs.fileno(), scratch=scratch
            )
            self._process = start(
                lambda: subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    **user.options,
                )
            )
            on_failure.pop_all()
        resources.callback(self._end)
        return printed

    def _wait_until_ready(self, printed: int, level: str) -> None:
        """Raises SandboxError with what the worker printed, if it is not ready in time."""
        self._control.settimeout(_READY)
        try:
            ready = self._control.recv(16) == b"ready"
        except OSError:
            ready = False
        text = os.pread(printed, 4000, 0).decode(errors="replace").strip()
        os.close(printed)
        if not ready:
            self.close()
            raise layout.SandboxError(
                f"sandbox.level={level!r} does not work here: {text or 'no answer'}. Where "
                "user namespaces are switched off (some containers, Colab, Ubuntu's AppArmor "
                "restriction) allow them, or set sandbox.level='limits', which is weaker "
                "(docs/sandbox.md)"
            )

    def run(self, program: Program) -> Outcome:
        """Runs one program to its end. After kind `broken` the worker cannot be used again."""
        job = make_job(program, self._cfg, others=self._others)
        started = False
        try:
            with contextlib.ExitStack() as open_ends:
                channel, streams = self._send(program, job, open_ends)
                started = True
                return _collect(channel, streams, job["output"], job["wall"] + _READY)
        except OSError as error:
            detail = f"{type(error).__name__}: {error}"
            return Outcome("broken", detail=detail, started=started)

    def _send(
        self, program: Program, job: dict, open_ends: contextlib.ExitStack
    ) -> tuple[socket.socket, list[int]]:
        """Sends the worker a job.

        Args:
            open_ends: will close what is returned.

        Returns:
            The socket that the report comes by, and the descriptors to read the program's
            standard output, standard error and, for a function call, result from.
        """
        payload = json.dumps(job).encode()
        with contextlib.ExitStack() as sent:
            ours, theirs = socket.socketpair()
            open_ends.enter_context(ours)
            sent.enter_context(theirs)
            stdin = _sealed(program.stdin.encode("utf-8", "surrogateescape"))
            sent.callback(os.close, stdin)
            streams, ends = [], []
            for _ in range(2 if program.call is None else 3):
                reading, writing = os.pipe()
                open_ends.callback(os.close, reading)
                sent.callback(os.close, writing)
                streams.append(reading)
                ends.append(writing)
            socket.send_fds(self._control, [b"job"], [theirs.fileno(), stdin, *ends])
        ours.settimeout(_READY)
        ours.sendall(struct.pack("=Q", len(payload)) + payload)
        return ours, streams

    def close(self) -> bool:
        """Ends the worker and everything in it, and waits until they are gone.

        Returns:
            Whether it was alive until now and ended on request.
        """
        self._resources.close()
        return self._ended_well

    def _end(self) -> None:
        self._control.close()
        try:
            self._ended_well = self._process.wait(timeout=2) == 0
        except subprocess.TimeoutExpired:
            # It was alive, but a program held it up. Its session has no other process in it.
            self._ended_well = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _kill_all(user: layout.User) -> None:
    """Kills what is left of a worker without namespaces; no other process has its uid."""
    end = ["/bin/sh", "-c", "kill -9 -1"]
    subprocess.run(end, capture_output=True, check=False, **user.options)


def _remove(folder: str) -> None:
    """Removes a folder by `rm`, since a program can nest folders too deep for shutil."""
    remove = ["/bin/sh", "-c", 'chmod -R u+rwx -- "$1"; rm -rf -- "$1"', "sh", folder]
    subprocess.run(remove, capture_output=True, check=False)


def _collect(channel: socket.socket, streams: list[int], cap: int, patience: float) -> Outcome:
    """Reads the streams and the report of a running program until its supervisor ends.

    Args:
        cap: bytes that the program may write to one stream; at more it is ended.
        patience: seconds after which a missing report counts as a broken sandbox.
    """
    report, texts = b"", [bytearray() for _ in streams]
    counts = [0] * len(streams)
    number = {fd: i for i, fd in enumerate(streams)}
    poll = select.poll()
    for fd in (channel.fileno(), *streams):
        poll.register(fd, select.POLLIN)
    flooded, alive = False, True
    deadline = time.monotonic() + patience
    # A stream ends with the last process that has it open, which is before the supervisor ends.
    while alive or number:
        left = deadline - time.monotonic()
        if left <= 0:
            return Outcome("broken", detail="no report within the time of any program")
        for fd, _ in poll.poll(left * 1000):
            if fd == channel.fileno():
                part = b""
                # The supervisor ended before it read our order to end the program.
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
            texts[i] += part
            keep = _TAIL if i == 1 else cap
            if len(texts[i]) > 2 * keep or (i == 1 and len(texts[i]) > keep):
                del texts[i][:-keep]
            if counts[i] > cap and not flooded:
                flooded = True
                with contextlib.suppress(ConnectionError):
                    channel.send(b"end")
    stdout, stderr, *result = (bytes(text) for text in texts)
    return _outcome(report, flooded, (stdout[:cap], stderr, result[0] if result else b""))


def _outcome(report: bytes, flooded: bool, streams: tuple[bytes, bytes, bytes]) -> Outcome:
    """The outcome from the supervisor's report, JSON as `watch.watch` makes it.

    Args:
        flooded: a stream had more bytes than the program may write.
        streams: standard output, standard error and result.
    """
    try:
        read = json.loads(report)
        if "broken" in read:
            return Outcome("broken", detail=read["broken"])
        status, reason = os.waitstatus_to_exitcode(read["status"]), read["reason"]
    except (ValueError, KeyError) as error:
        return Outcome("broken", detail=f"no report: {error}")
    kind: Kind
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
        kind, *streams, cpu=read["cpu"], wall=read["wall"], memory=read["memory"], detail=detail
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sealed(content: bytes) -> int:
    """A descriptor, at the start, of a file in memory that nobody can change any more."""
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
    """Whether the kernel's limit of processes also counts those outside the sandbox."""
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(n) for n in numbers) < (5, 14)


def _tasks_of(uid: int) -> int:
    """The number of threads that a user has now."""
    total = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return total
