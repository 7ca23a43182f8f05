"""The space map of the data device; mirrors dm-space-map-disk.

Promises: circular next-fit over blocks that are free now and were free at the last commit; frees count in
`nr_free` at once although they cannot be allocated before the next commit. Index entries sit in a btree behind
64 write-back slots, whose order of writing decides metadata block numbers.
Source: docs/reference/format.md, 5, 5.1, 5.2.
"""

from typing import Final

from thinfs.errors import BadMetadata, NoSpace
from thinfs.ondisk.space_map import INDEX_ENTRY_BYTES, IndexEntry, SpaceMapRoot
from thinfs.persistent.btree import Btree, ValueType
from thinfs.persistent.space_map import REF_COUNT, LowLevelMap
from thinfs.persistent.transaction_manager import TransactionManager

NR_SLOTS: Final = 64
BITMAP_INDEX: Final = ValueType(INDEX_ENTRY_BYTES)


class BtreeIndex:
    """Index entries in a btree, the last used of each slot in memory."""

    __slots__ = ("_root", "_slots", "_tree")

    def __init__(self, tm: TransactionManager, root: int) -> None:
        self._tree = Btree(tm, BITMAP_INDEX)
        self._root = root
        self._slots: list[tuple[int, IndexEntry, bool] | None] = [None] * NR_SLOTS  # index, entry, dirty

    def _write(self, i: int, entry: IndexEntry) -> None:
        self._root, _ = self._tree.insert(self._root, (i,), *entry.words())

    def _evict_other(self, slot: int, i: int) -> None:
        held = self._slots[slot]
        if held is not None and held[2] and held[0] != i:
            self._write(held[0], held[1])
            self._slots[slot] = (held[0], held[1], False)

    def load(self, i: int) -> IndexEntry:
        slot = -5 * i % NR_SLOTS
        held = self._slots[slot]
        if held is not None and held[0] == i:
            return held[1]
        self._evict_other(slot, i)
        words = self._tree.lookup_words(self._root, i)
        if words is None:
            raise BadMetadata(f"space map: no index entry for bitmap {i}")
        entry = IndexEntry.from_words(words[0], words[1])
        self._slots[slot] = (i, entry, False)
        return entry

    def save(self, i: int, entry: IndexEntry) -> None:
        slot = -5 * i % NR_SLOTS
        self._evict_other(slot, i)
        self._slots[slot] = (i, entry, True)

    def commit(self) -> int:
        for slot, held in enumerate(self._slots):
            if held is not None and held[2]:
                self._write(held[0], held[1])
                self._slots[slot] = (held[0], held[1], False)
        return self._root

    def snapshot(self) -> "BtreeIndex":
        copy = BtreeIndex(self._tree.tm, self._root)
        copy._slots = self._slots[:]
        return copy


class DiskSpaceMap:
    __slots__ = ("_begin", "_net_allocated", "_old", "ll")

    def __init__(self, tm: TransactionManager, root: SpaceMapRoot) -> None:
        self.ll = LowLevelMap(tm, BtreeIndex(tm, root.bitmap_root), root)
        self._old = self.ll.snapshot()
        self._begin = 0
        self._net_allocated = 0

    @classmethod
    def create(cls, tm: TransactionManager) -> "DiskSpaceMap":
        """A map of no blocks: two empty trees, in this order."""
        bitmap_root = Btree(tm, BITMAP_INDEX).empty()
        return cls(tm, SpaceMapRoot(0, 0, bitmap_root, Btree(tm, REF_COUNT).empty()))

    @property
    def nr_blocks(self) -> int:
        return self._old.nr_blocks

    @property
    def nr_free(self) -> int:
        return self._old.nr_blocks - self._old.nr_allocated - self._net_allocated

    def count(self, data_block: int) -> int:
        return self.ll.count(data_block)

    def inc(self, begin: int, end: int) -> None:
        self._net_allocated += self.ll.inc(begin, end)

    def dec(self, begin: int, end: int) -> None:
        self._net_allocated -= self.ll.dec(begin, end)

    def new_block(self) -> int:
        data_block = self.ll.find_common(self._old, self._begin)
        if data_block is None:
            data_block = self.ll.find_common(self._old, 0)
            if data_block is None:
                raise NoSpace(f"data device: none of its {self.ll.nr_blocks} blocks is free")
        self._begin = data_block + 1
        self.inc(data_block, data_block + 1)
        return data_block

    def extend(self, nr_extra_blocks: int) -> None:
        self.ll.extend(nr_extra_blocks)

    def commit(self) -> None:
        self.ll.commit()
        self._old = self.ll.snapshot()
        self._net_allocated = 0
