"""Loop devices over memory in the guest: backing devices of any size, with discard, that grow and shrink.

Promises: files that have no name left once attached, so that detaching frees them.
Never: imports beyond the standard library. ubd's discard limit is 32 KiB, so a pool with passdown needs its
data on one of these (docs/reference/guest.md, "Facts that cost time to find").
"""

import fcntl
import os
from typing import Final

_LOOP_SET_FD: Final = 0x4C00
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_SET_DIRECT_IO: Final = 0x4C08
_LOOP_CTL_GET_FREE: Final = 0x4C82


class Loops:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: dict[str, int] = {}

    def loop_create(self, size_bytes: int) -> tuple[str, str]:
        """A new device of that size: its path and its `MAJ:MIN`."""
        with open("/dev/loop-control", "rb") as control:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        device, name = f"/dev/loop{number}", f"{self._directory}/loop{number}"
        backing = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.unlink(name)
            os.truncate(backing, size_bytes)
            with open(device, "r+b", buffering=0) as loop:  # opened for reading it would be a read-only device
                fcntl.ioctl(loop, _LOOP_SET_FD, backing)
                rdev = os.fstat(loop.fileno()).st_rdev
        except BaseException:
            os.close(backing)
            raise
        self._files[device] = backing
        return device, f"{os.major(rdev)}:{os.minor(rdev)}"

    def loop_resize(self, device: str, size_bytes: int) -> None:
        os.truncate(self._files[device], size_bytes)
        with open(device, "rb") as loop:
            fcntl.ioctl(loop, _LOOP_SET_CAPACITY)

    def loop_detach(self, device: str) -> None:
        with open(device, "rb") as loop:
            fcntl.ioctl(loop, _LOOP_CLR_FD)
        os.close(self._files.pop(device))

    def detach_all(self) -> None:
        for device in list(self._files):
            self.loop_detach(device)
