"""The lock of a run folder: one process at a time writes there.

`run.lock` names the host, process and start time of its holder, who renews it every 10 s. On
the same host the holder is looked up: a process that is gone holds nothing. Of another host
only the renewals can be seen: a lease that is not renewed for 60 s has expired. Clocks are not
compared, since those of two hosts differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from mopd_jax.errors import ConfigError, RunError
from mopd_jax.files import write_text

log = logging.getLogger("mopd")

FILE = "run.lock"


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds: between renewals, until a lease expires, and between looks at another's."""

    renew: float = 10.0
    expire: float = 60.0
    look: float = 1.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a run folder.

    host: its name, the boot of its kernel, and the namespace of its pids.
    start: of the process, in the kernel's clock ticks since boot; a later process may have the
        same pid. None where the system does not tell.
    token: of this lease alone.
    """

    host: str
    pid: int
    start: int | None
    token: str

    @classmethod
    def own(cls) -> Holder:
        """This process, with a new token."""
        return cls(_host(), os.getpid(), _start(os.getpid()), uuid.uuid4().hex)

    def gone(self) -> bool:
        """A process of this host that has ended."""
        if self.host != _host():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # Somebody else's process.
            pass
        return _start(self.pid) != self.start

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]}"


class Lease:
    """A run folder held by this process."""

    def __init__(self, folder: pathlib.Path, holder: Holder, times: Times):
        self._folder, self._holder, self._times = folder, holder, times
        self._count = 0
        self._ended, self._taken = threading.Event(), ""
        self._thread = threading.Thread(target=self._renew, name="run.lock", daemon=True)

    def check(self) -> None:
        """Raises RunError if another process has taken the folder since."""
        if self._taken:
            raise RunError(
                f"{self._folder} was taken by {self._taken}, since this process did not renew "
                f"its lease for {self._times.expire:.0f} s; it stops and writes no more there"
            )

    def _renew(self) -> None:
        while not self._ended.wait(self._times.renew):
            # On a full disk, say, the lease may expire; then a later look finds who took it.
            with contextlib.suppress(OSError), _exclusive(self._folder):
                self._taken = self._look()
                if self._taken:
                    return
                self._count += 1
                _write(self._folder, self._holder, self._count)

    def _look(self) -> str:
        """Who has the folder now, "" while this process does."""
        try:
            found = _read(self._folder)
        except ConfigError:  # Damaged by another hand than ours, which writes it whole.
            return "somebody: its lock is damaged"
        if found is None:
            return "nobody: its lock was removed"
        return "" if found[0].token == self._holder.token else str(found[0])

    def start(self) -> None:
        """Renews the lease from now on, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the renewals and gives the folder free, unless it was taken."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError), _exclusive(self._folder):
            found = _read(self._folder)
            if found is not None and found[0].token == self._holder.token:
                (self._folder / FILE).unlink()


@contextlib.contextmanager
def held(
    folder: pathlib.Path, *, first: bool = True, times: Times | None = None
) -> Iterator[Lease]:
    """Holds a run folder for the block, and makes it if need be; an empty one is removed after.

    Waits for a lease of another host to expire, which one line says.

    Args:
        first: this process is the first of its run, which holds the folder for all of them.

    Raises:
        ConfigError: the folder is in use, or cannot be written.
    """
    times = Times() if times is None else times
    if not first:
        yield Lease(folder, Holder.own(), times)
        return
    try:
        made = not folder.exists()
        if not made and not folder.is_dir():
            raise ConfigError(f"--workdir {folder} is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        lease = _acquire(folder, times)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # No fault of the folder's name.
        raise ConfigError(
            f"--workdir {folder} cannot be written ({error.strerror}); choose another --workdir"
        ) from error
    lease.start()
    try:
        yield lease
    finally:
        lease.close()
        if made:
            with contextlib.suppress(OSError):  # A run that could not start leaves nothing.
                folder.rmdir()


def _acquire(folder: pathlib.Path, times: Times) -> Lease:
    holder, waited = Holder.own(), 0.0
    seen: tuple[Holder, int] | None = None
    while True:
        with _exclusive(folder):
            found = _read(folder)
            free = (
                found is None or found[0].gone() or (found == seen and waited >= times.expire)
            )
            if free:
                _write(folder, holder, 0)
                return Lease(folder, holder, times)
        assert found is not None  # Else it would be free.
        other = found[0].host != holder.host
        if not other or (seen is not None and found != seen):
            raise ConfigError(
                f"{folder} is in use by {found[0]}; wait until it ends, stop it, or choose "
                "another --workdir"
            )
        if seen is None:
            log.info(
                "%s was in use by %s: waiting at most %.0f s for a sign of life",
                folder,
                found[0],
                times.expire + times.renew,
            )
        seen = found
        time.sleep(times.look)
        waited += times.look


@contextlib.contextmanager
def _exclusive(folder: pathlib.Path) -> Iterator[None]:
    """One process of this host at a time; without files of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Where the file system has no locks the lease alone counts.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(folder: pathlib.Path) -> tuple[Holder, int] | None:
    """The holder and its count of renewals; None for no lock."""
    path = folder / FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        count = int(record.pop("renewed"))
        return Holder(**record), count
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}); if no process writes to that folder, "
            "remove the file"
        ) from error


def _write(folder: pathlib.Path, holder: Holder, count: int) -> None:
    record = {**dataclasses.asdict(holder), "renewed": count}
    write_text(folder / FILE, json.dumps(record) + "\n")


def _host() -> str:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    try:
        # Containers of one machine may share its name; each counts its own processes.
        pids = os.readlink("/proc/self/ns/pid")
        return f"{socket.gethostname()} {boot.read_text().strip()} {pids}"
    except OSError:  # Not Linux.
        return socket.gethostname()


def _start(pid: int) -> int | None:
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in brackets, and may hold blanks.
    state, *fields = text.rpartition(")")[2].split()
    # A process that has ended stays listed until its parent asks for its status.
    return None if state in ("Z", "X") else int(fields[18])
