"""A disk image or block device, opened for reading and nothing else; and whether somebody may be writing to it.

Promises: O_RDONLY, a shared lock that keeps thinfs' own writers away as long as it is open. `writer` names who has it
open for writing as far as an ordinary user can know: a loop device, device-mapper or a mount on a block device, a lock,
and for the owner (or root) any process at all (a read lease is refused then: fcntl(2), F_SETLEASE).
"""

import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from thinfs.errors import BackingMissing, Busy, InvalidArgument, IOFailed, from_oserror
from thinfs.lvm.reading import check_range
from thinfs.units import SECTOR_BYTES

_BLKGETSIZE64: Final = 0x80081272
_F_OFD_GETLK: Final = 36  # fcntl(2)
_FLOCK: Final = "hhqqi"  # struct flock
_CONTAINERS: Final = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"COWD": "vmdk", b"vhdxfile": "vhdx", b"conectix": "vpc"}


class DiskImage:
    def __init__(self, path: str) -> None:
        """BackingMissing (ENODEV), InvalidArgument for what is no raw image, Busy while a thinfs writes to it."""
        self.label = path
        try:
            info = os.stat(path)
            if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
                raise BackingMissing(f"{path}: neither a regular file nor a block device")
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise BackingMissing(f"{path}: no such file or device") from None
        except OSError as error:
            raise from_oserror(error, path) from None
        except ValueError:
            raise BackingMissing(f"{path!r}: not a path") from None
        try:
            self._prepare(info)
        except BaseException:
            self.close()
            raise

    def _prepare(self, info: os.stat_result) -> None:
        self.identity = (info.st_dev, info.st_ino)
        self._is_block = stat.S_ISBLK(info.st_mode)
        self._number = info.st_rdev
        size = info.st_size
        try:
            if self._is_block:
                (size,) = struct.unpack("<Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{self.label}: in use by another process") from None
        except OSError as error:
            raise from_oserror(error, self.label) from None
        self.size_bytes = int(size) // SECTOR_BYTES * SECTOR_BYTES
        start = os.pread(self._fd, 8, 0)
        for magic, kind in _CONTAINERS.items():
            if start.startswith(magic):
                raise InvalidArgument(f"{self.label}: a {kind} image; make it raw: qemu-img convert -O raw")

    def __enter__(self) -> "DiskImage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        parts = []
        try:
            while length:
                data = os.pread(self._fd, length, offset)
                if not data:
                    raise IOFailed(f"{self.label}: no data at byte {offset}, it ends before")
                parts.append(data)
                offset, length = offset + len(data), length - len(data)
        except OSError as error:
            raise from_oserror(error, f"{self.label}: read at byte {offset}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The holes of a sparse file are known; of a block device nothing is."""
        while begin < end:
            try:
                first = begin if self._is_block else os.lseek(self._fd, begin, os.SEEK_DATA)
                last = end if self._is_block else os.lseek(self._fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no more data
                    return
                first, last = begin, end
            if first >= end:
                return
            yield first, min(last, end)
            begin = last

    # -- who writes

    def writer(self) -> str | None:
        """Who has it open for writing now, or None if nobody is known."""
        if self._is_block:
            return self._holder()
        return self._loop_device() or self._lock() or self._lease()

    def _holder(self) -> str | None:
        held = sorted(Path(f"/sys/dev/block/{os.major(self._number)}:{os.minor(self._number)}").glob("**/holders/*"))
        if held:
            return f"device {held[0].name} on it"
        try:
            os.close(os.open(self.label, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            return "a mount or another device on it" if error.errno == errno.EBUSY else None
        return None

    def _loop_device(self) -> str | None:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # detached meanwhile, or over a file that is gone
                below = os.stat(backing.read_text(errors="surrogateescape").rstrip("\n"))
                writable = (backing.parents[1] / "ro").read_text().strip() == "0"
                if writable and (below.st_dev, below.st_ino) == self.identity:
                    return f"/dev/{backing.parents[1].name}"
        return None

    def _lock(self) -> str | None:
        """qemu's, and any other record lock of a writer (as F_OFD_GETLK tells without taking one)."""
        wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        with suppress(OSError):
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(self._fd, _F_OFD_GETLK, wanted))
            if kind == fcntl.F_WRLCK:
                return f"process {pid}" if pid > 0 else "a process that has locked it"
        return None

    def _lease(self) -> str | None:
        """Whoever opens it for writing while we have the lease makes the kernel send SIGIO, which would end us."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return "a process that has it open for writing"
        finally:
            while signal.sigtimedwait({signal.SIGIO}, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
