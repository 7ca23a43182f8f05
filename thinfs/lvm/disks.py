"""All images of a call together: the physical volumes on them, and the volume groups that these make.

Promises: physical volumes are found by UUID, never by name or order; the text with the highest seqno is the group's;
two texts of one seqno, two disks of one UUID, a missing or cut disk are told, and refuse what stands on them.
Source: docs/reference/lvm.md, 1 and 9.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from thinfs.errors import BackingMissing, BadMetadata, ThinfsError
from thinfs.lvm.partitions import PartitionTable, read_partitions
from thinfs.lvm.physical_volume import PhysicalVolume, look_for
from thinfs.lvm.reading import Readable, Window
from thinfs.lvm.signatures import signature, strange_physical_volume
from thinfs.lvm.text import parse_text
from thinfs.lvm.volume_group import PvEntry, VolumeGroup, volume_group
from thinfs.units import sectors_to_bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A disk or partition, and what is on it."""

    label: str
    size_bytes: int
    pv: PhysicalVolume | None
    contents: str | None  # if no PV: a file system, LUKS, a member of an md array


@dataclass(frozen=True, slots=True)
class Disk:
    label: str
    size_bytes: int
    table: PartitionTable
    places: tuple[Place, ...]


@dataclass(slots=True)
class Group:
    """A volume group and where its physical volumes are."""

    vg: VolumeGroup
    pvs: dict[str, PhysicalVolume] = field(default_factory=dict)  # by their names in the text
    lost: dict[str, str] = field(default_factory=dict)  # name -> why its extents cannot be read
    doubts: list[str] = field(default_factory=list)  # why it must not be written

    def pv(self, name: str) -> PhysicalVolume:
        if name in self.lost:
            raise BackingMissing(self.lost[name])
        return self.pvs[name]


@dataclass(frozen=True, slots=True)
class Disks:
    disks: tuple[Disk, ...]
    groups: tuple[Group, ...]
    problems: tuple[str, ...]


def scan(images: Sequence[Readable]) -> Disks:
    problems: list[str] = []
    disks = tuple(_look(image, problems) for image in images)
    pvs = [place.pv for disk in disks for place in disk.places if place.pv is not None]
    by_uuid: dict[str, list[PhysicalVolume]] = defaultdict(list)
    for pv in pvs:
        by_uuid[pv.uuid].append(pv)
        problems += pv.faults
    groups = tuple(_groups(pvs, by_uuid, problems))
    _refuse_claimed_twice(groups)
    for group in groups:
        problems += group.lost.values()
        problems += group.vg.remarks
        if group.vg.fault:
            problems.append(str(group.vg.fault))
    problems += _homeless(by_uuid, groups)
    return Disks(disks, groups, tuple(problems))


def _homeless(by_uuid: Mapping[str, list[PhysicalVolume]], groups: Sequence[Group]) -> Iterator[str]:
    listed = {entry.uuid for group in groups for entry in group.vg.pvs.values()}
    for uuid, (pv, *_) in by_uuid.items():
        if uuid in listed:
            continue
        if not pv.nr_areas:
            yield f"{pv.device.label}: PV {uuid} has no metadata of its own: give the other disks of its group too"
        elif pv.texts or not pv.faults:
            yield f"{pv.device.label}: PV {uuid} is in no volume group of these disks"


# -- disks


def _look(image: Readable, problems: list[str]) -> Disk:
    table = read_partitions(image)
    problems += table.remarks
    candidates = [Window(image.label, image, 0, image.size_bytes)]
    candidates += [
        Window(f"{image.label} partition {one.number}", image, one.offset, one.size_bytes) for one in table.partitions
    ]
    places = []
    for candidate in candidates:
        looked = look_for(candidate)
        problems += looked.faults
        found, contents = looked.found, None
        try:
            strange = strange_physical_volume(candidate, found.device_size if found is not None else None)
            if strange is not None:
                contents = strange
                if found is not None:
                    problems.append(f"{candidate.label}: {strange}: the PV label on it is not its own")
                    found = None
            elif found is None and not (candidate.offset == 0 and table.partitions):
                contents = signature(candidate)
        except ThinfsError as error:
            problems.append(str(error))
        if found is not None or contents is not None:
            places.append(Place(candidate.label, candidate.size_bytes, found, contents))
    return Disk(image.label, image.size_bytes, table, tuple(places))


# -- groups


def _groups(
    pvs: Sequence[PhysicalVolume], by_uuid: Mapping[str, list[PhysicalVolume]], problems: list[str]
) -> Iterator[Group]:
    parsed: dict[str, VolumeGroup | None] = {}
    seen: dict[str, list[tuple[VolumeGroup, str, str]]] = defaultdict(list)  # VG UUID -> (group, where, text)
    faults: dict[str, str] = {}  # PV UUID -> a fault of an area of its
    for pv in pvs:
        if pv.faults:
            faults[pv.uuid] = pv.faults[0]
        for area in pv.texts:
            if area.text not in parsed:
                try:
                    parsed[area.text] = volume_group(parse_text(area.text))
                except BadMetadata as error:
                    parsed[area.text] = None
                    problems.append(f"{area.where}: {error}")
                    faults[pv.uuid] = str(error)
            group = parsed[area.text]
            if group is not None:
                seen[group.uuid].append((group, area.where, area.text))
    for texts in seen.values():
        newest = max(group.seqno for group, _, _ in texts)
        current = [one for one in texts if one[0].seqno == newest]
        group, where, text = current[0]
        made = Group(group)
        for _, other_where, other in current[1:]:
            if other != text and group.fault is None:
                group.fault = BadMetadata(
                    f"VG {group.name}: {where} and {other_where} differ, both have seqno {newest}"
                )
        for stale, stale_where, _ in texts:
            if stale.seqno < newest:
                remark = f"{stale_where}: seqno {stale.seqno} of VG {group.name}, behind {newest}: not used"
                group.remarks.append(remark)
                made.doubts.append(remark)
        for name, entry in group.pvs.items():
            _place(made, name, entry, by_uuid.get(entry.uuid, []))
            if entry.uuid in faults:
                made.doubts.append(faults[entry.uuid])
        yield made


def _place(group: Group, name: str, entry: PvEntry, found: Sequence[PhysicalVolume]) -> None:
    vg = group.vg
    what = f"VG {vg.name}: PV {entry.uuid} ({name})"
    if not found:
        seen = f", last seen as {entry.hint}" if entry.hint else ""
        group.lost[name] = f"{what} is on none of the images{seen}"
        return
    pv = found[0]
    needed = sectors_to_bytes(entry.pe_start) + entry.pe_count * vg.extent_bytes
    if len(found) > 1:
        places = " and ".join(one.device.label for one in found)
        group.lost[name] = f"{what} is on {places}: one is a copy; give one of them"
    elif pv.cut_short:
        group.lost[name] = f"VG {vg.name}: cut short: {pv.cut_short} ({name})"
    elif needed > pv.device.size_bytes:
        group.lost[name] = f"{what}: its extents end at byte {needed}, {pv.device.label} at {pv.device.size_bytes}"
    elif pv.data_offset is not None and pv.data_offset != sectors_to_bytes(entry.pe_start):
        by_text = sectors_to_bytes(entry.pe_start)
        group.lost[name] = f"{what}: data begin at byte {pv.data_offset} by its header, at {by_text} by the text"
    elif entry.unknown_status:
        group.lost[name] = f"{what}: status {' '.join(entry.unknown_status)}: not read"
    else:
        group.pvs[name] = pv


def _refuse_claimed_twice(groups: Sequence[Group]) -> None:
    owners: dict[str, list[tuple[Group, str]]] = defaultdict(list)
    for group in groups:
        for name, entry in group.vg.pvs.items():
            owners[entry.uuid].append((group, name))
    for uuid, claims in owners.items():
        for group, name in claims if len(claims) > 1 else []:
            others = " and ".join(f"VG {one.vg.name} ({one.vg.uuid})" for one, _ in claims if one is not group)
            group.pvs.pop(name, None)
            group.lost[name] = f"VG {group.vg.name}: PV {uuid} ({name}) is claimed by {others} too"
