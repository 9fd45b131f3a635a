"""The options of a divergence as a checked record; `formulas` has the formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd"]
Support = Literal["full", "student", "teacher", "union", "sampled"]

# The supports that choose `top_k` tokens of a model at each position.
CHOSEN = ("student", "teacher", "union")
_DEFAULT_TOP_K = 100


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Divergence:
    """A divergence of the student's next-token distribution p from the teacher's q, in nats.

    A pytree. `alpha` as a Python float is part of its structure, compiled into a program; as a
    JAX scalar it is its one leaf, so that a schedule compiles once.

    Attributes:
        kind: "forward_kl" is KL(q || p), "reverse_kl" KL(p || q), "jsd" the generalised
            Jensen-Shannon divergence (1 - alpha) KL(p || m) + alpha KL(q || m), where
            m = (1 - alpha) p + alpha q (arXiv 2306.13649; alpha is its beta).
        alpha: of a jsd, the weight of the teacher, 0 <= alpha <= 1; None is 0.5 there, and the
            only choice for a KL. A jsd vanishes towards both ends. A Python 0.0 means the
            forward KL and 1.0 the reverse, the limits of jsd / (alpha (1 - alpha)): a jump. A
            JAX scalar is exact inside (0, 1), gives 0 without a gradient at the ends, and NaN
            outside. It is a constant: no gradient reaches it.
        clip: the most nats that one outcome may add (point-wise clipping, arXiv 2601.18734):
            min(p log(p/q), clip) for a KL, the two terms of m together for a jsd. Where it
            acts the outcome has no gradient of its own. What is left of a KL may be negative,
            with its minimum away from the teacher; a jsd stays a divergence.
        support: "full" vocabulary; the `top_k` likeliest tokens of the "student", of the
            "teacher", or of both ("union"); or "sampled", for "reverse_kl" only: the estimator
            (logp - teacher_logp) logp of the target, the first factor constant, whose gradient
            is right on average; do not read its value. For a `Stored` teacher the
            support is what is stored: leave "full", or say "teacher".
        top_k: how many tokens are chosen, where `support` chooses; None is 100, for a
            `Stored` teacher all it has.
        tail: of chosen tokens, count the rest of the vocabulary as one more outcome of both
            models, so that the result is a divergence, at most the full one. Without it both
            are renormalised on the chosen tokens.

    Raises:
        ValueError: a field that is out of range, or that another field makes meaningless.
    """

    kind: DivergenceKind = "jsd"
    alpha: float | jax.Array | None = None
    clip: float | None = None
    support: Support = "full"
    top_k: int | None = None
    tail: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(DivergenceKind):
            raise ValueError(
                f"divergence kind={self.kind!r} is not one of {get_args(DivergenceKind)}"
            )
        self._check_alpha()
        if self.clip is not None and not _is_number(self.clip):
            raise ValueError(
                f"divergence clip={self.clip!r} is a {type(self.clip).__name__}; it is static,"
                " give a Python float"
            )
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(
                f"divergence clip must be positive and finite, or None for off, got {self.clip}"
            )
        self._check_support()

    def _check_alpha(self) -> None:
        if self.alpha is None:
            return
        if self.kind != "jsd":
            raise ValueError(
                f"divergence alpha={self.alpha} does not apply to {self.kind}; leave it None"
            )
        check_scalar("divergence alpha", self.alpha)
        if isinstance(self.alpha, float | int) and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(
                "divergence kind='jsd' needs 0 <= alpha <= 1, the weight of the teacher,"
                f" got {self.alpha}; 0 is forward_kl and 1 is reverse_kl"
            )

    def _check_support(self) -> None:
        if self.support not in get_args(Support):
            raise ValueError(
                f"divergence support={self.support!r} is not one of {get_args(Support)}"
            )
        if self.support == "sampled" and self.kind != "reverse_kl":
            raise ValueError(
                "divergence support='sampled' estimates the reverse KL only, got"
                f" kind={self.kind!r}; use kind='reverse_kl', or another support"
            )
        if self.support == "sampled" and self.clip is not None:
            raise ValueError(
                f"divergence clip={self.clip} bounds what a token of the vocabulary adds, and"
                " support='sampled' has no such terms; set clip=None, or use another support"
            )
        top_k = self.top_k
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"divergence top_k must be at least 1, an int, got {top_k!r}")
        if top_k is not None and self.support not in CHOSEN:
            raise ValueError(
                f"divergence top_k={top_k} does not apply to support={self.support!r}; leave it"
                f" None, or choose a support of {', '.join(CHOSEN)}"
            )
        if not self.tail and self.support not in CHOSEN:
            raise ValueError(
                f"divergence tail=False, and support={self.support!r} has no tail; set"
                f" tail=True, or a support of {', '.join(CHOSEN)}"
            )

    @property
    def chosen(self) -> int | None:
        """How many tokens of a model are chosen at each position; None without a choice."""
        if self.support not in CHOSEN:
            return None
        return _DEFAULT_TOP_K if self.top_k is None else self.top_k

    def with_parts(self, alpha: SplitAlpha) -> Divergence:
        """This jsd with the parts of an alpha that is an array, past the checks."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        fields[1] = _LEAF
        return self.tree_unflatten(tuple(fields), (alpha,))

    @property
    def merges(self) -> bool:
        """Its sums over parts of the vocabulary, each under its own softmax, can be merged."""
        return self.kind != "jsd" and self.clip is None

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        if self.alpha is None or isinstance(self.alpha, float | int):
            return (), tuple(fields)
        fields[1] = _LEAF
        return ((jax.tree_util.GetAttrKey("alpha"), self.alpha),), tuple(fields)

    @classmethod
    def tree_unflatten(cls, fields: tuple[Any, ...], leaves: tuple[Any, ...]) -> Divergence:
        # Without the checks: transformations replace a leaf by objects that are not numbers.
        made = object.__new__(cls)
        for field, value in zip(dataclasses.fields(cls), fields, strict=True):
            value = leaves[0] if value is _LEAF else value
            object.__setattr__(made, field.name, value)
        return made


class SplitAlpha(NamedTuple):
    """What the terms of a jsd read of an alpha that is an array.

    Made once, outside of every loop: XLA moves scalars out of a loop one by one, and then no
    longer sees that two uses of them are equal, so that it computes whole terms twice.
    """

    heavy: jax.Array  # bool[], alpha is above 1/2: student and teacher are exchanged
    light: jax.Array  # f32[], the smaller of alpha and 1 - alpha; NaN outside [0, 1]
    rest: jax.Array  # f32[], 1 - light


def split_alpha(alpha: jax.Array, dtype: jnp.dtype) -> SplitAlpha:
    """The parts of an alpha f[], in the dtype of the log-probs."""
    alpha = alpha.astype(dtype)
    # Tracing cannot check an array's value, so one out of range gives NaN.
    alpha = jnp.where((alpha >= 0) & (alpha <= 1), alpha, jnp.nan)
    heavy = alpha > 0.5
    light = jnp.where(heavy, 1 - alpha, alpha)
    return SplitAlpha(heavy, light, 1 - light)


# In the structure of a Divergence, the place of an alpha that is a leaf.
_LEAF = Support


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def check_scalar(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a Python number or a floating scalar array."""
    if _is_number(value):
        return
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if dtype is None:
        raise ValueError(
            f"{name}={value!r} is a {type(value).__name__}; give a Python float, or a JAX"
            " scalar"
        )
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a floating scalar, got {dtype} of shape {shape}; one number"
            " serves all tokens"
        )


def settled(divergence: Divergence) -> Divergence:
    """The same divergence with an alpha of 0, 1 or None resolved."""
    if divergence.kind != "jsd":
        return divergence
    alpha = 0.5 if divergence.alpha is None else divergence.alpha
    if not isinstance(alpha, float | int):
        return divergence
    if alpha in (0.0, 1.0):
        kind: DivergenceKind = "reverse_kl" if alpha else "forward_kl"
        return dataclasses.replace(divergence, kind=kind, alpha=None)
    return dataclasses.replace(divergence, alpha=float(alpha))
