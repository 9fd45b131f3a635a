"""The examples of other people's training loops: their loss falls, their gradient is right."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import wants
from flax import nnx
from jax.flatten_util import ravel_pytree

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
LIBRARY = {"nnx": "flax", "equinox": "equinox", "tunix": "tunix"}
WANTED = {"nnx": "the test extra", "equinox": "the test extra", "tunix": "Tunix"}


def load(name):
    """The module of an example, or a skip where its library is missing."""
    wants.importing(LIBRARY[name], WANTED[name])
    spec = importlib.util.spec_from_file_location(
        f"distill_{name}", EXAMPLES / f"distill_{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_batch(seed=0):
    """Two ragged rows of a question of up to 4 words, a hint of 4, an answer of up to 6."""
    rng = np.random.default_rng(seed)
    lengths = [(3, 2), (1, 6)]
    return [[rng.integers(2, 32, n) for n in (q, 4, a)] for q, a in lengths]


def padded(rows):
    """(question, hinted, answer, answer_mask) as the examples take them."""
    left = [np.pad(q, (4 - len(q), 0)) for q, _, _ in rows]
    right = [np.pad(a, (0, 6 - len(a))) for *_, a in rows]
    hinted = [np.r_[q, h] for q, (_, h, _) in zip(left, rows, strict=True)]
    mask = [np.arange(6) < len(a) for *_, a in rows]
    return tuple(jnp.asarray(np.stack(x)) for x in (left, hinted, right, mask))


def naive_loss(logits, student, teacher, rows):
    """Mean jsd over the answer tokens, row by row, without padding, from the models' logits."""
    total = 0.0
    for question, hint, answer in rows:
        logp, logq = (
            jax.nn.log_softmax(logits(model, np.r_[prompt, answer])[len(prompt) - 1 : -1])
            for model, prompt in ((student, question), (teacher, np.r_[question, hint]))
        )
        logq = jax.lax.stop_gradient(logq)
        middle = jnp.logaddexp(logp, logq) - jnp.log(2.0)
        total += jnp.sum(jnp.exp(logp) * (logp - middle)) / 2
        total += jnp.sum(jnp.exp(logq) * (logq - middle)) / 2
    return total / sum(len(answer) for *_, answer in rows)


def check_same(got, want):
    """(loss, gradient) of the example and of the naive loss agree to float32 rounding."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    got, want = (ravel_pytree(jax.tree.leaves(x[1]))[0] for x in (got, want))
    assert np.linalg.norm(want) > 1e-3
    assert oracles.relative(got, want) < 1e-5


def check_falls(losses):
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_nnx_gradient():
    example = load("nnx")
    student, teacher = example.Decoder(nnx.Rngs(0)), example.Decoder(nnx.Rngs(1))
    rows = make_batch()

    def logits(model, tokens):
        tokens = jnp.asarray(tokens)[None]
        return model.lm_head(model.states(tokens, jnp.ones_like(tokens, bool)))[0]

    @nnx.jit
    def both(student, teacher):
        got = nnx.value_and_grad(example.loss_fn, has_aux=True)
        want = nnx.value_and_grad(lambda s: naive_loss(logits, s, teacher, rows))
        (loss, _), grad = got(student, teacher, *padded(rows))
        return (loss, grad), want(student)

    check_same(*both(student, teacher))


def test_nnx_trains():
    check_falls(load("nnx").train(steps=60))


def test_equinox_gradient():
    example = load("equinox")
    import equinox as eqx

    student, teacher = (example.Decoder(jax.random.key(seed)) for seed in (0, 1))
    rows = make_batch()

    def logits(model, tokens):
        hidden = model.states(jnp.asarray(tokens), jnp.ones(len(tokens), bool))
        return jax.vmap(model.head)(hidden)

    @eqx.filter_jit
    def both(student, teacher):
        got = eqx.filter_value_and_grad(example.loss_fn, has_aux=True)
        want = eqx.filter_value_and_grad(lambda s: naive_loss(logits, s, teacher, rows))
        (loss, _), grad = got(student, teacher, *padded(rows))
        return (loss, grad), want(student)

    check_same(*both(student, teacher))


def test_equinox_trains():
    check_falls(load("equinox").train(steps=60))


# Tunix 0.1.7 calls what JAX, Flax and Optax have deprecated; the last two blame another file.
@pytest.fixture(autouse=True)
def broadcasts_of_tunix(request, monkeypatch):
    """Tunix' own models broadcast between ranks, which the other tests forbid."""
    if "tunix" not in request.node.name:
        yield
        return
    monkeypatch.setenv("JAX_NUMPY_RANK_PROMOTION", "allow")
    with jax.numpy_rank_promotion("allow"):
        yield


tunix_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:tunix.*",
    "ignore:'sharding' is deprecated, use 'out_sharding':DeprecationWarning",
    "ignore:optax.global_norm is deprecated:DeprecationWarning",
)


@tunix_warnings
def test_tunix_gradient():
    """Also that the mean over micro-batches of the loss that Tunix is given is the whole's."""
    example = load("tunix")
    from tunix.sft import utils

    student, teacher = example.make_model(0), example.make_model(1)
    rows = make_batch()
    question, hinted, answer, mask = padded(rows)

    def logits(model, tokens):
        tokens = jnp.asarray(tokens)[None]
        visible = utils.make_causal_attn_mask(jnp.ones_like(tokens, bool))
        return model(tokens, jnp.arange(tokens.shape[1])[None], None, visible)[0][0]

    @nnx.jit
    def both(student, teacher):
        batch = {"prompt": question, "answer": answer, "answer_mask": mask}
        hinter = example.output(teacher, hinted, answer, mask)
        batch |= {"teacher_states": hinter.states, "teacher_head": hinter.head}

        def accumulated(student):
            parts = example.micro_batches(batch, 2)
            return sum(example.loss_fn(student, **part)[0] for part in parts) / 2

        want = nnx.value_and_grad(lambda s: naive_loss(logits, s, teacher, rows))
        return nnx.value_and_grad(accumulated)(student), want(student)

    check_same(*both(student, teacher))


@tunix_warnings
def test_tunix_accumulates():
    once, own = load("tunix").accumulation_errors()
    assert once < 2e-5
    assert own > 0.1


@tunix_warnings
def test_tunix_trains():
    losses = load("tunix").train(steps=50)
    assert len(losses) == 50
    check_falls(losses)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_runs_as_a_script(name):
    """Each checks in `main` what it demonstrates, and fails if it does not hold."""
    wants.importing(LIBRARY[name], WANTED[name])
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"distill_{name}.py"],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "divergence to the teacher fell" in done.stdout
