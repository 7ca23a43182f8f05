"""The superblock: metadata block 0, and the copy of it that a metadata snapshot is.

Promises: `parse` refuses in the kernel's order: block number, magic, checksum; `build` gives a stamped block.
The rest of each 128-byte space map root area is whatever memory the kernel had there: ignored, written as
zeros. The version is not verified, as the kernel does not. Source: docs/reference/format.md, 2.
"""

from dataclasses import dataclass
from typing import Any, Final

from construct import Bytes, Int32ul, Int64ul, Padded, Padding, Struct

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata
from thinfs.ondisk import checksum, fields
from thinfs.ondisk.space_map import SPACE_MAP_ROOT, SpaceMapRoot
from thinfs.units import METADATA_BLOCK_BYTES, METADATA_BLOCK_SECTORS

SUPERBLOCK_LOCATION: Final = 0
SUPERBLOCK_MAGIC: Final = 27022010
METADATA_VERSION: Final = 2
SPACE_MAP_ROOT_AREA: Final = 128
FLAG_NEEDS_CHECK: Final = 1

SUPERBLOCK = Struct(
    "csum" / Int32ul,
    "flags" / Int32ul,  # bit 0: needs_check
    "blocknr" / Int64ul,
    "uuid" / Bytes(16),  # zeros, never used
    "magic" / Int64ul,
    "version" / Int32ul,
    "time" / Int32ul,  # the snapshot clock
    "trans_id" / Int64ul,  # belongs to userspace
    "held_root" / Int64ul,  # block of the metadata snapshot, 0 = none
    "data_space_map_root" / Padded(SPACE_MAP_ROOT_AREA, SPACE_MAP_ROOT),
    "metadata_space_map_root" / Padded(SPACE_MAP_ROOT_AREA, SPACE_MAP_ROOT),
    "data_mapping_root" / Int64ul,
    "device_details_root" / Int64ul,
    "data_block_size" / Int32ul,  # sectors
    "metadata_block_size" / Int32ul,  # sectors
    "metadata_nr_blocks" / Int64ul,  # as formatted; not updated when the device grows
    "compat_flags" / Int32ul,
    "compat_ro_flags" / Int32ul,  # any bit: not to be written
    "incompat_flags" / Int32ul,  # any bit: not to be opened
    Padding(METADATA_BLOCK_BYTES - 364),
)

NO_SPACE_MAP: Final = SpaceMapRoot()  # what a metadata snapshot says of its space maps


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    flags: int = 0
    uuid: bytes = bytes(16)
    version: int = METADATA_VERSION
    time: int = 0
    trans_id: int = 0
    held_root: int = 0
    data_space_map_root: SpaceMapRoot = NO_SPACE_MAP
    metadata_space_map_root: SpaceMapRoot = NO_SPACE_MAP
    data_mapping_root: int = 0
    device_details_root: int = 0
    data_block_size: int = 0
    metadata_block_size: int = METADATA_BLOCK_SECTORS
    metadata_nr_blocks: int = 0
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0

    @classmethod
    def parse(cls, data: Buffer, block_nr: int) -> "Superblock":
        checksum.check_block_nr(data, block_nr, "superblock")
        raw = fields.parse(SUPERBLOCK, data, block_nr, "superblock")
        if raw.magic != SUPERBLOCK_MAGIC:
            raise BadMetadata(f"metadata block {block_nr}: magic {raw.magic:#x}, not {SUPERBLOCK_MAGIC:#x}")
        checksum.check_sum(data, block_nr, checksum.SUPERBLOCK_SALT, "superblock")
        values = {name: raw[name] for name in cls.__dataclass_fields__}
        for area in ("data_space_map_root", "metadata_space_map_root"):
            values[area] = SpaceMapRoot(**{name: raw[area][name] for name in SpaceMapRoot.__dataclass_fields__})
        return cls(**values)

    def check(self, block_nr: int) -> None:
        """Its roots are judged where they are followed."""

    def build(self, block_nr: int) -> bytes:
        raw = _values(self) | {"csum": 0, "blocknr": block_nr, "magic": SUPERBLOCK_MAGIC}
        return checksum.stamp(fields.build(SUPERBLOCK, raw, block_nr, "superblock"), checksum.SUPERBLOCK_SALT)

    def copy(self) -> "Superblock":
        return self


def _values(superblock: Superblock) -> dict[str, Any]:
    """As dataclasses.asdict, without its deep copies: one is built at each commit."""
    values = {name: getattr(superblock, name) for name in Superblock.__dataclass_fields__}
    for area in ("data_space_map_root", "metadata_space_map_root"):
        values[area] = {name: getattr(values[area], name) for name in SpaceMapRoot.__dataclass_fields__}
    return values


def is_unformatted(block: Buffer) -> bool:
    """Whether block 0 is all zeros: the one thing that may be formatted over."""
    return not any(block)
