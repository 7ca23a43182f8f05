"""What a pool stands on: byte-addressed devices that are read, written, flushed and discarded, synchronously.

Promises: exact reads (a short one is an error), no write past the end (a file does not grow by it), writes durable
after `flush`, an exclusive lock while a pool has a file open, sizes read afresh (a grown file is seen). Never: caches,
knows a format, waits. A regular file is rounded down to whole sectors, as the loop driver does.
"""

import errno
import fcntl
import logging
import os
import stat
import struct
import time
from typing import Protocol, TypeAlias, runtime_checkable

from thinfs.errors import BackingMissing, Busy, IOFailed, ThinfsError, from_oserror
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from thinfs.units import SECTOR_BYTES

Buffer: TypeAlias = bytes | bytearray | memoryview

log = logging.getLogger(__name__)

_LOG_SECONDS = 60.0
_BLKDISCARD = 0x1277
_BLKGETSIZE64 = 0x80081272


class BlockDevice(Protocol):
    """A backing device. Offsets and lengths are bytes; every failure is a ThinfsError."""

    @property
    def label(self) -> str:
        """How a table line names it: `MAJ:MIN` of a block device, the absolute path of a file."""

    @property
    def size_bytes(self) -> int:
        """The present size, whole sectors."""

    @property
    def supports_discard(self) -> bool: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; IOFailed where the device does not have them."""

    def write(self, offset: int, data: Buffer) -> None:
        """All of `data`; durable only after `flush`."""

    def flush(self) -> None:
        """Everything written before is on stable storage."""

    def discard(self, offset: int, length: int) -> None:
        """The range need not be kept; it may read as anything afterwards."""

    def close(self) -> None: ...


@runtime_checkable
class HasDescriptor(Protocol):
    """A BlockDevice that is nothing more than a file or block device: its descriptor may be used beside it."""

    def fileno(self) -> int: ...


class FileDevice:
    """A regular file or block device of the machine, held under an exclusive lock unless read-only."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        """Raises BackingMissing (ENODEV) for a missing path, Busy when another process holds it."""
        self.path = os.path.abspath(path)
        self.read_only = read_only
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            info = os.stat(self.path)
            if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
                raise BackingMissing(f"{path}: neither a regular file nor a block device")
            self._is_block = stat.S_ISBLK(info.st_mode)
            if self._is_block and not read_only:
                flags |= os.O_EXCL
            self._fd = os.open(self.path, flags)
        except FileNotFoundError:
            raise BackingMissing(f"{path}: no such file or device") from None
        except OSError as error:
            raise from_oserror(error, path) from None
        try:
            if not read_only:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Busy(f"{path}: in use by another process") from None
        self._label = f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}" if self._is_block else self.path
        self._discard_works = True
        self._logged: dict[tuple[str, int | None], float] = {}
        self._end = 0  # as far as the size has been seen to reach

    def _failed(self, error: OSError, what: str) -> ThinfsError:
        """The error of an operation; the log has it too, once a minute, for whoever did the I/O sees a number only."""
        kind, now = (what.split(" ")[0], error.errno), time.monotonic()
        if now - self._logged.get(kind, -_LOG_SECONDS) >= _LOG_SECONDS:
            self._logged[kind] = now
            log.error("%s: %s: %s", self.path, what, error.strerror)
        return from_oserror(error, f"{self.path}: {what}")

    def fileno(self) -> int:
        return self._fd

    @property
    def label(self) -> str:
        return self._label

    @property
    def size_bytes(self) -> int:
        if self._is_block:
            (size,) = struct.unpack("<Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))
        else:
            size = os.fstat(self._fd).st_size
        return int(size) // SECTOR_BYTES * SECTOR_BYTES

    @property
    def supports_discard(self) -> bool:
        return self._discard_works and not self.read_only

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    raise IOFailed(f"{self.path}: no data at byte {offset + len(data)}, it ends before")
                data += more
        except OSError as error:
            raise self._failed(error, f"read at byte {offset}") from None
        except OverflowError:  # past what any file can hold
            raise IOFailed(f"{self.path}: no data at byte {offset}, it ends before") from None
        return data

    def write(self, offset: int, data: Buffer) -> None:
        if offset + len(data) > self._end:  # a regular file would grow, silently
            self._end = self.size_bytes
            if offset + len(data) > self._end:
                raise IOFailed(f"{self.path}: write at byte {offset}: it ends at byte {self._end}")
        try:
            done = os.pwrite(self._fd, data, offset)
            if done != len(data):
                view = memoryview(data)
                while done < len(view):
                    done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            raise self._failed(error, f"write at byte {offset}") from None

    def flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error, "flush") from None

    def discard(self, offset: int, length: int) -> None:
        try:
            if self._is_block:
                fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("<QQ", offset, length))
            else:
                fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._discard_works = False
                raise from_oserror(error, f"{self.path}: discard at byte {offset}") from None
            raise self._failed(error, f"discard at byte {offset}") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MemoryDevice:
    """A sparse device in memory: for tests, dry runs and as the store below a recording device."""

    _PAGE = 4096

    def __init__(self, size_bytes: int, *, label: str = "memory", supports_discard: bool = True) -> None:
        self._size = size_bytes // SECTOR_BYTES * SECTOR_BYTES
        self._label = label
        self._supports_discard = supports_discard
        self._pages: dict[int, bytearray] = {}

    @property
    def label(self) -> str:
        return self._label

    @property
    def size_bytes(self) -> int:
        return self._size

    def resize(self, size_bytes: int) -> None:
        """Grow or shrink, as an operator resizes the device under a pool."""
        self._size = size_bytes // SECTOR_BYTES * SECTOR_BYTES

    @property
    def supports_discard(self) -> bool:
        return self._supports_discard

    def written_pages(self) -> list[int]:
        """Offsets of the 4 KiB pages that hold something, ascending."""
        return sorted(page * self._PAGE for page in self._pages)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise IOFailed(f"{self._label}: bytes {offset}..{offset + length} are past its end, {self._size}")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        parts = []
        while length:
            page, start = divmod(offset, self._PAGE)
            size = min(length, self._PAGE - start)
            stored = self._pages.get(page)
            parts.append(bytes(size) if stored is None else bytes(stored[start : start + size]))
            offset, length = offset + size, length - size
        return b"".join(parts)

    def write(self, offset: int, data: Buffer) -> None:
        self._check(offset, len(data))
        view = memoryview(data)
        while view:
            page, start = divmod(offset, self._PAGE)
            size = min(len(view), self._PAGE - start)
            stored = self._pages.get(page)
            if stored is None:
                stored = self._pages[page] = bytearray(self._PAGE)
            stored[start : start + size] = view[:size]
            view, offset = view[size:], offset + size

    def flush(self) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)
        first, last = -(-offset // self._PAGE), (offset + length) // self._PAGE
        for page in range(first, last) if last - first < len(self._pages) else list(self._pages):
            if first <= page < last:
                self._pages.pop(page, None)

    def close(self) -> None:
        return
