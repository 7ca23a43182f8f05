"""Sound pools to be damaged: made once a process, by seed, small; each block known by what it is.

Promises: between them trees of one, two and three levels, shared nodes, counts above two, many devices, a data space
map whose index is a tree, a metadata snapshot. An image is blocks by number; a device over one writes beside it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Final

from thinfs.blockdev import Buffer, MemoryDevice
from thinfs.errors import IOFailed
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.space_map import MetadataIndex, SpaceMapRoot
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive
from thinfs.units import ENTRIES_PER_BITMAP, METADATA_BLOCK_BYTES, ceil_div

DATA_BLOCK_SECTORS: Final = 128
_ZEROS: Final = bytes(METADATA_BLOCK_BYTES)


class ImageDevice:
    """A metadata device over an image: what is written lies in `written`, whole blocks only."""

    label = "metadata"
    supports_discard = False

    def __init__(self, blocks: Mapping[int, bytes], nr_blocks: int) -> None:
        self._blocks = blocks
        self.written: dict[int, bytes] = {}
        self.size_bytes = nr_blocks * METADATA_BLOCK_BYTES

    def block(self, block_nr: int) -> bytes:
        return self.written.get(block_nr) or self._blocks.get(block_nr, _ZEROS)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size_bytes:
            raise IOFailed(f"{self.label}: bytes {offset}..{offset + length} are past its end, {self.size_bytes}")
        first = offset // METADATA_BLOCK_BYTES
        return b"".join(self.block(first + i) for i in range(length // METADATA_BLOCK_BYTES))

    def write(self, offset: int, data: Buffer) -> None:
        if offset < 0 or offset + len(data) > self.size_bytes:
            raise IOFailed(f"{self.label}: bytes {offset}..{offset + len(data)} are past its end, {self.size_bytes}")
        for begin in range(0, len(data), METADATA_BLOCK_BYTES):
            block_nr = (offset + begin) // METADATA_BLOCK_BYTES
            self.written[block_nr] = bytes(data[begin : begin + METADATA_BLOCK_BYTES])

    def flush(self) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        raise IOFailed("metadata is not discarded")

    def close(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Pool:
    """A sound image. `kinds`: what lies where, of the blocks that are reached."""

    name: str
    nr_blocks: int
    blocks: Mapping[int, bytes]
    kinds: Mapping[str, list[int]]
    dev_ids: list[int]
    nr_data_blocks: int
    top_thin_block: int

    def device(self, damaged: Mapping[int, bytes] = {}) -> ImageDevice:  # never changed
        device = ImageDevice(self.blocks, self.nr_blocks)
        device.written.update(damaged)
        return device


@dataclass(slots=True)
class _Walk:
    """Which block is what; what is reached twice is listed once."""

    device: MemoryDevice
    kinds: dict[str, list[int]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def read(self, block_nr: int) -> bytes:
        return self.device.read(block_nr * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)

    def found(self, kind: str, block_nr: int) -> bool:
        new = block_nr not in self.seen
        if new:
            self.seen.add(block_nr)
            self.kinds.setdefault(kind, []).append(block_nr)
        return new

    def tree(self, kind: str, root: int) -> Iterator[int]:
        """First words of the leaves' values."""
        if not self.found(kind, root):
            return
        node = BtreeNode.parse(self.read(root), root)
        for i in range(node.nr_entries):
            word = node.values[i * node.stride]
            if node.is_leaf:
                yield word
            else:
                yield from self.tree(kind, word)

    def trees(self, superblock: Superblock, prefix: str = "") -> None:
        for root in list(self.tree(prefix + "device tree", superblock.data_mapping_root)):
            list(self.tree(prefix + "mapping tree", root))
        list(self.tree(prefix + "details tree", superblock.device_details_root))

    def space_map(self, what: str, root: SpaceMapRoot, bitmaps: list[int]) -> None:
        for bitmap in bitmaps:
            self.found(f"{what} bitmap", bitmap)
        list(self.tree(f"{what} overflow tree", root.ref_count_root))

    def run(self) -> Mapping[str, list[int]]:
        self.found("superblock", SUPERBLOCK_LOCATION)
        superblock = Superblock.parse(self.read(SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
        self.trees(superblock)
        if superblock.held_root:
            self.found("held superblock", superblock.held_root)
            self.trees(Superblock.parse(self.read(superblock.held_root), superblock.held_root), "held ")
        root = superblock.data_space_map_root
        self.space_map("data", root, list(self.tree("data index tree", root.bitmap_root)))
        root = superblock.metadata_space_map_root
        self.found("metadata index", root.bitmap_root)
        index = MetadataIndex.parse(self.read(root.bitmap_root), root.bitmap_root).entries()
        nr_bitmaps = ceil_div(root.nr_blocks, ENTRIES_PER_BITMAP)
        self.space_map("metadata", root, [entry.blocknr for entry in index[:nr_bitmaps]])
        return self.kinds


class _Maker:
    def __init__(self, name: str, nr_blocks: int, nr_data_blocks: int) -> None:
        self.name = name
        self.random = Random(name)
        self.nr_blocks = nr_blocks
        self.device = MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES, label="metadata")
        self.metadata = PoolMetadata.open(self.device, DATA_BLOCK_SECTORS)
        self.metadata.resize_data(nr_data_blocks)
        self.commit()
        self.top_thin_block = 0

    def commit(self) -> None:
        drive(self.metadata.commit())

    def write(self, dev_id: int, thin_blocks: list[int]) -> None:
        thin = self.metadata.open_thin(dev_id)
        for thin_block in thin_blocks:
            found = thin.find_block(thin_block)
            if found is None or found[1]:
                thin.insert_block(thin_block, self.metadata.alloc_data_block())
        self.metadata.close_thin(thin)
        self.top_thin_block = max(self.top_thin_block, *thin_blocks)
        self.commit()

    def done(self) -> Pool:
        dev_ids = [dev_id for dev_id, _ in self.metadata.devices()]
        self.commit()
        nr_data = self.metadata.nr_data_blocks
        blocks = {page: bytes(data) for page, data in self.device._pages.items()}
        return Pool(self.name, self.nr_blocks, blocks, _Walk(self.device).run(), dev_ids, nr_data, self.top_thin_block)


def _small() -> Pool:
    """Trees of one node each; the metadata snapshot shares them."""
    maker = _Maker("small", 256, 512)
    for dev_id in (0, 5, 9):
        maker.metadata.create_thin(dev_id)
        maker.write(dev_id, maker.random.sample(range(80), 30))
    maker.metadata.create_snap(6, 5)
    drive(maker.metadata.reserve_metadata_snap())
    maker.write(6, maker.random.sample(range(80), 10))
    return maker.done()


def _shared() -> Pool:
    """Trees of two levels, snapshots of snapshots, counts above two."""
    maker = _Maker("shared", 1024, 8192)
    maker.metadata.create_thin(0)
    maker.write(0, maker.random.sample(range(2000), 900))
    for dev_id in range(1, 6):
        maker.metadata.create_snap(dev_id, maker.random.randrange(dev_id))
        maker.commit()
        maker.write(dev_id, maker.random.sample(range(2000), 12))
    drive(maker.metadata.open_thin(3).remove_range(300, 500))
    maker.commit()
    drive(maker.metadata.reserve_metadata_snap())
    maker.write(1, maker.random.sample(range(2000), 6))
    return maker.done()


def _many() -> Pool:
    """So many devices that the device tree and the details tree have two levels."""
    maker = _Maker("many", 2048, 2048)
    for dev_id in range(0, 900, 3):
        maker.metadata.create_thin(dev_id)
    maker.commit()
    for dev_id in range(0, 900, 30):
        maker.write(dev_id, [0, 1, 7])
    return maker.done()


def _deep() -> Pool:
    """A mapping tree of three levels."""
    maker = _Maker("deep", 2048, 70_000)
    maker.metadata.create_thin(1)
    maker.write(1, list(range(0, 130_000, 2)))
    maker.metadata.create_snap(2, 1)
    maker.commit()
    maker.write(2, [5, 70_000, 129_998])
    return maker.done()


def _wide() -> Pool:
    """A data space map whose index is a tree, and a second metadata bitmap."""
    maker = _Maker("wide", ENTRIES_PER_BITMAP + 300, 171 * ENTRIES_PER_BITMAP)
    maker.metadata.create_thin(0)
    maker.write(0, list(range(40)))
    return maker.done()


_MAKERS: Final[Mapping[str, Callable[[], Pool]]] = {
    "small": _small, "shared": _shared, "many": _many, "deep": _deep, "wide": _wide,
}  # fmt: skip
NAMES: Final = tuple(_MAKERS)


@cache
def pool(name: str) -> Pool:
    return _MAKERS[name]()
