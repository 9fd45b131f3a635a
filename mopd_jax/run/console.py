"""Prints a run's progress: a line for each step, and a bar with the current phase."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from mopd_jax.config import Config
from mopd_jax.records import Problem

log = logging.getLogger("mopd")

LEGEND = (
    "step lines: solved = share of rollouts that succeed; mixed = share of groups with both"
    " outcomes; active = share of rows that train; informed = share of rows whose teacher reads"
    " a context; div, entropy = nats a token; resp, teacher = mean tokens of a response and of"
    " a teacher's prompt (docs/metrics.md)"
)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_SAID_SECONDS = 0.5  # Compilations that together take less are not worth a line.
_SAMPLES, _SHOWN_CHARS = 3, 100  # Of an evaluation; of a text.


class Progress:
    """Logs the line of every step, with the time that the rest will take at the same pace.

    As a context it also notices what JAX compiles, which `Clock` reports.
    """

    def __init__(self, cfg: Config):
        self._cfg = cfg
        self._begun: tuple[int, float] | None = None  # The first step said, and when.
        self._compiled = 0.0

    def __enter__(self) -> Progress:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **given: str | int) -> None:
        del given
        if event == _COMPILED:
            self._compiled += duration_secs

    def compiled(self) -> float:
        """Seconds of compilation so far."""
        return self._compiled

    def clock(self, step: int, *, phases: int) -> Clock:
        """The clock of one step; the first step's says what compiles."""
        return Clock(
            step,
            self._cfg.steps,
            phases=phases,
            compiled=self.compiled,
            first=self._begun is None,
        )

    def say(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs the line of a training step, the first time with a legend."""
        cfg = self._cfg
        if self._begun is None:
            log.info("%s", LEGEND)
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
            *self._eta(step),
        ]
        log.info("%s", "  ".join(parts))

    def say_rollouts(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs the line of a step of `mopd rollout`, which does not train."""
        parts = [
            f"step {step}/{self._cfg.steps}",
            f"solved {values['solve_rate']:.3f}",
            f"mixed {values['mixed_groups']:.2f}",
            f"truncated {values['truncated']:.2f}",
            f"resp {values['response_tokens']:.0f}",
            f"{values['seconds']:.2f} s",
            *self._eta(step),
        ]
        log.info("%s", "  ".join(parts))

    def _eta(self, step: int) -> list[str]:
        """ "eta 1:23", evaluations and checkpoints included; nothing after the first step,
        whose time is that of compilation, or the last."""
        now = time.perf_counter()
        if self._begun is None:
            self._begun = step, now
            return []
        first, begun = self._begun
        rest = (now - begun) / (step - first) * (self._cfg.steps - step)
        return [f"eta {tqdm.format_interval(rest)}"] if rest else []


class Clock:
    """Times the phases of one step; on a terminal, a bar says which one is running."""

    def __init__(
        self, step: int, steps: int, *, phases: int, compiled: Callable[[], float], first: bool
    ):
        """
        Args:
            compiled: () -> seconds of compilation so far.
            first: say what compiles before it does, since the step may take minutes.
        """
        self._title = f"step {step}/{steps}"
        self._compiled, self._first = compiled, first
        self._seconds: dict[str, float] = {}
        self._bar = tqdm(total=phases, leave=False, disable=None)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the body's wall seconds to those of `name`."""
        self._bar.set_description(f"{self._title} {name}")
        if self._first and name in ("rollout", "update"):
            program = {"rollout": "the sampler", "update": "the update"}[name]
            log.info("%s compiles %s ...", self._title, program)
        begun, compiled = time.perf_counter(), self._compiled()
        yield
        if (spent := self._compiled() - compiled) > _SAID_SECONDS:
            log.info("%s compiled for %.1f s (%s)", self._title, spent, name)
        spent = time.perf_counter() - begun
        self._seconds[name] = self._seconds.get(name, 0.0) + spent
        self._bar.update()

    def seconds(self) -> dict[str, float]:
        """Ends the bar; returns the wall seconds of all phases, and of each."""
        self._bar.close()
        parts = {f"seconds_{name}": value for name, value in self._seconds.items()}
        return {"seconds": sum(self._seconds.values()), **parts}


def samples(
    problems: Sequence[Problem], texts: Sequence[str], right: Sequence[bool]
) -> list[dict[str, str]]:
    """A few responses of an evaluation with their verdicts, a row of texts each."""
    return [
        {
            "verdict": "right" if succeeded else "wrong",
            "problem": problem.id,
            "prompt": problem.messages[-1]["content"],
            "response": text,
        }
        for problem, text, succeeded in itertools.islice(
            zip(problems, texts, right, strict=True), _SAMPLES
        )
    ]


def say_samples(rows: Sequence[Mapping[str, str]]) -> None:
    """Logs the rows of `samples`, one line each, with long texts cut in their middle."""
    for row in rows:
        asked, answered = _shown(row["prompt"]), _shown(row["response"])
        log.info("  %s %s: %s -> %s", row["verdict"], row["problem"], asked, answered)


def _shown(text: str) -> str:
    """A text on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    half = _SHOWN_CHARS // 2
    return line if len(line) <= _SHOWN_CHARS else f"{line[:half]} ... {line[-half:]}"


def setup_logging() -> None:
    """Sends the package's messages to stdout; called by the command line only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False  # Handlers that libraries add to the root would repeat them.
    from absl import logging as absl_logging

    absl_logging.get_absl_logger().addFilter(_not_said_twice)


def _not_said_twice(record: logging.LogRecord) -> bool:
    """False for what each thread of a save that fails reports, with a traceback.

    The save raises the same error.
    """
    return "_SignalingThread.run() raised an exception" not in record.getMessage()
