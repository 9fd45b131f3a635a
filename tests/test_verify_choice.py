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
        # Wrappings.
        (r"<answer>\(B\)</answer>", "B", True),
        (r"<answer>\[B\]</answer>", "B", True),
        (r"<answer>$\boxed{B}$. 50 pC</answer>", "B", True),
        (r"<answer>\boxed{\text{B}}</answer>", "B", True),
        (r"<answer>\boxed{\text{\textbf{B}}}</answer>", "B", True),
        (r"The answer is \(\boxed{B}\).", "B", False),
        (r"The answer is $\boxed{\text{B}}$.", "B", False),
        # A line that ends before the letter.
        ("**Answer:**\n\n**B**", "B", False),
        ("The answer is:\n(B)\n\nC is too large.", "B", False),
        ("The answer is:\n\nA. vitamin B\nB. 50 pC", None, False),
        ("Answer:\n\nWe find the charge.\n" r"\boxed{B}", "B", False),
        ("The answer is as follows.\n" r"\boxed{B}", "B", False),
        (r"\boxed{B}" "\nThe answer is A or C.", None, False),
        # Labels with their own text, in other forms.
        ("<answer>(B) 50 pC</answer>", "B", True),
        ("<answer>(B): 50 pC</answer>", "B", True),
        ("<answer>B) 50 pC</answer>", "B", True),
        ("<answer>**B.** 50 pC</answer>", "B", True),
        ("<answer>The answer is B. 50 pC</answer>", "B", True),
        ("<answer>A. vitamin B</answer>", "A", True),
        ("<answer>C. a value</answer>", "C", True),
        # Labels that their text retracts.
        ("<answer>(B) is wrong; choose C</answer>", None, False),
        ("<answer>(B) is wrong</answer>", None, False),
        ("<answer>B. incorrect; the answer is C</answer>", None, False),
        ("<answer>B. This option is incorrect.</answer>", None, False),
        ("<answer>B. Not this one.</answer>", None, False),
        ("<answer>B, but maybe C</answer>", None, False),
        ("<answer>B, or rather C</answer>", None, False),
        ("<answer>B. No, C</answer>", None, False),
        ("<answer>B. So I choose **C**.</answer>", None, False),
        ("<answer>B. On reflection, the answer: A</answer>", None, False),
        ("<answer>B - C</answer>", None, False),
        ("<answer>B. C</answer>", None, False),
        ("<answer>B... wait, C</answer>", None, False),
        ("<answer>B. However, C is better</answer>", None, False),
        ("<answer>B. Also C.</answer>", None, False),
        ("<answer>B, no wait, C</answer>", None, False),
        ("<answer>B. C is also correct.</answer>", None, False),
        ("<answer>B: false. C: true.</answer>", None, False),
        ("<answer>B: no</answer>", None, False),
        ("<answer>B) 50 pC C) a value</answer>", None, False),
        # Text behind the line that claims another letter.
        ("The answer is B.\nBut wait, the answer is C.", None, False),
        ("Answer: B\n\nHmm. The correct answer is C.", None, False),
        ("The answer is B.\n\n" r"\boxed{C}", None, False),
        ("The answer is B.\n\n" r"\boxed{B}", "B", False),
        ("The answer is B.\nOption C is too large.", "B", False),
        # Boxes with more braces, and one that is cut.
        (r"First \boxed{A}. No. \boxed{\text{B. $10^{3}$ pC}}", "B", False),
        (r"\boxed{A}. No. Now \boxed{B", None, False),
        # A tag opened where it should be closed; a letter that no option has.
        ("<answer>B<answer>", "B", False),
        ("<answer>B</answer> or <answer>\n", None, False),
        ("<answer>B</ answer>", "B", True),
        ("<answer>E</answer>", None, False),
        # Thoughts in the prompt's own tag.
        ("<reasoning>A? no.</reasoning>\nB", "B", False),
        ("<reasoning>A? no.</reasoning>\nB: 50 pC", "B", False),
        # Lines and ends of paragraphs.
        ("**Answer:** B) 50 pC", "B", False),
        ("**Final Answer:** B. 50 pC", "B", False),
        ("Hence, the answer is B.", "B", False),
        ("My final answer is B.", "B", False),
        ("The answer should be B", "B", False),
        ("The answer is B because of its charge.", "B", False),
        ("The charge is doubled, so the answer is (B).", "B", False),
        ("The charge is doubled, so the answer is B or C.", None, False),
        ("I thought the answer is A. Now the answer is B.", None, False),
        ("If the answer is B, it is large.\nWe do not know.", None, False),
        ("The charge is doubled, so the answer is a", None, False),
        ("If the answer is B, then it should", None, False),
        ("Therefore, option B is correct.", "B", False),
        ("It is.\n(B) is the correct answer.", "B", False),
        ("The answer is C?\nOption B is correct.", None, False),
        ("A is wrong. B is right. C is right.", None, False),
        ("Answer: B\nI made a mistake. It should be C.", None, False),
        ("Answer: B\nWait, that is not right.\n\nC", None, False),
        ("<answer>- B</answer>", "B", True),
        ("<answer>B is correct</answer>", "B", True),
        ("<answer>B is correct, but C is better</answer>", None, False),
        ("<answer>\u3010B\u3011</answer>", "B", True),
        ("<answer>B. This is false.</answer>", None, False),
        ("<answer>B, which is the wrong one</answer>", None, False),
        ("<answer>B cannot be right</answer>", None, False),
        ("<answer>B. On second thought C</answer>", None, False),
        # Thoughts that are not closed, and thoughts alone.
        ("<reasoning>\nThe answer is B, at first.\nBut it has", None, False),
        ("<reasoning>\nIt is large.\nThe answer is B.", "B", False),
        ("<reasoning>\nThe answer is B.\n</reasoning>", None, False),
        # Headings, a letter in a paragraph of its own, marks without width.
        ("It is.\n\n### Final Answer\n\nB", "B", False),
        ("## Answer\n**B: 50 pC**", "B", False),
        ("The answer is definitely B.", "B", False),
        ("B\n\nThe charge is doubled.", "B", False),
        ("**B**\n\nExplanation: C is right.", None, False),
        ("B\nC\nD", None, False),
        ("<answer>\u200bB\u200b</answer>", "B", True),
        # What speaks of other options, or of nothing, retracts nothing.
        ("<answer>B. 50 pC, not 56 pC</answer>", "B", True),
        ("<answer>B. 50 pC (not vitamin B)</answer>", "B", True),
        ("<answer>B. 50 pC is wrong</answer>", None, False),
        ("<answer>B. 50 pC, which is not correct</answer>", None, False),
        ("<answer>B, because C is incorrect</answer>", "B", True),
        ("<answer>B. 50 pC, since C is wrong</answer>", "B", True),
        ("B\n\nBecause C is wrong.", "B", False),
        ("The answer is B.\nOne might think the answer is C, but it is small.", "B", False),
        ("The answer is B.\nIf the answer is C, the charge is lost.", "B", False),
        ("The answer is B.\nIt is not true that the answer is C.", "B", False),
        ("The answer is B.\nHence it should be V = IR.", "B", False),
        ("The answer is B.\nThe answer should be clear.", "B", False),
        ("The answer is B.\n\nAnswer", "B", False),
        ("The answer is B.\nThe answer is not C", "B", False),
        ("The answer is not B", None, False),
        ("<answer>B</ans", "B", False),
        ("<answer>B</", "B", False),
        # Claims that are none.
        ("I don't think the answer is B.", None, False),
        ("We must decide whether the answer is B.", None, False),
        ("It would be wrong to say that the correct option is B.", None, False),
        ("A is correct.\nB is correct.\nC is wrong.\nD is correct.", None, False),
        ("Option A is correct.\nOption B is correct.", None, False),
        ("<reasoning>\nLet me check.\nOption B is correct.", None, False),
        ("<reasoning>\nFirst guess: the answer is B", None, False),
        ("It is not C, so the answer is B.", "B", False),
        ("<answer>B as is C</answer>", None, False),
        # Explanations that do not.
        ("<answer>B. The current is I = V/R</answer>", "B", True),
        ("<answer>B. A charge moves. A field does not.</answer>", "B", True),
        ("<answer>B. This is the answer: A charge is kept.</answer>", "B", True),
        ("<answer>B. The rate at D is not zero</answer>", "B", True),
        ("<answer>B, not C</answer>", "B", True),
        ("<answer>B, not C; choose D</answer>", None, False),
        ("<answer>B. It has one C atom and no D.</answer>", "B", True),
        ("<answer>B. The product of V and I</answer>", "B", True),
        ("<answer>B. It is not possible to gain energy</answer>", "B", True),
        ("", None, False),
    ],
)
def test_letters(response, letter, format_ok):
    for gold in "ABCD":
        verdict = judge(response, gold, options=OPTIONS)
        assert verdict.reward == float(gold == letter)
        assert verdict.format_ok is format_ok
        assert verdict.answer == letter
        assert not verdict.error


def test_the_text_of_an_option_counts_only_where_it_is_of_one():
    same = {"A": "two", "B": "two", "C": "three"}
    assert judge("<answer>three</answer>", "C", options=same).reward == 1.0
    # Nothing tells A from B, so neither is wrong where the other is right.
    for gold, reward in {"A": 1.0, "B": 1.0, "C": 0.0}.items():
        for text in ("two", "A", "B", "A. two", "B. two"):
            assert judge(f"<answer>{text}</answer>", gold, options=same).reward == reward
    assert judge("<answer>three</answer>", "C").reward == 0.0


SMILES = {"A": "Nc1cncnc1", "B": "O=C=O", "C": "C1CCCCC1", "D": "c1ccccc1"}
UNITS = {"A": r"$28$ $\mathrm{~N} / \mathrm{C}$", "B": r"$38$ $\mathrm{~N} / \mathrm{C}$"}
WORDS = {"A": "B", "B": "C", "C": "A and B", "D": "not possible without work"}
SHORT = {"A": "7", "B": "10²", "C": "102", "D": "-3"}


@pytest.mark.parametrize(
    ("options", "text", "letter"),
    [
        (SMILES, "B. O=C=O", "B"),
        (SMILES, "C. C1CCCCC1", "C"),
        (SMILES, "C. c1ccccc1", None),
        (SMILES, "c1ccccc1", "D"),
        (SMILES, "o=c=o", None),
        ({"A": "c1ccccc1", "B": "O"}, "C1CCCCC1", None),
        ({"A": "5 mV", "B": "7 mV"}, "5 MV", None),
        ({"A": "Law of Mass Action", "B": "DNA"}, "law Of mass action.", "A"),
        ({"A": "S. cerevisiae", "B": "C. elegans", "C": "E. coli"}, "C. elegans (worm)", None),
        ({"A": "*CC*", "B": "CC"}, "CC", "B"),
        ({"A": "*CC*", "B": "CC"}, "*CC*", "A"),
        ({"A": "*CC*", "B": "CC"}, "A: *CC*", "A"),
        ({"A": "*CC*", "B": "CC"}, "B", "B"),
        ({"A": "O=C=O", "B": "CCO"}, "A (O=C=O)", "A"),
        ({"A": "Yes", "B": "No"}, "YES", "A"),
        ({"A": "the Sun", "B": "the Moon"}, "THE SUN", "A"),
        ({"A": "DNA polymerase", "B": "RNA polymerase"}, "dna polymerase", "A"),
        ({"A": "CCN", "B": "NNN"}, "ccn", None),
        ({"A": "CO", "B": "O"}, "Co", None),
        ({"A": "S. cerevisiae", "B": "C. elegans", "C": "E. coli"}, "C. elegans", "B"),
        ({"A": "Nucleus", "B": "Golgi"}, "B (Golgi)", "B"),
        ({"A": "Nucleus", "B": "Golgi"}, "B (Nucleus)", None),
        ({"A": "Nucleus", "B": "Golgi"}, "Golgi (B)", "B"),
        ({"A": "Nucleus", "B": "Golgi"}, "Golgi (A)", None),
        ({"A": "CC(C)(C)O", "B": "CCO"}, "A: CC(C)(C)O, which is the product", "A"),
        ({"A": "CC(C)(C)O", "B": "CCO"}, "**A: CC(C)(C)O**.", "A"),
        ({"A": "Yes", "B": "No"}, "A: Yes, B: No", None),
        ({"A": "x", "B": "y", "I": "z"}, "I, uh, do not know", None),
        ({"A": "x", "B": "y", "I": "z"}, "I, z", "I"),
        ({"A": "x", "B": "y", "I": "z"}, "i.e. B", None),
        (UNITS, r"B. $38$ $\mathrm{~N} / \mathrm{C}$", "B"),
        (UNITS, r"$38$ $\mathrm{~N} / \mathrm{C}$", "B"),
        (UNITS, r"A. $38$ $\mathrm{~N} / \mathrm{C}$", None),
        (WORDS, "C. A and B", "C"),
        (WORDS, "A and B", "C"),
        (WORDS, "B. C", "B"),
        (WORDS, "(B) C", "B"),
        (WORDS, "B: C", "B"),
        (WORDS, "B) C", "B"),
        (WORDS, "A. B", "A"),
        (WORDS, "B. A", None),
        (WORDS, "B", "B"),
        (WORDS, "C", "C"),
        (WORDS, "D. not possible", "D"),
        (WORDS, "B. not possible", None),
        (SHORT, "7", "A"),
        (SHORT, "A. 7", "A"),
        (SHORT, "B. 7", None),
        (SHORT, "10²", "B"),
        (SHORT, "102", "C"),
        (SHORT, "D. -3", "D"),
        (SHORT, "D - -3", "D"),
        (SHORT, "3", None),
    ],
)
def test_the_own_text_of_an_option(options, text, letter):
    for gold in options:
        verdict = judge(f"<answer>{text}</answer>", gold, options=options)
        assert (verdict.reward, verdict.error) == (float(gold == letter), "")


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
        ("", {}, "not one letter"),
        ("BC", {}, "not one letter"),
        ("é", {}, "not one letter"),
        ("E", {"options": OPTIONS}, "none of the options"),
        ("B", {"options": ["x", "y"]}, "map letters"),
        ("B", {"options": {"A": 1}}, "map letters"),
        ("B", {"format": "word"}, "one of tag, line"),
    ],
)
def test_items_that_cannot_be_judged(gold, meta, message):
    verdict = judge("<answer>B</answer>", gold, **meta)
    assert message in verdict.error
    assert verdict.answer == "B"


def test_the_shipped_forms_agree_with_the_verifier():
    for gold in "ABCD":
        for meta in ({}, {"options": OPTIONS}, {"options": WORDS}, {"format": "line"}):
            problem = Problem("p", TURN, gold, "choice", meta)
            verdict = verifiers.verify(problem, choice.gold_response(problem))
            assert (verdict.reward, verdict.format_ok) == (1.0, True)
            for wrong in choice.mutated(problem):
                assert verifiers.verify(problem, wrong).reward == 0.0
