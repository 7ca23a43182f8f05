"""The trees of a pool's metadata, read from a device for the offline tools, many blocks at a time.

Promises: one committed state, every node checked as nodes.py says, in the order of keys; runs of mappings by the batch.
Reads a pool that is in use as well, with `steady`. Never: writes, caches, opens the space maps, or trusts that two
trees differ. Source: docs/reference/format.md, 2 to 4.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import Busy, InvalidArgument, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.tools.nodes import NO_BOUND, check_node, children, mapping_node_is_leaf, read_block, read_blocks
from thinfs.tools.runs import MappingRun, RunBatch, joined

_ATTEMPTS: Final = 5

T = TypeVar("T")


class PoolTrees:
    """`superblock` is the live one, or the copy that a metadata snapshot is."""

    def __init__(self, device: BlockDevice, superblock: Superblock, nr_data_blocks: int | None = None) -> None:
        """A metadata snapshot does not say how many data blocks there are: then the pool's number is given."""
        self.device = device
        self.superblock = superblock
        self.live_superblock = superblock
        self.nr_data_blocks = superblock.data_space_map_root.nr_blocks if nr_data_blocks is None else nr_data_blocks

    @classmethod
    def open(cls, device: BlockDevice) -> "PoolTrees":
        return cls(device, Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION))

    def metadata_snapshot(self) -> "PoolTrees":
        """The trees of the metadata snapshot that is held."""
        held_root = self.superblock.held_root
        if not held_root:
            raise InvalidArgument("no current metadata snap")
        copy = Superblock.parse(read_block(self.device, held_root), held_root)
        trees = PoolTrees(self.device, copy, self.nr_data_blocks)
        trees.live_superblock = self.live_superblock
        return trees

    # -- any tree

    def node(self, block_nr: int) -> BtreeNode:
        return BtreeNode.parse(read_block(self.device, block_nr), block_nr)

    def leaves(self, root: int, value_bytes: int = 8) -> Iterator[BtreeNode]:
        """In the order of their keys."""
        yield from self._leaves(root, value_bytes, 1, 0, NO_BOUND)

    def _leaves(self, block_nr: int, value_bytes: int, depth: int, low: int, last: int) -> Iterator[BtreeNode]:
        node = self.node(block_nr)
        check_node(node, block_nr, value_bytes, low, last)
        if node.is_leaf:
            yield node
            return
        for child, child_low, child_last in children(node, block_nr, depth, last):
            yield from self._leaves(child, value_bytes, depth + 1, child_low, child_last)

    def roots(self) -> dict[int, int]:
        """Device id -> root of its mappings."""
        found: dict[int, int] = {}
        for leaf in self.leaves(self.superblock.data_mapping_root):
            found.update(zip(leaf.keys[: leaf.nr_entries], leaf.live_values(), strict=True))
        return found

    def details(self) -> dict[int, DeviceDetails]:
        found = {}
        for leaf in self.leaves(self.superblock.device_details_root, DEVICE_DETAILS_BYTES):
            for i in range(leaf.nr_entries):
                found[leaf.keys[i]] = DeviceDetails.from_words(*leaf.value(i))
        return found

    # -- mappings

    def runs(self, root: int) -> Iterator[MappingRun]:
        """The mappings below `root`, runs joined across leaves."""
        for batch in self.batches(root):
            yield from batch

    def batches(self, root: int, met: bytearray | None = None) -> Iterator[RunBatch]:
        return joined(block for _, block in self.mapping_leaves(root, met))

    def mapping_leaves(self, root: int, met: bytearray | None = None) -> Iterator[tuple[int, Buffer]]:
        """(number, whole block) of each leaf below `root`, in the order of their keys; without the nodes that are
        marked in `met`, a byte for each metadata block, where each is marked then."""
        yield from self._mapping_leaves((root,), ((0, NO_BOUND),), 1, met)

    def _mapping_leaves(
        self, block_nrs: Sequence[int], bounds: Sequence[tuple[int, int]], depth: int, met: bytearray | None
    ) -> Iterator[tuple[int, Buffer]]:
        for block_nr, (low, last), block in zip(block_nrs, bounds, read_blocks(self.device, block_nrs), strict=True):
            if met is not None:
                if met[block_nr]:
                    continue
                met[block_nr] = 1
            if mapping_node_is_leaf(block, block_nr, low, last):
                yield block_nr, block
                continue
            below = children(BtreeNode.parse(block, block_nr), block_nr, depth, last)
            yield from self._mapping_leaves(
                [child for child, _, _ in below], [(low, last) for _, low, last in below], depth + 1, met
            )


def steady(device: BlockDevice, read: Callable[[PoolTrees], T]) -> T:
    """`read` of one committed state, although the pool may be in use: blocks of a state are not overwritten before
    the next superblock is written, so what was read is of one state if the superblock is the same afterwards."""
    for _ in range(_ATTEMPTS):
        before = read_block(device, SUPERBLOCK_LOCATION)
        try:
            result = read(PoolTrees(device, Superblock.parse(before, SUPERBLOCK_LOCATION)))
        except ThinfsError:
            if read_block(device, SUPERBLOCK_LOCATION) == before:
                raise
            continue
        if read_block(device, SUPERBLOCK_LOCATION) == before:
            return result
    raise Busy(f"{device.label}: in use, its metadata changed {_ATTEMPTS} times while it was read")
