"""Records of a model's output: hidden states and a head, logits, or stored log-probs."""

from __future__ import annotations

import dataclasses
import math

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """A model's output as hidden states and head; its logits are states @ head.T in float32.

    Attributes:
        states: [..., D], at the positions that predict each target.
        head: [V, D]. A Flax kernel is [D, V]: pass its transpose. A tied embedding as it is.
        soft_cap: static; logits become cap tanh(logits / cap) before any temperature.

    Raises:
        ValueError: a soft cap that is not positive and finite.
    """

    states: jax.Array
    head: jax.Array
    soft_cap: float | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        cap = self.soft_cap
        if cap is not None and not (isinstance(cap, float | int) and 0 < cap < math.inf):
            raise ValueError(
                f"Hidden: soft_cap must be a positive and finite number, or None, got {cap!r}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Logits:
    """A model's output as logits, from another framework or an API; a soft cap is in them.

    They are divided by the call's temperature, as those of a `Hidden` are. Log-probs of the
    whole vocabulary at temperature 1 are logits too. Give a student's logits in float32: the
    precision lost to bfloat16 cannot be recovered.
    """

    values: jax.Array  # [..., V]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """A teacher's stored log-probs of K tokens at each position.

    The log-probs are under the full softmax at the temperature of the call, so the tail has the
    rest of the mass. Where fewer are known, pad with id -1 or log-prob -inf: an id outside the
    vocabulary counts for nothing, and one that occurs twice at a position counts once.
    """

    ids: jax.Array  # i32[..., K]
    logp: jax.Array  # f32[..., K] nats


Output = Hidden | Logits
Teacher = Hidden | Logits | Stored
