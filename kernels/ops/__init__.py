"""The public ops: log-probs and divergences straight from hidden states and heads.

Arrays in, arrays out: no model, no configuration. Each op checks its arguments while tracing,
settles the implementation and calls it. The dimensions of the tokens, written [N, T] as in the
legend of `mopd_jax/records.py`, may be any; E is the teacher's width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mopd_jax.kernels import checks, dispatch
from mopd_jax.kernels.checks import Options
from mopd_jax.kernels.dispatch import Implementation
from mopd_jax.kernels.linear_divergence import (
    chunked,
    pallas_tpu,
    reference,
    statistics,
    topk,
)
from mopd_jax.kernels.linear_divergence.chunked import Operands, TokenLoss
from mopd_jax.kernels.linear_divergence.formulas import Divergence
from mopd_jax.kernels.linear_divergence.options import (
    HeadSharding,
    HiddenTeacher,
    StoredTeacher,
    Support,
    TopK,
)
from mopd_jax.kernels.linear_divergence.pallas_gpu import RowKernels
from mopd_jax.kernels.linear_divergence.statistics import TokenLogprob, TokenStats
from mopd_jax.kernels.linear_divergence.tuning import Blocks

__all__ = [
    "Blocks",
    "Divergence",
    "HeadSharding",
    "HiddenTeacher",
    "Implementation",
    "RowKernels",
    "StoredTeacher",
    "Support",
    "TokenLogprob",
    "TokenLoss",
    "TokenStats",
    "TopK",
    "linear_divergence",
    "linear_divergence_loss",
    "linear_logprob",
    "linear_topk",
    "logits_divergence",
    "stored_divergence",
]


def linear_divergence(
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher_hidden: jax.Array,
    teacher_head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    kind: Divergence = "jsd",
    alpha: float | None = None,
    continuous: bool = False,
    clip: float | None = None,
    support: Support = "full",
    temperature: float = 1.0,
    soft_cap: checks.SoftCap = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> TokenStats:
    """Divergence of teacher and student at each token, and what else a loss or a log reads.

    Differentiable statistics, for any use after: the backward pass makes the logits again.
    Where the loss is a sum over tokens of something known beforehand,
    `linear_divergence_loss` saves a third of the matrix products.

    Args:
        student_hidden: [N, T, D], of any floating dtype; at the positions that predict
            `targets`.
        student_head: [V, D].
        teacher_hidden: [N, T, E].
        teacher_head: [V, E].
        targets: i32[N, T], in [0, V) where the mask is true, or the log-probs there are NaN;
            anything elsewhere.
        mask: bool[N, T]. What stands in the hidden states where it is false, NaN included,
            reaches neither a value nor a gradient.
        kind: "forward_kl" is KL(teacher || student), "reverse_kl" KL(student || teacher),
            "jsd" the generalised Jensen-Shannon divergence.
        alpha: static, the weight of the teacher in a jsd, 0 <= alpha <= 1; None means 0.5
            there, and is the only choice for a KL. 0 is the forward KL, 1 the reverse.
        continuous: divide a jsd by alpha (1 - alpha), which makes the family continuous up to
            the KLs at its ends.
        clip: static; the most nats that one token of the vocabulary may add (point-wise
            clipping, arXiv 2601.18734), None for off; see `formulas.measure`.
        support: "full" vocabulary; a `TopK`; or "sampled", with kind "reverse_kl" only: the
            score-function estimator (logp - teacher_logp) logp of the target, the first factor
            constant. Its value means nothing.
        temperature: static, > 0; divides the logits of both.
        soft_cap: static; logits become cap tanh(logits / cap) before the temperature. One for
            both or a pair (student's, teacher's).
        vocab_size: static; rows of the heads from there on are padding, which neither model can
            say. None: all of V, and then the heads must agree on it.
        chunk_tokens: static, tokens a device whose logits exist at once; None suits the
            platform. Read by "chunked" and "pallas_gpu".
        sharding: where the arrays lie on a mesh. None computes on one device, or inside a
            `shard_map` on each device's own.
        implementation: None lets `dispatch.resolve` choose. `Blocks` are "pallas_tpu" and
            `RowKernels` "pallas_gpu" with other settings than the device's own, or interpreted.

    Returns:
        TokenStats of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to
        the student's hidden states and head; the teacher is constant.

    Raises:
        ValueError: shapes, sizes of the vocabularies, dtypes or options that do not fit.
    """
    options = Options(
        kind, alpha, continuous, clip, support, temperature, soft_cap, vocab_size, chunk_tokens
    )
    teacher = HiddenTeacher(teacher_hidden, teacher_head)
    arrays = (student_hidden, student_head, Operands(teacher, targets, mask))
    return _run(arrays, options, sharding, implementation)


def stored_divergence(
    student_hidden: jax.Array,
    student_head: jax.Array,
    stored: StoredTeacher,
    targets: jax.Array,
    mask: jax.Array,
    *,
    kind: Divergence = "jsd",
    alpha: float | None = None,
    continuous: bool = False,
    clip: float | None = None,
    tail: bool = True,
    temperature: float = 1.0,
    soft_cap: checks.SoftCap = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> TokenStats:
    """As `linear_divergence` over the teacher's K largest, from its stored log-probs of them.

    Args:
        stored: ids and log-probs [N, T, K], as `linear_topk` makes them. An id that comes twice
            at a position counts once.
        tail: as in `TopK`.

    Returns:
        TokenStats. `teacher_logp` is NaN at a target that was not stored.
    """
    support = TopK(stored.ids.shape[-1], of="teacher", tail=tail)
    options = Options(
        kind, alpha, continuous, clip, support, temperature, soft_cap, vocab_size, chunk_tokens
    )
    arrays = (student_hidden, student_head, Operands(stored, targets, mask))
    return _run(arrays, options, sharding, implementation)


def linear_logprob(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> TokenLogprob:
    """Log-prob of one token per position, and the entropy there.

    Args:
        hidden: [N, T, D], of any floating dtype; at the positions that predict `targets`.
        head: [V, D].
        targets, mask and the options: as in `linear_divergence`.

    Returns:
        TokenLogprob of f32[N, T] (f64 if an operand is), 0 outside the mask. Gradients go to
        hidden and head.

    Raises:
        ValueError: shapes, dtypes or options that do not fit.
    """
    options = Options(
        None, None, False, None, "full", temperature, soft_cap, vocab_size, chunk_tokens
    )
    arrays = (hidden, head, Operands(None, targets, mask))
    return _run(arrays, options, sharding, implementation)


def linear_divergence_loss(
    token_loss: TokenLoss,
    student_hidden: jax.Array,
    student_head: jax.Array,
    teacher: HiddenTeacher | StoredTeacher | None,
    targets: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    aux: Any = None,
    *,
    kind: Divergence | None = None,
    alpha: float | None = None,
    continuous: bool = False,
    clip: float | None = None,
    support: Support = "full",
    temperature: float = 1.0,
    soft_cap: checks.SoftCap = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
    implementation: Implementation | Blocks | RowKernels | None = None,
) -> tuple[jax.Array, TokenStats | TokenLogprob]:
    """sum(weights * token_loss(statistics, aux)), its gradients made in the forward pass.

    4 matrix products of tokens x width x vocabulary for value and gradients, where
    `linear_divergence` takes 6; for that the loss must be a sum over tokens.

    Args:
        token_loss: (TokenStats f32[C] or TokenLogprob, aux of the same tokens) -> f32[C], a
            pure function of jax.numpy, called on any C tokens at a time. It closes over nothing
            that is traced: what varies goes into `aux`. Stop gradients inside it as needed.
        teacher: hidden states and head, stored log-probs (with `TopK(k, of="teacher")`), or
            None for a loss of log-prob and entropy.
        weights: f32[N, T], with the whole normalisation in them.
        aux: pytree of [N, T, ...], or None.
        kind: must be given with a teacher and only then.

    Returns:
        The loss f32[], over all devices of `sharding`, and the statistics [N, T] for logging,
        which carry no gradient. The loss is differentiable (once) in hidden states, head,
        weights and the floating leaves of `aux`.

    Raises:
        ValueError: as `linear_divergence`, and for a `token_loss` of another shape.
    """
    options = Options(
        kind, alpha, continuous, clip, support, temperature, soft_cap, vocab_size, chunk_tokens
    )
    operands = Operands(teacher, targets, mask)
    arrays = (student_hidden, student_head, operands)
    arrays, weights = _arrays((arrays, weights))
    aux = jax.tree.map(jnp.asarray, aux)
    checks.check_weights(weights, aux, arrays[2].mask)
    spec, name, settings = _settle(arrays, options, sharding, implementation)
    if name in ("chunked", "pallas_gpu"):
        rows = settings or statistics.token_statistics
        loss, stats = chunked.loss_first(spec, rows, token_loss, *arrays, weights, aux)
    else:
        stats = _statistics(spec, name, settings, arrays)
        loss = chunked.weighted_sum(token_loss, stats, arrays[2].mask, weights, aux)
    return loss, jax.lax.stop_gradient(stats)


def linear_topk(
    hidden: jax.Array,
    head: jax.Array,
    mask: jax.Array,
    k: int,
    *,
    temperature: float = 1.0,
    soft_cap: float | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    sharding: HeadSharding | None = None,
) -> StoredTeacher:
    """The k likeliest tokens of a teacher at each position, to keep instead of the teacher.

    Args:
        hidden: [N, T, E]; head: [V, E]; mask: bool[N, T]; options: see `linear_divergence`.

    Returns:
        StoredTeacher of i32[N, T, k] ids and f32[N, T, k] log-probs under the full softmax,
        largest first, zeros outside the mask. No gradient flows.
    """
    hidden, head, mask = jax.lax.stop_gradient(_arrays((hidden, head, mask)))
    options = Options(
        None, None, False, None, TopK(k), temperature, soft_cap, vocab_size, chunk_tokens
    )
    operands = Operands(None, jnp.zeros(mask.shape, jnp.int32), mask)
    spec = checks.make_spec(hidden, head, operands, options, sharding, "chunked")
    return topk.token_topk(spec, k, hidden, head, mask)


def logits_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    kind: Divergence = "jsd",
    alpha: float | None = None,
    continuous: bool = False,
    clip: float | None = None,
    support: Support = "full",
    temperature: float = 1.0,
    soft_cap: checks.SoftCap = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> TokenStats:
    """`linear_divergence` for a trainer that has logits [N, T, V] and not what made them.

    The logits and their gradient exist, of course; nothing else of their size does. Give them
    in float32: what bfloat16 has rounded away does not come back.

    Returns:
        TokenStats of f32[N, T]; the gradient goes to `student_logits`.
    """
    arrays = _arrays((student_logits, teacher_logits, targets, mask))
    student, teacher, targets, mask = arrays
    options = Options(
        kind, alpha, continuous, clip, support, temperature, soft_cap, vocab_size, chunk_tokens
    )
    operands = Operands(HiddenTeacher(teacher, None), targets, mask)
    spec = checks.make_spec(student, None, operands, options, None, "chunked")
    return chunked.statistics_first(spec, statistics.token_statistics, student, None, operands)


def _arrays(tree):
    """Arguments as arrays, nested lists of numbers too."""
    return jax.tree.map(jnp.asarray, tree, is_leaf=lambda x: isinstance(x, list))


def _run(arrays, options, sharding, implementation):
    arrays = _arrays(arrays)
    return _statistics(*_settle(arrays, options, sharding, implementation), arrays)


def _settle(arrays, options, sharding, implementation):
    """The options of a call checked, and which implementation runs with which settings."""
    hidden, head, operands = arrays
    teacher = getattr(operands.teacher, "head", None)
    widths = (head.shape[-1], 0 if teacher is None else teacher.shape[-1])
    spec = checks.make_spec(*arrays, options, sharding, implementation)
    floating = (hidden, head, *jax.tree.leaves(operands.teacher))
    itemsize = max(x.dtype.itemsize for x in floating)
    return spec, *dispatch.settle(implementation, widths, itemsize)


def _statistics(spec, name, settings, arrays):
    if name == "reference":
        return reference.token_statistics(spec, *arrays)
    if name == "pallas_tpu":
        return pallas_tpu.statistics_first(spec, settings, *arrays)
    rows = settings or statistics.token_statistics
    return chunked.statistics_first(spec, rows, *arrays)
