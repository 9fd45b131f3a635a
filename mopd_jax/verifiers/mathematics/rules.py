r"""Mathematical answers: the last \boxed{} against the gold answer, by exact rules.

    question                   policy
    -------------------------  -----------------------------------------------------------------
    where the answer stands    last \boxed{...} that stands in no other box; \boxed 5 and
                               \fbox{5} are read, but are not the asked format; no box, an empty
                               box or one whose braces do not balance: no answer
    thoughts                   not read: up to the last </think>, or from an unclosed <think> on
    integers, decimals         exact rational numbers: 3.0 = 3, 0.5 = 1/2, .5 = 0.5, 2e3 = 2000
    fractions                  1/2 = 2/4 = \frac12 = \dfrac{1}{2} = 0.5
    mixed numbers              1\frac{1}{2} = 1 1/2 = 3/2; never 11/2
    digits with a base         43_6 = 43_6 = (43)_6, not 43_7, not 43, not 27 (no base is
                               converted or supplied); 27_{10} = 27
    ratios                     3:4 = 6:8, not 3/4; what may be a time of day, as 12:30, has the
                               same terms
    scientific notation        6.02\times 10^{23} = 6.02e23
    repeating decimals         0.\overline{3} = 1/3
    numbers, exact             equal or not, however close: 1 - 2^{-100} is not 1
    rounded decimals           right with six decimals or more, if the other side can be no
                               decimal and both agree to six and to one part in a million
    thousands separators       1,000 = 1{,}000 = 1\,000 = 1000, also in \$1,000; `1, 000` is
                               a list, (1,000) a pair
    percent                    50\% = 1/2; 50\% = 50 only where the question speaks of percent
    units, degrees, currency   may be missing on one side; where both have one, the names must
                               agree (kilograms and kg do); nothing is converted; a bare single
                               letter is a variable
    degrees in sin, cos, tan   part of the formula: \cos 60^\circ = 1/2, not \cos 60
    time of day                8:00 AM = 8:00\text{ a.m.} = 8:00, not 8:00 PM
    text round the answer      \text{42 cm} = 42 = \textbf{(B) }42, or B if the gold is B
    words behind a number      a unit if all are listed units or it is one plain noun; else
                               part of the answer: 5\text{ million}, 5\text{ or more} are not 5
    \approx in front           means nothing: \approx 5 = 5
    x = 5                      = 5, as f(x) = x^2 is x^2 and x \in S is S; x = 5 is not y = 5
    equations                  equal if they differ by a constant factor: x^2+1=0 is 2x^2=-2,
                               not x^2+2=0; against a value its right side counts: m+n=5 is 5
    lists and sets             {1,2} = {2,1} = 1,2 = "1 and 2"; \pm 2 = 2,-2; {5} = 5;
                               {1,2,2} = {1,2}, but the lists 1,2,2 and 1,2 differ; no number
                               is a list, tuple, set or interval of two parts: 2 is not 2,2;
                               capitals not in their order are a ranking: B,D,A,C is not A,B,C,D
    lists with names           a=2, b=5 is b=5, a=2; if the gold has names, so has the answer;
                               a gold 2, 5 or (2,5) is a=2, b=5 in its order
    tuples and intervals       in order, with the same brackets: (0,1) is not [0,1]; a bare list
                               may stand for a tuple in its order, and for [1,2,3], not [1,2]
    inequalities               x > 1 = (1,\infty); 3>x>1 = (1,3); x<0 or x>1 is a union, x>0
                               and x<1 an interval
    letters                    case counts in single letters (r is not R) and in products of
                               bare ones (ab = ba, not AB; BACD is no product), not in words
                               (Yes = yes, an ellipse = ellipse); f' is not f
    \log without a base        base 10 or base e, the same on both sides
    i                          the imaginary unit, on both sides
    everything else            math-verify decides: x^2+1 = 1+x^2, \sqrt8 = 2\sqrt2, matrices
    what cannot be decided     `error`: a limit of time or memory was met, or the gold answer is
                               a formula that cannot be read (that alone makes a row unusable)
    an unreadable answer       wrong, where the gold answer can be read; so is one that meets
                               a limit by itself, as 9^{9^{9^9}}, where the gold does not

Numbers, words, lists of them and equal texts are decided here. Other formulas are decided in a
worker process (`math_pool.py`), whose limit is real and holds in every thread. Feedback speaks
of the format only. Gold is in `problem.answer`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
from fractions import Fraction
from typing import Literal

from mopd_jax.errors import InputError
from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part
from mopd_jax.verifiers.mathematics import numerals, parsing, spelling, units, word_answers
from mopd_jax.verifiers.mathematics.pool import OverLimit, Pool, Undecided

CPU_SECONDS = 5.0
WALL_SECONDS = 60.0
LONGEST = 2000  # Characters of a boxed answer. A longer one is no answer.
_MOST_PAIRS = 400  # Pairs of elements that one request compares.
_MOST_ELEMENTS = 64  # Elements of a set that are compared among themselves.

POOL = Pool(
    pathlib.Path(__file__).with_name("worker.py"),
    size=min(4, os.cpu_count() or 1),
    cpu_seconds=CPU_SECONDS,
    wall_seconds=WALL_SECONDS,
)

NO_BOX = r"No answer was found: put the final answer in \boxed{}."
OPEN_BOX = r"The braces of the last \boxed{} do not balance, so it holds no answer."
EMPTY_BOX = r"The last \boxed{} is empty."
LONG_BOX = rf"The last \boxed{{}} holds more than {LONGEST} characters; box the answer alone."

# Behind a number these make another answer of it.
_NO_UNITS = ("million", "dozen", "or more", "not", "is wrong", "squared")
# One thing that may equal an interval or a list: a relation, a union, a set, both signs.
_MAY_BE_MANY = re.compile(
    r"[<>=]|\\(?:le|ge|ne|in|notin|lt|gt|pm|mp|cup|cap|setminus|backslash|mathbb|emptyset|R|N|Z|Q|"
    r"begin|lor|land|vee|wedge|mid)(?![A-Za-z])"
)
# Equal to no gold answer, so that a formula has to be read.
_NO_ANSWER = r"\sqrt{2}+x^{17}"
_PRIMED = re.compile(r"([A-Za-z0-9)}]?) ?('+)")
_SPEAKS_OF_PERCENT = re.compile(r"percent|%|\bpct\b", re.IGNORECASE)


class _Unreadable(Undecided):
    """The gold answer is a formula that cannot be read."""


def check_installed() -> None:
    """Raises InputError if what decides formulas is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(
            "verifier 'math' needs the package math-verify: pip install 'mopd_jax[verifiers]'"
        )


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the boxed answer equals `problem.answer` by the table above, else 0.

    `meta["percent"]`, a bool, says whether the question speaks of percent; where it is missing,
    the question's text does.
    """
    if not (gold := spelling.clean(problem.answer)):
        return Verdict(0.0, error="the gold answer is empty")
    box = parsing.last_box(answer_part(response))
    if box is None:
        return Verdict(0.0, feedback=NO_BOX, format_ok=False)
    if not box.closed:
        return Verdict(0.0, feedback=OPEN_BOX, format_ok=False)
    if len(box.content) > LONGEST:
        return Verdict(0.0, feedback=LONG_BOX, format_ok=False)
    if not (answer := spelling.clean(box.content)):
        return Verdict(0.0, feedback=EMPTY_BOX, format_ok=False)
    letter, bracketed = numerals.option(gold)
    label = numerals.label(box.content) if letter else ""
    if label and (bracketed or label == letter):
        return Verdict(float(label == letter), format_ok=box.plain)
    try:
        right = same(gold, answer, percent=_percent(problem))
    except Undecided as error:
        # An answer that has no end by itself is none: no tower of powers keeps a row out of
        # the statistics.
        right = False
        if not isinstance(error, OverLimit) or not _over_limit(answer) or _over_limit(gold):
            return Verdict(0.0, error=str(error), format_ok=box.plain)
    return Verdict(float(right), format_ok=box.plain)


def _over_limit(text: str) -> bool:
    """Whether a text by itself meets the limit."""
    try:
        _alone(text)
    except Undecided as error:
        return isinstance(error, OverLimit)
    return False


def _alone(text: str) -> None:
    """Raises Undecided if a text cannot be judged beside a formula of ours."""
    value, _ = _values(text, _NO_ANSWER)
    pairs = [(part, _NO_ANSWER) for part in parsing.shape(value).parts]
    if pairs := [pair for pair in pairs if _known(*pair, False) is None]:
        _ask(pairs)


def unusable(problem: Problem) -> str:
    """Why no response to the problem can be judged; "" where the gold answer can be read, or
    would take too long: its own text is right all the same."""
    if not (gold := spelling.clean(problem.answer)):
        return "the gold answer is empty"
    try:
        _alone(gold)
    except Undecided as error:
        return str(error) if isinstance(error, _Unreadable) else ""
    return ""


def answer(problem: Problem, response: str) -> str:
    """The boxed answer as text, a number as the fraction that it is; "" for none.

    What only symbols show to be equal, such as sqrt(8) and 2 sqrt(2), is written differently.
    """
    del problem
    box = parsing.last_box(answer_part(response))
    if box is None or not box.closed or len(box.content) > LONGEST:
        return ""
    text = spelling.clean(box.content)
    number = parsing.number(text)
    return str(number.value) if number else spelling.squash(text)


def gold_response(problem: Problem) -> str:
    """The gold answer in the asked format."""
    return rf"The final answer is \boxed{{{problem.answer}}}."


def mutated(problem: Problem) -> tuple[str, ...]:
    """Responses in the asked format that must score 0."""
    gold = spelling.clean(problem.answer)
    value, _ = parsing.take_unit(parsing.take_percent(gold)[0])
    wrong = ["", "0.123456789"]
    if number := parsing.number(value):
        v = number.value
        others = [x for x in (v + 1, v - 1, 2 * v + 3) if x != v]
        wrong += [f"{x.numerator}/{x.denominator}" for x in others]
        wrong += [rf"{value}\text{{ {words}}}" for words in _NO_UNITS]
    elif word_answers.words(gold):
        wrong.append(rf"\text{{not }}{gold}")
    elif spelling.squash(gold).lstrip("+-") != r"\infty":  # Plus one, it is what it was.
        wrong += [f"({gold})+1", gold + "17"]
    return (*(rf"\boxed{{{text}}}" for text in wrong), "It stands in no box.")


def _percent(problem: Problem) -> bool:
    stated = problem.meta.get("percent")
    if isinstance(stated, bool):
        return stated
    question = problem.messages[-1]["content"] if problem.messages else ""
    return _SPEAKS_OF_PERCENT.search(question) is not None


def same(gold: str, answer: str, *, percent: bool = False) -> bool:
    """Whether two cleaned answers are equal.

    Raises:
        Undecided: no rule decides, and the checker met its limit or cannot read the gold.
    """
    if spelling.squash(gold) == spelling.squash(answer):
        return True
    gold, answer = _values(gold, answer)
    pairs = _decompose(gold, answer)
    if pairs is False:
        return False
    if pairs is None:
        return _all_equal([(gold, answer)], percent)
    kind, left, right = pairs
    if kind == "ordered":
        return _all_equal(list(zip(left, right, strict=True)), percent)
    return _match(left, right, percent)


def _values(gold: str, answer: str) -> tuple[str, str]:
    """Both without `x =`, where one side has it, or both have the same."""
    (gold_name, gold_value), (answer_name, answer_value) = (
        parsing.assignment(text) for text in (gold, answer)
    )
    if gold_name and answer_name:
        same_name = gold_name == answer_name
        return (gold_value, answer_value) if same_name else (gold, answer)
    if gold_name:
        # Of two equations neither is a value.
        equation = answer_value == answer and parsing.is_relation(answer)
        return (gold, answer) if equation else (gold_value, answer_value)
    if answer_name and parsing.is_relation(gold):
        return gold, answer
    # Of `2 + 3 = 5` the value is an answer; a gold equation stays what it is.
    return gold, answer_value


def _decompose(gold: str, answer: str) -> tuple[str, tuple, tuple] | Literal[False] | None:
    """("ordered" or "unordered", parts, parts), None for one thing against one, or False."""
    a, b = parsing.shape(gold), parsing.shape(answer)
    loose = {"list", "set"}
    if (names := _names(a)) or _names(b):
        # Bare values do not say whose they are; in order they may, where the gold has no names.
        if names:
            return _names(b) == names and ("unordered", a.parts, b.parts)
        return (
            a.kind != "set" and len(a.parts) == len(b.parts) and ("ordered", a.parts, b.parts)
        )
    if a.kind == b.kind == "set":
        a, b = (parsing.Shape("set", _distinct(s.parts)) for s in (a, b))
    if a.kind == b.kind == "scalar":
        return None
    if a.kind == "list" and word_answers.is_ranking(a.parts) and b.kind in ("list", "()"):
        return len(a.parts) == len(b.parts) and ("ordered", a.parts, b.parts)
    if a.kind in loose and b.kind in loose:
        return len(a.parts) == len(b.parts) and ("unordered", a.parts, b.parts)
    if "scalar" in (a.kind, b.kind):
        one = a if b.kind == "scalar" else b
        if one.kind == "set" and len(one.parts) == 1 and "emptyset" not in one.parts[0]:
            return "ordered", a.parts, b.parts
        single = b if one is a else a
        if len(one.parts) > 1 and not any(map(_MAY_BE_MANY.search, single.parts)):
            return False
        return None  # A union, an inequality or the empty set may equal it.
    listed = {a.kind, b.kind} == {"list", "[]"} and len(a.parts) != 2  # Two are an interval.
    if a.kind == b.kind or {a.kind, b.kind} == {"list", "()"} or listed:
        return len(a.parts) == len(b.parts) and ("ordered", a.parts, b.parts)
    return False


def _names(shape: parsing.Shape) -> list[str]:
    """The names of a list `a = 2, b = 5`, sorted; empty for all else and where there is one."""
    if shape.kind not in ("list", "set"):
        return []
    names = sorted(parsing.assignment(part)[0] for part in shape.parts)
    return names if all(names) and len(set(names)) > 1 else []


def _distinct(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Elements of a set without those that certainly are an earlier one."""
    found: list[str] = []
    once = dict.fromkeys(spelling.squash(part) for part in parts)
    if len(once) > _MOST_ELEMENTS:
        return tuple(once)  # Of so many none is looked at twice.
    for part in once:
        if not any(_known(other, part, False) for other in found):
            found.append(part)
    return tuple(found)


def _all_equal(pairs: list[tuple[str, str]], percent: bool) -> bool:
    open_pairs = []
    for gold, answer in pairs:
        known = _known(gold, answer, percent)
        if known is False:
            return False
        if known is None:
            open_pairs.append((gold, answer))
    return all(_ask(open_pairs)) if open_pairs else True


def _match(golds: tuple[str, ...], answers: tuple[str, ...], percent: bool) -> bool:
    """Whether each gold has an answer of its own, in any order."""
    size = len(golds)
    table = [[_known(gold, answer, percent) for answer in answers] for gold in golds]
    # What is certainly equal is out of the question; equality is an equivalence.
    free = list(range(size))
    rest = []
    for i in range(size):
        certain = next((j for j in free if table[i][j]), None)
        if certain is None:
            rest.append(i)
        else:
            free.remove(certain)
    if any(all(table[i][j] is False for j in free) for i in rest):
        return False
    unknown = [(i, j) for i in rest for j in free if table[i][j] is None]
    if len(unknown) > _MOST_PAIRS:
        raise Undecided(f"{len(unknown)} pairs of elements; at most {_MOST_PAIRS} are checked")
    if unknown:
        outcomes = _ask([(golds[i], answers[j]) for i, j in unknown])
        for (i, j), equal in zip(unknown, outcomes, strict=True):
            table[i][j] = equal
    for i in rest:
        found = next((j for j in free if table[i][j]), None)
        if found is None:
            return False
        free.remove(found)
    return True


def _known(gold: str, answer: str, percent: bool) -> bool | None:
    """Whether two scalars are equal, as far as text and rational numbers tell; else None."""
    if spelling.squash(gold) == spelling.squash(answer):
        return True
    gold, answer = _values(gold, answer)
    if sorted(_PRIMED.findall(gold)) != sorted(_PRIMED.findall(answer)):
        return False  # A derivative, minutes or feet, which the worker would not see.
    (gold_time, gold_half), (answer_time, answer_half) = map(
        numerals.time_of_day, (gold, answer)
    )
    if gold_half and answer_half and gold_half != answer_half:
        return False
    gold, answer = gold_time or gold, answer_time or answer
    if parsing.says_more(gold) or parsing.says_more(answer):
        return word_answers.bare(gold) == word_answers.bare(answer)
    gold, gold_percent = parsing.take_percent(gold)
    answer, answer_percent = parsing.take_percent(answer)
    (gold, gold_unit), (answer, answer_unit) = map(parsing.take_unit, (gold, answer))
    if gold_unit and answer_unit and not units.same(gold_unit, answer_unit):
        return False
    form = _known_form(gold, answer)
    if form is not None:
        return form
    # `5 m` beside \text{m}: the one side says that the letter is a unit.
    for unit in filter(None, (gold_unit, answer_unit)):
        gold, answer = (_without_bare(text, unit) for text in (gold, answer))
    a, b = parsing.number(gold), parsing.number(answer)
    if a is not None and b is not None:
        if gold_percent == answer_percent:
            return parsing.equal(a, b)
        hundredth = parsing.Number(Fraction(1, 100))
        scaled_a = parsing.times(a, hundredth) if gold_percent else a
        scaled_b = parsing.times(b, hundredth) if answer_percent else b
        return parsing.equal(scaled_a, scaled_b) or (percent and parsing.equal(a, b))
    if spelling.squash(gold) == spelling.squash(answer):
        return gold_percent == answer_percent or percent
    return word_answers.same(gold, answer)


def _known_form(gold: str, answer: str) -> bool | None:
    """Whether they are equal, where one is a numeral with a base or a ratio; else None."""
    a, b = numerals.numeral(gold), numerals.numeral(answer)
    if a or b:
        ten_a, ten_b = (
            parsing.number(n.digits if n and n.base == 10 else text)
            for n, text in ((a, gold), (b, answer))
        )
        return a == b or (ten_a is not None and ten_a == ten_b)
    a, b = numerals.ratio(gold), numerals.ratio(answer)
    if not (a or b) or (word_answers.words(gold) and word_answers.words(answer)):
        return None
    if len(a) != len(b):
        return False
    x, y = ([parsing.number(term) for term in terms] for terms in (a, b))
    if None in x or None in y:
        return (
            None
            if len(a) == 2
            else all(_known(*pair, False) for pair in zip(a, b, strict=True))
        )
    if numerals.is_clock(gold) or numerals.is_clock(answer):
        return [n.value for n in x] == [n.value for n in y]
    return numerals.proportional([n.value for n in x], [n.value for n in y])


def _without_bare(text: str, unit: str) -> str:
    rest = text.removesuffix(unit).rstrip(" ")
    return rest if rest != text and parsing.number(rest) is not None else text


def _ask(pairs: list[tuple[str, str]]) -> list[bool]:
    """The worker's word on pairs of formulas."""
    ready = [tuple(_formula(text) for text in _values(*pair)) for pair in pairs]
    answer = POOL.ask({"pairs": ready})
    found = []
    for (gold, _), outcome in zip(pairs, answer["outcomes"], strict=True):
        if outcome == "gold unreadable" and word_answers.words(gold) is None:
            raise _Unreadable("the gold answer is no formula that the checker can read")
        found.append(outcome == "equal")
    return found


def _formula(text: str) -> str:
    """What the worker reads: without percent sign and unit, but with their value."""
    value, is_percent = parsing.take_percent(text)
    value, _ = parsing.take_unit(value)
    return rf"\frac{{{value}}}{{100}}" if is_percent else value
