"""What a scoring process is denied: memory without end, the network, other programs, other processes.

No verifier runs model text as a program; this is the second wall, for the day a parser has a hole. On x86-64 and
arm64 the kernel enforces it (seccomp); everywhere a Python audit hook refuses the same, and writing files, with a clear
error.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2
_SECCOMP_ALLOW, _SECCOMP_ERRNO = 0x7FFF0000, 0x00050000
_BPF_LOAD_WORD, _BPF_JUMP_IF_EQUAL, _BPF_JUMP_IF_AT_LEAST, _BPF_RETURN = 0x20, 0x15, 0x35, 0x06
_X32_SYSCALL_BIT = 0x40000000

# socket, connect, bind, execve, execveat, ptrace, process_vm_readv, process_vm_writev, io_uring_setup
_DENIED_SYSCALLS = {
    "x86_64": (0xC000003E, (41, 42, 49, 59, 322, 101, 310, 311, 425)),
    "aarch64": (0xC00000B7, (198, 203, 200, 221, 281, 117, 270, 271, 425)),
}
_DENIED_OS_CALLS = (
    *("system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "kill", "putenv"),
    *("remove", "rename", "rmdir", "mkdir", "chmod", "chown", "link", "symlink"),
)
_DENIED_EVENTS = frozenset(
    {*(f"os.{call}" for call in _DENIED_OS_CALLS), "subprocess.Popen", "pty.spawn", "shutil.rmtree", "ctypes.dlopen"}
)


def die_with_parent() -> None:
    """The kernel kills this process when the one that started it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(limit_mib: int) -> None:
    """Caps the address space of this process, and forbids core dumps."""
    limit = limit_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def deny_outside_world() -> None:
    """From here on this process opens no socket, starts no program and writes no file. There is no way back."""
    _install_seccomp_filter()
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple) -> None:
    if event in _DENIED_EVENTS or event.startswith("socket."):
        raise PermissionError(errno.EPERM, f"a verifier may not do this: {event}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise PermissionError(errno.EPERM, "a verifier may not write files")


def _install_seccomp_filter() -> bool:
    """Makes the denied system calls fail with EPERM. False where the kernel or the architecture has no such filter."""
    if platform.machine() not in _DENIED_SYSCALLS or sys.platform != "linux":
        return False
    architecture, denied = _DENIED_SYSCALLS[platform.machine()]
    # Jumps count instructions to skip: everything denied, and the x32 variants of all calls, goes to the last one.
    program = [
        (_BPF_LOAD_WORD, 0, 0, 4),
        (_BPF_JUMP_IF_EQUAL, 0, len(denied) + 3, architecture),
        (_BPF_LOAD_WORD, 0, 0, 0),
        (_BPF_JUMP_IF_AT_LEAST, len(denied) + 1, 0, _X32_SYSCALL_BIT),
        *((_BPF_JUMP_IF_EQUAL, len(denied) - index, 0, number) for index, number in enumerate(denied)),
        (_BPF_RETURN, 0, 0, _SECCOMP_ALLOW),
        (_BPF_RETURN, 0, 0, _SECCOMP_ERRNO | errno.EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    filter_program = struct.pack(
        "HxxxxxxQ" if struct.calcsize("P") == 8 else "HxxI", len(program), ctypes.addressof(code)
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_program, 0, 0) == 0
