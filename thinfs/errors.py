"""Every error thinfs raises on purpose: one tree, each class with the errno dm-thin answers.

Promises: plain exceptions with one message argument (picklable), a message that names the thing and
the value. The number is translated once, at an edge (FUSE, control socket, drop-in), never between.
Never: carries a traceback of construct or of the operating system across a layer.
"""

import errno as _errno
import os
from typing import ClassVar


class ThinfsError(Exception):
    """Root of the tree. `errno` is what device-mapper's ioctl or the I/O answers."""

    errno: ClassVar[int] = _errno.EIO

    @property
    def strerror(self) -> str:
        """The C library's text for `errno`, as dmsetup prints it."""
        return os.strerror(self.errno)


class IOFailed(ThinfsError):
    """EIO: a backing device failed, or the pool is in a mode that refuses this I/O."""

    errno = _errno.EIO


class PermissionRefused(ThinfsError):
    """EPERM: for instance blank metadata opened with read_only."""

    errno = _errno.EPERM


class AccessDenied(ThinfsError):
    """EACCES: a backing file or device the caller may not open."""

    errno = _errno.EACCES


class NoSuchDevice(ThinfsError):
    """ENXIO: no mapped device of that name."""

    errno = _errno.ENXIO


class BackingMissing(ThinfsError):
    """ENODEV: a path in a table names nothing that could be opened."""

    errno = _errno.ENODEV


class Busy(ThinfsError):
    """EBUSY: the name is taken, the device is open, the file belongs to another pool or process."""

    errno = _errno.EBUSY


class Exists(ThinfsError):
    """EEXIST: a thin of that id is already there."""

    errno = _errno.EEXIST


class NoSuchThin(ThinfsError):
    """ENODATA: no thin of that id in the pool."""

    errno = _errno.ENODATA


class InvalidArgument(ThinfsError):
    """EINVAL: a table, a message, a number that device-mapper refuses."""

    errno = _errno.EINVAL


class NoSpace(ThinfsError):
    """ENOSPC: no free data block or no free metadata block."""

    errno = _errno.ENOSPC


class NoMemory(ThinfsError):
    """ENOMEM: the metadata space map's ring of uncommitted operations is full."""

    errno = _errno.ENOMEM


class NotSupported(ThinfsError):
    """EOPNOTSUPP: a message to a read-only or failed pool, a discard that is not advertised."""

    errno = _errno.EOPNOTSUPP


class BadMetadata(ThinfsError):
    """EILSEQ: a metadata block has a wrong checksum, magic or impossible contents; names the block."""

    errno = _errno.EILSEQ


class WrongBlock(BadMetadata):
    """ENOTBLK: a metadata block carries another block's number, as random garbage does."""

    errno = _errno.ENOTBLK


BY_ERRNO: dict[int, type[ThinfsError]] = {
    cls.errno: cls
    for cls in (
        IOFailed, PermissionRefused, AccessDenied, NoSuchDevice, BackingMissing, Busy, Exists, NoSuchThin,
        InvalidArgument, NoSpace, NoMemory, NotSupported, BadMetadata, WrongBlock,
    )
}  # fmt: skip


class OtherError(ThinfsError):
    """An errno that dm-thin has no words of its own for, from the operating system; the number is kept."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)

    @property
    def errno(self) -> int:  # type: ignore[override]
        return int(self.args[0])

    def __str__(self) -> str:
        return str(self.args[1])


def from_errno(number: int, message: str) -> ThinfsError:
    """The error of the tree for an errno that came from the operating system or over a socket."""
    cls = BY_ERRNO.get(number)
    return cls(message) if cls is not None else OtherError(number, message)


def from_oserror(error: OSError, message: str) -> ThinfsError:
    """`from_errno` for an OSError, with the system's own words after `message`."""
    number = error.errno or _errno.EIO
    return from_errno(number, f"{message}: {os.strerror(number)}")


def prefixed(prefix: str, error: ThinfsError) -> ThinfsError:
    """The same error with `prefix: ` before its message."""
    return from_errno(error.errno, f"{prefix}: {error}")
