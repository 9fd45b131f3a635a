"""The command `mopd`: runs a subcommand, prints errors as one line.

Each part is imported where it is needed, so that help and a wrong word are answered at once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mopd_jax.errors import ConfigError, InputError, RunError, unknown
from mopd_jax.run.stops import Stopped, Stops

USAGE = """\
usage: mopd train --config=NAME[:VARIANT] [--config.KEY=VALUE ...] [--workdir=DIR]
       mopd rollout --config=NAME[:VARIANT] [--config.KEY=VALUE ...] --out=FILE [--from=RUN]
       mopd config --config=NAME[:VARIANT] [--config.KEY=VALUE ...]
       mopd eval --config=NAME[:VARIANT] [--from=RUN | --model=PATH] --out=FOLDER
       mopd export --from=RUN --out=FOLDER [--step=N] [--which=student|teacher]
       mopd compare FOLDER_A FOLDER_B [...] [--metrics=NAME,NAME] [--out=FOLDER]
       mopd data prepare NAME --source=PATH|hub [--out=DIR] [--option.KEY=VALUE ...]
       mopd data check NAME [--dir=DIR] [--policy=error|exclude|keep] [--threads=N]
       mopd data show NAME [--dir=DIR] [--split=train|test] [--row=N]

train    run the config, or go on with the run that is in the folder
rollout  sample and verify the config's steps without training, into one file
config   print every setting of the config as it would run
eval     sample the held-out problems, judge, and measure; docs/evaluation.md
export   a run's model as a folder that Transformers and vLLM load
compare  evaluations of the same problems, each paired with the first
data     make a checked data set from source files, judge its gold answers, show a row

A flag may also be written with a space, --name value.

  --config=quickstart:grpo               a shipped config and a variant of it
  --config=FOLDER/FILE.py:grpo           a file: any name with a / or ending in .py
  --config.peers.failures=0              any setting, by its dotted name
  --workdir=DIR                          default: runs/<file>-<variant>-<settings' hash>
  --from=RUN                             a run folder: its latest checkpoint; eval without
                                         --config takes its settings too
  --out=FILE                             of `mopd rollout`: train from it with
                                         --config.rollout.file=FILE
  --model=PATH                           initial weights from here (config.model.path)
  --dtype=float32|bfloat16|float16       of exported weights
  --shard-size=4GB                       the most of one file of exported weights
  --bleu=off                             leave out the measures that need sacrebleu
  --budget=N                             tokens a problem for Distinct-n
"""


def entry() -> NoReturn:
    """The command `mopd`: ends the process with the status of `main`.

    A stop skips the interpreter's own teardown, which waits for threads at work and may crash
    where the stop came in a compilation. All that a run folder needs is written by then.
    """
    status = main()
    if status in (130, 143):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status (docs/running.md).

    0: done; 2: wrong input; 130, 143: stopped by Ctrl-C or SIGTERM; 1: any other failure. A
    failure is one line, with `--debug` a traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    # Its advice that PyTorch is missing looks like a fault; nothing here needs PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    stops = Stops()
    try:
        with stops:
            status = _run(argv, stops)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # The reader of our output has ended, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Stopped as stop:
        print(f"mopd: {stop.note}", file=sys.stderr)
        return stop.status
    except (InputError, RunError, OSError) as error:  # Others are defects: with a traceback.
        if debug:
            raise
        print(f"mopd: {_one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _run(argv: list[str], stops: Stops) -> int:
    """Runs a subcommand."""
    commands: dict[str, Callable[[Sequence[str]], int]]
    commands = {"train": functools.partial(_train, stops=stops), "rollout": _rollout}
    commands |= {"config": _show, "eval": _eval, "compare": _compare, "data": _data}
    commands |= {"export": _export}
    if argv == ["--version"]:
        print(f"mopd {importlib.metadata.version('mopd_jax')}")
        return 0
    if not argv or argv[0] in ("help", "-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] not in commands:
        raise ConfigError(unknown(f"command {argv[0]!r}", argv[0], commands))
    if {"-h", "--help"} & set(argv):
        print(usage_of(argv[0]))
        return 0
    from mopd_jax import flags

    return commands[argv[0]](flags.joined(argv[1:]))


def usage_of(command: str) -> str:
    """The part of USAGE that is about one subcommand."""
    calls, meanings, flags = USAGE.split("\n\n", 2)
    lines = [line.removeprefix("usage:").strip() for line in calls.split("\n")]
    calls = "\n       ".join(line for line in lines if line.startswith(f"mopd {command} "))
    (meaning,) = [line for line in meanings.split("\n") if line.startswith(f"{command} ")]
    return f"usage: {calls}\n\n{meaning}\n\n{flags}"


def _one_line(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"{where}{error.strerror or error}; once that is mended, the same command of a run "
        "goes on from its newest checkpoint"
    )


def _train(args: Sequence[str], *, stops: Stops) -> int:
    from mopd_jax import flags

    cfg, workdir = flags.parse(args)
    # After the flags are read, so that a wrong one is answered before the slow imports.
    from mopd_jax import train
    from mopd_jax.run import console

    console.setup_logging()
    print(f"run folder: {workdir}", flush=True)
    train.train(cfg, workdir, command=" ".join(["mopd", "train", *args]), stops=stops)
    return 0


def _rollout(args: Sequence[str]) -> int:
    from mopd_jax import flags

    cfg, out, start = flags.parse_rollout(args)
    from mopd_jax import collect
    from mopd_jax.run import console

    console.setup_logging()
    collect.collect(cfg, out, start=start)
    return 0


def _show(args: Sequence[str]) -> int:
    from mopd_jax import config, flags

    cfg, _ = flags.parse(args)
    print(config.to_json(cfg))
    return 0


def _eval(args: Sequence[str]) -> int:
    from mopd_jax import flags

    asked = flags.parse_eval(args)
    from mopd_jax.evaluation import diversity, heldout
    from mopd_jax.run import console

    console.setup_logging()
    if asked.differ:
        print(f"settings that are not those of {asked.source}: {', '.join(asked.differ)}")
    heldout.run_eval(
        asked.cfg,
        asked.out,
        source=asked.source,
        # Made before hours of sampling, because its package may be missing.
        bleu=diversity.bleu_scorer() if asked.bleu else None,
        budget=asked.budget,
        command=" ".join(["mopd", "eval", *args]),
    )
    return 0


def _export(args: Sequence[str]) -> int:
    from mopd_jax import flags

    asked = flags.parse_export(args)
    from mopd_jax import export
    from mopd_jax.run import console

    console.setup_logging()
    export.export_run(
        asked.source,
        asked.out,
        step=asked.step,
        which=asked.which,
        dtype=asked.dtype,
        shard_bytes=asked.shard_bytes,
    )
    return 0


def _compare(args: Sequence[str]) -> int:
    from mopd_jax import flags

    asked = flags.parse_compare(args)
    from mopd_jax.evaluation import diversity, responses, tables

    saved = [responses.read(folder) for folder in asked.folders]
    result = tables.compare(
        [one.name for one in saved],
        [one.header for one in saved],
        [one.responses for one in saved],
        metrics=asked.metrics,
        bleu=diversity.bleu_scorer() if asked.bleu else None,
        budget=asked.budget,
    )
    if asked.out is not None:
        responses.write_table(asked.out, "comparison", result.markdown(), result.document())
    print(result.markdown())
    return 0


def _data(args: Sequence[str]) -> int:
    from mopd_jax import flags

    words, pairs = flags.words_and_pairs(args)
    from mopd_jax.data.prepared import commands

    text, status = commands.run(words, pairs)
    print(text)
    return status


if __name__ == "__main__":
    entry()
