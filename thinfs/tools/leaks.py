"""Leaked blocks given back: space maps written anew with the references that the trees have. What --auto-repair does.

Promises: only after a check that found nothing else. The new maps lie in blocks that neither trees nor the old maps
use, and count from the superblock on, which is written last: a crash leaves the leaks or mends them. Raises NoSpace if
there is no room for the new maps.
"""

from dataclasses import replace

from thinfs.blockdev import BlockDevice
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.tools.check import referenced
from thinfs.tools.node_writer import NodeWriter
from thinfs.units import METADATA_BLOCK_BYTES


def mend_leaks(device: BlockDevice, superblock: Superblock) -> Superblock:
    """The superblock that was written."""
    in_use, counts, data_counts = referenced(device, superblock)
    free = (block_nr for block_nr in range(in_use.nr_blocks) if not in_use[block_nr])
    writer = NodeWriter(device, counts, data_counts, free)
    data_root = writer.data_space_map()
    metadata_root = writer.metadata_space_map()
    writer.write_out()
    device.flush()
    mended = replace(superblock, data_space_map_root=data_root, metadata_space_map_root=metadata_root)
    device.write(SUPERBLOCK_LOCATION * METADATA_BLOCK_BYTES, mended.build(SUPERBLOCK_LOCATION))
    device.flush()
    return mended
