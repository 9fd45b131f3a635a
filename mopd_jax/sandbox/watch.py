"""The supervisor's watch over one running program, inside the sandbox.

CPU seconds decide, never the clock: a verdict must not depend on how busy the machine is.
Standard library only, Python 3.9 or later.
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
_LONGEST_LOOK = 4 * TICK  # More was a pause of the machine and no sleep of a program.
_PAGE, _CLOCK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
_NAMES = 4096  # Files and folders a program may make.


def watch(pid: int, job: dict, channel: socket.socket, settings: dict) -> dict:
    """Waits for the program, ends it at a limit, ends all it started, and says how it went.

    CPU seconds decide. Idle seconds are those in which every thread slept by itself; time spent
    waiting for a processor, or for the disk, is not idle. What is neither idle nor at its CPU
    limit after `wall` seconds was starved by the machine.
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
            reason = "asked"  # To end it, by a word of the host or by its death.
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
    """CPU seconds of all that has ended and was waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reap(pid: int) -> int | None:
    """Buries what has ended, orphans included; the program's status if it is among it."""
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
    """The pids below this process."""
    if settings["isolated"]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    return below(os.getpid())


def below(pid: int) -> list[int]:
    """All descendants, by the kernel's lists of children."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    todo += [int(child) for child in file.read().split()]
        except OSError:  # It ended meanwhile.
            pass
        found.append(parent)
    return [child for child in found if child != pid]


def snapshot(pids: list[int], seen: dict[int, float]) -> dict:
    """CPU seconds so far, seconds spent waiting for one, bytes in use, and whether all sleep.

    Args:
        seen: CPU seconds of every process ever seen; kept up to date here.
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
    """Seconds that a thread was ready to run and did not; 0 where the kernel does not say."""
    try:
        with open(path) as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def stat_fields(path: str) -> list[bytes]:
    """The fields after the name, which is whatever bytes a program gave itself."""
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()


def occupied(pid: int) -> int:
    """Bytes of memory that are a process's own; its share where it shares much."""
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
    """Kills and buries everything below this process; the program's status."""
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
    """Ends whatever a program left below this process (where there is no pid namespace)."""
    end_all(-1, {"isolated": False})


def too_much(folder: str, limit: int, pids: list[int]) -> bool:
    """Whether a folder holds more bytes or names than it may, or hides how much it holds.

    Files without a name count where one of the processes has them open. One that is only
    mapped, or under way in a message between processes, is not seen.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    names = 0
    try:
        total = nameless(pids)
        for _, _, files, place in os.fwalk(folder, onerror=refuse):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(name, dir_fd=place).st_blocks * 512
            names += len(files) + 1
            if total > limit or names > _NAMES:
                return True
    except (OSError, RecursionError):
        return True
    return False


def nameless(pids: list[int]) -> int:
    """Bytes of files that have no name left and that processes have open."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # It ended meanwhile.
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    path = f"/proc/{pid}/fd/{fd}"
                    info = os.stat(path)
                    if info.st_nlink or not stat.S_ISREG(info.st_mode):
                        continue
                    # Its input is memory, and the host's.
                    if not os.readlink(path).startswith("/memfd:"):
                        found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def clear(folder: str) -> None:
    """Empties a folder, also of what its owner is locked out of or what no path can reach.

    Goes there: only for processes that have nothing else to do with their working folder. One
    listing a folder, for a program may make many.
    """
    os.chdir(folder)
    inside: list[str] = []
    left = [emptied()]
    while True:
        if left[-1]:
            deeper = left[-1].pop()
            os.chmod(deeper, stat.S_IRWXU)
            os.chdir(deeper)
            inside.append(deeper)
            left.append(emptied())
        elif inside:
            left.pop()
            os.chdir("..")
            os.rmdir(inside.pop())
        else:
            return


def emptied() -> list[str]:
    """Empties the working folder but for the folders, named here, that are not empty."""
    left = []
    with os.scandir(".") as entries:
        found = list(entries)
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name)
            continue
        try:
            os.rmdir(entry.name)
        except OSError:
            left.append(entry.name)
    return left
