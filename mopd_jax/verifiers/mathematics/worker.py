"""The program of a worker process: decides by math-verify whether two formulas are equal.

It is run as a file, not imported, so that it loads neither JAX nor the rest of the package. It
reads one JSON object a line, `{"pairs": [[gold, answer], ...], "seconds": 5.0}`, where a pair
may have the relation that `judge` tests as a third item, and answers
`{"outcomes": [...]}` or `{"broken": why}`. `pool.py` is the other end.

Model text must not run as Python. It is parsed by a LaTeX grammar, of which only numbers would
reach Python's `eval`, through sympy's reader of strings; that reader is replaced by one that
accepts numbers only. Besides, an audit hook refuses to compile text, write files, start
processes and open sockets, and the kernel limits CPU time, memory and file size. This is not a
sandbox: an exploited fault in the interpreter's C code would have the user's rights.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

MEMORY = 2 << 30  # Bytes of address space.
# What sympy and math-verify give and take; they are imported late, after the limits are set.
Formula = Any
# Audit events, or their beginnings, that no formula needs.
_REFUSED = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "os.putenv",
    "shutil.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "pty.",
    "ftplib.",
    "http.",
    "urllib.",
    "smtplib.",
)
# sympy compiles its arithmetic of monomials, from text made of numbers of variables only.
_OWN_CODE = b"def monomial_"
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# `\log` without a base.
_LOG = re.compile(r"\\log(?![A-Za-z])(?!\s*_)")
# Numbers side by side, which the grammar would take for a sum (5 1) or a product (5.5.1).
_TWO_NUMBERS = re.compile(r"[0-9] +[0-9]|\.[0-9]*\.")
_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])"
# A number may follow the scripts of these: \log_2 3, \int_0^1 2x, \sin^2 10.
_SCRIPTS = re.compile(
    rf"(?:{_TRIG}|\\(?:sinh|cosh|tanh|log|ln|lg|i*int|oint|sum|prod|lim|max|min)(?![A-Za-z]))"
    r"(?: ?[_^] ?(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|[0-9A-Za-z]))+"
)
_HAS_TRIG = re.compile(_TRIG)
_DEGREE = re.compile(r" ?\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})")
# What a degree sign belongs to: 20, 2x, x, 2\theta.
_ANGLE = re.compile(r"(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+) ?)?(?:\\[A-Za-z]+|[A-Za-z])?$")
# Letters that the grammar takes for constants or functions: \gamma, \Gamma without an argument,
# and e and E with a subscript. Other commands are matched in order to be skipped.
_TAKEN = re.compile(
    r"(\\gamma(?![A-Za-z])|\\Gamma(?! *\()(?![A-Za-z])|[eE](?= ?_))|\\[A-Za-z]+"
)
# Letters that take their places, if neither formula has them.
_FREE = (
    r"\varrho",
    r"\varpi",
    r"\varsigma",
    r"\upsilon",
    r"\xi",
    r"\vartheta",
    r"\kappa",
    r"\iota",
)
# L_\odot: signs in subscripts become names.
_SUBSCRIPT = re.compile(
    r"_ ?\{? ?\\(odot|oplus|otimes|star|ast|perp|parallel|circ|infty|bullet|pm)"
    r" ?(?:\}|(?![A-Za-z]))"
)
_UNREADABLE = ("gold unreadable", "answer unreadable")
# Largest relative difference of equal numbers, without and with decimals in a formula.
_CLOSE = {"exact": 1e-12, "decimal": 1e-6}


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """The audit hook: raises PermissionError, which prevents the act."""
    if event == "compile" and args[0] is not None:
        # Modules that sympy imports late are compiled from files, text under a name in "<>".
        text = not isinstance(args[1], str) or args[1].startswith("<")
        own = isinstance(args[0], bytes) and args[0].startswith(_OWN_CODE)
        refused = text and not own
    elif event == "open":
        flags = args[2] if isinstance(args[2], int) else 0
        refused = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    else:
        refused = event.startswith(_REFUSED)
    if refused:
        raise PermissionError(f"the formula worker does not allow {event}")


def _limit() -> None:
    """Limits address space, file size and core dumps of this process."""
    for name, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(name, (value, value))
        except (ValueError, OSError):
            # Some systems refuse a limit on address space; CPU time is limited all the same.
            continue


def _read_number(text: str, *args: object, **kwargs: object) -> Formula:
    """Replaces `sympy.parsing.sympy_parser.parse_expr`, which evaluates text as Python.

    Raises:
        ValueError: the text is not a number.
    """
    import sympy

    del args, kwargs
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    return sympy.Integer(int(text)) if text.isdigit() else sympy.Float(text)


def _angles(text: str) -> str:
    r"""The text with `20^\circ` in radians, if it has a function of angles."""
    if not _HAS_TRIG.search(text):
        return text
    while match := _DEGREE.search(text):
        head, tail = text[: match.start()], text[match.end() :]
        start = _angle_start(head)
        if start is None:
            raise ValueError("a degree sign behind nothing")
        # In parentheses, so that a function takes exactly this as its argument.
        text = rf"{head[:start]}({head[start:]}\cdot\frac{{\pi}}{{180}}){tail}"
    return text


def _angle_start(head: str) -> int | None:
    """Where the angle at the end of the text begins; None where there is none."""
    if head[-1:] not in (")", "}"):
        match = _ANGLE.search(head)
        return match.start() if match and match[0] else None
    depth = 0
    for i in range(len(head) - 1, -1, -1):
        depth += (head[i] in ")}") - (head[i] in "({")
        if depth == 0:
            # The numerator and the command belong to the angle.
            if head[i] == "{" and head[:i].endswith("}"):
                return _angle_start(head[:i])
            command = re.search(r"\\(?:frac|sqrt) ?$", head[:i])
            return command.start() if command else i
    return None


def _letters(pair: tuple[str, str]) -> tuple[str, str] | None:
    """Both texts with letters that the grammar reads in place of those that it misreads; None
    where no letters are free for them."""
    both = " ".join(pair)
    taken = sorted({match[1] for match in _TAKEN.finditer(both) if match[1]})
    free = [name for name in _FREE if name not in both]
    if len(free) < len(taken):
        return None
    instead = dict(zip(taken, free, strict=False))
    first, second = (
        _SUBSCRIPT.sub(
            r"_{\1}", _TAKEN.sub(lambda match: instead.get(match[1], match[0]), text)
        )
        for text in pair
    )
    return first, second


def _parse(text: str, real: bool | None) -> Formula:
    """The sympy object of LaTeX text. Raises whatever the parser raises.

    Args:
        real: whether variables are real numbers; None: they may be complex.
    """
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex

    if r"\ldots" in text:
        raise ValueError("a sequence")  # The grammar ignores the dots: 0.3\ldots would be 0.3.
    if _TWO_NUMBERS.search(_SCRIPTS.sub(" ", text)):
        raise ValueError("two numbers side by side")
    # `rules.py` has removed units already (math-verify's list of units has single letters). The
    # text is one formula, so there is no box or formula to search for.
    normal = normalize_latex(
        _angles(text),
        NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
        ),
    )
    # r and R must stay two variables.
    parsed = latex2sympy(
        normal,
        is_real=real,
        convert_degrees=False,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )
    if real is None and hasattr(parsed, "subs"):
        parsed = parsed.subs(sympy.Symbol("i"), sympy.I)
    if not isinstance(parsed, (sympy.Basic, sympy.MatrixBase)):
        raise ValueError("not one formula")
    # Exponents such as those of 2^{1.5} and e^{0.1t} are exact.
    return parsed.replace(
        lambda e: isinstance(e, (sympy.Pow, sympy.exp)) and e.exp.has(sympy.Float),
        lambda e: e.func(*e.args[:-1], _exact(e.args[-1])),
    )


def _exact(expression: Formula) -> Formula:
    """The expression with fractions for decimals."""
    import sympy

    return expression.replace(lambda e: e.is_Float, lambda e: sympy.Rational(str(e)))


def _same(gold: Formula, answer: Formula) -> bool:
    """Whether two formulas are equal.

    math-verify decides, but accepts too much of equations and of very small numbers, which are
    therefore checked here.
    """
    import sympy
    from math_verify import verify

    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        sides = (*gold.args, *answer.args)
        if all(isinstance(side, sympy.Expr) for side in sides):
            return _same_equation(gold, answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, sympy.Eq) and isinstance(other, sympy.Expr):
            # An equation against a value: 2x = 5 does not say that the answer is 5.
            if not _is_quantity(one.lhs):
                return False
            return _same(one.rhs, other) if one is gold else _same(other, one.rhs)
    relation = (sympy.core.relational.Relational, sympy.logic.boolalg.BooleanAtom)
    if isinstance(gold, relation) and not gold.free_symbols:
        return False  # Of numbers, so every true one would be equal.
    # math-verify's own time limit is a signal handler; here the kernel limits CPU time.
    if not verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True):
        return False
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        if any(x.doit().has(sympy.nan, sympy.zoo) for x in (gold, answer)):
            return False  # An undefined form equals nothing.
        return _close(gold, answer)
    return True


def _is_quantity(side: Formula) -> bool:
    """Whether the left side of an equation is a thing to be asked for, not one to be solved.

    So are m+n, ab, a/b, |z| and \\cos C: letters, each once, without numbers and powers.
    """
    import sympy

    if sympy.fraction(side)[0].is_number:
        return False
    whole = (sympy.Mul, sympy.Abs, sympy.sin, sympy.cos, sympy.tan)
    letters = [part for part in sympy.preorder_traversal(side) if part.is_Symbol]
    for part in sympy.preorder_traversal(side):
        divided = part.is_Pow and part.exp == -1
        added = part.is_Add and not any(x.is_number for x in part.args)
        if not (part.is_Symbol or part == -1 or divided or added or isinstance(part, whole)):
            return False
    return 0 < len(letters) == len(set(letters)) and not side.could_extract_minus_sign()


def _same_equation(gold: Formula, answer: Formula) -> bool:
    """Whether two equations are equal up to a factor that is a number other than 0."""
    import sympy

    left, right = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    if not (sympy.simplify(left).free_symbols and sympy.simplify(right).free_symbols):
        return False  # Nothing but numbers differ by a factor in any two of them.
    ratio = sympy.simplify(left / right)
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _close(gold: Formula, answer: Formula) -> bool:
    """Whether two numbers that math-verify calls equal are close; True of other formulas.

    math-verify rounds to decimals, after which 1e-7 and 2e-7 are the same.
    """
    import sympy

    if gold.free_symbols or answer.free_symbols:
        return True
    exact = [x.doit() for x in (gold, answer)]
    if all(x.is_Rational for x in exact):
        return bool(exact[0] == exact[1])
    a, b = (sympy.N(x, 30) for x in exact)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return True
    decimal = gold.has(sympy.Float) or answer.has(sympy.Float)
    bound = _CLOSE["decimal" if decimal else "exact"] * max(abs(a), abs(b))
    return bool(abs(a - b) <= bound)


def _rounds(value: Formula, rounded: Formula, text: str) -> bool:
    """Whether a number is another one, rounded to the decimals of its text."""
    import sympy

    a, b = (sympy.N(x.doit(), 30) for x in (value, rounded))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    decimals = re.search(r"\.([0-9]+)", text)
    half = sympy.Float("0.5", 30) / 10 ** len(decimals[1]) if decimals else 0
    return bool(abs(a - b) <= half * (1 + 1e-9) + _CLOSE["exact"] * max(abs(a), abs(b)))


def judge(gold: str, answer: str, relation: str = "equal") -> str:
    """One of "equal", "different", "gold unreadable", "answer unreadable".

    Args:
        relation: "equal", or "rounded" where the second may be the first, rounded to its
            decimals; both are numbers then.
    """
    from math_verify.grader import should_treat_as_complex

    if (pair := _letters((gold, answer))) is None:
        return "answer unreadable"
    gold, answer = pair
    readings = [(gold, answer)]
    if _LOG.search(gold + " " + answer):
        # Base 10 in schools, base e elsewhere; both sides are read in the same base.
        readings.append((_LOG.sub(r"\\ln", gold), _LOG.sub(r"\\ln", answer)))
    outcome = "different"
    for pair in readings:
        # One assumption for both sides: sympy's real x and complex x are different variables.
        real = None if any(map(should_treat_as_complex, pair)) else True
        parsed = []
        for text, unreadable in zip(pair, _UNREADABLE, strict=True):
            try:
                parsed.append(_parse(text, real))
            except MemoryError:
                raise
            except Exception:  # The grammar raises plain exceptions, sympy everything else.
                return unreadable
        try:
            if (
                _rounds(parsed[0], parsed[1], pair[1])
                if relation == "rounded"
                else _same(*parsed)
            ):
                return "equal"
        except MemoryError:
            raise
        except Exception:  # Objects of two kinds, which cannot be compared, are not equal.
            outcome = "different"
    return outcome


def _warm() -> None:
    """Makes sympy load all that it loads late, then replaces its reader of strings."""
    import sympy.core.cache
    import sympy.parsing.sympy_parser

    for gold, answer in (
        (r"\sqrt{8}+x", r"x+2\sqrt{2}"),
        (r"\sin^2 x+\cos^2 x", "1"),
        (r"\{1, x\}", r"\{x, 1\}"),
        ("x^2+1=0", "2x^2+2=0"),
        (r"(1,\infty)", "x>1"),
        (r"\int_0^1 x dx", r"\frac{1}{2}"),
        (r"\begin{pmatrix}1&x\\2&3\end{pmatrix}", r"\begin{pmatrix}1&y\\2&3\end{pmatrix}"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"e^{i\pi}", "-1"),
        (r"n!", "n(n-1)!"),
        (r"\log_2 8", "3.0"),
        (r"x^5-x-1 < 0", "x < 1"),
    ):
        judge(gold, answer)
    sympy.core.cache.clear_cache()
    # Only now, because sympy reads texts of its own while it loads.
    sympy.parsing.sympy_parser.parse_expr = _read_number


def main() -> None:
    """Answers requests until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    logging.disable(logging.CRITICAL)
    # The timer below must be able to end this process, whatever signal settings it inherited.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        _limit()
        _warm()
    except Exception as error:
        say({"broken": f"{type(error).__name__}: {error}"})
        return
    sys.addaudithook(_refuse)
    say({"ready": os.getpid()})
    import sympy.core.cache

    for line in sys.stdin:
        request = json.loads(line)
        # CPU time, so that verdicts do not depend on the load. The signal's default action ends
        # the process even inside C code.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            outcomes = [judge(*pair) for pair in request["pairs"]]
        except MemoryError:
            say({"broken": f"more than {MEMORY >> 20} MiB of memory"})
            return
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        say({"outcomes": outcomes})
        # The time of a request must not depend on those before it.
        sympy.core.cache.clear_cache()


if __name__ == "__main__":
    main()
