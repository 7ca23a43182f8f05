"""What the image files are made from: a source of images, each one mapped device. Satisfied structurally.

Promises asked of an Image: offsets and lengths are bytes of any alignment inside the size; usually nothing
suspends (mapped I/O runs inline), and what waits does not hold up the rest; a refusal is a ThinfsError.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class Image(Protocol):
    """One mapped device; the object is the same as long as the device exists.

    Offsets and lengths are bytes, any alignment, inside the size. Usually nothing suspends: mapped I/O runs
    inline. A refusal is a ThinfsError.
    """

    @property
    def name(self) -> str: ...

    @property
    def inode(self) -> int:
        """2 or more, never reused in the life of the server."""

    @property
    def read_only(self) -> bool: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def allocated_bytes(self) -> int:
        """What the device maps now (st_blocks)."""

    @property
    def block_bytes(self) -> int:
        """The pool's data block (st_blksize)."""

    def opened(self) -> None: ...

    def closed(self) -> None: ...

    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes) -> None: ...

    async def discard(self, offset: int, length: int) -> None:
        """As dm-thin: rounded inwards to whole blocks, and what is read afterwards is the origin's or zeros."""

    async def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros."""

    async def flush(self) -> None:
        """All acknowledged before is durable, mappings included."""

    def next_data(self, offset: int) -> int | None:
        """The first offset from `offset` on that may read as other than zeros; None if there is none."""

    def next_hole(self, offset: int) -> int:
        """The first offset from `offset` on that is not data; the size if there is none."""


@runtime_checkable
class Provisioning(Protocol):
    """What an Image may have besides: fallocate mode 0 works on those that do. dm-thin itself has no such bio."""

    async def provision(self, offset: int, length: int) -> None:
        """Every block of the range is mapped and the contents are unchanged."""


class ImageSource(Protocol):
    """The mapped devices that are files now: those with a live table."""

    def names(self) -> Sequence[str]: ...

    def lookup(self, name: str) -> Image | None: ...
