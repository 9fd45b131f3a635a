"""Diversity against hand-worked cases, enumeration and plain quadratic programs."""

import collections
import difflib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax.evaluation import diversity

NAN = float("nan")
TOKENS = st.lists(st.sampled_from("abc"), max_size=7)


@pytest.fixture(scope="module")
def bleu():
    return diversity.bleu_scorer()


def test_words():
    assert diversity.words("x_1 = f(2.5)\n\tré") == [
        *["x_1", "=", "f", "(", "2", ".", "5", ")", "ré"]
    ]
    assert diversity.words(" \n") == []


@pytest.mark.parametrize(
    ("lengths", "budget", "want"),
    [
        ([5, 5], 10, [5, 5]),
        ([5, 5], 6, [3, 3]),
        ([5, 5], 7, [4, 3]),
        ([1, 9, 9], 11, [1, 5, 5]),
        ([9, 1, 9], 12, [6, 1, 5]),
        ([5, 9, 9], 16, [5, 6, 5]),
        ([0, 4], 4, [0, 4]),
        ([2, 3], 6, None),
        ([2, 3], 0, [0, 0]),
    ],
)
def test_level_by_hand(lengths, budget, want):
    assert diversity.level(lengths, budget) == want


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 40))
def test_level_cuts_the_longest_alike(lengths, budget):
    keep = diversity.level(lengths, budget)
    if sum(lengths) < budget:
        assert keep is None
        return
    assert sum(keep) == budget
    most = max(keep)
    for kept, have in zip(keep, lengths, strict=True):
        assert kept <= have
        assert kept >= min(have, most - 1)


def test_distinct_by_hand():
    texts = [list("aab"), list("abab")]
    # All seven tokens: a, b; bigrams aa, ab and ab, ba, ab.
    assert diversity.distinct(texts, n=1, budget=7) == 2 / 7
    assert diversity.distinct(texts, n=2, budget=7) == 3 / 5
    # Two of each: aa and ab.
    assert diversity.distinct(texts, n=1, budget=4) == 2 / 4
    assert diversity.distinct(texts, n=2, budget=4) == 2 / 2
    assert np.isnan(diversity.distinct(texts, n=1, budget=8))
    assert np.isnan(diversity.distinct(texts[:1], n=1, budget=2))
    assert np.isnan(diversity.distinct(texts, n=2, budget=2))


def test_distinct_does_not_reward_short_responses():
    """Draws of one source at two lengths: the plain ratio differs, that at one budget not."""
    rng = np.random.default_rng(0)

    def group(length):
        return [[str(w) for w in rng.integers(0, 50, length)] for _ in range(8)]

    short, long = group(20), group(200)
    plain = [diversity.distinct(g, n=1, budget=sum(map(len, g))) for g in (short, long)]
    assert plain[0] > 5 * plain[1]
    fixed = [diversity.distinct(g, n=1, budget=160) for g in (short, long)]
    assert fixed[0] == pytest.approx(fixed[1], abs=0.08)


def test_budgets_are_reached_by_nine_of_ten():
    texts = [["a " * i, "b " * i] for i in range(1, 21)]
    success = np.tile([True, False], (20, 1))
    success[4:] = True
    found = diversity.budgets(texts, success)
    totals = [2 * i for i in range(1, 21)]
    assert sum(total >= found.all for total in totals) >= 18
    assert found.all in totals
    assert found.successes in totals[4:]
    assert diversity.budgets(texts, success, one=7) == (7, 7)
    assert diversity.budgets([["", ""]], np.zeros((1, 2), bool)) == (1, 1)


def test_unique_ratio():
    assert diversity.unique_ratio(["a", "b", "a", "a"]) == 0.5
    assert diversity.unique_ratio(["a", "a "]) == 1.0
    assert np.isnan(diversity.unique_ratio(["a"]))


def test_the_program_measured_is_the_one_that_is_judged():
    """Not a later block of another kind, nor a draft in thoughts; unclosed ones too."""
    want = diversity.node_types(fenced("x = 1"))
    for text in (
        "```python\nx = 1\n```\n```\n5 6\n```",
        "<think>```python\nimport os\n```</think>\n```py\nx = 1\n```",
        "```python\nx = 1",
    ):
        assert diversity.node_types(text) == want
    assert diversity.node_types("x = 1") is None


def fenced(code):
    return f"```python\n{code}\n```"


def test_ast_distance_by_hand():
    same = [diversity.node_types(fenced(code)) for code in ("x = 1", "y = 22", "z=3 # why")]
    assert diversity.ast_distance(same) == 0.0
    a, b = (diversity.node_types(fenced(code)) for code in ("x = 1", "x = y"))
    # Module, Assign, Name, Store and Constant; the same with Name, Load for Constant.
    assert a == collections.Counter(["Module", "Assign", "Name", "Store", "Constant"])
    assert b == collections.Counter(["Module", "Assign", "Name", "Store", "Name", "Load"])
    assert diversity.ast_distance([a, b]) == pytest.approx(1 - 4 / 7)
    assert diversity.ast_distance([a, None, b]) == pytest.approx(1 - 4 / 7)
    assert np.isnan(diversity.ast_distance([a, None]))


@pytest.mark.parametrize(
    "code",
    ["x = ", "\x00", "(" * 500, "-" * 100_000 + "1", "1+" * 100_000 + "1", "def f(:", "\ud800"],
)
def test_what_does_not_parse_is_none(code):
    assert diversity.node_types(fenced(code)) is None


def test_the_parser_says_nothing_and_runs_nothing(recwarn):
    code = "import sys; sys.modules['mopd_was_run'] = sys\nx = '\\d'; 1 is 1"
    assert diversity.node_types(fenced(code)) is not None
    assert "mopd_was_run" not in sys.modules
    # Of what is parsed. Objects of other tests may be collected, and warn, meanwhile.
    of_source = (SyntaxWarning, DeprecationWarning)
    assert not [w for w in recwarn.list if issubclass(w.category, of_source)]


def plain_lcs(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


@given(TOKENS, TOKENS)
def test_lcs_is_the_quadratic_table(a, b):
    assert diversity.lcs(a, b) == plain_lcs(a, b) == diversity.lcs(b, a)


def test_lcs_of_long_texts():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 9, 150).astype(str).tolist() for _ in range(2))
    assert diversity.lcs(a, b) == plain_lcs(a, b)
    assert diversity.lcs(a, a) == 150


def test_sequence_distance():
    a, b, c = list("abcd"), list("abce"), list("xyzw")
    assert diversity.sequence_distance([a, b]) == 0.25
    assert diversity.sequence_distance([a, b, c]) == pytest.approx((0.25 + 1 + 1) / 3)
    assert diversity.sequence_distance([[], []]) == 0.0
    assert diversity.sequence_distance([a, []]) == 1.0
    assert np.isnan(diversity.sequence_distance([a]))
    # What difflib matches is a common subsequence too, so its ratio is never above.
    ratio = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    assert 1 - diversity.sequence_distance([a, b]) >= ratio


def test_bleu_by_hand(bleu):
    assert bleu("a b c d e", ["a b c d e"]) == pytest.approx(1.0)
    assert bleu("a", ["a"]) == pytest.approx(1.0)
    # Five words, one wrong at the end: 4/5, and with one added 4/5, 3/4 and 2/3.
    want = (4 / 5 * 4 / 5 * 3 / 4 * 2 / 3) ** (1 / 4)
    assert bleu("a b c d e", ["a b c d f"]) == pytest.approx(want)
    assert bleu("", ["a"]) == 0.0
    assert bleu("", ["a", ""]) == 1.0
    assert bleu("a", [""]) == 0.0
    assert bleu("f(x)", ["f ( x )"]) == pytest.approx(1.0)


def test_self_bleu(bleu):
    assert diversity.self_bleu(["a b c d", "a b c d"], bleu) == pytest.approx(1.0)
    assert diversity.self_bleu(["a b c d", "e f g h"], bleu) < 0.3
    assert np.isnan(diversity.self_bleu(["a"], bleu))
    alike = diversity.bleu_matrix(["a b c d e", "a b c d", "x"], bleu)
    np.testing.assert_allclose(alike, alike.T)
    np.testing.assert_allclose(np.diag(alike), 1.0)
    assert alike[0, 1] > alike[0, 2]


def test_without_sacrebleu_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(diversity.DiversityError, match=r"mopd_jax\[eval\].*--bleu=off"):
        diversity.bleu_scorer()


def test_cosine():
    got = diversity.cosine_matrix(np.array([[1, 0], [1, 1], [0, 0]]))
    assert got[0, 1] == pytest.approx(np.sqrt(0.5))
    assert got[0, 0] == pytest.approx(1.0)
    assert np.isnan(got[:, 2]).all()


def test_pairs_by_outcome():
    alike = np.array(
        [[1, 0.1, 0.2, 0.3], [0.1, 1, 0.4, 0.5], [0.2, 0.4, 1, 0.6], [0.3, 0.5, 0.6, 1]]
    )
    success = np.array([True, False, True, False])
    got = diversity.by_outcome(alike, success, np.array([True, True, True, True]))
    assert got == pytest.approx(
        {
            "all": 2.1 / 6,
            "success-success": 0.2,
            "success-failure": (0.1 + 0.3 + 0.4 + 0.6) / 4,
            "failure-failure": 0.5,
        }
    )
    got = diversity.by_outcome(alike, success, np.array([True, True, True, False]))
    assert got["all"] == pytest.approx(2.1 / 6)
    assert got["success-failure"] == pytest.approx((0.1 + 0.4) / 2)
    assert np.isnan(got["failure-failure"])


def test_measure(bleu):
    texts = [
        [fenced("x = 1"), fenced("x = 1"), fenced("x = y"), "no program at all"],
        ["a b", "c d", "", "a b"],
        ["one", "two", "three", "four"],
    ]
    success = np.array([[True, True, False, False], [True, False, False, True], [False] * 4])
    valid = np.ones_like(success)
    valid[2] = False
    got = diversity.measure(
        texts,
        success,
        valid,
        budget=diversity.Budgets(6, 4),
        bleu=bleu,
        embed=lambda row: np.array([[1.0, len(text)] for text in row]),
    )
    value = got.values
    assert {len(x) for x in value.values()} == {3}
    assert value["unique ratio"].tolist() == [0.75, 0.75, 1.0]
    # Six of the first problem's tokens: four backticks and two heads more, "`" and "no".
    np.testing.assert_allclose(value["distinct-1"], [2 / 6, 4 / 6, NAN])
    np.testing.assert_array_equal(value["unique ratio of successes"], [0.5, 0.5, NAN])
    # Four tokens: two backticks of each, and "a b" twice.
    np.testing.assert_allclose(value["distinct-1 of successes"], [1 / 4, 2 / 4, NAN])
    np.testing.assert_allclose(value["AST distance of successes"], [0.0, NAN, NAN])
    assert value["AST distance"][0] == pytest.approx(2 / 3 * 3 / 7)
    np.testing.assert_allclose(value["self-BLEU-4 of successes"], [1, 1, NAN])
    np.testing.assert_allclose(value["bigram similarity, success-success"], [1, 1, NAN])
    assert np.isnan(value["pairwise BLEU-4, failure-failure"][2])
    assert np.isfinite(value["embedding cosine, all"]).all()
    assert got.counts == {
        "budget": 6,
        "below_budget": 1,
        "budget_of_successes": 4,
        "below_budget_of_successes": 0,
        "below_two_successes": 1,
        "programs": 3,
        "not_programs": 9,
    }


def test_measure_without_the_optional_parts():
    got = diversity.measure([["a b", "a c"]], np.ones((1, 2), bool), np.ones((1, 2), bool))
    assert not any("BLEU" in name or "cosine" in name for name in got.values)
    assert got.counts["budget"] == 4
    assert got.values["distinct-1"].tolist() == [3 / 4]
