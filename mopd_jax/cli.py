"""The command `mopd`: parses the command line, runs a subcommand, prints errors as one line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from mopd_jax import config as configs
from mopd_jax.config import Config
from mopd_jax.errors import ConfigError, InputError, RunError, unknown
from mopd_jax.run import saved_config
from mopd_jax.run.stops import Stopped, Stops

# In a checkout a symbolic link to `configs/`.
SHIPPED = pathlib.Path(__file__).parent / "assets/configs"
EXPORT_FLAGS = ("from", "out", "step", "which", "dtype", "shard-size")
DTYPES = ("float32", "bfloat16", "float16")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mopd`; returns the exit status (docs/running.md).

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
    return commands[argv[0]](_joined(argv[1:]))


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
    cfg, workdir = parse(args)
    # Imported here and below, so that a wrong flag is answered before the slow imports.
    from mopd_jax import train
    from mopd_jax.run import console

    console.setup_logging()
    print(f"run folder: {workdir}", flush=True)
    train.train(cfg, workdir, command=" ".join(["mopd", "train", *args]), stops=stops)
    return 0


def _rollout(args: Sequence[str]) -> int:
    pairs = [_flag(word) for word in args]
    tree, _ = _tree(pairs)
    flags = _override(tree, pairs, ("out", "from"))
    if not flags.get("out"):
        raise ConfigError("give --out=FILE, the file to write the rollouts to")
    start = pathlib.Path(_not_empty("from", flags["from"])) if "from" in flags else None
    cfg = configs.from_config_dict(Config, tree)
    from mopd_jax import collect
    from mopd_jax.run import console

    console.setup_logging()
    collect.collect(cfg, pathlib.Path(flags["out"]), start=start)
    return 0


def _show(args: Sequence[str]) -> int:
    cfg, _ = parse(args)
    print(configs.to_json(cfg))
    return 0


def _eval(args: Sequence[str]) -> int:
    asked = parse_eval(args)
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
    flags = dict(_known([_flag(word) for word in args], EXPORT_FLAGS))
    for name, what in (("from", "a run's folder"), ("out", "a new folder")):
        if not flags.get(name):
            raise ConfigError(f"give --{name}=FOLDER, {what}")
    step = flags.get("step")
    if step is not None and not step.isdecimal():
        raise ConfigError(f"--step={step} is not a step; give a number, or leave it out")
    for name, values in (("which", ("student", "teacher")), ("dtype", DTYPES)):
        if flags.get(name, values[0]) not in values:
            raise ConfigError(unknown(f"--{name}={flags[name]}", flags[name], values))
    size = _bytes(flags.get("shard-size", "4GB"))
    from mopd_jax import export
    from mopd_jax.run import console

    console.setup_logging()
    export.export_run(
        pathlib.Path(flags["from"]),
        pathlib.Path(flags["out"]),
        step=None if step is None else int(step),
        which=flags.get("which", "student"),
        dtype=flags.get("dtype", "float32"),
        shard_bytes=size,
    )
    return 0


def _bytes(text: str) -> int:
    """`64MB` or `4GB` -> bytes; units are powers of 1000, as Transformers counts them."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)?", text.upper())
    units = {None: 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    if match is None or not int(match[1]):
        raise ConfigError(f"--shard-size={text} is not understood; write 64MB or 4GB")
    return int(match[1]) * units[match[2]]


def _known(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> list[tuple[str, str]]:
    """The flags, all of them known; raises ConfigError for another, with the nearest."""
    for name, _ in pairs:
        if name not in known:
            raise ConfigError(unknown(f"--{name}", name, known))
    return list(pairs)


def _compare(args: Sequence[str]) -> int:
    folders = [word for word in args if not word.startswith("--")]
    flags = [_flag(word) for word in args if word.startswith("--")]
    values = dict(_known(flags, ("metrics", "out", "bleu", "budget")))
    bleu, budget = _measures(values)
    metrics = _names(values["metrics"]) if "metrics" in values else None
    if metrics is not None:  # BLEU is computed only for metrics that need it.
        bleu = bleu and any("BLEU" in metric for metric in metrics)
    out = pathlib.Path(_not_empty("out", values["out"])) if "out" in values else None
    from mopd_jax.evaluation import diversity, responses, tables

    saved = [responses.read(pathlib.Path(folder)) for folder in folders]
    result = tables.compare(
        [one.name for one in saved],
        [one.header for one in saved],
        [one.responses for one in saved],
        metrics=metrics,
        bleu=diversity.bleu_scorer() if bleu else None,
        budget=budget,
    )
    if out is not None:
        responses.write_table(out, "comparison", result.markdown(), result.document())
    print(result.markdown())
    return 0


def _data(args: Sequence[str]) -> int:
    words = [word for word in args if not word.startswith("--")]
    flags = [_flag(word) for word in args if word.startswith("--")]
    from mopd_jax.data.prepared import commands

    text, status = commands.run(words, flags)
    print(text)
    return status


def parse(args: Sequence[str]) -> tuple[Config, pathlib.Path]:
    """Command-line words -> the validated config and the run folder.

    Raises:
        ConfigError: an unknown flag, file, variant or setting; the message has the nearest.
    """
    pairs = [_flag(word) for word in args]
    tree, stem = _tree(pairs)
    flags = _override(tree, pairs, ("workdir",))
    cfg = configs.from_config_dict(Config, tree)
    if "workdir" in flags:
        return cfg, pathlib.Path(_not_empty("workdir", flags["workdir"]))
    return cfg, pathlib.Path("runs") / f"{stem}-{cfg.name}-{configs.fingerprint(cfg)}"


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """What `mopd eval` was asked for.

    source: the run folder whose latest checkpoint is evaluated; None: the initial weights.
    differ: sections of settings in which the config differs from that run.
    bleu, budget: of the diversity measures.
    """

    cfg: Config
    out: pathlib.Path
    source: pathlib.Path | None
    differ: list[str]
    bleu: bool
    budget: int | None


def parse_eval(args: Sequence[str]) -> EvalFlags:
    """Command-line words -> what to evaluate, and the folder to write.

    Raises:
        ConfigError: as `parse`; a run folder that cannot be read; both --from and --model.
    """
    pairs = [_flag(word) for word in args]
    names = dict(pairs)
    source = pathlib.Path(_not_empty("from", names["from"])) if "from" in names else None
    own = None if source is None else saved_config.read(source)
    if own is not None and "config" not in names:
        tree = configs.to_config_dict(own)
    else:
        tree, _ = _tree(pairs, "--config=NAME[:VARIANT], or --from=RUN for a run's own,")
    flags = _override(tree, pairs, ("from", "model", "out", "bleu", "budget"))
    if "model" in flags:
        if own is not None:
            raise ConfigError("--from and --model name two sets of weights; give one of them")
        configs.override(tree, "model.path", _not_empty("model", flags["model"]))
    if "out" not in flags:
        raise ConfigError("give --out=FOLDER, a folder for the responses and the table")
    out = pathlib.Path(_not_empty("out", flags["out"]))
    cfg = configs.from_config_dict(Config, tree)
    differ = []
    if own is not None:
        if own.model.path != cfg.model.path:
            raise ConfigError(
                f"the run in {source} started from model.path={own.model.path!r}, and the "
                f"config says {cfg.model.path!r}; give --config.model.path={own.model.path}"
            )
        sections = ("seed", "data", "rollout", "eval")
        differ = [name for name in sections if getattr(own, name) != getattr(cfg, name)]
    return EvalFlags(cfg, out, source, differ, *_measures(flags))


def _tree(
    pairs: Sequence[tuple[str, str]], what: str = "--config=NAME[:VARIANT]"
) -> tuple[ConfigDict, str]:
    """The ConfigDict that --config names, and its file's stem."""
    specs = [value for name, value in pairs if name == "config"]
    if len(specs) != 1:
        raise ConfigError(f"give {what} once, not {len(specs)} times")
    name, _, variant = specs[0].partition(":")
    path = config_path(name)
    return load(path, variant), path.stem


def _override(
    tree: ConfigDict, pairs: Sequence[tuple[str, str]], known: Sequence[str]
) -> dict[str, str]:
    """Sets every --config.KEY in the tree, in order; the values of the `known` flags."""
    flags = {}
    for name, value in pairs:
        if name.startswith("config."):
            configs.override(tree, name.removeprefix("config."), value)
        elif name in known:
            flags[name] = value
        elif name != "config":
            if name.partition(".")[0] in tree:
                raise ConfigError(
                    f"--{name} is not a flag, but a setting: write --config.{name}={value}"
                )
            raise ConfigError(unknown(f"--{name}", name, ["config", *known]))
    return flags


def _measures(flags: dict[str, str]) -> tuple[bool, int | None]:
    """The values of --bleu and --budget."""
    bleu, budget = flags.get("bleu", "on"), flags.get("budget")
    if bleu not in ("on", "off"):
        raise ConfigError(f"--bleu={bleu} is not understood; it is on or off")
    if budget is not None and not (budget.isdecimal() and int(budget) > 0):
        raise ConfigError(f"--budget={budget} is not a number of tokens; give 1 or more")
    return bleu == "on", None if budget is None else int(budget)


def _names(text: str) -> list[str]:
    """Splits --metrics. Some names have a comma of their own, always followed by a space."""
    names = [name for name in re.split(r",(?! )", text) if name]
    if not names:
        raise ConfigError(
            "--metrics= names no metric; give names of the table, or leave it out"
        )
    return names


def _not_empty(flag: str, value: str) -> str:
    if not value:
        raise ConfigError(f"--{flag}= names no {'file' if flag == 'model' else 'folder'}")
    return value


def config_path(name: str) -> pathlib.Path:
    """The file that `--config=NAME` means.

    A name with a `/` or with the ending `.py` is a path; any other is a config that the package
    ships, whatever files the current folder has.

    Raises:
        ConfigError: no shipped config has that name; the message has the nearest.
    """
    if "/" in name or name.endswith(".py"):
        return pathlib.Path(name)
    shipped = {path.stem: path for path in SHIPPED.glob("*.py")}
    if name not in shipped:
        message = unknown(f"config {name!r}", name, shipped)
        if pathlib.Path(f"{name}.py").is_file():
            message += f"; the file of this folder is --config={name}.py"
        elif pathlib.Path(name).is_file():
            message += f"; the file {name} is not a config, whose name ends in .py"
        raise ConfigError(message)
    return shipped[name]


def load(path: pathlib.Path, variant: str = "") -> ConfigDict:
    """The locked ConfigDict that `get_config` of a config file returns.

    The file is Python code that the user chose; no other code is imported from a path.

    Raises:
        ConfigError: the file is missing, cannot be parsed, or lacks the variant.
    """
    if path.is_dir():
        raise ConfigError(f"config file {path} is a folder; name a .py file in it")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py"))
        message = unknown(f"config file {path}", str(path), near)
        if (SHIPPED / path.name).is_file():
            message += f"; --config={path.stem} is the one that the package ships"
        raise ConfigError(message)
    module_spec = importlib.util.spec_from_file_location(f"mopd_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"config file {path} is not Python; its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"config file {path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise _config_error(path, error) from error
    make = getattr(module, "get_config", None)
    if make is None:
        raise ConfigError(f"config file {path} has no get_config(variant)")
    if variant and not inspect.signature(make).parameters:
        raise ConfigError(f"config file {path} has no variants, so not {variant!r} either")
    try:
        return make(variant) if variant else make()
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, AttributeError | KeyError):  # Of a locked ConfigDict.
            configs.answer_locked(error)
        raise _config_error(path, error) from error


def _config_error(path: pathlib.Path, error: Exception) -> ConfigError:
    """An error of the code in a config file, with the last line of it that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        frame.lineno for frame in frames if pathlib.Path(frame.filename) == path.absolute()
    ]
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if locked := re.search(r'Key "(\w+)" does not exist', str(error)):
        known = re.findall(r"'?(\w+)\\?': ", str(error))
        near = difflib.get_close_matches(locked[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/settings.md has all settings"
        text = f"the setting {locked[1]!r} does not exist; {hint}"
    where = f"config file {path}, line {lines[-1]}" if lines else f"config file {path}"
    return ConfigError(f"{where}: {text}")


def _joined(words: Sequence[str]) -> list[str]:
    """Words with `--name value` written as `--name=value`; every flag has a value."""
    joined: list[str] = []
    for word in words:
        alone = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if alone and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _flag(word: str) -> tuple[str, str]:
    """`--name=value` -> (name, value)."""
    if not word.startswith("--") or "=" not in word:
        raise ConfigError(
            f"{word!r} is not understood; flags are written --name=value or --name value"
        )
    name, _, value = word.removeprefix("--").partition("=")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
