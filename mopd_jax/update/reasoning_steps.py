"""Which reasoning step of its response each token belongs to, by a separator in the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def step_ids(
    ids: np.ndarray,
    mask: np.ndarray,
    decode: Callable[[Sequence[int]], str],
    separator: str,
) -> np.ndarray:
    """i32[N, T], 0 for the tokens of the first step of a row, 1 for those of the next.

    The separator is searched in the text of the tokens one after the other, not among the
    tokens: a tokenizer may merge it with the text before it, or split it. The token that
    completes a separator ends its step; separators in a row make no empty step.

    Args:
        ids, mask: i32[N, T], bool[N, T], right-padded; 0 outside the mask.
        decode: ids -> text, called with one id at a time.
        separator: the text that ends a step.

    Raises:
        ValueError: the separator is empty.
    """
    if not separator:
        raise ValueError("separator is empty; name a text that ends a step")
    pieces: dict[int, str] = {}
    steps = np.zeros(ids.shape, np.int32)
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        tail, number, begun = "", 0, False
        for t in np.flatnonzero(real).tolist():
            token = int(tokens[t])
            if token not in pieces:
                pieces[token] = decode([token])
            steps[row, t] = number
            text = tail + pieces[token]
            begun = begun or bool(text.replace(separator, "").strip())
            if separator in text:
                text = text.rpartition(separator)[2]
                number, begun = number + begun, bool(text.strip())
            tail = text[max(len(text) - len(separator) + 1, 0) :]
    return steps
