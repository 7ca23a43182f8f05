"""Volumes of LVM disks as devices of a server: named as LVM names them, with its UUIDs; pools as it would load them.

Promises: what is read-only is a device that cannot be written, over a device that cannot be written. A pool is active
only where a writable volume needs it. Source: docs/reference/lvm.md, 7.
"""

from thinfs.errors import BadMetadata
from thinfs.lvm.overlay import Overlay
from thinfs.lvm.reading import ReadOnlyBlockDevice
from thinfs.lvm.volume_group import Pool, Thin
from thinfs.lvm.volumes import Volume, Volumes, dm_name
from thinfs.lvm.writing import WritableVolume
from thinfs.units import bytes_to_sectors
from thinfs.userspace.devices import DeviceMapper


class Activation:
    def __init__(self, mapper: DeviceMapper, volumes: Volumes) -> None:
        self._mapper = mapper
        self._volumes = volumes
        self._below: dict[str, str] = {}  # what is active under volumes: label -> name

    async def read_only_or_overlaid(self, volume: Volume, overlay: Overlay | None) -> None:
        readable, word = self._volumes.open(volume), f"lvm:{volume.label}"
        if overlay is None:
            self._mapper.lend(word, ReadOnlyBlockDevice(readable, word))
        else:
            key = f"{volume.group.vg.uuid}/{volume.lv.uuid}"
            self._mapper.lend(word, overlay.open_volume(readable, key, self._volumes.state(volume), word))
        await self._create(volume, f"linear {word} 0", read_only=overlay is None)

    async def writable(self, volume: Volume) -> None:
        """Where LVM allows writing to it; else read-only."""
        word, thin = f"lvm:{volume.label}", volume.lv.thin
        if thin is not None:
            await self._create(volume, await self._thin_params(volume, thin), read_only=volume.read_only)
            return
        readable = self._volumes.open(volume)
        device = ReadOnlyBlockDevice(readable, word) if volume.read_only else WritableVolume(readable, word)
        self._mapper.lend(word, device)
        await self._create(volume, f"linear {word} 0", read_only=volume.read_only)

    async def _thin_params(self, volume: Volume, thin: Thin) -> str:
        pool = await self._pool(self._volumes.below(volume, thin.pool))
        params = f"thin /dev/mapper/{pool} {thin.device_id}"
        if thin.external_origin is None:
            return params
        return f"{params} /dev/mapper/{await self._origin(self._volumes.below(volume, thin.external_origin))}"

    async def _origin(self, volume: Volume) -> str:
        name = self._below.get(volume.label)
        if name is None:
            word = f"lvm:{volume.label}-real"
            self._mapper.lend(word, ReadOnlyBlockDevice(self._volumes.open(volume), word))
            name = await self._create(volume, f"linear {word} 0", "-real", read_only=True)
            self._below[volume.label] = name
        return name

    async def _pool(self, volume: Volume) -> str:
        name = self._below.get(volume.label)
        if name is None:
            text = volume.lv.pool
            if text is None:
                raise BadMetadata(f"VG {volume.label}: not a thin pool")
            words = []
            for part in (text.metadata, text.data):
                below = self._volumes.below(volume, part)
                words.append(f"lvm:{below.label}")
                self._mapper.lend(words[-1], WritableVolume(self._volumes.open(below), words[-1]))
            features = _features(text, error_if_full="ERROR_WHEN_FULL" in volume.lv.flags)
            params = f"thin-pool {words[0]} {words[1]} {text.chunk_sectors} 0 {len(features)} {' '.join(features)}"
            name = self._below[volume.label] = await self._create(volume, params.rstrip(), "-tpool")
        return name

    async def _create(self, volume: Volume, params: str, suffix: str = "", *, read_only: bool = False) -> str:
        vg, _, lv = volume.label.partition("/")
        name = dm_name(vg, lv) + suffix
        uuid = "LVM-" + f"{volume.group.vg.uuid}{volume.lv.uuid}".replace("-", "") + suffix
        table = f"0 {bytes_to_sectors(volume.size_bytes)} {params}"
        await self._mapper.create(name, table, uuid=uuid, read_only=read_only)
        return name


def _features(text: Pool, *, error_if_full: bool) -> list[str]:
    features = [] if text.zero_new_blocks else ["skip_block_zeroing"]
    features += {"nopassdown": ["no_discard_passdown"], "ignore": ["ignore_discard"]}.get(text.discards, [])
    return [*features, *["error_if_no_space"] * error_if_full]
