"""`thinfs lvm IMAGE… serve`: the volumes as files and devices of a server of their own.

Promises: read-only, unless there is an overlay, which takes all writes; a volume that cannot be opened is named on
standard error and not served. The server is as any other: `thinfs stop` ends it, other tables may name its devices.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from thinfs.cli.serve import directory_of
from thinfs.errors import InvalidArgument, IOFailed, ThinfsError
from thinfs.lvm.opening import open_volumes
from thinfs.lvm.overlay import Overlay
from thinfs.lvm.reading import ReadOnlyBlockDevice
from thinfs.lvm.volumes import Volume, Volumes
from thinfs.server.assembly import userspace
from thinfs.server.daemon import Assembly, Served, log_to_stderr, serve_in_background, serve_until_end, starting
from thinfs.units import bytes_to_sectors
from thinfs.userspace.devices import DeviceMapper


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served. No `names`: every volume that can be."""

    images: Sequence[str]
    names: Sequence[str]
    overlay: str | None
    loop_devices: bool = True


def serve(options: argparse.Namespace) -> int:
    wanted = Wanted(options.images, options.volumes, options.overlay)
    with open_volumes(wanted.images) as (volumes, _):
        chosen, refused = choose(volumes, wanted)
        names = {volume.label: volumes.file_name(volume) for volume in chosen}
    if wanted.overlay is not None:
        _check_overlay(wanted)
    for line in refused:
        print(f"thinfs lvm serve: not served: {line}", file=sys.stderr)
    directory = directory_of(options.mount)

    def say() -> None:
        print("\n".join(f"{label}: {directory}/{name}" for label, name in names.items()), flush=True)

    log_to_stderr()
    if options.foreground:
        serve_until_end(directory, assembly(wanted), say)
        return 0
    with starting(directory):
        why = serve_in_background(directory, assembly(wanted))
    if why:
        raise IOFailed(why)
    say()
    return 0


def _check_overlay(wanted: Wanted) -> None:
    """Before anything is opened for writing."""
    assert wanted.overlay is not None
    with suppress(OSError):
        if any(os.path.samefile(wanted.overlay, image) for image in wanted.images):
            raise InvalidArgument(f"{wanted.overlay}: it is one of the disks that are read")


def choose(volumes: Volumes, wanted: Wanted) -> tuple[list[Volume], list[str]]:
    """Those to be served, and why others are not. What was asked for by name must be served; one at least."""
    if wanted.names:
        chosen = list({volume.label: volume for volume in map(volumes.find, wanted.names)}.values())
        for volume in chosen:
            volumes.open_verified(volume)
        return chosen, []
    chosen, refused = [], []
    for volume in volumes:
        if not volume.lv.visible or volume.lv.pool is not None:
            continue
        try:
            volumes.open_verified(volume)
        except ThinfsError as error:
            refused.append(str(error))
        else:
            chosen.append(volume)
    if not chosen:
        reasons = [*refused, *volumes.disks.problems, "no volume group on " + ", ".join(wanted.images)]
        raise InvalidArgument(reasons[0])
    return chosen, list(dict.fromkeys(refused))


def assembly(wanted: Wanted) -> Assembly:
    @asynccontextmanager
    async def lvm(directory: str) -> AsyncIterator[Served]:
        async with AsyncExitStack() as stack:
            volumes, _ = stack.enter_context(open_volumes(wanted.images))
            chosen, _ = choose(volumes, wanted)
            overlay = None
            if wanted.overlay is not None:
                overlay = Overlay(wanted.overlay)
                stack.callback(overlay.close)
            served = await stack.enter_async_context(userspace(directory, loop_devices=wanted.loop_devices))
            for volume in chosen:
                await _activate(cast(DeviceMapper, served.backend), volumes, volume, overlay)
            yield served

    return lvm


async def _activate(mapper: DeviceMapper, volumes: Volumes, volume: Volume, overlay: Overlay | None) -> None:
    readable, word = volumes.open(volume), f"lvm:{volume.label}"
    if overlay is None:
        mapper.lend(word, ReadOnlyBlockDevice(readable, word))
    else:
        key = f"{volume.group.vg.uuid}/{volume.lv.uuid}"
        mapper.lend(word, overlay.open_volume(readable, key, volumes.state(volume), word))
    uuid = "LVM-" + f"{volume.group.vg.uuid}{volume.lv.uuid}".replace("-", "")
    table = f"0 {bytes_to_sectors(volume.size_bytes)} linear {word} 0"
    await mapper.create(volumes.file_name(volume), table, uuid=uuid, read_only=overlay is None)
