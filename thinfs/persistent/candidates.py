"""Older states of a pool that still lie in its metadata: roots nobody refers to any more, by looking at every block.

Promises: reads the device once, end to end; needs no superblock and no space map. A candidate is a root of the tree of
devices with the details tree of the same devices that agrees best with it; the superblock's own and that of a metadata
snapshot come first, the others newest first as far as transaction ids, times and the order of allocation tell. Blocks
may have been given to others since: what is not whole any more is counted. Never writes. Source:
docs/reference/format.md, 2, 3.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, TypeAlias

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, SUPERBLOCK_MAGIC, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.units import MAX_DEV_ID, MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES

_READ_BLOCKS: Final = 256
_HEADER: Final = Struct("<IIQIII")  # of ondisk.btree_node.BTREE_NODE, without its padding
_MAGIC: Final = SUPERBLOCK_MAGIC.to_bytes(8, "little")
_MAX_DEPTH: Final = 16
_ZEROS: Final = bytes(METADATA_BLOCK_BYTES)

DetailsByDevices: TypeAlias = dict[tuple[int, ...], list[tuple[int, dict[int, DeviceDetails]]]]  # with their roots

# What a block is, as far as it can be seen in itself.
_OTHER: Final = 0
_MAPPING_LEAF: Final = 1  # values of 8 bytes, of the mappings or of the tree of devices
_DETAILS_LEAF: Final = 2
_INTERNAL: Final = 3


@dataclass(frozen=True, slots=True)
class RootCandidate:
    """`origin`: "superblock", "metadata snapshot" or "found"; a root that could not be read is there nevertheless
    where the superblock names it, with `nr_missing` at least 1."""

    origin: str
    mapping_root: int
    details_root: int
    thins: tuple[tuple[int, int], ...]  # device id, mappings found below it
    nr_missing: int  # nodes that are referred to and are not there, in the trees and the details
    nr_disagreeing: int  # thins of which the details have another number of mapped blocks
    trans_id: int  # the highest that the details name; the superblock's where there is one
    time: int
    superblock: Superblock | None = None


class MetadataCensus:
    """Every block of the device, looked at once: some twenty bytes of memory each."""

    def __init__(self, device: BlockDevice, progress: Callable[[int], None] = lambda nr_bytes: None) -> None:
        self.device = device
        self.nr_blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
        self.superblocks: dict[int, Superblock] = {}
        self._kinds = bytearray(self.nr_blocks)
        self._nr_entries = array("H", bytes(2 * self.nr_blocks))
        self._lowest = array("Q", bytes(8 * self.nr_blocks))
        self._highest = array("Q", bytes(8 * self.nr_blocks))
        self._children: dict[int, array[int]] = {}
        self._device_leaves: dict[int, dict[int, int]] = {}  # what may be one of the tree of devices
        self._nr_below: dict[int, tuple[int, int]] = {}
        for block_nr, block in self._blocks():
            self._look(block_nr, block)
            progress(METADATA_BLOCK_BYTES)
        self._children_of_nodes = {child for children in self._children.values() for child in children}

    def _blocks(self) -> Iterator[tuple[int, Buffer]]:
        for first in range(0, self.nr_blocks, _READ_BLOCKS):
            nr = min(_READ_BLOCKS, self.nr_blocks - first)
            try:
                data = memoryview(self.device.read(first * METADATA_BLOCK_BYTES, nr * METADATA_BLOCK_BYTES))
            except ThinfsError:  # one of them cannot be read
                for block_nr in range(first, first + nr):
                    try:
                        yield block_nr, self.device.read(block_nr * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
                    except ThinfsError:
                        continue
            else:
                for i in range(nr):
                    yield first + i, data[i * METADATA_BLOCK_BYTES : (i + 1) * METADATA_BLOCK_BYTES]

    def _look(self, block_nr: int, block: Buffer) -> None:
        if block == _ZEROS:
            return
        _, flags, stored, nr_entries, _, value_size = _HEADER.unpack_from(block)
        if stored != block_nr:
            return
        try:
            if bytes(block[32:40]) == _MAGIC:
                self.superblocks[block_nr] = Superblock.parse(block, block_nr)
                return
            if flags not in (LEAF_NODE, INTERNAL_NODE) or value_size not in (8, DEVICE_DETAILS_BYTES):
                return
            node = BtreeNode.parse(block, block_nr)
        except BadMetadata:
            return
        if not node.is_leaf and (value_size != 8 or not nr_entries):
            return
        keys = node.keys[:nr_entries]
        self._nr_entries[block_nr] = nr_entries
        if keys:
            self._lowest[block_nr], self._highest[block_nr] = keys[0], keys[-1]
        if not node.is_leaf:
            self._kinds[block_nr] = _INTERNAL
            self._children[block_nr] = node.live_values()
        elif value_size == DEVICE_DETAILS_BYTES:
            self._kinds[block_nr] = _DETAILS_LEAF
        else:
            self._kinds[block_nr] = _MAPPING_LEAF
            values = node.live_values()
            if values and min(values) > 0 and max(values) < self.nr_blocks and keys[-1] <= MAX_DEV_ID:
                self._device_leaves[block_nr] = dict(zip(keys, values, strict=True))

    # -- trees

    def mappings_below(self, block_nr: int, depth: int = 1) -> tuple[int, int]:
        """How many there are, and how many nodes are missing; a leaf that another got since is found by its keys."""
        if block_nr >= self.nr_blocks or depth > _MAX_DEPTH or self._kinds[block_nr] not in (_MAPPING_LEAF, _INTERNAL):
            return 0, 1
        if self._kinds[block_nr] == _MAPPING_LEAF:
            return self._nr_entries[block_nr], 0
        known = self._nr_below.get(block_nr)
        if known is not None:
            return known
        self._nr_below[block_nr] = (0, 1)  # of a node that leads back to itself
        nr = missing = 0
        children = self._children[block_nr]
        for i, child in enumerate(children):
            more, less = self.mappings_below(child, depth + 1)
            # The highest key of this node is the lowest of its last child: only that one has no bound.
            if not less and self._nr_entries[child] and not self._within(child, block_nr, i == len(children) - 1):
                more, less = 0, 1
            nr, missing = nr + more, missing + less
        self._nr_below[block_nr] = nr, missing
        return nr, missing

    def _within(self, child: int, parent: int, is_last: bool) -> bool:
        low = self._lowest[child]
        return low >= self._lowest[parent] and (is_last or low < self._highest[parent])

    def devices(self, root: int, depth: int = 1) -> dict[int, int] | None:
        """Device id -> root, of a tree of devices that is whole; None of anything else."""
        if root >= self.nr_blocks or depth > _MAX_DEPTH:
            return None
        if self._kinds[root] == _MAPPING_LEAF:
            return {} if not self._nr_entries[root] else self._device_leaves.get(root)
        if self._kinds[root] != _INTERNAL:
            return None
        found: dict[int, int] = {}
        for child in self._children[root]:
            below = self.devices(child, depth + 1)
            if not below or (found and min(below) <= max(found)):
                return None
            found.update(below)
        return found

    def details(self, root: int, depth: int = 1) -> dict[int, DeviceDetails] | None:
        if root >= self.nr_blocks or depth > _MAX_DEPTH:
            return None
        if self._kinds[root] == _DETAILS_LEAF:
            node = BtreeNode.parse(self.device.read(root * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES), root)
            return {node.keys[i]: DeviceDetails.from_words(*node.value(i)) for i in range(node.nr_entries)}
        if self._kinds[root] != _INTERNAL:
            return None
        found: dict[int, DeviceDetails] = {}
        for child in self._children[root]:
            below = self.details(child, depth + 1)
            if not below or (found and min(below) <= max(found)):
                return None
            found.update(below)
        return found

    # -- candidates

    def _roots(self) -> tuple[list[int], list[int]]:
        """Those of trees of devices, those of details trees: nodes that are no child of another that is there."""
        of_devices, of_details = [], []
        for block_nr, kind in enumerate(self._kinds):
            if kind == _OTHER or block_nr in self._children_of_nodes:
                continue
            if block_nr in self._device_leaves or (kind == _INTERNAL and self._leads_to(block_nr) == _MAPPING_LEAF):
                of_devices.append(block_nr)
            elif kind == _DETAILS_LEAF or (kind == _INTERNAL and self._leads_to(block_nr) == _DETAILS_LEAF):
                of_details.append(block_nr)
        return of_devices, of_details

    def _leads_to(self, block_nr: int) -> int:
        for _ in range(_MAX_DEPTH):
            if block_nr >= self.nr_blocks or self._kinds[block_nr] != _INTERNAL:
                break
            block_nr = self._children[block_nr][0]
        else:
            return _OTHER
        if block_nr < self.nr_blocks and self._kinds[block_nr] == _MAPPING_LEAF and block_nr in self._device_leaves:
            return _MAPPING_LEAF
        return _DETAILS_LEAF if block_nr < self.nr_blocks and self._kinds[block_nr] == _DETAILS_LEAF else _OTHER

    def candidates(self) -> list[RootCandidate]:
        found = [
            self._of_superblock("superblock" if block_nr == SUPERBLOCK_LOCATION else "metadata snapshot", superblock)
            for block_nr, superblock in sorted(self.superblocks.items())
        ]
        named = {one.mapping_root for one in found}
        of_devices, of_details = self._roots()
        by_devices = self._details_by_devices(of_details)
        others = []
        for root in of_devices:
            devices = self.devices(root)
            if not devices or root in named:
                continue
            pairs = by_devices.get(tuple(devices))
            if pairs and any(not self.mappings_below(one)[1] for one in devices.values()):
                others.append(min((self._pair(root, devices, *pair) for pair in pairs), key=_badness))
        # Blocks are handed out in a circle: the last root is the one that is next behind the superblock's.
        newest = found[0].mapping_root if found and found[0].origin == "superblock" else self.nr_blocks
        others.sort(key=lambda one: (-one.trans_id, -one.time, (newest - one.mapping_root) % (self.nr_blocks + 1)))
        return found + others

    def details_of(self, dev_ids: tuple[int, ...]) -> tuple[int, dict[int, DeviceDetails]] | None:
        """(root, details) of the newest details tree of just these devices."""
        found = self._details_by_devices(self._roots()[1]).get(dev_ids, [])
        return max(found, key=lambda one: (*_age(one[1]), one[0]), default=None)

    def _details_by_devices(self, roots: list[int]) -> DetailsByDevices:
        found: DetailsByDevices = {}
        for root in roots:
            details = self.details(root)
            if details:
                found.setdefault(tuple(details), []).append((root, details))
        return found

    def _pair(
        self, root: int, devices: dict[int, int], details_root: int, details: dict[int, DeviceDetails]
    ) -> RootCandidate:
        below = {dev_id: self.mappings_below(one) for dev_id, one in devices.items()}
        return RootCandidate(
            "found",
            root,
            details_root,
            tuple((dev_id, nr) for dev_id, (nr, _) in below.items()),
            sum(missing for _, missing in below.values()),
            sum(below[dev_id][0] != one.mapped_blocks for dev_id, one in details.items()),
            *_age(details),
        )

    def _of_superblock(self, origin: str, superblock: Superblock) -> RootCandidate:
        devices = self.devices(superblock.data_mapping_root)
        details = self.details(superblock.device_details_root)
        below = {dev_id: self.mappings_below(root) for dev_id, root in (devices or {}).items()}
        return RootCandidate(
            origin,
            superblock.data_mapping_root,
            superblock.device_details_root,
            tuple((dev_id, nr) for dev_id, (nr, _) in below.items()),
            sum(missing for _, missing in below.values()) + (devices is None) + (details is None),
            sum(below.get(dev_id, (-1, 0))[0] != one.mapped_blocks for dev_id, one in (details or {}).items()),
            superblock.trans_id,
            superblock.time,
            superblock,
        )


def _age(details: dict[int, DeviceDetails]) -> tuple[int, int]:
    """The highest transaction id and the highest time."""
    return (
        max(one.transaction_id for one in details.values()),
        max(max(one.creation_time, one.snapshotted_time) for one in details.values()),
    )


def _badness(one: RootCandidate) -> tuple[int, ...]:
    return one.nr_missing, one.nr_disagreeing, -one.trans_id, -one.time, -one.details_root
