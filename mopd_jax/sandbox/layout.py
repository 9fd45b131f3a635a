"""How workers start on this machine: the interpreter, the user, the visible files, the command.

All of it is found out once, when a sandbox is opened, by trying it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
from typing import Any

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.errors import InputError
from mopd_jax.sandbox import confine

GUEST = ("confine", "watch", "program", "guest")
_BELOW = "mopd_jax.sandbox"
# Makes modules of the texts in argv, since no file of this package is visible inside.
_BOOT = f"""
import json, sys, types
control, settings, *texts = sys.argv[1:]
for name in ("mopd_jax", {_BELOW!r}):
    sys.modules[name] = types.ModuleType(name)
for name, text in zip({GUEST!r}, texts):
    module = types.ModuleType({_BELOW!r} + "." + name)
    sys.modules[module.__name__] = module
    setattr(sys.modules[{_BELOW!r}], name, module)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(int(control), json.loads(settings))
"""
_PROBE = """
import ctypes, importlib, json, os, platform, site, socket, sys, sysconfig
for name in ("bz2", "decimal", "hashlib", "lzma", "select", "ssl", "sqlite3", "zlib"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
mapped = [line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps")]
print(json.dumps({
    "version": platform.python_version(),
    "recent": sys.version_info >= (3, 9) and hasattr(os, "pidfd_open"),
    "executable": os.path.realpath(sys.executable),
    "standard": [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")],
    "libraries": sorted({os.path.dirname(p) for p in mapped if p[0] == "/" and ".so" in p}),
    "packages": site.getsitepackages(),
}))
"""
# Uids that no user of a machine has, and that the uid maps of most containers include.
_UIDS = range(61184, 65519)
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # The order of a set of strings is the same in every run.
    "MALLOC_ARENA_MAX": "2",  # Arenas count as memory once a thread reserves them.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class SandboxError(InputError):
    """The level of the config does not work on this machine; the message has the remedy."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How workers are started on this machine.

    level: the config's.
    parts: what the level consists of here, for people and records.
    interpreter: what `_PROBE` prints in the interpreter that programs run with.
    other_user: this process is root, so each worker gets a uid of its own (`User`).
    bwrap: path of bubblewrap; "" at the level `limits`.
    """

    level: str
    parts: tuple[str, ...]
    interpreter: dict
    other_user: bool
    bwrap: str = ""


class User:
    """The user a worker runs as: the current one, or a uid reserved for it until `close`.

    Two workers must not share a uid, because a worker that ends kills all processes of its uid,
    and the kernel may count their processes together. A uid is reserved by binding the name of
    an abstract socket, which the kernel frees when the process ends. Such a name is seen within
    one network namespace only: containers with networks of their own but common pids could pick
    the same uid. The search starts at a random uid, which makes that unlikely.
    """

    def __init__(self, other: bool):
        """Reserves a uid if `other`, else takes the current user.

        Raises:
            SandboxError: all uids are taken.
        """
        self.uid = os.getuid()
        self.options: dict[str, Any] = {}  # Arguments of `subprocess.Popen`.
        self._name: socket.socket | None = None
        if not other:
            return
        first = int.from_bytes(os.urandom(4), "big")
        for step in range(len(_UIDS)):
            uid = _UIDS[(first + step) % len(_UIDS)]
            name = socket.socket(socket.AF_UNIX)
            try:
                name.bind(f"\0mopd-sandbox-uid-{uid}")
            except OSError:  # A worker of this or another process has it.
                name.close()
                continue
            self.uid, self._name = uid, name
            self.options = {"user": uid, "group": uid, "extra_groups": []}
            return
        raise SandboxError(
            f"all {len(_UIDS)} uids of sandbox workers ({_UIDS[0]} to {_UIDS[-1]}) are taken "
            "on this machine; end other runs, or lower sandbox.workers"
        )

    def close(self) -> None:
        """Frees the uid."""
        if self._name is not None:
            self._name.close()

    def __enter__(self) -> User:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def find(cfg: SandboxConfig) -> Layout:
    """Finds out how workers start here.

    Raises:
        SandboxError: the level does not work on this machine; says what is missing and what to
            do.
    """
    if platform.system() != "Linux":
        raise SandboxError(
            f"generated programs run on Linux only, and this is {platform.system()}; train on "
            "Linux, or use data whose verifier runs no programs"
        )
    other_user = os.getuid() == 0
    interpreter = _interpreter(cfg, other_user=other_user)
    parts, bwrap = [f"Python {interpreter['version']}"], ""
    if cfg.level == "namespaces":
        bwrap, version = _bubblewrap()
        parts += [version]
        if not confine.seccomp_known():
            raise SandboxError(
                f"sandbox.level='namespaces' needs seccomp, which this kernel or machine "
                f"({platform.machine()}) does not have; {_weaker()}"
            )
        parts += ["user, pid, mount, network and ipc namespaces", "seccomp"]
    else:
        parts += _weaker_parts(root=other_user)
    if other_user:
        parts += ["uids of its own"]
    return Layout(cfg.level, tuple(parts), interpreter, other_user, bwrap)


def _weaker_parts(*, root: bool) -> list[str]:
    """What confines programs at the level `limits`.

    Raises:
        SandboxError: too little of it, under a host that is not root.
    """
    landlock, seccomp = confine.landlock_version(), confine.seccomp_known()
    if not root and not (landlock and seccomp):
        lacking = " and ".join(
            name for name, known in (("Landlock", landlock), ("seccomp", seccomp)) if not known
        )
        raise SandboxError(
            f"sandbox.level='limits' needs {lacking} where this process is not root, and the "
            "kernel lacks it: programs would run as this user, and could read and change its "
            "files and this process. Start it as root, so that programs get uids of their own; "
            "or use sandbox.level='namespaces'; or a kernel with both (Landlock: Linux 5.13 or "
            "later, with `landlock` in its list of security modules)"
        )
    open_files = "NO Landlock: programs read and write all files that any user may"
    return [
        f"Landlock {landlock}" if landlock else open_files,
        "seccomp" if seccomp else "NO seccomp: the network is open",
    ]


def _weaker() -> str:
    return "or set sandbox.level='limits', which is weaker (docs/sandbox.md says how much)"


def _bubblewrap() -> tuple[str, str]:
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxError(
            "sandbox.level='namespaces' needs bubblewrap, and there is no `bwrap` on the PATH: "
            f"install it (Debian, Ubuntu: apt-get install bubblewrap), {_weaker()}"
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return path, done.stdout.strip() or "bubblewrap"


def _interpreter(cfg: SandboxConfig, *, other_user: bool) -> dict:
    """What `_PROBE` prints in the first interpreter that the workers' user can start.

    Raises:
        SandboxError: there is none; names those that were tried and why each failed.
    """
    own = os.path.realpath(sys.executable)
    candidates = [own, "/usr/bin/python3", "/usr/local/bin/python3"]
    tried = []
    for path in [cfg.python] if cfg.python else candidates:
        try:
            with User(other_user) as user:
                done = subprocess.run(
                    [path, "-I", "-S", "-B", "-c", _PROBE],
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=True,
                    cwd="/",
                    env=_ENVIRONMENT,
                    **user.options,
                )
            answers = json.loads(done.stdout)
        except SandboxError:
            raise
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            tried.append(f"{path}: {type(error).__name__}")
            continue
        if answers["recent"]:
            return answers
        tried.append(f"{path}: Python {answers['version']}, but 3.9 on Linux 5.4 is needed")
    who = "an unprivileged user" if other_user else "this user"
    raise SandboxError(
        f"{who} can start no Python for generated programs ({'; '.join(tried)}); install "
        "python3 from the system's packages, or set sandbox.python to an interpreter outside "
        "private folders such as /root"
    )


def visible(interpreter: dict) -> tuple[list[str], list[str]]:
    """The paths that programs see, and the folders below these that are hidden from them.

    Programs see only what the interpreter needs. Installed packages are hidden, because a
    package may be a data set with its answers.
    """
    loaders = [p for p in ("/usr/lib64", "/lib64", "/lib") if os.path.isdir(p)]
    wanted = {os.path.realpath(p) for p in interpreter["standard"] + interpreter["libraries"]}
    wanted |= {p for p in loaders if not os.path.islink(p) and p != "/lib"}
    wanted.add(interpreter["executable"])
    wanted = {p for p in wanted if os.path.exists(p) and p not in ("/", "/usr")}
    shown = [p for p in sorted(wanted) if not any(p.startswith(f"{o}/") for o in wanted)]
    packages = {os.path.realpath(p) for p in interpreter["packages"]}
    packages |= {f"{p}/{name}" for p in wanted for name in ("site-packages", "dist-packages")}
    hidden = [
        p
        for p in sorted(packages)
        if os.path.isdir(p) and any(p.startswith(f"{o}/") for o in shown)
    ]
    return shown, hidden


def command(
    layout: Layout, cfg: SandboxConfig, *, control: int, scratch: str
) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a worker.

    Args:
        control: number of the descriptor that jobs come by.
        scratch: the programs' working folder at the level `limits`, owned by the worker's user;
            at `namespaces` they get a private /tmp instead.
    """
    isolated = layout.level == "namespaces"
    shown, hidden = visible(layout.interpreter)
    home, readable, writable = "/tmp" if isolated else scratch, [], []
    version = 0 if isolated else confine.landlock_version()
    if version:
        writable = [home, "/dev/null"]
        readable = _without(shown, hidden) + ["/dev/zero", "/dev/urandom"]
        readable += [p for p in ("/etc/ld.so.cache",) if os.path.exists(p)]
    settings = {
        "isolated": isolated,
        "landlock": version,
        "seccomp": confine.seccomp_known(),
        "readable": readable,
        "writable": writable,
        "scratch": home,
    }
    texts = [pathlib.Path(__file__).with_name(f"{name}.py").read_text() for name in GUEST]
    # Not -I, which would ignore PYTHONHASHSEED. What -I keeps out is not there: the environment
    # is ours and the working folder is empty.
    run = [layout.interpreter["executable"], "-s", "-S", "-B", "-X", "utf8", "-c", _BOOT]
    run += [str(control), json.dumps(settings), *texts]
    if not isolated:
        return run, _ENVIRONMENT
    wrap = [
        layout.bwrap,
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    for kind in ("user", "pid", "net", "ipc", "uts", "cgroup-try"):
        wrap.append(f"--unshare-{kind}")
    wrap += ["--hostname", "sandbox"]
    for name, value in _ENVIRONMENT.items():
        wrap += ["--setenv", name, value]
    for path in shown:
        wrap += ["--ro-bind", path, path]
    for path in hidden:
        wrap += ["--tmpfs", path, "--remount-ro", path]
    for path in ("/lib", "/lib64", "/bin"):
        if os.path.islink(path):
            wrap += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path) and path != "/bin" and path not in shown:
            wrap += ["--ro-bind", path, path]
    wrap += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    wrap += ["--proc", "/proc", "--dev", "/dev", "--dir", "/tmp", "--chdir", "/tmp"]
    # Read-only, so that a program can leave nothing for the next.
    wrap += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*wrap, "--", *run], {}


def _without(shown: list[str], hidden: list[str]) -> list[str]:
    """Paths that cover `shown` but not `hidden`: Landlock can allow a path, not exclude one."""
    paths = []
    for path in shown:
        inner = [h for h in hidden if h == path or h.startswith(f"{path}/")]
        if not inner:
            paths.append(path)
        elif path not in inner:
            children = sorted(str(child) for child in pathlib.Path(path).iterdir())
            paths += _without([c for c in children if not os.path.islink(c)], inner)
    return paths
