"""On-policy distillation in a plain optax + Flax NNX loop.

    python examples/distill_nnx.py     # seconds on a CPU; needs only mopd_jax

A student learns to answer without a hint as a frozen copy of itself does with one. Each step:

    1. the student answers its prompts: the tokens it is trained on are its own samples;
    2. the teacher reads longer prompts, the question and a hint, and then the same answers;
    3. `distill_loss` compares the two at every answer token, over the whole vocabulary.

For another model, replace `Decoder`: the loss takes only the last hidden states and the
matrix that turns them into logits. N rows, S prompt tokens, T answer tokens, width D, V words.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mopd_jax import Divergence, Hidden, distill_loss

N, T, D, V = 16, 6, 24, 32
PAD, EOS = 0, 1  # Words of prompts are 2, 3, ...


class Decoder(nnx.Module):
    """A causal transformer of one block."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed, self.place = nnx.Embed(V, D, rngs=rngs), nnx.Embed(64, D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, D, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(D, 4 * D, rngs=rngs), nnx.Linear(4 * D, D, rngs=rngs)
        self.before, self.between, self.after = (nnx.RMSNorm(D, rngs=rngs) for _ in range(3))
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states [N, L, D] of tokens i32[N, L]; mask bool[N, L] is false at padding."""
        # Places are counted from the first real token: padding on the left must not show.
        place = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        x = self.embed(tokens) + self.place(place)
        real = nnx.make_attention_mask(mask, mask)
        visible = nnx.combine_masks(nnx.make_causal_mask(tokens), real)
        x = x + self.attention(self.before(x), mask=visible)
        x = x + self.down(nnx.gelu(self.up(self.between(x))))
        return self.after(x)

    def head(self) -> jax.Array:
        """[V, D]: Flax keeps kernels as [D, V]. Tied, it is `self.embed.embedding[...]`."""
        return self.lm_head.kernel[...].T


def make_prompts(seed: int) -> tuple[jax.Array, jax.Array]:
    """Questions of 1 to 4 words [N, 4], for the student, and with a hint of 4 words after them
    [N, 8], for the teacher. Both are padded on the left, so that all end in the last column."""
    words = np.random.default_rng(seed).integers(2, V, (N, 8))
    words[np.arange(8) < np.arange(N)[:, None] % 4] = PAD
    return jnp.asarray(words[:, :4]), jnp.asarray(words)


@nnx.jit
def sample(model: Decoder, prompt, key) -> tuple[jax.Array, jax.Array]:
    """Answers i32[N, T] and their mask, which ends with the first end of sequence.

    A whole forward pass for every token keeps this short; a real sampler has a cache.
    """
    tokens, mask = prompt, prompt != PAD
    for token_key in jax.random.split(key, T):
        logits = model.states(tokens, mask)[:, -1] @ model.head().T
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
    return Hidden(model.states(tokens, mask)[:, prompt.shape[1] - 1 : -1], model.head())


def loss_fn(student: Decoder, teacher: Decoder, question, hinted, answer, answer_mask):
    """Mean divergence over the answer tokens f32[], and statistics per token."""
    return distill_loss(
        output(student, question, answer, answer_mask),
        output(teacher, hinted, answer, answer_mask),
        answer,
        answer_mask,
        divergence=Divergence("jsd", alpha=0.5),
    )


@nnx.jit
def train_step(student: Decoder, optimizer: nnx.Optimizer, teacher: Decoder, *batch):
    """Updates student and optimizer in place, and returns the loss. Only the first argument of
    `loss_fn` is differentiated; a teacher that is not an argument would be compiled in."""
    (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(student, teacher, *batch)
    optimizer.update(student, grads)
    return loss


def train(steps: int = 200, seed: int = 0) -> list[float]:
    """The loss of every step."""
    student = Decoder(nnx.Rngs(seed))
    teacher = nnx.clone(student)  # Frozen, because no optimizer knows of it.
    optimizer = nnx.Optimizer(student, optax.adam(1e-2), wrt=nnx.Param)
    question, hinted = make_prompts(seed)
    losses = []
    for step, key in enumerate(jax.random.split(jax.random.key(seed), steps)):
        answer, answer_mask = sample(student, question, key)
        loss = train_step(student, optimizer, teacher, question, hinted, answer, answer_mask)
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
