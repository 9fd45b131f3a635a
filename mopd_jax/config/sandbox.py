"""Settings of the sandbox that generated programs run in (docs/sandbox.md)."""

import dataclasses
from typing import Literal

from mopd_jax.errors import at_least, require

Level = Literal["namespaces", "limits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """How generated programs are isolated, and how much each may use.

    level: `namespaces` (bubblewrap) or the weaker `limits`. A level that this machine cannot
        give is an error; a weaker one never takes its place.
    workers: programs that run at one time. None: one for each processor of this process.
    python: the interpreter inside. None: this one if an unprivileged user can start it, else
        the system's. Programs see its standard library and no installed packages.
    cpu_seconds: limit of one test, all of its processes together; a problem's own limit takes
        precedence.
    wall_seconds: when to give up a program that the machine has starved of CPU time, as an
        error and not as a failure.
    idle_seconds: how long a program may sleep or wait for nothing; longer is a failure.
    slow_tests: tests of one program that may reach `cpu_seconds`, `idle_seconds` or `file_mb`,
        or break the sandbox. After so many the rest are not run, and count as failed and as
        `tests_skipped`, because a program that loops would cost its limit once a test. None:
        all are run.
    memory_mb: limit of one test, all of its processes together; also the most that one process
        may reserve.
    processes: processes and threads that one test may have at one time.
    file_mb: what one test may write to its private disk, which is memory.
    output_kb: what one test may write to each of its streams.
    """

    level: Level = "namespaces"
    workers: int | None = None
    python: str | None = None
    cpu_seconds: float = 6.0
    wall_seconds: float = 90.0
    idle_seconds: float = 10.0
    slow_tests: int | None = 2
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 64
    output_kb: int = 8192

    def __post_init__(self) -> None:
        at_least(self, 1, "workers", "slow_tests", "processes", "file_mb", "output_kb")
        at_least(self, 64, "memory_mb")
        at_least(self, 0.1, "cpu_seconds", "idle_seconds")
        least = 5 * max(self.cpu_seconds, self.idle_seconds)
        require(
            self.wall_seconds >= least,
            f"SandboxConfig.wall_seconds is {self.wall_seconds}; a busy machine would decide "
            f"verdicts. Set sandbox.wall_seconds to at least {least}, five times cpu_seconds "
            "and idle_seconds",
        )
