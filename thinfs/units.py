"""The units of device-mapper thin provisioning and the constants that both specs share.

A sector is 512 bytes, a metadata block 4096 bytes, a data block the pool's own block size.
Source: docs/reference/format.md, 1; docs/reference/behaviour.md, 1.
"""

from typing import Final

SECTOR_SHIFT: Final = 9
SECTOR_BYTES: Final = 1 << SECTOR_SHIFT

METADATA_BLOCK_BYTES: Final = 4096
METADATA_BLOCK_SECTORS: Final = METADATA_BLOCK_BYTES // SECTOR_BYTES

DATA_BLOCK_MIN_SECTORS: Final = 128  # 64 KiB
DATA_BLOCK_MAX_SECTORS: Final = 2_097_152  # 1 GiB
DATA_BLOCK_MULTIPLE_SECTORS: Final = 128

ENTRIES_PER_BITMAP: Final = (METADATA_BLOCK_BYTES - 16) * 4  # 16320
MAX_METADATA_BITMAPS: Final = 255
MAX_METADATA_BLOCKS: Final = MAX_METADATA_BITMAPS * ENTRIES_PER_BITMAP  # 4 161 600
METADATA_RESERVE_MAX_BLOCKS: Final = 4096

MAX_DEV_ID: Final = (1 << 24) - 1

MAX_U32: Final = (1 << 32) - 1
MAX_U64: Final = (1 << 64) - 1


def sectors_to_bytes(sectors: int) -> int:
    return sectors << SECTOR_SHIFT


def bytes_to_sectors(nr_bytes: int) -> int:
    """Whole sectors in `nr_bytes`, rounded down as the block layer does for a backing file."""
    return nr_bytes >> SECTOR_SHIFT


def ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
