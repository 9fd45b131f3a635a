"""Sends a run's records to Weights & Biases and Trackio, beside the run folder.

The run folder has every record whatever happens here: a service that fails is left with a
warning, and the run goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import logging
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.files import write_text

log = logging.getLogger("mopd")

FILE = "sinks.json"  # {"id": the name of the run at the services}
_NAMES = {"wandb": "Weights & Biases", "trackio": "Trackio"}


class Service(Protocol):
    """A service that keeps curves and tables of one run."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers by name."""

    def table(self, step: int, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Records a table of texts."""

    def close(self) -> None:
        """Sends what is left."""


class Sinks:
    """The services of a run, each dropped with a warning when it fails."""

    def __init__(self, services: Mapping[str, Callable[[], Service]]):
        """Opens them; {setting: how to open it}."""
        self._open: dict[str, Service] = {}
        for name, opened in services.items():
            self._guarded(name, functools.partial(self._add, name, opened))

    def scalars(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Numbers as kind/name; what is not a finite number stays in the run folder."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._each(lambda service: service.log(step, numbers))

    def samples(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """A table of an evaluation's samples; every row has the same keys."""
        if rows:
            table = [*rows[0]], [[*row.values()] for row in rows]
            self._each(lambda service: service.table(step, "eval/samples", *table))

    def close(self) -> None:
        """Closes all; sends what is left, which may take a while."""
        self._each(lambda service: service.close())
        self._open.clear()

    def _add(self, name: str, opened: Callable[[], Service]) -> None:
        self._open[name] = opened()

    def _each(self, do: Callable[[Service], None]) -> None:
        for name, service in list(self._open.items()):
            self._guarded(name, functools.partial(do, service))

    def _guarded(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        # A service may raise anything, and none of it is worth a run.
        except Exception as error:
            self._open.pop(name, None)
            log.warning(
                "WARNING log.%s: %s failed (%s: %s); the run goes on without it, and the run "
                "folder has everything",
                name,
                _NAMES[name],
                type(error).__name__,
                " ".join(str(error).split())[:200],
            )


def check(cfg: Config) -> None:
    """Raises ConfigError if the package of a service that the config asks for is missing."""
    for name, asked in dataclasses.asdict(cfg.log).items():
        if asked and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"log.{name}={asked!r} needs the package {name}, which is not installed; "
                f"pip install {name}, or set log.{name}=None"
            )


def open_sinks(cfg: Config, folder: pathlib.Path, *, fresh: bool) -> Sinks:
    """The services that `cfg.log` asks for.

    Args:
        folder: of the run; keeps the run's name at the services, so that a resumed run goes on
            under the same.
        fresh: the run starts from its first step, under a new name.
    """
    makers: dict[str, Callable[..., Service]] = {"wandb": _Wandb, "trackio": _Trackio}
    asked = {name: made for name, made in makers.items() if getattr(cfg.log, name)}
    if not asked:
        return Sinks({})
    name = f"{folder.resolve().name[:40]}-{_identity(folder, fresh=fresh)}"
    return Sinks({k: functools.partial(made, cfg, folder, name) for k, made in asked.items()})


def _identity(folder: pathlib.Path, *, fresh: bool) -> str:
    path = folder / FILE
    if not fresh and path.exists():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["id"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}); remove it, and the services get "
                "the rest of the run under a new name"
            ) from error
    identity = uuid.uuid4().hex[:8]
    write_text(path, json.dumps({"id": identity}) + "\n")
    return identity


class _Wandb:
    def __init__(self, cfg: Config, folder: pathlib.Path, name: str):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=cfg.log.wandb,
            id=name,
            name=name,
            resume="allow",
            dir=str(folder),
            config=dataclasses.asdict(cfg),
            settings=wandb.Settings(silent=True),
        )
        # Their own count of steps only grows; a resumed run repeats some of ours.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **values})

    def table(self, step: int, name: str, columns: list[str], rows: list[list[str]]) -> None:
        table = self._wandb.Table(columns=[*columns], data=rows)
        self._run.log({"step": step, name: table})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, cfg: Config, folder: pathlib.Path, name: str):
        import trackio

        del folder  # It has a folder of its own, TRACKIO_DIR.
        self._trackio = trackio
        self._run = trackio.init(
            project=str(cfg.log.trackio),
            name=name,
            resume="allow",
            config=dataclasses.asdict(cfg),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, step: int, name: str, columns: list[str], rows: list[list[str]]) -> None:
        self._run.log({name: self._trackio.Table(columns=columns, data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()
