"""What stands around a sandbox in the tests: things to attack, and whether they were harmed.

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

import hostile_programs
import pytest
import wants

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.sandbox import Program, Sandbox, SandboxError

SECRET = "the-text-of-the-secret"
LIMITS = {
    "cpu_seconds": 1.2,
    "idle_seconds": 0.6,
    "wall_seconds": 120.0,
    "memory_mb": 512,
    "processes": 16,
    "file_mb": 16,
    "output_kb": 256,
}


def config(level, **changes):
    return SandboxConfig(level=level, **(LIMITS | {"workers": 1} | changes))


def open_or_skip(level, **changes):
    """A sandbox; a machine without bubblewrap or namespaces is no failure of this package."""
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

    def __init__(self, box):
        self.box = box
        self.uid = box._free.queue[-1].uid
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
        self.servers = []
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
        user = {"user": self.uid, "group": self.uid} if os.getuid() == 0 else {}
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

    def look(self):
        """Of the file that the workers' user owns."""
        info = self.owned.stat()
        return info.st_mode, info.st_mtime_ns, self.owned.read_text()

    def _listen(self, server, address):
        server.bind(address)
        if server.type == socket.SOCK_STREAM:
            server.listen()
        server.setblocking(False)
        self.servers.append(server)
        return server

    def count(self):
        """Processes of the workers' user, and zombies of this process."""
        found = 0
        for name in os.listdir("/proc"):
            try:
                found += name.isdigit() and os.stat(f"/proc/{name}").st_uid == self.uid
            except OSError:
                continue
        return found

    def source(self, hostile):
        text = hostile.source
        if hostile not in hostile_programs.RAW:
            text = hostile_programs.PRELUDE + textwrap.dedent(text)
        for word, value in self.words.items():
            text = text.replace(word, str(value))
        return text

    def problems(self, hostile, outcome):
        """What a hostile program did that it must not, as a list of words."""
        found = []
        said = outcome.stdout + outcome.stderr
        if b"BREACH" in outcome.stdout:
            found.append(outcome.stdout[:500].decode(errors="replace"))
        if SECRET.encode() in said:
            found.append("the secret was told")
        if outcome.kind not in hostile.kinds:
            found.append(f"{outcome.kind} {outcome.detail} {outcome.stderr[-200:]!r}")
        if self.box.run(Program("print(input()[::-1])", stdin="abc")).stdout != b"cba\n":
            found.append("an honest program fails afterwards")
        found += [f"{name} was written" for name in os.listdir(self.outside)]
        for server in self.servers:
            try:
                server.accept() if server.type == socket.SOCK_STREAM else server.recv(1)
                found.append(f"{server} was called")
            except BlockingIOError:
                pass
        if self.look() != self.state:
            found.append(f"the owned file is {self.look()}")
        if self.sibling.poll() is not None:
            found.append("the sibling died")
        end = time.monotonic() + 5
        while (now := self.count()) > self.processes and time.monotonic() < end:
            time.sleep(0.05)
        if now > self.processes:
            found.append(f"{now - self.processes} processes are left")
        return found

    def close(self):
        self.sibling.kill()
        self.sibling.wait()
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(uid, level):
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
    main(int(sys.argv[1]), sys.argv[2])
