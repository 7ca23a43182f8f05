"""DIR.numbers: which number of device-mapper is which node here, as links: a `stat` needs no answer of the server.

    major -> 252 · 252:1 -> /dev/loop4 · 7:4 -> 252:1 · without loop devices: 252:1 -> DIR/NAME · inode:5 -> 252:1

What leads programs here (the preload library, the supervisor) reads them on each stat and mknod of a device.
Promises: a link is replaced at once, never missing in between; nothing is left at the end of the server.
"""

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

from thinfs.errors import PermissionRefused, from_oserror

_LOOP_MAJOR = 7


class NumberedDevice(Protocol):
    """Of a mapped device, what is needed here."""

    @property
    def name(self) -> str: ...

    @property
    def major(self) -> int: ...

    @property
    def minor(self) -> int: ...

    @property
    def inode(self) -> int: ...


class Numbers:
    """The links of one server."""

    def __init__(self, mount_dir: str, major: int) -> None:
        self._mount_dir = mount_dir
        self._directory = mount_dir + ".numbers"
        self._links: dict[tuple[int, int], tuple[str, str]] = {}  # number: names of the two links
        try:
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o700)
            info = os.lstat(self._directory)
            if info.st_uid not in (0, os.geteuid()):
                raise PermissionRefused(f"{self._directory}: belongs to uid {info.st_uid}, not to uid {os.geteuid()}")
            for name in os.listdir(self._directory):  # of a server that ended badly
                self._unlink(name)
            os.symlink(str(major), f"{self._directory}/major")
        except OSError as error:
            raise from_oserror(error, self._directory) from None

    def publish(self, device: NumberedDevice, loop_number: int | None) -> None:
        """The device has a loop device now, or is a file only; also after a change of its name."""
        number = f"{device.major}:{device.minor}"
        if loop_number is None:
            node, back = f"{self._mount_dir}/{device.name}", f"inode:{device.inode}"
        else:
            node, back = f"/dev/loop{loop_number}", f"{_LOOP_MAJOR}:{loop_number}"
        self._link(number, node)
        self._link(back, number)
        self._links[device.major, device.minor] = (number, back)

    def withdraw(self, device: NumberedDevice) -> None:
        for name in self._links.pop((device.major, device.minor), ()):
            self._unlink(name)

    def show_holders(self, minor: int, holders: Iterable[int]) -> str:
        """A directory with an entry dm-N for each of the minor numbers: /sys/block/dm-MINOR/holders."""
        name = f"holders:{minor}"
        path = f"{self._directory}/{name}"
        self._unlink(name)
        os.mkdir(path, 0o700)
        for holder in holders:
            os.symlink(f"../holders:{holder}", f"{path}/dm-{holder}")
        return path

    def close(self) -> None:
        with suppress(OSError):
            for name in os.listdir(self._directory):
                self._unlink(name)
            os.rmdir(self._directory)

    def _link(self, name: str, target: str) -> None:
        made = f"{self._directory}/{name}"
        with suppress(FileNotFoundError):
            os.unlink(made + "~")
        os.symlink(target, made + "~")
        os.replace(made + "~", made)

    def _unlink(self, name: str) -> None:
        path = f"{self._directory}/{name}"
        with suppress(FileNotFoundError):
            # never through a link: it may lead into our own mount, which would wait for this very thread
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
