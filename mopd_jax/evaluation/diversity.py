"""Measures how much the responses to one problem differ from each other.

Every measure is a value per problem, NaN where it is not defined (too few responses), so that
`estimates.estimate` gives its interval and the number of problems behind it. Tokens are words
and single marks, independent of any model's tokenizer, so runs of different models compare.
docs/evaluation.md has definitions and limits.
"""

from __future__ import annotations

import ast
import bisect
import collections
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from mopd_jax.contexts import peers
from mopd_jax.errors import InputError
from mopd_jax.verifiers import programs

Bleu = Callable[[str, Sequence[str]], float]
Embed = Callable[[Sequence[str]], np.ndarray]
Item = TypeVar("Item")

_WORD = re.compile(r"\w+|[^\w\s]")


class DiversityError(InputError):
    """A measure cannot be computed here; the message names what is missing."""


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Values of every measure per problem, and counts of what they leave out.

    values: {measure: f64[P]}; "... of successes" reads the successful responses alone.
    counts: `budget` and `budget_of_successes`, the tokens a problem that Distinct-n reads;
        `below_budget` and `below_budget_of_successes`, problems with fewer;
        `below_two_successes`, problems without a measure of successes;
        `programs`, responses that hold a program that parses, and `not_programs`, the others.
    """

    values: dict[str, np.ndarray]
    counts: dict[str, int]


def words(text: str) -> list[str]:
    """Words and single marks of a text, in order; white space only separates them."""
    return _WORD.findall(text)


def level(lengths: Sequence[int], budget: int) -> list[int] | None:
    """How many tokens to keep of each response so that they are `budget` in all.

    The longest are cut first, to one common length; the remainder goes to the first of them.
    None if there are fewer than `budget` tokens in all.
    """
    if sum(lengths) < budget:
        return None

    def total(most: int) -> int:
        return sum(min(have, most) for have in lengths)

    most = bisect.bisect_right(range(budget + 1), budget, key=total) - 1
    left = budget - total(most)
    keep = []
    for have in lengths:
        more = left > 0 and have > most
        keep.append(min(have, most) + more)
        left -= more
    return keep


def distinct(texts: Sequence[Sequence[str]], *, n: int, budget: int) -> float:
    """Distinct-n of a problem: unique n-grams / all n-grams, of `budget` tokens (`level`).

    The ratio falls with length, so compare it at one budget only. No n-gram spans two
    responses. NaN for fewer tokens, fewer than two responses, or no n-gram.

    Args:
        texts: tokens of each response.
    """
    keep = level([len(tokens) for tokens in texts], budget)
    if keep is None or len(texts) < 2:
        return float("nan")
    ngrams = collections.Counter(
        tuple(tokens[i : i + n])
        for tokens, count in zip(texts, keep, strict=True)
        for i in range(count - n + 1)
    )
    return len(ngrams) / ngrams.total() if ngrams else float("nan")


class Budgets(NamedTuple):
    """Tokens a problem that Distinct-n reads: of all responses, and of the successes alone."""

    all: int
    successes: int


def budgets(
    texts: Sequence[Sequence[str]], success: np.ndarray, *, one: int | None = None
) -> Budgets:
    """Budgets that nine of ten problems reach: the lower deciles of their tokens.

    Args:
        texts: [P][n] responses, of all runs that will be compared.
        success: bool[P, n]; problems with fewer than two successes do not count for theirs.
        one: a budget that replaces both.
    """
    if one is not None:
        return Budgets(one, one)
    counts = np.array([[len(words(text)) for text in row] for row in texts])
    several = success.sum(axis=1) > 1
    totals = (counts.sum(axis=1), (counts * success).sum(axis=1)[several])
    return Budgets(
        *(
            max(int(np.quantile(total, 0.1, method="lower")), 1) if len(total) else 1
            for total in totals
        )
    )


def unique_ratio(texts: Sequence[str]) -> float:
    """Distinct texts / texts; NaN for fewer than two."""
    return len(set(texts)) / len(texts) if len(texts) > 1 else float("nan")


def node_types(text: str) -> collections.Counter[str] | None:
    """How often each type of syntax node occurs in the program the code verifier would run.

    Nothing is run here. None if the text has no program, or one that does not parse.
    """
    code = programs.extract(text).source
    if code is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The parser warns of odd escapes and the like.
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return collections.Counter(type(node).__name__ for node in ast.walk(tree))


def ast_distance(programs: Sequence[collections.Counter[str] | None]) -> float:
    """1 - multiset Jaccard index of node types, mean over pairs of programs that parse.

    NaN if fewer than two do. It sees which constructs are used, not how they are nested.
    """
    parsed = [nodes for nodes in programs if nodes is not None]
    return _mean(1.0 - (a & b).total() / (a | b).total() for a, b in _pairs(parsed))


def sequence_distance(texts: Sequence[Sequence[str]]) -> float:
    """1 - 2 LCS / (tokens of both), mean over pairs; LCS is the longest common subsequence.

    Exact and symmetric, unlike the matching of `difflib`. Two empty texts have distance 0.
    """
    return _mean(
        1.0 - 2.0 * lcs(a, b) / (len(a) + len(b)) if a or b else 0.0 for a, b in _pairs(texts)
    )


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    A row of the usual table is one integer of len(a) bits, so that a token of b costs a few
    operations on it (Crochemore et al. 2001).
    """
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def bleu_scorer() -> Bleu:
    """BLEU-4 in [0, 1] of a text against references, add-one smoothing, from sacrebleu.

    Texts shorter than four tokens are scored on the n-grams that they have. A text without a
    token scores 1 if a reference has none either, else 0.

    Raises:
        DiversityError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise DiversityError(
            "BLEU needs the package sacrebleu: pip install 'mopd_jax[eval]', or leave it out "
            "with --bleu=off"
        ) from error
    metric = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, effective_order=True)

    def score(text: str, references: Sequence[str]) -> float:
        line, others = " ".join(words(text)), [" ".join(words(r)) for r in references]
        if not line:
            return float("" in others)
        return min(metric.sentence_score(line, others).score / 100.0, 1.0)

    return score


def self_bleu(texts: Sequence[str], bleu: Bleu) -> float:
    """Mean BLEU of each response against all others; high where they are alike."""
    if len(texts) < 2:
        return float("nan")
    return _mean(bleu(t, [*texts[:i], *texts[i + 1 :]]) for i, t in enumerate(texts))


def bleu_matrix(texts: Sequence[str], bleu: Bleu) -> np.ndarray:
    """BLEU of each pair, the mean of both directions, f64[n, n]."""
    pairs = range(len(texts))
    one_way = np.array(
        [[1.0 if i == j else bleu(texts[i], [texts[j]]) for j in pairs] for i in pairs]
    )
    return (one_way + one_way.T) / 2


def cosine_matrix(vectors: np.ndarray) -> np.ndarray:
    """Cosines f64[n, n] of embeddings f64[n, D]; NaN for a vector of length 0."""
    vectors = np.asarray(vectors, float)
    size = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors @ vectors.T / np.outer(size, size)


PAIRS = ("all", "success-success", "success-failure", "failure-failure")


def by_outcome(alike: np.ndarray, success: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Mean similarity over the pairs of each kind in `PAIRS`; NaN for a kind without a pair.

    Args:
        alike: f64[n, n], symmetric.
        success, valid: bool[n]; a response without a verdict counts in `all` only.
    """
    i, j = np.triu_indices(len(alike), 1)
    failure = valid & ~success
    chosen = {
        "all": np.ones(len(i), bool),
        "success-success": success[i] & success[j],
        "success-failure": (success[i] & failure[j]) | (failure[i] & success[j]),
        "failure-failure": failure[i] & failure[j],
    }
    return {kind: _mean(alike[i[use], j[use]]) for kind, use in chosen.items()}


def measure(
    texts: Sequence[Sequence[str]],
    success: np.ndarray,
    valid: np.ndarray,
    *,
    budget: Budgets | None = None,
    bleu: Bleu | None = None,
    embed: Embed | None = None,
) -> Diversity:
    """All measures of P problems.

    Args:
        texts: [P][n] responses.
        success, valid: bool[P, n]; a response without a verdict is neither success nor failure.
        budget: of Distinct-n; None: the `budgets` of these responses.
        bleu: None leaves out the measures with BLEU.
        embed: texts -> vectors f64[n, D], for similarity by cosine; None leaves it out.
    """
    if budget is None:
        budget = budgets(texts, success)
    tokens = [[words(text) for text in row] for row in texts]
    nodes = [[node_types(text) for text in row] for row in texts]
    rows: list[dict[str, float]] = []
    for p, row in enumerate(texts):
        won = np.flatnonzero(success[p]).tolist()
        of_successes = _measures(
            [row[i] for i in won],
            [tokens[p][i] for i in won],
            [nodes[p][i] for i in won],
            budget.successes,
            bleu,
        )
        rows.append(
            _measures(row, tokens[p], nodes[p], budget.all, bleu)
            | {f"{name} of successes": value for name, value in of_successes.items()}
            | _similarities(row, success[p], valid[p], bleu, embed)
        )
    parsed = sum(types is not None for row in nodes for types in row)
    lengths = np.array([[len(text) for text in row] for row in tokens])
    several = success.sum(axis=1) > 1
    below = (lengths * success).sum(axis=1) < budget.successes
    return Diversity(
        values={name: np.array([row[name] for row in rows]) for name in rows[0]},
        counts={
            "budget": budget.all,
            "below_budget": int((lengths.sum(axis=1) < budget.all).sum()),
            "budget_of_successes": budget.successes,
            "below_budget_of_successes": int((several & below).sum()),
            "below_two_successes": int((~several).sum()),
            "programs": parsed,
            "not_programs": sum(map(len, nodes)) - parsed,
        },
    )


def _measures(
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    nodes: Sequence[collections.Counter[str] | None],
    budget: int,
    bleu: Bleu | None,
) -> dict[str, float]:
    """Measures of some responses to one problem; NaN for fewer than two."""
    values = {f"distinct-{n}": distinct(tokens, n=n, budget=budget) for n in (1, 2)}
    values["unique ratio"] = unique_ratio(texts)
    values["sequence distance"] = sequence_distance(tokens)
    values["AST distance"] = ast_distance(nodes)
    if bleu is not None:
        values["self-BLEU-4"] = self_bleu(texts, bleu)
    return values


def _similarities(
    texts: Sequence[str],
    success: np.ndarray,
    valid: np.ndarray,
    bleu: Bleu | None,
    embed: Embed | None,
) -> dict[str, float]:
    """Similarities of the responses to one problem, by the outcomes of the pairs."""
    alike = {"bigram similarity": peers.similarity(texts)}
    if bleu is not None:
        alike["pairwise BLEU-4"] = bleu_matrix(texts, bleu)
    if embed is not None:
        alike["embedding cosine"] = cosine_matrix(embed(texts))
    return {
        f"{name}, {kind}": value
        for name, matrix in alike.items()
        for kind, value in by_outcome(matrix, success, valid).items()
    }


def _pairs(items: Sequence[Item]) -> Iterator[tuple[Item, Item]]:
    return ((items[i], items[j]) for i in range(len(items)) for j in range(i))


def _mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
