"""The fused divergence against the naive loss: time, memory, and whether the results agree.

    python benchmarks/divergence.py                    # on this machine's device
    python benchmarks/divergence.py --memory v5e h100  # compiled for chips it does not have
    python benchmarks/divergence.py --schedule         # the price of alpha as an array

It times value and gradients to hidden states and head of the mean loss over valid tokens.
Contestants take turns within a round, in another order each round; a time ratio is of
the two fastest rounds, its range that of the ratios within rounds. Temporaries are the memory
the compiler reports besides inputs and results. A result unlike naive's ends the benchmark.
"""

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time

import divergence_contestants as contestants
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.experimental import topologies

from mopd_jax.kernels import dispatch, model_shapes

# (tokens, width, vocabulary).
SHAPES = (
    (2048, *model_shapes.SHAPES["SmolLM2-135M"]),
    (1024, *model_shapes.SHAPES["Qwen3-0.6B"]),
)
MEMORY_SHAPES = ((65536, *model_shapes.SHAPES["Qwen3-4B"]),)
KINDS = ("jsd", "forward_kl", "reverse_kl", "cross_entropy")
# Largest relative difference to naive; larger if a contestant rounds on purpose or is not ours.
LIMITS, LOOSE_LIMIT = {"float32": 1e-4, "bfloat16": 2e-2}, 0.2

# An H100 SXM as XLA describes a GPU, for machines without one.
H100 = """platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 } gpu_device_info {
cuda_compute_capability { major: 9 } core_count: 132 clock_rate_ghz: 1.98 fpus_per_core: 128
device_memory_size: 85029158912 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
registers_per_block_limit: 65536 registers_per_core_limit: 65536 shared_memory_per_block: 49152
shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 }"""
# Topologies, of which one device is used, and what keeps their compiler from looking for a TPU.
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
NO_TPU |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}

COLUMNS = """N, D, V|valid|loss|contestant|wall s: median (range)|CPU s: least
time / naive (rounds)|temporaries MiB|memory / naive|difference: value / hidden / head"""
SIZES = {"temporaries": "temp", "inputs": "argument", "results": "output"}


class WrongResult(ValueError):
    """A contestant computes something else than naive."""


def check(label, result, base, dtype):
    """Largest differences of (value, hidden, head) relative to the largest entry of naive's.

    Raises:
        WrongResult: one is more than rounding, or not a number.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = zip(result, base, strict=True)
        found = [float(np.max(np.abs(x - y)) / np.max(np.abs(y))) for x, y in pairs]
    limit = LIMITS[dtype] if contestants.is_ours(label) else LOOSE_LIMIT
    if not all(x <= limit for x in found):
        shown = ", ".join(f"{x:.1e}" for x in found)
        raise WrongResult(f"{label} is not naive: value, hidden, head differ by {shown}")
    return found


def measure(case, labels, repeat):
    """A row of figures per contestant, naive's first; what cannot run has "refused" in its.

    Raises:
        WrongResult: one of ours is not naive's.
    """
    arrays, calls, base = case.arrays(), {}, None
    rows = {label: {"contestant": label} for label in labels}
    for label, row in rows.items():
        try:
            call, temporaries = contestants.prepare(label, case, arrays)
            result = contestants.on_host(call())
            base = result if label == "naive" else base
            if base is not None and label != "products":
                row["differences"] = check(label, result, base, case.dtype)
        except Exception as error:
            if isinstance(error, WrongResult) and contestants.is_ours(label):
                raise
            row["refused"] = one_line(error)
            continue
        calls[label] = call
        row |= {"temporaries": temporaries, "wall_s": [], "cpu_s": []}
    for first in range(repeat if calls else 0):
        for i in range(len(calls)):
            label = list(calls)[(first + i) % len(calls)]
            wall, cpu = time.perf_counter(), time.process_time()
            result = calls[label]()
            rows[label]["cpu_s"].append(time.process_time() - cpu)
            rows[label]["wall_s"].append(time.perf_counter() - wall)
            del result
    naive = rows["naive"]
    for row in (rows[label] for label in calls if "naive" in calls):
        rounds = [x / y for x, y in zip(row["wall_s"], naive["wall_s"], strict=True)]
        row["time_ratio"] = min(row["wall_s"]) / min(naive["wall_s"])
        row["time_ratio_range"] = min(rounds), max(rounds)
        memory, most = row["temporaries"], max(naive["temporaries"], 1)
        row["memory_ratio"] = None if memory is None else memory / most
    return list(rows.values())


def schedule(case, repeat):
    """How much longer a call takes whose alpha and temperature are arrays: a row for each
    implementation that serves them. The two take turns, first one and then the other first."""
    arrays, rows = case.arrays(), []
    for name in ("chunked", "reference"):
        calls = [contestants.scheduled(case, name, arrays, traced) for traced in (False, True)]
        values = [float(call()[0]) for call, _ in calls]
        if not abs(values[0] - values[1]) <= LIMITS[case.dtype] * abs(values[0]):
            raise WrongResult(f"{name}: {values[1]} as arrays, {values[0]} as Python floats")
        wall = [], []
        for first in range(repeat):
            for i in (first % 2, 1 - first % 2):
                begun = time.perf_counter()
                calls[i][0]()
                wall[i].append(time.perf_counter() - begun)
        rounds = sorted(y / x for x, y in zip(*wall, strict=True))
        row = {"contestant": name, "wall_s": wall, "ratios": rounds}
        row |= {"least": min(wall[1]) / min(wall[0]), "median": statistics.median(rounds)}
        row["temporaries"] = [bytes_ for _, bytes_ in calls]
        rows.append(row)
    return rows


def show_schedule(cases, repeat):
    """The table of `schedule`, and its rows."""
    show("N, D, V", "valid", "implementation", "static s: least", "array / static: least")
    show(*["---"] * 5)
    runs = []
    for case in cases:
        rows = schedule(case, repeat)
        runs.append(dataclasses.asdict(case) | {"rows": rows})
        for row in rows:
            ratio = "{:.3f} (median {:.3f}, {:.3f} to {:.3f})".format(
                row["least"], row["median"], row["ratios"][0], row["ratios"][-1]
            )
            start = ", ".join(map(str, case.shape)), f"{case.valid:g}", row["contestant"]
            show(*start, f"{min(row['wall_s'][0]):.4g}", ratio)
    return runs


def one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240].replace("|", "/")


def show(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def show_row(case, row):
    """A row of the table whose columns are COLUMNS."""
    kind = case.kind if case.alpha is None else f"{case.kind} {case.alpha:g}"
    start = [", ".join(map(str, case.shape)), f"{case.valid:g}", kind, row["contestant"]]
    if "refused" in row:
        return show(*start, row["refused"], *["-"] * 5)
    wall, ratio = row["wall_s"], "-"
    times = f"{statistics.median(wall):.4g} ({min(wall):.4g} to {max(wall):.4g})"
    cpu = f"{min(row['cpu_s']):.4g}" if jax.default_backend() == "cpu" else "-"
    if "time_ratio" in row:
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(row["time_ratio"], *row["time_ratio_range"])
    memory = "-" if row["temporaries"] is None else f"{row['temporaries'] / 2**20:.1f}"
    less = f"{row['memory_ratio']:.3f}" if row.get("memory_ratio") is not None else "-"
    same = " / ".join(f"{x:.0e}" for x in row.get("differences", ())) or "unchecked"
    return show(*start, times, cpu, ratio, memory, less, same)


def absent_device(chip):
    """A device to compile for. Raises ImportError, with what to install, without a compiler."""
    module, install = "libtpu", f'"jax[tpu]=={jax.__version__}"'
    if chip == "h100":
        module, install = "jax_plugins.xla_cuda13", f"jax-cuda13-plugin=={jax.__version__}"
        install += f" jax-cuda13-pjrt=={jax.__version__}"
    if not contestants.installed(module):
        raise ImportError(f"no compiler for it here: pip install {install}")
    if chip == "h100":
        options = {"platform": "cuda", "target_config": H100, "topology": "1x1x1"}
        return topologies.get_topology_desc("", **options).devices[0]
    return topologies.get_topology_desc(TPUS[chip], "tpu").devices[0]


def compile_for(chip, case, chunks):
    """Rows of temporaries, inputs and results in bytes, or of the reason why there are none."""
    n, d, v = case.shape
    like = functools.partial(jax.ShapeDtypeStruct, dtype=case.dtype)
    tokens = [jax.ShapeDtypeStruct((n,), dtype) for dtype in (jnp.int32, jnp.bool_)]
    shapes = *[like((n, d)), like((v, d))] * 2, *tokens
    for label in ["naive", *(f"chunked({c})" for c in chunks)]:
        row = {"chip": chip, "shape": case.shape, "contestant": label}
        try:
            mesh = jax.sharding.Mesh(np.array([absent_device(chip)]), ("one",))
            at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            function = contestants.function_of(label, case)
            jitted = jax.jit(function, in_shardings=at, out_shardings=at)
            found = jitted.lower(*shapes).compile().memory_analysis()
            row |= {key: getattr(found, f"{x}_size_in_bytes") for key, x in SIZES.items()}
        except ImportError as error:
            yield row | {"contestant": "-", "refused": str(error)}
            return
        except Exception as error:
            row["refused"] = one_line(error)
        yield row


def show_memory(chips, cases, chunks):
    """The table of `compile_for`, and its rows."""
    rows = []
    show("chip", "N, D, V", "contestant", *(f"{name} GiB" for name in SIZES))
    show(*["---"] * 6)
    for chip, case in itertools.product(chips, cases):
        default = [dispatch.default_chunk_tokens("tpu", case.shape[2], case.shape[0])]
        for row in compile_for(chip, case, chunks or default):
            cells = [f"{row[x] / 2**30:.3f}" if x in row else "-" for x in SIZES]
            cells[0] = row.get("refused", cells[0])
            show(chip, ", ".join(map(str, case.shape)), row["contestant"], *cells)
            rows.append(row)
    return rows


def machine():
    """What the figures depend on, as far as it can be asked."""
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load at start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def labels_of(asked, case, chunks):
    """Labels of those that take part; a line is printed for each that is not here."""
    backend = jax.default_backend()
    names = asked or ["naive", "chunked", "statistics"]
    if not asked and backend != "cpu":
        names += ["naive_rounded"] if case.dtype != "float32" else []
        names += [x for x in (f"pallas_{backend}", "products") if x in contestants.CONTESTANTS]
        names += contestants.LIBRARIES if backend == "gpu" else []
    labels = ["naive"]
    for name in names:
        reason = contestants.why_not(name, case.kind) if name in contestants.LIBRARIES else None
        if reason:
            print(f"- {name}: {reason}")
        elif chunks and name in contestants.OURS and name != "pallas_tpu":
            labels += [f"{name}({c})" for c in chunks]
        else:
            labels.append(name)
    return list(dict.fromkeys(labels))


def shape_of(text):
    sizes = tuple(int(x) if x.isdigit() else 0 for x in text.split(","))
    if len(sizes) != 3 or not all(sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not N,D,V, such as 2048,576,49152")
    return sizes


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--memory", nargs="+", choices=[*TPUS, "h100"], help="compile for these, run nothing")
    add("--schedule", action="store_true", help="alpha and temperature as arrays or floats")
    add("--shapes", nargs="+", type=shape_of, metavar="N,D,V", help="tokens, width, vocabulary")
    add("--valid", nargs="+", type=float, default=[1.0, 0.3], help="shares of valid tokens")
    add("--kind", nargs="+", choices=KINDS, help="default: jsd; on a GPU cross_entropy too")
    add("--alpha", type=float, default=0.5, help="the teacher's weight in a jsd")
    add("--repeat", type=int, help="rounds; default: 5 on a CPU, else 20")
    add("--dtype", choices=LIMITS, help="default: float32 on a CPU, else bfloat16")
    add("--chunk-tokens", nargs="+", type=int, help="default: the operator's")
    add("--implementations", nargs="+", choices=contestants.CONTESTANTS, help="naive always")
    add("--json", type=pathlib.Path, help="write all figures there")
    return parser.parse_args(words)


def main(words=None):
    args = parsed(words)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Torch needs some too.
    if args.memory:
        os.environ.update(NO_TPU | os.environ)
        jax.config.update("jax_platforms", "cpu")
    about, backend = machine(), "absent" if args.memory else jax.default_backend()
    about["device"] = backend if args.memory else jax.devices()[0].device_kind
    dtype = args.dtype or ("float32" if backend == "cpu" else "bfloat16")
    repeat = max(1, args.repeat or (5 if backend == "cpu" else 20))
    kinds = args.kind or ["jsd", "cross_entropy"][: 2 if backend == "gpu" else 1]
    kinds = ["jsd"] if args.schedule else kinds
    print("    python benchmarks/divergence.py", *(sys.argv[1:] if words is None else words))
    print("\n" + "; ".join(f"{k} {v}" for k, v in about.items()) + f". Operands {dtype}.\n")
    plan = [
        [
            contestants.Case(shape, valid, kind, args.alpha if kind == "jsd" else None, dtype)
            for shape in args.shapes or (MEMORY_SHAPES if args.memory else SHAPES)
            for valid in (args.valid if not args.memory else [1.0])
        ]
        for kind in kinds
    ]
    if not args.implementations and backend in ("cpu", "tpu"):
        print("Liger and tokamax are not run: no GPU here.\n")
    runs = []
    for cases in plan:
        if args.schedule:
            print(f"Value and gradients of a jsd at temperature 0.8, {repeat} rounds.\n")
            runs += show_schedule(cases, repeat)
            continue
        if args.memory:
            print(f"Value and gradients of {cases[0].kind}, compiled and not run.\n")
            runs += show_memory(args.memory, cases, args.chunk_tokens)
            continue
        labels = labels_of(args.implementations, cases[0], args.chunk_tokens)
        print(f"Value and gradients of {cases[0].kind}, {repeat} rounds.\n")
        show(*(columns := re.split(r"[|\n]", COLUMNS)))
        show(*["---"] * len(columns))
        for case in cases:
            try:
                rows = measure(case, labels, repeat)
            except WrongResult as error:
                sys.exit(f"{case}: {error}")
            runs.append(dataclasses.asdict(case) | {"rows": rows})
            for row in rows:
                show_row(case, row)
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
