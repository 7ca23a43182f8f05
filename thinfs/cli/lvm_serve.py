"""`thinfs lvm IMAGE… serve`: the volumes as files and devices of a server of their own.

Promises: read-only, unless there is an overlay, which takes all writes, or `--rw`, which is refused where anything is
in doubt; a volume that cannot be opened is named on standard error and not served. The server is as any other: `thinfs
stop` ends it, other tables may name its devices. Never: writes a label or a text, sends a message to a pool.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

from thinfs.cli.lvm_devices import Activation
from thinfs.cli.serve import directory_of
from thinfs.errors import InvalidArgument, IOFailed, PermissionRefused, ThinfsError
from thinfs.lvm.opening import open_volumes, open_writable_volumes
from thinfs.lvm.overlay import Overlay
from thinfs.lvm.volumes import Volume, Volumes
from thinfs.lvm.writing import why_not_writable
from thinfs.plain_text import plain
from thinfs.server.assembly import userspace
from thinfs.server.daemon import Assembly, Served, log_to_stderr, serve_in_background, serve_until_end, starting
from thinfs.userspace.devices import DeviceMapper


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be served. No `names`: every volume that can be."""

    images: Sequence[str]  # absolute paths, as `overlay`: the server leaves the present directory
    names: Sequence[str]
    overlay: str | None
    writable: bool
    loop_devices: bool

    @classmethod
    def by(
        cls, images: Sequence[str], names: Sequence[str], overlay: str | None, *, writable: bool, loop_devices: bool
    ) -> "Wanted":
        absolute = None if overlay is None else os.path.abspath(overlay)
        return cls([os.path.abspath(image) for image in images], names, absolute, writable, loop_devices)


def serve(options: argparse.Namespace) -> int:
    wanted = Wanted.by(
        options.images, options.volumes, options.overlay, writable=options.rw, loop_devices=not options.files_only
    )
    with open_volumes(wanted.images) as (volumes, _):
        chosen, refused = choose(volumes, wanted)
        names = {volume.label: volumes.file_name(volume) for volume in chosen}
    for line in refused:
        print(plain(f"thinfs lvm serve: not served: {line}"), file=sys.stderr)
    directory = directory_of(options.mount)

    def say() -> None:
        print("\n".join(plain(f"{label}: {directory}/{name}") for label, name in names.items()), flush=True)

    log_to_stderr()
    if options.foreground:
        serve_until_end(directory, assembly(wanted), say)
        return 0
    start(directory, wanted)
    say()
    return 0


def start(directory: str, wanted: Wanted) -> None:
    """Returns when the server answers."""
    with starting(directory):
        why = serve_in_background(directory, assembly(wanted))
    if why:
        raise IOFailed(why)


def choose(volumes: Volumes, wanted: Wanted) -> tuple[list[Volume], list[str]]:
    """Those to be served, and why others are not. What was asked for by name must be served; one at least."""
    if wanted.overlay is not None:
        with suppress(OSError):
            if any(os.path.samefile(wanted.overlay, image) for image in wanted.images):
                raise InvalidArgument(f"{wanted.overlay}: it is one of the disks that are read")
    chosen, refused = _choose(volumes, wanted)
    if wanted.writable:
        for line in why_not_writable(volumes, chosen):
            raise PermissionRefused(f"not to be written: {line}")
    return chosen, refused


def _choose(volumes: Volumes, wanted: Wanted) -> tuple[list[Volume], list[str]]:
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


@contextmanager
def _opened(wanted: Wanted) -> Iterator[Volumes]:
    if wanted.writable:
        with open_writable_volumes(wanted.images) as volumes:
            yield volumes
    else:
        with open_volumes(wanted.images) as (volumes, _):
            yield volumes


@contextmanager
def _overlay(wanted: Wanted) -> Iterator[Overlay | None]:
    if wanted.overlay is None:
        yield None
        return
    overlay = Overlay(wanted.overlay)
    try:
        yield overlay
    finally:
        overlay.close()


def assembly(wanted: Wanted) -> Assembly:
    @asynccontextmanager
    async def lvm(directory: str) -> AsyncIterator[Served]:
        with _opened(wanted) as volumes:
            chosen, _ = choose(volumes, wanted)
            with _overlay(wanted) as overlay:
                async with userspace(directory, loop_devices=wanted.loop_devices) as served:
                    activation = Activation(cast(DeviceMapper, served.backend), volumes)
                    for volume in chosen:
                        if wanted.writable:
                            await activation.writable(volume)
                        else:
                            await activation.read_only_or_overlaid(volume, overlay)
                    yield served

    return lvm
