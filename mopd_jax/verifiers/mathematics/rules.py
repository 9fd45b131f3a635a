r"""The verifier `math`: the last `\boxed{}` of a response against the gold, by exact rules.

docs/verifiers.md has the rules, one row a case, with examples that a test runs. In short: both
answers get one spelling (`spelling.py`), are taken apart (`parsing.py`, `numerals.py`), and
numbers, words, lists of them and equal texts are decided here. Other formulas go to worker
processes with math-verify (`pool.py`, `worker.py`), whose limit of CPU time holds in every
thread. What cannot be decided is an `error`. Feedback speaks of the format only. Gold is in
`problem.answer`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
from fractions import Fraction
from typing import Literal, NamedTuple

from mopd_jax.errors import InputError
from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part
from mopd_jax.verifiers.mathematics import (
    numerals,
    parsing,
    spelling,
    undefined,
    units,
    word_answers,
)
from mopd_jax.verifiers.mathematics.pool import OverLimit, Pool, Undecided

CPU_SECONDS = 5.0
WALL_SECONDS = 60.0
LONGEST = 2000  # Characters of a boxed answer; a longer one is not read.
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

# Words that make another answer of the number before them.
_NO_UNITS = ("million", "dozen", "or more", "not", "is wrong", "squared")
# Signs of one thing that may equal an interval or a list: a relation, a union, a set, \pm.
_MAY_BE_MANY = re.compile(
    r"[<>=]|\\(?:le|ge|ne|in|notin|lt|gt|pm|mp|cup|cap|setminus|backslash|mathbb|emptyset|R|N|Z|Q|"
    r"begin|lor|land|vee|wedge|mid)(?![A-Za-z])"
)
# A formula to compare an answer with, in order to see whether the answer can be read at all.
_NO_ANSWER = r"\sqrt{2}+x^{17}"
# Of 3./2, which the worker cannot read.
_BARE_POINT = re.compile(r"(?<=[0-9])\.(?= ?(?:[/}]|$))")
_PRIMED = re.compile(r"([A-Za-z0-9)}]?) ?('+)")
_SPEAKS_OF_PERCENT = re.compile(r"percent|%|\bpct\b", re.IGNORECASE)


class _Unreadable(Undecided):
    """The gold answer is a formula that the checker cannot read."""


def check_installed() -> None:
    """Raises InputError if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError(
            "verifier 'math' needs the package math-verify: pip install 'mopd_jax[verifiers]'"
        )


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the boxed answer equals `problem.answer`, by docs/verifiers.md, else 0.

    `meta["percent"]`, a bool, says whether the question speaks of percent; without it the
    question is searched for the word and the sign.
    """
    gold = spelling.clean(problem.answer)
    answer, box, feedback = _boxed(response)
    written = _written(answer)
    if not gold:
        return Verdict(0.0, error="the gold answer is empty", answer=written)
    if box is None or feedback:
        return Verdict(0.0, feedback=feedback, format_ok=False)
    letter, bracketed = numerals.option(gold)
    label = numerals.label(box.content) if letter else ""
    if label and (bracketed or label == letter):
        return Verdict(float(label == letter), format_ok=box.plain, answer=written)
    try:
        right = same(gold, answer, percent=_percent(problem))
    except Undecided as error:
        # An answer that cannot be evaluated on its own (9^{9^9}) is wrong, not an error;
        # otherwise a model could remove rows from the statistics.
        right = False
        if not isinstance(error, OverLimit) or not _over_limit(answer) or _over_limit(gold):
            return Verdict(0.0, error=str(error), format_ok=box.plain, answer=written)
    return Verdict(float(right), format_ok=box.plain, answer=written)


class _Boxed(NamedTuple):
    """What a response answers."""

    answer: str  # The cleaned content of its last box, or "".
    box: parsing.Box | None
    feedback: str  # Why there is no answer, or "".


def _boxed(response: str) -> _Boxed:
    box = parsing.last_box(answer_part(response))
    if box is None:
        return _Boxed("", None, NO_BOX)
    if not box.closed:
        return _Boxed("", box, OPEN_BOX)
    if len(box.content) > LONGEST:
        return _Boxed("", box, LONG_BOX)
    answer = spelling.clean(box.content)
    return _Boxed(answer, box, "" if answer else EMPTY_BOX)


def _written(answer: str) -> str | None:
    """A cleaned answer as it is compared for votes: a number as a fraction; None of "".

    Answers that only symbols show to be equal, such as sqrt(8) and 2 sqrt(2), stay different.
    """
    number = parsing.number(answer)
    return (str(number.value) if number else spelling.squash(answer)) or None


def _over_limit(text: str) -> bool:
    """Whether a cleaned text meets the limit on its own."""
    try:
        _alone(text)
    except Undecided as error:
        return isinstance(error, OverLimit)
    return False


def _alone(text: str) -> None:
    """Raises Undecided if a cleaned text cannot be compared with a simple formula."""
    value, _ = _values(text, _NO_ANSWER)
    pairs = [(part, _NO_ANSWER) for part in parsing.shape(value).parts]
    if pairs := [pair for pair in pairs if _known(*pair, False) is None]:
        _ask(pairs)


def unusable(problem: Problem) -> str:
    """Why no response can be judged; "" if the gold answer can be read.

    A gold answer that takes too long is usable: a response that repeats its text is right.
    """
    if not (gold := spelling.clean(problem.answer)):
        return "the gold answer is empty"
    try:
        _alone(gold)
    except Undecided as error:
        return str(error) if isinstance(error, _Unreadable) else ""
    return ""


def gold_response(problem: Problem) -> str:
    """The gold answer in the format that prompts ask for."""
    return rf"The final answer is \boxed{{{problem.answer}}}."


def mutated(problem: Problem) -> tuple[str, ...]:
    """Wrong responses, which must score 0: other answers in a box, and no box."""
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
    elif spelling.squash(gold).lstrip("+-") != r"\infty":  # Infinity plus one is infinity.
        wrong += [f"({gold})+1", gold + "17"]
    return (*(rf"\boxed{{{text}}}" for text in wrong), "It stands in no box.")


def _percent(problem: Problem) -> bool:
    """Whether 50% and 50 are equal in this problem."""
    stated = problem.meta.get("percent")
    if isinstance(stated, bool):
        return stated
    question = problem.messages[-1]["content"] if problem.messages else ""
    return _SPEAKS_OF_PERCENT.search(question) is not None


def same(gold: str, answer: str, *, percent: bool = False) -> bool:
    """Whether two cleaned answers are equal.

    Raises:
        Undecided: no rule here decides, and the worker met a limit or cannot read the gold.
    """
    if spelling.squash(gold) == spelling.squash(answer):
        return True
    if undefined.holds(answer) or not _consistent(answer):
        return False
    golds, answers = parsing.readings(gold), parsing.readings(answer)
    if len(golds) * len(answers) > 1:
        return any(same(g, a, percent=percent) for g in golds for a in answers)
    gold, answer = _values(golds[0], answers[0])
    parts = _decompose(gold, answer)
    if parts is False:
        return False
    if parts is None:
        return _all_equal([(gold, answer)], percent)
    kind, golds, answers = parts
    if kind == "ordered":
        return _all_equal(list(zip(golds, answers, strict=True)), percent)
    return _match(golds, answers, percent)


def _values(gold: str, answer: str) -> tuple[str, str]:
    """Gold and answer without `x =`, if one side has it or both have the same."""
    (gold_name, gold_value), (answer_name, answer_value) = (
        parsing.assignment(text) for text in (gold, answer)
    )
    if gold_name and answer_name:
        same_name = gold_name == answer_name
        return (gold_value, answer_value) if same_name else (gold, answer)
    if gold_name:
        # If the other side is an equation without a name, both stay equations.
        equation = answer_value == answer and parsing.is_relation(answer)
        return (gold, answer) if equation else (gold_value, answer_value)
    if answer_name and parsing.is_relation(gold):
        return gold, answer
    # `2 + 3 = 5` has the value 5; another equation stays an equation.
    return gold_value, answer_value


def _consistent(answer: str) -> bool:
    r"""Whether numbers that an answer calls equal are so: `4 = 5` and `x = 4 = 5` are wrong.

    A value with decimals may be rounded, as in `\sqrt{2} = 1.414`.
    """
    claims = []
    for part in parsing.shape(answer).parts:
        chain = [side for side in parsing.sides(part) if parsing.is_constant(side)]
        claims += list(zip(chain, chain[1:], strict=False))
    if len(claims) > _MOST_PAIRS:
        return False
    open_claims = [pair for pair in claims if not _known(*pair, True)]
    if not open_claims:
        return True
    formulas = [(*map(_formula, pair), "rounded") for pair in open_claims]
    return all(outcome == "equal" for outcome in POOL.ask({"pairs": formulas})["outcomes"])


_Parts = tuple[str, tuple[str, ...], tuple[str, ...]]


def _decompose(gold: str, answer: str) -> _Parts | Literal[False] | None:
    """How the parts of gold and answer must agree.

    Returns:
        ("ordered" or "unordered", parts, as many parts); None if they are to be compared as one
        thing; False if they cannot be equal.
    """
    a, b = parsing.shape(gold), parsing.shape(answer)
    loose = {"list", "set"}
    if (names := _names(a)) or _names(b):
        # A gold with names needs an answer with names. A gold without takes them in its order.
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
        return None  # A union, an inequality or the empty set may equal several parts.
    listed = {a.kind, b.kind} == {"list", "[]"} and len(a.parts) != 2  # Two are an interval.
    if a.kind == b.kind or {a.kind, b.kind} == {"list", "()"} or listed:
        return len(a.parts) == len(b.parts) and ("ordered", a.parts, b.parts)
    return False


def _names(shape: parsing.Shape) -> list[str]:
    """The sorted names of a list `a = 2, b = 5`; [] if a part has none or all have the same."""
    if shape.kind not in ("list", "set"):
        return []
    names = sorted(parsing.assignment(part)[0] for part in shape.parts)
    return names if all(names) and len(set(names)) > 1 else []


def _distinct(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The elements of a set without those that certainly equal an earlier one."""
    distinct: list[str] = []
    once = dict.fromkeys(spelling.squash(part) for part in parts)
    if len(once) > _MOST_ELEMENTS:
        return tuple(once)  # More elements would take too long to compare with each other.
    for part in once:
        if not any(_known(other, part, False) for other in distinct):
            distinct.append(part)
    return tuple(distinct)


def _all_equal(pairs: list[tuple[str, str]], percent: bool) -> bool:
    """Whether every gold equals its answer."""
    open_pairs = []
    for gold, answer in pairs:
        known = _known(gold, answer, percent)
        if known is False:
            return False
        if known is None:
            open_pairs.append((gold, answer))
    return all(_ask(open_pairs)) if open_pairs else True


def _match(golds: tuple[str, ...], answers: tuple[str, ...], percent: bool) -> bool:
    """Whether golds and as many answers are equal in some order."""
    size = len(golds)
    table = [[_known(gold, answer, percent) for answer in answers] for gold in golds]
    # Certain pairs are taken first: as equality is transitive, they spoil no other match.
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
        partner = next((j for j in free if table[i][j]), None)
        if partner is None:
            return False
        free.remove(partner)
    return True


def _known(gold: str, answer: str, percent: bool) -> bool | None:
    """Whether two scalars are equal, by text, words and rational numbers; None: a formula."""
    if spelling.squash(gold) == spelling.squash(answer):
        return True
    gold, answer = _values(gold, answer)
    if sorted(_PRIMED.findall(gold)) != sorted(_PRIMED.findall(answer)):
        return False  # Primes are derivatives, minutes or feet, and the worker ignores them.
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
    # `5 m` against `5\text{ m}`: the second shows that m is a unit.
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
    """Whether two scalars are equal, if one is a numeral with a base or a ratio; else None."""
    left, right = numerals.numeral(gold), numerals.numeral(answer)
    if left or right:
        ten_left, ten_right = (
            parsing.number(n.digits if n and n.base == 10 else text)
            for n, text in ((left, gold), (right, answer))
        )
        return left == right or (ten_left is not None and ten_left == ten_right)
    a, b = numerals.ratio(gold), numerals.ratio(answer)
    if not (a or b) or (word_answers.words(gold) and word_answers.words(answer)):
        return None
    if len(a) != len(b):
        return False
    x, y = ([n.value for t in terms if (n := parsing.number(t))] for terms in (a, b))
    if len(x) < len(a) or len(y) < len(b):
        return (
            None
            if len(a) == 2
            else all(_known(*pair, False) for pair in zip(a, b, strict=True))
        )
    if numerals.is_clock(gold) or numerals.is_clock(answer):
        return x == y
    return numerals.proportional(x, y)


def _without_bare(text: str, unit: str) -> str:
    """The number of `5 m` without the letter, where it is the other side's unit."""
    rest = text.removesuffix(unit).rstrip(" ")
    return rest if rest != text and parsing.number(rest) is not None else text


def _ask(pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each pair of formulas is equal, by a worker."""
    formulas = [tuple(_formula(text) for text in _values(*pair)) for pair in pairs]
    answer = POOL.ask({"pairs": formulas})
    equal = []
    for (gold, _), outcome in zip(pairs, answer["outcomes"], strict=True):
        if outcome == "gold unreadable" and word_answers.words(gold) is None:
            raise _Unreadable("the gold answer is not a formula that the checker can read")
        equal.append(outcome == "equal")
    return equal


def _formula(text: str) -> str:
    """The formula for the worker: without the unit, and with % as a division by 100."""
    value, is_percent = parsing.take_percent(text)
    value, _ = parsing.take_unit(value)
    value = _BARE_POINT.sub("", value).replace(r"\approx", "=")
    return rf"\frac{{{value}}}{{100}}" if is_percent else value
