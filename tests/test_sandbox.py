"""The sandbox holds: hostile programs, deaths, limits apart from load, clear refusals.

`hostile_programs.py` has the programs and `sandbox_yard.py` what they attack.
"""

import ast
import concurrent.futures
import dataclasses
import errno
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
import wants
from sandbox_yard import open_or_skip

from mopd_jax import sandbox
from mopd_jax.config import SandboxConfig
from mopd_jax.errors import ConfigError
from mopd_jax.sandbox import (
    Outcome,
    Program,
    Sandbox,
    SandboxError,
    confine,
    layout,
    watch,
    worker,
)

HERE = pathlib.Path(__file__).parent
LEVELS = ("namespaces", "limits")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason=wants.reason("root"))


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


def test_it_could_be_a_distribution_of_its_own():
    """Of this project it imports its settings and the base of its errors, and nothing else."""
    imported = set()
    for path in pathlib.Path(sandbox.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {n for n in names if n.partition(".")[0] not in sys.stdlib_module_names}
    own = {name for name in imported if name.startswith("mopd_jax.sandbox")}
    assert imported - own == {"mopd_jax.config.sandbox", "mopd_jax.errors"}


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


@needs_root  # Tells the workers apart by their uids.
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


SPIN = "import time\nwhile time.process_time() < 0.6: pass\nprint(input())"


def meddled(box, monkeypatch, act, source=SPIN):
    """The outcome of a program while `act(worker, number of the run)` meddles with each run."""
    right, program, count = worker.Worker.run, Program(source, stdin="7"), []

    def run(self, job):
        if job is program:
            count.append(self)
            threading.Timer(0.2, act, [self, len(count)]).start()
        return right(self, job)

    monkeypatch.setattr(worker.Worker, "run", run)
    return box.run(program), len(count)


def kill_the_program(of, *_):
    """It is the leaf of its worker's tree; the kernel's choice when memory runs out."""
    os.kill(min(watch.below(of._process.pid), key=lambda pid: len(watch.below(pid))), 9)


def test_a_program_that_the_machine_kills_runs_again(level, monkeypatch):
    with open_or_skip(level) as box:

        def once(of, number):
            if number == 1:
                kill_the_program(of)

        outcome, runs = meddled(box, monkeypatch, once)
        assert (outcome.kind, outcome.stdout, runs) == ("ok", b"7\n", 2)
        outcome, runs = meddled(box, monkeypatch, kill_the_program)
        assert (outcome.kind, outcome.detail, runs) == ("signal", "SIGKILL", 2)
        itself = "import os\nos.kill(os.getpid(), 9)"
        outcome, runs = meddled(box, monkeypatch, lambda *_: None, itself)
        assert (outcome.kind, outcome.detail, runs) == ("signal", "SIGKILL", 2)
        outcome, runs = meddled(box, monkeypatch, lambda *_: None, "import os\nos.abort()")
        assert (outcome.kind, runs) == ("signal", 1)


def test_a_worker_that_the_machine_kills_is_no_programs_doing(level, monkeypatch):
    with open_or_skip(level) as box:

        def twice(of, number):
            if number < 3:
                of._process.kill()

        outcome, runs = meddled(box, monkeypatch, twice)
        # Without namespaces the program's supervisor outlives its worker.
        assert (outcome.kind, runs) == ("ok", 3 if level == "namespaces" else 1)
        if level == "namespaces":
            outcome, runs = meddled(box, monkeypatch, lambda of, _: of._process.kill())
            assert (outcome.kind, runs) == ("broken", 3)
        assert box.run(Program("print(1)")).stdout == b"1\n"


def test_a_supervisor_that_breaks_is_its_programs_doing(level, monkeypatch):
    def break_it(of, _):
        """The last but the program's own in its worker's tree."""
        pids = watch.below(of._process.pid)
        os.kill(next(pid for pid in pids if len(watch.below(pid)) == 1), 9)

    with open_or_skip(level) as box:
        outcome, runs = meddled(box, monkeypatch, break_it)
        assert (outcome.kind, runs) == ("hostile", 2)


def test_a_host_without_descriptors_blames_nobody_and_loses_none(level, monkeypatch):
    with open_or_skip(level) as box:
        box.run(Program(""))
        before = len(os.listdir("/proc/self/fd"))
        running = box._free.queue[-1]
        for name, module in (("memfd_create", os), ("pipe", os), ("send_fds", worker.socket)):
            right, left = getattr(module, name), [1]

            def scarce(*args, right=right, left=left):
                if not left:
                    raise OSError(errno.EMFILE, "Too many open files")
                left.pop()
                return right(*args)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, scarce)
                for _ in range(2):
                    outcome = running.run(Program("print(1)"))
                assert (outcome.kind, outcome.started) == ("broken", False)
                if name == "memfd_create":
                    with pytest.raises(SandboxError, match="Too many open files.*ulimit -n"):
                        worker.Worker(box._layout, box._cfg, box._starter.call)
                outcome = box.run(Program("print(1)"))
                assert outcome.kind == "broken" and "Too many open files" in outcome.detail
            assert box.run(Program("print(1)")).stdout == b"1\n"
            running = box._free.queue[-1]
            assert len(os.listdir("/proc/self/fd")) == before
        right = worker._sealed

        def scarce_for_one(content):
            if content == b"x":
                raise OSError(errno.ENOSPC, "No space left on device")
            return right(content)

        monkeypatch.setattr(worker, "_sealed", scarce_for_one)
        assert box.run(Program("print(1)", stdin="x")).kind == "broken"


def test_a_pause_of_the_machine_is_no_sleep_of_the_program(level, monkeypatch):
    def pause(of, _):
        every = [of._process.pid, *watch.below(of._process.pid)]
        for pid in every:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)
        for pid in reversed(every):
            os.kill(pid, signal.SIGCONT)

    source = "import time\nfor _ in range(5): time.sleep(0.1)\nprint(input())"
    with open_or_skip(level, idle_seconds=1.2) as box:
        outcome, _ = meddled(box, monkeypatch, pause, source)
        assert (outcome.kind, outcome.stdout) == ("ok", b"7\n")
        assert outcome.wall > 2


@needs_root  # An unprivileged host has one uid.
def test_no_two_workers_share_a_uid(level, monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)  # Every search begins at the same number.
    with open_or_skip(level, workers=2) as one, open_or_skip(level) as other:
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(one.run(Program(SPIN, "7"))))
        second = worker.Worker(one._layout, one._cfg, one._starter.call)
        uids = [one._free.queue[-1].uid, other._free.queue[-1].uid, second.uid]
        assert len(set(uids)) == 3
        thread.start()
        time.sleep(0.2)
        other.close()
        second.close()
        thread.join()
        assert outcomes[0].stdout == b"7\n"
        # In another process, and free again once it is closed.
        code = "import os\nos.urandom = bytes\nfrom mopd_jax.sandbox import layout\n"
        code += "print(layout.User(True).uid)"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert int(said.stdout) not in (uids[0], os.getuid())
        assert int(said.stdout) == min(uids[1:])


def test_uids_that_are_all_taken_are_an_error(monkeypatch):
    monkeypatch.setattr(layout, "_UIDS", range(61184, 61186))
    said = "all 2 uids of sandbox workers .61184 to 61185. are taken"
    with layout.User(True), layout.User(True), pytest.raises(SandboxError, match=said):
        layout.User(True)
    made = layout.User(True)
    with layout.User(True):
        made.close()
        assert layout.User(True).uid == made.uid


def test_clearing_lists_every_folder_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed, right = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or right(path))
    for i in range(300):
        (tmp_path / f"empty{i}").mkdir()
    for i in range(50):
        (tmp_path / f"full{i}" / "deeper").mkdir(parents=True)
        (tmp_path / f"full{i}" / "file").touch()
        (tmp_path / f"full{i}").chmod(0)
    watch.clear(str(tmp_path))
    assert not os.listdir(tmp_path)
    assert len(listed) == 51


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


@pytest.mark.parametrize("missing", ["seccomp_known", "landlock_version"])
def test_an_unprivileged_host_is_not_left_without_them(monkeypatch, missing):
    monkeypatch.setattr(confine, missing, lambda: 0)
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    name = missing.partition("_")[0]
    with pytest.raises(SandboxError, match=f"(?i)needs {name} where .* not root.*namespaces"):
        layout.find(sandbox_yard.config("limits"))


def test_a_temporary_folder_that_cannot_be_used_is_named(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(SandboxError, match="/no/such/folder/mopd-sandbox-.*TMPDIR"):
        Sandbox(sandbox_yard.config("limits"))


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
        pytest.skip(wants.reason("linux-libc-dev"))
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


def test_no_uid_left_says_so(monkeypatch):
    if os.getuid():
        pytest.skip(wants.reason("root"))
    monkeypatch.setattr(layout, "_UIDS", range(61_000, 61_001))
    said = "^all 1 uids of sandbox workers"
    with layout.User(True), pytest.raises(SandboxError, match=said):
        Sandbox(SandboxConfig(level="limits", workers=1))
    found = layout.find(SandboxConfig(level="limits"))
    with layout.User(True), pytest.raises(SandboxError, match=said):
        worker.Worker(found, SandboxConfig(level="limits"), lambda start: start())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("isolated", "landlock"), [(True, 0), (False, 2), (False, 3)])
def test_every_call_is_decided_as_the_tables_say(machine, isolated, landlock):
    rules = confine.filter_rules(machine, isolated=isolated, pid=77, landlock=landlock)
    architecture = confine._MACHINES[machine][0]
    by_name = confine.numbers(confine.ALLOWED, machine)
    allowed = set(by_name.values())
    checked = confine.numbers(confine.CHECKED, machine)
    shared = {"tgkill", "chmod", "fchmod", "fchmodat", "utime", "utimes", "utimensat"}
    shared |= {"bind", "connect", "listen", "accept", "accept4"}
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
    # To read and to empty, as mode 3; to write and to empty; to read; to make.
    for name, before in (("open", (0,)), ("openat", (0, 0))):
        for flags in (0x200, 0x203, 0x201, 0x202, 0, 3, 0x40) if name in by_name else ():
            held = flags in (0x200, 0x203) and not isolated and landlock < 3
            assert ask(by_name[name], *before, flags) == (refused if held else allow)
    assert ask(checked["socket"], 2) == refused
    assert ask(checked["socket"], 1) == (allow if isolated else refused)
    assert ask(checked["kill"], 77) == allow
    assert ask(checked["kill"], -1) == (allow if isolated else refused)
    assert ask(checked["prlimit64"], 0) == allow and ask(checked["prlimit64"], 1) == refused
    assert decide(rules, 0, architecture=3) == 0x80000000
    assert ask(0x40000000) == 0x80000000
