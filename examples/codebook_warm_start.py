"""Trains the initial weights of the quick start, `mopd_jax/assets/codebook`.

    python examples/codebook_warm_start.py --out NEW_FOLDER     # some 15 CPU minutes

The shipped weights are its output with the defaults, stored as float16.

Supervised training on synthetic rows of two kinds. Bare prompts: known dialects get their rule,
all others a rule drawn afresh for every row, so that no hidden table can leak and the prior
over rules stays flat. Peer prompts: a truth drawn for every row, attempts labelled right or
wrong by the verifier; the target of the rule word is the posterior (the shown success's rule,
else uniform over the rules that no failure has ruled out), which makes elimination cheap.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, models, pre_tokenizers

from mopd_jax import codebook
from mopd_jax.models import decoder, export, scoring

MODEL = decoder.DecoderConfig(
    vocab_size=len(codebook.WORDS),
    width=96,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=24,
    mlp_width=256,
    rope_theta=1000.0,
    tied=False,
    qk_norm=True,
)
ID = {word: i for i, word in enumerate(codebook.WORDS)}
PAD, BOS, OK, BAD, ANSWER, EOS = range(6)
DIGIT, DIALECT, RULE = ID["0"], ID["d00"], ID["r0"]
PEERS = 6  # The most peers a context shows.
SUCCESSES = 2
# Rule x digits -> digits, so that rows are made by look-up: [10, 10, 10, 10, 3].
TRANSFORM = np.array(
    [
        [[[codebook.transform(r, (a, b, c)) for c in range(10)] for b in range(10)]
         for a in range(10)]
        for r in range(codebook.RULES)
    ]
)  # fmt: skip


def responses(rule, digits):
    """Token ids [..., 5] of the answer by `rule` [...] to `digits` [..., 3]."""
    out = TRANSFORM[rule, digits[..., 0], digits[..., 1], digits[..., 2]]
    end = np.full((*rule.shape, 1), EOS)
    return np.concatenate([RULE + rule[..., None], DIGIT + out, end], axis=-1)


def draw(rng, rows):
    """Dialects, digits, and the probability of each rule given the prompt alone [rows, 10]."""
    rules, known = codebook.table(0)
    train = np.array(codebook.triples("train"))
    dialect = rng.integers(0, codebook.DIALECTS, rows)
    digits = train[rng.integers(0, len(train), rows)]
    flat = np.full((rows, codebook.RULES), 1.0 / codebook.RULES)
    prior = np.where(known[dialect][:, None], np.eye(codebook.RULES)[rules[dialect]], flat)
    return dialect, digits, prior


def pick(rng, probability):
    """One index a row by probability [rows, k]."""
    return (probability.cumsum(1) > rng.random((len(probability), 1))).argmax(1)


def bare_rows(rng, rows):
    """Prompts as the student sees them: (prompt, response, rule target)."""
    dialect, digits, prior = draw(rng, rows)
    prompt = np.full((rows, 6), BOS)
    prompt[:, 1], prompt[:, 2:5], prompt[:, 5] = DIALECT + dialect, DIGIT + digits, ANSWER
    return prompt, responses(pick(rng, prior), digits), prior


def peer_rows(rng, rows):
    """Prompts as the teacher sees them: successes first, then failures, distinct, at most 6."""
    dialect, digits, prior = draw(rng, rows)
    truth = pick(rng, prior)
    # Attempts come from a proposal that is flat, peaked, or tilted to or from the truth.
    sharp = rng.choice([0.3, 1.0, 4.0], (rows, 1)) * rng.gumbel(size=(rows, codebook.RULES))
    tilt = rng.choice([-3.0, -3.0, 0.0, 2.0], rows)
    sharp[np.arange(rows), truth] += tilt
    noise = rng.gumbel(size=(rows, PEERS + 1, codebook.RULES))
    attempts = (sharp[:, None] + noise).argmax(-1)
    count = 1 + (PEERS * rng.random(rows) ** 0.7).astype(int)
    made = responses(attempts, np.repeat(digits[:, None], PEERS + 1, 1))
    right = (made == responses(truth, digits)[:, None])[..., 1:4].all(-1)
    length = 6 + 5 * PEERS
    prompt = np.full((rows, length), PAD)
    target = np.zeros((rows, codebook.RULES))
    for n in range(rows):
        seen: set[int] = set()
        good: list[tuple[int, np.ndarray]] = []
        bad: list[tuple[int, np.ndarray]] = []
        for attempt, ok, words in zip(attempts[n, : count[n]], right[n], made[n], strict=False):
            if attempt not in seen:
                seen.add(attempt)
                (good if ok else bad).append((attempt, words))
        good = good[:SUCCESSES]
        bad = bad[: PEERS - len(good)]
        row = [BOS, DIALECT + dialect[n], *(DIGIT + digits[n])]
        for mark, block in ((OK, good), (BAD, bad)):
            for _, words in block:
                row += [mark, *words[:4]]
        row.append(ANSWER)
        prompt[n, -len(row) :] = row
        if good:
            target[n, [rule for rule, _ in good]] = 1.0
        else:
            target[n] = prior[n]
            target[n, [rule for rule, _ in bad]] = 0.0
            if target[n].sum() == 0:  # A known rule whose digits another rule contradicts.
                target[n] = prior[n]
        target[n] /= target[n].sum()
    return prompt, responses(pick(rng, target), digits), target


def token_losses(params, prompt, response, target):
    """Cross-entropy [rows, 5]: against the soft target at the rule word, else hard."""
    ones = jnp.ones(response.shape, bool)
    hidden = scoring.response_states(params, prompt, prompt != PAD, response, ones, cfg=MODEL)
    logp = jax.nn.log_softmax(decoder.logits(params, hidden))
    hard = -jnp.take_along_axis(logp, response[..., None], axis=-1)[..., 0]
    rule = logp[:, 0, RULE : RULE + codebook.RULES]
    # Less the target's own entropy, so that 0 is the best one can do.
    soft = jnp.sum(jax.scipy.special.xlogy(target, target) - target * rule, axis=-1)
    return hard.at[:, 0].set(soft)


def train(steps, rate, seed, rows):
    warmup = min(100, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps, rate / 50)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
    params = decoder.init(jax.random.key(seed), MODEL)
    state = tx.init(params)
    emphasis = jnp.array([[2.0, 1.0, 1.0, 1.0, 0.2]])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, peer, bare):
        def loss(params):
            a, b = token_losses(params, *peer), token_losses(params, *bare)
            total = (a * emphasis).sum(1).mean() + 0.5 * (b * emphasis).sum(1).mean()
            return total, (a.mean(0), b.mean(0))

        grads, parts = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, parts

    rng = np.random.default_rng(seed)
    begun = time.process_time()
    for i in range(steps):
        peer, bare = peer_rows(rng, rows), bare_rows(rng, rows // 2)
        params, state, parts = step(params, state, peer, bare)
        if i % 200 == 0 or i == steps - 1:
            a, b = (np.round(np.asarray(x), 3).tolist() for x in parts)
            print(f"{i} peers {a} bare {b} cpu {time.process_time() - begun:.0f} s", flush=True)
    return params


def write_tokenizer(folder: pathlib.Path) -> None:
    """The word-level tokenizer in Transformers' files."""
    words = Tokenizer(models.WordLevel(ID, unk_token=codebook.PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([codebook.PAD, codebook.BOS, codebook.EOS])
    words.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": codebook.PAD,
        "bos_token": codebook.BOS,
        "eos_token": codebook.EOS,
        "clean_up_tokenization_spaces": False,
        "chat_template": codebook.CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    params = train(args.steps, args.rate, args.seed, args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    export.export_hf(params, MODEL, args.out, dtype="float16")
    write_tokenizer(args.out)


if __name__ == "__main__":
    main()
