"""Small LVM disks, written from docs/reference/lvm.md alone, with everything known that should be read from them.

A `World` is one volume group on two disks of a few MiB: linear and striped volumes, and a pool whose metadata the
engine made. Whatever a test wants otherwise it changes in `text` or in the disks before `write`.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.tools.pools import changing

EXTENT_BYTES = 64 << 10
BLOCK_BYTES = 64 << 10
PE_START = 64 << 10
NR_EXTENTS = 40
UUIDS = {"pv0": "aaaaaa-0000-0000-0000-0000-0000-aaaaaa", "pv1": "bbbbbb-1111-1111-1111-1111-1111-bbbbbb"}
VG_UUID = "cccccc-2222-2222-2222-2222-2222-cccccc"
AREA = (4096, 61440)
NR_THIN_BLOCKS = 10

Text = dict[str, Any]


def lvm_crc(data: bytes) -> int:
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def text_of(section: Mapping[str, Any]) -> str:
    """On disk there is no indentation."""
    lines = []
    for name, value in section.items():
        if isinstance(value, dict):
            lines.append(f"{name} {{\n{text_of(value)}}}\n")
        else:
            lines.append(f"{name} = {_value(value)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@dataclass
class Disk:
    """One PV and how it is written."""

    uuid: str
    size_bytes: int = PE_START + NR_EXTENTS * EXTENT_BYTES + 4096
    label_sector: int = 1
    areas: list[tuple[int, int]] = field(default_factory=lambda: [AREA])
    text_offset: int = 512  # within the ring
    device_size: int | None = None
    pe_start: int = PE_START
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.data = bytearray(self.size_bytes)

    def extents(self, first: int) -> int:
        return PE_START + first * EXTENT_BYTES

    def write_label(self) -> None:
        size = self.size_bytes if self.device_size is None else self.device_size
        header = self.uuid.replace("-", "").encode() + struct.pack("<Q", size)
        header += struct.pack("<QQQQ", self.pe_start, 0, 0, 0)
        header += b"".join(struct.pack("<QQ", *area) for area in self.areas) + struct.pack("<QQ", 0, 0)
        header += struct.pack("<IIQQ", 2, 1, 0, 0)
        checked = (struct.pack("<I", 32) + b"LVM2 001" + header).ljust(492, b"\0")
        sector = b"LABELONE" + struct.pack("<QI", self.label_sector, lvm_crc(checked)) + checked
        self.data[self.label_sector * 512 : (self.label_sector + 1) * 512] = sector

    def write_area(self, number: int, text: bytes, **changed: int) -> None:
        """`changed`: fields of the header to be wrong: offset, size, crc, flags, slot1_offset."""
        start, size = self.areas[number]
        raw = text + b"\0"
        room = size - self.text_offset
        place = start + self.text_offset
        self.data[place : place + min(room, len(raw))] = raw[:room]
        if len(raw) > room:
            self.data[start + 512 : start + 512 + len(raw) - room] = raw[room:]
        slot = {"offset": self.text_offset, "size": len(raw), "crc": lvm_crc(raw), "flags": 0} | {
            key: value for key, value in changed.items() if key in ("offset", "size", "crc", "flags")
        }
        body = b" LVM2 x[5A%r0N*>" + struct.pack("<IQQ", 1, start, size)
        body += struct.pack("<QQII", slot["offset"], slot["size"], slot["crc"], slot["flags"])
        body += struct.pack("<QQII", changed.get("slot1_offset", 0), len(raw), slot["crc"], 0)
        body = body.ljust(508, b"\0")
        self.data[start : start + 512] = struct.pack("<I", lvm_crc(body)) + body


def _linear(start: int, count: int, pv: str, first: int) -> Text:
    return {"start_extent": start, "extent_count": count, "type": "striped", "stripe_count": 1, "stripes": [pv, first]}


def lv_section(*segments: Text, visible: bool = True, writable: bool = True, number: int = 0) -> Text:
    status = ["READ", *["WRITE"] * writable, *["VISIBLE"] * visible]
    section: Text = {"id": f"dddddd-3333-3333-3333-3333-3333-{number:06}", "status": status, "flags": []}
    section |= {"creation_time": 1795748795, "creation_host": "(none)", "segment_count": len(segments)}
    return section | {f"segment{i}": segment for i, segment in enumerate(segments, 1)}


def thin_section(device_id: int, transaction_id: int, extents: int = NR_THIN_BLOCKS, **more: str) -> Text:
    head: Text = {"start_extent": 0, "extent_count": extents, "type": "thin", "thin_pool": "pool"}
    return head | {"transaction_id": transaction_id, "device_id": device_id, **more}


@dataclass
class World:
    disks: dict[str, Disk]
    text: Text
    contents: dict[str, bytes]  # of each volume that can be read

    @property
    def vg(self) -> Text:
        section: Text = self.text["vg"]
        return section

    @property
    def lvs(self) -> dict[str, Text]:
        section: dict[str, Text] = self.vg["logical_volumes"]
        return section

    @property
    def pool(self) -> Text:
        segment: Text = self.lvs["pool"]["segment1"]
        return segment

    def raw_text(self) -> bytes:
        return text_of(self.text).encode()

    def write(self, directory: Path) -> list[str]:
        """The paths of the disks, in the order of their names; labels and texts as they are now."""
        for disk in self.disks.values():
            disk.write_label()
            for number in range(len(disk.areas)):
                disk.write_area(number, self.raw_text())
        return self.store(directory)

    def store(self, directory: Path) -> list[str]:
        """The disks' bytes as they are."""
        paths = []
        for name, disk in self.disks.items():
            path = directory / f"{name}.img"
            path.write_bytes(disk.data)
            paths.append(str(path))
        return paths


def pattern(seed: str, nr_bytes: int) -> bytes:
    return Random(seed).randbytes(nr_bytes)


# where the volumes' extents are: (PV, first extent, number)
TMETA = (("pv1", 12, 8), ("pv1", 4, 8))
TDATA = (("pv0", 8, 8), ("pv1", 20, 8))


def make_world(directory: Path, change_pool: Callable[[Any], None] | None = None) -> World:
    """`change_pool` is given the engine's PoolMetadata after all else, before its last commit."""
    disks = {name: Disk(uuid) for name, uuid in UUIDS.items()}
    contents = {
        "vg/thick": pattern("thick", 4 * EXTENT_BYTES),
        "vg/wide": pattern("wide", 8 * EXTENT_BYTES),
        "vg/ro-one": pattern("ro-one", EXTENT_BYTES),
    }
    _put(disks, (("pv0", 0, 4),), contents["vg/thick"])
    _put(disks, (("pv0", 16, 1),), contents["vg/ro-one"])
    put_striped(disks, contents["vg/wide"])
    metadata, data, thins = _make_pool(directory, contents["vg/thick"], change_pool)
    _put(disks, TMETA, metadata)
    _put(disks, TDATA, data)
    return World(disks, _text(), contents | thins)


def _put(disks: Mapping[str, Disk], pieces: tuple[tuple[str, int, int], ...], data: bytes) -> None:
    for pv, first, count in pieces:
        begin = disks[pv].extents(first)
        disks[pv].data[begin : begin + count * EXTENT_BYTES] = data[: count * EXTENT_BYTES]
        data = data[count * EXTENT_BYTES :]


def put_striped(disks: Mapping[str, Disk], data: bytes) -> None:
    unit = 16 * 512
    for i in range(len(data) // unit):
        disk, first = (disks["pv0"], 4) if i % 2 == 0 else (disks["pv1"], 0)
        begin = disk.extents(first) + i // 2 * unit
        disk.data[begin : begin + unit] = data[i * unit : (i + 1) * unit]


def _make_pool(
    directory: Path, origin: bytes, change_pool: Callable[[Any], None] | None
) -> tuple[bytes, bytes, dict[str, bytes]]:
    """Metadata, data and what the thins hold. Device 1 = one, 2 = its snapshot two, 3 = over the external origin."""
    path = directory / "tmeta"
    path.write_bytes(bytes(16 * EXTENT_BYTES))
    data = bytearray(16 * BLOCK_BYTES)
    thins = {name: bytearray(NR_THIN_BLOCKS * BLOCK_BYTES) for name in ("one", "two")}
    thins["guest"] = bytearray(origin + bytes(2 * BLOCK_BYTES))

    def write(name: str, dev_id: int, *thin_blocks: int) -> None:
        thin = metadata.open_thin(dev_id)
        for thin_block in thin_blocks:
            data_block = metadata.alloc_data_block()
            thin.insert_block(thin_block, data_block)
            piece = pattern(f"{name} {thin_block}", BLOCK_BYTES)
            data[data_block * BLOCK_BYTES : (data_block + 1) * BLOCK_BYTES] = piece
            thins[name][thin_block * BLOCK_BYTES : (thin_block + 1) * BLOCK_BYTES] = piece
        metadata.close_thin(thin)

    with changing(path) as metadata:
        metadata.resize_data(16)
        metadata.create_thin(1)
        metadata.set_transaction_id(0, 1)
        write("one", 1, 0, 1, 2, 7)
        metadata.create_snap(2, 1)
        thins["two"][:] = thins["one"]
        metadata.set_transaction_id(1, 2)
        write("one", 1, 1)
        write("two", 2, 3)
        metadata.create_thin(3)
        metadata.set_transaction_id(2, 3)
        write("guest", 3, 1, 5)
        if change_pool is not None:
            change_pool(metadata)
    return path.read_bytes(), bytes(data), {f"vg/{name}": bytes(held) for name, held in thins.items()}


def _text() -> Text:
    lvs = {
        "thick": lv_section(_linear(0, 4, "pv0", 0), number=1),
        "wide": lv_section(
            {"start_extent": 0, "extent_count": 8, "type": "striped", "stripe_count": 2, "stripe_size": 16}
            | {"stripes": ["pv0", 4, "pv1", 0]},
            number=2,
        ),
        "ro-one": lv_section(_linear(0, 1, "pv0", 16), writable=False, number=3),
        "pool": lv_section(
            {"start_extent": 0, "extent_count": 16, "type": "thin-pool", "metadata": "pool_tmeta"}
            | {"pool": "pool_tdata", "transaction_id": 3, "chunk_size": 128, "discards": "passdown"}
            | {"zero_new_blocks": 1},
            number=4,
        ),
        "one": lv_section(thin_section(1, 0), number=5),
        "two": lv_section(thin_section(2, 1, origin="one"), number=6),
        "guest": lv_section(thin_section(3, 2, 6, external_origin="thick"), number=7),
        "pool_tmeta": lv_section(*_segments(TMETA), visible=False, number=8),
        "pool_tdata": lv_section(*_segments(TDATA), visible=False, number=9),
        "lvol0_pmspare": lv_section(_linear(0, 2, "pv1", 28), visible=False, number=10),
    }
    pvs = {
        name: {"id": uuid, "device": f"/dev/{name}", "status": ["ALLOCATABLE"], "flags": [], "dev_size": 5256}
        | {"pe_start": PE_START // 512, "pe_count": NR_EXTENTS}
        for name, uuid in UUIDS.items()
    }
    group: Text = {"id": VG_UUID, "seqno": 7, "format": "lvm2", "status": ["RESIZEABLE", "READ", "WRITE"], "flags": []}
    group |= {"extent_size": EXTENT_BYTES // 512, "max_lv": 0, "max_pv": 0, "metadata_copies": 0}
    group |= {"physical_volumes": pvs, "logical_volumes": lvs}
    head: Text = {"contents": "Text Format Volume Group", "version": 1, "description": 'prefix="q\\"'}
    return {"vg": group} | head | {"creation_host": "(none)", "creation_time": 1795748803}


def _segments(pieces: tuple[tuple[str, int, int], ...]) -> list[Text]:
    found, start = [], 0
    for pv, first, count in pieces:
        found.append(_linear(start, count, pv, first))
        start += count
    return found
