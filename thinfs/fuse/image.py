"""What the image files are made from: a source of images, each one mapped device. Satisfied structurally.

Promises asked of an Image: what waits does not hold up the rest; a refusal is a ThinfsError.
"""

from collections.abc import Sequence
from typing import Protocol

from thinfs.bio import Bio


class Image(Protocol):
    """One mapped device; the object is the same as long as the device exists.

    Offsets and lengths are bytes, any alignment, inside the size. Usually nothing waits: mapped I/O is done when the
    call returns. A refusal is a ThinfsError.
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

    @property
    def written_ns(self) -> int:
        """When it was last written past its methods, as time.time_ns(); 0 if that does not happen."""

    def opened(self) -> None: ...

    def closed(self) -> None: ...

    def read_now(self, offset: int, length: int) -> bytes | None:
        """A read that needs no waiting; None: submit a bio."""

    def write_now(self, offset: int, data: bytes | memoryview) -> bool:
        """Whether it is written, without waiting; False: submit a bio."""

    def submit(self, bio: Bio) -> None:
        """Done now or later. A DISCARD as dm-thin: rounded inwards to whole blocks, and what is read afterwards is the
        origin's or zeros; after a FLUSH all acknowledged before is durable, mappings included."""

    def next_data(self, offset: int) -> int | None:
        """The first offset from `offset` on that may read as other than zeros; None if there is none."""

    def next_hole(self, offset: int) -> int:
        """The first offset from `offset` on that is not data; the size if there is none."""


class ImageSource(Protocol):
    """The mapped devices that are files now: those with a live table."""

    def names(self) -> Sequence[str]: ...

    def lookup(self, name: str) -> Image | None: ...
