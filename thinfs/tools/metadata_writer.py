"""A pool's metadata written anew: trees from the leaves up, space maps that count them, the superblock last.

Promises: blocks are handed out in order; while it is written the target has no valid superblock, so that what a crash
leaves is no pool. A subtree that is given to several thins is one there too. Raises NoSpace where the target is too
small, and says what is wanted where it knows.
"""

from array import array
from collections.abc import Iterable
from typing import Final

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, InvalidArgument, NoSpace
from thinfs.ondisk import checksum
from thinfs.ondisk.btree_node import LEAF_NODE, BtreeNode, max_entries_for
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, DeviceDetails
from thinfs.tools import _mappings
from thinfs.tools.ir import PoolHeader
from thinfs.tools.node_writer import NodeWriter, Subtree, shares
from thinfs.tools.ref_counts import RefCounts
from thinfs.tools.runs import RunBatch
from thinfs.units import ENTRIES_PER_BITMAP, MAX_DEV_ID, MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES, ceil_div

_LEAF_ENTRIES: Final = max_entries_for(8)
_MAX_DATA_BLOCKS: Final = 1 << 40
_MAPPINGS_AT_ONCE: Final = 64 * 1024


class MetadataWriter:
    def __init__(self, device: BlockDevice, header: PoolHeader) -> None:
        self.device = device
        self.header = header
        nr_blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)
        if not 0 <= header.nr_data_blocks <= _MAX_DATA_BLOCKS:
            raise InvalidArgument(f"{header.nr_data_blocks} data blocks: there are at most {_MAX_DATA_BLOCKS}")
        bitmaps = ceil_div(header.nr_data_blocks, ENTRIES_PER_BITMAP) + ceil_div(nr_blocks, ENTRIES_PER_BITMAP)
        if bitmaps >= nr_blocks:
            raise NoSpace(f"{device.label}: {nr_blocks} metadata blocks; the space maps alone take {bitmaps}")
        free = range(SUPERBLOCK_LOCATION + 1, nr_blocks)
        self.nodes = NodeWriter(device, RefCounts(nr_blocks), RefCounts(header.nr_data_blocks), free)
        self._thins: dict[int, tuple[int, DeviceDetails]] = {}
        self.nodes.counts.inc(SUPERBLOCK_LOCATION)
        device.write(0, bytes(METADATA_BLOCK_BYTES))
        device.flush()

    # -- mappings

    def copied_leaf(self, block: Buffer) -> Subtree:
        """A sound leaf of mappings as it stands, with another number."""
        node = BtreeNode.parse(block, checksum.stored_block_nr(block))
        self._count_data(block)
        block_nr = self.nodes.new_block()
        self.nodes.write(block_nr, node.build(block_nr))
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
                    found.append(self.mapping_leaf(keys[i : i + _LEAF_ENTRIES], values[i : i + _LEAF_ENTRIES]))
                del keys[: whole * _LEAF_ENTRIES], values[: whole * _LEAF_ENTRIES]
                nr += whole * _LEAF_ENTRIES
        for part in shares(len(keys), _LEAF_ENTRIES):
            found.append(self.mapping_leaf(keys[part.start : part.stop], values[part.start : part.stop]))
        return found, nr + len(keys)

    def mapping_leaf(self, keys: "array[int]", values: "array[int]") -> Subtree:
        node = BtreeNode.blank(LEAF_NODE, 8)
        node.assign(keys, values)
        block_nr = self.nodes.new_block()
        block = node.build(block_nr)
        self._count_data(block)
        self.nodes.write(block_nr, block)
        return Subtree(keys[0] if keys else 0, block_nr)

    def _count_data(self, leaf: Buffer) -> None:
        refused = self.nodes.data_counts.inc_leaf(leaf)
        if refused is not None:
            thin_block, data_block = refused
            nr_data_blocks = self.nodes.data_counts.nr_blocks
            raise BadMetadata(f"thin block {thin_block}: maps data block {data_block} of {nr_data_blocks}")

    # -- thins

    def add_thin(self, dev_id: int, details: DeviceDetails, root: int) -> None:
        if not 0 <= dev_id <= MAX_DEV_ID:
            raise InvalidArgument(f"thin {dev_id}: ids end at {MAX_DEV_ID}")
        if dev_id in self._thins:
            raise InvalidArgument(f"thin {dev_id}: twice")
        self._thins[dev_id] = (root, details)

    def finish(self) -> None:
        """Trees of the thins, space maps, and then the superblock."""
        nodes = self.nodes
        thins = sorted(self._thins.items())
        mapping_root = nodes.small_tree([(dev_id, (root,)) for dev_id, (root, _) in thins], 8)
        for _, (root, _) in thins:
            nodes.counts.inc(root)
        details_root = nodes.small_tree(
            [(dev_id, details.words()) for dev_id, (_, details) in thins], DEVICE_DETAILS_BYTES
        )
        nodes.counts.inc(mapping_root)
        nodes.counts.inc(details_root)
        data_root = nodes.data_space_map()
        metadata_root = nodes.metadata_space_map()
        nodes.write_out()
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
            metadata_nr_blocks=nodes.counts.nr_blocks,
        )
        self.device.write(0, superblock.build(SUPERBLOCK_LOCATION))
        self.device.flush()
