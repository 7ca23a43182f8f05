"""Reference counts as the trees have them, and the same as a space map on disk says; and where the two differ.

Promises: exact counts; runs are counted and whole bitmaps compared at C speed (one byte for a block, larger counts
beside). Everything that is wrong within a space map itself is a line too. Source: docs/reference/format.md, 5.
"""

import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata, from_oserror
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.space_map import (
    INDEX_ENTRY_BYTES,
    OVERFLOW,
    PAIR_TO_COUNT,
    Bitmap,
    IndexEntry,
    MetadataIndex,
    SpaceMapRoot,
)
from thinfs.tools import _mappings
from thinfs.tools.nodes import read_block, read_blocks
from thinfs.tools.runs import MappingRun, RunBatch, leaf_mapping
from thinfs.tools.walk import PoolTrees
from thinfs.units import ENTRIES_PER_BITMAP, MAX_METADATA_BITMAPS, MAX_METADATA_BLOCKS, ceil_div

_MANY: Final = 254  # from here on the exact count is in `_many`: _mappings.c
_SMALL: Final = bytes(min(count, OVERFLOW) for count in range(256))
_COUNTS_OF_BYTE: Final = tuple(bytes(PAIR_TO_COUNT[byte >> shift & 3] for shift in (0, 2, 4, 6)) for byte in range(256))
_REF_COUNT_BYTES: Final = 4
_STEP: Final = 1 << 20
_MAP_NORESERVE: Final = 0x4000  # Linux's; in Python from 3.12 on

Leaves = Callable[[int, int], Iterator[BtreeNode]]  # (root, bytes of a value)


class RefCounts:
    """Of blocks 0 to `nr_blocks` - 1: a byte each, of which only the pages that are counted in take memory."""

    def __init__(self, nr_blocks: int) -> None:
        self.nr_blocks = nr_blocks
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._counts = mmap.mmap(-1, nr_blocks, flags=private) if nr_blocks else bytearray()
        except OSError as error:
            raise from_oserror(error, f"counts of {nr_blocks} blocks") from None
        self._many: dict[int, int] = {}

    def inc(self, block: int) -> int:
        """The count it has then."""
        count = self._counts[block]
        if count < _MANY - 1:
            self._counts[block] = count + 1
            return count + 1
        self._counts[block] = _MANY
        self._many[block] = count = self._many.get(block, _MANY - 1) + 1
        return count

    def inc_leaf(self, block: Buffer) -> tuple[int, int] | None:
        """Of the data blocks of a leaf; the first mapping (thin block, data block) past the end, where it stops."""
        refused = _mappings.count_leaf(block, self._counts, self._many)
        return None if refused < 0 else leaf_mapping(block, refused)

    def inc_runs(self, batch: RunBatch) -> MappingRun | None:
        """Of their data blocks; the first run that does not lie within the blocks, where it stops."""
        refused = _mappings.count_runs(batch.words, batch.nr_runs, self._counts, self._many)
        return None if refused < 0 else list(batch)[refused]

    def __getitem__(self, block: int) -> int:
        return self._many.get(block, self._counts[block])

    def small(self, begin: int, end: int) -> bytes:
        """Counts up to 3, which stands for all above."""
        return bytes(self._counts[begin:end].translate(_SMALL))

    def overflow(self) -> Iterator[tuple[int, int]]:
        """(block, count) of the counts that a bitmap has no room for."""
        for begin in range(0, self.nr_blocks, ENTRIES_PER_BITMAP):
            small = self.small(begin, begin + ENTRIES_PER_BITMAP)
            at = small.find(OVERFLOW)
            while at >= 0:
                yield begin + at, self[begin + at]
                at = small.find(OVERFLOW, at + 1)

    @property
    def nr_allocated(self) -> int:
        steps = range(0, self.nr_blocks, _STEP)
        return self.nr_blocks - sum(self._counts[begin : begin + _STEP].count(0) for begin in steps)


@dataclass(slots=True)
class Differences:
    """`leaked`: counted higher on disk than by the trees, which costs space only. `sums`: numbers that the kernel goes
    by when it looks for a free block, where they do not agree with the counts: thin_restore 0.9.0 leaves such."""

    leaked: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredMap:
    """A space map as read from disk."""

    name: str  # "metadata" or "data"
    root: SpaceMapRoot
    entries: list[IndexEntry]
    overflow: dict[int, int]

    def bitmap(self, trees: PoolTrees, i: int) -> bytes:
        """Two bits for each count of bitmap `i`."""
        block_nr = self.entries[i].blocknr
        return bytes(Bitmap.parse(read_block(trees.device, block_nr), block_nr).entries)

    def counts(self, trees: PoolTrees, i: int) -> bytes:
        """A byte for each count of bitmap `i`, 3 for all above."""
        return _expanded(self.bitmap(trees, i))


def _expanded(bitmap: bytes) -> bytes:
    return b"".join([_COUNTS_OF_BYTE[byte] for byte in bitmap])


def read_metadata_map(trees: PoolTrees, leaves: Leaves) -> StoredMap:
    root = trees.superblock.metadata_space_map_root
    index = MetadataIndex.parse(read_block(trees.device, root.bitmap_root), root.bitmap_root)
    nr = ceil_div(root.nr_blocks, ENTRIES_PER_BITMAP)
    if nr > MAX_METADATA_BITMAPS:
        raise BadMetadata(f"metadata space map: {root.nr_blocks} blocks, at most {MAX_METADATA_BLOCKS}")
    entries = [IndexEntry.from_words(*index.index[2 * i : 2 * i + 2]) for i in range(nr)]
    return StoredMap("metadata", root, entries, _overflow(leaves, root))


def read_data_map(trees: PoolTrees, leaves: Leaves) -> StoredMap:
    root = trees.superblock.data_space_map_root
    entries = _data_index(root, leaves)
    return StoredMap("data", root, entries, _overflow(leaves, root))


def _data_index(root: SpaceMapRoot, leaves: Leaves) -> list[IndexEntry]:
    entries: list[IndexEntry] = []
    for leaf in leaves(root.bitmap_root, INDEX_ENTRY_BYTES):
        for i in range(leaf.nr_entries):
            if leaf.keys[i] != len(entries):
                raise BadMetadata(f"data space map: index entry {leaf.keys[i]} where {len(entries)} is expected")
            entries.append(IndexEntry.from_words(*leaf.value(i)))
    nr = ceil_div(root.nr_blocks, ENTRIES_PER_BITMAP)
    if len(entries) != nr:
        raise BadMetadata(f"data space map: {len(entries)} index entries, {root.nr_blocks} blocks need {nr}")
    return entries


def check_bitmaps(trees: PoolTrees, entries: Sequence[IndexEntry], name: str) -> None:
    """That each entry has a bitmap of its own which can be read: 4 KiB of the device for what it counts in memory."""
    numbers = [entry.blocknr for entry in entries]
    if len(set(numbers)) != len(numbers):
        raise BadMetadata(f"{name} space map: two index entries have the same bitmap")
    for block_nr, block in zip(numbers, read_blocks(trees.device, numbers), strict=True):
        Bitmap.parse(block, block_nr)


def checked_nr_data_blocks(trees: PoolTrees) -> int:
    """What the superblock says, if its space map really counts that many; else BadMetadata. So whoever keeps a byte
    for each uses no more than four times the space that the bitmaps take on the device."""
    root = trees.live_superblock.data_space_map_root
    check_bitmaps(trees, _data_index(root, trees.leaves), "data")
    return root.nr_blocks


def _overflow(leaves: Leaves, root: SpaceMapRoot) -> dict[int, int]:
    found: dict[int, int] = {}
    for leaf in leaves(root.ref_count_root, _REF_COUNT_BYTES):
        values: array[int] = leaf.live_values()
        found.update(zip(leaf.keys[: leaf.nr_entries], values, strict=True))
    return found


def compare(trees: PoolTrees, stored: StoredMap, expected: RefCounts, found: Differences) -> None:
    name, nr_blocks = stored.name, stored.root.nr_blocks
    nr_allocated = nr_overflowing = 0
    for i, entry in enumerate(stored.entries):
        begin, end = i * ENTRIES_PER_BITMAP, min((i + 1) * ENTRIES_PER_BITMAP, nr_blocks)
        live, bitmap = expected.small(begin, end), stored.bitmap(trees, i)
        if bitmap != _mappings.pack_counts(live).ljust(len(bitmap), b"\0"):
            counts = _expanded(bitmap)
            live = counts[: end - begin]
            if any(counts[end - begin :]):
                found.wrong.append(f"{name} space map: counts past its end, in bitmap {i}")
            _compare_counts(name, begin, live, stored.overflow, expected, found)
        nr_used = len(live) - live.count(0)
        nr_allocated += nr_used
        nr_overflowing += live.count(OVERFLOW)
        # The kernel's last entry counts free what lies past the end of the device, thin_restore's does not.
        if entry.nr_free not in (ENTRIES_PER_BITMAP - nr_used, len(live) - nr_used):
            found.sums.append(f"{name} space map: bitmap {i}: nr_free {entry.nr_free}, it has {len(live) - nr_used}")
        first_free = live.find(0)
        if 0 <= first_free < entry.none_free_before:
            found.sums.append(
                f"{name} space map: bitmap {i}: none_free_before {entry.none_free_before}, {first_free} is free"
            )
    if nr_allocated != stored.root.nr_allocated:
        found.sums.append(f"{name} space map: nr_allocated {stored.root.nr_allocated}, its bitmaps have {nr_allocated}")
    for block, count in stored.overflow.items():
        if block >= nr_blocks or count < OVERFLOW:
            found.wrong.append(f"{name} space map: the overflow tree has {count} for block {block}")
        elif expected[block] != count and expected[block] >= OVERFLOW:
            _differ(name, block, count, expected[block], found)
    if nr_overflowing != len(stored.overflow):
        found.wrong.append(
            f"{name} space map: {nr_overflowing} counts in the overflow tree by its bitmaps, {len(stored.overflow)} are"
        )


def _compare_counts(
    name: str, begin: int, live: bytes, overflow: dict[int, int], expected: RefCounts, found: Differences
) -> None:
    for block, (got, wanted) in enumerate(zip(live, expected.small(begin, begin + len(live)), strict=True), begin):
        if got != wanted:
            _differ(name, block, overflow.get(block, got), expected[block], found)


def _differ(name: str, block: int, got: int, wanted: int, found: Differences) -> None:
    line = f"{name} block {block}: reference count {got}, expected {wanted}"
    (found.leaked if got > wanted else found.wrong).append(line)
