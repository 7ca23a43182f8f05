"""The space map of the metadata device, which lives in the blocks it counts; mirrors dm-space-map-metadata.

Promises: operations that come up while one is carried out wait in a ring of 1024 and are applied in order; growth
and format allocate from a fresh area only (bootstrap). `nr_free` is the raw value: frees count after the commit,
the reserve is not subtracted. Source: docs/reference/format.md, 5.1 to 5.4.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from thinfs.errors import InvalidArgument, NoMemory, NoSpace
from thinfs.ondisk.space_map import OVERFLOW, IndexEntry, MetadataIndex, SpaceMapRoot
from thinfs.persistent.btree import Btree
from thinfs.persistent.space_map import REF_COUNT, LowLevelMap
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.units import MAX_METADATA_BLOCKS

RING_ENTRIES: Final = 1024


class BlockIndex:
    """All 255 index entries, in memory between commits."""

    __slots__ = ("_changed", "_entries", "_root", "_tm")

    def __init__(self, tm: TransactionManager, root: int, entries: list[IndexEntry]) -> None:
        self._tm = tm
        self._root = root
        self._entries = entries
        self._changed: set[int] = set()

    def load(self, i: int) -> IndexEntry:
        return self._entries[i]

    def save(self, i: int, entry: IndexEntry) -> None:
        self._entries[i] = entry
        self._changed.add(i)

    def commit(self) -> int:
        if self._changed:
            self._root, block, _ = self._tm.shadow(self._root, MetadataIndex)
            for i in self._changed:  # after the shadow, whose own allocation is in them
                block.set_entry(i, self._entries[i])
            self._changed.clear()
        return self._root

    def snapshot(self) -> "BlockIndex":
        return BlockIndex(self._tm, self._root, self._entries[:])


class MetadataSpaceMap:
    __slots__ = (
        "_allocated", "_begin", "_bootstrap", "_busy", "_free_before", "_old", "_on_threshold", "_ring",
        "_threshold", "ll",
    )  # fmt: skip

    def __init__(self, tm: TransactionManager, root: SpaceMapRoot, entries: list[IndexEntry]) -> None:
        self.ll = LowLevelMap(tm, BlockIndex(tm, root.bitmap_root, entries), root)
        self._old = self.ll.snapshot()
        self._begin = 0
        self._allocated = 0  # new_block calls since the last commit
        self._busy = False
        self._bootstrap = False
        self._ring: deque[tuple[int, int, int]] = deque()  # +1 or -1, begin, end
        self._threshold: int | None = None
        self._on_threshold: Callable[[], None] = lambda: None
        self._free_before: int | None = None  # after the last allocation
        tm.sm = self

    @classmethod
    def open(cls, tm: TransactionManager, root: SpaceMapRoot) -> "MetadataSpaceMap":
        if root.nr_blocks > MAX_METADATA_BLOCKS:
            raise InvalidArgument(f"metadata space map of {root.nr_blocks} blocks, at most {MAX_METADATA_BLOCKS}")
        return cls(tm, root, tm.bm.read(root.bitmap_root, MetadataIndex).entries())

    @classmethod
    def create(cls, tm: TransactionManager, nr_blocks: int) -> "MetadataSpaceMap":
        """A map that counts the superblock and what it was itself made of (docs/reference/format.md, 9.1)."""
        sm = cls(tm, SpaceMapRoot(), MetadataIndex.blank().entries())
        sm._bootstrap, sm._begin = True, 1
        bitmap_root = tm.new(MetadataIndex.blank())
        ref_count_root = Btree(tm, REF_COUNT).empty()
        sm.ll = LowLevelMap(
            tm,
            BlockIndex(tm, bitmap_root, MetadataIndex.blank().entries()),
            SpaceMapRoot(0, 0, bitmap_root, ref_count_root),
        )
        sm.ll.extend(nr_blocks)
        sm._bootstrap = False
        sm._push(1, 0, sm._begin)
        sm._apply_ring()
        sm.commit()
        return sm

    # -- counts

    @property
    def nr_blocks(self) -> int:
        return self.ll.nr_blocks

    @property
    def nr_free(self) -> int:
        return self._old.nr_blocks - self._old.nr_allocated - self._allocated

    def _pending(self, block_nr: int) -> int:
        return sum(sign for sign, begin, end in self._ring if begin <= block_nr < end)

    def count(self, block_nr: int) -> int:
        if self._bootstrap:
            return 1 if block_nr < self._begin else 0
        return self.ll.count(block_nr) + self._pending(block_nr)

    def is_shared(self, block_nr: int) -> bool:
        """Whether the count is above one, pessimistic where it is not at hand."""
        if self._bootstrap:
            return False
        pending = self._pending(block_nr) if self._ring else 0
        if pending > 1:
            return True
        small = self.ll.small_count(block_nr)
        return small == OVERFLOW or small + pending > 1

    # -- changes

    def inc(self, begin: int, end: int) -> None:
        exclusive = self.ll.tm.exclusive
        if exclusive:
            exclusive.difference_update(range(begin, end))
        self._change(1, begin, end)

    def dec(self, begin: int, end: int) -> None:
        self._change(-1, begin, end)

    def _change(self, sign: int, begin: int, end: int) -> None:
        if self._busy or self._bootstrap:
            self._push(sign, begin, end)
            return
        self._busy = True
        try:
            try:
                self._step(sign, begin, end)
            finally:  # what waits is due even where this failed
                self._apply_ring()
        finally:
            self._busy = False

    def _push(self, sign: int, begin: int, end: int) -> None:
        if len(self._ring) == RING_ENTRIES:
            raise NoMemory(f"metadata space map: {RING_ENTRIES} operations wait already")
        self._ring.append((sign, begin, end))

    def _step(self, sign: int, begin: int, end: int) -> None:
        if sign > 0:
            self.ll.inc(begin, end)
        else:
            self.ll.dec(begin, end)

    def _apply_ring(self) -> None:
        """First in, first out; an operation counts as pending until it is done."""
        ring = self._ring
        while ring:
            self._step(*ring[0])
            ring.popleft()

    def new_block(self) -> int:
        if self._bootstrap:
            return self._new_block_bootstrap()
        block_nr = self.ll.find_common(self._old, self._begin)
        if block_nr is None:
            block_nr = self.ll.find_common(self._old, 0)
            if block_nr is None:
                raise NoSpace(f"metadata device: none of its {self.ll.nr_blocks} blocks is free")
        self._begin = block_nr + 1
        self.ll.tm.handed_out(block_nr)
        self._change(1, block_nr, block_nr + 1)
        self._allocated += 1
        self._check_threshold()
        return block_nr

    def _new_block_bootstrap(self) -> int:
        block_nr = self._begin
        if block_nr == self.ll.nr_blocks:  # 0 while the first two blocks of a format are handed out
            raise NoSpace(f"metadata device: {self.ll.nr_blocks} blocks are too few")
        self._begin += 1
        return block_nr

    def extend(self, nr_extra_blocks: int) -> None:
        """Grow; the new bitmaps and the copies of old ones come to lie at the start of the new area."""
        if self.ll.nr_blocks + nr_extra_blocks > MAX_METADATA_BLOCKS:
            raise InvalidArgument(
                f"metadata of {self.ll.nr_blocks + nr_extra_blocks} blocks, at most {MAX_METADATA_BLOCKS}"
            )
        begin = self._begin = self.ll.nr_blocks
        self._bootstrap = True
        try:
            self.ll.extend(nr_extra_blocks)
            while True:
                self._push(1, begin, self._begin)
                begin = self._begin
                self._apply_ring()
                self.ll.commit()
                if begin == self._begin:
                    break
        finally:
            self._bootstrap = False

    def commit(self) -> None:
        self.ll.commit()
        self._old = self.ll.snapshot()
        self._allocated = 0

    # -- low water

    def set_threshold(self, threshold: int, callback: Callable[[], None]) -> None:
        """Call back when the raw free count comes down to `threshold` or below (docs/reference/behaviour.md, 5.3)."""
        self._threshold, self._on_threshold = threshold, callback

    def _check_threshold(self) -> None:
        """Edge-triggered: what an allocation left before counts, from before there was a threshold too (seen: metadata
        of 40 KiB is below its mark from the format on, and tells nobody)."""
        free, before = self.nr_free, self._free_before
        self._free_before = free
        if self._threshold is not None and free <= self._threshold and (before is None or before > self._threshold):
            self._on_threshold()
