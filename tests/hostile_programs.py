"""Programs that attack the sandbox, as data, each with the ways in which it may end.

A program prints BREACH if one of its attacks worked. The names in capitals are replaced: OUTSIDE
is a folder that everyone may write, SECRET a file that everyone may read, PARENT and SIBLING are
pids, PORT, UDP, LOCAL, ABSTRACT, MAILBOX and UNNAMED lead to servers that listen, OWNED is a file
of the worker's user. After every program the tests check that OUTSIDE is empty, OWNED unchanged,
no server was called, no output has the text of SECRET, parent and sibling live, no process is
left, and an honest program passes.
"""

from typing import NamedTuple

PRELUDE = '''
import ctypes, errno, gc, mmap, os, resource, signal, socket, subprocess, sys, threading, time
C = ctypes.CDLL(None, use_errno=True)
def attempt(what, call):
    try:
        got = call()
    except BaseException:
        return
    if got is not False:
        print("BREACH", what, repr(got)[:200], flush=True)
def kernel(what, *args):
    """A system call by number must fail."""
    if C.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args]) >= 0:
        print("BREACH", what, flush=True)
'''


class Hostile(NamedTuple):
    name: str
    source: str
    kinds: tuple[str, ...] = ("ok", "error")
    weaker: str = ""  # Why it may breach, at the level without namespaces.


ANY = ("ok", "error", "signal", "cpu", "memory", "idle", "output", "disk")

RESOURCES = [
    Hostile("fork_bomb", "while True: os.fork()"),
    Hostile(
        "fork_bomb_that_never_gives_up",
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            try: os.fork()
            except OSError: pass
        """,
        ("cpu",),
    ),
    Hostile(
        "thread_bomb",
        """
        def wait(): time.sleep(60)
        made = 0
        try:
            while made < 5000:
                threading.Thread(target=wait, daemon=True).start()
                made += 1
        finally:
            if made > 200: print("BREACH", made)
        """,
        ANY,
    ),
    Hostile("memory_at_once", "x = bytearray(20 << 30)", ("error",)),
    Hostile(
        "memory_by_and_by", "x = []\nwhile True: x.append(bytes(1 << 20))", ("error", "memory")
    ),
    Hostile(
        "memory_of_many_processes",
        """
        for _ in range(8):
            if os.fork() == 0:
                x = bytearray(b"x") * (180 << 20)
                time.sleep(30)
        time.sleep(30)
        """,
        ("memory",),
    ),
    Hostile(
        "memory_shared",
        """
        for _ in range(8):
            if os.fork() == 0:
                x = mmap.mmap(-1, 180 << 20)
                for i in range(0, 180 << 20, 4096): x[i] = 1
                time.sleep(30)
        time.sleep(30)
        """,
        ("memory",),
    ),
    Hostile(
        "memory_under_a_name_that_is_no_text",
        """
        for _ in range(8):
            if os.fork() == 0:
                C.prctl(15, b"\\xff) R \\n(", 0, 0, 0)
                x = bytearray(b"x") * (180 << 20)
                time.sleep(30)
        C.prctl(15, b"\\xff\\xfe", 0, 0, 0)
        time.sleep(30)
        """,
        ("memory",),
    ),
    Hostile("huge_number", "x = 7 ** (10 ** 9)", ("cpu", "error", "memory")),
    Hostile("regular_expression", 'import re\nre.match("(a+)+$", "a" * 60 + "b")', ("cpu",)),
    Hostile("busy_for_ever", "while True: pass", ("cpu",)),
    Hostile(
        "busy_in_threads",
        "for _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        ("cpu", "memory"),
    ),
    Hostile("sleeps_for_ever", "time.sleep(10 ** 6)", ("idle",)),
    Hostile("sleeps_in_small_pieces", "while True: time.sleep(0.001)", ("idle", "cpu")),
    Hostile("deadlock", "a = threading.Lock(); a.acquire(); a.acquire()", ("idle",)),
    Hostile("stops_itself", "os.kill(os.getpid(), signal.SIGSTOP)", ("idle",)),
    Hostile(
        "waits_for_a_child_that_sleeps",
        "p = os.fork()\nif not p: time.sleep(10**6)\nos.wait()",
        ("idle",),
    ),
    Hostile("output_flood", "while True: print('x' * 10 ** 6)", ("output",)),
    Hostile("error_flood", "while True: sys.stderr.write('x' * 10 ** 6)", ("output",)),
    Hostile(
        "output_flood_from_a_child",
        "if os.fork() == 0:\n  while True: print('x' * 10 ** 6)\ntime.sleep(60)",
        ("output",),
    ),
    Hostile(
        "one_large_file",
        "with open('f', 'wb') as f:\n  while True: f.write(bytes(1 << 20))",
        ("error", "disk"),
    ),
    Hostile(
        "many_files",
        "i = 0\nwhile True:\n  open(f'f{i}', 'wb').write(bytes(1 << 16)); i += 1",
        ("error", "disk", "cpu"),
    ),
    Hostile(
        "many_empty_files",
        "i = 0\nwhile True:\n  open(f'f{i}', 'w').close(); i += 1",
        ("error", "disk", "cpu"),
    ),
    Hostile(
        "files_without_names",
        """
        kept = []
        for _ in range(60):
            kept.append(open("f", "wb"))
            os.unlink("f")
            kept[-1].write(bytes(1 << 20)); kept[-1].flush()
        time.sleep(0.3)
        print("BREACH", sum(os.fstat(f.fileno()).st_blocks for f in kept))
     """,
        ("error", "disk"),
    ),
    Hostile(
        "sparse_file", "f = open('f', 'wb')\nattempt('sparse', lambda: f.truncate(1 << 40))"
    ),
    Hostile(
        "folders_deeper_than_a_path",
        "for i in range(3000):\n  os.mkdir('d' * 200); os.chdir('d' * 200)",
        ANY,
    ),
    Hostile(
        "locked_folders",
        "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)",
    ),
    Hostile("descriptors", "x = []\nwhile True: x.append(os.pipe())", ("error",)),
    Hostile(
        "pipe_buffers",
        """
        import fcntl
        for _ in range(60):
            r, w = os.pipe(); os.set_blocking(w, False)
            try: fcntl.fcntl(w, 1031, 1 << 20)
            except OSError: pass
            try:
                while True: os.write(w, bytes(1 << 16))
            except BlockingIOError: pass
     """,
    ),
    Hostile("recursion", "sys.setrecursionlimit(10 ** 9)\ndef f(): return f()\nf()", ANY),
    Hostile(
        "recursion_in_c",
        "sys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)",
        ANY,
    ),
    Hostile("null_pointer", "ctypes.string_at(0)", ("signal",)),
    Hostile("abort", "os.abort()", ("signal",)),
    Hostile("kills_itself", "os.kill(os.getpid(), signal.SIGKILL)", ("signal",)),
    Hostile(
        "raised_limits",
        """
        for name in dir(resource):
            if name.startswith("RLIMIT_"):
                kind = getattr(resource, name)
                soft, hard = resource.getrlimit(kind)
                for new in ((resource.RLIM_INFINITY,) * 2, (hard + 1, hard + 1)):
                    if hard != resource.RLIM_INFINITY:
                        attempt(name, lambda: resource.setrlimit(kind, new))
     """,
    ),
    Hostile(
        "ignores_signals",
        """
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True: pass
     """,
        ("cpu",),
    ),
    Hostile(
        "burns_in_children_nobody_waits_for",
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if os.fork() == 0:
                end = time.process_time() + 0.2
                while time.process_time() < end: pass
                os._exit(0)
            time.sleep(0.25)
     """,
        ("cpu", "idle"),
    ),
    Hostile("source_of_brackets", "(" * 50_000, ("error",)),
    Hostile("source_of_minus_signs", "x = " + "-" * 100_000 + "1", ANY),
    Hostile("source_with_zero_bytes", "x = 1\0", ("error",)),
    Hostile("source_with_half_a_pair", "x = '\ud800'", ("error",)),
    Hostile("source_with_another_encoding", "# -*- coding: no_such_codec -*-\nx = 1", ANY),
    Hostile(
        "class_that_breaks_its_own_error",
        """
        class E(Exception):
            def __str__(self): raise self
            __repr__ = __str__
        raise E
     """,
        ("error",),
    ),
]

SURVIVORS = [
    Hostile(
        "daemon",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 64)
                time.sleep(600)
            os._exit(0)
     """,
    ),
    Hostile(
        "daemon_that_holds_the_pipes",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(600)
            os._exit(0)
     """,
    ),
    Hostile(
        "daemon_that_writes_later",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.2)
                open("OUTSIDE/late", "w").close()
            os._exit(0)
     """,
    ),
    Hostile(
        "many_generations",
        """
        while True:
            try:
                if os.fork(): os._exit(0)
                os.setsid()
            except OSError: pass
     """,
        ANY,
    ),
    Hostile(
        "thread_that_never_ends",
        "threading.Thread(target=lambda: time.sleep(10 ** 6)).start()",
        ("idle",),
    ),
    Hostile(
        "exit_call_that_never_ends",
        "import atexit\ndef f():\n  while True: pass\natexit.register(f)",
        ("cpu",),
    ),
    Hostile(
        "finaliser_that_never_ends",
        "class A:\n def __del__(self):\n  while True: pass\na = A()",
        ("cpu",),
    ),
    Hostile(
        "another_interpreter",
        """
        code = "import os\\nif os.fork() == 0:\\n os.setsid()\\n import time\\n time.sleep(600)"
        os.execv(sys.executable, [sys.executable, "-c", code])
     """,
        ("ok", "error", "idle"),
    ),
]

READING = [
    Hostile("reads_the_secret", "attempt('secret', lambda: open('SECRET').read())"),
    Hostile(
        "reads_accounts",
        """
        for path in ("/etc/shadow", "/etc/passwd", "/root", "/home", "/etc/hostname", "/var"):
            attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read())
     """,
    ),
    Hostile(
        "reads_processes",
        """
        for pid in ("1", "PARENT", "SIBLING", str(os.getppid())):
            for name in ("environ", "mem", "maps", "syscall", "stack", "auxv"):
                attempt(pid + name, lambda: open(f"/proc/{pid}/{name}", "rb"))
            for name in ("fd", "root", "cwd"):
                attempt(pid + name, lambda: os.listdir(f"/proc/{pid}/{name}/"))
     """,
    ),
    Hostile(
        "climbs_out_of_links",
        """
        os.symlink("SECRET", "link")
        for path in ("link", "/proc/self/root/SECRET", "../" * 40 + "SECRET", "/proc/self/cwd/../SECRET"):
            attempt(path, lambda: open(path).read())
        attempt("hard link", lambda: os.link("SECRET", "hard"))
     """,
    ),
    Hostile(
        "reads_the_environment",
        """
        if any("CANARY" in key or "CANARY" in value for key, value in os.environ.items()): print("BREACH")
        try: start = open("/proc/self/environ").read()
        except OSError: start = ""
        if "CANARY" in start or C.getenv(b"CANARY"): print("BREACH")
     """,
    ),
    Hostile(
        "inherited_descriptors",
        """
        for fd in range(3, 4096):
            attempt(f"descriptor {fd}", lambda: os.fstat(fd))
        attempt("writes its input", lambda: os.write(0, b"x"))
        attempt("opens its input again", lambda: os.write(os.open("/proc/self/fd/0", os.O_WRONLY), b"x"))
        attempt("changes its input", lambda: os.ftruncate(0, 10))
        attempt("reads its output", lambda: os.read(1, 1))
        attempt("reads its output again", lambda: os.read(os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK), 1) or False)
     """,
    ),
    Hostile(
        "traces",
        """
        for pid in (1, PARENT, SIBLING, os.getppid()):
            for request in (16, 0x4206):
                if C.ptrace(request, pid, 0, 0) >= 0: print("BREACH ptrace", pid)
            buffer = ctypes.create_string_buffer(8)
            class V(ctypes.Structure): _fields_ = [("a", ctypes.c_void_p), ("n", ctypes.c_size_t)]
            v = V(ctypes.addressof(buffer), 8)
            if C.process_vm_readv(pid, ctypes.byref(v), 1, ctypes.byref(v), 1, 0) > 0: print("BREACH vm", pid)
            kernel("pidfd_open", 434, pid, 0)
     """,
    ),
    Hostile("word_for_the_next", "word = 'PREVIOUS-PROGRAM-WORD' * 1000"),
    Hostile(
        "memory_of_the_zygote",
        """
        # Another program said this word, which stands here in another form only.
        import re
        word = re.compile(b"PREVIOUS[-]PROGRAM[-]WORD")
        for line in open("/proc/self/maps"):
            span, rights = line.split()[:2]
            if not rights.startswith("rw") or "[v" in line: continue
            low, high = (int(x, 16) for x in span.split("-"))
            if word.search(ctypes.string_at(low, high - low)): print("BREACH", line)
     """,
        ("ok", "error", "signal"),
    ),
    Hostile(
        "frames_and_garbage",
        """
        import re
        word = re.compile("HIDDEN[-]EXPECTED")
        frame, seen = sys._getframe(), []
        while frame:
            seen += [str(frame.f_locals), str(frame.f_globals.keys())]
            frame = frame.f_back
        seen += [repr(o)[:10000] for o in gc.get_objects() if isinstance(o, (dict, list, tuple))][:20000]
        if any(word.search(text) for text in seen): print("BREACH")
     """,
        ANY,
    ),
    Hostile(
        "harness_modules",
        """
        attempt("package", lambda: __import__("mopd_jax"))
        for name in list(sys.modules):
            if "mopd" in name or "verif" in name: print("BREACH", name)
        for path in list(sys.path) + ["/usr/lib/python3/dist-packages"]:
            try: names = os.listdir(path)
            except OSError: continue
            if any("jax" in n or n.endswith(".dist-info") for n in names): print("BREACH", path)
     """,
    ),
]

WRITING = [
    Hostile(
        "writes_outside",
        """
        for path in ("OUTSIDE/f", "/f", "/etc/f", "/usr/f", "/dev/f", "/proc/f", "/var/tmp/f", "/home/f",
                     os.path.dirname(os.__file__) + "/f", sys.executable, os.__file__, "/dev/pts/f", "/bin/f", "/usr/lib/f"):
            attempt(path, lambda: open(path, "w").close())
            attempt("folder " + path, lambda: os.mkdir(path + "x"))
        attempt("unlink", lambda: os.unlink(os.__file__))
        attempt("rename", lambda: os.rename(os.__file__, os.__file__ + "x"))
     """,
    ),
    Hostile(
        "writes_through_links",
        """
        os.symlink("OUTSIDE", "away")
        attempt("link", lambda: open("away/f", "w").close())
        os.symlink("OUTSIDE/g", "file")
        attempt("file", lambda: open("file", "w").close())
        attempt("shm", lambda: open("/dev/shm/../../OUTSIDE/h", "w").close())
     """,
    ),
    Hostile(
        "owners_calls",
        """
        import fcntl
        attempt("chmod", lambda: os.chmod("OWNED", 0o777) or True)
        attempt("utime", lambda: os.utime("OWNED", (1, 1)) or True)
        attempt("truncate", lambda: os.truncate("OWNED", 0) or True)
        attempt("opens", lambda: os.open("OWNED", os.O_RDONLY | os.O_TRUNC))
        attempt("opens for nothing", lambda: os.open("OWNED", 3 | os.O_TRUNC))
        attempt("chown", lambda: os.chown("OWNED", -1, -1) or True)
        attempt("attribute", lambda: os.setxattr("OWNED", "user.a", b"b") or True)
        attempt("standard library", lambda: os.chmod(os.__file__, 0o777) or True)
     """,
    ),
    Hostile(
        "writes_to_proc",
        """
        for name, text in (("oom_score_adj", "-1000"), ("uid_map", "0 0 1"), ("setgroups", "allow")):
            attempt(name, lambda: open(f"/proc/self/{name}", "w").write(text) and open(f"/proc/self/{name}").read().strip() == text.strip() or False)
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj",
                     "/proc/kmsg", "/proc/kcore", "/sys/kernel/uevent_helper", "/sys/fs/cgroup"):
            attempt(path, lambda: open(path, "w"))
     """,
    ),
    Hostile(
        "devices",
        """
        for kind in (0o020000, 0o060000):
            attempt("mknod", lambda: os.mknod("dev", kind | 0o666, os.makedev(1, 1)))
        for path in ("/dev/mem", "/dev/kmem", "/dev/kvm", "/dev/vda", "/dev/sda", "/dev/fuse", "/dev/kmsg", "/dev/console", "/dev/tty",
                     "/dev/accel0", "/dev/nvidia0", "/dev/vfio/vfio", "/dev/net/tun", "/dev/loop0"):
            attempt(path, lambda: open(path, "rb"))
     """,
    ),
    Hostile(
        "set_uid_file",
        """
        open("f", "w").close()
        attempt("own", lambda: os.chown("f", 0, 0))
        attempt("uid", lambda: os.setuid(0) or os.getuid() == 0 or False)
        attempt("groups", lambda: os.setgroups([0]))
     """,
    ),
    Hostile(
        "poison_for_the_next",
        """
        for folder in (".", "/tmp", "/dev/shm"):
            for name in ("json.py", "sitecustomize.py", "usercustomize.py", "random.py"):
                try: open(f"{folder}/{name}", "w").write("raise SystemExit('poisoned')")
                except OSError: pass
        import json, builtins, io
        json.loads = json.dumps = builtins.print = builtins.compile = None
        os.fork = os.read = os.write = None
     """,
    ),
    Hostile(
        "finds_what_the_last_one_left",
        """
        left = os.listdir(".") + (os.listdir("/dev/shm") if not LIMITS else [])
        if left: print("BREACH", left)
     """,
    ),
    Hostile(
        "shared_memory_for_the_next",
        """
        if C.shmget(1234, 4096, 0o1666) >= 0: print("BREACH shmget")
        if C.msgget(1234, 0o1666) >= 0: print("BREACH msgget")
        if C.semget(1234, 1, 0o1666) >= 0: print("BREACH semget")
        kernel("mq_open", 240, b"/q", 0o102, 0o666, None)
        kernel("memfd_create", 319, b"m", 0)
        kernel("add_key", 248, b"user", b"k", b"v", 1, -3)
     """,
    ),
]

NETWORK = [
    Hostile(
        "tcp",
        """
        attempt("tcp", lambda: socket.create_connection(("127.0.0.1", PORT), 2))
        attempt("tcp6", lambda: socket.create_connection(("::1", PORT), 2))
        attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
     """,
    ),
    Hostile(
        "udp",
        "attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP)))",
    ),
    Hostile(
        "metadata_server",
        """
        import urllib.request
        attempt("metadata", lambda: urllib.request.urlopen("http://169.254.169.254/", timeout=2))
        attempt("name", lambda: socket.getaddrinfo("localhost.localdomain.example", 80))
     """,
    ),
    Hostile(
        "local_socket",
        """
        def call():
            s = socket.socket(socket.AF_UNIX); s.connect("LOCAL"); return True
        attempt("local", call)
     """,
    ),
    Hostile(
        "abstract_socket",
        """
        def call():
            s = socket.socket(socket.AF_UNIX); s.connect("\\0ABSTRACT"); return True
        attempt("abstract", call)
     """,
    ),
    Hostile(
        "datagrams_of_a_pair",
        """
        for address in ("MAILBOX", "\\0UNNAMED"):
            def send():
                a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                return a.sendto(b"x", address)
            attempt("datagram", send)
            def connect():
                a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                a.connect(address)
                return a.send(b"x")
            attempt("datagram", connect)
     """,
    ),
    Hostile(
        "other_families",
        """
        for family in range(2, 46):
            for kind in (1, 2, 3, 5):
                attempt(f"family {family}", lambda: socket.socket(family, kind))
            attempt(f"pair {family}", lambda: socket.socketpair(family, socket.SOCK_STREAM))
     """,
    ),
]

KERNEL = [
    Hostile(
        "namespaces",
        """
        for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):
            if C.unshare(flag) == 0: print("BREACH unshare", hex(flag))
            pid = C.syscall(56, ctypes.c_long(flag | 17), 0, 0, 0, 0)
            if pid == 0: os._exit(0)
            if pid > 0: print("BREACH clone", hex(flag))
        kernel("clone3", 435, ctypes.create_string_buffer(88), 88)
        for name in ("user", "pid", "net", "mnt"):
            try: fd = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
            except OSError: continue
            if C.setns(fd, 0) == 0: print("BREACH setns", name)
     """,
    ),
    Hostile(
        "mounts",
        """
        if C.mount(b"x", b"/tmp", b"tmpfs", 0, None) == 0: print("BREACH tmpfs")
        if C.mount(b"/", b"/tmp", None, 4096, None) == 0: print("BREACH bind")
        if C.mount(None, b"/", None, 32 | 4096, None) == 0: print("BREACH remount")
        for path in (b"/proc", b"/tmp", b"/dev", b"/"):
            if C.umount2(path, 2) == 0: print("BREACH umount", path)
        if C.chroot(b"/tmp") == 0: print("BREACH chroot")
        kernel("pivot_root", 155, b"/tmp", b"/tmp")
        kernel("open_tree", 428, -100, b"/", 1)
        kernel("fsopen", 430, b"tmpfs", 0)
        kernel("move_mount", 429, -100, b"/tmp", -100, b"/proc", 0)
     """,
    ),
    Hostile(
        "rare_calls",
        """
        for name, number, *args in (
            ("bpf", 321, 5, 0, 0), ("perf_event_open", 298, 0, 0, -1, -1, 0), ("io_uring_setup", 425, 8, ctypes.create_string_buffer(120)),
            ("userfaultfd", 323, 0), ("keyctl", 250, 0, -3, 1), ("request_key", 249, b"user", b"k", None, 0),
            ("init_module", 175, 0, 0, b""), ("finit_module", 313, 0, b"", 0), ("kexec_load", 246, 0, 0, 0, 0),
            ("open_by_handle_at", 304, -100, 0, 0), ("name_to_handle_at", 303, -100, b"/", ctypes.create_string_buffer(64), ctypes.create_string_buffer(8), 0),
            ("fanotify_init", 300, 0, 0), ("personality", 135, 0x0400000), ("modify_ldt", 154, 0, 0, 0), ("kcmp", 312, 1, 1, 0, 0, 0),
            ("lookup_dcookie", 212, 0, 0, 0), ("vmsplice", 278, 1, 0, 0, 0), ("splice", 275, 0, 0, 1, 0, 1, 0), ("tee", 276, 0, 1, 1, 0),
            ("mbind", 237, 0, 0, 0, 0, 0, 0), ("migrate_pages", 256, 0, 0, 0, 0), ("swapon", 167, b"/tmp/x", 0), ("reboot", 169, 0, 0, 0, 0),
            ("settimeofday", 164, 0, 0), ("sethostname", 170, b"x", 1), ("acct", 163, 0), ("quotactl", 179, 0, 0, 0, 0), ("iopl", 172, 3),
            ("syslog", 103, 3, ctypes.create_string_buffer(10), 10), ("pidfd_getfd", 438, 0, 0, 0), ("process_madvise", 440, 0, 0, 0, 0, 0),
            ("landlock", 444, 0, 0, 1), ("seccomp", 317, 1, 0, 0), ("ptrace", 101, 0, 0, 0, 0), ("inotify_init", 253),
            ("execveat", 322, -100, b"/usr/bin/python3", None, None, 0), ("userfault_bad", 1000),
        ):
            kernel(name, number, *args)
     """,
    ),
    Hostile(
        "capabilities",
        """
        header, full = ctypes.create_string_buffer(b"\\x22\\x05\\x08\\x20" + bytes(4), 8), ctypes.create_string_buffer(b"\\xff" * 24, 24)
        kernel("capset", 126, header, full)
        kernel("securebits", 157, 28, 0)
        kernel("dumpable", 157, 4, 0)
        kernel("no new privileges off", 157, 38, 0, 0, 0, 0)
        kernel("subreaper", 157, 36, 1)
        status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else ""
        for line in status.splitlines():
            if line.startswith(("CapInh", "CapPrm", "CapEff", "CapAmb")) and int(line.split()[1], 16): print("BREACH", line)
            if line.startswith("NoNewPrivs") and line.split()[1] != "1": print("BREACH", line)
            if line.startswith("Seccomp:") and line.split()[1] != "2": print("BREACH", line)
     """,
    ),
    Hostile(
        "other_numbers_of_the_same_call",
        "C.syscall(ctypes.c_long(0x40000000 + 41), 2, 1, 0)\nprint('BREACH x32')",
        ("signal",),
    ),
    Hostile(
        "calls_of_another_architecture",
        """
        code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"  # getpid by int 0x80
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        ctypes.CFUNCTYPE(ctypes.c_long)(address)()
        print("BREACH int 0x80")
     """,
        ("signal",),
    ),
    Hostile(
        "terminal_input",
        """
        import fcntl
        for fd in range(3):
            for code in (0x5412, 0x541C, 0x540E, 0x4B67):
                attempt(f"ioctl {code:x}", lambda: fcntl.ioctl(fd, code, b"x"))
     """,
    ),
    Hostile(
        "kills_others",
        """
        for pid in (1, PARENT, SIBLING, os.getppid()):
            if pid not in (0, os.getpid()):
                for number in (9, 15, 2, 19, 11, 6):
                    try: os.kill(pid, number)
                    except OSError: pass
        try: os.kill(-1, 19)
        except OSError: pass
        try: os.kill(-1, 2)
        except BaseException: pass
     """,
        ANY,
    ),
    Hostile(
        "signals_by_a_descriptor",
        """
        import fcntl
        a, b = socket.socketpair()
        for pid in (PARENT, SIBLING, os.getppid()):
            for command, value in ((15, b"\\1" + bytes(3) + pid.to_bytes(4, "little")), (8, pid), (10, 9)):
                if LIMITS: attempt(f"fcntl {command}", lambda: fcntl.fcntl(a, command, value) or True)
            try: fcntl.fcntl(a, 8, pid); fcntl.fcntl(a, 10, 9)
            except OSError: pass
            fcntl.fcntl(a, fcntl.F_SETFL, fcntl.fcntl(a, fcntl.F_GETFL) | os.O_ASYNC)
            b.send(b"x")
        # What else it is for works.
        fcntl.fcntl(a, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        with open("f", "w") as file: fcntl.lockf(file, fcntl.LOCK_EX); fcntl.flock(file, fcntl.LOCK_UN)
     """,
        ("ok",),
    ),
    Hostile(
        "limits_of_the_supervisor",
        """
        for pid in (1, os.getppid(), PARENT, SIBLING):
            for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
                attempt(f"prlimit {pid}", lambda: resource.prlimit(pid, kind, (0, 0)) if pid else False)
            attempt(f"affinity {pid}", lambda: os.sched_setaffinity(pid, {0}) if pid else False)
            attempt(f"priority {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19) if pid else False)
        attempt("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
     """,
    ),
    Hostile(
        "escapes_its_group",
        "if os.fork() == 0:\n  os.setsid(); time.sleep(60)\nattempt('nice', lambda: os.nice(-5))",
    ),
]

PROGRAMS = RESOURCES + SURVIVORS + READING + WRITING + NETWORK + KERNEL
# Source text is the weapon: nothing stands before it.
RAW = [hostile for hostile in RESOURCES if hostile.name.startswith("source_")]
