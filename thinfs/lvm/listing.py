"""What is on the disks, as rows: every volume, also those that cannot be opened, with the reason.

Promises: reads metadata and the first sectors of a volume; a trouble becomes a `why_not`, never the end of the listing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from thinfs.errors import ThinfsError
from thinfs.lvm.signatures import signature
from thinfs.lvm.volume_group import LogicalVolume
from thinfs.lvm.volumes import Volume, Volumes
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK


@dataclass(frozen=True, slots=True)
class PoolRow:
    name: str
    size_bytes: int
    block_bytes: int
    used_bytes: int | None  # None: not to be opened, as all that follows
    metadata_bytes: int | None
    metadata_used_bytes: int | None
    transaction_id: int
    needs_check: bool
    notes: tuple[str, ...]
    why_not: str | None


@dataclass(frozen=True, slots=True)
class VolumeRow:
    name: str
    kind: str
    size_bytes: int
    used_bytes: int | None  # of a thin
    read_only: bool  # by LVM's permission
    visible: bool
    contents: str | None
    notes: tuple[str, ...]
    why_not: str | None


def pool_rows(volumes: Volumes) -> Iterator[PoolRow]:
    for volume in volumes:
        text = volume.lv.pool
        if text is None:
            continue
        try:
            pool = volumes.pool_of(volume)
        except ThinfsError as error:
            yield PoolRow(
                volume.label, volume.size_bytes, text.chunk_sectors * 512, None, None, None, text.transaction_id, False,
                (), str(error),
            )  # fmt: skip
            continue
        superblock = pool.superblock
        known = {lv.thin.device_id for lv in volume.group.vg.lvs.values() if lv.thin and lv.thin.pool == volume.lv.name}
        strangers = sorted(pool.details.keys() - known)
        notes = list(pool.doubts)
        if strangers:
            few = " ".join(map(str, strangers[:8])) + (" .." if len(strangers) > 8 else "")
            notes.append(f"pool {pool.name}: {len(strangers)} devices that are no volumes of LVM's: {few}")
        yield PoolRow(
            volume.label,
            volume.size_bytes,
            pool.block_bytes,
            superblock.data_space_map_root.nr_allocated * pool.block_bytes,
            superblock.metadata_space_map_root.nr_blocks * 4096,
            superblock.metadata_space_map_root.nr_allocated * 4096,
            superblock.trans_id,
            bool(superblock.flags & FLAG_NEEDS_CHECK),
            tuple(notes),
            None,
        )


def volume_rows(volumes: Volumes) -> Iterator[VolumeRow]:
    for volume in volumes:
        if volume.lv.pool is None:
            yield _row(volumes, volume)


def _row(volumes: Volumes, volume: Volume) -> VolumeRow:
    used = contents = why_not = None
    try:
        readable = volumes.open(volume)
        if volume.lv.thin is not None:
            pool = volumes.pool_of(volume)
            used = pool.details[volume.lv.thin.device_id].mapped_blocks * pool.block_bytes
        contents = signature(readable)
    except ThinfsError as error:
        why_not = str(error)
    notes = tuple(_notes(volume.lv))
    lv, size = volume.lv, volume.size_bytes
    return VolumeRow(volume.label, lv.kind, size, used, volume.read_only, lv.visible, contents, notes, why_not)


def _notes(lv: LogicalVolume) -> Iterator[str]:
    thin = lv.thin
    if thin is None:
        return
    yield f"device {thin.device_id} of {thin.pool}"
    if thin.origin is not None:
        yield f"snapshot of {thin.origin}"
    if thin.external_origin is not None:
        yield f"external origin {thin.external_origin}"
    if thin.merge is not None:
        yield f"to be merged into {thin.merge}"
