"""A volume group as its text describes it: typed, and each volume judged by what the text alone can tell.

Promises: what is wrong with one volume is a `fault` of that volume, what is wrong with the group refuses the group;
an unknown status or segment type is never taken for something that can be read. Ignores keys that it does not know, as
LVM does, and `flags`. Never: touches a disk. Source: docs/reference/lvm.md, 5, 6 and 9.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from thinfs.errors import BadMetadata, Busy, NotSupported, ThinfsError
from thinfs.lvm.text import Section, Value, number_in, section_in, string_in, words_in
from thinfs.units import MAX_DEV_ID, sectors_to_bytes

_VG_STATUS: Final = frozenset({"RESIZEABLE", "READ", "WRITE", "EXPORTED"})
_PV_STATUS: Final = frozenset({"ALLOCATABLE", "EXPORTED"})
_LV_STATUS: Final = frozenset({"READ", "WRITE", "VISIBLE"})
_MAX_SECTORS: Final = 1 << 54  # below 2^63 bytes
_MAX_EXTENTS: Final = 1 << 40
_MAX_STRIPES: Final = 1024
_TRANSACTION_MAX: Final = (1 << 64) - 1
_UUID: Final = re.compile(r"[0-9A-Za-z]{6}(-[0-9A-Za-z]{4}){5}-[0-9A-Za-z]{6}")


@dataclass(frozen=True, slots=True)
class PvEntry:
    name: str
    uuid: str
    hint: str  # where it was last seen; not to be believed
    pe_start: int  # sectors
    pe_count: int
    unknown_status: tuple[str, ...]  # MISSING too: others went on without it, so it may be behind


@dataclass(frozen=True, slots=True)
class Area:
    """A column of stripes: on a physical volume, or within another volume."""

    name: str
    first_extent: int


@dataclass(frozen=True, slots=True)
class Striped:
    start_extent: int
    extent_count: int
    areas: tuple[Area, ...]  # one: linear
    stripe_sectors: int


@dataclass(frozen=True, slots=True)
class Pool:
    start_extent: int
    extent_count: int
    metadata: str
    data: str
    transaction_id: int
    chunk_sectors: int
    discards: str
    zero_new_blocks: bool
    created: frozenset[str]  # of pending messages: names of volumes
    deleted: frozenset[int]  # and device ids
    has_messages: bool


@dataclass(frozen=True, slots=True)
class Thin:
    start_extent: int
    extent_count: int
    pool: str
    transaction_id: int
    device_id: int
    origin: str | None  # for information
    external_origin: str | None
    merge: str | None  # the volume that this snapshot is to become


@dataclass(frozen=True, slots=True)
class Other:
    """A type that is not read here."""

    start_extent: int
    extent_count: int
    type: str
    parts: tuple[str, ...]  # words of it that may be volumes
    origin: str | None
    merging: bool


Segment: TypeAlias = Striped | Pool | Thin | Other


@dataclass(slots=True)
class LogicalVolume:
    name: str
    uuid: str = ""
    status: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    segments: tuple[Segment, ...] = ()
    fault: ThinfsError | None = None  # why it cannot be opened, as far as the text can tell

    @property
    def nr_extents(self) -> int:
        return sum(segment.extent_count for segment in self.segments)

    @property
    def visible(self) -> bool:
        return "VISIBLE" in self.status

    @property
    def pool(self) -> Pool | None:
        return self.segments[0] if self.segments and isinstance(self.segments[0], Pool) else None

    @property
    def thin(self) -> Thin | None:
        return self.segments[0] if self.segments and isinstance(self.segments[0], Thin) else None

    @property
    def kind(self) -> str:
        """As lvs calls a segment type: linear, striped, thin-pool, thin, raid1; several joined by commas."""
        return ",".join(dict.fromkeys(map(_kind, self.segments))) or "?"


@dataclass(slots=True)
class VolumeGroup:
    name: str
    uuid: str
    seqno: int
    extent_sectors: int
    exported: bool
    system_id: str
    fault: ThinfsError | None  # why nothing of it is opened
    pvs: Mapping[str, PvEntry]
    lvs: Mapping[str, LogicalVolume]
    external_origins: frozenset[str] = frozenset()
    remarks: list[str] = field(default_factory=list)

    @property
    def extent_bytes(self) -> int:
        return sectors_to_bytes(self.extent_sectors)

    def size_bytes(self, lv: LogicalVolume) -> int:
        return lv.nr_extents * self.extent_bytes


def volume_group(text: Section) -> VolumeGroup:
    """BadMetadata if it is not one that can be described."""
    if text.get("contents") != "Text Format Volume Group" or text.get("version") != 1:
        raise BadMetadata("not the text of a volume group, version 1")
    groups = [(name, value) for name, value in text.items() if isinstance(value, dict)]
    if len(groups) != 1:
        raise BadMetadata(f"{len(groups)} volume groups in one text")
    name, section = groups[0]
    where = f"VG {name}"
    _check_name(name, where)
    if section.get("format", "lvm2") != "lvm2":  # informational, and missing in old texts
        raise BadMetadata(f"{where}: format {str(section['format'])[:40]!r}, not lvm2")
    status = words_in(section, "status", where)
    group = VolumeGroup(
        name,
        _uuid(section, where),
        number_in(section, "seqno", where, 0, (1 << 32) - 1),
        number_in(section, "extent_size", where, 1, 1 << 32),
        "EXPORTED" in status,
        string_in(section, "system_id", where) if "system_id" in section else "",
        _group_fault(section, status, where),
        pvs={},
        lvs={},
    )
    group.pvs = _physical_volumes(section, where)
    volumes = section_in(section, "logical_volumes", where) if "logical_volumes" in section else {}
    group.lvs = {name: _logical_volume(name, value, where) for name, value in volumes.items()}
    thins = [lv.thin for lv in group.lvs.values() if lv.thin is not None]
    group.external_origins = frozenset(thin.external_origin for thin in thins if thin.external_origin is not None)
    _judge(group)
    return group


def _group_fault(section: Section, status: frozenset[str], where: str) -> ThinfsError | None:
    unknown = sorted(status - _VG_STATUS)
    if unknown:
        return NotSupported(f"{where}: status {' '.join(unknown)} is not known here")
    lock_type = section.get("lock_type", "none")
    if lock_type != "none":
        return NotSupported(f"{where}: lock_type {str(lock_type)[:40]!r}: shared with other machines by a lock")
    return None


def _check_name(name: str, where: str) -> None:
    if name in (".", "..") or name.startswith("-") or len(name) > 127:
        raise BadMetadata(f"{where}: {name[:40]!r} is not a name")


def _uuid(section: Section, where: str) -> str:
    uuid = string_in(section, "id", where)
    if not _UUID.fullmatch(uuid):
        raise BadMetadata(f"{where}: id {uuid[:40]!r} is not a UUID")
    return uuid


def _physical_volumes(section: Section, where: str) -> Mapping[str, PvEntry]:
    entries, by_uuid = {}, dict[str, str]()
    for name, value in section_in(section, "physical_volumes", where).items():
        here = f"{where}: {name}"
        if not isinstance(value, dict):
            raise BadMetadata(f"{here}: not a section")
        uuid = _uuid(value, here)
        if uuid in by_uuid:
            raise BadMetadata(f"{where}: {by_uuid[uuid]} and {name} are one PV, {uuid}")
        by_uuid[uuid] = name
        hint = value.get("device")
        entries[name] = PvEntry(
            name,
            uuid,
            hint if isinstance(hint, str) and hint.isprintable() and len(hint) < 256 else "",
            number_in(value, "pe_start", here, 0, _MAX_SECTORS),
            number_in(value, "pe_count", here, 0, _MAX_EXTENTS),
            tuple(sorted(words_in(value, "status", here) - _PV_STATUS | words_in(value, "flags", here) & {"MISSING"})),
        )
    return entries


# -- logical volumes


def _logical_volume(name: str, value: Value, where: str) -> LogicalVolume:
    here = f"{where}/{name}"
    lv = LogicalVolume(name)
    try:
        _check_name(name, here)
        if not isinstance(value, dict):
            raise BadMetadata(f"{here}: not a section")
        lv.status, lv.flags = words_in(value, "status", here), words_in(value, "flags", here)
        lv.segments = tuple(_segments(value, here))
        lv.uuid = _uuid(value, here)
    except BadMetadata as error:
        lv.fault = error
        return lv
    others = [segment.type for segment in lv.segments if isinstance(segment, Other)]
    unknown = sorted(lv.status - _LV_STATUS)
    if others:
        lv.fault = NotSupported(f"{here}: {others[0]}: volumes of this type are not read")
    elif unknown:
        lv.fault = NotSupported(f"{here}: status {' '.join(unknown)} is not known here")
    return lv


def _segments(section: Section, where: str) -> Iterator[Segment]:
    nr_segments = number_in(section, "segment_count", where, 1, 1 << 20)
    there = sum(isinstance(value, dict) and name.startswith("segment") for name, value in section.items())
    if there != nr_segments:
        raise BadMetadata(f"{where}: {there} segments, segment_count = {nr_segments}")
    following = 0
    for i in range(1, nr_segments + 1):
        here = f"{where}: segment{i}"
        segment = _segment(section_in(section, f"segment{i}", where), here)
        if segment.start_extent != following:
            kind = "leaves a gap" if segment.start_extent > following else "overlaps the one before"
            raise BadMetadata(f"{here}: begins at extent {segment.start_extent}, not {following}: it {kind}")
        following += segment.extent_count
        if isinstance(segment, Pool | Thin) and nr_segments > 1:
            raise BadMetadata(f"{here}: one of {nr_segments} segments; {_kind(segment)} is always one")
        yield segment
    if following > _MAX_EXTENTS:
        raise BadMetadata(f"{where}: {following} extents")


def _segment(section: Section, where: str) -> Segment:
    start = number_in(section, "start_extent", where, 0, _MAX_EXTENTS)
    count = number_in(section, "extent_count", where, 1, _MAX_EXTENTS)
    kind = string_in(section, "type", where)
    if kind == "striped":
        return _striped(section, where, start, count)
    if kind == "thin-pool":
        return _pool(section, where, start, count)
    if kind == "thin":
        return Thin(
            start,
            count,
            string_in(section, "thin_pool", where),
            number_in(section, "transaction_id", where, 0, _TRANSACTION_MAX),
            number_in(section, "device_id", where, 0, MAX_DEV_ID),
            *(
                string_in(section, key, where) if key in section else None
                for key in ("origin", "external_origin", "merge")
            ),
        )
    if not re.fullmatch(r"[A-Za-z0-9_+.-]{1,80}", kind):
        raise BadMetadata(f"{where}: type {kind[:40]!r}")
    origin = section.get("origin")
    return Other(
        start,
        count,
        kind,
        tuple(_strings(section)),
        origin if isinstance(origin, str) else None,
        "merging_store" in section,
    )


def _strings(section: Section) -> Iterator[str]:
    for value in section.values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                yield one


def _striped(section: Section, where: str, start: int, count: int) -> Striped:
    nr = number_in(section, "stripe_count", where, 1, _MAX_STRIPES)
    stripes = section.get("stripes")
    if not isinstance(stripes, list) or len(stripes) != 2 * nr:
        raise BadMetadata(f"{where}: stripes is not a list of {nr} names and extents")
    areas = []
    for name, extent in zip(stripes[::2], stripes[1::2], strict=True):
        if not isinstance(name, str) or not isinstance(extent, int) or not 0 <= extent <= _MAX_EXTENTS:
            raise BadMetadata(f"{where}: stripe {str(name)[:40]!r}, {extent!r} is not a name and an extent")
        areas.append(Area(name, extent))
    if count % nr:
        raise BadMetadata(f"{where}: {count} extents on {nr} stripes")
    size = number_in(section, "stripe_size", where, 1, 1 << 32) if nr > 1 else 0
    return Striped(start, count, tuple(areas), size)


def _pool(section: Section, where: str, start: int, count: int) -> Pool:
    messages = [(name, value) for name, value in section.items() if name.startswith("message")]
    created, deleted = set[str](), set[int]()
    for name, value in messages:
        here = f"{where}: {name}"
        if not isinstance(value, dict) or set(value) not in ({"create"}, {"delete"}):
            raise BadMetadata(f"{here}: neither create nor delete")
        if "create" in value:
            created.add(string_in(value, "create", here))
        else:
            deleted.add(number_in(value, "delete", here, 0, MAX_DEV_ID))
    return Pool(
        start,
        count,
        string_in(section, "metadata", where),
        string_in(section, "pool", where),
        number_in(section, "transaction_id", where, 0, _TRANSACTION_MAX),
        number_in(section, "chunk_size", where, 1, 1 << 32),
        string_in(section, "discards", where) if "discards" in section else "ignore",
        bool(section.get("zero_new_blocks", 0)),
        frozenset(created),
        frozenset(deleted),
        bool(messages),
    )


def _kind(segment: Segment) -> str:
    if isinstance(segment, Other):
        return segment.type
    if isinstance(segment, Striped):
        return "linear" if len(segment.areas) == 1 else "striped"
    return "thin-pool" if isinstance(segment, Pool) else "thin"


# -- what the volumes of a group say about each other


def _judge(group: VolumeGroup) -> None:
    _judge_thins(group)
    for lv in group.lvs.values():
        for segment in lv.segments:
            if isinstance(segment, Other):
                _blame_parts(group, lv, segment)
    for first, second, pv, extent in _shared_extents(group):
        for one, other in ((first, second), (second, first)):
            fault = BadMetadata(f"VG {group.name}/{one}: extent {extent} of {pv} is also {other}'s")
            _blame(group, one, fault)


def _blame(group: VolumeGroup, name: str, fault: ThinfsError) -> None:
    lv = group.lvs.get(name)
    if lv is not None and lv.fault is None:
        lv.fault = fault


def _judge_thins(group: VolumeGroup) -> None:
    owners: dict[tuple[str, int], str] = {}
    for lv in group.lvs.values():
        thin, where = lv.thin, f"VG {group.name}/{lv.name}"
        if thin is None:
            continue
        pool = group.lvs.get(thin.pool)
        if pool is None or pool.pool is None:
            _blame(group, lv.name, BadMetadata(f"{where}: its thin_pool {thin.pool[:40]!r} is not a pool"))
        twin = owners.setdefault((thin.pool, thin.device_id), lv.name)
        if twin != lv.name:
            for one, other in ((twin, lv.name), (lv.name, twin)):
                same = f"VG {group.name}/{one}: device {thin.device_id} of {thin.pool} is also {other}'s"
                _blame(group, one, BadMetadata(same))
        if thin.merge is not None:
            past = f"{lv.name} is merged into it at its next activation by LVM: its own device is of the past"
            _blame(group, thin.merge, Busy(f"VG {group.name}/{thin.merge}: {past}; read {lv.name}"))


def _blame_parts(group: VolumeGroup, whole: LogicalVolume, segment: Other) -> None:
    for name in segment.parts:
        part = group.lvs.get(name)
        if (
            part is None
            or part is whole
            or (name == segment.origin and segment.type == "snapshot" and not segment.merging)
        ):
            continue  # the origin of a thick snapshot holds its own data
        part_of = f"a part of {whole.name} ({segment.type}), no volume by itself"
        _blame(group, name, NotSupported(f"VG {group.name}/{name}: {part_of}"))


def _shared_extents(group: VolumeGroup) -> Iterator[tuple[str, str, str, int]]:
    """Two volumes on one extent: their names, the PV, the extent. Also one volume twice."""
    claims: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for lv in group.lvs.values():
        for segment in lv.segments:
            if isinstance(segment, Striped):
                length = segment.extent_count // len(segment.areas)
                for area in segment.areas:
                    if area.name in group.pvs:
                        claims[area.name].append((area.first_extent, area.first_extent + length, lv.name))
    for pv, ranges in claims.items():
        end, owner = -1, ""
        for first, last, name in sorted(ranges):
            if first < end:
                yield owner, name, pv, first
            if last > end:
                end, owner = last, name
