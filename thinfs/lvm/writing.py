"""Disks opened for writing, on request alone, and the volumes on them as devices that can be written.

Promises: nothing is written but the extents of the volumes that are handed out; labels and texts never are. What makes
writing unsafe is said by `why_not_writable` before anything is opened so. Source: docs/reference/lvm.md, 8 and 9.
"""

from collections.abc import Iterator, Sequence

from thinfs.blockdev import Buffer, FileDevice
from thinfs.errors import IOFailed, ThinfsError
from thinfs.lvm.composed import ComposedVolume
from thinfs.lvm.reading import Readable, Window, check_range
from thinfs.lvm.volumes import Volume, Volumes


class WritableDisk:
    """A disk under thinfs' exclusive lock."""

    def __init__(self, path: str) -> None:
        self.label = path
        self.device = FileDevice(path)
        self.size_bytes = self.device.size_bytes

    def close(self) -> None:
        self.device.close()

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        return self.device.read(offset, length)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        yield begin, end


class WritableVolume:
    """thinfs.blockdev.BlockDevice over a volume of extents on writable disks."""

    def __init__(self, volume: Readable, label: str) -> None:
        """IOFailed if some of it is no extent of a writable disk."""
        self.label = label
        self.size_bytes = volume.size_bytes
        self.supports_discard = True
        self._volume = volume
        self._disks = list({id(disk): disk for _, _, disk, _ in places(volume, 0, volume.size_bytes)}.values())

    def read(self, offset: int, length: int) -> bytes:
        return self._volume.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        check_range(self, offset, len(data))
        view = memoryview(data)
        for first, last, disk, at in places(self._volume, offset, offset + len(data)):
            disk.device.write(at, view[first - offset : last - offset])

    def flush(self) -> None:
        errors: list[ThinfsError] = []
        for disk in self._disks:
            try:
                disk.device.flush()
            except ThinfsError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def discard(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        for first, last, disk, at in places(self._volume, offset, offset + length):
            disk.device.discard(at, last - first)

    def close(self) -> None:
        return  # the disks are their opener's


def places(readable: Readable, begin: int, end: int) -> Iterator[tuple[int, int, WritableDisk, int]]:
    """(first, last, disk, offset there) of a range of a volume of extents, down to the disks."""
    if isinstance(readable, WritableDisk):
        yield begin, end, readable, begin
    elif isinstance(readable, Window):
        for first, last, disk, at in places(readable.below, readable.offset + begin, readable.offset + end):
            yield first - readable.offset, last - readable.offset, disk, at
    elif isinstance(readable, ComposedVolume):
        for low, high, below, below_at in readable.pieces(begin, end):
            for first, last, disk, at in places(below, below_at, below_at + high - low):
                yield low + first - below_at, low + last - below_at, disk, at
    else:
        raise IOFailed(f"{readable.label}: cannot be written")


def why_not_writable(volumes: Volumes, chosen: Sequence[Volume]) -> Iterator[str]:
    """What is against writing to any of these, or to a pool that carries one; a line each."""
    groups = {volume.group.vg.uuid: volume.group for volume in chosen}
    for group in groups.values():
        vg = group.vg
        if vg.exported:
            yield f"VG {vg.name}: exported: it is to be somebody else's"
        if vg.system_id:
            yield f"VG {vg.name}: belongs to system {vg.system_id!r}"
        yield from group.lost.values()
        yield from group.doubts
    pools = {}
    for volume in chosen:
        if volume.lv.thin is not None:
            pool = volumes.pool_of(volume)
            pools[pool.name] = pool
            below = volume.lv.thin.external_origin
            if below is not None and volume.group.vg.lvs[below].thin is not None:
                yield f"VG {volume.label}: its external origin {below} is a thin volume itself"
    for pool in pools.values():
        yield from pool.doubts
        yield from (f"pool {pool.name}: {line}" for line in pool.check().damages)
