"""The surroundings of a sandbox in tests: things to attack, and checks that none is harmed.

As a script it runs all hostile programs as another user and prints what went wrong:

    python sandbox_yard.py UID LEVEL
"""

import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from typing import Any, cast

import hostile_programs
import pytest
import wants

from mopd_jax.config.sandbox import Level, SandboxConfig
from mopd_jax.sandbox import Outcome, Program, Sandbox, SandboxError

SECRET = "the-text-of-the-secret"
LIMITS: dict[str, Any] = {
    # Twice what filling the memory of eight processes takes: where pages are slow to come, that
    # program would be stopped for its CPU seconds before its memory is measured.
    "cpu_seconds": 2.0,
    "idle_seconds": 0.6,
    "wall_seconds": 120.0,
    "memory_mb": 512,
    "processes": 16,
    "file_mb": 16,
    "output_kb": 256,
}


def config(level: Level, **changes: Any) -> SandboxConfig:
    """Settings with limits small enough for tests, and one worker."""
    return SandboxConfig(level=level, **(LIMITS | {"workers": 1} | changes))


def open_or_skip(level: Level, **changes: Any) -> Sandbox:
    """A sandbox; a machine without bubblewrap or namespaces does not fail this package."""
    if platform.system() != "Linux":
        pytest.skip(wants.reason("Linux"))
    if level == "namespaces" and shutil.which("bwrap") is None:
        pytest.skip(wants.reason("bubblewrap"))
    try:
        return Sandbox(config(level, **changes))
    except SandboxError as error:
        if level == "namespaces":
            pytest.skip(f"{wants.reason('namespaces')}; here: {error}")
        raise


class Yard:
    """Servers, a secret, an open folder and a sibling process of the workers' own user."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        worker = box._free.queue[-1]
        assert worker is not None
        self.uid = worker.uid
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="yard-"))
        self.outside = self.folder / "outside"
        self.outside.mkdir()
        secret = self.folder / "secret"
        secret.write_text(SECRET)
        self.owned = self.folder / "owned"
        self.owned.write_text("as it was")
        if os.getuid() == 0:
            os.chown(self.owned, self.uid, self.uid)
        for path, mode in ((self.folder, 0o755), (self.outside, 0o777), (secret, 0o644)):
            path.chmod(mode)
        self.servers: list[socket.socket] = []
        tcp = self._listen(socket.socket(), ("127.0.0.1", 0))
        udp = self._listen(socket.socket(type=socket.SOCK_DGRAM), ("127.0.0.1", 0))
        local, abstract = str(self.folder / "local"), f"yard-{os.getpid()}"
        self._listen(socket.socket(socket.AF_UNIX), local)
        os.chmod(local, 0o777)
        self._listen(socket.socket(socket.AF_UNIX), f"\0{abstract}")
        mailbox = str(self.folder / "mailbox")
        self._listen(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), mailbox)
        os.chmod(mailbox, 0o777)
        self._listen(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), f"\0un{abstract}")
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            user = {"user": self.uid, "group": self.uid}
        self.sibling = subprocess.Popen(["sleep", "1000"], cwd="/", **user)
        self.words = {
            "OUTSIDE": self.outside,
            "SECRET": secret,
            "PARENT": os.getpid(),
            "SIBLING": self.sibling.pid,
            "PORT": tcp.getsockname()[1],
            "UDP": udp.getsockname()[1],
            "MAILBOX": mailbox,
            "UNNAMED": f"un{abstract}",
            "OWNED": self.owned,
            "LOCAL": local,
            "ABSTRACT": abstract,
            "LIMITS": box.level == "limits",
        }
        self.processes = self.count()
        self.state = self.look()

    def look(self) -> tuple[int, int, str]:
        """Mode, time and text of the file that the workers' user owns."""
        info = self.owned.stat()
        return info.st_mode, info.st_mtime_ns, self.owned.read_text()

    def _listen(self, server: socket.socket, address: Any) -> socket.socket:
        server.bind(address)
        if server.type == socket.SOCK_STREAM:
            server.listen()
        server.setblocking(False)
        self.servers.append(server)
        return server

    def count(self) -> int:
        """Processes of the workers' user, and zombies of this process."""
        total = 0
        for name in os.listdir("/proc"):
            try:
                total += name.isdigit() and os.stat(f"/proc/{name}").st_uid == self.uid
            except OSError:
                continue
        return total

    def source(self, hostile: hostile_programs.Hostile) -> str:
        """The program's text with the names in capitals replaced."""
        text = hostile.source
        if hostile not in hostile_programs.RAW:
            text = hostile_programs.PRELUDE + textwrap.dedent(text)
        for word, value in self.words.items():
            text = text.replace(word, str(value))
        return text

    def problems(self, hostile: hostile_programs.Hostile, outcome: Outcome) -> list[str]:
        """What a hostile program did that it must not do, as sentences."""
        problems = []
        output = outcome.stdout + outcome.stderr
        if b"BREACH" in outcome.stdout:
            problems.append(outcome.stdout[:500].decode(errors="replace"))
        if SECRET.encode() in output:
            problems.append("the secret was told")
        if outcome.kind not in hostile.kinds:
            problems.append(f"{outcome.kind} {outcome.detail} {outcome.stderr[-200:]!r}")
        if self.box.run(Program("print(input()[::-1])", stdin="abc")).stdout != b"cba\n":
            problems.append("an honest program fails afterwards")
        problems += [f"{name} was written" for name in os.listdir(self.outside)]
        for server in self.servers:
            try:
                server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)
                problems.append(f"{server} was called")
            except BlockingIOError:
                pass
        if self.look() != self.state:
            problems.append(f"the owned file is {self.look()}")
        if self.sibling.poll() is not None:
            problems.append("the sibling died")
        end = time.monotonic() + 5
        while (now := self.count()) > self.processes and time.monotonic() < end:
            time.sleep(0.05)
        if now > self.processes:
            problems.append(f"{now - self.processes} processes are left")
        return problems

    def close(self) -> None:
        self.sibling.kill()
        self.sibling.wait()
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(uid: int, level: Level) -> None:
    os.environ["CANARY"] = "CANARY"
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *args: sys.stdout.write("a signal came\n"))
    with Sandbox(config(level)) as box:
        yard = Yard(box)
        for hostile in hostile_programs.PROGRAMS:
            outcome = box.run(Program(yard.source(hostile)))
            for problem in yard.problems(hostile, outcome):
                sys.stdout.write(f"{hostile.name} {problem}\n")
        sys.stdout.write(f"{len(hostile_programs.PROGRAMS)} programs as {os.getuid()}\n")
        yard.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), cast(Level, sys.argv[2]))
