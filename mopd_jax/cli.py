"""`mopd train | rollout | config --config=FILE[:VARIANT] ...`, and `mopd data COMMAND NAME`."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Sequence

from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.config_dict import InputError

USAGE = """\
usage: mopd train --config=FILE[:VARIANT] [--config.KEY=VALUE ...] [--workdir=DIR]
       mopd rollout --config=FILE[:VARIANT] [--config.KEY=VALUE ...] --out=FILE [--from=DIR]
       mopd config --config=FILE[:VARIANT] [--config.KEY=VALUE ...]
       mopd data prepare NAME --source=PATH|hub [--out=DIR] [--option.KEY=VALUE ...]
       mopd data check NAME [--dir=DIR] [--policy=error|exclude|keep]
       mopd data show NAME [--dir=DIR] [--split=train|test] [--row=N]

train    run the config, or go on with the run that is in the folder
rollout  sample and verify the config's steps without training, into one file
config   print every setting of the config as it would run
data     turn source files into a checked data set, judge its gold answers, look at a row

  --config=configs/quickstart.py:grpo    a config file and a variant of it
  --config.peers.failures=0              any setting, by its dotted name
  --workdir=DIR                          default: runs/<file>-<variant>-<settings' hash>
  --out=FILE                             train from it with --config.rollout.file=FILE
  --from=DIR                             a run's newest checkpoint; default: initial weights
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `mopd`; returns the exit status (2: the input was wrong)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] == "help" or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    commands = {"train": _train, "rollout": _rollout, "config": _show, "data": _data}
    try:
        if argv[0] not in commands:
            raise ConfigError(configs.unknown(f"command {argv[0]!r}", argv[0], commands))
        return commands[argv[0]](argv[1:])
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
    cfg, _, given = _parse(args, ("out", "from"))
    if not given["out"]:
        raise ConfigError("give --out=FILE, the file to write the rollouts to")
    if given["from"] == "":
        raise ConfigError("--from= names no folder")
    from mopd_jax import collect, console

    console.setup_logging()
    start = None if given["from"] is None else pathlib.Path(given["from"])
    collect.collect(cfg, pathlib.Path(given["out"]), start=start)
    return 0


def _show(args: Sequence[str]) -> int:
    cfg, _ = parse(args)
    print(configs.to_json(cfg))
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
    cfg, file, given = _parse(args, ("workdir",))
    if given["workdir"] == "":
        raise ConfigError("--workdir= names no folder")
    if given["workdir"] is None:
        stem = pathlib.Path(file).stem
        name = f"{stem}-{cfg.name}-{configs.fingerprint(cfg)}"
        return cfg, pathlib.Path("runs") / name
    return cfg, pathlib.Path(given["workdir"])


def _parse(
    args: Sequence[str], known: Sequence[str]
) -> tuple[Config, str, dict[str, str | None]]:
    """The config, the path of its file, and the flags beside it, which are `known`."""
    words = [_flag(word) for word in args]
    specs = [value for name, value in words if name == "config"]
    if len(specs) != 1:
        raise ConfigError(f"give --config=FILE[:VARIANT] once, not {len(specs)} times")
    file, _, variant = specs[0].partition(":")
    tree = load(pathlib.Path(file), variant)
    given: dict[str, str | None] = dict.fromkeys(known)
    for name, value in words:
        if name.startswith("config."):
            configs.override(tree, name.removeprefix("config."), value)
        elif name in given:
            given[name] = value
        elif name != "config":
            raise ConfigError(configs.unknown(f"--{name}", name, ["config", *known]))
    return configs.from_config_dict(Config, tree), file, given


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
    return make(variant) if variant else make()


def _flag(word: str) -> tuple[str, str]:
    if not word.startswith("--") or "=" not in word:
        raise ConfigError(f"{word!r} is not understood; flags are written --name=value")
    name, _, value = word.removeprefix("--").partition("=")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
