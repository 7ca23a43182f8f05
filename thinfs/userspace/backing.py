"""What the words for devices in a table mean, and the backing devices that are open in this process.

    device = "/dev/mapper/" NAME | MOUNT_DIR "/" NAME | MAJOR ":" MINOR | path of a file or block device

Promises: a backing file is opened once per process and locked against every other process; two pools on
one data device share the handle (the kernel allows it, reference 1). Never: touches a file of our own mount.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from thinfs.blockdev import BlockDevice, FileDevice
from thinfs.errors import BackingMissing, from_oserror

_NUMBERS: Final = re.compile(r"([0-9]+):([0-9]+)")
DEV_MAPPER: Final = "/dev/mapper"

Identity: TypeAlias = tuple[str, int, int]


@dataclass(slots=True, eq=False)
class Backing:
    """A shared handle; released as often as it was acquired, then closed."""

    device: BlockDevice
    identity: Identity
    read_only: bool
    users: int = 0

    @property
    def block_number(self) -> tuple[int, int] | None:
        """(major, minor) of a block device or a mapped device; a regular file has none."""
        kind, major, minor = self.identity
        return None if kind == "file" else (major, minor)


class BackingDevices:
    """The backing devices open in this process, by what they are and not by how they are called."""

    def __init__(self) -> None:
        self._open: dict[tuple[Identity, bool], Backing] = {}

    def acquire(self, path: str, *, read_only: bool = False) -> Backing:
        """Open or share a file or block device. BackingMissing, Busy and the system's errors, naming it."""
        if numbers := _NUMBERS.fullmatch(path):
            path = _path_of_number(int(numbers[1]), int(numbers[2]))
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BackingMissing(f"{path}: no such file or device") from None
        except OSError as error:
            raise from_oserror(error, path) from None
        return self._share(identity_of(info), read_only, lambda: FileDevice(path, read_only=read_only))

    def acquire_mapped(self, major: int, minor: int, make: Callable[[], BlockDevice], *, read_only: bool) -> Backing:
        """The same for a mapped device of this process."""
        return self._share(("mapped", major, minor), read_only, make)

    def _share(self, identity: Identity, read_only: bool, make: Callable[[], BlockDevice]) -> Backing:
        backing = self._open.get((identity, read_only))
        if backing is None:
            backing = self._open[identity, read_only] = Backing(make(), identity, read_only)
        backing.users += 1
        return backing

    def release(self, backing: Backing) -> None:
        backing.users -= 1
        if backing.users == 0:
            del self._open[backing.identity, backing.read_only]
            backing.device.close()


def identity_of(info: os.stat_result) -> Identity:
    if stat.S_ISBLK(info.st_mode):
        return ("block", os.major(info.st_rdev), os.minor(info.st_rdev))
    return ("file", info.st_dev, info.st_ino)


def _path_of_number(major: int, minor: int) -> str:
    """The device node of a block device number, as sysfs names it."""
    link = f"/sys/dev/block/{major}:{minor}"
    try:
        return "/dev/" + os.path.basename(os.readlink(link))
    except OSError:
        raise BackingMissing(f"{major}:{minor}: no such block device") from None


def mapped_name(word: str, mount_dir: str) -> str | None:
    """The device name in `/dev/mapper/NAME` or `MOUNT_DIR/NAME`, else None."""
    directory, name = os.path.split(os.path.normpath(word))
    return name if directory in (DEV_MAPPER, os.path.normpath(mount_dir)) and name else None


def mapped_number(word: str) -> tuple[int, int] | None:
    numbers = _NUMBERS.fullmatch(word)
    return (int(numbers[1]), int(numbers[2])) if numbers else None
