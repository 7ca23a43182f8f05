"""Whose is what stands beside DIR: the socket, who listens on it, the lock, the log. Another user's is never used.

In a directory that others may write to, anybody can put such a file there first. Promises: only our own user and
root are believed. Refusals are PermissionError with a text of their own as `strerror`. Imports what the interpreter
has built in, for the drop-in client loads it.
"""

import _socket
import os

from thinfs.process_state import is_over

CREDENTIALS = (_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # getsockopt(*CREDENTIALS); struct ucred: pid, uid, gid

_EPERM = 1
_LISTED_TYPES = 0o170000
_REGULAR = 0o100000


def check_listener(credentials: bytes, address: str) -> None:
    """Of a connection to `address`: who called listen(2) there?"""
    uid = int.from_bytes(credentials[4:8], "little")
    if uid not in (0, os.geteuid()):
        raise _refused(f"{address}: who listens there is uid {uid}, neither uid {os.geteuid()} nor root")


def listener_is_over(credentials: bytes) -> bool:
    """A killed process may keep its socket: connections are taken, and nobody answers (thinfs.dead_server)."""
    return is_over(int.from_bytes(credentials[0:4], "little"))


def check_file(descriptor: int, path: str) -> None:
    """Of a lock or a log that was opened for writing: a file of our own, under no other name."""
    info = os.fstat(descriptor)
    if info.st_uid != os.geteuid():
        raise _refused(f"{path}: belongs to uid {info.st_uid}, not to uid {os.geteuid()}: not used")
    if info.st_mode & _LISTED_TYPES != _REGULAR:
        raise _refused(f"{path}: not a regular file: not used")
    if info.st_nlink > 1:
        raise _refused(f"{path}: has {info.st_nlink} hard links, so it may be another file: not used")


def check_owner(path: str) -> None:
    """Of a path that is replaced (a socket) or stood upon (a run-time directory), if it is there."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if info.st_uid not in (0, os.geteuid()):
        raise _refused(f"{path}: belongs to uid {info.st_uid}, neither to uid {os.geteuid()} nor to root")


def _refused(text: str) -> PermissionError:
    return PermissionError(_EPERM, text)
