"""Shared parts of the config files of the paper's experiments (arXiv 2605.12652)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mopd_jax import config
from mopd_jax.config import methods
from mopd_jax.errors import ConfigError, unknown


def base(model: str, *, steps: int) -> ConfigDict:
    """Settings of every experiment: 32 prompts x 8 rollouts, 2048 + 4096 tokens, 8 devices.

    All other settings are the defaults, or those of the file that calls this.
    """
    cfg = config.defaults()
    cfg.seed = 42
    cfg.steps = steps
    cfg.dump_every = 10
    cfg.model.path = model
    cfg.model.compute_dtype = "bfloat16"
    cfg.model.remat = True
    cfg.data.source = "tfds"
    # Weights and moments are split over eight devices; a micro-batch has a row on each.
    cfg.mesh.fsdp = 8
    cfg.optimizer.micro_batches = 32
    cfg.eval.every = 10
    cfg.eval.temperature = 0.6
    cfg.eval.top_p = 0.95
    cfg.checkpoint.every = 50
    return cfg


def choose(variant: str, settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, Mapping]:
    """`[SETTING/]METHOD` -> (setting, method, the setting's values); the first is default.

    Raises:
        ConfigError: there is no such setting; the message names the nearest one.
    """
    setting, _, method = variant.rpartition("/")
    setting = setting or next(iter(settings))
    if setting not in settings:
        raise ConfigError(unknown(f"variant {variant!r}", setting, settings))
    return setting, method or "mopd", settings[setting]


def finish(cfg: ConfigDict, variant: str, method: str) -> ConfigDict:
    """The config with a method applied, named by the whole variant.

    Raises:
        ConfigError: there is no such method; the message names the nearest one.
    """
    methods.apply(cfg, method)
    cfg.name = variant.replace("/", "-")
    return cfg
