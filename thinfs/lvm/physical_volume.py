"""One physical volume: its label, its header, and the texts of its metadata areas.

Promises: looks only in the first four sectors of a candidate; slot 1 of an area is never read; every checksum, number,
offset and size is checked, each refusal a line. What was damaged beside something intact is told, not hidden.
Source: docs/reference/lvm.md, 2, 3 and 9.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from thinfs.errors import BadMetadata, ThinfsError
from thinfs.lvm import structures
from thinfs.lvm.reading import Readable
from thinfs.lvm.structures import AREA_HEADER_BYTES, LABEL_CHECKED_FROM, dashed
from thinfs.units import SECTOR_BYTES, sectors_to_bytes

_LABEL_SECTORS: Final = 4
_MAX_TEXT_BYTES: Final = 16 << 20
_SMALLEST_AREA_BYTES: Final = 2 * AREA_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class AreaText:
    """The committed text of one metadata area."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    uuid: str  # with dashes
    device: Readable  # the whole disk or partition
    device_size: int  # bytes, as the header says
    data_offset: int | None  # bytes
    nr_areas: int
    texts: tuple[AreaText, ...]
    faults: tuple[str, ...]  # of its areas

    @property
    def cut_short(self) -> str | None:
        if self.device.size_bytes >= self.device_size:
            return None
        return f"{self.device.label} has {self.device.size_bytes} bytes of the {self.device_size} of PV {self.uuid}"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a candidate is: a physical volume, or not one, and then what its labels say against it."""

    found: PhysicalVolume | None
    faults: tuple[str, ...] = ()


def look_for(device: Readable) -> Looked:
    faults = []
    for sector in range(min(_LABEL_SECTORS, device.size_bytes // SECTOR_BYTES)):
        data = device.read(sectors_to_bytes(sector), SECTOR_BYTES)
        if not data.startswith(structures.LABEL_ID):
            continue
        try:
            header = _header(data, sector, f"{device.label}: label in sector {sector}")
        except BadMetadata as error:
            faults.append(str(error))
            continue
        return Looked(_physical_volume(device, header), tuple(faults))
    return Looked(None, tuple(faults))


def _header(data: bytes, sector: int, what: str) -> Any:
    label = structures.parse(structures.LABEL, data, what)
    if label.type != structures.LABEL_TYPE:
        raise BadMetadata(f"{what}: type {label.type!r}, not {structures.LABEL_TYPE!r}")
    structures.check_crc(label.crc, data[LABEL_CHECKED_FROM:], what)
    if label.sector != sector:
        raise BadMetadata(f"{what}: says it is in sector {label.sector}")
    if not structures.LABEL.sizeof() <= label.header_offset < SECTOR_BYTES:
        raise BadMetadata(f"{what}: header at byte {label.header_offset} of the sector")
    header = structures.parse(structures.PV_HEADER, data[label.header_offset :], what)
    if not (header.uuid.isascii() and header.uuid.decode("ascii").isalnum()):
        raise BadMetadata(f"{what}: {header.uuid!r} is not a UUID")
    for kind, areas, most in (("data", header.data_areas, 1), ("metadata", header.metadata_areas, 2)):
        if len(areas) - 1 > most:
            raise BadMetadata(f"{what}: {len(areas) - 1} {kind} areas")
    return header


def _physical_volume(device: Readable, header: Any) -> PhysicalVolume:
    texts, faults = [], []
    areas = list(header.metadata_areas[:-1])
    for area in areas:
        try:
            text = read_area(device, area.offset, area.size)
        except ThinfsError as error:
            faults.append(str(error))
            continue
        if text is not None:
            texts.append(text)
    data_areas = header.data_areas[:-1]
    return PhysicalVolume(
        dashed(header.uuid.decode("ascii")),
        device,
        header.device_size,
        data_areas[0].offset if data_areas else None,
        len(areas),
        tuple(texts),
        tuple(faults),
    )


def read_area(device: Readable, offset: int, size: int) -> AreaText | None:
    """The committed text; None: there is none, or the area is to be ignored."""
    where = f"{device.label}: metadata area at byte {offset}"
    if size < _SMALLEST_AREA_BYTES or offset + size > device.size_bytes:
        raise BadMetadata(f"{where}: {size} bytes, of a device of {device.size_bytes}")
    data = device.read(offset, AREA_HEADER_BYTES)
    header = structures.parse(structures.AREA_HEADER, data, where)
    structures.check_crc(header.crc, data[structures.AREA_CHECKED_FROM :], where)
    if header.magic != structures.AREA_MAGIC or header.version != structures.AREA_VERSION:
        raise BadMetadata(f"{where}: magic {header.magic!r} version {header.version}")
    if (header.start, header.size) != (offset, size):
        raise BadMetadata(f"{where}: says it is {header.size} bytes at {header.start}, its PV says {size}")
    slot = header.committed
    if not slot.offset or slot.flags & structures.SLOT_IGNORED:
        return None
    if not AREA_HEADER_BYTES <= slot.offset < size or not 0 < slot.size <= size - AREA_HEADER_BYTES:
        raise BadMetadata(f"{where}: text of {slot.size} bytes at {slot.offset}, not in {AREA_HEADER_BYTES}..{size}")
    if slot.size > _MAX_TEXT_BYTES:
        raise BadMetadata(f"{where}: text of {slot.size} bytes; more than {_MAX_TEXT_BYTES} are not read")
    raw = b"".join(_ring(device, offset, size, slot.offset, slot.size))
    structures.check_crc(slot.crc, raw, f"{where}: text at {slot.offset}")
    if not raw.endswith(b"\0"):
        raise BadMetadata(f"{where}: text at {slot.offset}: does not end with a NUL")
    try:
        return AreaText(where, raw[:-1].decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadMetadata(f"{where}: text at {slot.offset}: byte {error.start} is not UTF-8") from None


def _ring(device: Readable, area_offset: int, area_size: int, begin: int, size: int) -> Iterator[bytes]:
    """A text that passes the end of its area goes on behind the area's header."""
    before_end = min(size, area_size - begin)
    yield device.read(area_offset + begin, before_end)
    if size > before_end:
        yield device.read(area_offset + AREA_HEADER_BYTES, size - before_end)
