"""Settings of the sandbox that generated programs run in (docs/sandbox.md)."""

import dataclasses
from typing import Literal

from mopd_jax.errors import at_least, require

Level = Literal["namespaces", "limits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """How generated programs are isolated, and how much each may use.

    level: `namespaces` (bubblewrap) or the weaker `limits`; what cannot be had is an error, and
        nothing weaker takes its place.
    workers: programs at one time; None is one a processor that this process may use.
    python: the interpreter inside; None is this one if an unprivileged user can start it, else
        the system's. Programs see its standard library and no installed packages.
    cpu_seconds: of one test, all of its processes together; a problem's own limit goes first.
    wall_seconds: after which a program that the machine has starved of CPU time is given up, as
        an error and not as a failure.
    idle_seconds: that a program may sleep or wait for nothing; more is a failure.
    slow_tests: tests of one program that may end at `cpu_seconds`, `idle_seconds` or `file_mb`,
        or break the sandbox. After that many the rest are not run, count as failed, and are
        counted (`tests_skipped`): a program that loops would cost its limit once a test. None:
        all are run.
    memory_mb: of one test, all of its processes together. A process may also not reserve more.
    processes: and threads of one test, at one time.
    file_mb: of one test on its private disk, which is memory.
    output_kb: of one stream of one test.
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

    def __post_init__(self):
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
