"""On-policy distillation in a plain optax + Equinox loop.

    pip install equinox
    python examples/distill_equinox.py     # seconds on a CPU

A student learns to answer without a hint as a frozen copy of itself does with one. Each step:

    1. the student answers its prompts: the tokens it is trained on are its own samples;
    2. the teacher reads longer prompts, the question and a hint, and then the same answers;
    3. `distill_loss` compares the two at every answer token, over the whole vocabulary.

For another model, replace `Decoder`: the loss takes only the last hidden states and the
matrix that turns them into logits. N rows, S prompt tokens, T answer tokens, width D, V words.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mopd_jax import Divergence, Hidden, distill_loss

N, T, D, V = 16, 6, 32, 32
PAD, EOS = 0, 1  # Words of prompts are 2, 3, ...


class Decoder(eqx.Module):
    """A recurrent language model; of one sequence, as is the custom in Equinox."""

    embed: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear  # Equinox keeps the weight as [V, D], which is what the loss takes.

    def __init__(self, key: jax.Array):
        embed_key, cell_key, head_key = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(V, D, key=embed_key)
        self.cell = eqx.nn.GRUCell(D, D, key=cell_key)
        head = eqx.nn.Linear(D, V, use_bias=False, key=head_key)
        # Drawn larger than usual, or an untrained teacher would have no opinions to pass on.
        self.head = eqx.tree_at(lambda layer: layer.weight, head, replace_fn=lambda w: 8 * w)

    def states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states [L, D] of tokens i32[L]; mask bool[L] is false at padding."""

        def read(state, at):
            token, real = at
            # Padding leaves the state as it is: on the left of a prompt it must not show.
            state = jnp.where(real, self.cell(self.embed(token), state), state)
            return state, state

        return jax.lax.scan(read, jnp.zeros(D), (tokens, mask))[1]


def make_prompts(seed: int) -> tuple[jax.Array, jax.Array]:
    """Questions of 1 to 4 words [N, 4], for the student, and with a hint of 4 words after them
    [N, 8], for the teacher. Both are padded on the left, so that all end in the last column."""
    words = np.random.default_rng(seed).integers(2, V, (N, 8))
    words[np.arange(8) < np.arange(N)[:, None] % 4] = PAD
    return jnp.asarray(words[:, :4]), jnp.asarray(words)


@eqx.filter_jit
def sample(model: Decoder, prompt, key) -> tuple[jax.Array, jax.Array]:
    """Answers i32[N, T] and their mask, which ends with the first end of sequence.

    A whole forward pass for every token keeps this short; a real sampler has a cache.
    """
    tokens, mask = prompt, prompt != PAD
    for token_key in jax.random.split(key, T):
        logits = jax.vmap(model.states)(tokens, mask)[:, -1] @ model.head.weight.T
        tokens = jnp.column_stack([tokens, jax.random.categorical(token_key, logits)])
        mask = jnp.column_stack([mask, jnp.ones(N, bool)])
    answer = tokens[:, prompt.shape[1] :]
    ended_before = jnp.cumsum(answer == EOS, axis=1) - (answer == EOS)
    return answer, ended_before == 0


def output(model: Decoder, prompt, answer, answer_mask) -> Hidden:
    """States [N, T, D] and head [V, D] of a model at the answer.

    State t predicts answer token t: it is the state one place before it.
    """
    tokens = jnp.concatenate([prompt, answer], axis=1)
    mask = jnp.concatenate([prompt != PAD, answer_mask], axis=1)
    states = jax.vmap(model.states)(tokens, mask)[:, prompt.shape[1] - 1 : -1]
    return Hidden(states, model.head.weight)


def loss_fn(student: Decoder, teacher: Decoder, question, hinted, answer, answer_mask):
    """Mean divergence over the answer tokens f32[], and statistics per token."""
    return distill_loss(
        output(student, question, answer, answer_mask),
        output(teacher, hinted, answer, answer_mask),
        answer,
        answer_mask,
        divergence=Divergence("jsd", alpha=0.5),
    )


@eqx.filter_jit
def train_step(student: Decoder, state, teacher: Decoder, tx, *batch):
    """The new student and optimizer state, and the loss. Only the first argument of `loss_fn`
    is differentiated; a teacher that is not an argument would be compiled in."""
    grad_fn = eqx.filter_value_and_grad(loss_fn, has_aux=True)
    (loss, _), grads = grad_fn(student, teacher, *batch)
    updates, state = tx.update(grads, state)
    return eqx.apply_updates(student, updates), state, loss


def train(steps: int = 200, seed: int = 0) -> list[float]:
    """The loss of every step."""
    model_key, sampling_key = jax.random.split(jax.random.key(seed))
    student = teacher = Decoder(model_key)  # Nothing is changed in place: a name is a copy.
    tx = optax.adam(1e-2)
    state = tx.init(eqx.filter(student, eqx.is_array))
    question, hinted = make_prompts(seed)
    losses = []
    for step, key in enumerate(jax.random.split(sampling_key, steps)):
        batch = (question, hinted, *sample(student, question, key))
        student, state, loss = train_step(student, state, teacher, tx, *batch)
        losses.append(float(loss))
        if step % 25 == 0:
            print(f"step {step:3d}  divergence {losses[-1]:.4f} nats a token")
    return losses


def main() -> None:
    losses = train()
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    if not last < first / 2:
        raise SystemExit(f"divergence did not fall to half: {first:.4f} -> {last:.4f}")
    print(f"divergence to the teacher fell from {first:.4f} to {last:.4f} nats a token")


if __name__ == "__main__":
    main()
