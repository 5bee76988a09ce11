"""A child process that is a copy of this one: for what cannot be tried without ending, limiting or killing a process."""

from __future__ import annotations

import ctypes
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

CANNOT = 77
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000


def forked(work: Callable[[], None]) -> int:
    """The process id of a child that does the work and ends with 0, with 1 on an error, 77 on NotImplementedError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: the child starts none of torch's
        process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except NotImplementedError:
        code = CANNOT
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def code_of(process: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def mount_tiny(folder: Path, size: str) -> None:
    """Mounts a file system of that size ("3m") on a folder, for this process alone; NotImplementedError if it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS | _NEW_USER):
        raise NotImplementedError
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        raise NotImplementedError
