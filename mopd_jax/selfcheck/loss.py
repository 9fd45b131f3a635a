"""Checks the loss and its token weights on a small case, against float64 definitions.

The case has four tokens of a vocabulary of three words. Its slopes are differences of values of
the definitions, so they share no code with the gradient that they are compared with.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from mopd_jax import losses
from mopd_jax.config import Config, LossConfig
from mopd_jax.kernels import Divergence, DivergenceKind, Hidden
from mopd_jax.records import Batch
from mopd_jax.selfcheck.result import Result, fail
from mopd_jax.update import objectives, preferences, train_step

# Rows of three, one and no tokens, which every aggregation weighs differently.
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
# Of each token: the student's and the teacher's probabilities, the target, and the ratio of its
# probability now to that when it was sampled. No two words tie, so every top-k is unique.
STUDENT = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.25, 0.35, 0.4]])
TEACHER = np.array([[0.5, 0.3, 0.2], [0.5, 0.4, 0.1], [0.15, 0.1, 0.75], [0.6, 0.3, 0.1]])
TARGET = np.array([0, 1, 2, 0])
RATIO = np.array([1.0, 0.5, 8.0, 2.5])
# Steps of the responses, for the aggregation that reads them.
STEPS = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]], np.int32)
# Rounding of float32 on a loss of order 1.
LIMIT = 1e-5


class Compared(NamedTuple):
    """A value that the code computes and the value by its definition."""

    what: str
    got: ArrayLike
    want: ArrayLike

    @property
    def error(self) -> float:
        """The largest difference; NaN if a value is not finite."""
        return float(np.max(np.abs(np.asarray(self.got, np.float64) - np.asarray(self.want))))


def check(cfg: Config) -> Result:
    """Checks that the loss of a run's settings has the values of its definition.

    Raises:
        SelfCheckError: with which of weights, loss and slopes is wrong, and by how much.
    """
    numbers: dict[str, float] = {}
    causes = {
        "weights": f"aggregation {cfg.loss.aggregation!r} does not divide by what it should",
        "loss": "alpha or the direction of the divergence is not what the settings say",
        "slopes": "the gradient does not go where the settings say",
    }
    compared = compare(cfg)
    for found in compared:
        numbers[found.what] = found.error
        # Slopes grow as the distribution gets colder.
        if not found.error <= LIMIT * max(1.0, 1.0 / cfg.rollout.temperature):
            fail(
                "loss",
                f"{causes[found.what]} ({found.what} of a known case off by {found.error:.2g}; "
                f"loss.method={cfg.loss.method!r}, {cfg.loss.divergence}); reinstall the "
                "package, or undo the change to losses.py, objectives.py or the kernels",
            )
    return Result("loss", numbers, "" if compared else "these settings have no known case")


def compare(cfg: Config) -> list[Compared]:
    """Token weights, loss and slopes, made as in an update, with the values by definition.

    For a method without a divergence the direction of its gradient is compared. Settings
    without a definition here, such as another aggregation, are left out.
    """
    pairwise = cfg.loss.method in ("dpo", "simpo")
    found = []
    want = weights(MASK, cfg.loss.aggregation, every_row=cfg.loss.every_row)
    if not pairwise and want is not None:
        got = objectives.token_weights(_batch(cfg.loss), cfg.loss)
        found.append(Compared("weights", np.asarray(got), want))
    if cfg.loss.method == "distill":
        found += _distilled(cfg)
    elif cfg.loss.method == "grpo":
        found.append(_reinforced(cfg))
    elif pairwise:
        found.append(_preferred(cfg))
    return found


def weights(mask: np.ndarray, aggregation: str, *, every_row: bool) -> np.ndarray | None:
    """Weights f64[3, 3] due from `losses.token_weights`; None for an unknown aggregation."""
    k = mask.astype(np.float64)
    tokens = k.sum(axis=1, keepdims=True)
    rows = len(mask) if every_row else np.count_nonzero(tokens)
    return {
        "token-mean": k / k.sum(),
        "seq-mean-token-mean": k / np.maximum(tokens, 1) / rows,
        "seq-mean-token-sum": k / rows,
        "seq-mean-token-sum-norm": k / mask.shape[1],
        "seq-mean-step-mean": k / np.array([[4.0, 4.0, 2.0], [1.0] * 3, [1.0] * 3]) / rows,
    }.get(aggregation)


def divergence(
    p: np.ndarray,
    q: np.ndarray,
    kind: DivergenceKind,
    *,
    alpha: float | None = None,
    clip: float | None = None,
) -> float:
    """Nats between the probabilities p of a student and q of a teacher, f64[K] each.

    "forward_kl" is KL(q || p), "reverse_kl" KL(p || q), "jsd" (1 - a) KL(p || m) + a KL(q || m)
    with m = (1 - a) p + a q; at a = 0 and 1 the forward and the reverse KL. No outcome adds
    more than `clip`.
    """
    alpha = 0.5 if alpha is None else alpha
    if kind == "forward_kl" or (kind == "jsd" and alpha == 0):
        terms = _terms(q, p)
    elif kind == "reverse_kl" or alpha == 1:
        terms = _terms(p, q)
    else:
        m = (1 - alpha) * p + alpha * q
        terms = (1 - alpha) * _terms(p, m) + alpha * _terms(q, m)
    return float(np.sum(terms if clip is None else np.minimum(terms, clip)))


def _terms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The terms of KL(a || b); no probability may be 0."""
    return a * np.log(a / b)


def token_loss(logits: np.ndarray, n: int, of: Divergence) -> float:
    """Loss of token n at the student's logits f64[3].

    Factors that are constant under differentiation are those of `STUDENT`.
    """
    p, q, target = np.exp(logits) / np.exp(logits).sum(), TEACHER[n], TARGET[n]
    if of.support == "sampled":
        return np.log(STUDENT[n, target] / q[target]) * np.log(p[target])
    if of.support != "full":
        best = {"student": [STUDENT[n]], "teacher": [q], "union": [STUDENT[n], q]}
        largest = [np.argsort(-x)[: of.chosen] for x in best[of.support]]
        kept = sorted(set(np.concatenate(largest).tolist()))
        p, q = _outcomes(p, kept, of.tail), _outcomes(q, kept, of.tail)
    return divergence(
        p, q, of.kind, alpha=None if of.alpha is None else float(of.alpha), clip=of.clip
    )


def _outcomes(p: np.ndarray, kept: list[int], tail: bool) -> np.ndarray:
    """The probabilities of the kept words, with the rest as one outcome, or renormalised."""
    inside = p[kept]
    if not tail:
        return inside / inside.sum()
    return inside if len(kept) == len(p) else np.append(inside, 1 - inside.sum())


def _batch(cfg: LossConfig) -> Batch:
    """A batch with the mask `MASK`, and `STEPS` if the settings read them."""
    zeros, mask = jnp.zeros(MASK.shape), jnp.asarray(MASK)
    return Batch(
        prompt=zeros,
        prompt_mask=mask,
        response=zeros,
        mask=mask,
        sampled_logp=zeros,
        teacher_prompt=zeros,
        teacher_prompt_mask=mask,
        advantage=jnp.zeros(len(MASK)),
        steps=jnp.asarray(STEPS) if cfg.aggregation == "seq-mean-step-mean" else None,
    )


def _distilled(cfg: Config) -> list[Compared]:
    """The distillation's loss and slopes, with the values by definition."""
    # A vocabulary of three words has at most two to choose.
    small = cfg.loss.divergence
    if small.chosen is not None:
        small = dataclasses.replace(small, top_k=min(small.chosen, 2))
    temperature, cap = cfg.rollout.temperature, cfg.loss.importance_cap
    logp = np.log(STUDENT[np.arange(len(TARGET)), TARGET])

    def spread(values: np.ndarray, elsewhere: float) -> np.ndarray:
        """[3, 3, ...] with the tokens where MASK is true, row by row."""
        whole = np.full((*MASK.shape, *np.shape(values)[1:]), elsewhere, np.float32)
        whole[MASK] = values
        return whole

    # NaN where the mask is false: a masked value must not be read.
    student = spread(np.log(STUDENT) * temperature, np.nan)
    teacher = spread(np.log(TEACHER) * temperature, np.nan)
    targets = spread(TARGET, 0).astype(np.int32)
    sampled = None if cap is None else spread(logp - np.log(RATIO), np.nan)
    weigh = np.asarray(objectives.token_weights(_batch(cfg.loss), cfg.loss))

    def loss(hidden: jax.Array) -> jax.Array:
        head = jnp.eye(3)
        made, _ = losses.distill_loss(
            Hidden(hidden, head),
            Hidden(jnp.asarray(teacher), head),
            jnp.asarray(targets),
            jnp.asarray(MASK),
            weights=jnp.asarray(weigh),
            sampled_logp=None if sampled is None else jnp.asarray(sampled),
            importance_cap=cap,
            divergence=small,
            temperature=temperature,
        )
        return made

    value, slopes = jax.device_get(jax.jit(jax.value_and_grad(loss))(student))
    want, want_slopes = _by_definition(small, cap, weigh[MASK])
    return [
        Compared("loss", value, np.float64(want)),
        Compared("slopes", slopes, np.float64(spread(want_slopes / temperature, 0.0))),
    ]


def _by_definition(
    of: Divergence, cap: float | None, weigh: np.ndarray
) -> tuple[float, np.ndarray]:
    """The loss and its slopes f64[4, 3] to the logits, from the settings themselves."""
    step = 1e-5
    factor = weigh.astype(np.float64) * (1.0 if cap is None else np.minimum(RATIO, cap))
    value, slopes = 0.0, np.zeros(STUDENT.shape)
    for n, logits in enumerate(np.log(STUDENT)):
        value += factor[n] * token_loss(logits, n, of)
        for v, moved in enumerate(step * np.eye(3)):
            rise = token_loss(logits + moved, n, of)
            fall = token_loss(logits - moved, n, of)
            slopes[n, v] = factor[n] * (rise - fall) / (2 * step)
    return value, slopes


def _reinforced(cfg: Config) -> Compared:
    """GRPO's slopes, inside of every clip: up where the advantage is positive."""
    advantage = np.array([1.0, -0.5, 0.0], np.float32)
    weigh = np.asarray(objectives.token_weights(_batch(cfg.loss), cfg.loss))
    before = np.where(MASK, np.float32(-1.0), 0.0)
    step = min(0.01, 0.5 * np.log(cfg.loss.dual_clip))
    now = before - step * np.sign(advantage)[:, None] * MASK
    clips = {name: getattr(cfg.loss, name) for name in ("clip_low", "clip_high", "dual_clip")}

    def loss(logp: jax.Array) -> jax.Array:
        constants = (jnp.asarray(x) for x in (before, advantage, weigh))
        return losses.grpo_loss(logp, *constants, **clips)[0]

    slopes = jax.device_get(jax.jit(jax.grad(loss))(now))
    return Compared("slopes", slopes, -weigh * advantage[:, None] * np.exp(now - before))


def _preferred(cfg: Config) -> Compared:
    """The slopes of DPO or SimPO: of the one pair the better row up, the worse one down.

    The other two rows are equal and so no pair.
    """
    quality, group = jnp.array([1.0, 0.0, 0.5, 0.5]), 2
    dpo = cfg.loss.method == "dpo"
    beta, margin = train_step.preference_options(cfg.loss)
    smoothing = cfg.loss.label_smoothing

    def loss(score: jax.Array) -> jax.Array:
        better = preferences.pairs(quality, jnp.ones(4, bool), group=group)
        return preferences.preference_loss(
            score, better, beta=beta, margin=margin, smoothing=smoothing
        )

    slopes = jax.device_get(jax.jit(jax.grad(loss))(jnp.zeros(4)))
    # The defaults of the two methods, stated a second time on purpose.
    b = (0.1 if dpo else 2.0) if cfg.loss.beta is None else cfg.loss.beta
    m = (0.0 if dpo else 1.0) if cfg.loss.margin is None else cfg.loss.margin
    wins = 1 / (1 + np.exp(m))  # sigmoid(u) at equal scores, u = -margin.
    down = b * ((1 - smoothing) * (1 - wins) - smoothing * wins)
    return Compared("slopes", slopes, np.array([-down, down, 0.0, 0.0]))
