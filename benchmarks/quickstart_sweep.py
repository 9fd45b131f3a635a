"""Every method of the quick start at every learning rate of one small sweep, over seeds.

    python benchmarks/quickstart_sweep.py --out runs/sweep            # half an hour on 2 cores
    python benchmarks/quickstart_sweep.py --out runs/sweep --report   # the tables again

Each run is `mopd train --config=configs/quickstart.py:METHOD` in a process of its own; a run
that is finished is not run again. All methods see the same seeds, prompts and evaluation draws.
A method's rate is its best over the seeds' mean, so no method is shown at another's rate.
Intervals are 95 % bootstraps over held-out prompts within each seed; three seeds say little
about the spread over seeds, so each seed's figure is shown with the mean.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("mopd", "positive", "anchored", "sdpo", "grpo", "opd")
RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (0, 1, 2)


def run(method, rate, seed, out, steps):
    """One run in its own folder; returns its wall seconds."""
    folder = out / f"{method}-{rate:g}-{seed}"
    begun = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "mopd_jax.cli",
        "train",
        f"--config={ROOT / 'configs/quickstart.py'}:{method}",
        f"--config.optimizer.learning_rate={rate}",
        f"--config.seed={seed}",
        f"--workdir={folder}",
        *([f"--config.steps={steps}"] if steps else []),
    ]
    # One core a run: two runs share two cores without waiting on each other's threads.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags}
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr[-2000:]}")
    return time.perf_counter() - begun


def outcomes(folder):
    """Solved, f64[P, n] of 0 and 1, before the first step and after the last."""
    files = sorted((folder / "evaluations").glob("step_*.json"))
    return [np.array(json.loads(f.read_text())["solved"], float) for f in (files[0], files[-1])]


def interval(per_seed, rng):
    """95 % interval of the mean over seeds; prompts are resampled within each seed."""
    means = []
    for _ in range(2000):
        draws = [x[rng.integers(0, len(x), len(x))].mean() for x in per_seed]
        means.append(np.mean(draws))
    return np.quantile(means, [0.025, 0.975])


def report(out, methods, rates, seeds):
    rng = np.random.default_rng(0)
    after, before = {}, None
    for method in methods:
        for rate in rates:
            pairs = [outcomes(out / f"{method}-{rate:g}-{seed}") for seed in seeds]
            after[method, rate] = [b.mean(axis=1) for _, b in pairs]
            before = [a.mean(axis=1) for a, _ in pairs]
    lines = [
        f"Machine: {platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, jax {jax.__version__}. Solve rate (mean@8) on held-out "
        f"prompts, mean of seeds {', '.join(map(str, seeds))}; before training "
        f"{np.mean([x.mean() for x in before]):.3f}.",
        "",
        "| method | " + " | ".join(f"rate {rate:g}" for rate in rates) + " |",
        "|---|" + "---|" * len(rates),
    ]
    best = {}
    for method in methods:
        cells = [np.mean([x.mean() for x in after[method, rate]]) for rate in rates]
        best[method] = rates[int(np.argmax(cells))]
        lines.append(f"| {method} | " + " | ".join(f"{c:.3f}" for c in cells) + " |")
    lines += [
        "",
        "| method at its best rate | rate | each seed | mean | gain over start | "
        f"{methods[0]} minus this |",
        "|---|---|---|---|---|---|",
    ]
    top = after[methods[0], best[methods[0]]]
    for method in methods:
        mine = after[method, best[method]]
        seeds = " / ".join(f"{x.mean():.3f}" for x in mine)
        cells = []
        for gap in (
            [a - b for a, b in zip(mine, before, strict=True)],
            [a - b for a, b in zip(top, mine, strict=True)],
        ):
            low, high = interval(gap, rng)
            mean = np.mean([x.mean() for x in gap])
            cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        if method == methods[0]:
            cells[1] = "-"
        mean = np.mean([x.mean() for x in mine])
        lines.append(
            f"| {method} | {best[method]:g} | {seeds} | {mean:.3f} | {cells[0]} | {cells[1]} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sweep"))
    parser.add_argument("--steps", type=int, help="default: the config's")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="the first is compared")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    args = parser.parse_args()
    if not args.report:
        jobs = [(m, r, s) for s in args.seeds for m in args.methods for r in args.rates]
        with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
            todo = {pool.submit(run, *job, args.out, args.steps): job for job in jobs}
            for future in concurrent.futures.as_completed(todo):
                print(*todo[future], f"{future.result():.0f} s", flush=True)
    print(report(args.out, args.methods, args.rates, args.seeds))


if __name__ == "__main__":
    main()
