"""Programs per second through the sandbox with full isolation, and verdicts at two loads.

    python benchmarks/sandbox.py                # three rounds of every level that works here
    python benchmarks/sandbox.py --loads 1 8    # also: are the verdicts the same?

A small program reads a number and prints its square. Every program is an execution of its own,
as in training: own processes and namespaces, output read and compared by the code verifier.
Rounds alternate between the levels, so that a busy machine disturbs all alike. Load n is n busy
processes besides the workers.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

from mopd_jax import verifiers
from mopd_jax.config import SandboxConfig
from mopd_jax.records import Problem
from mopd_jax.sandbox import Sandbox, SandboxError

SQUARE = "n = int(input())\nprint(n * n)"
# (program, is it right): small ones, wrong ones, and one at each limit.
MIXED = [
    *[(f"n = int(input())\nx = sum(range({10**k}))\nprint(n * n)", True) for k in range(7)],
    ("print(int(input()) ** 3)", False),
    ("raise ValueError", False),
    ("while True: pass", False),
    ("import time\ntime.sleep(1000)", False),
    ("x = []\nwhile True: x.append(bytes(1 << 20))", False),
    ("import os\nwhile True: os.fork()", False),
    (
        "import threading\nthreading.Thread(target=lambda: print(int(input()) ** 2)).start()",
        True,
    ),
]


def problem(tests):
    rows = [{"input": str(n), "output": str(n * n)} for n in range(2, 2 + tests)]
    return Problem("square", (), "", "code", {"tests": rows})


def answer(source):
    return f"```python\n{source}\n```"


def rate(sandbox, programs):
    """Programs a second of one round, each a row with one test."""
    rows = [problem(1)] * programs
    begun = time.perf_counter()
    verdicts = verifiers.verify_all(
        rows, [answer(SQUARE)] * programs, [False] * programs, sandbox=sandbox
    )
    seconds = time.perf_counter() - begun
    wrong = [verdict for verdict in verdicts if verdict.reward != 1.0]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {programs} right programs were refused: {wrong[0]}")
    return programs / seconds


@contextlib.contextmanager
def load(count):
    """`count` busy processes."""
    busy = [sys.executable, "-S", "-c", "while True: pass"]
    running = [subprocess.Popen(busy) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def mixed(sandbox, repeats):
    """The verdicts on MIXED, each `repeats` times: [(reward, test_fraction, error)]."""
    rows = MIXED * repeats
    verdicts = verifiers.verify_all(
        [problem(2)] * len(rows),
        [answer(source) for source, _ in rows],
        [False] * len(rows),
        sandbox=sandbox,
    )
    return [(v.reward, v.test_fraction, v.error) for v in verdicts]


def compare_loads(sandbox, loads, repeats):
    """Seconds at each load; ends the script if a verdict differs or is wrong."""
    want = [(float(right), float(right), "") for _, right in MIXED] * repeats
    seconds = {}
    for count in loads:
        with load(count):
            begun = time.perf_counter()
            found = mixed(sandbox, repeats)
            seconds[count] = time.perf_counter() - begun
        different = [i for i, (a, b) in enumerate(zip(found, want, strict=True)) if a != b]
        if different:
            i = different[0]
            raise SystemExit(f"load {count}: {MIXED[i % len(MIXED)]} gave {found[i]}")
    return seconds


def machine():
    return {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "load at start": os.getloadavg()[0],
        "uid": os.getuid(),
    }


def open_all(levels, workers):
    """{level: sandbox} of the levels that this machine has; others are named."""
    opened = {}
    for level in levels:
        cfg = SandboxConfig(level=level, workers=workers, cpu_seconds=1.0, idle_seconds=2.0)
        try:
            opened[level] = Sandbox(cfg)
            print(f"- {opened[level].description}")
        except SandboxError as error:
            print(f"- {level}: {error}")
    return opened


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="+", default=["namespaces", "limits"])
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args(argv)
    found = {"machine": machine(), "rates": {}, "loads": {}}
    print(json.dumps(found["machine"]))
    opened = open_all(args.levels, args.workers)
    for sandbox in opened.values():
        rate(sandbox, 2 * sandbox.workers)  # Starts the workers.
    rates = {level: [] for level in opened}
    for _ in range(args.rounds):
        for level, sandbox in opened.items():
            rates[level].append(rate(sandbox, args.programs))
    print("| level | workers | programs a second: rounds | 1-minute load after |")
    print("|---|---|---|---|")
    for level, sandbox in opened.items():
        rounds = ", ".join(f"{r:.0f}" for r in sorted(rates[level]))
        print(f"| {level} | {sandbox.workers} | {rounds} | {os.getloadavg()[0]:.1f} |")
        found["rates"][level] = rates[level]
    for level, sandbox in opened.items():
        if args.loads:
            seconds = compare_loads(sandbox, args.loads, args.repeats)
            found["loads"][level] = seconds
            taken = ", ".join(f"load {n} in {s:.1f} s" for n, s in seconds.items())
            count = len(MIXED) * args.repeats
            print(f"{level}: the same, right verdicts on {count} programs x 2 tests: {taken}")
        sandbox.close()
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
