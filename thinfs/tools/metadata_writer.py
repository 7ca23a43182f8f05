"""A pool's metadata written anew: trees from the leaves up, space maps that count them, the superblock last.

Promises: streams; blocks are handed out in order and written by the megabyte; while it is written the target has no
valid superblock, so that what a crash leaves is no pool. A subtree that is given to several thins is one there too.
Raises NoSpace before it writes past the end, and says how much is wanted where it knows. Memory: a byte for each data
block that is near a mapped one and for each metadata block. Source: docs/reference/format.md, 2, 3, 5.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, InvalidArgument, NoSpace
from thinfs.ondisk import checksum
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode, max_entries_for
from thinfs.ondisk.space_map import (
    INDEX_ENTRY_BYTES,
    Bitmap,
    IndexEntry,
    MetadataIndex,
    SpaceMapRoot,
)
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.tools import _mappings
from thinfs.tools.ir import PoolHeader
from thinfs.tools.ref_counts import RefCounts
from thinfs.tools.runs import RunBatch
from thinfs.units import (
    ENTRIES_PER_BITMAP,
    MAX_DEV_ID,
    MAX_METADATA_BLOCKS,
    METADATA_BLOCK_BYTES,
    ceil_div,
)

_WRITE_BLOCKS: Final = 256
_LEAF_ENTRIES: Final = max_entries_for(8)
_MAX_DATA_BLOCKS: Final = 1 << 40
_REF_COUNT_BYTES: Final = 4
_MAPPINGS_AT_ONCE: Final = 64 * 1024


class Subtree(NamedTuple):
    """A node that was written, with the lowest key below it."""

    lowest: int
    block_nr: int


class MetadataWriter:
    def __init__(self, device: BlockDevice, header: PoolHeader) -> None:
        self.device = device
        self.header = header
        self.nr_blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
        if not 0 <= header.nr_data_blocks <= _MAX_DATA_BLOCKS:
            raise InvalidArgument(f"{header.nr_data_blocks} data blocks: there are at most {_MAX_DATA_BLOCKS}")
        bitmaps = ceil_div(header.nr_data_blocks, ENTRIES_PER_BITMAP) + ceil_div(self.nr_blocks, ENTRIES_PER_BITMAP)
        if bitmaps >= self.nr_blocks:
            raise NoSpace(f"{device.label}: {self.nr_blocks} metadata blocks; the space maps alone take {bitmaps}")
        self._counts = RefCounts(self.nr_blocks)
        self._data_counts = RefCounts(header.nr_data_blocks)
        self._next = SUPERBLOCK_LOCATION + 1
        self._pending = bytearray()
        self._thins: dict[int, tuple[int, DeviceDetails]] = {}
        self._counts.inc(SUPERBLOCK_LOCATION)
        device.write(0, bytes(METADATA_BLOCK_BYTES))
        device.flush()

    # -- blocks

    def _new(self) -> int:
        if self._next >= self.nr_blocks:
            raise NoSpace(f"{self.device.label}: its {self.nr_blocks} metadata blocks are too few")
        self._next += 1
        return self._next - 1

    def _write(self, block: bytes) -> None:
        """The block that was handed out last."""
        self._pending += block
        if len(self._pending) >= _WRITE_BLOCKS * METADATA_BLOCK_BYTES:
            self._write_out()

    def _write_out(self) -> None:
        self.device.write(self._next * METADATA_BLOCK_BYTES - len(self._pending), self._pending)
        self._pending.clear()

    def _node(self, flags: int, value_bytes: int, keys: "array[int]", values: "array[int]") -> Subtree:
        node = BtreeNode.blank(flags, value_bytes)
        node.assign(keys, values)
        block_nr = self._new()
        self._write(node.build(block_nr))
        if flags == INTERNAL_NODE:
            for child in values:
                self._counts.inc(child)
        return Subtree(keys[0] if keys else 0, block_nr)

    def tree(self, nodes: Sequence[Subtree]) -> int:
        """The internal nodes above these, which are one level; the root's number."""
        while len(nodes) > 1:
            parts = _shares(len(nodes), _LEAF_ENTRIES)
            nodes = [self.internal_node(nodes[part.start : part.stop]) for part in parts]
        return nodes[0].block_nr

    def internal_node(self, children: Sequence[Subtree]) -> Subtree:
        keys = array("Q", [child.lowest for child in children])
        return self._node(INTERNAL_NODE, 8, keys, array("Q", [child.block_nr for child in children]))

    def _small_tree(self, entries: Sequence[tuple[int, Sequence[int]]], value_bytes: int, typecode: str = "Q") -> int:
        """Of (key, words of the value), in the order of keys."""
        leaves = []
        for part in _shares(len(entries), max_entries_for(value_bytes)):
            of_leaf = entries[part.start : part.stop]
            keys = array("Q", [key for key, _ in of_leaf])
            values = array(typecode, [word for _, words in of_leaf for word in words])
            leaves.append(self._node(LEAF_NODE, value_bytes, keys, values))
        return self.tree(leaves)

    # -- mappings

    def copied_leaf(self, block: Buffer) -> Subtree:
        """A sound leaf of mappings as it stands, with another number."""
        node = BtreeNode.parse(block, checksum.stored_block_nr(block))
        self._count_data(block)
        block_nr = self._new()
        self._write(node.build(block_nr))
        return Subtree(node.keys[0] if node.nr_entries else 0, block_nr)

    def leaves(self, batches: Iterable[RunBatch]) -> tuple[list[Subtree], int]:
        """Of runs in the order of thin blocks, full leaves; and how many mappings they have."""
        found: list[Subtree] = []
        keys, values = array("Q"), array("Q")
        nr = 0
        for batch in batches:
            run = offset = 0
            while run < batch.nr_runs:
                more = _mappings.expand(batch.words, batch.nr_runs, run, offset, _MAPPINGS_AT_ONCE)
                run, offset = more[2:]
                keys.frombytes(more[0])
                values.frombytes(more[1])
                whole = max(len(keys) // _LEAF_ENTRIES - 1, 0)  # more than one is kept: the last two share what is left
                for i in range(0, whole * _LEAF_ENTRIES, _LEAF_ENTRIES):
                    found.append(self._mapping_leaf(keys[i : i + _LEAF_ENTRIES], values[i : i + _LEAF_ENTRIES]))
                del keys[: whole * _LEAF_ENTRIES], values[: whole * _LEAF_ENTRIES]
                nr += whole * _LEAF_ENTRIES
        for part in _shares(len(keys), _LEAF_ENTRIES):
            found.append(self._mapping_leaf(keys[part.start : part.stop], values[part.start : part.stop]))
        return found, nr + len(keys)

    def _mapping_leaf(self, keys: "array[int]", values: "array[int]") -> Subtree:
        node = BtreeNode.blank(LEAF_NODE, 8)
        node.assign(keys, values)
        block_nr = self._new()
        block = node.build(block_nr)
        self._count_data(block)
        self._write(block)
        return Subtree(keys[0] if keys else 0, block_nr)

    def _count_data(self, leaf: Buffer) -> None:
        refused = self._data_counts.inc_leaf(leaf)
        if refused is not None:
            thin_block, data_block = refused
            raise BadMetadata(f"thin block {thin_block}: maps data block {data_block} of {self._data_counts.nr_blocks}")

    # -- thins

    def add_thin(self, dev_id: int, details: DeviceDetails, root: int) -> None:
        if not 0 <= dev_id <= MAX_DEV_ID:
            raise InvalidArgument(f"thin {dev_id}: ids end at {MAX_DEV_ID}")
        if dev_id in self._thins:
            raise InvalidArgument(f"thin {dev_id}: twice")
        self._thins[dev_id] = (root, details)

    def finish(self) -> None:
        """Trees of the thins, space maps, and then the superblock."""
        thins = sorted(self._thins.items())
        mapping_root = self._small_tree([(dev_id, (root,)) for dev_id, (root, _) in thins], 8)
        for _, (root, _) in thins:
            self._counts.inc(root)
        details_root = self._small_tree(
            [(dev_id, details.words()) for dev_id, (_, details) in thins], DEVICE_DETAILS_BYTES
        )
        self._counts.inc(mapping_root)
        self._counts.inc(details_root)
        data_root = self._data_space_map()
        metadata_root = self._metadata_space_map()
        self._write_out()
        self.device.flush()
        header = self.header
        superblock = Superblock(
            flags=header.flags,
            time=header.time,
            trans_id=header.trans_id,
            data_space_map_root=data_root,
            metadata_space_map_root=metadata_root,
            data_mapping_root=mapping_root,
            device_details_root=details_root,
            data_block_size=header.data_block_size,
            metadata_nr_blocks=self.nr_blocks,
        )
        self.device.write(0, superblock.build(SUPERBLOCK_LOCATION))
        self.device.flush()

    # -- space maps

    def _data_space_map(self) -> SpaceMapRoot:
        counts = self._data_counts
        entries = []
        for i in range(ceil_div(counts.nr_blocks, ENTRIES_PER_BITMAP)):
            block_nr = self._new()
            self._counts.inc(block_nr)
            entry, bitmap = _bitmap(counts, i, block_nr)
            self._write(bitmap.build(block_nr))
            entries.append((i, entry.words()))
        bitmap_root = self._small_tree(entries, INDEX_ENTRY_BYTES)
        ref_count_root = self._small_tree([(block, (n,)) for block, n in counts.overflow()], _REF_COUNT_BYTES, "I")
        self._counts.inc(bitmap_root)
        self._counts.inc(ref_count_root)
        return SpaceMapRoot(counts.nr_blocks, counts.nr_allocated, bitmap_root, ref_count_root)

    def _metadata_space_map(self) -> SpaceMapRoot:
        """Its own blocks have one reference each: they change nothing in the overflow tree, which goes first."""
        counts = self._counts
        overflow = [(block, (n,)) for block, n in counts.overflow()]
        ref_count_root = self._small_tree(overflow, _REF_COUNT_BYTES, "I")
        counts.inc(ref_count_root)
        index = MetadataIndex.blank()
        numbers = []
        for _ in range(ceil_div(self.nr_blocks, ENTRIES_PER_BITMAP)):
            numbers.append(self._new())
            counts.inc(numbers[-1])
            self._write(bytes(METADATA_BLOCK_BYTES))
        bitmap_root = self._new()
        counts.inc(bitmap_root)
        self._write(bytes(METADATA_BLOCK_BYTES))
        self._write_out()
        for i, block_nr in enumerate(numbers):
            entry, bitmap = _bitmap(counts, i, block_nr)
            index.set_entry(i, entry)
            self.device.write(block_nr * METADATA_BLOCK_BYTES, bitmap.build(block_nr))
        self.device.write(bitmap_root * METADATA_BLOCK_BYTES, index.build(bitmap_root))
        return SpaceMapRoot(self.nr_blocks, counts.nr_allocated, bitmap_root, ref_count_root)


def _bitmap(counts: RefCounts, i: int, block_nr: int) -> tuple[IndexEntry, Bitmap]:
    """Free counts as the kernel has them: of a whole bitmap even where the last covers fewer blocks."""
    small = counts.small(i * ENTRIES_PER_BITMAP, min((i + 1) * ENTRIES_PER_BITMAP, counts.nr_blocks))
    nr_free = ENTRIES_PER_BITMAP - len(small) + small.count(0)
    first_free = small.find(0)
    bitmap = Bitmap.blank()
    packed = _mappings.pack_counts(small)
    bitmap.entries[: len(packed)] = packed
    return IndexEntry(block_nr, nr_free, first_free if first_free >= 0 else len(small)), bitmap


def _shares(nr: int, most: int) -> list[range]:
    """`nr` things in as few parts of at most `most` as there can be, none much smaller than another; one if none."""
    nr_parts = max(ceil_div(nr, most), 1)
    bounds = [nr * i // nr_parts for i in range(nr_parts + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]
