"""The values of the thin trees: a mapping (data block and time in one u64) and the details of a device.

Promises: `pack`/`unpack` of mappings as the kernel does it, the time OR-ed in unmasked; details as three u64
of a btree node and back. Source: docs/reference/format.md, 3.
"""

from dataclasses import dataclass
from typing import Final

from construct import Int32ul, Int64ul, Struct

from thinfs.ondisk import fields

TIME_BITS: Final = 24
TIME_MASK: Final = (1 << TIME_BITS) - 1

DEVICE_DETAILS = Struct(
    "mapped_blocks" / Int64ul,
    "transaction_id" / Int64ul,  # the pool's when the device was created
    "creation_time" / Int32ul,
    "snapshotted_time" / Int32ul,
)
_DETAILS: Final = fields.leading_integers(DEVICE_DETAILS)  # all of it
_DETAILS_WORDS: Final = fields.words(_DETAILS)
DEVICE_DETAILS_BYTES: Final = _DETAILS.size


def pack_mapping(data_block: int, time: int) -> int:
    return data_block << TIME_BITS | time


def unpack_mapping(value: int) -> tuple[int, int]:
    return value >> TIME_BITS, value & TIME_MASK


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    mapped_blocks: int = 0
    transaction_id: int = 0
    creation_time: int = 0
    snapshotted_time: int = 0

    @classmethod
    def from_words(cls, *words: int) -> "DeviceDetails":
        return cls(*_DETAILS.unpack(_DETAILS_WORDS.pack(*words)))

    def words(self) -> tuple[int, ...]:
        """The record as the three u64 that a btree node of 24-byte values holds."""
        record = _DETAILS.pack(self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time)
        return _DETAILS_WORDS.unpack(record)
