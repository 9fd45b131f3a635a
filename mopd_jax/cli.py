"""`mopd train | rollout | eval | compare | config | data`: flags to records, errors to text."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Sequence

from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.config_dict import InputError

USAGE = """\
usage: mopd train --config=FILE[:VARIANT] [--config.KEY=VALUE ...] [--workdir=DIR]
       mopd rollout --config=FILE[:VARIANT] [--config.KEY=VALUE ...] --out=FILE [--from=RUN]
       mopd config --config=FILE[:VARIANT] [--config.KEY=VALUE ...]
       mopd eval --config=FILE[:VARIANT] [--from=RUN | --model=PATH] --out=FOLDER
       mopd compare FOLDER_A FOLDER_B [...] [--metrics=NAME,NAME] [--out=FOLDER]
       mopd data prepare NAME --source=PATH|hub [--out=DIR] [--option.KEY=VALUE ...]
       mopd data check NAME [--dir=DIR] [--policy=error|exclude|keep] [--threads=N]
       mopd data show NAME [--dir=DIR] [--split=train|test] [--row=N]

train    run the config, or go on with the run that is in the folder
rollout  sample and verify the config's steps without training, into one file
config   print every setting of the config as it would run
eval     sample the held-out problems, judge, and measure; docs/evaluation.md
compare  evaluations of the same problems, each paired with the first
data     turn source files into a checked data set, judge its gold answers, look at a row

A flag may also be written with a space, --name value.

  --config=configs/quickstart.py:grpo    a config file and a variant of it
  --config.peers.failures=0              any setting, by its dotted name
  --workdir=DIR                          default: runs/<file>-<variant>-<settings' hash>
  --from=RUN                             a run folder: its newest checkpoint; eval without
                                         --config takes its settings too
  --out=FILE                             of `mopd rollout`: train from it with
                                         --config.rollout.file=FILE
  --model=PATH                           initial weights from here (config.model.path)
  --bleu=off                             without the measures that need sacrebleu
  --budget=N                             tokens a problem for Distinct-n
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mopd`; returns the exit status (2: the input was wrong)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] == "help" or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    commands = {"train": _train, "rollout": _rollout, "config": _show}
    commands |= {"eval": _eval, "compare": _compare, "data": _data}
    try:
        if argv[0] not in commands:
            raise ConfigError(configs.unknown(f"command {argv[0]!r}", argv[0], commands))
        return commands[argv[0]](_joined(argv[1:]))
    except InputError as error:  # All else is a defect, with its traceback.
        print(f"mopd: {error}", file=sys.stderr)
        return 2


def _train(args: Sequence[str]) -> int:
    cfg, workdir = parse(args)
    # Imported here, so that a wrong flag is answered before the slow imports.
    from mopd_jax import console, train

    console.setup_logging()
    print(f"run folder: {workdir}")
    train.train(cfg, workdir, command=" ".join(["mopd", "train", *args]))
    return 0


def _rollout(args: Sequence[str]) -> int:
    given = [_flag(word) for word in args]
    tree, _ = _tree(given)
    flags = _override(tree, given, ("out", "from"))
    if not flags.get("out"):
        raise ConfigError("give --out=FILE, the file to write the rollouts to")
    start = pathlib.Path(_not_empty("from", flags["from"])) if "from" in flags else None
    cfg = configs.from_config_dict(Config, tree)
    from mopd_jax import collect, console

    console.setup_logging()
    collect.collect(cfg, pathlib.Path(flags["out"]), start=start)
    return 0


def _show(args: Sequence[str]) -> int:
    cfg, _ = parse(args)
    print(configs.to_json(cfg))
    return 0


def _eval(args: Sequence[str]) -> int:
    asked = parse_eval(args)
    from mopd_jax import console, diversity, heldout

    console.setup_logging()
    if asked.differ:
        print(f"settings that are not those of {asked.source}: {', '.join(asked.differ)}")
    heldout.run_eval(
        asked.cfg,
        asked.out,
        source=asked.source,
        # Before hours of sampling, if there is no such package.
        bleu=diversity.bleu_scorer() if asked.bleu else None,
        budget=asked.budget,
        command=" ".join(["mopd", "eval", *args]),
    )
    return 0


def _compare(args: Sequence[str]) -> int:
    folders = [word for word in args if not word.startswith("--")]
    flags = [_flag(word) for word in args if word.startswith("--")]
    known = ["metrics", "out", "bleu", "budget"]
    for name, _ in flags:
        if name not in known:
            raise ConfigError(configs.unknown(f"--{name}", name, known))
    given = dict(flags)
    bleu, budget = _measures(given)
    metrics = _names(given["metrics"]) if "metrics" in given else None
    if metrics is not None:  # What is not asked for is not computed.
        bleu = bleu and any("BLEU" in metric for metric in metrics)
    out = pathlib.Path(_not_empty("out", given["out"])) if "out" in given else None
    from mopd_jax import diversity, responses, tables

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
    from mopd_jax.datasets import commands

    text, status = commands.run(words, flags)
    print(text)
    return status


def parse(args: Sequence[str]) -> tuple[Config, pathlib.Path]:
    """Command-line words -> the validated config and the run folder.

    Raises:
        ConfigError: an unknown flag, file, variant or setting, with the nearest known one.
    """
    given = [_flag(word) for word in args]
    tree, stem = _tree(given)
    flags = _override(tree, given, ("workdir",))
    cfg = configs.from_config_dict(Config, tree)
    if "workdir" in flags:
        return cfg, pathlib.Path(_not_empty("workdir", flags["workdir"]))
    return cfg, pathlib.Path("runs") / f"{stem}-{cfg.name}-{configs.fingerprint(cfg)}"


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """What `mopd eval` was asked for.

    source: a run folder.
    differ: sections of settings that are not those of that run.
    """

    cfg: Config
    out: pathlib.Path
    source: pathlib.Path | None
    differ: list[str]
    bleu: bool
    budget: int | None


def parse_eval(args: Sequence[str]) -> EvalFlags:
    """Command-line words -> what to evaluate, and where to.

    Raises:
        ConfigError: as `parse`; a run folder without a config; flags that exclude each other.
    """
    given = [_flag(word) for word in args]
    names = dict(given)
    source = pathlib.Path(_not_empty("from", names["from"])) if "from" in names else None
    own = None if source is None else _own_config(source)
    if own is not None and "config" not in names:
        tree = configs.to_config_dict(own)
    else:
        tree, _ = _tree(given)
    flags = _override(tree, given, ("from", "model", "out", "bleu", "budget"))
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


def _tree(given: Sequence[tuple[str, str]]):
    """The ConfigDict that --config names, and its file's stem."""
    specs = [value for name, value in given if name == "config"]
    if len(specs) != 1:
        raise ConfigError(f"give --config=FILE[:VARIANT] once, not {len(specs)} times")
    file, _, variant = specs[0].partition(":")
    return load(pathlib.Path(file), variant), pathlib.Path(file).stem


def _own_config(folder: pathlib.Path) -> Config:
    """The config that a run folder was made with."""
    path = folder / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); name the folder of a training run"
        ) from error
    return configs.from_config_dict(Config, tree)


def _override(tree, given: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, str]:
    """Sets every --config.KEY in the tree, in order; the values of the `known` flags."""
    flags = {}
    for name, value in given:
        if name.startswith("config."):
            configs.override(tree, name.removeprefix("config."), value)
        elif name in known:
            flags[name] = value
        elif name != "config":
            raise ConfigError(configs.unknown(f"--{name}", name, ["config", *known]))
    return flags


def _measures(flags: dict[str, str]) -> tuple[bool, int | None]:
    """--bleu and --budget."""
    bleu, budget = flags.get("bleu", "on"), flags.get("budget")
    if bleu not in ("on", "off"):
        raise ConfigError(f"--bleu={bleu} is not understood; it is on or off")
    if budget is not None and not (budget.isdecimal() and int(budget) > 0):
        raise ConfigError(f"--budget={budget} is not a number of tokens; give 1 or more")
    return bleu == "on", None if budget is None else int(budget)


def _names(text: str) -> list[str]:
    """Names of metrics. Some have a comma themselves, always followed by a space."""
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


def load(path: pathlib.Path, variant: str = ""):
    """Runs `get_config` of a config file: a locked ConfigDict.

    The file is Python that the user chose; nothing else is ever imported from a path.
    """
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py"))
        raise ConfigError(configs.unknown(f"config file {path}", str(path), near))
    module_spec = importlib.util.spec_from_file_location(f"mopd_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"config file {path}, line {error.lineno}: {error.msg}") from error
    make = getattr(module, "get_config", None)
    if make is None:
        raise ConfigError(f"config file {path} has no get_config(variant)")
    if variant and not inspect.signature(make).parameters:
        raise ConfigError(f"config file {path} has no variants, so not {variant!r} either")
    try:
        return make(variant) if variant else make()
    except AttributeError as error:
        configs.answer_locked(error)
        raise


def _joined(words: Sequence[str]) -> list[str]:
    """`--name value` as `--name=value`: there is no flag without a value."""
    joined: list[str] = []
    for word in words:
        alone = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if alone and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _flag(word: str) -> tuple[str, str]:
    if not word.startswith("--") or "=" not in word:
        raise ConfigError(
            f"{word!r} is not understood; flags are written --name=value or --name value"
        )
    name, _, value = word.removeprefix("--").partition("=")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
