"""What is static in a call: which statistics, on which support, in what pieces."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax

from mopd_jax.kernels.linear_divergence.formulas import Measure


@dataclasses.dataclass(frozen=True)
class TopK:
    """A divergence over k chosen tokens per position instead of the whole vocabulary.

    With `tail` the rest of the vocabulary is one more outcome of both models, so that what is
    measured is a divergence, at most the full one. Without, both are renormalised on the chosen
    tokens and what they say elsewhere is not seen. Log-probs and entropy stay full.
    """

    k: int
    of: Literal["student", "teacher", "union"] = "student"  # Whose k largest are chosen.
    tail: bool = True

    def __post_init__(self):
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"TopK: k must be at least 1, an int, got {self.k!r}")
        if self.of not in ("student", "teacher", "union"):
            raise ValueError(f"TopK: of={self.of!r} is none of student, teacher, union")


# "sampled" is the one-token estimator of the reverse KL's gradient: see `statistics`.
Support = Literal["full", "sampled"] | TopK


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredTeacher:
    """What was kept of a teacher: its log-probs of K tokens at each position.

    The log-probs are under the full softmax at the temperature of the call, so that what they
    leave over is the tail's. Where fewer are known, pad with id -1 or log-prob -inf.
    """

    ids: jax.Array  # i32[..., K]
    logp: jax.Array  # f32[..., K] nats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenTeacher:
    """A teacher by its hidden states and head."""

    hidden: jax.Array  # [..., E]
    head: jax.Array  # [V, E]


@dataclasses.dataclass(frozen=True)
class HeadSharding:
    """Where tokens and heads lie on a mesh: [N, T, D] by N, [V, D] by V and by D.

    Rows are split over `tokens`, the vocabulary over `vocab`, and the width of the heads is
    stored in parts over `embed`, one of `tokens` (FSDP), gathered for the call. An axis that is
    not named holds copies.
    """

    tokens: tuple[str, ...] = ("data",)
    vocab: str | None = None
    embed: str | None = None
    mesh: Any = None  # None takes the mesh in context (`jax.set_mesh`).

    def __post_init__(self):
        if not isinstance(self.tokens, tuple) or len(set(self.tokens)) < len(self.tokens):
            raise ValueError(
                f"HeadSharding: tokens={self.tokens!r} must be a tuple of different axes, such"
                ' as ("data",)'
            )
        if self.vocab in self.tokens:
            raise ValueError(f"HeadSharding: axis {self.vocab!r} is both in tokens and vocab")
        if self.embed is not None and self.embed not in self.tokens:
            raise ValueError(
                f"HeadSharding: embed={self.embed!r} must be one of tokens={self.tokens}: the"
                " heads are gathered over it, and their gradients scattered"
            )


@dataclasses.dataclass(frozen=True)
class Spec:
    """The static options of one call, checked by `mopd_jax.kernels`."""

    measure: Measure | None  # None: no teacher, log-prob and entropy only.
    support: Support
    temperature: float
    student_cap: float | None  # Logits are cap tanh(logits / cap), before the temperature.
    teacher_cap: float | None
    vocab_size: int  # Columns that exist; the heads may be padded beyond.
    chunk_tokens: int
    sharding: HeadSharding | None = None


def soft_caps(soft_cap) -> tuple[float | None, float | None]:
    """(student's, teacher's) of one value for both or of a pair.

    Raises:
        ValueError: a cap is not positive and finite, or there are not two.
    """
    caps = soft_cap if isinstance(soft_cap, tuple | list) else (soft_cap, soft_cap)
    numbers = [cap for cap in caps if cap is not None]
    if len(caps) != 2 or not all(
        isinstance(cap, int | float) and 0 < cap < math.inf for cap in numbers
    ):
        raise ValueError(
            f"soft_cap must be a positive number, None, or a pair (student's, teacher's) of"
            f" these, got {soft_cap!r}"
        )
    return tuple(caps)


def check_support(support: Support, measure: Measure, stored: StoredTeacher | None) -> None:
    """Refuses supports that mean nothing.

    Raises:
        ValueError: unknown, "sampled" of something else than the reverse KL, or not that of a
            stored teacher.
    """
    if not isinstance(support, TopK) and support not in ("full", "sampled"):
        raise ValueError(f"support={support!r} is none of 'full', 'sampled' or a TopK(...)")
    if support == "sampled" and measure.kind != "reverse_kl":
        raise ValueError(
            f"support='sampled' estimates the reverse KL only, got kind={measure.kind!r}; use"
            " kind='reverse_kl', or another support"
        )
    if support == "sampled" and measure.clip is not None:
        raise ValueError(
            f"clip={measure.clip} bounds what a token of the vocabulary adds, and"
            " support='sampled' has no such terms; leave it None, or use another support"
        )
    if stored is None:
        return
    own = TopK(stored.ids.shape[-1], of="teacher", tail=getattr(support, "tail", True))
    if support != own:
        raise ValueError(
            f"a stored teacher knows its own tokens only, got support={support!r}; use"
            f" TopK({own.k}, of='teacher'), {own.k} being how many are stored"
        )
