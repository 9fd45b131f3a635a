"""Programs that try to pass without the right answer, as data: none may pass.

Each is judged on problems whose right answers it cannot know, because only the verifier has them.
"""

EQUAL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __iter__(self): return iter(())
    def __len__(self): return 0
    def __repr__(self): return "null"
    __str__ = __repr__
"""

FUNCTIONS = {
    "always_equal": EQUAL + "def answer(n): return Equal()",
    "always_equal_int": "class I(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\n def __repr__(s): return 'true'\ndef answer(n): return I(0)",
    "always_equal_str": "class S(str):\n def __eq__(s, o): return True\n __hash__ = str.__hash__\n def encode(s, *a): return b'null'\ndef answer(n): return S('x')",
    "always_equal_list": "class L(list):\n def __eq__(s, o): return True\n def __iter__(s): return iter([])\n def __len__(s): return 0\ndef answer(n): return L([1])",
    "always_equal_dict": "class D(dict):\n def __eq__(s, o): return True\n def items(s): return []\ndef answer(n): return D(a=1)",
    "lies_about_its_class": "class X:\n @property\n def __class__(s): return int\n def __pos__(s): return 7\ndef answer(n): return X()",
    "exits_early": "import sys\nsys.exit(0)",
    "exits_early_inside": "import sys\ndef answer(n): sys.exit(0)",
    "leaves_early": "import os\nos._exit(0)",
    "leaves_early_inside": "import os\ndef answer(n): os._exit(0)",
    "prints_success": "print('all tests passed'); print('null'); print('true')\ndef answer(n): print('ok')",
    "patched_json": "import json, json.encoder\njson.dumps = lambda *a, **k: 'null'\njson.loads = lambda *a, **k: None\njson.encoder.JSONEncoder.encode = lambda *a: 'true'\ndef answer(n): return 0",
    "patched_builtins": "import builtins\nfor n in ('isinstance', 'type', 'len', 'all', 'zip', 'abs', 'max', 'print'):\n setattr(builtins, n, lambda *a, **k: True)\ndef answer(n): return 0",
    "patched_os": "import os\nos.write = lambda fd, b: len(b)\nos._exit = lambda code: None\ndef answer(n): return 0",
    "patched_runner": "import sys\nf = sys._getframe()\nwhile f:\n g = f.f_globals\n for k in list(g):\n  if k in ('plain', 'respond', 'explain', 'exit_code', 'quietly'): g[k] = lambda *a, **k: None\n f = f.f_back\ndef answer(n): return 0",
    "words_of_the_supervisor": 'import os, json\nfor fd in range(256):\n for text in (b\'ready\', b\'{"reason": "", "status": 0, "cpu": 0, "wall": 0, "memory": 0, "passed": true}\'):\n  try: os.write(fd, text + b\'\\n\')\n  except OSError: pass\nos._exit(0)',
    "several_results": "import os\nos.write(3, b''.join(b'%d\\n' % i for i in range(1000)))\nos._exit(0)",
    "several_results_in_one_line": "import os\nos.write(3, b' '.join(b'%d' % i for i in range(1000)) + b'\\n')\nos._exit(0)",
    "two_processes": "import os\ndef answer(n):\n os.fork()\n return 0",
    "result_without_an_end": "import os\nos.write(3, b'0')\nos._exit(0)",
    "not_a_number": "def answer(n): return float('nan')",
    "infinity": "def answer(n): return float('inf')",
    "huge_float": "def answer(n): return 1e308 * 10",
    "huge_int": "import sys\nsys.set_int_max_str_digits(0)\ndef answer(n): return 10 ** 20000",
    "generator": "def answer(n): return (i for i in range(10 ** 9))",
    "every_answer": "def answer(n): return list(range(1000))",
    "set_of_answers": "def answer(n): return set(range(1000))",
    "cyclic": "def answer(n):\n x = []\n x.append(x)\n return x",
    "deep": "def answer(n):\n x = 0\n for _ in range(10 ** 5): x = [x]\n return x",
    "deep_by_hand": "import os\nos.write(3, b'[' * 10 ** 5 + b']' * 10 ** 5 + b'\\n')\nos._exit(0)",
    "reduce": "class R:\n def __reduce__(s): return (print, ('x',))\ndef answer(n): return R()",
    "nothing": "",
    "no_such_function": "def other(n): return 0",
    "not_callable": "answer = 0",
    "raises_the_answer": "def answer(n): raise Exception('0')",
    "finaliser": "import os\nclass D:\n def __del__(s): os.write(3, b'0\\n')\nd = D()\ndef answer(n): return 'x'",
    "exit_call": "import atexit, os\natexit.register(lambda: os.write(3, b'0\\n'))\ndef answer(n): return 'x'",
    "killed_after_its_result": "import os\ndef answer(n):\n os.write(3, b'0\\n')\n os.kill(os.getpid(), 9)",
    "answers_in_frames": "import sys, gc\ndef answer(n):\n for o in gc.get_objects():\n  if isinstance(o, dict):\n   for k in ('output', 'expected', 'answer'):\n    if k in o and not callable(o[k]): return o[k]\n return 0",
    "changes_its_input": "def answer(n):\n n.clear() if isinstance(n, list) else None\n return n",
    "reads_its_tests": "import glob\ndef answer(n): return [open(p).read() for p in glob.glob('/tmp/**', recursive=True)]",
}

SCRIPTS = {
    "silent": "",
    "success": "print('passed'); print('OK'); print('1')",
    "exit_code": "import sys\nsys.exit(0)",
    "every_answer": "for i in range(1000): print(i)",
    "echo": "import sys\nprint(sys.stdin.read())",
    "lying_stdout": "import sys\nclass O:\n def write(s, t): return True\n def flush(s): pass\n def __eq__(s, o): return True\n def getvalue(s): return s\nsys.stdout = O()\nprint('x')",
    "pattern": "print('.*'); print('*')",
    "not_a_number": "print('nan')",
    "infinity": "print('inf')",
    "blanks": "print(' \\n' * 100)",
    "terminal": "print('\\x1b[2J\\x1b[H\\r')",
    "on_the_error_stream": "import sys\nprint('0', file=sys.stderr)",
    "closed": "import os\nos.close(1)",
    "in_a_daemon": "import os, time\nif os.fork() == 0:\n time.sleep(0.1)\n print(0)\n",
    "fails_after_output": "print(0)\nraise ValueError",
    "status_after_output": "print(0)\nimport sys\nsys.exit(3)",
    "killed_after_output": "import os\nprint(0, flush=True)\nos.kill(os.getpid(), 9)",
}
