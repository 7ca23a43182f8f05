"""Loop devices by their ioctls (linux/loop.h): attach a file, resize, ask who uses it, detach.

Promises: plain synchronous functions, OSError as from the kernel; each may wait on the attached file, so on
a file of our own mount they belong in a thread. `detach` never leaves a device half gone: it is detached,
or as it was. Never: knows a mapped device or a name.
"""

import errno
import fcntl
import glob
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

CONTROL: Final = "/dev/loop-control"
LOOP_MAJOR: Final = 7

_BLKFLSBUF: Final = 0x1261
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82

_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16

# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, encrypt_key_size, flags;
# file_name, crypt_name, encrypt_key, init[2].
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd, block_size, info, reserved[8].
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s8Q")
_FLAGS: Final = 8  # the index of `flags` in the former

_ATTEMPTS: Final = 100


class InUse(Exception):
    """The loop device is mounted or open; the message says which."""


@dataclass(frozen=True, slots=True)
class LoopDevice:
    number: int
    file: tuple[int, int] | None = field(default=None, compare=False)  # device and inode of what we attached

    @property
    def path(self) -> str:
        return f"/dev/loop{self.number}"


def make_node(number: int) -> None:
    """/dev/loopN, where neither udev nor devtmpfs makes it."""
    path = f"/dev/loop{number}"
    if not os.path.exists(path):
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def attach(path: str, *, read_only: bool) -> LoopDevice:
    """A loop device over the file: direct I/O where the file can, no partition scan."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
    name = os.fsencode(path)[:63]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    with _opened(CONTROL, os.O_RDWR) as control, _opened(path, mode) as file:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            make_node(number)
            try:
                with _opened(f"/dev/loop{number}", mode) as loop:
                    fcntl.ioctl(loop, _LOOP_CONFIGURE, _CONFIG.pack(file, 0, info, *([0] * 8)))
                    status = _status(loop)
                    return LoopDevice(number, None if status is None else (status[0], status[1]))
            except OSError as error:
                if error.errno in (errno.EBUSY, errno.ENXIO):  # another process was faster: ask again
                    continue
                raise
    raise OSError(errno.EBUSY, f"no free loop device in {_ATTEMPTS} attempts")


def is_same(device: LoopDevice) -> bool:
    """Is still attached what `attach` did? Its last user or `losetup -d` may have detached it, others use it anew."""
    with _opened(device.path, os.O_RDONLY) as loop:
        status = _status(loop)
    return status is not None and (status[0], status[1]) == device.file


def resize(device: LoopDevice) -> None:
    """Take over the present size of the file."""
    with _opened(device.path, os.O_RDONLY) as loop:
        fcntl.ioctl(loop, _LOOP_SET_CAPACITY)


def _status(loop: int) -> tuple[Any, ...] | None:
    try:
        return _INFO.unpack(fcntl.ioctl(loop, _LOOP_GET_STATUS64, bytes(_INFO.size)))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def mounted(device: LoopDevice) -> bool:
    """Does something hold it exclusively: a mount, a swap area, another mapped device?"""
    try:
        with _opened(device.path, os.O_RDONLY | os.O_EXCL):
            return False
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise


def detach(device: LoopDevice, *, deferred: bool = False) -> None:
    """Raises InUse while it is mounted or open, and leaves it as it was; if `deferred`, it then goes with its last
    user."""
    if not deferred and mounted(device):
        raise InUse(f"{device.path} is mounted")
    with _opened(device.path, os.O_RDONLY) as loop:
        if _status(loop) is None:
            return
        # With other openers this only marks it to be cleared at the last close. (Newer kernels do the same for
        # a single one, us, but then answer ENXIO from here on.)
        fcntl.ioctl(loop, _LOOP_CLR_FD)
        status = _status(loop)
        if status is None:
            return
        if not deferred:
            fields = list(status)
            fields[_FLAGS] &= ~_AUTOCLEAR
            fcntl.ioctl(loop, _LOOP_SET_STATUS64, _INFO.pack(*fields))
    raise InUse(f"{device.path} is open")


def abandon(device: LoopDevice) -> None:
    """Detach without asking the file, whose server may be dead; in use, it goes with its last user."""
    with _opened(device.path, os.O_RDONLY) as loop:
        fcntl.ioctl(loop, _LOOP_CLR_FD)


def sync(device: LoopDevice) -> None:
    """What was written to it, and to a file system mounted on it anywhere, reaches the file."""
    with _opened(device.path, os.O_RDONLY) as loop:
        fcntl.ioctl(loop, _BLKFLSBUF)


def backing_path(device: LoopDevice) -> str | None:
    """The path of the attached file as the kernel sees it now, from sysfs; None when none is attached."""
    try:
        with open(f"/sys/block/loop{device.number}/loop/backing_file", "rb") as text:
            return os.fsdecode(text.read().rstrip(b"\n"))
    except OSError:
        return None


def attached_under(directory: str) -> list[LoopDevice]:
    """Those whose file lies in `directory`."""
    devices = [LoopDevice(int(path.split("/")[3].removeprefix("loop"))) for path in glob.glob("/sys/block/loop*/loop")]
    return [device for device in devices if (backing_path(device) or "").startswith(directory + "/")]


def by_path(path: str) -> LoopDevice | None:
    """/dev/loopN, by its name."""
    number = path.removeprefix("/dev/loop")
    return LoopDevice(int(number)) if number.isdecimal() and path != number else None


def is_orphan(device: LoopDevice, name: str) -> bool:
    """Is its file `name` in the root of a file system that is mounted nowhere, and whose server is dead?"""
    if backing_path(device) != f"/{name}":
        return False
    try:
        with _opened(device.path, os.O_RDONLY) as loop:
            _status(loop)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False
