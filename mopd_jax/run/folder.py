"""Writes and checks a run folder's settings, command and environment."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mopd_jax import config as configs
from mopd_jax.config import Config
from mopd_jax.data import sources
from mopd_jax.errors import ConfigError
from mopd_jax.files import write_text
from mopd_jax.records import Tokenizer
from mopd_jax.run import saved_config
from mopd_jax.sandbox import Sandbox

log = logging.getLogger("mopd")

# Settings that a resumed run may change: they do not touch what is computed up to a step.
_FREE_TO_CHANGE = ("steps", "dump_every", "checkpoint", "log")


def compare(cfg: Config, workdir: pathlib.Path) -> None:
    """Checks that a run may start or resume in this folder, which holds at most one run.

    Raises:
        ConfigError: the folder holds a run of another format, with settings that change its
            numbers, or with other data.
    """
    if (workdir / saved_config.FILE).exists():
        check_identity(workdir, identity(saved_config.read(workdir)), identity(cfg))
    path = workdir / "environment.json"
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8")).get("data", {})
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not a JSON object in UTF-8 ({error}); the file is damaged: put it "
                "back, or choose another --workdir"
            ) from error
        now = _data_record(cfg)
        if {k: v["reads"] for k, v in before.items()} != {
            k: v["reads"] for k, v in now.items()
        }:
            raise ConfigError(
                f"the prepared data that {workdir} began with has changed since, or items were "
                "excluded; choose another --workdir, or put the data back"
            )


def identity(cfg: Config) -> dict[str, Any]:
    """The settings of a run that must stay as they are, as JSON values."""
    tree: dict[str, Any] = json.loads(configs.to_json(cfg))
    return {name: value for name, value in tree.items() if name not in _FREE_TO_CHANGE}


def check_identity(
    workdir: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Raises ConfigError if the run in the folder has the identity `old`, and not `new`."""
    differ = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if differ:
        raise ConfigError(
            f"{workdir} holds a run with another config (different: {', '.join(differ)}); "
            "choose another --workdir, or use the settings of its config.json"
        )


def _data_record(cfg: Config, *, trains: bool = True) -> dict[str, Any]:
    """The prepared data that a run reads; a file of rollouts brings its own problems."""
    trains = trains and cfg.rollout.file is None
    return sources.record(cfg.data, ("train", "eval") if trains else ("eval",))


def write(
    cfg: Config,
    folder: pathlib.Path,
    command: str,
    *,
    devices: Sequence[jax.Device],
    tokenizer: Tokenizer,
    sandbox: Sandbox | None,
    trains: bool,
    prompts_left_out: int = 0,
) -> None:
    """Writes the config, the command and the environment: versions, devices, fingerprints.

    Called after all checks, so that a run that cannot start leaves no folder behind.

    Args:
        trains: the run reads training problems too, not only held-out ones.
        prompts_left_out: training problems that `data.long_prompts` has left out.
    """
    packages = ("mopd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    data = _data_record(cfg, trains=trains)
    record = {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].platform} {devices[0].device_kind}",
        "config": configs.fingerprint(cfg),
        "templates": configs.fingerprint(cfg.context),
        "tokenizer": tokenizer.fingerprint,
        "data": data,
        "sandbox": None if sandbox is None else sandbox.description,
        "prompts_left_out": prompts_left_out,
    }
    for warning in sources.unchecked(data):
        log.warning("WARNING %s", warning)
    folder.mkdir(parents=True, exist_ok=True)
    saved_config.write(folder, cfg)
    write_text(folder / "command.txt", command + "\n")
    write_text(folder / "environment.json", json.dumps(record, indent=2) + "\n")
