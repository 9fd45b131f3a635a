"""The sandbox holds: hostile programs, deaths, limits apart from load, clear refusals.

`hostile_programs.py` has the programs and `sandbox_yard.py` what they attack.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import hostile_programs
import pytest
import sandbox_yard

from mopd_jax.config import ConfigError, SandboxConfig
from mopd_jax.sandbox import Outcome, Program, Sandbox, SandboxError, confine, layout, worker

HERE = pathlib.Path(__file__).parent
LEVELS = ("namespaces", "limits")


def open_or_skip(level, **changes):
    """A sandbox; a machine without bubblewrap or namespaces is no failure of this package."""
    try:
        return Sandbox(sandbox_yard.config(level, **changes))
    except SandboxError as error:
        if platform.system() != "Linux" or level == "namespaces":
            pytest.skip(f"no {level} here: {error}")
        raise


@pytest.fixture(scope="module", params=LEVELS)
def yard(request):
    os.environ["CANARY"] = "CANARY"
    with open_or_skip(request.param) as box:
        made = sandbox_yard.Yard(box)
        yield made
        made.close()
    os.environ.pop("CANARY")


@pytest.fixture(params=LEVELS)
def level(request):
    return request.param


def test_there_are_enough_of_them():
    names = [hostile.name for hostile in hostile_programs.PROGRAMS]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("hostile", hostile_programs.PROGRAMS, ids=lambda hostile: hostile.name)
def test_hostile_program_is_held(yard, hostile):
    outcome = yard.box.run(Program(yard.source(hostile)))
    assert not yard.problems(hostile, outcome)


@pytest.mark.parametrize(
    "level",
    ["namespaces", pytest.param("limits", marks=pytest.mark.slow)],
)
@pytest.mark.skipif(os.getuid() != 0, reason="the tests above ran as an unprivileged user")
def test_hostile_programs_are_held_where_the_host_is_unprivileged(level):
    open_or_skip(level).close()
    done = subprocess.run(
        [sys.executable, HERE / "sandbox_yard.py", "65534", level],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{len(hostile_programs.PROGRAMS)} programs as 65534\n"


def test_an_attack_that_works_is_seen(yard):
    """Or the tests above would say nothing."""
    for source, problem in (
        ("print('BREACH')", "BREACH"),
        (f"print('{sandbox_yard.SECRET}')", "the secret"),
        ("while True: pass", "cpu"),
    ):
        hostile = hostile_programs.Hostile("", source)
        assert problem in str(yard.problems(hostile, yard.box.run(Program(source))))
    (yard.outside / "f").touch()
    assert "f was written" in str(yard.problems(hostile, yard.box.run(Program(""))))
    (yard.outside / "f").unlink()
    if yard.box.level == "limits":
        return  # It cannot look for the word: that level shows no /proc.
    scan = next(h for h in hostile_programs.PROGRAMS if h.name == "memory_of_the_zygote")
    source = yard.source(scan) + "\n# PREVIOUS-PROGRAM-WORD"
    assert b"BREACH" in yard.box.run(Program(source)).stdout


SPAN = """
import time
begun = time.monotonic()
time.sleep(0.2)
print(begun, time.monotonic(), input())
"""
FORKS = """
import os
for _ in range(4):
    if os.fork() == 0: break
WORK
for _ in range(4):
    try: os.wait()
    except OSError: pass
"""
LOOK = """
import os, time
open("mark", "w").close()
time.sleep(0.5)
print(sorted(os.listdir(".")), [p for p in os.listdir("/proc") if p.isdigit()], os.getpid())
"""
HOLD = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
import sandbox_yard
from mopd_jax.sandbox import Program, Sandbox, worker
uids, run = set(), worker.Worker.run
def recorded(self, program):
    uids.add(self.uid)
    return run(self, program)
worker.Worker.run = recorded
box = Sandbox(sandbox_yard.config(sys.argv[2], workers=2, idle_seconds=20.0))
for _ in range(2):
    threading.Thread(target=box.run, args=[Program("import time\\ntime.sleep(1000)")]).start()
while len(uids) < 2:
    time.sleep(0.01)
print(*uids, flush=True)
"""


def of_user(*uids):
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid in uids:
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="tells the workers apart by their uids")
def test_all_ends_when_the_host_is_killed(level):
    open_or_skip(level).close()
    host = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(HERE), level],
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    uids = tuple(map(int, host.stdout.readline().split()))
    deadline = time.monotonic() + 60
    while len(found := of_user(*uids)) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) >= 6
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    while of_user(*uids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not of_user(*uids)


def test_it_outlives_the_thread_that_opened_it(level):
    """The kernel ends a worker with the thread that started it."""
    opened = []
    thread = threading.Thread(target=lambda: opened.append(Sandbox(sandbox_yard.config(level))))
    open_or_skip(level).close()
    thread.start()
    thread.join()
    with opened[0] as box:
        time.sleep(0.1)
        assert box.run(Program("print(1)")).stdout == b"1\n"


def test_no_more_run_at_a_time_than_there_are_workers(level):
    """And results come back to the thread that asked."""
    with open_or_skip(level, workers=2, processes=8) as box:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda i: box.run(Program(SPAN, stdin=str(i))), range(8)))
        spans = [tuple(map(float, o.stdout.split())) for o in done]
        assert [number for _, _, number in spans] == list(range(8))
        for begun, _, _ in spans:
            assert sum(b <= begun < e for b, e, _ in spans) <= 2


def test_a_worker_that_is_killed_is_replaced(level):
    with open_or_skip(level) as box:
        running, *_ = box._free.queue
        running._process.kill()
        assert box.run(Program("print(1)")).stdout == b"1\n"


def test_who_breaks_a_worker_twice_is_to_blame(level, monkeypatch):
    right = worker.Worker.run

    def broken_by(*sources):
        def run(self, program):
            if program.source in sources:
                return Outcome("broken", detail="gone")
            return right(self, program)

        monkeypatch.setattr(worker.Worker, "run", run)

    with open_or_skip(level) as box:
        broken_by("x")
        assert box.run(Program("x")).kind == "hostile"
        broken_by("x", "print(1)")
        assert box.run(Program("x")).kind == "broken"


def test_limits_are_of_all_processes_together(level):
    with open_or_skip(level, cpu_seconds=0.6) as box:
        one = "import time\nwhile time.process_time() < 0.25: pass"
        assert box.run(Program(one)).kind == "ok"
        forks = FORKS.replace("WORK", one)
        assert box.run(Program(forks)).kind == "cpu"
        assert box.run(Program(one, cpu_seconds=0.1)).kind == "cpu"
        assert box.run(Program(forks, cpu_seconds=20.0)).kind == "ok"


def test_what_the_machine_starves_is_no_failure(level):
    """Busy, below its CPU limit, and out of time: the machine's doing."""
    cfg = sandbox_yard.config(level, cpu_seconds=20.0, wall_seconds=100.0)
    open_or_skip(level).close()
    object.__setattr__(cfg, "wall_seconds", 0.3)
    with Sandbox(cfg) as box:
        assert box.run(Program("while True: pass")).kind == "starved"


def test_programs_see_nothing_of_each_other():
    opened = open_or_skip("namespaces", workers=2)
    with opened as box, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for outcome in pool.map(box.run, [Program(LOOK)] * 2):
            assert outcome.stdout == b"['mark'] ['1', '2'] 2\n"


def test_the_same_program_says_the_same_every_time(level):
    source = "import random\nprint(random.random(), list({'a', 'b', 'c', 'd'}), hash('x'))"
    said = set()
    for _ in range(2):
        with (
            open_or_skip(level, workers=2) as box,
            concurrent.futures.ThreadPoolExecutor(2) as pool,
        ):
            said |= {o.stdout for o in pool.map(box.run, [Program(source)] * 4)}
    assert len(said) == 1


# --- what cannot be had


def test_no_level_takes_the_place_of_another(monkeypatch):
    folder = tempfile.TemporaryDirectory(prefix="path-")  # Others can enter it.
    tmp_path = pathlib.Path(folder.name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt-get install bubblewrap.*level='limits'"):
        Sandbox(sandbox_yard.config("namespaces"))
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho setting up uid map: Permission denied >&2\nexit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(SandboxError, match="uid map: Permission denied.*set sandbox.level="):
        Sandbox(sandbox_yard.config("namespaces"))
    folder.cleanup()


def test_an_interpreter_that_nobody_can_start_is_named():
    with pytest.raises(
        SandboxError, match="/no/such/python: FileNotFoundError.*sandbox.python"
    ):
        Sandbox(sandbox_yard.config("limits", python="/no/such/python"))


def test_an_interpreter_can_be_named(level):
    with open_or_skip(level) as box:
        path = box._layout.interpreter["executable"]
    with open_or_skip(level, python=path) as box:
        said = box.run(Program("import sys\nprint(sys.executable)")).stdout.decode().strip()
    assert os.path.realpath(said) == path


def test_without_seccomp_there_are_no_namespaces(monkeypatch):
    monkeypatch.setattr(confine, "seccomp_known", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/true")
    with pytest.raises(SandboxError, match="needs seccomp"):
        layout.find(SandboxConfig())


@pytest.mark.parametrize("missing", ["seccomp_known", "landlock_version"])
def test_the_weaker_level_says_what_it_lacks(monkeypatch, missing):
    monkeypatch.setattr(confine, missing, lambda: 0)
    if os.getuid():
        with pytest.raises(SandboxError, match="Start it as root"):
            Sandbox(sandbox_yard.config("limits"))
        return
    with Sandbox(sandbox_yard.config("limits")) as box:
        assert "NO " in box.description
        assert box.run(Program("print(1)")).stdout == b"1\n"
        assert box.run(Program("while True: pass")).kind == "cpu"
        assert box.run(Program("import os\nwhile True: os.fork()")).kind == "error"


def test_what_starts_and_does_not_run_is_refused(level, monkeypatch):
    open_or_skip(level).close()
    monkeypatch.setattr(worker.Worker, "run", lambda *args: Outcome("broken", detail="pidfd"))
    with pytest.raises(SandboxError, match=f"{level}.*does not run a program .broken pidfd."):
        Sandbox(sandbox_yard.config(level))


def test_programs_see_the_standard_library_and_no_packages(tmp_path):
    for name in (
        "lib/py/json",
        "lib/py/site-packages/data",
        "lib/dist-packages",
        "bin",
        "home",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("bin/python", "lib/py/os.py"):
        (tmp_path / name).touch()
    found = {
        "standard": [f"{tmp_path}/lib/py"] * 2,
        "libraries": [f"{tmp_path}/lib"],
        "executable": f"{tmp_path}/bin/python",
        "packages": [f"{tmp_path}/lib/py/site-packages", f"{tmp_path}/home/packages"],
    }
    shown, hidden = layout.visible(found)
    mine = [path for path in shown if path.startswith(str(tmp_path))]
    assert mine == [f"{tmp_path}/bin/python", f"{tmp_path}/lib"]
    assert hidden == [f"{tmp_path}/lib/dist-packages", f"{tmp_path}/lib/py/site-packages"]
    # Landlock cannot take away, so what is hidden is left out of what is given.
    given = [p for p in layout._without(shown, hidden) if p.startswith(str(tmp_path))]
    inside = [f"{tmp_path}/lib/py/json", f"{tmp_path}/lib/py/os.py"]
    assert given == [f"{tmp_path}/bin/python", *inside]


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(SandboxError, match="Linux only"):
        layout.find(SandboxConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [("workers", 0), ("memory_mb", 8), ("wall_seconds", 20.0), ("cpu_seconds", 0.0)],
)
def test_settings_that_cannot_work_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(SandboxConfig(), **{field: value})


# --- the filter


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_numbers_of_calls_are_those_of_the_kernel_headers(machine, header):
    path = pathlib.Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"no {path}: install linux-libc-dev")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)", path.read_text(), re.MULTILINE)
    other = {"fstatat": "newfstatat"}  # The name that the generic table has it by.
    real = {other.get(name, name): int(number) for name, number in found}
    for table in (confine.ALLOWED, confine.CHECKED):
        for name, number in confine.numbers(table, machine).items():
            assert real[name] == number, name


def decide(rules, number, *args, architecture=0xC000003E):
    """What the filter's program returns for a call."""
    words = {0: number, 4: architecture}
    for i, value in enumerate(args):
        words[16 + 8 * i] = value & 0xFFFFFFFF
    at, held = 0, 0
    while True:
        code, true, false, value = rules[at]
        at += 1
        if code == 0x20:
            held = words.get(value, 0)
        elif code == 0x06:
            return value
        else:
            test = {
                0x15: held == value,
                0x35: held >= value,
                0x25: held > value,
                0x45: held & value,
            }
            at += true if test[code] else false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("isolated", "landlock"), [(True, 0), (False, 2), (False, 3)])
def test_every_call_is_decided_as_the_tables_say(machine, isolated, landlock):
    rules = confine.filter_rules(machine, isolated=isolated, pid=77, landlock=landlock)
    architecture = confine._MACHINES[machine][0]
    by_name = confine.numbers(confine.ALLOWED, machine)
    allowed = set(by_name.values())
    checked = confine.numbers(confine.CHECKED, machine)
    shared = {"tgkill", "chmod", "fchmod", "fchmodat", "utime", "utimes", "utimensat"}
    shared |= {"futimesat"} | ({"truncate", "open", "openat"} if landlock < 3 else set())
    shared = set() if isolated else shared & by_name.keys()
    special = set(checked.values()) | {by_name[name] for name in shared}

    def ask(number, *args):
        return decide(rules, number, *args, architecture=architecture)

    for number in range(600):
        if number not in special:
            want = 0x7FFF0000 if number in allowed else 0x00050026
            assert ask(number, 1, 1) == want, number
    refused, allow = 0x00050001, 0x7FFF0000
    assert ask(checked["clone"], 17) == allow and ask(checked["clone"], 0x10000011) == refused
    assert ask(checked["socketpair"], 1, 1) == allow
    assert ask(checked["socketpair"], 1, 5 | 0x80000) == allow
    assert ask(checked["socketpair"], 2, 1) == refused
    # A pair of datagram sockets can write to any other.
    for flags in (0, 0x800, 0x80000, 0x80800):
        assert ask(checked["socketpair"], 1, 2 | flags) == (allow if isolated else refused)
    for command in (8, 10, 15):  # Who gets a signal, and which.
        assert ask(checked["fcntl"], 0, command) == (allow if isolated else refused)
    for command in (0, 1, 2, 3, 4, 6, 1030, 1031):
        assert ask(checked["fcntl"], 0, command) == allow
    for name in shared - {"open", "openat", "tgkill"}:
        assert ask(by_name[name]) == refused
    # To read and to empty; to write and to empty; to read; to make.
    for name, before in (("open", (0,)), ("openat", (0, 0))):
        for flags in (0x200, 0x201, 0, 0x40) if name in by_name else ():
            held = flags == 0x200 and not isolated and landlock < 3
            assert ask(by_name[name], *before, flags) == (refused if held else allow)
    assert ask(checked["socket"], 2) == refused
    assert ask(checked["socket"], 1) == (allow if isolated else refused)
    assert ask(checked["kill"], 77) == allow
    assert ask(checked["kill"], -1) == (allow if isolated else refused)
    assert ask(checked["prlimit64"], 0) == allow and ask(checked["prlimit64"], 1) == refused
    assert decide(rules, 0, architecture=3) == 0x80000000
    assert ask(0x40000000) == 0x80000000
