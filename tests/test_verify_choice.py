"""The verifier of multiple choice: what counts as a letter, and where it must stand."""

import pytest

from mopd_jax import verifiers
from mopd_jax.records import Problem
from mopd_jax.verifiers import choice

OPTIONS = {"A": "vitamin B", "B": "50 pC", "C": "a value", "D": "56 pC."}
TURN = ({"role": "user", "content": "Which one?"},)


def judge(response, gold="B", **meta):
    return verifiers.verify(Problem("p", TURN, gold, "choice", meta), response)


# (case, response): right, and refused by graders that ask for the bare letter.
WRONGLY_REFUSED_ELSEWHERE = [
    ("lower case", "<answer>b</answer>"),
    ("full stop", "<answer>B.</answer>"),
    ("brackets", "<answer>(B)</answer>"),
    ("text behind the letter", "<answer>B. text</answer>"),
    ("text of the option behind it", "<answer>B. 50 pC</answer>"),
    ("emphasis", "<answer>**B**</answer>"),
    ("emphasis on all", "<answer>**B. 50 pC**</answer>"),
    ("a sentence", "<answer>The answer is (B).</answer>"),
    ("full-width letter", "<answer>\uff22</answer>"),
]
# (case, response, gold): wrong, and accepted by graders that take the last single letter.
WRONGLY_ACCEPTED_ELSEWHERE = [
    ("article", "we get a value", "A"),
    ("article in a tag", "<answer>a value</answer>", "A"),
    ("article at the start", "A value is found.", "A"),
    ("truncated at an article", "so the answer is a", "A"),
    ("several letters", "<answer>A and B</answer>", "B"),
    ("letters without space", "<answer>AB</answer>", "B"),
    ("two options listed", "<answer>B. foo\nC. bar</answer>", "B"),
    ("last of several words", "A is right and B is wrong", "B"),
]


@pytest.mark.parametrize(("case", "response"), WRONGLY_REFUSED_ELSEWHERE)
def test_right_answers_that_other_graders_refuse(case, response):
    del case
    for meta in ({}, {"options": OPTIONS}):
        verdict = judge(response, **meta)
        assert (verdict.reward, verdict.format_ok, verdict.error) == (1.0, True, "")


@pytest.mark.parametrize(("case", "response", "gold"), WRONGLY_ACCEPTED_ELSEWHERE)
def test_wrong_answers_that_other_graders_accept(case, response, gold):
    del case
    verdict = judge(response, gold)
    assert (verdict.reward, verdict.format_ok, verdict.error) == (0.0, False, "")
    assert "<answer>" in verdict.feedback
    assert judge(response, gold, options=OPTIONS).reward == 0.0


@pytest.mark.parametrize(
    ("response", "letter", "format_ok"),
    [
        ("<answer>\nB\n</answer>", "B", True),
        ("<answer>A</answer> no: <answer>B</answer>", "B", True),
        ("<answer>B</answer> and so on, A", "B", True),
        ("<answer>B", "B", False),
        ("<answer>B</answer> or <answer>", None, False),
        ("<answer></answer>", None, False),
        ("<ANSWER>B</ANSWER>", "B", True),
        ("<answer>[B]</answer>", "B", True),
        ("<answer>B: 50 pC</answer>", "B", True),
        ("<answer>B 50 pC</answer>", "B", True),
        ("<answer>50 pC</answer>", "B", True),
        ("<answer>56 pC</answer>", "D", True),
        ("<answer>A value</answer>", "C", True),
        ("<answer>B. 56 pC</answer>", None, False),
        ("<answer>B. vitamin C</answer>", "B", True),
        ("<answer>B (C)</answer>", None, False),
        ("<answer>B \u2013 decrease</answer>", "B", True),
        ("<answer>B \u2014 decrease</answer>", "B", True),
        ("<answer>B\u2014decrease</answer>", "B", True),
        ("<answer>B \u2014 56 pC</answer>", None, False),
        ("<answer>B!</answer>", "B", True),
        ("<think><answer>A</answer></think><answer>B</answer>", "B", True),
        ("<think><answer>B</answer></think> Well.", None, False),
        ("<think> I try <answer>B</answer>", None, False),
        ("<answer>A</answer></think>\n<answer>B</answer>", "B", True),
        ("<answer>B or C</answer>", None, False),
        ("<answer>B\n\nB</answer>", "B", True),
        ("<answer>not B</answer>", None, False),
        ("<answer>Option B</answer>", "B", True),
        ("B", "B", False),
        ("(B)", "B", False),
        ("All told.\nAnswer: B", "B", False),
        ("The correct answer is **B**.", "B", False),
        (r"so \boxed{B}", "B", False),
        (r"so \boxed{\text{(B)}}", "B", False),
        ("Answer: A\nNo.\nAnswer: B", "B", False),
        ("B. 50 pC", "B", False),
        ("A: this one is wrong, since the", None, False),
        ("", None, False),
    ],
)
def test_letters(response, letter, format_ok):
    for gold in "ABCD":
        verdict = judge(response, gold, options=OPTIONS)
        assert verdict.reward == float(gold == letter)
        assert verdict.format_ok is format_ok
        assert not verdict.error


def test_the_text_of_an_option_counts_only_where_it_is_of_one():
    same = {"A": "two", "B": "two", "C": "three"}
    assert judge("<answer>three</answer>", "C", options=same).reward == 1.0
    for gold in "AB":
        assert judge("<answer>two</answer>", gold, options=same).reward == 0.0
    assert judge("<answer>three</answer>", "C").reward == 0.0


def test_the_line_format_of_prompts_that_ask_for_a_line():
    for response in ("So.\nAnswer: B", "**Answer:** B"):
        assert judge(response, format="line").format_ok is True
    assert judge("<answer>B</answer>", format="line").format_ok is False
    assert "'Answer: '" in judge("none", format="line").feedback


def test_a_wrong_letter_has_no_feedback():
    assert judge("<answer>A</answer>").feedback == ""


@pytest.mark.parametrize(
    ("gold", "meta", "message"),
    [
        ("", {}, "no letter"),
        ("BC", {}, "no letter"),
        ("é", {}, "no letter"),
        ("E", {"options": OPTIONS}, "none of the options"),
        ("B", {"options": ["x", "y"]}, "map letters"),
        ("B", {"options": {"A": 1}}, "map letters"),
        ("B", {"format": "word"}, "one of tag, line"),
    ],
)
def test_items_that_cannot_be_judged(gold, meta, message):
    verdict = judge("<answer>B</answer>", gold, **meta)
    assert message in verdict.error


def test_the_shipped_forms_agree_with_the_verifier():
    for gold in "ABCD":
        for meta in ({}, {"options": OPTIONS}, {"format": "line"}):
            problem = Problem("p", TURN, gold, "choice", meta)
            verdict = verifiers.verify(problem, choice.gold_response(problem))
            assert (verdict.reward, verdict.format_ok) == (1.0, True)
            for wrong in choice.mutated(problem):
                assert verifiers.verify(problem, wrong).reward == 0.0
