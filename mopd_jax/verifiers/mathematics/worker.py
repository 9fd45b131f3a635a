"""The program of a worker process: says whether two formulas are equal, by math-verify.

Run as a file, never as part of the package, so that it imports neither JAX nor anything else of
ours. It reads one JSON object a line, `{"pairs": [[gold, answer], ...], "seconds": 5.0}`, and
answers `{"outcomes": [...]}`, or `{"broken": why}`. `math_pool.py` is the other end.

What holds a formula's text back: it is parsed by a LaTeX grammar. The grammar's numbers alone
would reach Python's `eval`, by way of sympy's reader of strings, which is replaced by one that
knows numbers only. Behind that, a hook refuses to compile text, to write, to start processes
and to open sockets, and limits of the kernel bound CPU time, memory and file size. That is no
jail: a fault in the interpreter's own C code would run with the rights of the user.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys

MEMORY = 2 << 30  # Bytes of address space.
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
# sympy compiles its own arithmetic of monomials, of text made of variable counts alone.
_OWN_CODE = b"def monomial_"
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# `\log` without a base.
_LOG = re.compile(r"\\log(?![A-Za-z])(?!\s*_)")
# Numbers side by side, which the grammar would read as a sum (5 1) or a product (5.5.1).
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
_UNREADABLE = ("gold unreadable", "answer unreadable")
_CLOSE = {"exact": 1e-12, "decimal": 1e-6}


def _refuse(event: str, args: tuple) -> None:
    """An audit hook; what it raises stops the refused act."""
    if event == "compile" and args[0] is not None:
        # Modules that sympy imports late are compiled from files, text from "<...>".
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
    for name, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(name, (value, value))
        except (ValueError, OSError):
            # Some systems refuse a limit on address space; CPU time is bounded all the same.
            continue


def _read_number(text: str, *args, **kwargs):
    """In place of `sympy.parsing.sympy_parser.parse_expr`, which evaluates text as Python."""
    import sympy

    del args, kwargs
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    return sympy.Integer(int(text)) if text.isdigit() else sympy.Float(text)


def _angles(text: str) -> str:
    r"""With `20^\circ` as a number of radians, where the text has a function of angles."""
    if not _HAS_TRIG.search(text):
        return text
    while match := _DEGREE.search(text):
        head, tail = text[: match.start()], text[match.end() :]
        start = _angle_start(head)
        if start is None:
            raise ValueError("a degree sign behind nothing")
        # In parentheses, so that a function takes all of it and no more.
        text = rf"{head[:start]}({head[start:]}\cdot\frac{{\pi}}{{180}}){tail}"
    return text


def _angle_start(head: str) -> int | None:
    """Where the angle at the end of the text begins."""
    if head[-1:] not in (")", "}"):
        match = _ANGLE.search(head)
        return match.start() if match and match[0] else None
    depth = 0
    for i in range(len(head) - 1, -1, -1):
        depth += (head[i] in ")}") - (head[i] in "({")
        if depth == 0:
            # The numerator and the command belong to it.
            if head[i] == "{" and head[:i].endswith("}"):
                return _angle_start(head[:i])
            command = re.search(r"\\(?:frac|sqrt) ?$", head[:i])
            return command.start() if command else i
    return None


def _parse(text: str, real: bool | None):
    """A sympy object of LaTeX text. Raises whatever the parser raises."""
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex

    if _TWO_NUMBERS.search(_SCRIPTS.sub(" ", text)):
        raise ValueError("two numbers side by side")
    # Units are taken off before (by our rules, not by a list that holds single letters), and
    # the text is one formula: nothing is searched for in it.
    normal = normalize_latex(
        _angles(text),
        NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
        ),
    )
    # r and R are two variables.
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
    # The exponents of 2^{1.5} and e^{0.1t} are exact.
    return parsed.replace(
        lambda e: isinstance(e, (sympy.Pow, sympy.exp)) and e.exp.has(sympy.Float),
        lambda e: e.func(*e.args[:-1], _exact(e.args[-1])),
    )


def _exact(expression):
    """With fractions for decimals."""
    import sympy

    return expression.replace(lambda e: e.is_Float, lambda e: sympy.Rational(str(e)))


def _same(gold, answer) -> bool:
    """math-verify's word, and ours where it is too kind: equations, and very small numbers."""
    import sympy
    from math_verify import verify

    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        sides = (*gold.args, *answer.args)
        if all(isinstance(side, sympy.Expr) for side in sides):
            return _same_equation(gold, answer)
    # No time limit of theirs: it is a signal, and ours is the kernel's.
    if not verify(gold, answer, timeout_seconds=None, allow_set_relation_comp=True):
        return False
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _close(gold, answer)
    return True


def _same_equation(gold, answer) -> bool:
    """Equal up to a factor that is a number and not 0."""
    import sympy

    left, right = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    ratio = sympy.simplify(left / right)
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _close(gold, answer) -> bool:
    """Numbers that round to the same decimals may differ by a factor, as 1e-7 and 2e-7."""
    import sympy

    if gold.free_symbols or answer.free_symbols:
        return True
    exact = [x.doit() for x in (gold, answer)]
    if all(x.is_Rational for x in exact):
        return bool(exact[0] == exact[1])  # However close they are.
    a, b = (sympy.N(x, 30) for x in exact)
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return True
    decimal = gold.has(sympy.Float) or answer.has(sympy.Float)
    bound = _CLOSE["decimal" if decimal else "exact"] * max(abs(a), abs(b))
    return bool(abs(a - b) <= bound)


def judge(gold: str, answer: str) -> str:
    """One of "equal", "different", "gold unreadable", "answer unreadable"."""
    from math_verify.grader import should_treat_as_complex

    readings = [(gold, answer)]
    if _LOG.search(gold + " " + answer):
        # School reads base 10, everyone else base e; both sides are read alike.
        readings.append(tuple(_LOG.sub(r"\\ln", text) for text in (gold, answer)))
    outcome = "different"
    for pair in readings:
        # An assumption on one side alone would make its variables others than the gold's.
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
            if _same(*parsed):
                return "equal"
        except MemoryError:
            raise
        except Exception:  # Two kinds of objects that cannot be compared are not equal.
            outcome = "different"
    return outcome


def _warm() -> None:
    """Loads what sympy loads late, then takes its reader of strings away."""
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
    # Not before: sympy reads texts of its own as it loads.
    sympy.parsing.sympy_parser.parse_expr = _read_number


def main() -> None:
    """Answers requests until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    logging.disable(logging.CRITICAL)
    # Whatever this process inherited: the timer below must be able to end it.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})

    def say(message: dict) -> None:
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
        # CPU time, so that a busy machine changes no verdict. The signal's default action ends
        # the process wherever it is, in C code too.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            outcomes = [judge(gold, answer) for gold, answer in request["pairs"]]
        except MemoryError:
            say({"broken": f"more than {MEMORY >> 20} MiB of memory"})
            return
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        say({"outcomes": outcomes})
        # What came before must not decide how long the next one takes.
        sympy.core.cache.clear_cache()


if __name__ == "__main__":
    main()
