"""What the words for devices in a table mean, and the devices below that are open in this process.

    device = "/dev/mapper/" NAME | MOUNT_DIR "/" NAME | MAJOR ":" MINOR | path of a file or block device | what was lent

Promises: a backing file is opened once per process and locked against every other process; two pools on
one data device share the handle (the kernel allows it, reference 1). Never: touches a file of our own mount.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeAlias, runtime_checkable

from thinfs.bio import Bio, Held, Immediate, LowerDevice, Op, answers_at_once
from thinfs.blockdev import BlockDevice, Buffer, FileDevice
from thinfs.errors import BackingMissing, NoSuchDevice, ThinfsError, from_oserror
from thinfs.userspace.blocking import Background

_NUMBERS: Final = re.compile(r"([0-9]+):([0-9]+)")
DEV_MAPPER: Final = "/dev/mapper"

Identity: TypeAlias = tuple[str, int, int]


class Mapped(Protocol):
    """A mapped device of this process, as one that stands on it sees it."""

    major: int
    minor: int

    @property
    def size_bytes(self) -> int: ...
    @property
    def supports_discard(self) -> bool: ...
    def submit(self, bio: Bio) -> None: ...
    def read_now(self, offset: int, length: int) -> bytes | None: ...
    def write_now(self, offset: int, data: Buffer) -> bool: ...
    def is_held(self) -> bool:
        """Whether it, or something that it stands on, holds its I/O at present."""


class MappedLower:
    """thinfs.bio.LowerDevice over a mapped device: always its present live table, and what that holds is waited for."""

    def __init__(self, mapped: Mapped) -> None:
        self.mapped = mapped

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.WRITE:  # in place first: targets take it that whoever submits has tried
            try:
                if self.mapped.write_now(bio.offset, bio.data):
                    bio.complete()
                    return
            except ThinfsError as error:
                bio.complete(error)
                return
        self.mapped.submit(bio)

    @property
    def label(self) -> str:
        return f"{self.mapped.major}:{self.mapped.minor}"

    @property
    def size_bytes(self) -> int:
        return self.mapped.size_bytes

    @property
    def supports_discard(self) -> bool:
        return self.mapped.supports_discard

    def read(self, offset: int, length: int) -> bytes:
        """For metadata: answered now, or Held."""
        bio = Bio(Op.READ, offset, length)
        self.submit(bio)
        if not bio.done:
            raise Held(f"{self.label}: read of {length} bytes at {offset}: the device is suspended")
        if bio.error is not None:
            raise bio.error
        return bytes(bio.data)


@runtime_checkable
class Sparse(Protocol):
    """A device that knows what it holds, as what is lent may."""

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]: ...


class Backing:
    """A shared handle on a device below; released as often as it was acquired, then closed."""

    __slots__ = ("_background", "device", "identity", "read_only", "users")

    def __init__(
        self, device: BlockDevice | LowerDevice, identity: Identity, background: Background, *, read_only: bool
    ) -> None:
        self.device = device
        self.identity = identity
        self.read_only = read_only
        self.users = 0
        self._background = background

    @property
    def block_number(self) -> tuple[int, int] | None:
        """(major, minor) of a block device or a mapped device; a regular file and what was lent have none."""
        kind, major, minor = self.identity
        return None if kind in ("file", "lent") else (major, minor)

    @property
    def mapped(self) -> Mapped | None:
        return self.device.mapped if isinstance(self.device, MappedLower) else None

    @property
    def label(self) -> str:
        return self.device.label

    @property
    def size_bytes(self) -> int:
        return self.device.size_bytes

    @property
    def supports_discard(self) -> bool:
        return self.device.supports_discard

    def read_now(self, offset: int, length: int) -> bytes | None:
        device = self.device
        if isinstance(device, MappedLower):
            return device.mapped.read_now(offset, length)
        return device.read(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        device = self.device
        if isinstance(device, MappedLower):
            return device.mapped.write_now(offset, data)
        assert answers_at_once(device)
        device.write(offset, data)
        return True

    def submit(self, bio: Bio) -> None:
        """A file's reads and writes are done on the spot; what may take long is done in a thread."""
        device = self.device
        if not answers_at_once(device):
            device.submit(bio)  # type: ignore[union-attr]
        elif bio.op in (Op.READ, Op.WRITE):
            Immediate(device).submit(bio)
        else:
            work = Bio(bio.op, bio.offset, bio.length, bio.data)
            self._background.start(lambda: Immediate(device).submit(work), lambda: bio.complete(work.error))

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Ascending; what is in none of them reads as zeros. All is data where the device cannot tell."""
        device = self.device
        return device.data_ranges(begin, end) if isinstance(device, Sparse) else iter([(begin, end)])

    def is_held(self) -> bool:
        return self.mapped is not None and self.mapped.is_held()

    def close(self) -> None:
        device = self.device
        if answers_at_once(device):
            device.close()


class BackingDevices:
    """The devices below that are open in this process, by what they are and not by how they are called."""

    def __init__(self, background: Background) -> None:
        self._open: dict[tuple[Identity, bool], Backing] = {}
        self._lent: dict[str, BlockDevice] = {}
        self._background = background

    def lend(self, word: str, device: BlockDevice) -> None:
        """From now on `word` in a table means `device`, which its lender keeps open as long as there are tables."""
        self._lent[word] = device

    def acquire(self, path: str, *, read_only: bool = False) -> Backing:
        """Open or share a file or block device. BackingMissing, Busy and the system's errors, naming it."""
        if path in self._lent:
            identity = ("lent", list(self._lent).index(path), 0)
            return self._share(identity, read_only, lambda: self._lent[path])
        if numbers := _NUMBERS.fullmatch(path):
            path = _path_of_number(int(numbers[1]), int(numbers[2]))
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BackingMissing(f"{path}: no such file or device") from None
        except OSError as error:
            raise from_oserror(error, path) from None
        return self._share(identity_of(info), read_only, lambda: FileDevice(path, read_only=read_only))

    def acquire_mapped(self, mapped: Mapped, *, read_only: bool = False) -> Backing:
        """The same for a mapped device of this process."""
        return self._share(("mapped", mapped.major, mapped.minor), read_only, lambda: MappedLower(mapped))

    def _share(self, identity: Identity, read_only: bool, make: Callable[[], BlockDevice | LowerDevice]) -> Backing:
        backing = self._open.get((identity, read_only))
        if backing is None:
            backing = Backing(make(), identity, self._background, read_only=read_only)
            self._open[identity, read_only] = backing
        backing.users += 1
        return backing

    def release(self, backing: Backing) -> None:
        backing.users -= 1
        if backing.users == 0:
            del self._open[backing.identity, backing.read_only]
            backing.close()


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
        raise NoSuchDevice(f"{major}:{minor}: no such block device") from None


def mapped_name(word: str, mount_dir: str) -> str | None:
    """The device name in `/dev/mapper/NAME` or `MOUNT_DIR/NAME`, else None."""
    directory, name = os.path.split(os.path.normpath(word))
    return name if directory in (DEV_MAPPER, os.path.normpath(mount_dir)) and name else None


def mapped_number(word: str) -> tuple[int, int] | None:
    numbers = _NUMBERS.fullmatch(word)
    return (int(numbers[1]), int(numbers[2])) if numbers else None
