"""The worker's side inside the sandbox: zygote, supervisor and program, one fork apart each.

The zygote is an interpreter with common modules loaded. For every job it forks a supervisor,
which makes the job's own namespaces and forks the program. Only the supervisor reads the job,
so the zygote, and with it the next program, never holds another program's text or input.
Expected outputs never enter the sandbox, and the host judges whatever bytes a program writes: a
program that takes over this code gains nothing by it.

The host sends this module as text to the interpreter inside (`layout.py`). Standard library
only, Python 3.9 or later.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import site
import socket
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

from mopd_jax.sandbox import confine, program, watch

LOADED = """
array bisect collections copy dataclasses datetime decimal enum fractions functools heapq
itertools math operator os.path queue random re statistics string typing
"""
TELL = 100  # A descriptor above all those in use while a program is confined.


def main(control: int, settings: dict) -> NoReturn:
    """Serves jobs until the host is gone; never returns, in none of its processes.

    Args:
        control: descriptor of the socket that jobs come by.
        settings: as `layout.command` writes them.
    """
    confine.die_with_parent()
    # Otherwise a program could interrupt pid 1.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in LOADED.split():
        importlib.import_module(name)
    sys.path[:] = [path for path in sys.path if path]
    site.setquit()  # Adds `exit` and `quit`, which -S leaves out.
    program.provide()  # Once, for every fork.
    rules = None
    if settings["isolated"]:
        confine.enter_user_namespace()
        confine.filter_code(isolated=True, pid=0, landlock=0)  # Cached here for every fork.
    else:
        confine.adopt_orphans()
        if settings["landlock"]:
            rules = confine.landlock_rules(settings["readable"], settings["writable"])
    confine.set_dumpable(False)  # Not earlier: the namespace's uid maps need it to be set.
    gc.collect()
    gc.freeze()
    channel = socket.socket(fileno=control)
    channel.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 16, 8)
        if not message:
            os._exit(0)
        if not settings["isolated"]:
            watch.sweep()
        child = os.fork()
        if child == 0:
            channel.close()
            run = supervise(fds, settings, rules)
            del fds, settings, rules  # The program must not reach them through this frame.
            run()
        for fd in fds:
            os.close(fd)
        os.waitpid(child, 0)


def supervise(fds: list[int], settings: dict, rules: int | None) -> Callable[[], NoReturn]:
    """Runs one job in the supervisor's process and ends that process.

    Args:
        fds: the job's socket, then standard input, output, error and results of the program.
        rules: descriptor of the program's Landlock rules.

    Returns:
        In the program's process only: a function that runs the program.
    """
    job_fd, *streams = fds
    if settings["isolated"]:
        confine.die_with_parent()
        # The first child of a new pid namespace is its pid 1: when it ends, all in it end.
        confine.unshare(confine.NEW_PID | confine.NEW_MOUNT | confine.NEW_IPC)
        child = os.fork()
        if child:
            for fd in streams:
                os.close(fd)
            os.waitpid(child, 0)
            os._exit(0)
        confine.die_with_parent()
    channel = socket.socket(fileno=job_fd)
    try:
        job = read_job(channel)
        home = settings["scratch"]
        if settings["isolated"]:
            mount_own(job)
        else:
            os.setsid()
            confine.adopt_orphans()
            watch.clear(home)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            channel.close()
            confine_or_tell(job, streams, home, settings, rules, writing)
            return lambda: program.run_program(job)
        for fd in (*streams, writing):
            os.close(fd)
        failure = os.read(reading, 4096)  # Ends empty when the program is about to start.
        if failure:
            raise OSError(failure.decode(errors="replace"))
        report = watch.watch(pid, job, channel, settings)
        if not settings["isolated"]:
            watch.sweep()
            watch.clear(home)
    except OSError as error:
        report = {"broken": f"{type(error).__name__}: {error}"}
    try:
        channel.sendall(json.dumps(report).encode())
    finally:
        os._exit(0)


def read_job(channel: socket.socket) -> dict:
    """The job from its socket: eight bytes of length, then JSON."""

    def exactly(count: int) -> bytes:
        parts = []
        while count:
            part = channel.recv(min(count, 1 << 20))
            if not part:
                os._exit(0)  # The host is gone.
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    return json.loads(exactly(struct.unpack("=Q", exactly(8))[0]))


def mount_own(job: dict) -> None:
    """Mounts an empty /tmp and /dev/shm, and a /proc of the new pid namespace."""
    confine.mount("none", "/", None, "recursive private")
    safe = "nosuid nodev noexec"
    try:
        confine.mount("proc", "/proc", "proc", safe, "subset=pid")
    except OSError:  # Linux before 5.8 has no `subset`.
        confine.mount("proc", "/proc", "proc", safe)
    size = job["file"]
    confine.mount("tmp", "/tmp", "tmpfs", safe, f"size={size},nr_inodes=4096,mode=0777")
    small = min(size, 16 << 20)
    confine.mount("shm", "/dev/shm", "tmpfs", safe, f"size={small},nr_inodes=256,mode=0777")


def confine_or_tell(
    job: dict, streams: list[int], home: str, settings: dict, rules: int | None, writing: int
) -> None:
    """Confines this process; if that fails, writes why to `writing` and ends the process."""
    os.dup2(writing, TELL, inheritable=False)
    try:
        confine_program(job, streams, home, settings, rules)
        os.close(TELL)
    except BaseException as error:
        os.write(TELL, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(1)


def confine_program(
    job: dict, streams: list[int], home: str, settings: dict, rules: int | None
) -> None:
    """Gives up, in this process and for good, all that a program must not have.

    Args:
        streams: descriptors that become 0, 1, 2 and, for function tests, 3.
        home: the program's working folder.
        rules: descriptor of Landlock rules; None where Landlock is not used.
    """
    os.setsid()
    if not settings["isolated"]:
        confine.die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if rules is not None:
        rules = os.dup2(rules, TELL + 1, inheritable=False)
    for number, fd in enumerate(streams):
        os.dup2(fd, TELL + 10 + number)
    for number in range(len(streams)):
        os.dup2(TELL + 10 + number, number, inheritable=number < 3)
    os.closerange(len(streams), TELL)
    os.closerange(TELL + 1 if rules is None else TELL + 2, 1 << 16)
    os.chdir(home)
    os.environ["HOME"] = os.environ["TMPDIR"] = home
    confine.set_dumpable(True)  # So that it may open its own /proc/self and /dev/stdin.
    # If memory runs out, the kernel kills the program before it kills the trainer.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    confine.set_limits(job)
    if settings["isolated"]:
        confine.drop_capabilities()
    if rules is not None:
        confine.landlock(rules)
        os.close(rules)
    confine.no_new_privileges()
    if settings["seccomp"]:
        confine.restrict_calls(isolated=settings["isolated"], landlock=settings["landlock"])
