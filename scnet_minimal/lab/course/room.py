"""A room for a program that is not to be trusted: it sees what it needs, writes to a small disk in memory, reaches no
network, and everything that it has started ends with it.

On Linux by namespaces, which need no rights where the system lets users have them (most do; inside containers often
not).  Elsewhere only the limits remain: can_isolate() tells.
"""
import ctypes
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DISK, FILES, MEMORY = 256 * 2**20, 10_000, 4 * 2**30        # bytes and files in the scratch folder; bytes of memory

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000     # <linux/sched.h>
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1, 2, 4, 0x4000, 0x40000                       # <linux/mount.h>
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
PDEATHSIG, SUBREAPER, NO_NEW_PRIVS, CAPBSET_DROP = 1, 36, 38, 24                                    # <linux/prctl.h>


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def can_isolate() -> bool:
    """Whether namespaces work here, tried in a child."""
    if sys.platform != "linux":
        return False
    if (pid := os.fork()) == 0:
        try:
            enter_namespaces()
            hide([], Path("/tmp"))
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def enter_namespaces() -> None:
    """New user, mount, process, network and IPC namespaces; returns in a new process, the first of its namespace.

    The caller stays behind to wait for it, and ends as it ends.
    """
    uid, gid = os.getuid(), os.getgid()
    _must(_libc().unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    _must(_libc().prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def hide(folders: list[Path], scratch: Path) -> None:
    """Make the whole file system read-only, these folders empty, and `scratch` a small disk in memory; drop rights."""
    libc = _libc()
    _must(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    attributes = struct.pack("QQQQ", ATTR_RDONLY, 0, 0, 0)
    _must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)), "mount_setattr")
    for folder in [*folders, Path("/run"), Path("/var/run")]:       # sockets of services live in /run
        if folder.is_dir():
            _must(libc.mount(b"none", os.fsencode(folder.resolve()), b"tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV,
                             b"size=4k"), f"hide {folder}")
    _must(libc.mount(b"none", os.fsencode(scratch.resolve()), b"tmpfs", MS_NOSUID | MS_NODEV,
                     f"size={DISK},nr_inodes={FILES}".encode()), "scratch")
    libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)      # may fail in a container: no harm
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    _must(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _must(libc.capset(struct.pack("II", 0x20080522, 0), bytes(24)), "capset")


def set_limits(seconds: float) -> None:
    """Of this process and its children: processor time, memory, size of files, number of files; no core dumps."""
    import resource

    in_use = psutil.Process().memory_info()
    memory = getattr(in_use, "data", in_use.vms) + MEMORY
    for what, limit in ((resource.RLIMIT_CPU, int(4 * seconds) + 5), (resource.RLIMIT_DATA, memory),
                        (resource.RLIMIT_FSIZE, DISK), (resource.RLIMIT_NOFILE, 256), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))


def adopt_orphans() -> None:
    """From now on, processes whose parents have ended become children of this one, where end_children() finds them."""
    if sys.platform == "linux":
        _libc().prctl(SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Kill every process below this one, until none is left."""
    while family := psutil.Process().children(recursive=True):
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(family, timeout=1)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


def run_apart(work: Callable[[], bytes], seconds: float, *, isolated: bool, hidden: list[Path],
              scratch: Path) -> tuple[bytes, str]:
    """work()'s answer from a child process in a room of its own, and "" or why there is none.

    Whatever happens, after `seconds` the child is gone, and all that it has started.
    """
    receive, send = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(receive)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            os.dup2(send, 3)
            os.closerange(4, 256)
            set_limits(seconds)
            if isolated:
                enter_namespaces()
                hide(hidden, scratch)
            answer = work() + b"\n"
            while answer:
                answer = answer[os.write(3, answer):]
            os._exit(0)
        except BaseException:
            os._exit(71)
    os.close(send)
    try:
        answer, why = _read_until(receive, time.monotonic() + seconds)
    finally:
        os.close(receive)
        os.kill(pid, signal.SIGKILL)                        # the first process of a namespace ends with it, and all
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        end_children()
    return answer, why or ("" if answer else f"its process ended early, with code {status}: out of memory?")


def _read_until(pipe: int, end: float) -> tuple[bytes, str]:
    """One line, or "" at the end of the stream; what is left running may keep it open."""
    content = b""
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        part = os.read(pipe, 65536)
        content += part
        if not part or b"\n" in part or len(content) > 2**20:
            return content.partition(b"\n")[0], ""
    return b"", "timeout"
