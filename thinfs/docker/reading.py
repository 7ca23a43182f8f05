"""How a file of Docker's directory is read, whoever has written there: inside the directory, bounded, never waiting.

Promises: no symbolic link is followed, none of a directory that leads out of Docker's either; what is no regular file
or larger than Docker makes them is an OSError or a ValueError; JSON that nests without end is a ValueError.
"""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Final

MAX_FILE_BYTES: Final = 16 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


def open_inside(root: Path, path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path` below `root` (resolved). OSError with a text that says why not."""
    parent = os.path.realpath(path.parent)
    if os.path.commonpath([parent, root]) != str(root):
        raise OSError(errno.ELOOP, f"leads out of {root}, to {parent}")
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a symbolic link: not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def read_inside(root: Path, path: Path) -> bytes:
    descriptor = open_inside(root, path)
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return file.read(MAX_FILE_BYTES + 1)


def parse_json(data: bytes) -> Any:
    if not data:
        raise ValueError("empty")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked_name(value: object, what: str) -> str:
    """What Docker names files by: ids, hashes, `base`. ValueError for anything else, above all a path."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(f"{what} {value!r:.60} is not the name of a record")
    return value
