"""Copy on write: blocks are changed only as shadows made in this transaction; mirrors dm-transaction-manager.

Promises: the order "allocate, drop one reference of the original, copy, let the caller reference the
children", which decides every block number; a block of the last committed state is never changed in place.
Never commits: pool/metadata.py does. Source: docs/reference/format.md, 6.
"""

from typing import Protocol, TypeVar

from thinfs.persistent.block_manager import BlockManager, MetadataBlock

B = TypeVar("B", bound=MetadataBlock)


class MetadataAllocator(Protocol):
    """What the transaction manager needs of the metadata space map."""

    def new_block(self) -> int: ...
    def inc(self, begin: int, end: int) -> None: ...
    def dec(self, begin: int, end: int) -> None: ...
    def is_shared(self, block_nr: int) -> bool: ...
    def count(self, block_nr: int) -> int: ...


class TransactionManager:
    __slots__ = ("_handed", "_twice", "bm", "exclusive", "shadows", "sm")

    sm: MetadataAllocator  # set by the space map, which itself lives in blocks of this manager

    def __init__(self, bm: BlockManager) -> None:
        self.bm = bm
        self.shadows: set[int] = set()
        self.exclusive: set[int] = set()  # shadows that got no further reference: known not to be shared
        self._handed: set[int] = set()
        self._twice: set[int] = set()

    def committed(self) -> None:
        """From now on every block is one of the last commit."""
        self.shadows.clear()
        self.exclusive.clear()
        self._handed.clear()
        self._twice.clear()

    def handed_out(self, block_nr: int) -> None:
        """The space map chose a block. On a full device it can be one that was chosen before: the ring is not
        searched (docs/reference/format.md, 5.3)."""
        if block_nr in self._handed:
            self._twice.add(block_nr)
            self.exclusive.discard(block_nr)
        self._handed.add(block_nr)

    def _claim(self, block_nr: int) -> None:
        self.shadows.add(block_nr)
        if block_nr not in self._twice:
            self.exclusive.add(block_nr)

    def new(self, block: MetadataBlock) -> int:
        block_nr = self.sm.new_block()
        self._claim(block_nr)
        self.bm.put(block_nr, block)
        return block_nr

    def shadow(self, original: int, kind: type[B]) -> tuple[int, B, bool]:
        """The block to write in place of `original`, and whether its children need one more reference."""
        if original in self.exclusive:
            return original, self.bm.read(original, kind), False
        shared = self.sm.is_shared(original)
        if not shared and original in self.shadows:
            return original, self.bm.read(original, kind), False
        block_nr = self.sm.new_block()
        self.sm.dec(original, original + 1)
        block = self.bm.read(original, kind).copy()
        self._claim(block_nr)
        self.bm.put(block_nr, block)
        return block_nr, block, shared

    def inc(self, block_nr: int) -> None:
        self.sm.inc(block_nr, block_nr + 1)

    def dec(self, block_nr: int) -> None:
        self.sm.dec(block_nr, block_nr + 1)
