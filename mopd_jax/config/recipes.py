"""What the config files of the paper's experiments have in common (arXiv 2605.12652)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mopd_jax import config
from mopd_jax.config import methods, unknown
from mopd_jax.errors import ConfigError


def base(model: str, *, steps: int) -> ConfigDict:
    """Settings of every experiment: 32 prompts x 8 rollouts, 2048 + 4096 tokens, 8 devices.

    What is not set here or in the file that calls it is as in `config.py`.
    """
    cfg = config.defaults()
    cfg.seed = 42
    cfg.steps = steps
    cfg.dump_every = 10
    cfg.model.path = model
    cfg.model.compute_dtype = "bfloat16"
    cfg.model.remat = True
    cfg.data.source = "tfds"
    # Weights and moments in eight parts; a micro-batch has one row on each device.
    cfg.mesh.fsdp = 8
    cfg.optimizer.micro_batches = 32
    cfg.eval.every = 10
    cfg.eval.temperature = 0.6
    cfg.eval.top_p = 0.95
    cfg.checkpoint.every = 50
    return cfg


def choose(variant: str, settings: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, Mapping]:
    """`[SETTING/]METHOD` -> (setting, method, what the setting means); the first is default.

    Raises:
        ConfigError: there is no such setting, naming the nearest one.
    """
    setting, _, method = variant.rpartition("/")
    setting = setting or next(iter(settings))
    if setting not in settings:
        raise ConfigError(unknown(f"variant {variant!r}", setting, settings))
    return setting, method or "mopd", settings[setting]


def finish(cfg: ConfigDict, variant: str, method: str) -> ConfigDict:
    """Applies a method, and names the run by the whole variant.

    Raises:
        ConfigError: there is no such method.
    """
    methods.apply(cfg, method)
    cfg.name = variant.replace("/", "-")
    return cfg
