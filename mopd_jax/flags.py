"""Words of a command line become a validated config and the values of flags.

A config file is Python code that the user chose; an error in it names the file and the line.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import re
import traceback
from collections.abc import Sequence

from ml_collections import ConfigDict

from mopd_jax import config as configs
from mopd_jax.config import Config
from mopd_jax.errors import ConfigError, InputError, unknown
from mopd_jax.run import saved_config

DTYPES = ("float32", "bfloat16", "float16")  # Of exported weights.
# In a checkout a symbolic link to `configs/`.
SHIPPED = pathlib.Path(__file__).parent / "assets/configs"


def parse(args: Sequence[str]) -> tuple[Config, pathlib.Path]:
    """Command-line words -> the validated config and the run folder.

    Raises:
        ConfigError: an unknown flag, file, variant or setting; the message has the nearest.
    """
    pairs = [_pair(word) for word in args]
    tree, stem = _tree(pairs)
    flags = _override(tree, pairs, ("workdir",))
    cfg = configs.from_config_dict(Config, tree)
    if "workdir" in flags:
        return cfg, pathlib.Path(_not_empty("workdir", flags["workdir"]))
    return cfg, pathlib.Path("runs") / f"{stem}-{cfg.name}-{configs.fingerprint(cfg)}"


def parse_rollout(
    args: Sequence[str],
) -> tuple[Config, pathlib.Path, pathlib.Path | None]:
    """Command-line words -> the config, the file to write, and the run folder to sample from.

    Raises:
        ConfigError: as `parse`.
    """
    pairs = [_pair(word) for word in args]
    tree, _ = _tree(pairs)
    values = _override(tree, pairs, ("out", "from"))
    if not values.get("out"):
        raise ConfigError("give --out=FILE, the file to write the rollouts to")
    start = pathlib.Path(_not_empty("from", values["from"])) if "from" in values else None
    return configs.from_config_dict(Config, tree), pathlib.Path(values["out"]), start


@dataclasses.dataclass(frozen=True)
class CompareFlags:
    """What `mopd compare` was asked for.

    metrics: of the table; None: all.
    out: the folder to write the table to, if any.
    bleu, budget: of the diversity measures.
    """

    folders: list[pathlib.Path]
    metrics: list[str] | None
    out: pathlib.Path | None
    bleu: bool
    budget: int | None


def parse_compare(args: Sequence[str]) -> CompareFlags:
    """Command-line words -> which evaluations to compare.

    Raises:
        ConfigError: an unknown flag, or a value that it cannot have.
    """
    folders, pairs = words_and_pairs(args)
    values = _known(pairs, ("metrics", "out", "bleu", "budget"))
    bleu, budget = _measures(values)
    metrics = _names(values["metrics"]) if "metrics" in values else None
    if metrics is not None:  # BLEU is computed only for metrics that need it.
        bleu = bleu and any("BLEU" in metric for metric in metrics)
    out = pathlib.Path(_not_empty("out", values["out"])) if "out" in values else None
    return CompareFlags([pathlib.Path(word) for word in folders], metrics, out, bleu, budget)


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """What `mopd export` was asked for; as the arguments of `export.export_run`."""

    source: pathlib.Path
    out: pathlib.Path
    step: int | None
    which: str
    dtype: str
    shard_bytes: int


def parse_export(args: Sequence[str]) -> ExportFlags:
    """Command-line words -> which model to export, and how.

    Raises:
        ConfigError: an unknown flag, or a value that it cannot have.
    """
    names = ("from", "out", "step", "which", "dtype", "shard-size")
    values = _known([_pair(word) for word in args], names)
    for name, what in (("from", "a run's folder"), ("out", "a new folder")):
        if not values.get(name):
            raise ConfigError(f"give --{name}=FOLDER, {what}")
    step = values.get("step")
    if step is not None and not step.isdecimal():
        raise ConfigError(f"--step={step} is not a step; give a number, or leave it out")
    for name, choices in (("which", ("student", "teacher")), ("dtype", DTYPES)):
        if values.setdefault(name, choices[0]) not in choices:
            raise ConfigError(unknown(f"--{name}={values[name]}", values[name], choices))
    return ExportFlags(
        pathlib.Path(values["from"]),
        pathlib.Path(values["out"]),
        None if step is None else int(step),
        values["which"],
        values["dtype"],
        _bytes(values.get("shard-size", "4GB")),
    )


def _bytes(text: str) -> int:
    """`64MB` or `4GB` -> bytes; units are powers of 1000, as Transformers counts them."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)?", text.upper())
    units = {None: 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    if match is None or not int(match[1]):
        raise ConfigError(f"--shard-size={text} is not understood; write 64MB or 4GB")
    return int(match[1]) * units[match[2]]


def _known(pairs: Sequence[tuple[str, str]], known: Sequence[str]) -> dict[str, str]:
    """Flags by name, all of them known; raises ConfigError for another, with the nearest."""
    for name, _ in pairs:
        if name not in known:
            raise ConfigError(unknown(f"--{name}", name, known))
    return dict(pairs)


def words_and_pairs(args: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that are no flags, and each flag's name and value."""
    words = [word for word in args if not word.startswith("--")]
    return words, [_pair(word) for word in args if word.startswith("--")]


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
    pairs = [_pair(word) for word in args]
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


def joined(words: Sequence[str]) -> list[str]:
    """Words with `--name value` written as `--name=value`; every flag has a value."""
    joined: list[str] = []
    for word in words:
        alone = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if alone and not word.startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _pair(word: str) -> tuple[str, str]:
    """`--name=value` -> (name, value)."""
    if not word.startswith("--") or "=" not in word:
        raise ConfigError(
            f"{word!r} is not understood; flags are written --name=value or --name value"
        )
    name, _, value = word.removeprefix("--").partition("=")
    return name, value
