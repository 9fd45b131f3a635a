"""A run folder's `config.json`: the run's settings under the format number of its folder.

The number is part of the file that it describes, so a kill cannot leave them unequal. A folder
of an older format is read only if `RENAMES` says, format by format, how its settings changed.
"""

from __future__ import annotations

import copy
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mopd_jax import config as configs
from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.files import write_text

FILE = "config.json"
FORMAT = 2
# RENAMES[n] leads from format n to n + 1: {dotted old name of a setting: its dotted new name}.
# Whoever renames a setting raises FORMAT and adds a row here, an empty one if only another file
# of the folder has changed. A format without a row cannot be read.
RENAMES: dict[int, dict[str, str]] = {}


def write(folder: pathlib.Path, cfg: Config) -> None:
    """Writes the settings as JSON, all or nothing."""
    record = {"format": FORMAT, **json.loads(configs.to_json(cfg))}
    write_text(folder / FILE, json.dumps(record, indent=2) + "\n")


def read(folder: pathlib.Path) -> Config:
    """The settings of the run in `folder`, in today's names.

    Raises:
        ConfigError: no such file, not JSON, a format that cannot be read, or a wrong setting.
    """
    tree = _load(folder)
    number = _readable(folder, tree.pop("format", None))
    return configs.from_config_dict(Config, renamed(tree, number, RENAMES))


def check(folder: pathlib.Path) -> None:
    """Raises ConfigError if the folder's format is one that cannot be read."""
    _readable(folder, _load(folder).get("format"))


def renamed(
    tree: Mapping[str, Any], number: int, renames: Mapping[int, Mapping[str, str]]
) -> dict[str, Any]:
    """The settings of a folder of format `number` in the names of the format after the last of
    `renames`; what a format did not have is left out and gets its default.

    Args:
        tree: sections and settings as in config.json; not changed.
        renames: as `RENAMES`, with a row for every format from `number` on.
    """
    result = copy.deepcopy(dict(tree))
    for step in sorted(n for n in renames if n >= number):
        # All are taken out before any is put back, so that two settings may swap names.
        moved = {new: _take(result, old) for old, new in renames[step].items()}
        for new, values in moved.items():
            *path, last = new.split(".")
            for value in values:
                node = result
                for name in path:
                    node = node.setdefault(name, {})
                node[last] = value
    return result


def _take(tree: dict[str, Any], dotted: str) -> list[Any]:
    """Removes a setting: [its value], or [] if there is none."""
    *path, last = dotted.split(".")
    node: Any = tree
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return [node.pop(last)] if isinstance(node, dict) and last in node else []


def _readable(folder: pathlib.Path, number: object) -> int:
    """The format of a folder, if every format from it to today's has its row in `RENAMES`."""
    if type(number) is int and 0 < number <= FORMAT and {*range(number, FORMAT)} <= {*RENAMES}:
        return number
    raise ConfigError(
        f"{folder} has {'no format number' if number is None else f'format {number!r}'}, and "
        f"this version of mopd reads format {FORMAT}; use the version that its "
        "environment.json names, or start again in another folder"
    )


def _load(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{folder} is not the folder of a run: {path} cannot be read "
            f"({type(error).__name__}); name the folder of a training run"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON in UTF-8 ({error}); the file is damaged"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not settings by their names")
    return tree
