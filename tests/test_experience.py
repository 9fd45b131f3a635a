"""What is said of a step: shares of rows by what their contexts, as rendered, hold."""

import numpy as np

from mopd_jax import experience
from mopd_jax.context import ContextRecord


def record(shown, succeeded):
    return ContextRecord(shown, succeeded, (0,) * len(shown), 0, 10, "")


def test_shares_by_hand():
    texts = [["a", "b", "c"], ["d", "e", "e"]]
    contexts = [
        record((1, 2), (True, False)),
        record((2,), (False,)),
        record((), ()),
        record((), ()),
        record((2,), (True,)),  # Rollouts 1 and 2 of the second prompt say the same.
        record((0,), (False,)),
    ]
    got = experience._shares(contexts, texts)
    assert got == {
        "informed": 4 / 6,
        "shows_success": 2 / 6,
        "shows_failure": 3 / 6,
        "shows_failures_only": 2 / 6,
        "peers_per_row": 5 / 6,
        "target_text_shown": 1 / 6,
    }


def test_groups_without_a_verdict_are_neither_mixed_nor_failed():
    valid = np.array([[True, True], [True, False], [False, False]])
    success = np.array([[True, False], [True, False], [False, False]])
    sampled = experience.Sampled(
        problems=[],
        uids=np.arange(3),
        prompt=None,
        prompt_mask=None,
        response=None,
        mask=np.ones((3, 2, 4), bool),
        behaviour_logp=None,
        stopped=np.ones((3, 2), bool),
        texts=[["a", "b"]] * 3,
    )
    contexts = [record((), ())] * 6
    got = experience.group_metrics(sampled, success * 1.0, valid, success, contexts)
    assert got["mixed_groups"] == 1 / 3
    assert got["all_failed_groups"] == 0
    assert got["verifier_errors"] == 3
