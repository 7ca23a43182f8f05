"""Nodes and space maps written to the free blocks of a metadata device, and counted as they are referred to.

Promises: streams; neighbouring blocks are written by the megabyte. Raises NoSpace before it writes past the end.
Memory: a byte for each metadata block, and for each data block that is near a mapped one. Never writes the superblock.
Source: docs/reference/format.md, 2, 3, 5.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from thinfs.blockdev import BlockDevice
from thinfs.errors import NoSpace
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode, max_entries_for
from thinfs.ondisk.space_map import INDEX_ENTRY_BYTES, Bitmap, IndexEntry, MetadataIndex, SpaceMapRoot
from thinfs.tools import _mappings
from thinfs.tools.ref_counts import RefCounts
from thinfs.units import ENTRIES_PER_BITMAP, METADATA_BLOCK_BYTES, ceil_div

_WRITE_BYTES: Final = 1 << 20
_INTERNAL_ENTRIES: Final = max_entries_for(8)
_REF_COUNT_BYTES: Final = 4


class Subtree(NamedTuple):
    """A node that was written, with the lowest key below it."""

    lowest: int
    block_nr: int


class NodeWriter:
    """`counts`, `data_counts`: the references there are; `free`: where it may write, in the order of use."""

    def __init__(self, device: BlockDevice, counts: RefCounts, data_counts: RefCounts, free: Iterable[int]) -> None:
        self.device = device
        self.counts = counts
        self.data_counts = data_counts
        self._free = iter(free)
        self._pending = bytearray()
        self._pending_end = 0  # the block behind them

    def new_block(self) -> int:
        block_nr = next(self._free, None)
        if block_nr is None:
            raise NoSpace(f"{self.device.label}: its {self.counts.nr_blocks} metadata blocks are too few")
        return block_nr

    def write(self, block_nr: int, block: bytes) -> None:
        if block_nr != self._pending_end or len(self._pending) >= _WRITE_BYTES:
            self.write_out()
        self._pending += block
        self._pending_end = block_nr + 1

    def write_out(self) -> None:
        if self._pending:
            self.device.write(self._pending_end * METADATA_BLOCK_BYTES - len(self._pending), self._pending)
            self._pending.clear()

    def node(self, flags: int, value_bytes: int, keys: "array[int]", values: "array[int]") -> Subtree:
        node = BtreeNode.blank(flags, value_bytes)
        node.assign(keys, values)
        block_nr = self.new_block()
        self.write(block_nr, node.build(block_nr))
        if flags == INTERNAL_NODE:
            for child in values:
                self.counts.inc(child)
        return Subtree(keys[0] if keys else 0, block_nr)

    def tree(self, nodes: Sequence[Subtree]) -> int:
        """The internal nodes above these, which are one level; the root's number."""
        while len(nodes) > 1:
            parts = shares(len(nodes), _INTERNAL_ENTRIES)
            nodes = [self.internal_node(nodes[part.start : part.stop]) for part in parts]
        return nodes[0].block_nr

    def internal_node(self, children: Sequence[Subtree]) -> Subtree:
        keys = array("Q", [child.lowest for child in children])
        return self.node(INTERNAL_NODE, 8, keys, array("Q", [child.block_nr for child in children]))

    def small_tree(self, entries: Sequence[tuple[int, Sequence[int]]], value_bytes: int, typecode: str = "Q") -> int:
        """Of (key, words of the value), in the order of keys."""
        leaves = []
        for part in shares(len(entries), max_entries_for(value_bytes)):
            of_leaf = entries[part.start : part.stop]
            keys = array("Q", [key for key, _ in of_leaf])
            values = array(typecode, [word for _, words in of_leaf for word in words])
            leaves.append(self.node(LEAF_NODE, value_bytes, keys, values))
        return self.tree(leaves)

    # -- space maps

    def data_space_map(self) -> SpaceMapRoot:
        counts = self.data_counts
        entries = []
        for i in range(ceil_div(counts.nr_blocks, ENTRIES_PER_BITMAP)):
            block_nr = self.new_block()
            self.counts.inc(block_nr)
            entry, bitmap = _bitmap(counts, i, block_nr)
            self.write(block_nr, bitmap.build(block_nr))
            entries.append((i, entry.words()))
        bitmap_root = self.small_tree(entries, INDEX_ENTRY_BYTES)
        ref_count_root = self.small_tree([(block, (n,)) for block, n in counts.overflow()], _REF_COUNT_BYTES, "I")
        self.counts.inc(bitmap_root)
        self.counts.inc(ref_count_root)
        return SpaceMapRoot(counts.nr_blocks, counts.nr_allocated, bitmap_root, ref_count_root)

    def metadata_space_map(self) -> SpaceMapRoot:
        """Its own blocks have one reference each: they change nothing in the overflow tree, which goes first."""
        counts = self.counts
        overflow = [(block, (n,)) for block, n in counts.overflow()]
        ref_count_root = self.small_tree(overflow, _REF_COUNT_BYTES, "I")
        counts.inc(ref_count_root)
        index = MetadataIndex.blank()
        numbers = []
        for _ in range(ceil_div(counts.nr_blocks, ENTRIES_PER_BITMAP)):
            numbers.append(self.new_block())
            counts.inc(numbers[-1])
        bitmap_root = self.new_block()
        counts.inc(bitmap_root)
        for i, block_nr in enumerate(numbers):
            entry, bitmap = _bitmap(counts, i, block_nr)
            index.set_entry(i, entry)
            self.write(block_nr, bitmap.build(block_nr))
        self.write(bitmap_root, index.build(bitmap_root))
        return SpaceMapRoot(counts.nr_blocks, counts.nr_allocated, bitmap_root, ref_count_root)


def _bitmap(counts: RefCounts, i: int, block_nr: int) -> tuple[IndexEntry, Bitmap]:
    """Free counts as the kernel has them: of a whole bitmap even where the last covers fewer blocks."""
    small = counts.small(i * ENTRIES_PER_BITMAP, min((i + 1) * ENTRIES_PER_BITMAP, counts.nr_blocks))
    nr_free = ENTRIES_PER_BITMAP - len(small) + small.count(0)
    first_free = small.find(0)
    bitmap = Bitmap.blank()
    packed = _mappings.pack_counts(small)
    bitmap.entries[: len(packed)] = packed
    return IndexEntry(block_nr, nr_free, first_free if first_free >= 0 else len(small)), bitmap


def shares(nr: int, most: int) -> list[range]:
    """`nr` things in as few parts of at most `most` as there can be, none much smaller than another; one if none."""
    nr_parts = max(ceil_div(nr, most), 1)
    bounds = [nr * i // nr_parts for i in range(nr_parts + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]
