"""The record of a run's constant parts: settings, models, data and jitted functions."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from mopd_jax.config import Config
from mopd_jax.models import decoder
from mopd_jax.records import Batch, Problem, Tokenizer, TrainState
from mopd_jax.rollouts.storage import Saved
from mopd_jax.sandbox import Sandbox
from mopd_jax.update.teacher import Models


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """The parts needed to sample the student on held-out problems."""

    cfg: Config
    model: decoder.DecoderConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    eval_problems: list[Problem]
    sample_eval: Callable[..., Any]
    sandbox: Sandbox | None  # Where the verifier runs programs.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Student):
    """The constant parts of a run."""

    folder: pathlib.Path
    models: Models
    sample: Callable[..., Any]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]]
    drift: Callable[[TrainState, Batch], dict]
    saved: Saved | None = None  # The rollouts that are trained from, where none are sampled.
    prompts_left_out: int = 0  # Training problems that are too long, by `data.long_prompts`.
