"""Prints a run's progress: a line for each step, and a bar with the current phase."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from mopd_jax.config import Config

log = logging.getLogger("mopd")


def say(step: int, cfg: Config, values: Mapping[str, Any]) -> None:
    """Logs the line of a training step."""
    parts = [
        f"step {step}/{cfg.steps}",
        f"solved {values['solve_rate']:.3f}",
        f"mixed {values['mixed_groups']:.2f}",
        f"active {values['active']:.2f}",
        f"informed {values['informed']:.2f}",
        f"loss {values['loss']:.4f}",
        *([f"div {values['divergence']:.4f}"] if "divergence" in values else []),
        f"entropy {values['entropy']:.3f}",
        f"resp {values['response_tokens']:.0f}",
        *(
            [f"teacher {values['teacher_prompt_tokens']:.0f}"]
            if cfg.loss.method == "distill"
            else []
        ),
        f"{values['tokens_per_second']:.0f} tok/s",
        f"{values['seconds']:.2f} s (roll {values['seconds_rollout']:.2f}, "
        f"verify {values['seconds_verify']:.2f}, context {values['seconds_context']:.2f}, "
        f"update {values['seconds_update']:.2f})",
    ]
    log.info("%s", "  ".join(parts))


def say_rollouts(step: int, cfg: Config, values: Mapping[str, Any]) -> None:
    """Logs the line of a step of `mopd rollout`, which does not train."""
    log.info(
        "step %d/%d  solved %.3f  mixed %.2f  truncated %.2f  resp %.0f  %.2f s",
        step,
        cfg.steps,
        *(values[name] for name in ("solve_rate", "mixed_groups", "truncated")),
        values["response_tokens"],
        values["seconds"],
    )


class Clock:
    """Times the phases of one step; on a terminal, a bar says which one is running."""

    def __init__(self, step: int, steps: int, *, phases: int):
        self._title = f"step {step}/{steps}"
        self._seconds: dict[str, float] = {}
        self._bar = tqdm(total=phases, leave=False, disable=None)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the body's wall seconds to those of `name`."""
        self._bar.set_description(f"{self._title} {name}")
        begun = time.perf_counter()
        yield
        spent = time.perf_counter() - begun
        self._seconds[name] = self._seconds.get(name, 0.0) + spent
        self._bar.update()

    def seconds(self) -> dict[str, float]:
        """Ends the bar; returns the wall seconds of all phases, and of each."""
        self._bar.close()
        parts = {f"seconds_{name}": value for name, value in self._seconds.items()}
        return {"seconds": sum(self._seconds.values()), **parts}


def setup_logging() -> None:
    """Sends the package's messages to stdout; called by the command line only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False  # Handlers that libraries add to the root would repeat them.
