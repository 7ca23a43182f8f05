"""LVM's structures on a disk, byte for byte, with their checksum. All integers little-endian, offsets in bytes.

Promises: `parse` turns construct's errors into BadMetadata that names the thing. Never: decides what a value means.
Source: docs/reference/lvm.md, 2 and 3.
"""

import zlib
from itertools import pairwise
from typing import Any, Final

from construct import Bytes, ConstructError, Int32ul, Int64ul, RepeatUntil, Struct

from thinfs.errors import BadMetadata

LABEL_ID: Final = b"LABELONE"
LABEL_TYPE: Final = b"LVM2 001"
LABEL_CHECKED_FROM: Final = 20  # to the end of the sector
AREA_MAGIC: Final = bytes.fromhex("204c564d3220785b35412572304e2a3e")  # " LVM2 x[5A%r0N*>"
AREA_VERSION: Final = 1
AREA_HEADER_BYTES: Final = 512  # the ring of texts begins behind it
AREA_CHECKED_FROM: Final = 4
SLOT_IGNORED: Final = 1
UUID_BYTES: Final = 32

_CRC_START: Final = 0xF597A6CF
_MASK: Final = 0xFFFFFFFF

LABEL = Struct(
    "id" / Bytes(8),
    "sector" / Int64ul,  # of the label within the PV
    "crc" / Int32ul,  # of bytes 20..511 of its sector
    "header_offset" / Int32ul,  # of the PV header, from the start of the sector
    "type" / Bytes(8),
)

AREA = Struct("offset" / Int64ul, "size" / Int64ul)  # from the start of the PV; size 0 of a data area: to its end
AREAS = RepeatUntil(lambda area, _found, _context: not area.offset and not area.size, AREA)  # the end is in the list

PV_HEADER = Struct(
    "uuid" / Bytes(UUID_BYTES),  # without dashes
    "device_size" / Int64ul,  # when it was last written
    "data_areas" / AREAS,
    "metadata_areas" / AREAS,
)

SLOT = Struct(
    "offset" / Int64ul,  # from the start of the area; 0: no text
    "size" / Int64ul,  # its closing NUL included
    "crc" / Int32ul,
    "flags" / Int32ul,  # bit 0: the area is ignored
)

AREA_HEADER = Struct(
    "crc" / Int32ul,  # of bytes 4..511
    "magic" / Bytes(16),
    "version" / Int32ul,
    "start" / Int64ul,  # its own offset within the PV
    "size" / Int64ul,
    "committed" / SLOT,
    "precommitted" / SLOT,  # never to be read
)


def crc(data: bytes) -> int:
    """CRC-32, reflected, with LVM's start value and without the inversion at the end."""
    return zlib.crc32(data, _CRC_START ^ _MASK) ^ _MASK


def parse(schema: Any, data: bytes, what: str) -> Any:
    try:
        return schema.parse(data)
    except ConstructError as error:
        raise BadMetadata(f"{what}: {' '.join(str(error).split())}") from None


def check_crc(stored: int, data: bytes, what: str) -> None:
    wanted = crc(data)
    if stored != wanted:
        raise BadMetadata(f"{what}: checksum {stored:#010x}, expected {wanted:#010x}")


def dashed(uuid: str) -> str:
    """As the text has it: 6-4-4-4-4-4-6."""
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(uuid[begin:end] for begin, end in pairwise(cuts))
