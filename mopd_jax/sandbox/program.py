"""Runs the program in its own process inside the sandbox: its streams, its module, its result.

Nothing here protects a verdict, because the program shares this interpreter and may change all
of it. It can only write bytes, which the host compares with outputs that never enter the
sandbox. Standard library only, Python 3.9 or later.
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
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

# LiveCodeBench's judge imports all names of these modules, so its solutions rely on them.
PRELUDE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing"),
)
_RECURSION = 50_000  # Recursion limit of function tests; other judges raise it, too.
_FILE = "<program>"
_MAX_DEPTH = 200  # Levels of nesting in a returned value.


def run_program(job: dict) -> NoReturn:
    """Runs the program as its own `__main__`, or calls its function; ends the process.

    It ends as any script does: waits for threads, makes the `atexit` calls, drops the globals
    (which closes and so writes the program's files), flushes standard output. The interpreter's
    own teardown would do the same, but takes most of a small program's time.
    """
    leave, endings = os._exit, atexit._run_exitfuncs
    threads = threading._shutdown  # type: ignore[attr-defined]  # Python does not export it.
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
    # Before its globals go, as the interpreter does: a stream of the program's own needs them.
    for name in ("stdout", "stderr"):
        quietly(flush, name)
    sys.stdout, sys.stderr = streams  # So that a stream of its own is not flushed twice.
    for key in list(module.__dict__):
        module.__dict__[key] = None
    quietly(gc.collect)
    for stream in streams:
        quietly(stream.flush)
    leave(code)


def quietly(call: Callable[..., object], *args: object) -> None:
    """Calls and drops any error, so that the other steps of a program's end still happen."""
    with contextlib.suppress(BaseException):
        call(*args)


def flush(name: str) -> None:
    """Flushes `sys.stdout` or `sys.stderr`, whatever the program has put there."""
    getattr(sys, name).flush()


def exit_code(code: object) -> int:
    """The exit status of `sys.exit(code)`, as the interpreter computes it."""
    if code is None or isinstance(code, int):
        return 0 if code is None else int(code) & 0xFF
    quietly(lambda: sys.stderr.write(f"SystemExit: {code}\n"))
    return 1


def wrap_streams() -> tuple[TextIO, TextIO]:
    """Makes the standard streams real files, so that `.buffer`, `.fileno()`, `open(0)` work.

    Returns:
        Standard output and standard error.
    """

    def text(fd: int, mode: str, errors: str, buffering: int = -1) -> Any:
        return open(fd, mode, buffering, encoding="utf-8", errors=errors, closefd=False)

    streams = {
        "stdin": text(0, "r", "surrogateescape"),
        "stdout": text(1, "w", "surrogateescape"),
        "stderr": text(2, "w", "backslashreplace", buffering=1),
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return streams["stdout"], streams["stderr"]


def provide() -> None:
    """Adds the modules of PRELUDE and their public names to the builtins, as other judges do.

    They do not go into the program's module: the function that a test calls must be one that
    the program defines or imports, not `gcd` or `add` of this list. Called before the fork,
    because each new reference to an object copies the memory page that the object is in.
    """
    builtin = vars(importlib.import_module("builtins"))
    names: dict[str, Any] = {}
    for source in PRELUDE:
        loaded = importlib.import_module(source)
        public = getattr(loaded, "__all__", None) or [n for n in vars(loaded) if n[0] != "_"]
        names.update((n, getattr(loaded, n)) for n in public if n not in builtin)
    names.update((source, importlib.import_module(source)) for source in PRELUDE)
    builtin.update(names)


def provide_streams() -> None:
    """Adds `argv` and the streams, of which each program has its own, to the builtins."""
    builtin = vars(importlib.import_module("builtins"))
    builtin.update((name, getattr(sys, name)) for name in ("argv", "stdin", "stdout", "stderr"))


def respond(module: types.ModuleType, name: str, arguments: list) -> None:
    """Calls the program's function and writes its result to descriptor 3, one line of JSON."""
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


def plain(value: Any, depth: int = 0) -> Any:
    """The value in JSON's own types; a subclass loses the methods that it redefines.

    Raises:
        TypeError: a value of another type.
        ValueError: deeper than 200 levels.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if depth > _MAX_DEPTH:
        raise ValueError(f"the result is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__add__("", str.__str__(value))
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return [plain(item, depth + 1) for item in tuple.__iter__(value)]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in pairs}
    if kind.__module__ == "collections" and kind.__name__ == "deque":
        return [plain(item, depth + 1) for item in value]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist(), depth + 1)
    raise TypeError(f"the result holds a {kind.__name__}, which JSON does not have")


def explain(kind: Any, error: Any, trace: Any) -> None:
    """Writes a traceback of the program's own frames to standard error."""
    while trace is not None and trace.tb_frame.f_code.co_filename != _FILE:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(kind, error, trace, limit=-8))
    except BaseException:
        text = f"{kind.__name__}\n"
    with contextlib.suppress(BaseException):
        sys.stderr.write(text)
