"""What all four kinds of metadata block share: a salted CRC32C at byte 0 and their own number at byte 8.

Promises: `check` refuses in the kernel's order (block number, magic, checksum) with the block number in the
message; `stamp` is the last thing done to a block before it is written. Mirrors the `prepare_for_write`
and `check` halves of the kernel's block validators. Source: docs/reference/format.md, 1.1.
"""

from typing import Final

from crc32c import crc32c

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata, WrongBlock
from thinfs.units import METADATA_BLOCK_BYTES

SUPERBLOCK_SALT: Final = 160774
BTREE_NODE_SALT: Final = 121107
BITMAP_SALT: Final = 240779
METADATA_INDEX_SALT: Final = 160478

_MASK = 0xFFFFFFFF
_BLOCKNR = slice(8, 16)


def checksum(data: Buffer, salt: int) -> int:
    """The kernel seeds with all ones and does not invert at the end; the package does both."""
    return (~int(crc32c(memoryview(data)[4:])) & _MASK) ^ salt


def stored_block_nr(data: Buffer) -> int:
    return int.from_bytes(data[_BLOCKNR], "little")


def check_length(data: Buffer, block_nr: int, kind: str) -> None:
    if len(data) != METADATA_BLOCK_BYTES:
        raise BadMetadata(f"metadata block {block_nr}: {kind} of {len(data)} bytes, not {METADATA_BLOCK_BYTES}")


def check_block_nr(data: Buffer, block_nr: int, kind: str) -> None:
    check_length(data, block_nr, kind)
    stored = stored_block_nr(data)
    if stored != block_nr:
        raise WrongBlock(f"metadata block {block_nr}: {kind} says it is block {stored}")


def check_sum(data: Buffer, block_nr: int, salt: int, kind: str) -> None:
    stored, wanted = int.from_bytes(data[:4], "little"), checksum(data, salt)
    if stored != wanted:
        raise BadMetadata(f"metadata block {block_nr}: {kind} checksum {stored:#010x}, expected {wanted:#010x}")


def stamp(data: bytes, salt: int) -> bytes:
    """`data` with its checksum filled in; the block number is there already."""
    return checksum(data, salt).to_bytes(4, "little") + data[4:]
