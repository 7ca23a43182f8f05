"""Whether a pool's metadata is sound: every node, every reference count, every number that is kept twice.

Promises: each node is read once, whoever shares it; damage is collected, not the end of the check, and each line names
the block or the thing. After damage within a tree the counts are not compared: they cannot be known. Leaks alone are
not damage (`leaks`). Never writes. Source: docs/reference/format.md, 2 to 5, 9.6.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import METADATA_VERSION, SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.tools import _mappings
from thinfs.tools.nodes import NO_BOUND, check_node, children, mapping_node_is_leaf, read_block, try_read_blocks
from thinfs.tools.ref_counts import (
    Differences,
    RefCounts,
    StoredMap,
    check_bitmaps,
    compare,
    read_data_map,
    read_metadata_map,
)
from thinfs.tools.walk import PoolTrees
from thinfs.units import MAX_DEV_ID, METADATA_BLOCK_BYTES

_MAPPING_BYTES: Final = 8
_MAPPINGS: Final = "the mappings"
_KINDS: Final = (
    "the superblock", "the details tree", "the tree of devices", _MAPPINGS, "the metadata snapshot",
    "the metadata space map", "the data space map",
)  # fmt: skip


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


def check_pool(
    device: BlockDevice,
    *,
    mappings: bool = True,
    metadata_snapshot: bool = False,
    mapping_root: int | None = None,
    details_root: int | None = None,
) -> Verdict:
    """Without `mappings` only the superblock and the trees of devices; of a metadata snapshot, only its trees; with
    other roots than the superblock says, the same."""
    verdict = check_superblock(device)
    if verdict.damages or verdict.superblock is None:
        return verdict
    superblock = verdict.superblock
    if mapping_root is not None:
        superblock = replace(superblock, data_mapping_root=mapping_root)
    if details_root is not None:
        superblock = replace(superblock, device_details_root=details_root)
    trees = PoolTrees(device, superblock)
    if metadata_snapshot:
        trees = trees.metadata_snapshot()
    walk = _Walk(trees, verdict.superblock.metadata_space_map_root.nr_blocks, verdict)
    counts = mappings and not metadata_snapshot
    if counts:
        walk.read_space_maps()
    walk.devices(trees, mappings=mappings)
    if counts:
        walk.held(trees)
        walk.compare_space_maps()
    return verdict


def referenced(device: BlockDevice, superblock: Superblock) -> tuple[RefCounts, RefCounts, RefCounts]:
    """Of sound metadata: the references of metadata blocks with the space maps' own and without, and of data blocks."""
    trees = PoolTrees(device, superblock)
    verdict = Verdict(superblock)
    everything, trees_alone = (_Walk(trees, superblock.metadata_space_map_root.nr_blocks, verdict) for _ in range(2))
    everything.read_space_maps()
    for walk in (everything, trees_alone):
        walk.devices(trees, mappings=True)
        walk.held(trees)
    if verdict.damages or everything.data is None:
        raise BadMetadata(f"damaged: {verdict.damages[0]}")
    return everything.metadata, trees_alone.metadata, everything.data


class _Walk:
    def __init__(self, trees: PoolTrees, nr_metadata_blocks: int, verdict: Verdict) -> None:
        self._trees = trees
        self._verdict = verdict
        self.metadata = RefCounts(nr_metadata_blocks)
        self.data: RefCounts | None = None  # not known
        self._maps: list[StoredMap] = []
        self._kinds = bytearray(nr_metadata_blocks)  # of blocks that were met, as _KINDS
        # Below a node of the mapping trees: how many mappings, their lowest and their highest thin block.
        self._nr_mappings = array("Q", bytes(8 * nr_metadata_blocks))
        self._lowest = array("Q", bytes(8 * nr_metadata_blocks))
        self._highest = array("Q", bytes(8 * nr_metadata_blocks))
        self._path: set[int] = set()
        self._refer(SUPERBLOCK_LOCATION, "the superblock")

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
            nr = self._mappings([(root, 0, NO_BOUND)], 1)
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
        yield from self._below(root, value_bytes, kind, 1, 0, NO_BOUND)

    def _below(
        self, block_nr: int, value_bytes: int, kind: str, depth: int, low: int, last: int
    ) -> Iterator[BtreeNode]:
        try:
            if not self._refer(block_nr, kind):
                return
            node = self._trees.node(block_nr)
            check_node(node, block_nr, value_bytes, low, last)
            below = [] if node.is_leaf else children(node, block_nr, depth, last)
        except ThinfsError as error:
            self._damage(f"{kind}: {error}")
            return
        if node.is_leaf:
            yield node
        for child, child_low, child_last in below:
            yield from self._below(child, value_bytes, kind, depth + 1, child_low, child_last)

    def _mappings(self, nodes: list[tuple[int, int, int]], depth: int) -> int:
        """How many there are below these; the data blocks of a leaf are counted when it is first met."""
        met: list[tuple[int, int, int]] = []
        new: list[tuple[int, int, int]] = []
        for node in nodes:
            try:
                (new if self._refer(node[0], _MAPPINGS) else met).append(node)
            except ThinfsError as error:
                self._damage(f"{_MAPPINGS}: {error}")
        nr = 0
        for (block_nr, low, last), block in zip(
            new, try_read_blocks(self._trees.device, [node[0] for node in new]), strict=True
        ):
            try:
                if isinstance(block, ThinfsError):
                    raise block
                if mapping_node_is_leaf(block, block_nr, low, last):
                    nr += self._leaf(block, block_nr)
                else:
                    nr += self._internal(BtreeNode.parse(block, block_nr), block_nr, last, depth)
            except ThinfsError as error:
                self._damage(f"{_MAPPINGS}: {error}")
        for block_nr, low, last in met:
            if block_nr in self._path:
                self._damage(f"{_MAPPINGS}: metadata block {block_nr}: leads back to itself")
            elif self._nr_mappings[block_nr] and not (
                low <= self._lowest[block_nr] and self._highest[block_nr] <= last
            ):
                keys = f"{self._lowest[block_nr]}..{self._highest[block_nr]}"
                self._damage(f"{_MAPPINGS}: metadata block {block_nr}: keys {keys} outside {low}..{last}")
            nr += self._nr_mappings[block_nr]
        return nr

    def _leaf(self, block: Buffer, block_nr: int) -> int:
        nr_entries, lowest, highest = _mappings.entries(block)
        self._nr_mappings[block_nr], self._lowest[block_nr], self._highest[block_nr] = nr_entries, lowest, highest
        if self.data is not None:
            refused = self.data.inc_leaf(block)
            if refused is not None:
                self._damage(f"metadata block {block_nr}: maps data block {refused[1]} of {self.data.nr_blocks}")
        return nr_entries

    def _internal(self, node: BtreeNode, block_nr: int, last: int, depth: int) -> int:
        below = children(node, block_nr, depth, last)
        self._path.add(block_nr)
        nr = self._mappings(below, depth + 1)
        self._path.discard(block_nr)
        self._nr_mappings[block_nr] = nr
        self._lowest[block_nr] = node.keys[0]
        self._highest[block_nr] = max(
            (self._highest[child] for child, _, _ in below if child < self.metadata.nr_blocks), default=0
        )
        return nr

    def _refer(self, block_nr: int, kind: str) -> bool:
        """Whether it is for the first time."""
        if not 0 <= block_nr < self.metadata.nr_blocks:
            raise BadMetadata(f"metadata block {block_nr} of {self.metadata.nr_blocks}")
        count = self.metadata.inc(block_nr)
        if count == 1:
            self._kinds[block_nr] = _KINDS.index(kind)
            return True
        seen = _KINDS[self._kinds[block_nr]]
        if seen != kind:
            raise BadMetadata(f"metadata block {block_nr} is also of {seen}")
        return False

    # -- counts

    def read_space_maps(self) -> None:
        """First: how many data blocks there are is known when each of their bitmaps was seen."""
        root = self._trees.superblock.metadata_space_map_root.bitmap_root
        for name, read in (("metadata", read_metadata_map), ("data", read_data_map)):
            kind = f"the {name} space map"
            nr_damages = len(self._verdict.damages)
            try:
                if name == "metadata":
                    self._refer(root, kind)
                stored = read(self._trees, lambda root, size, kind=kind: self._nodes(root, size, kind))  # type: ignore[misc]
                for entry in stored.entries:
                    self._refer(entry.blocknr, kind)
                check_bitmaps(self._trees, stored.entries, name)
            except ThinfsError as error:
                self._damage(f"space maps: {error}")
                continue
            if len(self._verdict.damages) == nr_damages:
                self._maps.append(stored)
                if name == "data":
                    self.data = RefCounts(stored.root.nr_blocks)

    def compare_space_maps(self) -> None:
        if self.data is None or len(self._maps) < 2 or self._verdict.damages:
            return
        differences = Differences()
        for stored, expected in zip(self._maps, (self.metadata, self.data), strict=True):
            compare(self._trees, stored, expected, differences)
        self._verdict.damages += differences.wrong
        self._verdict.leaks += differences.leaked
        self._verdict.sums += differences.sums

    def _damage(self, line: str) -> None:
        self._verdict.damages.append(line)
