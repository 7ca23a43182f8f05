"""/dev/mapper/NAME for a mapped device: udev's business where udev runs, ours where it does not.

Promises: after `publish` a path opens the device; after `withdraw` none of ours is left.
Never: imports beyond the standard library, takes part in libdevmapper's semaphore handshake, or touches
a node that udev made.
"""

import os
import select
import time
from typing import Final

DIRECTORY: Final = "/dev/mapper"
_UDEV_CONTROL: Final = "/run/udev/control"
_UDEV_PATIENCE_SECONDS: Final = 5.0


def mangle(name: str) -> str:
    r"""The file name of a device: libdevmapper's `\xNN` for what udev does not allow in a name."""
    allowed = "#+-.:=@_"
    return "".join(
        c if (c.isascii() and c.isalnum()) or c in allowed else "".join(f"\\x{b:02x}" for b in c.encode()) for c in name
    )


def path_of(name: str) -> str:
    return f"{DIRECTORY}/{mangle(name)}"


def udev_runs() -> bool:
    return os.path.exists(_UDEV_CONTROL) and os.environ.get("DM_DISABLE_UDEV") is None


def publish(name: str, minor: int) -> None:
    path = path_of(name)
    if udev_runs():
        # Without a cookie there is nothing to wait on: look, at growing intervals, for what the rules make.
        deadline, pause = time.monotonic() + _UDEV_PATIENCE_SECONDS, 0.001
        while time.monotonic() < deadline:
            if os.path.exists(path) and os.stat(path).st_rdev == _dev_of(minor):
                return
            select.select([], [], [], pause)
            pause = min(pause * 2, 0.1)
    withdraw(name)
    os.symlink(f"../dm-{minor}", path)


def withdraw(name: str) -> None:
    """Remove our link; where udev runs, its removal event does it (ours is a link that dangles by then)."""
    path = path_of(name)
    if os.path.islink(path) and (not udev_runs() or not os.path.exists(path)):
        os.unlink(path)


def _dev_of(minor: int) -> int:
    try:
        return os.stat(f"/dev/dm-{minor}").st_rdev
    except FileNotFoundError:
        return -1
