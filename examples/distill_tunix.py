"""On-policy distillation in Tunix: `distill_loss` as the loss function of its `PeftTrainer`.

    pip install google-tunix
    python examples/distill_tunix.py     # half a minute on a CPU

A small Qwen3 of Tunix learns to answer without a hint as a frozen copy answers with one.
The trainer accumulates gradients over micro-batches, and the denominators need care:

    Tunix takes the MEAN of the micro-batches' gradients, and logs the mean of their losses;
    answers differ in length, so a mean of means over tokens is not the mean over all tokens.

So `micro_batches` computes the weights once, from the mask of the whole batch, times the number
of parts, which undoes the mean, and then splits them like the batch. `main` shows that the
update equals that of the whole batch, and differs if every part computes its own weights.

It does not use `DistillationTrainer`, which gives both models the same prompt and passes on
only the tokens and mask of a batch. N rows, S prompt tokens, T answer tokens, width D, V words.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from tunix.models.qwen3 import model as qwen3
from tunix.sft import peft_trainer, utils

from mopd_jax import Divergence, Hidden, distill_loss, token_weights

N, T, V, PARTS = 16, 6, 32, 4
PAD, EOS = 0, 1  # Words of prompts are 2, 3, ...
SIZES: dict[str, float] = {
    "num_layers": 1,
    "vocab_size": V,
    "embed_dim": 32,
    "hidden_dim": 64,
    "head_dim": 16,
}
SIZES |= {"num_heads": 2, "num_kv_heads": 1, "rope_theta": 10_000, "norm_eps": 1e-6}


def make_model(seed: int) -> qwen3.Qwen3:
    config = qwen3.ModelConfig(**SIZES, use_tied_embedding=True)
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(seed))
    # Larger than it is drawn, or an untrained teacher would have no opinions to pass on.
    model.embedder.input_embedding[...] *= 25.0
    return model


def head(model: qwen3.Qwen3) -> jax.Array:
    """[V, D]. Untied, it is `model.lm_head.w[...].T`."""
    return model.embedder.input_embedding[...]


def states(model: qwen3.Qwen3, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states [N, L, D] of tokens i32[N, L]; mask bool[N, L] is false at padding.

    Tunix' models return logits, which nobody reads here, so that the compiler drops them, and
    lay their last hidden states aside when asked.
    """
    places, visible = utils.build_positions_from_mask(mask), utils.make_causal_attn_mask(mask)
    model(tokens, places, None, visible, output_hidden_states=True)
    layers: Any = nnx.pop(model, nnx.Intermediate)["all_hidden_states"]
    return layers[-1]


def output(model: qwen3.Qwen3, prompt, answer, answer_mask) -> Hidden:
    """States [N, T, D] and head [V, D] of a model at the answer.

    State t predicts answer token t: it is the state one place before it.
    """
    tokens = jnp.concatenate([prompt, answer], axis=1)
    mask = jnp.concatenate([prompt != PAD, answer_mask], axis=1)
    return Hidden(states(model, tokens, mask)[:, prompt.shape[1] - 1 : -1], head(model))


def loss_fn(student, prompt, answer, answer_mask, weights, teacher_states, teacher_head):
    """What `with_loss_fn(..., has_aux=True)` asks for: model and batch in, (loss, any) out. The
    teacher's states come with the batch: a model that is closed over would be compiled in."""
    return distill_loss(
        output(student, prompt, answer, answer_mask),
        Hidden(teacher_states, teacher_head),
        answer,
        answer_mask,
        weights=weights,
        divergence=Divergence("jsd", alpha=0.5),
    )


def micro_batches(batch: dict[str, jax.Array], parts: int) -> list[dict[str, jax.Array]]:
    """Equal parts of the rows, of which the mean loss is the loss of the whole batch."""
    weights = parts * token_weights(batch["answer_mask"], aggregation="token-mean")
    rows = {k: x for k, x in batch.items() if k != "teacher_head"} | {"weights": weights}
    cut = {k: jnp.split(x, parts) for k, x in rows.items()}
    shared = {"teacher_head": batch["teacher_head"]}
    return [{k: x[i] for k, x in cut.items()} | shared for i in range(parts)]


@nnx.jit
def sample(model: qwen3.Qwen3, prompt, key) -> tuple[jax.Array, jax.Array]:
    """Answers i32[N, T] and their mask, which ends with the first end of sequence.

    A whole forward pass for every token keeps this short; `tunix.generate` has a sampler.
    """
    tokens, mask = prompt, prompt != PAD
    for token_key in jax.random.split(key, T):
        logits = states(model, tokens, mask)[:, -1] @ head(model).T
        tokens = jnp.column_stack([tokens, jax.random.categorical(token_key, logits)])
        mask = jnp.column_stack([mask, jnp.ones(N, bool)])
    answer = tokens[:, prompt.shape[1] :]
    ended_before = jnp.cumsum(answer == EOS, axis=1) - (answer == EOS)
    return answer, ended_before == 0


def on_policy_batches(student, teacher, steps: int, seed: int) -> Iterator[dict]:
    """Whole batches, each answered by the student as it is when the batch is asked for. Tunix
    asks after its update, which is in place; anything that prefetches would make them stale."""
    # Questions of 1 to 4 words, and for the teacher a hint of 4 words after them; both are
    # padded on the left, so that all end in the last column.
    words = np.random.default_rng(seed).integers(2, V, (N, 8))
    words[np.arange(8) < np.arange(N)[:, None] % 4] = PAD
    question, hinted = jnp.asarray(words[:, :4]), jnp.asarray(words)
    teacher_output = nnx.jit(output)
    for key in jax.random.split(jax.random.key(seed), steps):
        answer, mask = sample(student, question, key)
        batch = {"prompt": question, "answer": answer, "answer_mask": mask}
        hinter = teacher_output(teacher, hinted, answer, mask)
        yield batch | {"teacher_states": hinter.states, "teacher_head": hinter.head}


def fit(student: qwen3.Qwen3, parts: Iterable[dict], tx, accumulate: int) -> np.ndarray:
    """Trains `student` in place; the loss of every update, as Tunix logs it. The number of
    parts must be a multiple of `accumulate`: Tunix never applies what is left over."""
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1, gradient_accumulation_steps=accumulate
    )
    trainer = peft_trainer.PeftTrainer(student, tx, config).with_loss_fn(loss_fn, has_aux=True)
    trainer.train(parts)
    return trainer.metrics_logger.get_metric_history("", "loss", "train")


def train(steps: int = 100, seed: int = 0) -> np.ndarray:
    """The loss of every update."""
    student = make_model(seed)
    teacher = nnx.clone(student)  # Frozen, because no trainer knows of it.
    batches = on_policy_batches(student, teacher, steps, seed)
    parts = (part for batch in batches for part in micro_batches(batch, PARTS))
    return fit(student, parts, optax.adam(1e-2), PARTS)


def accumulation_errors(seed: int = 0) -> tuple[float, float]:
    """How far the update from micro-batches is from that of the whole batch, in terms of the
    latter: with the weights of `micro_batches`, and with weights that each part makes."""
    model = make_model(seed)
    batch = next(on_policy_batches(model, model, 1, seed))
    # Sorted by length, as loaders do to save padding: the first part has the fewest tokens.
    batch["answer_mask"] = jnp.arange(T)[None] < (1 + jnp.arange(N) * T // N)[:, None]

    def update(parts):
        student = nnx.clone(model)
        fit(student, parts, optax.sgd(1.0), len(parts))
        before, after = (ravel_pytree(nnx.state(m, nnx.Param))[0] for m in (model, student))
        return after - before

    once, own = micro_batches(batch, PARTS), []
    for part in once:
        weights = token_weights(part["answer_mask"], aggregation="token-mean")
        own.append(part | {"weights": weights})
    want = update(micro_batches(batch, 1))
    size = jnp.linalg.norm(want)
    first, second = (float(jnp.linalg.norm(update(p) - want) / size) for p in (once, own))
    return first, second


def main() -> None:
    once, own = accumulation_errors()
    print(f"update of {PARTS} micro-batches against the whole batch's: off by {once:.0e}")
    print(f"with weights made once, and by {own:.0%} if each micro-batch makes its own")
    if not (once < 1e-4 and own > 0.1):
        raise SystemExit("the weights do not do what this example says")
    losses = train()
    print("divergence, nats a token:", *np.round(losses[::20], 4))
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    if not last < first / 2:
        raise SystemExit(f"divergence did not fall to half: {first:.4f} -> {last:.4f}")
    print(f"divergence to the teacher fell from {first:.4f} to {last:.4f} nats a token")


if __name__ == "__main__":
    main()
