"""The partitions of a disk: GPT (its backup too), MBR with its chain of extended tables; 512 or 4096 byte sectors.

Promises: every loop is bounded; a partition that begins on the disk and ends past it is as long as the disk has it;
what is no table is no partitions, and what is half a table is a remark. Never: believes the type of a partition.
Source: docs/reference/lvm.md, 1.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from construct import Bytes, Const, Int8ul, Int32ul, Int64ul, Padding, Struct

from thinfs.errors import BadMetadata, ThinfsError
from thinfs.lvm.reading import Readable
from thinfs.lvm.structures import parse
from thinfs.units import SECTOR_BYTES

MBR_ENTRY = Struct(Padding(4), "type" / Int8ul, Padding(3), "first_sector" / Int32ul, "nr_sectors" / Int32ul)
MBR = Struct(Padding(446), "entries" / MBR_ENTRY[4], "signature" / Const(b"\x55\xaa"))

GPT_HEADER = Struct(
    "signature" / Const(b"EFI PART"),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "crc" / Int32ul,  # the ordinary CRC-32, of the header with this field zero
    Padding(4),
    "own_lba" / Int64ul,
    Padding(40),
    "entries_lba" / Int64ul,
    "nr_entries" / Int32ul,
    "entry_size" / Int32ul,
    "entries_crc" / Int32ul,
)
_GPT_CRC: Final = slice(16, 20)
GPT_ENTRY = Struct("type" / Bytes(16), "guid" / Bytes(16), "first_lba" / Int64ul, "last_lba" / Int64ul)  # inclusive

_EXTENDED: Final = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE: Final = 0xEE
_MAX_LOGICAL: Final = 256
_MAX_GPT_ENTRIES: Final = 4096
_MAX_GPT_ENTRY_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Partition:
    number: int
    offset: int  # bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PartitionTable:
    kind: str  # GPT, MBR or "none"
    partitions: tuple[Partition, ...]
    remarks: tuple[str, ...]


def read_partitions(disk: Readable) -> PartitionTable:
    remarks: list[str] = []
    if disk.size_bytes < SECTOR_BYTES:
        return PartitionTable("none", (), ())
    try:
        table = parse(MBR, disk.read(0, SECTOR_BYTES), disk.label)
        entries = [entry for entry in table.entries if entry.type and entry.nr_sectors]
    except BadMetadata:
        entries = []
    gpt = _read_gpt(disk, remarks, expected=any(entry.type == _PROTECTIVE for entry in entries))
    if gpt is not None:
        return PartitionTable("GPT", tuple(_within(disk, gpt, remarks)), tuple(remarks))
    if not entries:
        return PartitionTable("none", (), tuple(remarks))
    found = []
    for number, entry in enumerate(table.entries, 1):
        if entry.type in _EXTENDED and entry.nr_sectors:
            found += _logical(disk, entry.first_sector, remarks)
        elif entry.type and entry.nr_sectors:
            found.append(_partition(number, entry.first_sector, entry.nr_sectors))
    return PartitionTable("MBR", tuple(_within(disk, found, remarks)), tuple(remarks))


def _partition(number: int, first_sector: int, nr_sectors: int, sector_bytes: int = SECTOR_BYTES) -> Partition:
    return Partition(number, first_sector * sector_bytes, nr_sectors * sector_bytes)


def _within(disk: Readable, partitions: list[Partition], remarks: list[str]) -> Iterator[Partition]:
    for one in sorted(partitions, key=lambda partition: partition.number):
        if one.offset + one.size_bytes <= disk.size_bytes:
            yield one
            continue
        remarks.append(
            f"{disk.label}: partition {one.number} ends at byte {one.offset + one.size_bytes}, "
            f"the disk at {disk.size_bytes}: it was cut short"
        )
        if one.offset < disk.size_bytes:
            yield Partition(one.number, one.offset, disk.size_bytes - one.offset)


def _logical(disk: Readable, extended: int, remarks: list[str]) -> list[Partition]:
    """The chain: a logical partition counts from its own table, the next table from the extended partition."""
    found: list[Partition] = []
    seen = set[int]()
    sector = extended
    while True:
        if sector in seen or len(found) >= _MAX_LOGICAL:
            remarks.append(f"{disk.label}: the chain of logical partitions never ends")
            return found
        seen.add(sector)
        try:
            logical, following, *_ = parse(
                MBR, disk.read(sector * SECTOR_BYTES, SECTOR_BYTES), f"{disk.label}: partition table in sector {sector}"
            ).entries
        except ThinfsError as error:
            remarks.append(str(error))
            return found
        if logical.type and logical.nr_sectors:
            found.append(_partition(5 + len(found), sector + logical.first_sector, logical.nr_sectors))
        if not following.type:
            return found
        sector = extended + following.first_sector


def _read_gpt(disk: Readable, remarks: list[str], *, expected: bool) -> list[Partition] | None:
    """None: there is no GPT. A damaged one gives way to its backup; both damaged is a remark if one was expected."""
    places: list[tuple[int, Callable[[int], int]]] = [
        (sector_bytes, place) for place in (lambda _nr: 1, lambda nr: nr - 1) for sector_bytes in (SECTOR_BYTES, 4096)
    ]
    faults = []
    for sector_bytes, place in places:
        lba = place(disk.size_bytes // sector_bytes)
        try:
            found = _gpt_at(disk, lba, sector_bytes)
        except ThinfsError as error:
            faults.append(str(error))
            continue
        if found is not None:
            if faults:
                remarks.append(f"{faults[0]}; its backup is used")
            return found
    remarks += faults[:1]
    if expected and not faults:
        remarks.append(f"{disk.label}: the partition table says GPT, there is none")
    return None


def _gpt_at(disk: Readable, lba: int, sector_bytes: int) -> list[Partition] | None:
    what = f"{disk.label}: GPT header in sector {lba}"
    if lba < 1 or (lba + 1) * sector_bytes > disk.size_bytes:
        return None
    raw = disk.read(lba * sector_bytes, sector_bytes)
    if not raw.startswith(b"EFI PART"):
        return None
    header = parse(GPT_HEADER, raw, what)
    if not 92 <= header.header_size <= sector_bytes:
        raise BadMetadata(f"{what}: header of {header.header_size} bytes")
    checked = bytearray(raw[: header.header_size])
    checked[_GPT_CRC] = bytes(4)
    if zlib.crc32(checked) != header.crc:
        raise BadMetadata(f"{what}: checksum {header.crc:#010x}, expected {zlib.crc32(checked):#010x}")
    if header.own_lba != lba:
        raise BadMetadata(f"{what}: says it is in sector {header.own_lba}")
    if header.nr_entries > _MAX_GPT_ENTRIES or not 128 <= header.entry_size <= _MAX_GPT_ENTRY_BYTES:
        raise BadMetadata(f"{what}: {header.nr_entries} entries of {header.entry_size} bytes")
    entries = disk.read(header.entries_lba * sector_bytes, header.nr_entries * header.entry_size)
    if zlib.crc32(entries) != header.entries_crc:
        raise BadMetadata(f"{what}: the entries' checksum {header.entries_crc:#010x}, not {zlib.crc32(entries):#010x}")
    found = []
    for i in range(header.nr_entries):
        entry = parse(GPT_ENTRY, entries[i * header.entry_size :][: GPT_ENTRY.sizeof()], what)
        if any(entry.type) and entry.last_lba >= entry.first_lba:
            nr_sectors = entry.last_lba - entry.first_lba + 1
            found.append(_partition(i + 1, entry.first_lba, nr_sectors, sector_bytes))
    return found
