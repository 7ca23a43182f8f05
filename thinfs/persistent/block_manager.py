"""The write-back cache of decoded metadata blocks; mirrors dm-block-manager.

Promises: every block is checked when it is read and belongs to one kind (class) while cached; a second access
under another kind is InvalidArgument. Dirty blocks stay until `written`, clean ones in two bounded
generations. Never writes by itself: `encode_dirty` gives bytes, and touching those needs no engine state.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, Self, TypeVar

from thinfs.bio import Bio, Op, Submits
from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata, InvalidArgument
from thinfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES

_CACHED_BLOCK_BYTES: Final = 4700  # in memory, decoded
_CACHE_SHARE: Final = 50


def clean_blocks_per_generation() -> int:
    """2 % of the machine's memory, as the kernel's dm-bufio keeps; the older generation may take as much again."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(4096, memory_bytes // _CACHE_SHARE // _CACHED_BLOCK_BYTES)


CLEAN_BLOCKS_PER_GENERATION: Final = clean_blocks_per_generation()


class MetadataBlock(Protocol):
    """A kind of metadata block: the kernel's block validator and the decoded block in one."""

    @classmethod
    def parse(cls, data: Buffer, block_nr: int) -> Self: ...

    def check(self, block_nr: int) -> None:
        """Raises BadMetadata where what is in it cannot be, though the block is whole. Once, when it is read."""

    def build(self, block_nr: int) -> bytes: ...

    def copy(self) -> Self: ...


B = TypeVar("B", bound=MetadataBlock)

Write = tuple[int, bytes]  # byte offset, whole blocks


class MetadataDevice(Protocol):
    """What blocks are read from. A read is never waited for: a device that cannot answer now raises bio.Held."""

    @property
    def label(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class BlockManager:
    """`hot` is open to readers that must be quick: a block there is valid, of whatever kind."""

    __slots__ = ("_capacity", "_cold", "_dirty", "_nr_clean", "device", "hot")

    def __init__(self, device: MetadataDevice, capacity: int = CLEAN_BLOCKS_PER_GENERATION) -> None:
        self.device = device
        self.hot: dict[int, MetadataBlock] = {}  # every dirty block, and the younger generation
        self._cold: dict[int, MetadataBlock] = {}
        self._dirty: dict[int, MetadataBlock] = {}
        self._capacity = capacity
        self._nr_clean = 0

    @property
    def nr_device_blocks(self) -> int:
        return self.device.size_bytes // METADATA_BLOCK_BYTES

    def read(self, block_nr: int, kind: type[B]) -> B:
        block = self.hot.get(block_nr)
        if block is None:
            block = self._cold.pop(block_nr, None)
            if block is None:
                if block_nr >= MAX_METADATA_BLOCKS:
                    raise BadMetadata(f"metadata block {block_nr}: there are at most {MAX_METADATA_BLOCKS}")
                data = self.device.read(block_nr * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
                block = kind.parse(data, block_nr)
                block.check(block_nr)
            self._nr_clean += 1
            if self._nr_clean > self._capacity:
                self._age()
            self.hot[block_nr] = block
        if type(block) is not kind:
            raise InvalidArgument(
                f"metadata block {block_nr}: in use as {type(block).__name__}, read as {kind.__name__}"
            )
        return block

    def _age(self) -> None:
        dirty = self._dirty
        self._cold = {nr: block for nr, block in self.hot.items() if nr not in dirty}
        self.hot = dict(dirty)
        self._nr_clean = 1

    def put(self, block_nr: int, block: MetadataBlock) -> None:
        """Make `block` the dirty contents of a block that was allocated in this transaction."""
        self._cold.pop(block_nr, None)
        self.hot[block_nr] = self._dirty[block_nr] = block

    def forget(self, block_nr: int) -> None:
        """Drop a clean block whose bytes changed on the device: the superblock."""
        self._cold.pop(block_nr, None)
        self.hot.pop(block_nr, None)

    @property
    def nr_dirty(self) -> int:
        return len(self._dirty)

    def encode_dirty(self) -> list[Write]:
        """The dirty blocks as writes in ascending order, neighbours joined."""
        writes: list[Write] = []
        begin, parts = -1, list[bytes]()
        for block_nr in sorted(self._dirty):
            if block_nr != begin + len(parts):
                if parts:
                    writes.append((begin * METADATA_BLOCK_BYTES, b"".join(parts)))
                begin, parts = block_nr, []
            parts.append(self._dirty[block_nr].build(block_nr))
        if parts:
            writes.append((begin * METADATA_BLOCK_BYTES, b"".join(parts)))
        return writes

    def written(self) -> None:
        """All dirty blocks are on the device now."""
        self._dirty.clear()
        self._nr_clean = len(self.hot)
        if self._nr_clean > self._capacity:
            self._age()


def write_and_flush(device: Submits, writes: Sequence[Write]) -> Iterator[tuple[Submits, Bio]]:
    """Requests for thinfs.steps.Chain: all of the writes, then a flush."""
    for offset, data in writes:
        yield device, Bio(Op.WRITE, offset, len(data), data)
    yield device, Bio(Op.FLUSH)
