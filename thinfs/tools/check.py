"""Whether a pool's metadata is sound: every node, every reference count, every number that is kept twice.

Promises: each node is read once, whoever shares it; damage is collected, not the end of the check, and each line names
the block or the thing. After damage within a tree the counts are not compared: they cannot be known. Leaks alone are
not damage (`leaks`). Never writes. Source: docs/reference/format.md, 2 to 5, 9.6.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from thinfs.blockdev import BlockDevice
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode, max_entries_for
from thinfs.ondisk.superblock import METADATA_VERSION, SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.tools.ref_counts import Differences, RefCounts, compare, read_data_map, read_metadata_map
from thinfs.tools.walk import MAX_DEPTH, PoolTrees, leaf_runs, read_block
from thinfs.units import MAX_DEV_ID, METADATA_BLOCK_BYTES

_MAPPING_BYTES = 8


@dataclass(slots=True)
class Verdict:
    superblock: Superblock | None = None
    damages: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)  # harmless


def check_superblock(device: BlockDevice) -> Verdict:
    verdict = Verdict()
    try:
        verdict.superblock = superblock = Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
    except ThinfsError as error:
        verdict.damages.append(f"superblock: {error}")
        return verdict
    if superblock.version != METADATA_VERSION:
        verdict.damages.append(f"superblock: version {superblock.version}, not {METADATA_VERSION}")
    if superblock.incompat_flags:
        verdict.damages.append(f"superblock: unsupported incompatible features {superblock.incompat_flags:#x}")
    nr_blocks = superblock.metadata_space_map_root.nr_blocks
    if nr_blocks > device.size_bytes // METADATA_BLOCK_BYTES:
        there = device.size_bytes // METADATA_BLOCK_BYTES
        verdict.damages.append(f"superblock: {nr_blocks} metadata blocks, {device.label} has {there}")
    return verdict


def check_pool(device: BlockDevice, *, mappings: bool = True, metadata_snapshot: bool = False) -> Verdict:
    """Without `mappings` only the superblock and the trees of devices; of a metadata snapshot, only its trees."""
    verdict = check_superblock(device)
    if verdict.damages or verdict.superblock is None:
        return verdict
    trees = PoolTrees(device, verdict.superblock)
    if metadata_snapshot:
        trees = trees.metadata_snapshot()
    walk = _Walk(trees, verdict.superblock.metadata_space_map_root.nr_blocks, verdict)
    walk.devices(trees, mappings=mappings)
    if mappings and not metadata_snapshot and not verdict.damages:
        walk.held(trees)
        walk.space_maps(trees)
    return verdict


class _Walk:
    def __init__(self, trees: PoolTrees, nr_metadata_blocks: int, verdict: Verdict) -> None:
        self._trees = trees
        self._verdict = verdict
        self._metadata = RefCounts(nr_metadata_blocks)
        self._data = RefCounts(trees.nr_data_blocks)
        self._kinds: dict[int, str] = {SUPERBLOCK_LOCATION: "the superblock"}
        self._nr_mappings: dict[int, int] = {}  # below a node
        self._metadata.inc(SUPERBLOCK_LOCATION, SUPERBLOCK_LOCATION + 1)

    # -- trees

    def devices(self, trees: PoolTrees, *, mappings: bool) -> None:
        details: dict[int, DeviceDetails] = {}
        for leaf in self._nodes(trees.superblock.device_details_root, DEVICE_DETAILS_BYTES, "the details tree"):
            for i in range(leaf.nr_entries):
                details[leaf.keys[i]] = DeviceDetails.from_words(*leaf.value(i))
        roots: dict[int, int] = {}
        for leaf in self._nodes(trees.superblock.data_mapping_root, _MAPPING_BYTES, "the tree of devices"):
            roots.update(zip(leaf.keys[: leaf.nr_entries], leaf.live_values(), strict=True))
        for dev_id in sorted(roots.keys() | details.keys()):
            if dev_id > MAX_DEV_ID:
                self._damage(f"thin {dev_id}: ids end at {MAX_DEV_ID}")
            if dev_id not in details:
                self._damage(f"thin {dev_id}: has mappings, no details")
            if dev_id not in roots:
                self._damage(f"thin {dev_id}: has details, no mappings")
        if not mappings:
            return
        for dev_id, root in roots.items():
            nr_damages = len(self._verdict.damages)
            nr = self._mappings(root, dev_id, 1)
            one = details.get(dev_id)
            if one is not None and nr != one.mapped_blocks and len(self._verdict.damages) == nr_damages:
                self._damage(f"thin {dev_id}: its details say {one.mapped_blocks} mapped blocks, it has {nr}")

    def held(self, trees: PoolTrees) -> None:
        held_root = trees.superblock.held_root
        if not held_root:
            return
        try:
            self._refer(held_root, "the metadata snapshot")
            copy = trees.metadata_snapshot()
        except ThinfsError as error:
            self._damage(f"metadata snapshot: {error}")
            return
        self.devices(copy, mappings=True)

    def _nodes(self, root: int, value_bytes: int, kind: str) -> Iterator[BtreeNode]:
        """The leaves of a tree of one level, each node referred to; what is damaged is left out."""
        yield from self._below(root, value_bytes, kind, 1, None, None)

    def _below(
        self, block_nr: int, value_bytes: int, kind: str, depth: int, low: int | None, high: int | None
    ) -> Iterator[BtreeNode]:
        node = self._read(block_nr, value_bytes, kind, depth, low, high)
        if node is None:
            return
        if node.is_leaf:
            yield node
            return
        for child, low_, high_ in _children(node, high):
            yield from self._below(child, value_bytes, kind, depth + 1, low_, high_)

    def _mappings(self, block_nr: int, dev_id: int, depth: int, low: int | None = None, high: int | None = None) -> int:
        """How many there are below; the data blocks of a leaf are counted when it is first met."""
        kind = "the mappings"
        node = self._read(block_nr, _MAPPING_BYTES, kind, depth, low, high)
        if node is None:
            return self._nr_mappings.get(block_nr, 0)
        nr = node.nr_entries
        if node.is_leaf:
            for run in leaf_runs(node):
                end = run.data_begin + run.length
                if end > self._data.nr_blocks:
                    self._damage(f"metadata block {block_nr}: maps data block {end - 1} of {self._data.nr_blocks}")
                else:
                    self._data.inc(run.data_begin, end)
        else:
            nr = sum(
                self._mappings(child, dev_id, depth + 1, low_, high_) for child, low_, high_ in _children(node, high)
            )
        self._nr_mappings[block_nr] = nr
        return nr

    def _read(
        self, block_nr: int, value_bytes: int, kind: str, depth: int, low: int | None, high: int | None
    ) -> BtreeNode | None:
        """None if it was seen before, or cannot be read, which is then a damage."""
        try:
            if not self._refer(block_nr, kind):
                return None
            node = self._trees.node(block_nr)
            self._check_node(node, block_nr, value_bytes, depth, low, high)
        except ThinfsError as error:
            self._damage(f"{kind}: {error}")
            return None
        return node

    def _refer(self, block_nr: int, kind: str) -> bool:
        """Whether it is for the first time."""
        if not 0 <= block_nr < self._metadata.nr_blocks:
            raise BadMetadata(f"metadata block {block_nr} of {self._metadata.nr_blocks}")
        self._metadata.inc(block_nr, block_nr + 1)
        seen = self._kinds.setdefault(block_nr, kind)
        if seen != kind:
            raise BadMetadata(f"metadata block {block_nr} is also of {seen}")
        return self._metadata[block_nr] == 1

    def _check_node(
        self, node: BtreeNode, block_nr: int, value_bytes: int, depth: int, low: int | None, high: int | None
    ) -> None:
        size = value_bytes if node.is_leaf else 8
        if node.value_size != size:
            raise BadMetadata(f"metadata block {block_nr}: values of {node.value_size} bytes, not {size}")
        if node.max_entries != max_entries_for(size):
            raise BadMetadata(f"metadata block {block_nr}: max_entries {node.max_entries}")
        if depth > MAX_DEPTH or (not node.is_leaf and not node.nr_entries):
            raise BadMetadata(f"metadata block {block_nr}: {'too deep' if depth > MAX_DEPTH else 'no children'}")
        keys = node.keys[: node.nr_entries]
        if any(one >= other for one, other in pairwise(keys)):
            raise BadMetadata(f"metadata block {block_nr}: keys out of order")
        if keys and ((low is not None and keys[0] < low) or (high is not None and keys[-1] >= high)):
            raise BadMetadata(f"metadata block {block_nr}: keys {keys[0]}..{keys[-1]} outside {low}..{high}")

    # -- counts

    def space_maps(self, trees: PoolTrees) -> None:
        differences = Differences()
        superblock = trees.superblock
        try:
            self._refer(superblock.metadata_space_map_root.bitmap_root, "the metadata space map")
            maps = []
            for name, read in (("metadata", read_metadata_map), ("data", read_data_map)):
                kind = f"the {name} space map"
                stored = read(trees, lambda root, size, kind=kind: self._nodes(root, size, kind))  # type: ignore[misc]
                for entry in stored.entries:
                    self._refer(entry.blocknr, kind)
                maps.append(stored)
            if self._verdict.damages:
                return
            for stored, expected in zip(maps, (self._metadata, self._data), strict=True):
                compare(trees, stored, expected, differences)
        except ThinfsError as error:
            self._damage(f"space maps: {error}")
        self._verdict.damages += differences.wrong
        self._verdict.leaks += differences.leaked
        self._verdict.sums += differences.sums

    def _damage(self, line: str) -> None:
        self._verdict.damages.append(line)


def _children(node: BtreeNode, high: int | None) -> list[tuple[int, int | None, int | None]]:
    """(child, its lowest key, the next child's): a key in an internal node is at most the lowest below it."""
    bounds = [*node.keys[: node.nr_entries], high]
    return [(child, bounds[i], bounds[i + 1]) for i, child in enumerate(node.live_values())]
