"""Float64 NumPy from the definitions, to test against; imports nothing of the package.

Log-probs are float64 [..., V]; -inf marks an impossible token. Values are in nats. Gradients
are to the student's logits, by the formulas of the definitions, not by differentiation.
"""

from __future__ import annotations

import numpy as np


def log_softmax(logits):
    """float[..., V] -> float64[..., V]."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def kl(a, b):
    """sum exp(a) (a - b), a token impossible under `a` adding 0: [..., V] -> [...]."""
    possible = np.isfinite(a)
    difference = np.where(possible, a, 0.0) - np.where(possible, b, 0.0)
    return np.sum(np.exp(a) * difference, axis=-1)


def forward_kl(student, teacher):
    """KL(teacher || student)."""
    return kl(teacher, student)


def reverse_kl(student, teacher):
    """KL(student || teacher)."""
    return kl(student, teacher)


def mixture(student, teacher, alpha):
    """log((1 - alpha) p + alpha q)."""
    return np.logaddexp(student + np.log(1.0 - alpha), teacher + np.log(alpha))


def jsd(student, teacher, alpha):
    """(1 - alpha) KL(p || m) + alpha KL(q || m); alpha is the weight of the teacher."""
    m = mixture(student, teacher, alpha)
    return (1.0 - alpha) * kl(student, m) + alpha * kl(teacher, m)


def entropy(logp):
    """-sum p log p."""
    return -kl(logp, np.zeros_like(logp))


def divergence(student, teacher, kind, alpha):
    """The divergence called `kind`."""
    if kind == "jsd":
        return jsd(student, teacher, alpha)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[kind](student, teacher)


def _centred(logp, factor):
    """p (factor - sum p factor), the gradient to the logits of a slope p factor in log p."""
    p = np.exp(logp)
    factor = np.where(p > 0, factor, 0.0)
    return p * (factor - np.sum(p * factor, axis=-1, keepdims=True))


def divergence_grad(student, teacher, kind, alpha):
    """Gradient of `divergence` to the student's logits: [..., V]."""
    if kind == "forward_kl":
        return np.exp(student) - np.exp(teacher)
    other = teacher if kind == "reverse_kl" else mixture(student, teacher, alpha)
    scale = 1.0 if kind == "reverse_kl" else 1.0 - alpha
    with np.errstate(invalid="ignore"):  # -inf - -inf, dropped in `_centred`.
        return scale * _centred(student, student - other)


def logp_grad(logp, targets):
    """Gradient of logp[target] to the logits: 1[v = target] - p_v."""
    return (np.arange(logp.shape[-1]) == targets[..., None]) - np.exp(logp)


def entropy_grad(logp):
    """Gradient of the entropy to the logits: -p (log p + H)."""
    return -_centred(logp, logp)


def linear_logp(hidden, head, temperature):
    """log softmax(hidden head^T / temperature): [N, T, D], [V, D] -> float64[N, T, V]."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64).T
    return log_softmax(logits / temperature)


def linear_grads(logits_grad, hidden, head, temperature):
    """Gradient to the logits [N, T, V] -> gradients to hidden [N, T, D] and head [V, D]."""
    scaled = np.float64(logits_grad) / temperature
    return scaled @ np.float64(head), np.einsum("ntv,ntd->vd", scaled, np.float64(hidden))


def logp_error(hidden, head, temperature, eps):
    """How far rounding may move a log-prob: float[N, T, D], [V, D] -> float.

    A sum of D products is off by at most D eps times the sum of their sizes, and the
    log-softmax by twice that and its own few roundings.
    """
    sizes = np.abs(np.float64(hidden)) @ np.abs(np.float64(head)).T / temperature
    return eps * (2 * hidden.shape[-1] + 8) * (1 + sizes.max())


def relative(got, want):
    """Euclidean norm of the difference over that of what is wanted."""
    want = np.float64(want)
    return np.linalg.norm(np.float64(got) - want) / np.linalg.norm(want)


def clipped(student, teacher, kind, alpha, clip):
    """The divergence whose addends are bounded by `clip`, and its gradient to the logits."""
    p, q = np.exp(student), np.exp(teacher)
    if kind == "forward_kl":
        added, slope = q * (teacher - student), -q
    elif kind == "reverse_kl":
        added, slope = p * (student - teacher), p * (student - teacher + 1)
    else:
        m = mixture(student, teacher, alpha)
        added = (1 - alpha) * p * (student - m) + alpha * q * (teacher - m)
        slope = (1 - alpha) * p * (student - m)
    slope = np.where(added > clip, 0.0, slope)
    grad = slope - p * np.sum(slope, axis=-1, keepdims=True)
    return np.sum(np.minimum(added, clip), axis=-1), grad
