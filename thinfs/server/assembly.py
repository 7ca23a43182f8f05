"""What a server is made of: the device-mapper in this process, its image files, its loop devices and links.

Promises: they come in the order in which each needs the one before, and go in the reverse one: loop devices
let go of the files, the mount goes, then the devices, which commits. Never: speaks the protocol.
"""

import logging
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

import trio

from thinfs.blockdevs import nodes
from thinfs.blockdevs.nodes import Nodes
from thinfs.errors import ThinfsError, from_oserror
from thinfs.fuse.mount import Mount, serve
from thinfs.fuse.native import make_volume
from thinfs.ioctl.numbers import Numbers
from thinfs.server.daemon import Served
from thinfs.server.removal import nobody
from thinfs.userspace.devices import DeviceMapper, open_device_mapper
from thinfs.userspace.mapped_device import MappedDevice

log = logging.getLogger(__name__)

_DETACH_SECONDS = 10  # then they fail with the mount, and the next server cleans up


class FrontEnds:
    """The DeviceListener: tells the mount and the loop devices what happens to a device, in the right order."""

    def __init__(self, block_devices: Nodes | None) -> None:
        self.mount: Mount | None = None
        self.numbers: Numbers | None = None
        self._nodes = block_devices

    def check_new_name(self, name: str) -> None:
        if self._nodes is not None:
            self._nodes.check_new_name(name)

    async def activated(self, device: MappedDevice) -> None:
        if self._nodes is not None:
            await self._nodes.activated(device)
        self._publish(device)

    def _publish(self, device: MappedDevice) -> None:
        if self.numbers is not None:
            attached = self._nodes.loop_of(device.name) if self._nodes is not None else None
            self.numbers.publish(device, attached.number if attached is not None else None)

    async def resized(self, device: MappedDevice) -> None:
        if self.mount is not None:
            await self.mount.device_resized(device)
        if self._nodes is not None:
            await self._nodes.resized(device)

    async def before_remove(self, device: MappedDevice, *, deferred: bool) -> None:
        if self._nodes is not None:
            await self._nodes.before_remove(device, deferred=deferred)
        if self.mount is not None:
            await self.mount.device_gone(device.name)

    async def removed(self, device: MappedDevice) -> None:
        if self.numbers is not None:
            self.numbers.withdraw(device)
        if self.mount is not None:
            await self.mount.device_gone(device.name)

    async def renamed(self, device: MappedDevice, old_name: str) -> None:
        if self.mount is not None:
            await self.mount.device_gone(old_name)
        if self._nodes is not None:
            await self._nodes.renamed(device, old_name)
        self._publish(device)

    async def before_suspend(self, device: MappedDevice, *, lockfs: bool) -> None:
        """What a file system or a page cache above still holds belongs to the time before the suspend."""
        if self._nodes is not None:
            await self._nodes.before_suspend(device, lockfs=lockfs)
        if self.mount is not None and self._nodes is None:
            await self.mount.flush_dirty(device)
        elif self.mount is not None and self._nodes is not None and self.mount.may_be_dirty(device):
            await self._nodes.write_dirty_pages(device.name)  # by a process that may wait for this one

    async def resumed(self, device: MappedDevice) -> None:
        if self._nodes is not None:
            await self._nodes.resumed(device)

    async def mounted(self) -> Collection[str]:
        return () if self._nodes is None else await self._nodes.mounted()


@asynccontextmanager
async def userspace(directory: str, *, loop_devices: bool = True, native: bool = True) -> AsyncIterator[Served]:
    """The assembly of `thinfs serve`; without `loop_devices` the devices are files and nothing else.

    Not `native`: all I/O goes through pyfuse3.
    """
    made = _make(directory)
    reason = nodes.available() if loop_devices else "not wanted"
    if reason is not None:
        log.info("no loop devices and no %s links: %s", nodes.MAPPER_DIR, reason)
    block_devices = Nodes(directory) if reason is None else None
    front_ends = FrontEnds(block_devices)
    try:
        if block_devices is not None:
            await block_devices.clean_stale()
        async with (
            open_device_mapper(directory, listener=front_ends, make_volume=make_volume if native else None) as mapper,
            trio.open_nursery() as nursery,
        ):
            front_ends.mount = await nursery.start(_serve_images, mapper, directory, native)
            try:
                front_ends.numbers = Numbers(directory, mapper.major)
                holder = block_devices.holder if block_devices is not None else nobody
                yield Served(mapper, holder, front_ends.mount.settle, show_holders=front_ends.numbers.show_holders)
            finally:
                if block_devices is not None:
                    with trio.move_on_after(_DETACH_SECONDS, shield=True):
                        await _resume_frozen(mapper, block_devices)
                        await block_devices.detach_all()
                if front_ends.numbers is not None:
                    front_ends.numbers.close()
                    front_ends.numbers = None
                nursery.cancel_scope.cancel()  # unmounts: what mappings had dirtied still finds the devices
    finally:
        if block_devices is not None:
            block_devices.close()
        if made:
            with suppress(OSError):
                os.rmdir(directory)


async def _serve_images(
    mapper: DeviceMapper,
    directory: str,
    native: bool,
    *,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(mapper, directory, native=native, task_status=task_status)
    log.error("%s: unmounted by somebody else: devices are no files until `thinfs stop` and a new start", directory)


async def _resume_frozen(mapper: DeviceMapper, block_devices: Nodes) -> None:
    """A file system that a suspend froze must be thawed while its device still answers, or it stays for ever."""
    for name in block_devices.frozen():
        try:
            await mapper.clear(name)
            await mapper.resume(name)
            log.warning("%s: resumed at the end of the server, for the sake of the file system on it", name)
        except ThinfsError as error:
            log.error("%s: the file system on it stays frozen: %s", name, error)


def _make(directory: str) -> bool:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:  # also where the mount of a dead server lies on it: the mount cleans that away
        return False
    except OSError as error:
        raise from_oserror(error, directory) from None
    return True
