"""The verifier of mathematics: each rule of its table, its limits, and its worker processes."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import signal
import threading
import time
import types

import psutil
import pytest

from mopd_jax import verifiers
from mopd_jax.errors import InputError
from mopd_jax.records import Problem
from mopd_jax.verifiers.mathematics import parsing, rules, spelling, worker
from mopd_jax.verifiers.mathematics.pool import Pool, Undecided


def problem(gold, question="How many?", **meta):
    return Problem("p", ({"role": "user", "content": question},), gold, "math", meta)


def judge(gold, answer, question="How many?", **meta):
    return verifiers.verify(problem(gold, question, **meta), rf"So it is \boxed{{{answer}}}.")


# (case, gold, answer): equal, and refused by graders that strip delimiters, compare text, or
# lose their time limit outside of the main thread.
WRONGLY_REFUSED_ELSEWHERE = [
    ("root taken out", r"\sqrt{8}", r"2\sqrt{2}"),
    ("root in plain text", "sqrt(8)", "2 sqrt(2)"),
    ("order of a sum", "x^2+1", "1+x^2"),
    ("power carried out", "2^{10}", "1024"),
    ("power without braces", "2^10", "1024"),
    ("order of a set", r"\{1,2\}", r"\{2,1\}"),
    ("order of a set without escapes", "{1,2}", "{2,1}"),
    ("two ways to write the exponential", "e^2", r"\exp(2)"),
    ("exponential in plain text", "e^2", "exp(2)"),
    ("fraction without braces", r"\frac12", r"\frac{1}{2}"),
    (
        "kinds of matrix",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
    ),
    ("slash for a fraction", r"\frac{1}{2}", "1/2"),
    ("decimal for a fraction", r"\frac{1}{2}", "0.5"),
    ("decimal zero", "3", "3.0"),
    ("thousands separator", "1000", "1,000"),
    ("name in front", "5", "x=5"),
    ("root, as text compared", r"\sqrt{8}", "2√2"),
]
# (case, gold, answer): different, and accepted by graders that delete white space or signs.
WRONGLY_ACCEPTED_ELSEWHERE = [
    ("mixed number", "11/2", "1 1/2"),
    ("mixed number as gold", "1 1/2", "11/2"),
    ("percent sign", "50", r"50\%"),
    ("numbers side by side", "6", "5 1"),
    ("product of numbers side by side", "0", "0.00.01"),
    ("equations without real solutions", "x^2+1=0", "x^2+2=0"),
    ("small numbers", "10^{-7}", "0.0000002"),
    ("very small numbers", "10^{-20}", "10^{-21}"),
    ("case of a variable", r"\pi R^2", r"\pi r^2"),
    ("variable that looks like a unit", "2m", "2"),
    ("ends of an interval", "(0,1)", "[0,1]"),
]
EQUAL = [
    ("1/2", "2/4"),
    (".5", "0.5"),
    ("2e3", "2000"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    (r"10^6", "1,000,000"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    ("3/2", "1 1/2"),
    ("-1 1/2", "-1.5"),
    (r"\frac{1}{3}", r"0.\overline{3}"),
    ("1/3", "0.333333"),
    (r"\frac{\sqrt{2}}{2}", "0.707107"),
    (r"50\%", "0.5"),
    (r"0\%", "0"),
    (r"\frac{3}{4}", r"75\%"),
    ("90", r"90^\circ"),
    (r"90^{\circ}", "90 degrees"),
    (r"5 \text{ cm}", "5"),
    ("5", r"5\text{ cm}"),
    (r"5\text{ m}", "5 m"),
    (r"12 \text{ cm}^2", r"12\,\mathrm{cm}^2"),
    (r"6\text{ square units}", "6"),
    (r"\$5", "5"),
    ("2e", r"2\mathrm{e}"),
    ("A^T", r"A^\mathrm{T}"),
    ("10", r"10\,\mathrm{N}/\mathrm{C}"),
    ("5 dollars", r"\$5"),
    ("x=5", "5"),
    ("f(x)=x^2", "x^2"),
    ("(x,y)=(1,2)", "(1,2)"),
    (r"x \in \{1,2\}", r"\{1,2\}"),
    ("3", "2+1=3"),
    ("x^2+1=0", "2x^2=-2"),
    ("y=2x", "2x=y"),
    ("1, 2", r"x=1 \text{ or } x=2"),
    ("a=1, b=2", "b=2, a=1"),
    (r"\pm 2", "2,-2"),
    (r"1\pm\sqrt{2}", r"1+\sqrt2,1-\sqrt2"),
    ("5", r"\{5\}"),
    ("(1,2)", "1, 2"),
    (r"\left(\frac12,3\right)", "(0.5, 3)"),
    (r"\langle 1,2\rangle", "(1,2)"),
    (r"(1,\infty)", "x>1"),
    (r"(-\infty,1)\cup(2,3)", r"(2,3)\cup(-\infty,1)"),
    (r"\emptyset", r"\{\}"),
    (r"\text{Yes}", "yes"),
    (r"\text{No solution}", "no solution"),
    (r"\text{(C)}", "C"),
    ("ab", "ba"),
    (r"\ln 2", r"\log 2"),
    ("2", r"\log 100"),
    ("i", r"\sqrt{-1}"),
    (r"e^{i\pi}", "-1"),
    ("-3", "−3"),
    (r"2\pi", "2π"),
    (r"$5$", "5."),
    ("-896*x**3 + 2*x**10", "2x^{10}-896x^3"),
    ("(x-1)(x+1)", "x^2-1"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"),
    ("5", r"5\text{ apples}"),
    (r"\{1,2\}", r"\{1,2,2\}"),
    (r"\{1,2\}", r"\{2,1,\frac{2}{1}\}"),
    ("43_6", "(43)_{6}"),
    ("27", "27_{10}"),
    ("3:4", "6 : 8"),
    ("1:2:3", "2:4:6"),
    ("12:30", "12:30"),
    ("x=1,y=2", "y=2, x=1"),
    ("(1,2)", "x=1, y=2"),
    ("x=1, x=2", "2, 1"),
    (r"6.02\times 10^{23}", "6.02e23"),
    ("5", r"\approx 5"),
    ("5", "\u2248 5"),
    ("5", r"5\text{ meters per second}"),
    ("5", r"5\text{ dollars per ticket}"),
    ("5", r"5\text{ ft}^2"),
    (r"5\text{ million}", "5 million"),
    (r"5\text{ red balls}", r"5\text{ Red balls}"),
    (r"\frac{\ln 3}{\ln 2}", r"\log_2 3"),
    ("3", r"\log_2 8"),
    ("1", r"\int_0^1 2x\,dx"),
    ("15", r"\sum_{k=1}^5 3"),
    (r"\sin^2(10)", r"\sin^2 10"),
    (r"8:00\text{ AM}", "8:00 AM"),
    (r"8:00\text{ AM}", r"8:00\text{ a.m.}"),
    (r"8:00\text{ AM}", "8:00"),
    (r"3:4\text{ cm}", "6:8"),
    ("Yes", "yes"),
    ("No", "no"),
    ("kT", "Tk"),
    ("42", r"\text{42 cm}"),
    ("42", r"\text{42}"),
    ("42", r"\textbf{(B) }42"),
    ("42", r"\textbf{(B)}\ 42"),
    ("42", r"\text{(B) } 42"),
    ("42", r"\text{(B) 42}"),
    ("1,2", r"\text{1 and 2}"),
    (r"5\text{ or more}", r"\text{5 or more}"),
    (r"5\text{ kilograms}", r"5\text{ kg}"),
    (r"5\text{ seconds}", r"5\text{ s}"),
    (r"5\text{ meters per second}", r"5\text{ m/s}"),
    (r"5\text{ square centimeters}", r"5\text{ cm}^2"),
    (r"5\text{ liters}", r"5\text{ L}"),
    (r"2-\sqrt{3}", r"\tan 15^\circ"),
    (r"\cos 60^\circ", r"\sin(30^\circ)"),
    (r"\cos 60^\circ", "1/2"),
    (r"\cos 60^\circ", r"\cos^2 45^{\circ}"),
    (r"\sin 20^\circ", r"2\sin 10^\circ\cos 10^\circ"),
    (r"\cos 20^\circ", r"\cos\frac{\pi}{9}"),
    (r"\frac18", r"\cos 20^\circ \cdot \cos 40^\circ \cdot \cos 80^\circ"),
    (r"\frac{1}{2}", r"\sin\left(\frac{60}{2}\right)^\circ"),
    (r"-1\pm\sqrt{3}", r"-1+\sqrt3, -1-\sqrt3"),
    (r"[1,2]", r"1\le x\le 2"),
    (r"x\in[1,2]", r"[1,2]"),
    (r"[1,2]\cup[2,3]", "[1,3]"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"x<-1\text{ or }x>1", r"(-\infty,-1)\cup(1,\infty)"),
    (r"(-\infty,-1]\cup[1,\infty)", r"x\leq -1 or x\geq 1"),
    (r"x<-1\text{ or }x>1", r"x>1\text{ or }x<-1"),
    (r"x<-1\text{ or }x>1", "x<-1, x>1"),
    (r"(-\infty,-\sqrt2)\cup(\sqrt2,\infty)", r"x<-\sqrt{2}\text{ or }x>\sqrt{2}"),
    (r"x>-1\text{ and }x<2", "-1<x<2"),
    ("(-1,2)", r"x>-1\text{ and }x<2"),
    ("(-1,2]", r"x\le 2, x>-1"),
]
EQUAL += [
    # A thousands comma beside something else.
    ("1234", r"\$1,234"),
    ("1234", r"1,234\text{ dollars}"),
    ("1234", "1,234 cm"),
    ("1234", r"1,234^\circ"),
    ("1234", r"\text{\$1,234}"),
    (r"\$1,234", "1234"),
    (r"2,500\%", r"2500\%"),
    (r"1000\pi", r"1,000\pi"),
    (r"10,000\sqrt{2}", r"10000\sqrt2"),
    # Pairs and lists with three digits.
    ("(0,100)", "(0,10^2)"),
    ("(3,125)", "x=3, y=125"),
    ("(5,100,200)", "(5, 10^2, 200)"),
    (r"\{10,100\}", r"\{10,\,100\}"),
    ("10, 100, 1000", r"10,\,100,\,1000"),
    ("AC", "CA"),
    ("A, C", "C, A"),
    ("B,D,A,C", "(B, D, A, C)"),
    ("[1,2,3]", "1,2,3"),
    # Names of functions in words.
    (r"\ln 2", r"\mathrm{ln}\,2"),
    (r"\ln 2", r"\operatorname{ln} 2"),
    (r"\ln 2", r"\text{ln}(2)"),
    (r"\log_e 2", r"\ln 2"),
    (r"\arctan 2", r"\operatorname{arctan}(2)"),
    ("e^2", r"\text{e}^2"),
    # Decoration.
    ("5", r"\boldsymbol{5}"),
    ("5", r"\textcolor{blue}{5}"),
    ("5", r"{\bf 5}"),
    ("5", r"\text{Answer: }5"),
    ("5", "**5**"),
    ("5", "5\\ "),
    (r"\frac34", r"\mathbf{\frac34}"),
    ("90", r"90\text{°}"),
    ("12:30", "12{:}30"),
    (r"\{1,2\}", r"\lbrace 1,2\rbrace"),
    ("120", r"{10 \choose 3}"),
    (r"0.\overline{3}", r"0.\bar 3"),
    ("f'(x)", r"f^{\prime}(x)"),
    (r"\sqrt2", "2^{0.5}"),
    (r"2\sqrt2", "2^{1.5}"),
    # Inequalities from above, and a union of such.
    ("1<x<3", "3>x>1"),
    (r"(1,3]", r"3 \ge x > 1"),
    (r"[0,1)\cup(2,3]", r"0\le x<1 \text{ or } 2<x\le3"),
    ("60 mph", r"60\text{ miles per hour}"),
    # Words.
    (r"\text{ellipse}", r"\text{an ellipse}"),
    (r"\text{DNE}", r"\text{does not exist}"),
    (r"\text{no solution}", r"\text{no solutions}"),
    ("B", r"\textbf{(B) }42"),
    (r"\text{(B)}", r"\textbf{(B) }42"),
    ("x", r"\textbf{(B) }x"),
    ("N", r"\textbf{(C) }N"),
    ("30", r"30\text{ sec}"),
    ("3 sec", "3"),
    (r"\sec x", "sec x"),
    (r"x \ne 2", r"x \not= 2"),
    (r"\bar{x}", r"\bar x"),
    (r"30\text{ sec}", "30"),
    (r"10\text{ ft/sec}", r"10\text{ ft}/\text{sec}"),
    (r"\sec x", r"\operatorname{sec} x"),
    (r"(0,100\pi)", r"(0, 100\pi)"),
    (r"\langle 3,100\rangle", "(3,100)"),
    ("nRT", "nTR"),
    ("qvB", "q B v"),
    ("A > B > C", r"\text{A} > \text{B} > \text{C}"),
    (r"\frac12<a<\frac32", r"\frac32>a>\frac12"),
    (r"\frac{f^\prime}{g}", r"\frac{f^{\prime}}{g}"),
    (r"\log_{e^2} x", r"\frac{\ln x}{2}"),
    ("e^{0.1t}", "e^{t/10}"),
    ("Circle", r"\text{a circle}"),
]
DIFFERENT = [
    ("1/3", "0.33"),
    ("2/3", "0.666666"),
    ("5", "5.0000001"),
    (r"3\mathbf{i}", "3"),
    (r"5\mathbf{x}+2\mathbf{y}", r"5\mathbf{x}+2"),
    ("2", r"2\mathrm{e}"),
    ("1/2", "0.5000001"),
    (r"\frac{\sqrt{2}}{2}", "0.7071"),
    ("0.0000001", "0.0000002"),
    ("1000", "1, 000"),
    (r"5 \text{ cm}", r"5\text{ m}"),
    ("x=5", "y=5"),
    ("3", "2+1=4"),
    ("(1,2)", "(2,1)"),
    ("(1,2,3)", "(1,3,2)"),
    ("(2,1)", "(3,1)"),
    (r"\{1,2\}", "(1,2)"),
    ("1,2", "1,2,2"),
    ("1,1,2", "1,2,2"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    ("2", r"\{2,2\}"),
    ("43_6", "43_7"),
    ("43_6", "43"),
    ("43", "43_6"),
    ("27", "43_6"),
    ("1010_2", "1010"),
    ("3:4", "3/4"),
    ("3/4", "3:4"),
    ("12/30", "12:30"),
    ("1/6", "1:2:3"),
    ("1:2:3", "1:3:2"),
    ("12:30", "2:5"),
    ("0:1", "1:0"),
    ("a=2,b=5", "5,2"),
    ("a=2,b=5", "a=5,b=2"),
    ("x=1,y=2", "(1,2)"),
    ("2,5", "a=5,b=2"),
    (r"6.02\times 10^{23}", "6.02e22"),
    (r"\{\sqrt2, \sqrt3\}", r"\{\sqrt2, \sqrt5\}"),
    (r"\text{Yes}", "No"),
    ("r", "R"),
    ("5", "5 garbage"),
    ("5", "5 ]"),
    ("1", r"\infty"),
    (r"\sqrt{x^2}", "x"),
    ("x+1", "x-1"),
    ("5", r"5\text{ million}"),
    ("5", r"5\text{ thousand}"),
    ("5", r"5\text{ dozen}"),
    ("5", r"5\text{ million dollars}"),
    ("5", r"5\text{0}"),
    ("5", r"5\text{ red balls}"),
    ("1", r"1\text{ or more}"),
    ("6", r"6\text{ not}"),
    ("6", r"6\text{ is wrong}"),
    ("3", r"3\text{ squared}"),
    ("3", r"3\mathrm{x}"),
    ("1, 2", r"1, 2\text{ million}"),
    ("5", r"\log_2 8"),
    ("x^2 + 3", r"x^{2 3}"),
    ("2", "2, 2"),
    ("2", "2,2,2"),
    ("2", r"2\text{ and }2"),
    ("2, 2", "2"),
    (r"\sqrt{2}", r"\sqrt{2},\sqrt{2}"),
    (r"\sqrt{2}", r"\{\sqrt{2},\sqrt{2}\}"),
    (r"\sqrt{2},\sqrt{2}", r"\sqrt{2}"),
    ("1", "[1,1]"),
    (r"8:00\text{ AM}", r"8:00\text{ PM}"),
    ("8:00 AM", "8:00 PM"),
    (r"8:00\text{ AM}", "9:00 AM"),
    (r"3:4\text{ cm}", r"3:4\text{ kg}"),
    (r"43_6\text{ cm}", r"43_6\text{ kg}"),
    ("ab", "AB"),
    ("kT", "Kt"),
    ("xY", "Xy"),
    ("a b", "A B"),
    ("42", r"\textbf{(B) }43"),
    ("5", r"\text{5 or more}"),
    ("5", r"\text{5 million}"),
    ("510", r"\text{5 10}"),
    (r"5\text{ kilograms}", r"5\text{ g}"),
    (r"5\text{ seconds}", r"5\text{ m}"),
    (r"5\text{ m/s}", r"5\text{ meters}"),
    ("5s", r"5\text{ seconds}"),
    (r"\cos 20^\circ", r"\cos 20"),
    (r"\cos 20", r"\cos 20^\circ"),
    (r"\tan 15^\circ", r"2+\sqrt{3}"),
    (r"2\cos 20^\circ", r"\cos 40^\circ"),
    ("2", "5 1"),
    ("3x^2", "x^2 3"),
    (r"\log_2 3", r"\log_3 2"),
    (r"\int_0^1 2x\,dx", "2"),
    (r"\cos^2 1", r"\cos 1"),
    (r"x<-1\text{ or }x>1", r"y<-1\text{ or }y>1"),
    (r"x<-1\text{ or }x>1", r"x<-1\text{ and }x>1"),
    ("-1<x<2", r"x>-1\text{ or }x<2"),
    (r"x<-1\text{ or }x>1", r"(-\infty,-1)\cup(2,\infty)"),
    (r"x<-1\text{ or }x>1", r"(-\infty,-1]\cup[1,\infty)"),
    ("1<x<3", "3>x>2"),
    ("1<x<3", r"3\ge x>1"),
    # A pair is not a number with a comma.
    ("(0,100)", "100"),
    ("(0,180)", r"180^\circ"),
    ("(3,125)", "3125"),
    ("3125", "(3,125)"),
    # Orders of letters, and words.
    ("BACD", "ABCD"),
    ("WLLW", "LWLW"),
    ("DNE", "END"),
    ("no", "on"),
    ("B,D,A,C", "A,B,C,D"),
    # Exact numbers, however close.
    (r"\frac{3^{40}+1}{2\cdot 3^{40}}", r"\frac{3^{40}-1}{2\cdot 3^{40}}"),
    ("2^{-100}", r"\frac{1}{2^{100}+1}"),
    (r"1-\frac{1}{2023!}", r"1-\frac{1}{2022!}"),
    # Denied relations.
    ("2", r"x \not= 2"),
    ("(0,1)", r"x \not\in (0,1)"),
    # An interval is not a list of its ends.
    ("-2, 1", "[-2,1]"),
    ("[3,5]", "3,5"),
    (r"\emptyset", r"\{\emptyset\}"),
    # Derivatives, minutes.
    ("f(x)", "f'(x)"),
    (r"30^\circ", "30'"),
    ("5", r"5\text{ mn}"),
    ("5", r"5\text{ doubled}"),
    ("B", r"\textbf{(C) }42"),
    ("B", r"\text{(B) or (C)}"),
    ("B", r"\text{(B) is wrong}"),
    (r"\textbf{(B)}", r"\textbf{(A) }B"),
    # Letters that are not articles, and primes in their places.
    ("x", "a x"),
    ("b", r"a\,b"),
    ("A'B+C", "AB'+C"),
    ("f'(x)+g(x)", "f(x)+g'(x)"),
    # Commas of pairs.
    (r"(0,100\pi)", r"100\pi"),
    (r"10200\sqrt3", r"(10,200\sqrt3)"),
    (r"\langle 3,100\rangle", "3100"),
    ("500x", "0,500x"),
    (r"2\sqrt2", "2^{1.6}"),
]


# An example of the table in docs/verifiers.md: a gold answer, and right or wrong answers.
EXAMPLE = re.compile(r"`([^`]+)` ([=≠]) (`[^`]+`(?:, `[^`]+`)*)(?:; |$)")


def documented():
    """(gold, sign, answer) of every example of the table in docs/verifiers.md."""
    docs = pathlib.Path(__file__).parents[1] / "docs/verifiers.md"
    table = docs.read_text().partition("| case | rule | examples |\n|---|---|---|\n")[2]
    for row in table.partition("\n\n")[0].split("\n"):
        _, _, examples = (cell.strip() for cell in row.strip("|").split("|"))
        assert examples and not EXAMPLE.sub("", examples), f"no test can read: {row}"
        for gold, sign, answers in EXAMPLE.findall(examples):
            yield from ((gold, sign, answer) for answer in re.findall("`([^`]+)`", answers))


@pytest.mark.parametrize(("gold", "sign", "answer"), list(documented()))
def test_the_documented_rules(gold, sign, answer):
    verdict = judge(gold, answer)
    assert (verdict.reward, verdict.error) == (float(sign == "="), "")


@pytest.mark.parametrize(("case", "gold", "answer"), WRONGLY_REFUSED_ELSEWHERE)
def test_right_answers_that_other_graders_refuse(case, gold, answer):
    del case
    assert judge(gold, answer).reward == 1.0
    assert judge(answer, gold).reward == 1.0


@pytest.mark.parametrize(("case", "gold", "answer"), WRONGLY_ACCEPTED_ELSEWHERE)
def test_wrong_answers_that_other_graders_accept(case, gold, answer):
    del case
    verdict = judge(gold, answer)
    assert (verdict.reward, verdict.error) == (0.0, "")


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold, answer):
    verdict = judge(gold, answer)
    assert (verdict.reward, verdict.error, verdict.format_ok) == (1.0, "", True)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    verdict = judge(gold, answer)
    assert (verdict.reward, verdict.error) == (0.0, "")


def test_a_percent_sign_may_go_where_the_question_has_one():
    assert judge("50", r"50\%", "What percent is it?").reward == 1.0
    assert judge(r"50\%", "50", "Give it in %.").reward == 1.0
    assert judge("50", r"50\%", percent=True).reward == 1.0
    assert judge("50", r"50\%", "What percent is it?", percent=False).reward == 0.0


@pytest.mark.parametrize(
    ("response", "content", "closed", "plain"),
    [
        (r"\boxed{5}", "5", True, True),
        (r"\boxed {5}", "5", True, True),
        (r"\boxed{1} then \boxed{2}", "2", True, True),
        (r"\boxed{2} then \boxed{", "", False, True),
        (r"\boxed{2", "", False, True),
        (r"\boxed{ never closed, \boxed{3}", "3", True, True),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}", True, True),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", True, True),
        (r"\boxed{\frac{1}{2}} and {text", r"\frac{1}{2}", True, True),
        (r"\boxed 5", "5", True, False),
        (r"$\boxed 12$.", "12", True, False),
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}", True, False),
        (r"\fbox{7}", "7", True, False),
        (r"\boxedness{7}", None, None, None),
        ("7", None, None, None),
    ],
)
def test_the_last_box(response, content, closed, plain):
    box = parsing.last_box(response)
    assert box == (None if content is None else (content, closed, plain))


@pytest.mark.parametrize(
    ("response", "feedback"),
    [
        ("It is 5.", rules.NO_BOX),
        (r"\boxed{5", rules.OPEN_BOX),
        (r"\boxed{}", rules.EMPTY_BOX),
        (r"\boxed{" + "1" * 3000 + "}", rules.LONG_BOX),
    ],
)
def test_feedback_speaks_of_the_format_only(response, feedback):
    verdict = verifiers.verify(problem("5"), response)
    assert (verdict.reward, verdict.feedback, verdict.format_ok) == (0.0, feedback, False)
    assert not verdict.feedback_has_gold
    assert not verifiers.verify(problem("5"), r"\boxed{6}").feedback


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"<think>\boxed{6}</think>\boxed{5}", 1.0),
        (r"\boxed{6}</think>\boxed{5}", 1.0),
        (r"<think>\boxed{5}</think> So.", 0.0),
        (r"<think>It may be \boxed{5}", 0.0),
        (r"\boxed{5}<think>or \boxed{6}", 1.0),
    ],
)
def test_thoughts_are_not_read(response, reward):
    verdict = verifiers.verify(problem("5"), response)
    assert (verdict.reward, verdict.format_ok) == (reward, bool(reward))
    assert verdict.answer == ("5" if reward else None)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("0.50", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        ("1{,}000", "1000"),
        ("x + 1", "x+1"),
        (r"2 \sqrt{2}", r"2\sqrt{2}"),
        (r"\textbf{(B) }42", "42"),
        ("6", "6"),
        ("", None),
        ("1" * 3000, None),
    ],
)
def test_the_answer_is_of_the_response_whatever_the_gold(content, answer):
    for gold in ("5", r"2\sqrt{2}", "", r"p \to q"):  # The last two are errors.
        assert judge(gold, content).answer == answer
    assert verifiers.verify(problem("5"), "It is 5.").answer is None


def test_an_answer_that_is_not_decided_is_known(monkeypatch):
    def undecided(request):
        raise Undecided("busy")

    monkeypatch.setattr(rules, "POOL", types.SimpleNamespace(ask=undecided))
    verdict = judge("x^2", "2x")
    assert (verdict.error, verdict.answer) == ("busy", "2x")


def test_boxes_in_another_form_are_read_but_are_not_the_format():
    for response in (r"\boxed 5", r"\fbox{5}"):
        verdict = verifiers.verify(problem("5"), response)
        assert (verdict.reward, verdict.format_ok) == (1.0, False)


def test_an_unreadable_gold_is_an_error_and_an_unreadable_answer_is_wrong():
    assert "gold" in judge(r"p \to q", "q").error
    assert judge(r"p \to q", r"p \to q").reward == 1.0
    assert judge("", "5").error
    verdict = judge("x", r"x \to \& ]")
    assert (verdict.reward, verdict.error) == (0.0, "")


@pytest.mark.parametrize(
    "gold",
    [
        "5",
        r"10^{10^{10}}",
        r"\log_2 3",
        r"\int_0^1 2x\,dx",
        r"\cos^2 1",
        r"\{1, \sqrt2\}",
        "a=1, b=x",
    ],
)
def test_a_gold_is_usable_if_it_can_be_read_or_takes_too_long(gold):
    assert rules.unusable(problem(gold)) == ""
    assert judge(gold, gold).reward == 1.0


@pytest.mark.parametrize("gold", ["", r"p \to q", r"1, p \to q", r"x^2 3", r"\frac{1"])
def test_a_gold_that_cannot_be_read_is_unusable(gold):
    assert "gold" in rules.unusable(problem(gold))


@pytest.mark.parametrize(
    "text",
    [
        r"\text{" + "1,2," * 400 + "x}",
        r"\text{" + "1,000," * 300 + "x}",
        r"\text{" + "1 and " * 300 + "x}",
        r"\text{5 " + "a " * 900 + "1}",
        "1<" * 900,
        " , " * 600 + "x<1",
        r"\sin" + "^{2}" * 400,
        r"\sin x" + "  " * 900,
        r"5 " + r"\text{ a} " * 180 + "!",
        r"5" + r"\text{a} ^2 " * 180 + "!",
        r"\{" + ",".join(map(str, range(500))) + r"\}",
        r"\{" + ",".join(f"{n}:7" for n in range(350)) + r"\}",
        "1,234" * 400,
        r"\text{ln}" * 250,
        "{1 " * 600,
        "5 " + "~" * 1900 + "!",
        "(" + r"\," * 900 + "x",
        "(" * 1900,
        r"\text{" + "1, and " * 250 + "x}",
        r"\text{" + "1,234, or " * 180 + "x}",
        r"\text{" + "1, and 11 and " * 120 + "x}",
    ],
)
def test_no_text_takes_long_in_this_process(text, monkeypatch):
    monkeypatch.setattr(rules, "POOL", types.SimpleNamespace(ask=lambda _: 1 / 0))
    begun = time.process_time()
    cleaned = spelling.clean(text)
    worker._SCRIPTS.sub(" ", text)
    for gold in ("7", r"\{1,2\}", r"\sqrt{7}"):
        with contextlib.suppress(ZeroDivisionError):
            rules.same(gold, cleaned)
    parsing.last_box(r"\boxed1" * 15_000)
    assert time.process_time() - begun < 1.0


def test_verdicts_are_the_same_in_every_thread():
    rows = [
        ("0.5", r"\frac12"),
        (r"\sqrt8", r"2\sqrt2"),
        ("x+1", "x-1"),
        ("x^2-1", "(x-1)(x+1)"),
    ]
    here = [judge(*row).reward for row in rows] * 3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        there = list(pool.map(lambda row: judge(*row).reward, rows * 3))
    assert here == there == [1.0, 1.0, 0.0, 1.0] * 3


@pytest.fixture
def pool():
    made = Pool(pathlib.Path(worker.__file__), size=2, cpu_seconds=0.5, wall_seconds=30.0)
    yield made
    made.close()


def children():
    return {p.pid for p in psutil.Process().children(recursive=True)}


ENDLESS = [r"\sum_{k=1}^{10000000000} k^{k}", "100000000!"]


def test_what_never_ends_is_wrong_from_any_thread_and_leaves_nothing(pool, monkeypatch):
    monkeypatch.setattr(rules, "POOL", pool)
    before = children()
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc") else 0
    found = []
    thread = threading.Thread(target=lambda: found.extend(judge("2x", a) for a in ENDLESS))
    thread.start()
    thread.join()
    assert len(found) == len(ENDLESS)
    for verdict in found:
        assert (verdict.reward, verdict.error) == (0.0, "")
    # The answer is not at fault where the gold answer meets the limit, too.
    assert judge(ENDLESS[1], "2x").error == "not decided in 0.5 s of CPU time"
    assert judge(*ENDLESS).error == "not decided in 0.5 s of CPU time"
    assert judge(r"\sqrt8", r"2\sqrt2").reward == 1.0  # In a new worker.
    pool.close()
    assert children() == before
    if files:
        assert len(os.listdir("/proc/self/fd")) == files


def test_a_killed_worker_is_an_error_and_is_replaced(pool):
    pair = {"pairs": [[r"\sqrt8", r"2\sqrt2"]]}
    before = children()
    assert pool.ask(pair) == {"outcomes": ["equal"]}
    (child,) = children() - before
    os.kill(child, signal.SIGKILL)
    with pytest.raises(Undecided, match="ended with status -9"):
        pool.ask(pair)
    assert pool.ask(pair) == {"outcomes": ["equal"]}


def test_a_stopped_worker_meets_the_wall_limit():
    slow = Pool(pathlib.Path(worker.__file__), size=1, cpu_seconds=5.0, wall_seconds=0.5)
    before = children()
    pair = {"pairs": [["x", "x"]]}
    slow.ask(pair)
    (child,) = children() - before
    os.kill(child, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(Undecided, match="overloaded"):
        slow.ask(pair)
    assert time.monotonic() - begun < 10
    slow.close()
    assert children() == before


def test_a_worker_that_cannot_start_says_so(tmp_path):
    program = tmp_path / "worker.py"
    program.write_text("import json; print(json.dumps({'broken': 'no such package'}))")
    broken = Pool(program, size=1, cpu_seconds=1.0, wall_seconds=5.0)
    with pytest.raises(Undecided, match="did not start: no such package"):
        broken.ask({})
    program.write_text("raise SystemExit(3)")
    with pytest.raises(Undecided, match="did not start .status 3."):
        broken.ask({})


def test_a_request_larger_than_a_pipe_is_refused(pool):
    with pytest.raises(Undecided, match="bytes"):
        pool.ask({"pairs": [["1" * 70_000, "2"]]})


# What sympy's reader of strings would run as Python.
PYTHON = [
    "__import__('os').system('touch {path}')",
    r"\text{{__import__('os').system('touch {path}')}}",
    r"\operatorname{{eval}}(open('{path}','w'))",
    r"\{{open('{path}', 'w')\}}",
    r"\mathrm{{exec}}(\text{{import os}})",
    "x = open('{path}','w')",
    r"\begin{{pmatrix}}open('{path}','w')\end{{pmatrix}}",
    r"S(open('{path}','w'))",
    r"lambda: open('{path}','w')",
]


@pytest.mark.parametrize("text", PYTHON)
def test_no_text_is_run_as_python(text, tmp_path):
    path = tmp_path / "written"
    for gold in ("x", text.format(path=path)):
        judge(gold, text.format(path=path) + " ")
        judge(gold + "+1", text.format(path=path))
    assert not path.exists()


def test_the_worker_refuses_what_no_formula_needs():
    for event, args in [
        ("compile", (b"1+1", "<string>")),
        ("compile", ("1+1", "<lambdifygenerated-1>")),
        ("open", ("x", "w", os.O_WRONLY | os.O_CREAT)),
        ("os.system", (b"ls",)),
        ("subprocess.Popen", ("ls", [], None, None)),
        ("socket.connect", (None, None)),
        ("ctypes.dlopen", ("libc.so.6",)),
    ]:
        with pytest.raises(PermissionError):
            worker._refuse(event, args)
    worker._refuse("open", ("x", "r", os.O_RDONLY))
    worker._refuse("compile", (b"", "/lib/sympy/x.py"))
    for text in ("__import__('os')", "x", "1+1", "", ".", "e5"):
        with pytest.raises(ValueError, match="not a number"):
            worker._read_number(text)


def test_a_missing_package_is_said_once_and_early(monkeypatch):
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"math-verify.*mopd_jax\[verifiers\]"):
        verifiers.check([problem("5")])


def test_an_unknown_verifier_is_said_early():
    with pytest.raises(InputError, match="did you mean math"):
        verifiers.check([Problem("p", (), "5", "maths")])
