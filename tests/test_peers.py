"""Who is shown to whom: a table of cases and properties of every plan."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax.config import PeerConfig
from mopd_jax.config.contexts import Rule
from mopd_jax.contexts import peers
from mopd_jax.records import Outcomes


def choose(success, *, eligible=None, texts=None, lengths=None, uids=None, **options):
    """`peers.choose` with every text its own, every rollout eligible, and uids 0, 1, ..."""
    success = np.array(success, bool)
    prompts, group = success.shape
    seed, step = options.pop("seed", 0), options.pop("step", 1)
    rows = options.pop("rows", None)
    candidates = peers.Candidates(
        success,
        np.ones_like(success) if eligible is None else np.array(eligible, bool),
        [[f"text {g}" for g in range(group)]] * prompts if texts is None else texts,
        np.ones(success.shape, int) if lengths is None else np.array(lengths),
        range(prompts) if uids is None else uids,
    )
    return peers.choose(candidates, seed=seed, step=step, cfg=PeerConfig(**options), rows=rows)


def shown(plan, p, g):
    """[(rollout, succeeded)] of one row in the order of its context."""
    return [(entry.rollout, entry.succeeded) for entry in plan.entries[p][g]]


def of_kind(plan, kind):
    """[P][G] rollouts shown under one heading, in order."""
    return [
        [[e.rollout for e in row if e.kind == kind] for row in group] for group in plan.entries
    ]


def same_in_full(a, b):
    """Both plans show the same peers in full."""
    kinds = ("success", "failure")
    return all(of_kind(a, kind) == of_kind(b, kind) for kind in kinds)


# (successes, rollouts, target succeeded, shown by default, shown in one slot)
CASES = [
    (0, 5, False, "F", "F"),
    (0, 2, False, "F", "F"),
    (1, 5, True, "F", "F"),
    (1, 5, False, "SF", "S"),
    (2, 5, True, "SF", "S"),
    (2, 5, False, "SSF", "S"),
    (3, 5, True, "SSF", "S"),
    (3, 5, False, "SSF", "S"),
    (4, 5, True, "SSF", "S"),
    (4, 5, False, "SS", "S"),
    (5, 5, True, "SS", "S"),
    (3, 3, True, "SS", "S"),
    (2, 2, True, "S", "S"),
    (1, 2, True, "F", "F"),
    (1, 2, False, "S", "S"),
    (1, 1, True, "", ""),
    (0, 1, False, "", ""),
]


RULES = get_args(Rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("wins", "group", "succeeded", "default", "one_slot"), CASES)
def test_case_table(wins, group, succeeded, default, one_slot, rule):
    success = np.arange(group) < wins
    for slots, want in ((None, default), (1, one_slot)):
        plan = choose([success], rule=rule, slots=slots)
        for target in np.flatnonzero(success == succeeded).tolist():
            row = shown(plan, 0, target)
            assert "".join("FS"[ok] for _, ok in row) == want
            assert all(success[i] == ok and i != target for i, ok in row)
            assert plan.shows("success")[0, target] == ("S" in want)
            assert plan.shows("failure")[0, target] == ("F" in want)
            assert plan.informed()[0, target] == bool(want)


# y1 and y3 right, y2 wrong, y4 wrong and cut off.
EXAMPLE = [[True, False, True, False]]
WHOLE = [[True, True, True, False]]


def test_worked_example_without_the_truncated_response():
    plan = choose(EXAMPLE, eligible=WHOLE, rule="first")
    assert [shown(plan, 0, g) for g in range(4)] == [
        [(2, True), (1, False)],
        [(0, True), (2, True)],
        [(0, True), (1, False)],
        [(0, True), (2, True), (1, False)],
    ]


def test_worked_example_with_the_truncated_response():
    seen = {g: set() for g in range(4)}
    for step in range(30):
        plan = choose(EXAMPLE, step=step)
        for g in range(4):
            seen[g].add(tuple(i for i, ok in shown(plan, 0, g) if not ok))
    assert seen == {0: {(1,), (3,)}, 1: {(3,)}, 2: {(1,), (3,)}, 3: {(1,)}}


@st.composite
def situations(draw):
    group = draw(st.integers(1, 7))
    bits = st.lists(st.booleans(), min_size=group, max_size=group)
    rows = st.lists(st.integers(0, 3), min_size=group, max_size=group)
    cfg = {
        "successes": draw(st.integers(0, 3)),
        "failures": draw(st.integers(0, 3)),
        "slots": draw(st.none() | st.integers(1, 4)),
        "rule": draw(st.sampled_from(RULES)),
        "exclude": draw(st.sampled_from(["rollout", "text"])),
    }
    return draw(bits), draw(bits), [str(t) for t in draw(rows)], draw(rows), cfg


@given(situations())
def test_every_plan(situation):
    success, eligible, texts, lengths, cfg = situation
    plan = choose([success], eligible=[eligible], texts=[texts], lengths=[lengths], **cfg)
    slots = cfg["slots"] or cfg["successes"] + cfg["failures"]
    for target in range(len(success)):
        others = [i for i, ok in enumerate(eligible) if ok and i != target]
        if cfg["exclude"] == "text":
            others = [i for i in others if texts[i] != texts[target]]
        good = {texts[i] for i in others if success[i]}
        bad = {texts[i] for i in others if not success[i]}
        wins = min(len(good), cfg["successes"], slots)
        losses = min(len(bad), cfg["failures"], slots - wins)
        row = shown(plan, 0, target)
        assert [ok for _, ok in row] == [True] * wins + [False] * losses
        assert all(i in others and success[i] == ok for i, ok in row)
        for label in (True, False):
            kind = [texts[i] for i, ok in row if ok == label]
            assert len(set(kind)) == len(kind)
        for entry in plan.entries[0][target]:
            assert entry.prompt == 0
            assert entry.kind == ("success" if entry.succeeded else "failure")
    assert not plan.bare.any()


def test_the_shape_of_a_plan():
    plan = choose([[True, False]], successes=3, failures=2)
    success, failure = peers.Entry(0, 0, True, "success"), peers.Entry(0, 1, False, "failure")
    assert plan.entries == (((failure,), (success,)),)
    assert plan.bare.tolist() == [[False, False]]
    assert plan.informed().tolist() == [[True, True]]
    nobody = peers.without_peers(2, 3)
    assert nobody.entries == (((), (), ()), ((), (), ()))
    assert nobody.bare.tolist() == nobody.informed().tolist() == [[False] * 3] * 2
    assert not nobody.shows("success").any()


def test_no_candidate_no_context():
    plan = choose([[True, False, True]], eligible=[[False, False, False]])
    assert not plan.informed().any()
    # A target that may not be shown itself is still shown its peers.
    plan = choose([[True, False, True]], eligible=[[True, False, False]])
    assert plan.informed().tolist() == [[False, True, True]]


def test_equal_texts_are_one_peer():
    plan = choose([[False, True, True, True]], texts=[["w", "a", "a", "b"]], rule="first")
    assert shown(plan, 0, 0) == [(1, True), (3, True)]
    # The target's own text may come from a peer; `own_text_shown` counts it.
    assert shown(plan, 0, 1) == [(2, True), (3, True), (0, False)]


def test_the_targets_text_is_shown_or_not_by_name():
    texts = [["a", "a", "b", "a", "c"]]
    options = {"texts": texts, "rule": "first", "summaries": 3, "summary_source": "all"}
    options |= {"successes": 1, "failures": 1}
    plan = choose([[1, 1, 1, 0, 0]], exclude="text", **options)
    assert [e.rollout for e in plan.entries[0][0]] == [2, 4]
    assert [e.rollout for e in plan.entries[0][2]] == [0, 4, 3]
    # Neither as a success, nor as a failure, nor in brief; the summary is of what is left.
    assert [e.rollout for e in plan.entries[0][4]] == [0, 2, 3]
    plan = choose([[1, 1, 1, 0, 0]], exclude="rollout", **options)
    assert [e.rollout for e in plan.entries[0][0]] == [1, 2, 4, 3]


@pytest.mark.parametrize(
    ("slots", "want"), [(None, "SSFF"), (4, "SSFF"), (3, "SSF"), (2, "SS"), (1, "S")]
)
def test_successes_take_the_slots_first(slots, want):
    plan = choose([[True, True, True, False, False, False]], slots=slots, failures=2)
    assert "".join("FS"[ok] for _, ok in shown(plan, 0, 0)) == want


def test_failures_take_slots_that_successes_leave():
    plan = choose([[True, False, False, False, False]], slots=3, failures=3)
    assert "".join("FS"[ok] for _, ok in shown(plan, 0, 0)) == "FFF"
    assert "".join("FS"[ok] for _, ok in shown(plan, 0, 1)) == "SFF"


@pytest.mark.parametrize(
    ("rule", "want"),
    [("first", [0, 1, 2, 3]), ("shortest", [2, 0, 3, 1]), ("longest", [1, 0, 3, 2])],
)
def test_orders(rule, want):
    # Target 4; equal lengths keep the order of the rollouts.
    plan = choose([[True] * 5], lengths=[[5, 9, 1, 5, 7]], rule=rule, successes=4)
    assert of_kind(plan, "success")[0][4] == want


def test_uniform_is_uniform():
    prompts, group = 2100, 8
    success = np.tile(np.arange(group) < 4, (prompts, 1))
    plan = choose(success, successes=1, failures=1)
    successes = np.array(of_kind(plan, "success"))
    failures = [rows[0] for rows in of_kind(plan, "failure")]
    for drawn, wanted in ((successes[:, 0, 0], range(1, 4)), (failures, range(4, 8))):
        counts = np.bincount(np.ravel(drawn), minlength=group)
        assert counts.sum() == counts[list(wanted)].sum() == prompts
        expected = prompts / len(wanted)
        # Chi-square of at most 3 degrees of freedom; 16.3 is its 99.9 % point.
        assert ((counts[list(wanted)] - expected) ** 2 / expected).sum() < 16.3
    # Rows of one prompt draw apart: targets 4 and 5 agree a quarter of the time.
    agree = (successes[:, 4, 0] == successes[:, 5, 0]).mean()
    assert 0.21 < agree < 0.29


def test_a_plan_is_a_function_of_seed_step_and_uid():
    success = np.random.default_rng(0).random((20, 6)) < 0.5
    plan = choose(success, seed=3, step=5)
    assert same_in_full(plan, choose(success, seed=3, step=5))
    assert not same_in_full(plan, choose(success, seed=4, step=5))
    assert not same_in_full(plan, choose(success, seed=3, step=6))
    assert not same_in_full(plan, choose(success, seed=5, step=3))
    assert not same_in_full(plan, choose(success, seed=3, step=5, uids=range(20, 40)))


@given(st.permutations(range(6)))
def test_the_place_in_the_batch_does_not_matter(order):
    success = np.random.default_rng(1).random((6, 5)) < 0.5
    uids = np.arange(100, 106)
    plan = choose(success, uids=uids.tolist())
    moved = choose(success[order], uids=uids[order].tolist())
    for kind in ("success", "failure"):
        assert of_kind(moved, kind) == [of_kind(plan, kind)[p] for p in order]


def test_rows_do_not_depend_on_how_many_prompts_there_are():
    success = np.random.default_rng(2).random((6, 5)) < 0.5
    plan, part = choose(success), choose(success[:2])
    assert plan.entries[:2] == part.entries


def test_similarity_by_hand():
    texts = ["a b c", "a b d", "a b c", "x", "x", ""]
    got = peers.similarity(texts)
    # {ab, bc} and {ab, bd} share one of three bigrams; one word stands for itself.
    want = np.eye(6)
    want[0, 1] = want[1, 0] = want[1, 2] = want[2, 1] = 1 / 3
    want[0, 2] = want[2, 0] = want[3, 4] = want[4, 3] = 1
    np.testing.assert_allclose(got, want)
    assert peers.similarity(["", " "])[0, 1] == 1


@pytest.mark.parametrize(
    ("rule", "want"), [("most_similar", [2, 0, 3, 1]), ("least_similar", [1, 0, 3, 2])]
)
def test_orders_by_similarity_to_the_target(rule, want):
    # Target 4; 0 and 3 are equally like it and keep the order of the rollouts.
    texts = [["a b x y", "p q", "a b c d e", "a b z w", "a b c d"]]
    plan = choose([[True] * 5], texts=texts, rule=rule, successes=4)
    assert of_kind(plan, "success")[0][4] == want


@pytest.mark.parametrize(
    ("source", "want"),
    [("success", [(2, True)]), ("failure", [(4, False)]), ("all", [(2, True), (4, False)])],
)
def test_summaries_are_of_peers_that_are_not_shown_in_full(source, want):
    options = {"rule": "first", "successes": 1, "failures": 1, "summaries": 3}
    plan = choose([[1, 1, 1, 0, 0, 0]], summary_source=source, **options)
    entries = plan.entries[0][5]
    full = [e for e in entries if not e.kind.startswith("summary")]
    assert [(e.rollout, e.kind) for e in full] == [(0, "success"), (3, "failure")]
    brief = [e for e in entries if e.kind.startswith("summary")]
    own = [(1, True), *want] if source != "failure" else want
    assert [(e.rollout, e.succeeded) for e in brief] == own
    assert all(e.kind == f"summary_{'success' if e.succeeded else 'failure'}" for e in brief)
    # After the full successes, before the full failures.
    assert entries == (full[0], *brief, full[1])
    assert plan.informed().all()


@given(situations(), st.integers(1, 4), st.sampled_from(["success", "failure", "all"]))
def test_every_summary(situation, count, source):
    success, eligible, texts, lengths, cfg = situation
    cfg = {**cfg, "summaries": count, "summary_source": source}
    plan = choose([success], eligible=[eligible], texts=[texts], lengths=[lengths], **cfg)
    in_full = choose(
        [success],
        eligible=[eligible],
        texts=[texts],
        lengths=[lengths],
        **{**cfg, "summaries": 0},
    )
    assert same_in_full(plan, in_full)  # Summaries take no full peer's place.
    labels = {"success": {True}, "failure": {False}, "all": {True, False}}[source]
    for g in range(len(success)):
        entries = plan.entries[0][g]
        brief = [e for e in entries if e.kind.startswith("summary")]
        taken = {texts[e.rollout] for e in entries if e not in brief}
        pool = {
            texts[i]
            for i in range(len(success))
            if i != g and eligible[i] and success[i] in labels and texts[i] not in taken
        }
        pool -= {texts[g]} if cfg["exclude"] == "text" else set()
        assert len(brief) == len({texts[e.rollout] for e in brief}) == min(count, len(pool))
        for e in brief:
            assert e.rollout != g
            assert eligible[e.rollout]
            assert texts[e.rollout] in pool
            assert success[e.rollout] == e.succeeded
            assert e.succeeded in labels


# One group of each class: all failed, mixed, all succeeded, no verdict, one verdict missing.
OUTCOMES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]], bool)
VALID = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 0]], bool)


@pytest.mark.parametrize(
    ("settings", "left_out", "plain"),
    [
        ({}, "... ... ... ... ...", "... ... ... ... ..."),
        ({"targets": "failed"}, "... s.. sss vvv .sv", "... ... ... ... ..."),
        (
            {"no_success": "mask", "all_success": "mask"},
            "nnn ... eee ... ...",
            "... ... ... ... ...",
        ),
        ({"no_success": "mask"}, "nnn ... ... ... ...", "... ... ... ... ..."),
        ({"all_success": "mask"}, "... ... eee ... ...", "... ... ... ... ..."),
        ({"no_success": "plain_prompt"}, "... ... ... ... ...", "ppp ... ... ... ..."),
        ({"all_success": "plain_prompt"}, "... ... ... ... ...", "... ... ppp ... ..."),
        (
            {"targets": "failed", "all_success": "plain_prompt", "no_success": "plain_prompt"},
            "... s.. sss vvv .sv",
            "ppp ... ... ... ...",
        ),
        (
            {"targets": "failed", "no_success": "mask", "all_success": "mask"},
            "nnn s.. eee vvv .sv",
            "... ... ... ... ...",
        ),
    ],
)
def test_usage(settings, left_out, plain):
    outcomes = Outcomes(OUTCOMES * 1.0, VALID, OUTCOMES)
    use = peers.usage(outcomes, PeerConfig(**settings))
    reasons = {
        "": ".",
        "the target has no verdict": "v",
        "the target succeeded": "s",
        "no rollout of the group succeeded": "n",
        "every rollout of the group succeeded": "e",
    }
    assert " ".join("".join(reasons[x] for x in row) for row in use.left_out) == left_out
    assert " ".join("".join(".p"[int(x)] for x in row) for row in use.plain) == plain
    assert (use.has_context == (use.reasons == "")).all()
    assert set(use.reasons[use.plain]) <= {"held to the plain prompt"}


def test_rows_that_are_left_out_draw_nothing_and_move_nothing():
    rows = np.array([[True, False, True, False, True]])
    success = [[1, 1, 0, 0, 1]]
    some, every = choose(success, rows=rows), choose(success)
    assert some.informed().tolist() == rows.tolist()
    for g in (0, 2, 4):
        assert some.entries[0][g] == every.entries[0][g]


def test_failures_may_have_a_rule_of_their_own():
    success = [[1, 1, 1, 0, 0, 0]]
    lengths = [[5, 4, 3, 5, 4, 3]]
    options = {"lengths": lengths, "successes": 1, "failures": 1, "rule": "first"}
    plan = choose(success, failure_rule="shortest", **options)
    assert of_kind(plan, "success")[0][5] == [0]
    assert of_kind(plan, "failure")[0][0] == [5]
    one_rule = choose(success, **options)
    assert choose(success, failure_rule="first", **options).entries == one_rule.entries
    # One draw serves both where the rules are the same.
    options["rule"] = "uniform"
    one_rule = choose(success, **options)
    assert choose(success, failure_rule="uniform", **options).entries == one_rule.entries
