"""The volumes of the groups on some disks: found by name, opened for reading, or why not, in one line each.

Promises: what stands under a volume is opened with it, down to the disks, once, and in no circle; one volume's trouble
is not another's. Source: docs/reference/lvm.md, 6 and 9.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from thinfs.errors import BadMetadata, InvalidArgument, NotSupported, ThinfsError
from thinfs.lvm.composed import Column, ComposedVolume, SegmentMap
from thinfs.lvm.disks import Disks, Group
from thinfs.lvm.reading import Readable
from thinfs.lvm.thin_pool import ThinPool, open_pool
from thinfs.lvm.thin_volume import ThinVolume
from thinfs.lvm.volume_group import LogicalVolume, Striped, Thin
from thinfs.units import METADATA_BLOCK_BYTES, sectors_to_bytes

_DEEPEST: Final = 32  # volumes upon volumes


def dm_name(vg: str, lv: str) -> str:
    """As LVM names it in device-mapper: hyphens doubled in each, joined by one."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume of a group."""

    group: Group
    lv: LogicalVolume
    label: str  # VG/LV

    @property
    def size_bytes(self) -> int:
        return self.group.vg.size_bytes(self.lv)

    @property
    def read_only(self) -> bool:
        """By LVM's permission, or because thins show what is in it (LVM permits no writing to an external origin)."""
        if self.lv.name in self.group.vg.external_origins:
            return True
        return "WRITE" not in self.lv.status and "WRITE_LOCKED" not in self.lv.flags


class Volumes:
    def __init__(self, disks: Disks) -> None:
        self.disks = disks
        self._opened: dict[tuple[str, str], Readable | ThinfsError] = {}
        self._pools: dict[tuple[str, str], ThinPool | ThinfsError] = {}
        self._opening: list[str] = []
        names = [group.vg.name for group in disks.groups]
        # two groups of one name are told apart by their UUIDs
        self._names = [
            name if names.count(name) == 1 else group.vg.uuid for name, group in zip(names, disks.groups, strict=True)
        ]

    def __iter__(self) -> Iterator[Volume]:
        for name, group in zip(self._names, self.disks.groups, strict=True):
            for lv in group.vg.lvs.values():
                yield Volume(group, lv, f"{name}/{lv.name}")

    def file_name(self, volume: Volume) -> str:
        vg, _, lv = volume.label.partition("/")
        return dm_name(vg, lv)

    def find(self, name: str) -> Volume:
        """VG/LV; or LV alone, or its name in device-mapper, where that is one volume's."""
        name = name.removeprefix("/dev/").removeprefix("mapper/")
        for said in (
            lambda one: one.label,
            lambda one: f"{one.group.vg.name}/{one.lv.name}",
            lambda one: one.lv.name,
            lambda one: dm_name(one.group.vg.name, one.lv.name),
            lambda one: one.lv.uuid,
        ):
            found = [volume for volume in self if said(volume) == name]
            if len(found) == 1:
                return found[0]
            if found:
                raise InvalidArgument(f"{name}: there are {', '.join(volume.label for volume in found)}")
        there = ", ".join(volume.label for volume in self if volume.lv.visible)
        raise InvalidArgument(f"{name}: no such volume; there are {there or 'none'}")

    # -- opening

    def open(self, volume: Volume) -> Readable:
        """A ThinfsError says why not; the same again when asked again."""
        key = (volume.group.vg.uuid, volume.lv.name)
        found = self._opened.get(key)
        if found is None:
            found = self._opened[key] = self._try_open(volume)
        if isinstance(found, ThinfsError):
            raise found
        return found

    def open_verified(self, volume: Volume) -> Readable:
        """With all of its mappings read, so that nothing is found wrong in them half-way."""
        readable = self.open(volume)
        if isinstance(readable, ThinVolume) and volume.lv.thin is not None:
            readable.verify(self.pool_of(volume).verified)
        return readable

    def state(self, volume: Volume) -> str:
        """A digest of all that says where the contents of a volume that can be opened are: other contents of a thin
        have another one, those of a linear volume only if it was moved."""
        digest = hashlib.sha256(repr((volume.group.vg.uuid, volume.lv.uuid, volume.lv.segments)).encode())
        if volume.lv.thin is not None:
            pool = self.pool_of(volume)
            digest.update(pool.metadata.read(0, METADATA_BLOCK_BYTES))
            if volume.lv.thin.external_origin is not None:
                digest.update(self.state(self.below(volume, volume.lv.thin.external_origin)).encode())
        return digest.hexdigest()

    def pool_of(self, volume: Volume) -> ThinPool:
        """Of a thin volume, or of the pool's own LV."""
        pool_name = volume.lv.thin.pool if volume.lv.thin is not None else volume.lv.name
        key = (volume.group.vg.uuid, pool_name)
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = self._try_pool(volume, pool_name)
        if isinstance(found, ThinfsError):
            raise found
        return found

    def _try_open(self, volume: Volume) -> Readable | ThinfsError:
        if volume.label in self._opening:
            # not kept: it is said of the volume that was asked for
            raise BadMetadata(f"VG {volume.label}: stands on itself, by way of {', '.join(self._opening)}")
        if len(self._opening) >= _DEEPEST:
            raise BadMetadata(f"VG {volume.label}: more than {_DEEPEST} volumes upon each other")
        self._opening.append(volume.label)
        try:
            return self._make(volume)
        except ThinfsError as error:
            return error
        finally:
            self._opening.pop()

    def _make(self, volume: Volume) -> Readable:
        vg, lv = volume.group.vg, volume.lv
        for fault in (vg.fault, lv.fault):
            if fault is not None:
                raise fault
        if lv.thin is not None:
            return self._thin(volume, lv.thin)
        if lv.pool is not None:
            raise NotSupported(
                f"VG {volume.label}: a thin pool, no volume: its parts are {lv.pool.metadata}, {lv.pool.data}"
            )
        return ComposedVolume(
            volume.label, [self._segment(volume, one) for one in lv.segments if isinstance(one, Striped)]
        )

    def _segment(self, volume: Volume, segment: Striped) -> SegmentMap:
        extent = volume.group.vg.extent_bytes
        length = segment.extent_count // len(segment.areas)
        columns = []
        for area in segment.areas:
            entry = volume.group.vg.pvs.get(area.name)
            if entry is not None:
                if area.first_extent + length > entry.pe_count:
                    raise BadMetadata(
                        f"VG {volume.label}: extents {area.first_extent}..{area.first_extent + length} of {area.name}, "
                        f"it has {entry.pe_count}"
                    )
                start = sectors_to_bytes(entry.pe_start)
                columns.append(Column(volume.group.pv(area.name).device, start + area.first_extent * extent))
            else:
                columns.append(Column(self._open_below(volume, area.name), area.first_extent * extent))
        begin = segment.start_extent * extent
        return SegmentMap(
            begin, begin + segment.extent_count * extent, columns, sectors_to_bytes(segment.stripe_sectors)
        )

    def below(self, volume: Volume, name: str) -> Volume:
        lv = volume.group.vg.lvs.get(name)
        if lv is None:
            raise BadMetadata(f"VG {volume.label}: stands on {name[:40]!r}, which is not in its group")
        return Volume(volume.group, lv, f"{volume.label.partition('/')[0]}/{name}")

    def _open_below(self, volume: Volume, name: str) -> Readable:
        return self.open(self.below(volume, name))

    def _thin(self, volume: Volume, thin: Thin) -> Readable:
        pool = self.pool_of(volume)
        origin = None
        if thin.external_origin is not None:
            pool.device(volume.label, thin)
            origin = self._open_below(volume, thin.external_origin)
        return pool.volume(volume.label, thin, volume.size_bytes, origin)

    def _try_pool(self, volume: Volume, pool_name: str) -> ThinPool | ThinfsError:
        try:
            owner = self.below(volume, pool_name)
            for fault in (owner.group.vg.fault, owner.lv.fault):
                if fault is not None:
                    raise fault
            if owner.lv.pool is None:
                raise BadMetadata(f"VG {owner.label}: not a thin pool")
            text = owner.lv.pool
            parts = [self._open_below(owner, name) for name in (text.metadata, text.data)]
            if owner.size_bytes > parts[1].size_bytes:
                raise BadMetadata(
                    f"pool {owner.label}: of {owner.size_bytes} bytes on {parts[1].label}, {parts[1].size_bytes}"
                )
            thins = [lv.thin for lv in owner.group.vg.lvs.values() if lv.thin is not None]
            has_volumes = any(thin.pool == owner.lv.name for thin in thins)
            return open_pool(owner.label, text, *parts, has_volumes=has_volumes)
        except ThinfsError as error:
            return error
