"""Removes the thoughts between `<think>` and `</think>` from a text."""

from __future__ import annotations

import re

_TAG = re.compile("</?think>")
_OPEN, _CLOSE = "<think>", "</think>"


def without_thinking(text: str) -> str:
    """The text outside all `<think>` spans, without space at its ends; never a bare tag.

    Spans may nest: one ends with the tag that closes as many as were opened. One that is never
    closed, as in a truncated response, reaches to the end. A closing tag without an opening one
    ends a span that the prompt's header opened, so the text before it is removed. Time is
    linear in the text.
    """
    kept, depth, start = [], 0, 0
    for tag in _TAG.finditer(text):
        if tag.group() == "<think>":
            if depth == 0:
                kept.append(text[start : tag.start()])
            depth += 1
        elif depth == 0:
            kept.clear()
        else:
            depth -= 1
        start = tag.end()
    if depth == 0:
        kept.append(text[start:])
    joined = "".join(kept)
    # The texts before and after a removed span may together form a tag.
    return (" ".join(kept) if _TAG.search(joined) else joined).strip()


def answer_part(response: str) -> str:
    """The part that a verifier reads: after the last closing tag, before any unclosed one.

    An answer follows the thoughts, so this is stricter than `without_thinking`, which
    keeps the text before and between them.
    """
    return response.rpartition(_CLOSE)[2].partition(_OPEN)[0]
