"""The trees of a pool's metadata, read node by node from a device, for the offline tools.

Promises: one committed state, every block checked (number, checksum, header, depth), runs of mappings made leaf by
leaf; reads a pool that is in use as well, with `steady`. Never: writes, caches, opens the space maps, or trusts
that two trees differ. Source: docs/reference/format.md, 2 to 4.
"""

from array import array
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from thinfs.blockdev import BlockDevice
from thinfs.errors import BadMetadata, Busy, InvalidArgument, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, TIME_BITS, TIME_MASK, DeviceDetails
from thinfs.units import METADATA_BLOCK_BYTES

MAX_DEPTH: Final = 16  # 84 children at the least, but for the root: more levels than this are a loop
_ATTEMPTS: Final = 5
_NEXT_DATA_BLOCK: Final = 1 << TIME_BITS

T = TypeVar("T")


class MappingRun(NamedTuple):
    """Consecutive thin blocks on consecutive data blocks, of one time."""

    thin_begin: int
    data_begin: int
    length: int
    time: int


class PoolTrees:
    """`superblock` is the live one, or the copy that a metadata snapshot is."""

    def __init__(self, device: BlockDevice, superblock: Superblock, nr_data_blocks: int | None = None) -> None:
        """A metadata snapshot does not say how many data blocks there are: then the pool's number is given."""
        self.device = device
        self.superblock = superblock
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
        return PoolTrees(self.device, copy, self.nr_data_blocks)

    def node(self, block_nr: int) -> BtreeNode:
        return BtreeNode.parse(read_block(self.device, block_nr), block_nr)

    def leaves(self, root: int, value_bytes: int = 8) -> Iterator[BtreeNode]:
        """In the order of their keys."""
        yield from self._leaves(root, value_bytes, 1)

    def _leaves(self, block_nr: int, value_bytes: int, depth: int) -> Iterator[BtreeNode]:
        node = self.node(block_nr)
        if node.is_leaf:
            if node.value_size != value_bytes:
                raise BadMetadata(
                    f"metadata block {block_nr}: btree leaf with values of {node.value_size} bytes, not {value_bytes}"
                )
            yield node
            return
        check_internal(node, block_nr, depth)
        for child in node.live_values():
            yield from self._leaves(child, value_bytes, depth + 1)

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

    def runs(self, root: int) -> Iterator[MappingRun]:
        """The mappings below `root`, runs joined across leaves."""
        last = None
        for leaf in self.leaves(root):
            for run in leaf_runs(leaf):
                if last is None:
                    last = run
                elif _follows(last, run):
                    last = MappingRun(last.thin_begin, last.data_begin, last.length + run.length, last.time)
                else:
                    yield last
                    last = run
        if last is not None:
            yield last


def read_block(device: BlockDevice, block_nr: int) -> bytes:
    offset = block_nr * METADATA_BLOCK_BYTES
    if offset + METADATA_BLOCK_BYTES > device.size_bytes:
        raise BadMetadata(
            f"metadata block {block_nr}: past the end of {device.label}, {device.size_bytes // METADATA_BLOCK_BYTES}"
        )
    return device.read(offset, METADATA_BLOCK_BYTES)


def check_internal(node: BtreeNode, block_nr: int, depth: int) -> None:
    if node.value_size != 8:
        raise BadMetadata(f"metadata block {block_nr}: internal node with values of {node.value_size} bytes")
    if depth >= MAX_DEPTH:
        raise BadMetadata(f"metadata block {block_nr}: a btree of more than {MAX_DEPTH} levels")


def leaf_runs(leaf: BtreeNode) -> list[MappingRun]:
    found = []
    keys: array[int] = leaf.keys[: leaf.nr_entries]
    begin = value_begin = next_key = next_value = -1
    for key, value in zip(keys, leaf.live_values(), strict=True):
        if key != next_key or value != next_value:
            if begin >= 0:
                found.append(MappingRun(begin, value_begin >> TIME_BITS, next_key - begin, value_begin & TIME_MASK))
            begin, value_begin = key, value
            next_key, next_value = key, value
        next_key += 1
        next_value += _NEXT_DATA_BLOCK
    if begin >= 0:
        found.append(MappingRun(begin, value_begin >> TIME_BITS, next_key - begin, value_begin & TIME_MASK))
    return found


def _follows(one: MappingRun, other: MappingRun) -> bool:
    return (
        other.thin_begin == one.thin_begin + one.length
        and other.data_begin == one.data_begin + one.length
        and other.time == one.time
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
