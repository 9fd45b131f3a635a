"""The supervisor's watch over one running program: measures it, ends it at a limit, cleans up.

CPU seconds decide, not the clock, so that a verdict does not depend on how busy the machine is.
Runs inside the sandbox: standard library only, Python 3.9 or later.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import stat
import time

TICK = 0.05  # Seconds between two looks at a running program.
_LONGEST_LOOK = 4 * TICK  # A longer gap is a pause of the machine, not a program's sleep.
_PAGE, _CLOCK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_NAMES = 4096  # Files and folders that a program may have at one time.


def watch(pid: int, job: dict, channel: socket.socket, settings: dict) -> dict:
    """Waits for the program, ends it at a limit, and ends all processes that it started.

    A second is idle if every thread slept of its own accord: waiting for a processor or for the
    disk does not count. If a program is neither idle nor at its CPU limit after `wall` seconds,
    the machine has starved it.

    Args:
        pid: of the program, a child of this process.
        job: as `worker.make_job` makes it.
        channel: the socket to the host. Whatever arrives by it, its end included, is the host's
            order to end the program.
        settings: as `layout.command` writes them.

    Returns:
        {"reason": the limit that ended it or "asked", "" if it ended by itself; "status": as
        waitpid returns it; "cpu", "wall", "idle": seconds; "memory": the most bytes seen}.
    """
    begun = last = time.monotonic()
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(channel.fileno(), select.POLLIN)
    seen: dict[int, float] = {}
    reason, idle, busy, peak, status = "", 0.0, 0.0, 0, None
    while not reason and status is None:
        ready = poll.poll(TICK * 1000)
        status = reap(pid)
        if status is not None:
            break
        if any(fd != handle for fd, _ in ready):
            reason = "asked"  # The host sent its order, or died.
            break
        pids = processes(settings)
        look = snapshot(pids, seen)
        now = time.monotonic()
        spent = look["cpu"] + look["waited"]
        if look["asleep"]:
            idle += max(0.0, min(now - last, _LONGEST_LOOK) - max(0.0, spent - busy))
        busy, last, peak = max(busy, spent), now, max(peak, look["memory"])
        if look["cpu"] > job["cpu"]:
            reason = "cpu"
        elif look["memory"] > job["memory"]:
            reason = "memory"
        elif idle > job["idle"]:
            reason = "idle"
        elif now - begun > job["wall"]:
            reason = "starved"
        elif not settings["isolated"] and too_much(settings["scratch"], job["file"], pids):
            reason = "disk"
    ended = end_all(pid, settings)
    cpu = max(buried(), sum(seen.values()))
    return {
        "reason": "cpu" if not reason and cpu > job["cpu"] else reason,
        "status": ended if status is None else status,
        "cpu": cpu,
        "wall": time.monotonic() - begun,
        "idle": idle,
        "memory": peak,
    }


def buried() -> float:
    """CPU seconds of all processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reap(pid: int) -> int | None:
    """Waits for all processes that have ended, orphans included.

    Returns:
        The program's status, None if it was not among them.
    """
    status = None
    while True:
        try:
            ended, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if ended == 0:
            return status
        if ended == pid:
            status = code


def processes(settings: dict) -> list[int]:
    """The pids of all processes below this one."""
    if settings["isolated"]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    return below(os.getpid())


def below(pid: int) -> list[int]:
    """The pids of all descendants, from the kernel's lists of children."""
    tree, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    todo += [int(child) for child in file.read().split()]
        except OSError:  # It ended meanwhile.
            pass
        tree.append(parent)
    return [child for child in tree if child != pid]


def snapshot(pids: list[int], seen: dict[int, float]) -> dict:
    """What the processes use now.

    Args:
        seen: CPU seconds of every process ever seen; updated here.

    Returns:
        {"cpu": seconds so far, of all processes that ever were; "waited": seconds that threads
        waited for a processor; "memory": bytes in use; "asleep": whether every thread sleeps}.
    """
    waited, memory, asleep, reaped = 0.0, 0, True, 0.0
    for pid in pids:
        try:
            fields = stat_fields(f"/proc/{pid}/stat")
            seen[pid] = max(seen.get(pid, 0.0), sum(map(int, fields[11:13])) / _CLOCK)
            reaped += sum(map(int, fields[13:15])) / _CLOCK
            for task in os.listdir(f"/proc/{pid}/task"):
                waited += waited_for_a_processor(f"/proc/{pid}/task/{task}/schedstat")
                asleep &= stat_fields(f"/proc/{pid}/task/{task}/stat")[0] not in (b"R", b"D")
            memory += occupied(pid)
        except (OSError, IndexError, ValueError):
            continue
    live = sum(seen.get(pid, 0.0) for pid in pids) + reaped
    cpu = max(sum(seen.values()), live + buried())
    return {"cpu": cpu, "waited": waited, "memory": memory, "asleep": asleep}


def waited_for_a_processor(path: str) -> float:
    """Seconds that a thread was ready but did not run; 0 if the kernel does not count them."""
    try:
        with open(path) as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def stat_fields(path: str) -> list[bytes]:
    """The fields after the process's name, in which a program can put any bytes."""
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()


def occupied(pid: int) -> int:
    """Bytes of memory that a process uses; from 64 MiB on, only its share of shared pages."""
    with open(f"/proc/{pid}/statm") as file:
        resident = int(file.read().split()[1]) * _PAGE
    if resident < 64 << 20:
        return resident
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            lines = file.read().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    except OSError:
        return resident


def end_all(pid: int, settings: dict) -> int:
    """Kills all processes below this one and waits for them; returns the program's status."""
    status = 0
    while True:
        if settings["isolated"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            for child in below(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        try:
            ended, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if ended == pid:
            status = code


def sweep() -> None:
    """Ends the processes that a program left below this one, without a pid namespace's help."""
    end_all(-1, {"isolated": False})


def too_much(folder: str, limit: int, pids: list[int]) -> bool:
    """Whether a folder holds more than `limit` bytes or 4096 names, or cannot be listed.

    Deleted files count if one of the processes has them open. One that is only mapped, or on
    its way in a message between processes, is missed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    names = 0
    try:
        total = nameless(pids)
        for _, _, files, folder_fd in os.fwalk(folder, onerror=refuse):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(name, dir_fd=folder_fd).st_blocks * 512
            names += len(files) + 1
            if total > limit or names > _NAMES:
                return True
    except (OSError, RecursionError):
        return True
    return False


def nameless(pids: list[int]) -> int:
    """Bytes of deleted files that the processes have open."""
    sizes = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # It ended meanwhile.
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    path = f"/proc/{pid}/fd/{fd}"
                    info = os.stat(path)
                    if info.st_nlink or not stat.S_ISREG(info.st_mode):
                        continue
                    # Not its standard input, which is the host's file in memory.
                    if not os.readlink(path).startswith("/memfd:"):
                        sizes[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(sizes.values())


def clear(folder: str) -> None:
    """Empties a folder, also of folders without permissions or nested too deep for any path.

    Changes the working directory, so call it only from a process that does not need its own.
    Lists each directory once, since a program may create many.
    """
    os.chdir(folder)
    inside: list[str] = []
    full = [emptied()]
    while True:
        if full[-1]:
            deeper = full[-1].pop()
            os.chmod(deeper, stat.S_IRWXU)
            os.chdir(deeper)
            inside.append(deeper)
            full.append(emptied())
        elif inside:
            full.pop()
            os.chdir("..")
            os.rmdir(inside.pop())
        else:
            return


def emptied() -> list[str]:
    """Removes the working folder's files and empty folders; returns its other folders."""
    full = []
    with os.scandir(".") as scan:
        entries = list(scan)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name)
            continue
        try:
            os.rmdir(entry.name)
        except OSError:
            full.append(entry.name)
    return full
