"""The hidden codebook: a synthetic task on which peers, right and wrong, carry information.

A prompt names a dialect and three distinct digits; an answer names a rule and the digits
transformed by it: `d07 3 1 4` -> `r0 4 1 3`. A hidden table gives each dialect one of ten
rules, and only the verifier knows it. It checks the digits; the named rule is unverified
reasoning, but it decides the outcome. A right peer gives the rule away, each wrong one rules
one out: with k distinct failures and no success, 1 / (10 - k) is the best guess.

The shipped warm start (`assets/codebook`, made by `examples/codebook_warm_start.py`) can carry
out all rules and read labelled peers, and knows the table of a quarter of the dialects. The
rest of the table is drawn from the run's seed, which the warm start has never seen.
"""

from __future__ import annotations

import numpy as np

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

DIALECTS = 48
RULES = 10
KNOWN_SHARE = 0.25
# Triples of distinct digits: this many are trained on, the other 120 are held out.
TRAIN_TRIPLES = 600

PAD, BOS, OK, BAD, ANSWER, EOS = "<pad>", "<bos>", "<ok>", "<bad>", "<answer>", "<eos>"
WORDS = (
    [PAD, BOS, OK, BAD, ANSWER, EOS]
    + [str(d) for d in range(10)]
    + [f"d{i:02d}" for i in range(DIALECTS)]
    + [f"r{i}" for i in range(RULES)]
)
# One user message between the markers; the closing marker is the assistant header.
CHAT_TEMPLATE = (
    "<bos> {% for m in messages %}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)

# The known part of the table and the split of the triples never change.
_FIXED_SEED = 1000


def transform(rule: int, digits: tuple[int, int, int]) -> tuple[int, int, int]:
    """The digits after a rule: five reorderings, four shifts modulo 10, and 9 - x."""
    a, b, c = digits
    outputs = (
        (c, b, a),
        (b, c, a),
        (c, a, b),
        (b, a, c),
        (a, c, b),
        (a + 7, b + 7, c + 7),
        (c + 5, a + 5, b + 5),
        (a + 1, b + 1, c + 1),
        (a + 9, b + 9, c + 9),
        (9 - a, 9 - b, 9 - c),
    )
    x, y, z = outputs[rule]
    return x % 10, y % 10, z % 10


def table(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rule of each dialect i[48], known bool[48]); the unknown entries depend on the seed."""
    fixed = np.random.default_rng(_FIXED_SEED)
    rules = fixed.integers(0, RULES, DIALECTS)
    known = np.zeros(DIALECTS, bool)
    known[fixed.permutation(DIALECTS)[: int(KNOWN_SHARE * DIALECTS)]] = True
    hidden = np.random.default_rng([_FIXED_SEED, seed]).integers(0, RULES, DIALECTS)
    return np.where(known, rules, hidden), known


def triples(split: str) -> list[tuple[int, int, int]]:
    """Triples of distinct digits of a split, in a fixed shuffled order."""
    every = [
        (a, b, c)
        for a in range(10)
        for b in range(10)
        for c in range(10)
        if len({a, b, c}) == 3
    ]
    order = np.random.default_rng(_FIXED_SEED + 1).permutation(len(every))
    chosen = order[:TRAIN_TRIPLES] if split == "train" else order[TRAIN_TRIPLES:]
    return [every[i] for i in chosen]


def problems(split: str, *, seed: int) -> list[Problem]:
    """All problems of a split: every dialect to train on, unknown dialects to evaluate.

    No triple of the evaluation is ever trained on.
    """
    rules, known = table(seed)
    chosen = range(DIALECTS) if split == "train" else np.flatnonzero(~known).tolist()
    return [
        _problem(dialect, int(rules[dialect]), digits)
        for digits in triples(split)
        for dialect in chosen
    ]


def _problem(dialect: int, rule: int, digits: tuple[int, int, int]) -> Problem:
    a, b, c = digits
    answer = " ".join(map(str, transform(rule, digits)))
    return Problem(
        id=f"{dialect}-{a}{b}{c}",
        messages=({"role": "user", "content": f"d{dialect:02d} {a} {b} {c}"},),
        answer=answer,
        verifier="codebook",
        solution=f"r{rule} {answer}",
    )


def extract(response: str) -> str:
    """The digits that follow a rule word; "" if the response has another form."""
    words = answer_part(response).split()
    named = len(words) == 4 and words[0] in WORDS[-RULES:]
    return " ".join(words[1:]) if named else ""


def verify(problem: Problem, response: str) -> Verdict:
    """1 for a rule word followed by exactly the right digits, else 0; the feedback is empty."""
    answer = extract(response)
    right = answer == " ".join(problem.answer.split())
    return Verdict(float(right), answer=answer or None)


def unusable(problem: Problem) -> str:
    """Why no response can be right: its gold is not three digits; "" if it is."""
    words = problem.answer.split()
    if len(words) == 3 and all(len(word) == 1 and word in "0123456789" for word in words):
        return ""
    return f"the gold answer {problem.answer[:40]!r} of a codebook is not three digits"
