"""A checker of metadata images inside the process: walks every tree and compares all reference counts.

Promises: mappings of all devices, details, counts of both space maps exactly as the trees have them, every block
valid; data blocks `overcounted` against the mappings are told apart, all else is a failure. Uses the engine's
schemas of single blocks and nothing of its btrees and space maps. Source: docs/reference/format.md, 2 to 5 and 9.6.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tests.simulation.recording import Image
from thinfs.errors import BadMetadata
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.space_map import OVERFLOW, Bitmap, IndexEntry, MetadataIndex, SpaceMapRoot
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DeviceDetails, unpack_mapping
from thinfs.persistent.block_manager import B
from thinfs.units import ENTRIES_PER_BITMAP, METADATA_BLOCK_BYTES, ceil_div

Mappings = dict[int, dict[int, int]]  # device -> thin block -> data block


@dataclass(slots=True)
class Findings:
    superblock: Superblock
    mappings: Mappings
    details: dict[int, DeviceDetails]
    held: Mappings | None
    overcounted: list[int]
    blocks: dict[int, bytes] = field(default_factory=dict)  # all that was read: the outcome depends on nothing else

    def still_hold(self, image: Image) -> bool:
        """Whether `image` is the same wherever the check looked."""
        chunk = image.chunk
        return all(chunk(number) == data for number, data in self.blocks.items())


class MetadataCheck:
    """`run` raises BadMetadata with the first thing that is wrong."""

    def __init__(self, image: Image) -> None:
        assert image.chunk_bytes == METADATA_BLOCK_BYTES
        self._image = image
        self._blocks: dict[int, bytes] = {}
        self._nodes: dict[int, BtreeNode] = {}
        self._metadata_counts: Counter[int] = Counter()
        self._data_counts: Counter[int] = Counter()

    def run(self) -> Findings:
        superblock = self._read(SUPERBLOCK_LOCATION, Superblock)
        self._metadata_counts[SUPERBLOCK_LOCATION] += 1
        mappings = self._trees_of(superblock)
        details = {
            dev_id: DeviceDetails.from_words(*words) for dev_id, words in self._entries(superblock.device_details_root)
        }
        for dev_id, one in mappings.items():
            if dev_id not in details or len(one) != details[dev_id].mapped_blocks:
                raise BadMetadata(f"thin {dev_id}: {len(one)} mappings, its details are {details.get(dev_id)}")
        if mappings.keys() != details.keys():
            raise BadMetadata(f"details of {sorted(details)}, mappings of {sorted(mappings)}")
        held = None
        if superblock.held_root:
            self._metadata_counts[superblock.held_root] += 1
            held = self._trees_of(self._read(superblock.held_root, Superblock))
        data_map = self._disk_map(superblock.data_space_map_root)
        metadata_map = self._metadata_map(superblock.metadata_space_map_root)
        overcounted = self._compare("data", data_map, self._data_counts)
        if lost := self._compare("metadata", metadata_map, self._metadata_counts):
            raise BadMetadata(f"metadata blocks {lost} are counted and belong to nothing")
        return Findings(superblock, mappings, details, held, overcounted, self._blocks)

    def _read(self, block_nr: int, kind: type[B]) -> B:
        data = self._blocks[block_nr] = self._image.chunk(block_nr)
        return kind.parse(data, block_nr)

    def _node(self, block_nr: int, value_size: int) -> BtreeNode:
        node = self._nodes.get(block_nr)
        if node is None:
            node = self._nodes[block_nr] = self._read(block_nr, BtreeNode)
            keys = node.keys[: node.nr_entries]
            if any(one >= other for one, other in pairwise(keys)):
                raise BadMetadata(f"btree node {block_nr}: keys are not ascending")
        if node.value_size != (value_size if node.is_leaf else 8):
            raise BadMetadata(f"btree node {block_nr}: values of {node.value_size} bytes, not {value_size}")
        return node

    def _trees_of(self, superblock: Superblock) -> Mappings:
        self._count(superblock.data_mapping_root, 8, self._count_subtrees)
        self._count(superblock.device_details_root, 24)
        return {
            dev_id: {block: unpack_mapping(mapping[0])[0] for block, mapping in self._entries(root[0])}
            for dev_id, root in self._entries(superblock.data_mapping_root)
        }

    def _count_subtrees(self, roots: "array[int]") -> None:
        for root in roots:
            self._count(root, 8, self._map)

    def _map(self, values: "array[int]") -> None:
        self._data_counts.update(unpack_mapping(value)[0] for value in values)

    def _count(self, root: int, value_size: int, count_values: "Callable[[array[int]], None] | None" = None) -> None:
        """One reference of `root`; what lies below a node counts once, however many ways lead to it."""
        self._metadata_counts[root] += 1
        if self._metadata_counts[root] > 1:
            return
        node = self._node(root, value_size)
        if not node.is_leaf:
            for child in node.live_values():
                self._count(child, value_size, count_values)
        elif count_values is not None:
            count_values(node.live_values())

    def _entries(self, root: int) -> "Iterator[tuple[int, array[int]]]":
        node = self._nodes[root]
        for i in range(node.nr_entries):
            if node.is_leaf:
                yield node.keys[i], node.value(i)
            else:
                yield from self._entries(node.values[i])

    def _disk_map(self, root: SpaceMapRoot) -> tuple[SpaceMapRoot, list[int], Counter[int]]:
        self._count(root.bitmap_root, 16)
        return self._counts(root, [IndexEntry.from_words(*words) for _, words in self._entries(root.bitmap_root)])

    def _metadata_map(self, root: SpaceMapRoot) -> tuple[SpaceMapRoot, list[int], Counter[int]]:
        self._metadata_counts[root.bitmap_root] += 1
        entries = self._read(root.bitmap_root, MetadataIndex).entries()
        return self._counts(root, entries[: ceil_div(root.nr_blocks, ENTRIES_PER_BITMAP)])

    def _counts(self, root: SpaceMapRoot, entries: list[IndexEntry]) -> tuple[SpaceMapRoot, list[int], Counter[int]]:
        small: list[int] = []
        for entry in entries:
            self._metadata_counts[entry.blocknr] += 1
            bitmap = self._read(entry.blocknr, Bitmap)
            counts = [bitmap.small_count(bit) for bit in range(min(ENTRIES_PER_BITMAP, root.nr_blocks - len(small)))]
            if entry.nr_free != ENTRIES_PER_BITMAP - sum(map(bool, counts)):
                raise BadMetadata(f"bitmap {entry.blocknr}: {entry.nr_free} free in its index entry")
            if any(not count for count in counts[: entry.none_free_before]):
                raise BadMetadata(f"bitmap {entry.blocknr}: a free entry before {entry.none_free_before}")
            small += counts
        self._count(root.ref_count_root, 4)
        overflow = Counter({block: words[0] for block, words in self._entries(root.ref_count_root)})
        if sorted(overflow) != [block for block, count in enumerate(small) if count == OVERFLOW]:
            raise BadMetadata(f"overflow tree {root.ref_count_root} does not hold just the counts above 2")
        if any(count < OVERFLOW for count in overflow.values()):
            raise BadMetadata(f"overflow tree {root.ref_count_root}: a count below 3")
        return root, small, overflow

    def _compare(
        self, what: str, found: tuple[SpaceMapRoot, list[int], Counter[int]], expected: Counter[int]
    ) -> list[int]:
        """Blocks counted too often; too seldom is an error."""
        root, small, overflow = found
        if root.nr_allocated != sum(map(bool, small)):
            raise BadMetadata(f"{what} space map: nr_allocated {root.nr_allocated}, not {sum(map(bool, small))}")
        if expected and max(expected) >= len(small):
            raise BadMetadata(f"{what} block {max(expected)} of {len(small)}")
        overcounted = []
        for block, count in enumerate(small):
            counted = overflow[block] if count == OVERFLOW else count
            if counted < expected[block]:
                raise BadMetadata(f"{what} block {block}: counted {counted}, {expected[block]} lead to it")
            if counted > expected[block]:
                overcounted.append(block)
        return overcounted
