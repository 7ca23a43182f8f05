"""What can be read: the disks, the windows and sums of windows that volumes are; and one of them as a BlockDevice.

Promises: exact reads; `data_ranges` may call data what reads as zeros, never the other way round. Nothing here can
write: the files are opened O_RDONLY, and a BlockDevice of this room refuses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

from thinfs.blockdev import Buffer
from thinfs.errors import IOFailed, PermissionRefused


class Readable(Protocol):
    """Offsets, lengths and sizes in bytes."""

    @property
    def label(self) -> str:
        """What errors call it."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; IOFailed outside of the size."""

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Ascending half-open ranges within `begin..end`; what is in none of them reads as zeros."""


class Sized(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


def check_range(readable: Sized, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > readable.size_bytes:
        raise IOFailed(f"{readable.label}: bytes {offset}..{offset + length} are past its end, {readable.size_bytes}")


@dataclass(frozen=True, slots=True)
class Window:
    """A part of something."""

    label: str
    below: Readable
    offset: int
    size_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        return self.below.read(self.offset + offset, length)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last in self.below.data_ranges(self.offset + begin, self.offset + end):
            yield first - self.offset, last - self.offset


@dataclass(frozen=True, slots=True)
class ReadOnlyBlockDevice:
    """thinfs.blockdev.BlockDevice over what can be read."""

    readable: Readable
    label: str

    @property
    def size_bytes(self) -> int:
        return self.readable.size_bytes

    @property
    def supports_discard(self) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        return self.readable.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._refuse(f"write of {len(data)} bytes at {offset}")

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        return self.readable.data_ranges(begin, end)

    def flush(self) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        self._refuse(f"discard of {length} bytes at {offset}")

    def close(self) -> None:
        return

    def _refuse(self, what: str) -> NoReturn:
        raise PermissionRefused(f"{self.label}: {what}: it is open for reading only")
