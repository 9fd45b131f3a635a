"""Steps of a response are found in its text, however the tokenizer cuts that."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax.update.reasoning_steps import step_ids

PIECES = ["", "a", ".\n", "\n", "\n\n", "b.\n\nc", " ", "\n\n\n\n"]


def steps(row, separator="\n\n"):
    ids = np.int32([row])
    return step_ids(ids, ids > 0, lambda i: PIECES[i[0]], separator)[0].tolist()


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([1, 2, 3, 1], [0, 0, 0, 1]),  # The separator is split, and merged with a full stop.
        ([1, 4, 4, 1, 4, 1], [0, 0, 1, 1, 1, 2]),  # Two in a row make no empty step.
        ([4, 1, 4], [0, 0, 0]),  # Nor does one at the start.
        ([5, 1, 2, 3, 1], [0, 1, 1, 1, 2]),  # A token that has the end of one and the next.
        ([1, 7, 1], [0, 0, 1]),
        ([1, 6, 4, 6, 4, 1], [0, 0, 0, 1, 1, 1]),
        ([1, 0, 0, 0], [0, 0, 0, 0]),  # Padding.
    ],
)
def test_boundaries(row, want):
    assert steps(row) == want


@given(st.lists(st.integers(1, 7), min_size=1, max_size=30))
def test_steps_are_those_of_the_text(row):
    """Every step has a token, and as many texts stand between separators."""
    got = steps(row)
    assert got[0] == 0
    assert set(np.diff(got)) <= {0, 1}
    texts = [part for part in "".join(PIECES[i] for i in row).split("\n\n") if part.strip()]
    # A token may hold the end of one step and all of the next; the last may have no separator.
    assert len(set(got)) <= max(len(texts), 1) + 1


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="separator is empty"):
        steps([1], "")
