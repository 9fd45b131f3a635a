"""The records that travel between the parts of a step, and the legend of their shapes.

Legend, used in every docstring of this package:

    P  prompts of a step              G  rollouts per prompt (the group)
    N  rows, N = P * G; row n answers prompt n // G
    S  student prompt length, left-padded
    Q  teacher prompt length, left-padded
    T  response length, right-padded, the end token included where one was produced
    V  vocabulary    D  width    L  sequence length    B  rows of any batch
    H  query heads   J  key-value heads   C  head size   Y  layers

Log-probabilities and divergences are in nats. A log-prob says under which distribution: in
this package it is the model's distribution at the rollout temperature, before top-p or top-k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, dataclass_transform

import jax
import numpy as np

Class = TypeVar("Class")

Params = Any  # A pytree of f32 arrays, as `models.decoder.init` makes it.
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


def is_chat(messages: Any) -> bool:
    """A list of messages with role and content, the last from the user."""
    whole = isinstance(messages, list) and all(
        isinstance(m, dict)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in messages
    )
    return whole and bool(messages) and messages[-1]["role"] == "user"


@dataclass_transform(frozen_default=True)
def record(cls: type[Class]) -> type[Class]:
    """Frozen dataclass that is also a pytree; every field is a child."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@record
class Rollouts:
    """N responses of the student to P prompts; row n answers prompt n // G."""

    prompt: jax.Array  # i32[P, S], left-padded
    prompt_mask: jax.Array  # bool[P, S]
    response: jax.Array  # i32[N, T], right-padded
    response_mask: jax.Array  # bool[N, T], true up to and including the end token
    sampled_logp: jax.Array  # f32[N, T] nats, under the policy that sampled; 0 outside the mask
    stopped: jax.Array  # bool[N], false where the response was cut at T


@record
class TeacherInputs:
    """What the teacher reads before it scores the target, on the host."""

    prompt: np.ndarray  # i32[N, Q], left-padded
    prompt_mask: np.ndarray  # bool[N, Q]
    informed: np.ndarray  # bool[N], the row's context has something to read


@record
class Batch:
    """All that one update reads. Everything in it is constant under differentiation."""

    prompt: jax.Array  # i32[N, S]
    prompt_mask: jax.Array  # bool[N, S]
    response: jax.Array  # i32[N, T]
    mask: jax.Array  # bool[N, T], response tokens that are trained on
    sampled_logp: jax.Array  # f32[N, T], 0 outside the mask
    teacher_prompt: jax.Array  # i32[N, Q]
    teacher_prompt_mask: jax.Array  # bool[N, Q]
    advantage: jax.Array  # f32[N], read by GRPO; DPO and SimPO read its order in a group
    row_weight: jax.Array | None = None  # f32[N], factor of the row's tokens; None: 1
    steps: jax.Array | None = None  # i32[N, T], of `loss.aggregation` seq-mean-step-mean


@record
class TrainState:
    """The part of a run that a checkpoint holds, besides the data position; never mutated."""

    params: Params
    teacher: Params  # A copy, an external model or {}, by `update.teacher.teacher_slot`.
    optimizer: Any
    step: jax.Array  # i32[], steps done so far, of one update or of several
    skipped: jax.Array  # i32[], updates skipped: gradient not finite, or no token trained on
    key: jax.Array  # typed key; the root, never changed


@dataclasses.dataclass(frozen=True)
class Problem:
    """One verifiable task. `answer`, `solution` and `meta` are for the verifier; a prompt has
    them only where a config asks for gold by name."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    verifier: str
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    solution: str = ""  # A worked gold solution, where the data has one.


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    reward: in [0, 1]; success is `reward >= peers.threshold`.
    test_fraction: share of the tests that passed, where the verifier runs tests.
    feedback: text about the attempt, may be empty.
    feedback_has_gold: the feedback may contain gold answers or hidden tests. A verifier must
        declare it: such feedback reaches a teacher only by `context.feedback_with_gold`.
    error: why no verdict was possible; such a row is neither success nor failure.
    answer: the final answer extracted from the response, with or without an error; None where
        none can be extracted, or answers of this verifier are not compared as strings. Equal
        answers are written alike. It never contains gold that the response does not.
    format_ok: the answer has the place and form that the prompt asks for; None: the verifier
        asks for no form.
    truncated: the response was cut before it ended.
    tests_skipped: tests that were not run since enough had cost too much; they count as failed
        in `test_fraction`.
    """

    reward: float
    test_fraction: float | None = None
    feedback: str = ""
    error: str = ""
    answer: str | None = None
    format_ok: bool | None = None
    truncated: bool = False
    feedback_has_gold: bool = False
    tests_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The rollouts of a step on the host. Lists are [P][G]."""

    problems: list[Problem]
    uids: np.ndarray  # u32[P], numbers of the prompts; they key the random draws
    prompt: np.ndarray  # i32[P, S]
    prompt_mask: np.ndarray  # bool[P, S]
    response: np.ndarray  # i32[P, G, T]
    mask: np.ndarray  # bool[P, G, T]
    sampled_logp: np.ndarray  # f32[P, G, T]
    stopped: np.ndarray  # bool[P, G], false where the response was cut at T
    texts: list[list[str]]


def successes(rewards: np.ndarray, valid: np.ndarray, *, threshold: float) -> np.ndarray:
    """bool[P, G]: the rollouts with a verdict whose reward f64[P, G] reaches the threshold."""
    return valid & (rewards >= threshold)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Rewards, valid and success from the verdicts, computed once a step."""

    rewards: np.ndarray  # f64[P, G], in [0, 1]; 0 without a verdict
    valid: np.ndarray  # bool[P, G], the rollout has a verdict
    success: np.ndarray  # bool[P, G], valid, and the reward reaches the threshold

    @classmethod
    def of(cls, verdicts: Sequence[Sequence[Verdict]], *, threshold: float) -> Outcomes:
        """Outcomes of verdicts [P][G].

        Args:
            threshold: `peers.threshold`, the least reward of a success.
        """
        rewards = np.array([[verdict.reward for verdict in row] for row in verdicts])
        valid = np.array([[not verdict.error for verdict in row] for row in verdicts])
        return cls(rewards, valid, successes(rewards, valid, threshold=threshold))

    @property
    def failure(self) -> np.ndarray:
        """bool[P, G], the rollout has a verdict and is not a success."""
        return self.valid & ~self.success

    @property
    def mixed(self) -> np.ndarray:
        """bool[P], groups with at least one success and one failure."""
        return np.logical_and(self.success.any(axis=1), self.failure.any(axis=1))


class Tokenizer(Protocol):
    """The part of a Transformers tokenizer that the package uses (`models/tokenizer.py`)."""

    pad_id: int
    stop_ids: tuple[int, ...]
    vocab_size: int
    specials: tuple[str, ...]  # Texts that `chat` would read as special tokens.
    fingerprint: str  # Of vocabulary and chat template.
    vocabulary: str  # Fingerprint of the vocabulary alone: which token each id is.

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation with the assistant header at the end."""

    def header(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of that header; empty where the template has none of its own."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens dropped."""
