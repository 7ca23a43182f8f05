"""Metadata blocks read many at a time, and what holds for each node of a tree, wherever it is met.

Promises: number, checksum, header, keys that ascend within their parent's bounds; which with MAX_DEPTH bounds the way
through a tree that leads to itself: below a node no other can be met twice, but for itself, level below level. The
common case costs two microseconds, what is refused goes through the schema for its words. Source:
docs/reference/format.md, 1.1 and 3.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from struct import Struct
from typing import Final

from crc32c import crc32c

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode, max_entries_for
from thinfs.ondisk.checksum import BTREE_NODE_SALT
from thinfs.tools import _mappings
from thinfs.units import METADATA_BLOCK_BYTES

MAX_DEPTH: Final = 16  # 84 children at the least, but for the root: more levels than this are a loop
NO_BOUND: Final = (1 << 64) - 1  # the highest key there can be
_MAX_READ_BLOCKS: Final = 256
_HEADER: Final = Struct("<IIQIII")  # of ondisk.btree_node.BTREE_NODE, without its padding
_CSUM_XOR: Final = 0xFFFFFFFF ^ BTREE_NODE_SALT
_MAX_ENTRIES: Final = max_entries_for(8)


def read_block(device: BlockDevice, block_nr: int) -> bytes:
    offset = block_nr * METADATA_BLOCK_BYTES
    if not 0 <= offset <= device.size_bytes - METADATA_BLOCK_BYTES:
        raise BadMetadata(
            f"metadata block {block_nr}: past the end of {device.label}, {device.size_bytes // METADATA_BLOCK_BYTES}"
        )
    return device.read(offset, METADATA_BLOCK_BYTES)


def read_blocks(device: BlockDevice, block_nrs: Sequence[int]) -> Iterator[Buffer]:
    """Each, in this order; neighbours are read at once. Raises at the one that cannot be read, and ends."""
    for block in try_read_blocks(device, block_nrs):
        if isinstance(block, ThinfsError):
            raise block
        yield block


def try_read_blocks(device: BlockDevice, block_nrs: Sequence[int]) -> Iterator[Buffer | ThinfsError]:
    """As `read_blocks`, with the error in the place of a block that cannot be read."""
    nr_device_blocks = device.size_bytes // METADATA_BLOCK_BYTES
    i, nr = 0, len(block_nrs)
    while i < nr:
        first, length = block_nrs[i], 1
        while i + length < nr and length < _MAX_READ_BLOCKS and block_nrs[i + length] == first + length:
            length += 1
        i += length
        if length > 1 and first + length <= nr_device_blocks:
            try:
                data = memoryview(device.read(first * METADATA_BLOCK_BYTES, length * METADATA_BLOCK_BYTES))
            except ThinfsError:  # then it is one of them
                pass
            else:
                for begin in range(0, len(data), METADATA_BLOCK_BYTES):
                    yield data[begin : begin + METADATA_BLOCK_BYTES]
                continue
        for block_nr in range(first, first + length):
            try:
                block = read_block(device, block_nr)
            except ThinfsError as error:
                yield error
            else:
                yield block


def mapping_node_is_leaf(block: Buffer, block_nr: int, low: int, last: int) -> bool:
    """Of a node of the mapping trees, which must be sound: its keys within low..last."""
    csum, flags, stored, nr_entries, max_entries, value_size = _HEADER.unpack_from(block)
    if (
        stored != block_nr
        or crc32c(memoryview(block)[4:]) ^ _CSUM_XOR != csum
        or value_size != 8
        or max_entries != _MAX_ENTRIES
        or nr_entries > max_entries
        or flags not in (LEAF_NODE, INTERNAL_NODE)
        or not _mappings.keys_ascend(block, low, last)
        or not (nr_entries or flags == LEAF_NODE)
    ):
        node = BtreeNode.parse(block, block_nr)
        check_node(node, block_nr, 8, low, last)
        raise BadMetadata(f"metadata block {block_nr}: not a node of a mapping tree")
    return bool(flags == LEAF_NODE)


def check_node(node: BtreeNode, block_nr: int, value_bytes: int, low: int, last: int) -> None:
    """That a node of a tree with values of `value_bytes` is what the kernel would have made."""
    if node.flags not in (LEAF_NODE, INTERNAL_NODE):
        raise BadMetadata(f"metadata block {block_nr}: flags {node.flags:#x} of a btree node")
    size = value_bytes if node.is_leaf else 8
    if node.value_size != size:
        kind = "leaf" if node.is_leaf else "node"
        raise BadMetadata(f"metadata block {block_nr}: btree {kind} with values of {node.value_size} bytes, not {size}")
    if node.max_entries != max_entries_for(size):
        raise BadMetadata(f"metadata block {block_nr}: max_entries {node.max_entries}")
    if not node.is_leaf and not node.nr_entries:
        raise BadMetadata(f"metadata block {block_nr}: no children")
    keys = node.keys[: node.nr_entries]
    if any(key <= before for before, key in pairwise(keys)):
        raise BadMetadata(f"metadata block {block_nr}: keys out of order")
    if keys and not (low <= keys[0] and keys[-1] <= last):
        raise BadMetadata(f"metadata block {block_nr}: keys {keys[0]}..{keys[-1]} outside {low}..{last}")


def children(node: BtreeNode, block_nr: int, depth: int, last: int) -> list[tuple[int, int, int]]:
    """(child, lowest and highest key there may be below it); `node` is at `depth`, a root's is 1."""
    if depth >= MAX_DEPTH:
        raise BadMetadata(f"metadata block {block_nr}: a btree of more than {MAX_DEPTH} levels")
    keys = node.keys[: node.nr_entries]
    lasts = [key - 1 for key in keys[1:]]
    lasts.append(last)
    return list(zip(node.live_values(), keys, lasts, strict=True))
