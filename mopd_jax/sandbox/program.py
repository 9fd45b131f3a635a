"""The program's own process inside the sandbox: real streams, its module, its result.

Nothing here is a barrier: the program shares this interpreter and may change all of it. It can
only write bytes, and the host compares those with what never entered the sandbox.
Standard library only, Python 3.9 or later.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import traceback
import types

# LiveCodeBench's judge imports all names of these, so solutions leave their imports out.
PRELUDE = "string re datetime collections heapq bisect copy math random statistics itertools"
PRELUDE = (PRELUDE + " functools operator io sys json typing").split()
_RECURSION = 50_000  # Of function tests, whose judges raise it too.
_FILE = "<program>"
_MAX_DEPTH = 200  # Of a returned value.


def run_program(job: dict) -> None:
    """Runs the program as its own `__main__`, or calls its function; ends the process.

    The end is that of any script: threads are waited for, `atexit` calls made, globals let go
    (so that files of its own are written out), standard output flushed. The interpreter's own
    teardown would do the same and take most of a small program's time.
    """
    leave, threads, endings = os._exit, threading._shutdown, atexit._run_exitfuncs
    atexit._clear()
    streams = wrap_streams()
    sys.argv = [_FILE]
    call = job.get("call")
    name = "__main__" if call is None else "solution"
    module = types.ModuleType(name)
    sys.modules[name] = module
    for hidden in [n for n in sys.modules if n.startswith("mopd_jax")]:
        del sys.modules[hidden]
    importlib.import_module("random").seed(0)
    code = 0
    try:
        provide_streams()
        if call is not None:
            sys.setrecursionlimit(_RECURSION)
        exec(compile(job["source"], _FILE, "exec", dont_inherit=True), module.__dict__)
        if call is not None:
            respond(module, call, json.loads(job["arguments"]))
            leave(0)
    except SystemExit as ended:
        code = exit_code(ended.code)
    except BaseException:
        explain(*sys.exc_info())
        code = 1
    quietly(threads)
    quietly(endings)
    # As the interpreter does: a stream of the program's own needs its module to flush.
    for name in ("stdout", "stderr"):
        quietly(lambda name=name: getattr(sys, name).flush())
    sys.stdout, sys.stderr = streams  # So that none of its own is flushed twice.
    for key in list(module.__dict__):
        module.__dict__[key] = None
    quietly(gc.collect)
    for stream in streams:
        quietly(lambda stream=stream: stream.flush())
    leave(code)


def quietly(call) -> None:
    """Calls; what goes wrong at a program's end does not stop the rest of it."""
    with contextlib.suppress(BaseException):
        call()


def exit_code(code) -> int:
    """The status of `sys.exit(code)`, as the interpreter has it."""
    if code is None or isinstance(code, int):
        return 0 if code is None else int(code) & 0xFF
    quietly(lambda: sys.stderr.write(f"SystemExit: {code}\n"))
    return 1


def wrap_streams() -> tuple:
    """Real files on descriptors 0, 1, 2: `.buffer`, `.fileno()` and `open(0)` work."""

    def text(fd, mode, **options):
        return open(fd, mode, encoding="utf-8", closefd=False, **options)

    sys.stdin = sys.__stdin__ = text(0, "r", errors="surrogateescape")
    sys.stdout = sys.__stdout__ = text(1, "w", errors="surrogateescape")
    sys.stderr = sys.__stderr__ = text(2, "w", errors="backslashreplace", buffering=1)
    return sys.stdout, sys.stderr


def provide() -> None:
    """Adds the names that judges provide to the builtins: of the modules of PRELUDE, and those.

    Not to the program's module: a function that is asked for must be one that it defines or
    imports, and not `gcd` or `add` of this list. Called before the fork, for a later reference
    to each of these objects would copy the memory that it is in.
    """
    builtin = vars(importlib.import_module("builtins"))
    names = {}
    for source in PRELUDE:
        loaded = importlib.import_module(source)
        public = getattr(loaded, "__all__", None) or [n for n in vars(loaded) if n[0] != "_"]
        names.update((n, getattr(loaded, n)) for n in public if n not in builtin)
    names.update((source, importlib.import_module(source)) for source in PRELUDE)
    builtin.update(names)


def provide_streams() -> None:
    """The same of what is the program's own."""
    builtin = vars(importlib.import_module("builtins"))
    builtin.update((name, getattr(sys, name)) for name in ("argv", "stdin", "stdout", "stderr"))


def respond(module: types.ModuleType, name: str, arguments: list) -> None:
    """Calls the function and writes what it returns as one line of JSON."""
    dumps, write = json.dumps, os.write
    owner = getattr(module, "Solution", None)
    if isinstance(owner, type) and hasattr(owner, name):
        function = getattr(owner(), name)
    elif callable(getattr(module, name, None)):
        function = getattr(module, name)
    else:
        raise NameError(f"the program defines no function or Solution method {name!r}")
    line = dumps(plain(function(*arguments))).encode() + b"\n"
    while line:
        line = line[write(3, line) :]


def plain(value, depth: int = 0):
    """The value in JSON's own types; subclasses lose whatever they have redefined."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if depth > _MAX_DEPTH:
        raise ValueError(f"the result is nested deeper than {_MAX_DEPTH}")
    for base, copy in ((int, int.__pos__), (float, float.__pos__)):
        if isinstance(value, base):
            return copy(value)
    if isinstance(value, str):
        return str.__add__("", str.__str__(value))
    for base in (list, tuple):
        if isinstance(value, base):
            return [plain(item, depth + 1) for item in base.__iter__(value)]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in pairs}
    if kind.__module__ == "collections" and kind.__name__ == "deque":
        return [plain(item, depth + 1) for item in value]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist(), depth + 1)
    raise TypeError(f"the result holds a {kind.__name__}, which is no plain value")


def explain(kind, error, trace) -> None:
    """A traceback of the program's own frames on standard error."""
    while trace is not None and trace.tb_frame.f_code.co_filename != _FILE:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(kind, error, trace, limit=-8))
    except BaseException:
        text = f"{kind.__name__}\n"
    with contextlib.suppress(BaseException):
        sys.stderr.write(text)
