"""Right programs that a verifier must accept, as data: (source, input, output).

Many of them fail under harnesses that restrict builtins, imports or streams, or that split
arguments at blanks.
"""

SCRIPTS = {
    "plain": ("print(int(input()) * 2)", "4\n", "8"),
    "builtins": (
        "print(divmod(7, 2), bin(5), complex(1, 2).imag, type(1).__name__)",
        "",
        "(3, 1) 0b101 2.0 int",
    ),
    "super_and_staticmethod": (
        "class A:\n @staticmethod\n def f(): return 1\n def g(self): return 2\nclass B(A):\n def g(self): return super().g() + self.f()\nprint(B().g())",
        "",
        "3",
    ),
    "exceptions": (
        "try:\n  int('x')\nexcept ValueError:\n  print(1)\ntry:\n  [][1]\nexcept (KeyError, IndexError):\n  print(2)",
        "",
        "1\n2",
    ),
    "end_of_input": (
        "s = 0\nwhile True:\n  try: s += int(input())\n  except EOFError: break\nprint(s)",
        "1\n2\n3",
        "6",
    ),
    "sys_exit": ("import sys\nprint(1)\nsys.exit(0)", "", "1"),
    "sys_exit_without_a_code": ("import sys\nprint(1)\nsys.exit()", "", "1"),
    "exit": ("print(1)\nexit()", "", "1"),
    "quit": ("print(1)\nquit()", "", "1"),
    "system_exit": ("print(1)\nraise SystemExit", "", "1"),
    "os_exit_after_a_flush": ("import os\nprint(1, flush=True)\nos._exit(0)", "", "1"),
    "stdin_read": ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", "1 2\n3", "6"),
    "stdin_lines": (
        "import sys\nfor line in sys.stdin: print(line.strip()[::-1])",
        "ab\ncd\n",
        "ba\ndc",
    ),
    "stdin_readline": (
        "import sys\ninput = sys.stdin.readline\nn = int(input())\nprint(n + int(input()))",
        "1\n2\n",
        "3",
    ),
    "stdin_buffer": (
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "1 2\n3",
        "6",
    ),
    "stdin_buffer_readline": (
        "import sys\ninput = sys.stdin.buffer.readline\nprint(int(input()) + int(input()))",
        "1\n2\n",
        "3",
    ),
    "open_0": ("print(sum(map(int, open(0).read().split())))", "1 2\n3", "6"),
    "open_0_lines": ("n, *a = map(int, open(0))\nprint(n, sum(a))", "2\n3\n4\n", "2 7"),
    "dev_stdin": (
        "print(open('/dev/stdin').read().strip() if __import__('os').path.exists('/dev/stdin') else input())",
        "7",
        "7",
    ),
    "size_of_the_input": (
        "import os\nprint(os.read(0, os.fstat(0).st_size).decode()[::-1])",
        "abc",
        "cba",
    ),
    "fast_input_class": (
        "import os\nfrom io import BytesIO, IOBase\nclass F(IOBase):\n def __init__(s, f):\n  s.fd = f.fileno(); s.b = BytesIO()\n def readline(s):\n  if not s.b.getvalue(): s.b = BytesIO(os.read(s.fd, max(os.fstat(s.fd).st_size, 8192)))\n  return s.b.readline()\nimport sys\nsys.stdin = F(sys.stdin)\nprint(int(sys.stdin.readline()) + 1)",
        "4\n",
        "5",
    ),
    "stdout_write": ("import sys\nsys.stdout.write('1\\n2\\n')", "", "1\n2"),
    "stdout_buffer": ("import sys\nsys.stdout.buffer.write(b'1\\n')", "", "1"),
    "os_write": ("import os\nos.write(1, b'1\\n')", "", "1"),
    "own_file_on_1": ("out = open(1, 'w')\nout.write('1')", "", "1"),
    "redirected_stdout": (
        "import io, sys\nkept, sys.stdout = sys.stdout, io.StringIO()\nprint(5)\nkept.write(sys.stdout.getvalue())\nsys.stdout = kept",
        "",
        "5",
    ),
    "contextlib_redirect": (
        "import contextlib, io\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print(3)\nprint(b.getvalue())",
        "",
        "3",
    ),
    "atexit": (
        "import atexit, io, sys\nb = []\natexit.register(lambda: print('\\n'.join(b)))\nb.append('1')",
        "",
        "1",
    ),
    "finaliser": (
        "class A:\n def __del__(self): print('end')\na = A()\nprint('begin')",
        "",
        "begin\nend",
    ),
    "main_guard": ("def main(): print(1)\nif __name__ == '__main__': main()", "", "1"),
    "copy": ("import copy\nprint(copy.deepcopy([1, [2]]))", "", "[1, [2]]"),
    "threading": (
        "import threading\nr = []\nt = threading.Thread(target=lambda: r.append(1))\nt.start(); t.join()\nprint(r)",
        "",
        "[1]",
    ),
    "thread_that_prints_last": (
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print(2))).start()\nprint(1)",
        "",
        "1\n2",
    ),
    "deep_recursion_in_a_thread": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 27)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(100000)))\nt.start(); t.join()",
        "",
        "100000",
    ),
    "deep_recursion": (
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(20000))",
        "",
        "20000",
    ),
    "recursion_to_the_usual_limit": (
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(980))",
        "",
        "980",
    ),
    "caught_recursion_error": (
        "def f(): f()\ntry: f()\nexcept RecursionError: print(1)",
        "",
        "1",
    ),
    "namedtuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\nprint(P(1, 2).y)",
        "",
        "2",
    ),
    "dataclass": (
        "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass A:\n  x: int\n  y: list = field(default_factory=list)\nprint(A(1) < A(2))",
        "",
        "True",
    ),
    "enum": ("from enum import IntEnum\nclass E(IntEnum):\n  A = 1\nprint(E.A + 1)", "", "2"),
    "typing": ("from typing import *\nclass N(NamedTuple):\n  a: int\nprint(N(1).a)", "", "1"),
    "postponed_annotations": (
        "from __future__ import annotations\ndef f(x: Unknown): return x\nprint(f(1))",
        "",
        "1",
    ),
    "pickle_of_an_own_class": (
        "import pickle\nclass A:\n  x = 3\nprint(pickle.loads(pickle.dumps(A())).x)",
        "",
        "3",
    ),
    "eval_and_exec": ("exec('x = 2')\nprint(eval('x + 1'))", "", "3"),
    "frames": (
        "import sys, inspect\nprint(sys._getframe().f_code.co_name, len(inspect.stack()) > 0)",
        "",
        "<module> True",
    ),
    "lru_cache": (
        "from functools import lru_cache\n@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(80))",
        "",
        "23416728348467685",
    ),
    "decimal_and_fraction": (
        "from decimal import Decimal\nfrom fractions import Fraction\nprint(Decimal('0.1') + Decimal('0.2'), Fraction(1, 3) * 3)",
        "",
        "0.3 1",
    ),
    "standard_library": (
        "import array, bisect, cmath, datetime, hashlib, heapq, itertools, operator, queue, random, re, statistics, string, struct, time, zlib, calendar, textwrap, unicodedata, secrets, uuid, base64, csv, logging, tempfile, glob, pathlib\nprint(1)",
        "",
        "1",
    ),
    "asyncio": (
        "import asyncio\nasync def f(): await asyncio.sleep(0); print(1)\nasyncio.run(f())",
        "",
        "1",
    ),
    "fork_and_wait": (
        "import os\nif os.fork() == 0: os._exit(3)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))",
        "",
        "3",
    ),
    "another_interpreter": (
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True).stdout)",
        "",
        "5",
    ),
    "temporary_file": (
        "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n  f.write('x'); f.seek(0); print(f.read())\nopen('a.txt', 'w').write('y')\nprint(open('a.txt').read())",
        "",
        "x\ny",
    ),
    "signals": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print(1))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\nsignal.pause()",
        "",
        "1",
    ),
    "sleeps_a_little": ("import time\ntime.sleep(0.2)\nprint(1)", "", "1"),
    "unicode": ("print(input()[::-1])", "äß€😀", "😀€ßä"),
    "large_input": (
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        " ".join(map(str, range(100_000))),
        "4999950000",
    ),
    "large_output": (
        "print('\\n'.join(map(str, range(30000))))",
        "",
        "\n".join(map(str, range(30_000))),
    ),
    "some_memory": ("x = list(range(3 * 10 ** 6))\nprint(len(x))", "", "3000000"),
    "some_time": ("s = 0\nfor i in range(10 ** 6): s += i\nprint(s)", "", "499999500000"),
    "tabs_and_windows_lines": ("if True:\r\n\tprint(1)\r\n", "", "1"),
    "on_the_error_stream_too": (
        "import sys\nprint('debug', file=sys.stderr)\nprint(1)",
        "",
        "1",
    ),
    "float_output": ("print(1 / 3)", "", "0.333333333333"),
    "trailing_blanks": ("print('1 2 3 ')\nprint()", "", "1 2 3"),
    "ends_in_a_minus": ("print('x-')", "", "x-"),
    "asserts": ("assert 1 == 1\nprint(1)", "", "1"),
    "globals_used_late": ("def f(): return x\nx = 4\nprint(f())", "", "4"),
    "walrus_and_match": (
        "if (n := int(input())) > 1:\n  match n:\n    case 5: print('five')\n    case _: print('other')",
        "5",
        "five",
    ),
    "int_of_many_digits": (
        "import sys\nsys.set_int_max_str_digits(0)\nprint(len(str(3 ** 20000)))",
        "",
        "9543",
    ),
    "stream_that_flushes_at_the_end": (
        "import sys\nclass Out:\n def __init__(s): s.kept = []\n def write(s, t): s.kept.append(t)\n def flush(s):\n  sys.__stdout__.write(''.join(s.kept)); s.kept = []\nsys.stdout = Out()\nprint(5)",
        "",
        "5",
    ),
    "fast_output_class": (
        "import os, sys\nfrom io import BytesIO, IOBase\nclass F(IOBase):\n def __init__(s, f): s.fd = f.fileno(); s.b = BytesIO(); s.write = s.b.write\n def flush(s): os.write(s.fd, s.b.getvalue()); s.b.truncate(0); s.b.seek(0)\nclass W(IOBase):\n def __init__(s, f): s.b = F(f); s.flush = s.b.flush; s.write = lambda t: s.b.write(t.encode())\nsys.stdout = W(sys.stdout)\nprint(6)",
        "",
        "6",
    ),
    "stream_that_flushes_twice_the_same": (
        "import sys\nclass Out:\n def __init__(s, real): s.real, s.parts = real, []\n def write(s, t): s.parts.append(t)\n def flush(s): s.real.write(''.join(s.parts))\nsys.stdout = Out(sys.stdout)\nprint(1)",
        "",
        "1",
    ),
    "stream_that_writes_when_it_goes": (
        "import sys\nclass Out:\n def __init__(s, real): s.real, s.parts = real, []\n def write(s, t): s.parts.append(t)\n def flush(s): pass\n def __del__(s): s.real.write(''.join(s.parts))\nsys.stdout = Out(sys.stdout)\nprint(1)",
        "",
        "1",
    ),
    "deletes_its_stream": ("import sys\nprint(1)\ndel sys.stdout", "", "1"),
    "stream_that_cannot_flush": (
        "import sys\nprint(7)\nkept, sys.stdout = sys.stdout, None\nkept.flush()",
        "",
        "7",
    ),
    "writes_to_dev_null": (
        "import os, subprocess, sys\nsys.stderr = open(os.devnull, 'w')\nprint('x', file=sys.stderr, flush=True)\nsubprocess.run([sys.executable, '-c', 'print(2)'], stdout=subprocess.DEVNULL, check=True)\nprint(1)",
        "",
        "1",
    ),
    "imports_left_out": (
        "a: List[int] = sorted(map(int, sys.stdin.read().split()))\nprint(gcd(*a), bisect_left(a, 2), heapq.nsmallest(1, a), stdout is sys.stdout)",
        "4 6",
        "2 0 [4] True",
    ),
    "left_out_imports_shadow_nothing": (
        "import builtins, io\nprint(pow(2, 3), open is io.open, sum is builtins.sum, sys.getrecursionlimit(), 'gcd' in vars())",
        "",
        "8 True True 1000 False",
    ),
    "closes_stdout": ("import sys\nprint(1)\nsys.stdout.close()", "", "1"),
}

FUNCTIONS = {
    "function": ("def answer(a, b): return a + b", "1\n2", "3"),
    "solution": ("class Solution:\n  def answer(self, a, b): return a + b", "1\n2", "3"),
    "solution_with_types": (
        "class Solution:\n  def answer(self, a: List[int], b: Optional[int]) -> Dict[str, int]: return {'x': max(a)}",
        "[1, 2]\nnull",
        '{"x": 2}',
    ),
    "solution_static": (
        "class Solution:\n  @staticmethod\n  def answer(a): return a",
        "1",
        "1",
    ),
    "solution_that_is_a_subclass": (
        "class Base:\n  def answer(self, a): return a\nclass Solution(Base): pass",
        "1",
        "1",
    ),
    "list_with_blanks": ("def answer(a): return sorted(a)", "[3, 1, 2]", "[1, 2, 3]"),
    "text_with_blanks": ("def answer(s, t): return s + t", '"a b"\n" c d"', '"a b c d"'),
    "text_with_an_escaped_line_end": (
        "def answer(s): return s.split('\\n')",
        '"a\\nb"',
        '["a", "b"]',
    ),
    "nested_lists": (
        "def answer(g): return [r[::-1] for r in g]",
        "[[1, 2], [3, 4]]",
        "[[2, 1], [4, 3]]",
    ),
    "no_argument": ("def answer(): return 7", "", "7"),
    "blank_lines_between_arguments": ("def answer(a, b): return a - b", "5\n\n3\n", "2"),
    "tuples": ("def answer(a): return (a, (a,))", "1", "[1, [1]]"),
    "booleans": ("def answer(a): return a > 1", "2", "true"),
    "one_for_true": ("def answer(a): return 1", "2", "true"),
    "float_for_int": ("def answer(a): return a / 1", "2", "2"),
    "float_near_enough": ("def answer(a): return a / 3", "1", "0.33333333"),
    "nothing": ("def answer(a): return None", "1", "null"),
    "named_tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef answer(a): return P(a, 2)",
        "1",
        "[1, 2]",
    ),
    "counter": ("def answer(s): return Counter(s)", '"aab"', '{"a": 2, "b": 1}'),
    "default_dict": (
        "def answer(s):\n  d = defaultdict(list)\n  d['x'].append(s)\n  return d",
        "1",
        '{"x": [1]}',
    ),
    "deque": ("def answer(s): return deque([s])", "1", "[1]"),
    "int_keys": ("def answer(s): return {1: s}", "2", '{"1": 2}'),
    "enumeration": (
        "from enum import IntEnum\nclass E(IntEnum):\n  A = 4\ndef answer(s): return E.A",
        "1",
        "4",
    ),
    "imports_left_out": (
        "def answer(a): return [heapq.nsmallest(1, a), bisect_left(a, 2), gcd(4, 6), list(accumulate(a)), inf > 1]",
        "[1, 2]",
        "[[1], 1, 2, [1, 3], true]",
    ),
    "prints_too": ("def answer(a):\n  print('debug')\n  return a", "1", "1"),
    "main_guard": (
        "def answer(a): return a\nif __name__ == '__main__':\n  print(answer(int(input())))",
        "1",
        "1",
    ),
    "deep_recursion": (
        "def answer(n): return 0 if n == 0 else 1 + answer(n - 1)",
        "5000",
        "5000",
    ),
    "cached_method": (
        "class Solution:\n  @cache\n  def answer(self, n): return n if n < 2 else self.answer(n - 1) + self.answer(n - 2)",
        "50",
        "12586269025",
    ),
    "helper_classes": (
        "class Node:\n  def __init__(self, v): self.v = v\nclass Solution:\n  def answer(self, n): return Node(n).v",
        "3",
        "3",
    ),
    "dataclass": (
        "@dataclass\nclass A:\n  x: int\ndef answer(n): return A(n).x".replace(
            "@dataclass", "from dataclasses import dataclass\n@dataclass"
        ),
        "3",
        "3",
    ),
    "function_beside_a_solution": (
        "class Solution:\n  def other(self): return 1\ndef answer(n): return n",
        "3",
        "3",
    ),
    "changes_its_argument": ("def answer(a):\n  a.sort()\n  return a", "[2, 1]", "[1, 2]"),
    "unicode": ("def answer(s): return s[::-1]", '"äß"', '"ßä"'),
}
