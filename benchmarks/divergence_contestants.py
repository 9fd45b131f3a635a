"""The problem of `divergence.py` and its contestants: ours, the naive loss, Liger, tokamax.

The naive loss is the textbook one in plain jnp: all logits in float32, differentiated by jax.
Liger's are called by the interface of liger-kernel 0.8.5 (torch), tokamax's by 0.0.17. Their
results were compared with the naive ones on a CPU at small sizes, Liger's Triton kernel being
interpreted; they have not been run on a GPU for this benchmark.
"""

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np

from mopd_jax import kernels

# Contestants: (module, what to install, whether it has divergences or cross entropy).
LIBRARIES = {
    "liger_triton": ("liger_kernel", "liger-kernel", "divergence"),
    "liger_chunked": ("liger_kernel", "liger-kernel", "divergence"),
    "tokamax_xla": ("tokamax", "tokamax", "cross_entropy"),
    "tokamax_chunked_xla": ("tokamax", "tokamax", "cross_entropy"),
}
OURS = ("chunked", "statistics", "pallas_tpu", "pallas_gpu")
# naive_rounded has logits in the operands' dtype, as most code has them. Of bfloat16 operands
# naive makes the gradients by float32 products, so that it alone would be no fair measure.
CONTESTANTS = ("naive", "naive_rounded", *OURS, "products", *LIBRARIES)


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem: N tokens of width D, a vocabulary of V, a share of valid tokens, a loss."""

    shape: tuple[int, int, int]
    valid: float
    kind: str
    alpha: float | None
    dtype: str

    def arrays(self):
        """hidden [N, D], head [V, D], the same of the teacher, targets i32[N], mask bool[N]."""
        (n, d, v), rng = self.shape, np.random.default_rng(0)
        hidden, noise, head = (rng.standard_normal((k, d), np.float32) for k in (n, n, v))
        head *= 2 / math.sqrt(d)  # Logits of a standard deviation of 2.
        floating = hidden, head, hidden + 0.3 * noise
        hidden, head, teacher_hidden = (jnp.asarray(x, self.dtype) for x in floating)
        targets = jnp.asarray(rng.integers(v, size=n), jnp.int32)
        mask = jnp.asarray(rng.permutation(np.arange(n) < max(1, round(self.valid * n))))
        return hidden, head, teacher_hidden, head, targets, mask


def is_ours(label):
    return label.partition("(")[0] in OURS


def function_of(label, case):
    """A contestant as a jax function; "(512)" behind its name is for chunks of 512 tokens."""
    name, _, chunk = label.partition("(")
    if name == "products":
        return products(case)
    if name.startswith("tokamax"):
        loss = tokamax(name)
    elif name in OURS:
        loss = fused(case, name, int(chunk[:-1]) if chunk else None)
    else:
        loss = naive(case, rounded=name == "naive_rounded")
    return jax.value_and_grad(loss, (0, 1))


def prepare(label, case, arrays):
    """(a call that returns value and gradients when they are there, bytes of temporaries)."""
    if label.startswith("liger"):
        return liger(label, case, arrays)
    compiled = jax.jit(function_of(label, case)).lower(*arrays).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arrays)), temporaries


def why_not(name, kind):
    """Why a contestant of another library cannot take part, or None."""
    module, install, has = LIBRARIES[name]
    if (kind == "cross_entropy") != (has == "cross_entropy"):
        return f"has no {kind}"
    if not installed(module):
        return f"not installed: pip install {install}"
    return None


def installed(module):
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def fused(case, name, chunk_tokens):
    """The loss by this project's operators."""
    options = {"chunk_tokens": chunk_tokens, "implementation": name}
    options["implementation"] = "chunked" if name == "statistics" else name
    entropic = case.kind == "cross_entropy"
    if not entropic:
        options["divergence"] = kernels.Divergence(case.kind, case.alpha)

    def token_loss(stats, _):
        return -stats.logp if entropic else stats.divergence

    def loss(hidden, head, teacher_hidden, teacher_head, targets, mask):
        weights = mask / jnp.sum(mask)
        student = kernels.Hidden(hidden, head)
        teacher = None if entropic else kernels.Hidden(teacher_hidden, teacher_head)
        if name in ("chunked", "pallas_gpu"):
            arrays = (student, teacher, targets, mask, weights)
            return kernels.linear_divergence_loss(token_loss, *arrays, **options)[0]
        if entropic:
            stats = kernels.linear_logprob(student, targets, mask, **options)
        else:
            stats = kernels.linear_divergence(student, teacher, targets, mask, **options)
        return jnp.sum(weights * token_loss(stats, None))

    return loss


def scheduled(case, implementation, arrays, traced):
    """A call of value and gradients at temperature 0.8, alpha and temperature compiled in or,
    `traced`, given as arrays, as a schedule gives them; and bytes of temporaries."""
    alpha, temperature = case.alpha, 0.8

    def loss(student, teacher, targets, mask, alpha, temperature):
        return kernels.linear_divergence_loss(
            lambda stats, _: stats.divergence,
            *(student, teacher, targets, mask, mask / jnp.sum(mask)),
            divergence=kernels.Divergence("jsd", alpha),
            temperature=temperature,
            implementation=implementation,
        )[0]

    hidden, head, teacher_hidden, teacher_head, targets, mask = arrays
    operands = [kernels.Hidden(hidden, head), kernels.Hidden(teacher_hidden, teacher_head)]
    operands += [targets, mask, jnp.float32(alpha), jnp.float32(temperature)]
    if not traced:
        whole, operands = loss, operands[:4]
        loss = functools.partial(whole, alpha=alpha, temperature=temperature)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*operands).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*operands)), temporaries


def naive(case, rounded=False):
    """The loss as a textbook writes it; `rounded` leaves the logits in the operands' dtype."""
    product = _product(case, None if rounded else jnp.float32)

    def loss(hidden, head, teacher_hidden, teacher_head, targets, mask):
        logp = jax.nn.log_softmax(product(hidden, head.T).astype(jnp.float32))
        if case.kind == "cross_entropy":
            each = -jnp.take_along_axis(logp, targets[:, None], axis=1)[:, 0]
            return _masked_mean(each, mask)
        logq = jax.nn.log_softmax(product(teacher_hidden, teacher_head.T).astype(jnp.float32))
        p, q = jnp.exp(logp), jnp.exp(logq)
        if case.kind == "forward_kl" or case.alpha == 0:
            each = jnp.sum(q * (logq - logp), axis=1)
        elif case.kind == "reverse_kl" or case.alpha == 1:
            each = jnp.sum(p * (logp - logq), axis=1)
        else:
            a = case.alpha
            mixed = jnp.logaddexp(math.log(a) + logq, math.log1p(-a) + logp)
            each = a * jnp.sum(q * (logq - mixed), axis=1)
            each += (1 - a) * jnp.sum(p * (logp - mixed), axis=1)
        return _masked_mean(each, mask)

    return loss


def products(case):
    """Logits of student and teacher and both gradients, with no loss between: the floor."""
    product = _product(case, jnp.float32)

    def run(hidden, head, teacher_hidden, teacher_head, targets, mask):
        student = teacher = product(hidden, head.T).astype(hidden.dtype)
        if case.kind != "cross_entropy":
            teacher = product(teacher_hidden, teacher_head.T).astype(hidden.dtype)
        # Either product feeds a gradient, so that no compiler can leave one out.
        grads = product(student, head), product(teacher.T, hidden)
        return jnp.zeros(()), tuple(x.astype(hidden.dtype) for x in grads)

    return run


def tokamax(name):
    """tokamax's cross entropy. It knows no mask, so that it computes every token.

    In "chunked_xla" of 0.0.17 the columns that fill up the last block of 2048 enter the softmax
    as logits of 0, so that its results are right for such multiples only.
    """
    import tokamax as library

    def loss(hidden, head, teacher_hidden, teacher_head, targets, mask):
        each = library.linear_softmax_cross_entropy_loss(
            hidden,
            targets,
            head.T,
            reduction="none",
            implementation=name.removeprefix("tokamax_"),
        )
        return _masked_mean(each, mask)

    return loss


def liger(name, case, arrays, compiled=True):
    """A call that returns value and (hidden, head) gradients, and bytes of temporaries.

    Both losses take the teacher's weight as beta and divide by the labels that are not ignored,
    as the benchmark's mean does; neither leaves out the products of those that are.

    Args:
        name: "liger_triton", a Triton kernel on float32 logits of a chunk, or "liger_chunked",
            torch functions on logits of the operands' dtype, which `compiled` compiles.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array):
        if array.dtype != jnp.bfloat16:
            return torch.tensor(np.asarray(array), device=device)
        # Numpy has no bfloat16 that torch reads; float32 holds its values.
        return torch.tensor(np.asarray(array, np.float32), device=device).to(torch.bfloat16)

    hidden, head, teacher_hidden, teacher_head, targets, mask = map(tensor, arrays)
    labels = torch.where(mask, targets.long(), -100)
    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": case.alpha}[case.kind]
    if name == "liger_triton":
        from liger_kernel.transformers import LigerFusedLinearJSD

        # The head's gradient is summed in float32 over chunks, as ours is.
        loss = LigerFusedLinearJSD(jsd_beta=beta, accum_dtype=torch.float32)
    else:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=compiled
        )
    hidden.requires_grad_()
    head.requires_grad_()

    def run():
        hidden.grad = head.grad = None
        value = loss(hidden, head, teacher_hidden, teacher_head, labels)
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return value.detach(), (hidden.grad, head.grad)

    run()  # What is compiled at the first call is compiled here.
    if device == "cpu":
        return run, None  # The allocator there keeps no peak.
    before = torch.cuda.memory_allocated()  # With the gradients of the call above.
    torch.cuda.reset_peak_memory_stats()
    run()
    return run, torch.cuda.max_memory_allocated() - before


def on_host(result):
    """value, hidden and head gradient of jax or torch as float32 numpy arrays."""
    arrays = result[0], *result[1]
    return [np.asarray(x.float().cpu() if hasattr(x, "cpu") else x, np.float32) for x in arrays]


def _product(case, wide):
    # Float32 means float32 on accelerators too, as it does for the others.
    exact = "highest" if case.dtype == "float32" else None
    return functools.partial(jnp.matmul, precision=exact, preferred_element_type=wide)


def _masked_mean(each, mask):
    return jnp.sum(jnp.where(mask, each, 0)) / jnp.sum(mask)
