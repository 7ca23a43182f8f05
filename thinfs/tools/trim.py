"""Free data blocks given back to what the data device lies on: what thin_trim does, on files as well.

Promises: only blocks whose reference count is 0, of metadata that was checked; the longest ranges there are. Never
writes metadata.
"""

import re
from collections.abc import Iterator
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import BadMetadata, InvalidArgument
from thinfs.tools.check import check_pool
from thinfs.tools.ref_counts import StoredMap, read_data_map
from thinfs.tools.walk import PoolTrees
from thinfs.units import ENTRIES_PER_BITMAP, sectors_to_bytes

_FREE: Final = re.compile(rb"\0+")


def free_ranges(trees: PoolTrees) -> Iterator[tuple[int, int]]:
    """Data blocks begin..end without a reference, ascending, joined."""
    stored: StoredMap = read_data_map(trees, trees.leaves)
    first, last = -1, -1
    for i in range(len(stored.entries)):
        begin = i * ENTRIES_PER_BITMAP
        counts = stored.counts(trees, i)[: stored.root.nr_blocks - begin]
        for found in _FREE.finditer(counts):
            if begin + found.start() == last:
                last = begin + found.end()
                continue
            if first >= 0:
                yield first, last
            first, last = begin + found.start(), begin + found.end()
    if first >= 0:
        yield first, last


def trim(trees: PoolTrees, data: BlockDevice) -> tuple[int, int]:
    """(how many ranges, how many bytes) were discarded."""
    verdict = check_pool(trees.device)
    if verdict.damages:
        raise BadMetadata(verdict.damages[0])
    block_bytes = sectors_to_bytes(trees.superblock.data_block_size)
    wanted = trees.nr_data_blocks * block_bytes
    if data.size_bytes < wanted:
        raise InvalidArgument(f"{data.label}: {data.size_bytes} bytes, the pool has {wanted}")
    nr_ranges = nr_bytes = 0
    for begin, end in free_ranges(trees):
        data.discard(begin * block_bytes, (end - begin) * block_bytes)
        nr_ranges, nr_bytes = nr_ranges + 1, nr_bytes + (end - begin) * block_bytes
    data.flush()
    return nr_ranges, nr_bytes
