"""A killed server whose FUSE connection lives on: one of its threads waits in the kernel for an answer that only it
could have given, and keeps /dev/fuse, the lock and the socket open. Everybody who touches its mount waits too.

Promises: ends the connection of a process that is dead (its first thread is no more, others are), never of a living
one; touches nothing of the mount but by umount2(2) and fusectl, which do not wait for it.
"""

import os
import time
from contextlib import suppress
from typing import Final

from thinfs.libc import MNT_FORCE, umount2
from thinfs.mountinfo import mounted_on
from thinfs.process_state import is_over

FS_TYPE: Final = "fuse.thinfs"
_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_PAUSE_SECONDS: Final = 0.05


def holds_on(pid: int) -> bool:
    """Is the process dead, and do threads of it hold its files still?"""
    if not is_over(pid):
        return False
    with suppress(OSError):
        return not all(is_over(pid, int(thread)) for thread in os.listdir(f"/proc/{pid}/task"))
    return False


def resolved(directory: str) -> str:
    """Where the mount on `directory` is, though it may answer nobody: realpath(3) would ask it."""
    for _ in range(40):
        directory = os.path.join(os.path.realpath(os.path.dirname(directory)), os.path.basename(directory))
        if mounted_on(directory) is not None:
            break
        try:
            directory = os.path.join(os.path.dirname(directory), os.readlink(directory))
        except OSError:
            break
    return directory


def end_connection(directory: str) -> bool:
    """What waits for the mount on `directory` fails from now on, with ENOTCONN; False if that cannot be
    done here: it takes root, or fusectl mounted on /sys/fs/fuse/connections."""
    directory = resolved(directory)
    entry = mounted_on(directory)
    if entry is None or entry.fs_type != FS_TYPE:
        return False
    with suppress(OSError):
        with open(f"{_CONNECTIONS}/{entry.minor}/abort", "r+b", buffering=0) as abort:
            abort.write(b"1")
        return True
    with suppress(OSError):
        umount2(directory, MNT_FORCE)  # EBUSY is the rule: aborted, and mounted still
    return os.geteuid() == 0


def let_go(pid: int, directory: str, *, grace_seconds: float, seconds: float) -> bool:
    """Wait for a dead process to let go of its files; after the grace, help it by ending its connection.

    True once it holds nothing; False for one that lives, which is not waited for.
    """
    begin = time.monotonic()
    helped = False
    while holds_on(pid):
        waited = time.monotonic() - begin
        if waited >= seconds:
            return False
        if waited >= grace_seconds and not helped:
            helped = end_connection(directory)
        time.sleep(_PAUSE_SECONDS)
    return not os.path.exists(f"/proc/{pid}") or is_over(pid)
