"""CPU time of building a step's contexts on the host: clean, choose, render, fit, lay out.

    python benchmarks/contexts.py                     # 32 prompts x 8 rollouts x 4096 tokens
    python benchmarks/contexts.py --rule most_similar
    python benchmarks/contexts.py --ragged --control unrelated --match token

Two successes and one failure a row, every peer cut to fit. Responses are random words of
the warm start's vocabulary, a token each. Calls of the tokenizer (`chat`, `encode`, `decode`)
are timed apart: their cost is the tokenizer's, not this package's.
"""

import argparse
import json
import time
from typing import get_args

import numpy as np

from mopd_jax.config import ContextConfig, PeerConfig
from mopd_jax.config.contexts import Control, Match, Rule
from mopd_jax.contexts import blocks, controls, peers, render
from mopd_jax.models import tokenizer
from mopd_jax.records import Problem


class Timed:
    """A tokenizer that adds up the CPU seconds of its own calls."""

    def __init__(self, inner):
        self._inner = inner
        self.seconds = 0.0
        self.pad_id, self.specials = inner.pad_id, inner.specials

    def __getattr__(self, name):
        call = getattr(self._inner, name)

        def timed(*args):
            begun = time.process_time()
            result = call(*args)
            self.seconds += time.process_time() - begun
            return result

        return timed


def measure(prompts, group, length, *, ragged=False, seed=0, **options):
    """Sizes of one step's contexts, and CPU seconds: `tokenizer`, and `contexts` without it.

    Args:
        ragged: responses of half of `length` to all of it, not all of it.
        options: of `PeerConfig`.
    """
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"r{i}" for i in range(10)] + [f"d{i:02d}" for i in range(48)])
    lengths = rng.integers(length // 2 if ragged else length, length + 1, (prompts, group))
    texts = [[" ".join(rng.choice(vocabulary, n)) for n in row] for row in lengths]
    success = rng.random((prompts, group)) < 0.5
    success[:, :3] = (True, True, False)
    problems = [
        Problem(f"p{p}", ({"role": "user", "content": f"d00 {p % 10}"},), "", "exact")
        for p in range(prompts)
    ]
    # Room for the question and three peers; the longest peers lose their middle.
    limit = 3 * length - length // 4
    cfg = ContextConfig(teacher_prompt_length=limit, peer_tokens=length - length // 16)
    chooser = PeerConfig(**options)
    timed = Timed(tokenizer.load("builtin:codebook"))
    keys = {"seed": seed, "step": 1, "cfg": chooser}

    begun = time.process_time()
    texts = blocks.shown_texts(texts, timed, cfg)
    everyone = np.ones_like(success)
    candidates = peers.Candidates(success, everyone, texts, lengths, range(prompts))
    if chooser.control == "off":
        plan = peers.choose(candidates, **keys)
    else:
        questions = [str(problem.messages) for problem in problems]
        tokens = blocks.block_tokens(texts, timed, cfg)
        plan, _ = controls.choose(candidates, **keys, tokens=tokens, questions=questions)
    inputs, records, _ = render.teacher_inputs(problems, texts, plan, timed, cfg=cfg)
    total = time.process_time() - begun
    return {
        "rows": prompts * group,
        "response_tokens": int(lengths.max()),
        "teacher_prompt_tokens": int(inputs.prompt_mask.sum(axis=1).mean()),
        "tokens_cut": sum(record.peer_tokens_cut for record in records),
        "peers_per_row": float(np.mean([len(record.peers) for record in records])),
        "contexts": total - timed.seconds,
        "tokenizer": timed.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rule", choices=get_args(Rule), default="uniform")
    parser.add_argument("--control", choices=get_args(Control), default="off")
    parser.add_argument("--match", choices=get_args(Match), default="block")
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    options = {"rule": args.rule, "control": args.control, "control_match": args.match}
    for seed in range(args.repeats):
        size = (args.prompts, args.group, args.length)
        row = measure(*size, ragged=args.ragged, seed=seed, **options)
        print(json.dumps({name: round(value, 3) for name, value in row.items()}))


if __name__ == "__main__":
    main()
