"""Confinement by the kernel: namespaces, capabilities, limits, Landlock, the seccomp filter.

Used by `guest.py` inside the sandbox, and by the host to ask what the kernel supports. Standard
library only, Python 3.9 or later, because the interpreter inside may be older than the host's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import resource
import struct

NEW_MOUNT, NEW_IPC, NEW_USER, NEW_PID = 0x20000, 0x8000000, 0x10000000, 0x20000000
_ANY_NAMESPACE = 0x7E020000
_MOUNT_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "private": 0x40000, "recursive": 0x4000}
_PR_PDEATHSIG, _PR_DUMPABLE, _PR_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SUBREAPER, _PR_NO_NEW_PRIVS, _PR_AMBIENT = 36, 38, 47

# System calls that a program may make: name, number on x86_64, number on aarch64. Any other
# fails with ENOSYS, so that libraries fall back to an older call. Calls that newer kernels add
# are refused too, since they are not listed.
ALLOWED = """
read 0 63; write 1 64; open 2 -; openat 257 56; close 3 57; stat 4 -; fstat 5 80; lstat 6 -;
newfstatat 262 79; statx 332 291; poll 7 -; ppoll 271 73; lseek 8 62; mmap 9 222;
mprotect 10 226; munmap 11 215; brk 12 214; mremap 25 216; msync 26 227; madvise 28 233;
rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigpending 127 136;
rt_sigtimedwait 128 137; rt_sigsuspend 130 133; sigaltstack 131 132; pread64 17 67;
pwrite64 18 68; readv 19 65; writev 20 66; preadv 295 69; pwritev 296 70; access 21 -;
faccessat 269 48; faccessat2 439 439; pipe 22 -; pipe2 293 59; select 23 -; pselect6 270 72;
sched_yield 24 124; dup 32 23; dup2 33 -; dup3 292 24; pause 34 -; nanosleep 35 101;
clock_nanosleep 230 115; getitimer 36 102; setitimer 38 103; alarm 37 -; getpid 39 172;
gettid 186 178; getppid 110 173; fork 57 -; vfork 58 -; execve 59 221; exit 60 93;
exit_group 231 94; wait4 61 260; waitid 247 95; tgkill 234 131; uname 63 160;
flock 73 32; fsync 74 82; fdatasync 75 83; truncate 76 45; ftruncate 77 46; getdents 78 -;
getdents64 217 61; getcwd 79 17; chdir 80 49; fchdir 81 50; rename 82 -; renameat 264 38;
renameat2 316 276; mkdir 83 -; mkdirat 258 34; rmdir 84 -; creat 85 -; link 86 -;
linkat 265 37; unlink 87 -; unlinkat 263 35; symlink 88 -; symlinkat 266 36; readlink 89 -;
readlinkat 267 78; chmod 90 -; fchmod 91 52; fchmodat 268 53; umask 95 166;
gettimeofday 96 169; time 201 -; getrlimit 97 163; setrlimit 160 164; getrusage 98 165;
sysinfo 99 179; times 100 153; getuid 102 174; getgid 104 176; geteuid 107 175; getegid 108 177;
getresuid 118 148; getresgid 120 150; getgroups 115 158; getpgrp 111 -; getpgid 121 155;
setpgid 109 154; getsid 124 156; setsid 112 157; utime 132 -; utimes 235 -; utimensat 280 88;
futimesat 261 -; statfs 137 43; fstatfs 138 44; getpriority 140 141; sched_getaffinity 204 123;
sched_getparam 143 121; sched_getscheduler 145 120; sched_get_priority_max 146 125;
sched_get_priority_min 147 126; arch_prctl 158 -; futex 202 98; set_robust_list 273 99;
get_robust_list 274 100; set_tid_address 218 96; clock_gettime 228 113; clock_getres 229 114;
epoll_create 213 -; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -;
epoll_pwait 281 22; eventfd2 290 19; getrandom 318 278; rseq 334 293; membarrier 324 283;
getcpu 309 168; restart_syscall 219 128; bind 49 200; connect 42 203; listen 50 201;
accept 43 202; accept4 288 242; getsockname 51 204; getpeername 52 205; sendto 44 206;
recvfrom 45 207; sendmsg 46 211; recvmsg 47 212; shutdown 48 210; setsockopt 54 208;
getsockopt 55 209; close_range 436 436; copy_file_range 326 285; sendfile 40 71;
fallocate 285 47; fadvise64 221 223
"""
# Calls that are allowed with certain arguments only; `filter_rules` says which.
CHECKED = """
clone 56 220; kill 62 129; socket 41 198; socketpair 53 199; prctl 157 167; ioctl 16 29;
prlimit64 302 261; sched_setaffinity 203 122; fcntl 72 25
"""
# Changes that an owner may make to a file by name and that Landlock does not refuse. Without
# namespaces, under a host that is not root, they would reach every file of its user.
_OF_OWNERS = ("chmod", "fchmod", "fchmodat", "utime", "utimes", "utimensat", "futimesat")
_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _GREATER_EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_FIRST, _SECOND, _THIRD = 16, 24, 32  # Offsets of the low words of a call's arguments.
_AF_UNIX = 1
# Pairs of stream or packet sockets, whose two ends are fixed, with or without the flags not to
# block and to close at exec.
_PAIRS = tuple(kind | flags for kind in (1, 5) for flags in (0, 0x800, 0x80000, 0x80800))
_TRUNCATE = 0x200  # The flag of `open` that empties the file.
# With these calls an end of a pair could take a name that other processes of the host look for.
# A pair works without them.
_OF_NAMES = ("bind", "connect", "listen", "accept", "accept4")
# Commands on descriptors, flags, locks, pipe sizes and seals. Those that choose who is sent a
# signal are left out.
_FCNTL = (*range(8), 9, *range(36, 39), *range(1030, 1035))
# prctl: names of threads. ioctl: what isatty asks, bytes waiting, window size, flags.
_PRCTL = (15, 16)
_IOCTL = (0x5401, 0x541B, 0x5413, 0x5421, 0x5451, 0x5450)


def numbers(table: str, machine: str) -> dict[str, int]:
    """{name: number} of the calls of a table, without those that the machine lacks."""
    column = _MACHINES[machine][1]
    rows = [row.split() for row in table.replace("\n", " ").split(";")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library, loaded so that `ctypes.get_errno` works."""
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(*args: int) -> None:
    """prctl(2); raises OSError."""
    padded = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)][:5]
    _check(libc().prctl(*padded), f"prctl {args}")


def die_with_parent() -> None:
    """Lets the kernel kill this process when the thread that started it ends."""
    prctl(_PR_PDEATHSIG, 9)


def set_dumpable(on: bool) -> None:
    """Allows or forbids processes of the same uid to inspect this one through /proc."""
    prctl(_PR_DUMPABLE, int(on))


def adopt_orphans() -> None:
    """Makes orphans below this process its own children rather than those of pid 1."""
    prctl(_PR_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """unshare(2); raises OSError."""
    _check(libc().unshare(flags), f"unshare {flags:#x}")


def mount(source: str, target: str, kind: str | None, flags: str, data: str = "") -> None:
    """mount(2) with flags by name, separated by blanks; raises OSError."""
    mask = sum(_MOUNT_FLAGS[name] for name in flags.split())
    args = (source.encode(), target.encode(), kind.encode() if kind else None, mask)
    _check(libc().mount(*args, data.encode() or None), f"mount {kind} on {target}")


def enter_user_namespace() -> None:
    """Enters a user namespace where this process, same uid, holds every capability."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEW_USER)
    # Until setgroups is denied the kernel refuses the group map.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_capabilities() -> None:
    """Gives up all capabilities, also those that exec could bring back."""
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # Past the last one, or we hold none that could be dropped.
            break
    with contextlib.suppress(OSError):
        prctl(_PR_AMBIENT, 4)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _check(libc().capset(header, nothing), "capset")


def no_new_privileges() -> None:
    """Keeps exec from granting privileges, in this process and all it starts."""
    prctl(_PR_NO_NEW_PRIVS, 1)


def set_limits(job: dict, *, stack: int = 128 << 20) -> None:
    """Sets the resource limits of one program, soft equal to hard so that it can raise none.

    Args:
        job: `cpu` seconds, `memory` and `file` bytes, `tasks` a number.
        stack: bytes of the first thread's stack.
    """
    wanted = {
        resource.RLIMIT_CPU: int(job["cpu"]) + 2,  # Above the supervisor's own, finer limit.
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: job["file"],
        resource.RLIMIT_NPROC: job["tasks"],
        resource.RLIMIT_STACK: stack,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _either(offset: int, values: tuple[int, ...], otherwise: int) -> list[tuple]:
    """Instructions that allow a call if an argument is one of the values, else fail it.

    Args:
        offset: of the argument's low word.
        otherwise: the error number.
    """
    block = [(_LOAD, 0, 0, offset)]
    for value in values:
        block += [(_EQUAL, 0, 1, value & 0xFFFFFFFF), (_RETURN, 0, 0, _ALLOW)]
    return [*block, (_RETURN, 0, 0, _ERRNO | otherwise)]


def _shared_rules(pid: int, landlock: int) -> dict[str, list[tuple]]:
    """Instructions for calls that reach what a process without namespaces shares."""
    refuse = [(_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    # A pair of datagram sockets could send to any socket of the host, so pairs must be streams.
    pairs = [(_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, _AF_UNIX), *refuse]
    rules = {
        "kill": _either(_FIRST, (0, pid, -pid), errno.EPERM),
        "tgkill": _either(_FIRST, (pid,), errno.EPERM),
        "socket": refuse,
        "socketpair": [*pairs, *_either(_SECOND, _PAIRS, errno.EPERM)],
        "fcntl": _either(_SECOND, _FCNTL, errno.EPERM),
        **dict.fromkeys((*_OF_OWNERS, *_OF_NAMES), refuse),
    }
    if landlock < 3:
        # `open` can empty a file that it opens for reading (mode 0) or for neither reading nor
        # writing (mode 3), which Landlock before version 3 does not treat as writing.
        spare = [(_ANY_BIT, 0, 4, _TRUNCATE), (_ANY_BIT, 0, 1, 1), (_ANY_BIT, 1, 2, 2)]
        spare += [(_ANY_BIT, 1, 0, 2), *refuse, (_RETURN, 0, 0, _ALLOW)]
        rules["truncate"] = refuse
        rules["open"] = [(_LOAD, 0, 0, _SECOND), *spare]
        rules["openat"] = [(_LOAD, 0, 0, _THIRD), *spare]
    return rules


def filter_rules(machine: str, *, isolated: bool, pid: int, landlock: int) -> list[tuple]:
    """The seccomp program as (code, jump if true, jump if false, value).

    Args:
        isolated: the process has namespaces of its own, so local sockets and signals reach no
            other program. If not, it gets neither, except signals to itself.
        pid: of the process that the filter is for; read only where not `isolated`.
        landlock: version of the Landlock rules that the process is under; 0: none.
    """
    architecture = _MACHINES[machine][0]
    local = _either(_FIRST, (_AF_UNIX,), errno.EPERM)
    checked = {
        "clone": [
            (_LOAD, 0, 0, _FIRST),
            (_ANY_BIT, 0, 1, _ANY_NAMESPACE),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ],
        "kill": [(_RETURN, 0, 0, _ALLOW)],
        "socket": local,
        "socketpair": local,
        "fcntl": [(_RETURN, 0, 0, _ALLOW)],
        "prctl": _either(_FIRST, _PRCTL, errno.EPERM),
        "ioctl": _either(_SECOND, _IOCTL, errno.ENOTTY),
        "prlimit64": _either(_FIRST, (0,), errno.EPERM),
        "sched_setaffinity": _either(_FIRST, (0,), errno.EPERM),
    }
    allowed = numbers(ALLOWED, machine)
    every = {**allowed, **numbers(CHECKED, machine)}
    if not isolated:
        checked |= _shared_rules(pid, landlock)
    rules = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    # Other calling conventions of the same machine (x32) use numbers from here on.
    rules += [(_LOAD, 0, 0, 0), (_GREATER_EQUAL, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for name, block in checked.items():
        if name not in every:  # aarch64 lacks the older forms.
            continue
        rules += [(_EQUAL, 0, len(block), every[name]), *block]
        allowed.pop(name, None)
    for low, high in _ranges(sorted(allowed.values())):
        rules += [(_GREATER_EQUAL, 0, 2, low), (_GREATER, 1, 0, high), (_RETURN, 0, 0, _ALLOW)]
    return [*rules, (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]


def _ranges(values: list[int]) -> list[tuple[int, int]]:
    """(first, last) of every run of consecutive values; `values` are sorted."""
    ranges: list[tuple[int, int]] = []
    for value in values:
        if ranges and ranges[-1][1] == value - 1:
            ranges[-1] = (ranges[-1][0], value)
        else:
            ranges.append((value, value))
    return ranges


@functools.cache
def filter_code(*, isolated: bool, pid: int, landlock: int) -> bytes:
    """The filter for this machine in the kernel's format, eight bytes an instruction."""
    rules = filter_rules(platform.machine(), isolated=isolated, pid=pid, landlock=landlock)
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def restrict_calls(*, isolated: bool, landlock: int) -> None:
    """Puts the filter on this process and on all it will start; raises OSError.

    A forked child inherits the filter with its parent's pid in it, so without `isolated` it may
    signal that parent but not itself.
    """
    pid = 0 if isolated else os.getpid()
    code = filter_code(isolated=isolated, pid=pid, landlock=landlock)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    pointer = ctypes.create_string_buffer(program, len(program))
    no_new_privileges()
    mode_filter = ctypes.c_ulong(2)
    _check(libc().prctl(_PR_SECCOMP, mode_filter, pointer, 0, 0), "seccomp")


def seccomp_known() -> bool:
    """Whether this kernel has seccomp and `ALLOWED` has this machine's numbers."""
    return platform.machine() in _MACHINES and os.path.exists("/proc/sys/kernel/seccomp")


_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 0b1101  # Execute, read a file, read a folder.
_OF_FILES = 0b111 | 1 << 14 | 1 << 15  # Execute, write, read, truncate, ioctl.


def landlock_version() -> int:
    """The version of the kernel's Landlock interface; 0 where it has none."""
    version = libc().syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), 1)
    return max(version, 0)


def landlock_rules(readable: list[str], writable: list[str]) -> int:
    """Makes Landlock rules that allow these paths; raises OSError.

    Everything else on disk is refused, and where the kernel's version covers them also TCP, and
    signals and abstract sockets to processes outside.

    Returns:
        The rules' file descriptor, for `landlock`.
    """
    version = landlock_version()
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    handled = struct.pack("=Q", rights)
    handled += struct.pack("=Q", 3) if version >= 4 else b""
    handled += struct.pack("=Q", 3) if version >= 6 else b""
    call = libc().syscall
    size = ctypes.c_size_t(len(handled))
    rules = _check(call(ctypes.c_long(_LANDLOCK_CREATE), handled, size, 0), "landlock")
    for paths, wanted in ((readable, _READ), (writable, rights)):
        for path in paths:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = wanted & rights & (rights if os.path.isdir(path) else _OF_FILES)
            rule = struct.pack("=Qi", allowed, opened)
            _check(call(ctypes.c_long(_LANDLOCK_ADD), rules, 1, rule, 0), f"landlock {path}")
            os.close(opened)
    return rules


def landlock(rules: int) -> None:
    """Puts Landlock rules on this process and on all it will start; raises OSError."""
    no_new_privileges()
    _check(libc().syscall(ctypes.c_long(_LANDLOCK_RESTRICT), rules, 0), "landlock")
