"""What a mapped device asks of a target, and the answers that most targets share.

Promises asked of a target: `submit` gets bios inside its length, offsets in bytes from its start, and completes each,
now or later; it raises nothing. It belongs to one table of one device and lets go of everything in `close`.
Source: docs/reference/behaviour.md, 1 and 2.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from thinfs.bio import Bio, Op, Submits
from thinfs.blockdev import Buffer
from thinfs.dm.table import TargetLine
from thinfs.errors import InvalidArgument, NotSupported
from thinfs.pool.served import Volume
from thinfs.steps import Chain
from thinfs.units import bytes_to_sectors, sectors_to_bytes
from thinfs.userspace.backing import Backing

DEFAULT_BLOCK_BYTES: Final = 65536
_ZERO_SLICE_BYTES: Final = 1 << 20


class UpperDevice(Protocol):
    """A thin's device as its pool sees it: its I/O waits while the pool is suspended."""

    def suspend_internally(self) -> None: ...
    def resume_internally(self) -> None: ...


class Target(Protocol):
    line: TargetLine

    def table_params(self) -> str: ...
    async def status_params(self, *, noflush: bool) -> str: ...

    def submit(self, bio: Bio) -> None: ...
    def read_now(self, offset: int, length: int) -> bytes | None:
        """What a read gives that needs neither a bio nor waiting; None: submit one. Its errors are raised."""

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Whether it is written, without a bio and without waiting; False: submit one. Its errors are raised."""

    @property
    def volume(self) -> Volume | None:
        """Who may serve its I/O beside it, from offset 0, while the table is the live one and lets I/O pass."""

    def check_swap(self) -> None:
        """Before its table becomes the live one: may refuse, and the table before it stays."""

    async def presuspend(self, *, noflush: bool) -> None:
        """Before the device waits for its I/O in flight."""

    async def postsuspend(self) -> None: ...
    async def preresume(self) -> None:
        """May refuse; the device then stays suspended."""

    async def resume(self) -> None: ...
    async def message(self, words: list[str]) -> None: ...
    async def close(self) -> None: ...

    def deps(self) -> list[tuple[int, int]]:
        """(major, minor) of the block devices that it names, in the order in which they are opened."""

    def lowers(self) -> Iterator[Backing]:
        """What it stands on."""

    def uppers(self) -> Sequence[UpperDevice]:
        """The devices that wait while this one is suspended."""

    @property
    def supports_discard(self) -> bool: ...
    @property
    def block_bytes(self) -> int: ...
    def allocated_bytes(self) -> int: ...
    def next_data(self, offset: int, end: int) -> int | None:
        """First byte of data at or after `offset`, None when there is none before `end`."""

    def next_hole(self, offset: int, end: int) -> int:
        """First byte at or after `offset` that is a hole, `end` when there is none before."""


class Plain:
    """The answers that most targets share: no state to suspend, all of it data, no messages, nothing at once."""

    supports_discard = False

    def __init__(self, line: TargetLine) -> None:
        self.line = line

    def table_params(self) -> str:
        return ""

    async def status_params(self, *, noflush: bool) -> str:
        return ""

    def submit(self, bio: Bio) -> None:
        bio.complete(NotSupported(f"{self.line.target}: {bio.op.name.lower()} is not supported"))

    def read_now(self, offset: int, length: int) -> bytes | None:
        return None

    def write_now(self, offset: int, data: Buffer) -> bool:
        return False

    @property
    def volume(self) -> Volume | None:
        return None

    def check_swap(self) -> None:
        return

    async def presuspend(self, *, noflush: bool) -> None:
        return

    async def postsuspend(self) -> None:
        return

    async def preresume(self) -> None:
        return

    async def resume(self) -> None:
        return

    async def message(self, words: list[str]) -> None:
        raise InvalidArgument(f"{self.line.target}: Target type does not support messages: {' '.join(words)}")

    async def close(self) -> None:
        return

    def deps(self) -> list[tuple[int, int]]:
        return [backing.block_number for backing in self.lowers() if backing.block_number is not None]

    def lowers(self) -> Iterator[Backing]:
        return iter(())

    def uppers(self) -> Sequence[UpperDevice]:
        return ()

    @property
    def block_bytes(self) -> int:
        return DEFAULT_BLOCK_BYTES

    def allocated_bytes(self) -> int:
        return sectors_to_bytes(self.line.length_sectors)

    def next_data(self, offset: int, end: int) -> int | None:
        return offset if offset < end else None

    def next_hole(self, offset: int, end: int) -> int:
        return end


def zero_by_writing(target: Submits, bio: Bio) -> None:
    """A ZERO bio as writes of zeros, for targets that know nothing better."""

    def writes() -> Iterator[tuple[Submits, Bio]]:
        for done in range(0, bio.length, _ZERO_SLICE_BYTES):
            size = min(_ZERO_SLICE_BYTES, bio.length - done)
            yield target, Bio(Op.WRITE, bio.offset + done, size, bytes(size))

    chain = Chain(writes(), blocks=False)
    chain.start()
    chain.then(lambda: bio.complete(chain.error))


def check_window(target: str, name: str, backing: Backing, offset_sectors: int, length_sectors: int) -> None:
    """Does what a target uses of a device below end within it? `name` is how the device is called."""
    available = bytes_to_sectors(backing.size_bytes)
    if offset_sectors + length_sectors > available:
        raise InvalidArgument(
            f"{target}: {name} too small for target: start={offset_sectors}, len={length_sectors}, dev_size={available}"
        )
