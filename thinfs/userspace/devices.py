"""Device-mapper in a process: named devices and their tables, behind the seam.

Promises: the kernel's checks, in its order, with its errno; a refusal leaves everything as it was. Never
blocks the event loop. `open_device_mapper` is the way in: leaving it suspends, commits and closes every pool.
Source: docs/reference/behaviour.md; docs/reference/clients.md for what programs rely on.
"""

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from thinfs.bio import Bio, Op
from thinfs.blockdev import BlockDevice
from thinfs.dm.backend import DeviceInfo, OpenDevice, TargetVersion
from thinfs.dm.message import split_message
from thinfs.dm.table import TargetLine, parse_table
from thinfs.errors import BackingMissing, Busy, InvalidArgument, NoSpace, NoSuchDevice, ThinfsError
from thinfs.pool.served import MakeVolume
from thinfs.userspace.backing import Backing, BackingDevices, mapped_name, mapped_number
from thinfs.userspace.blocking import Background, run_blocking
from thinfs.userspace.listener import DeviceListener, NoListener
from thinfs.userspace.loading import Loading
from thinfs.userspace.mapped_device import MappedDevice
from thinfs.userspace.pools import Pools
from thinfs.userspace.registry import MAX_NESTING, Registry, unused_major
from thinfs.userspace.table import Table
from thinfs.userspace.target import Target
from thinfs.userspace.targets.known import TARGET_VERSIONS, TARGETS
from thinfs.waiting import do

log = logging.getLogger(__name__)

CANCEL_DEFERRED_REMOVE: Final = "@cancel_deferred_remove"


@asynccontextmanager
async def open_device_mapper(
    mount_dir: str = "/nonexistent",
    *,
    listener: DeviceListener | None = None,
    major: int | None = None,
    make_volume: MakeVolume | None = None,
) -> AsyncIterator["DeviceMapper"]:
    """A device-mapper for the body of the `with`; afterwards every pool is committed and closed."""
    async with trio.open_nursery() as nursery:
        mapper = DeviceMapper(nursery, mount_dir, listener or NoListener(), major or unused_major(), make_volume)
        try:
            yield mapper
        finally:
            with trio.CancelScope(shield=True):
                await mapper.shut_down()
            nursery.cancel_scope.cancel()


class DeviceMapper:
    """The userspace backend of the seam (thinfs.dm.backend.Backend), in process."""

    def __init__(
        self,
        nursery: trio.Nursery,
        mount_dir: str,
        listener: DeviceListener,
        major: int,
        make_volume: MakeVolume | None = None,
    ) -> None:
        self.mount_dir = mount_dir
        self.major = major
        self.listener = listener
        self._nursery = nursery
        self._registry = Registry(mount_dir, major)
        background = Background(nursery)
        self._backings = BackingDevices(background)
        self.pools = Pools(self._backings, background, nursery, make_volume)

    def lend(self, word: str, device: BlockDevice) -> None:
        """A device of whoever assembles this one, as something that a table may name."""
        self._backings.lend(word, device)

    # -- looking up --------------------------------------------------------------------------------------

    def find(self, name: str) -> MappedDevice:
        """The device of that name; NoSuchDevice (ENXIO) names it."""
        return self._registry.find(name)

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[MappedDevice]:
        """The device, while nobody else changes its tables or state; it may go while its lock is waited for."""
        device = self.find(name)
        async with device.lock:
            if device.gone:
                raise NoSuchDevice(f"{name}: no such device")
            yield device

    def names(self) -> Sequence[str]:
        """Devices with a live table: those that are files in the mount."""
        return [device.name for device in self._registry if device.announced]

    def lookup(self, name: str) -> MappedDevice | None:
        device = self._registry.get(name)
        return device if device is not None and device.announced else None

    def _open_count(self, device: MappedDevice) -> int:
        return device.handles + len(self._registry.users_of(device))

    def _info(self, device: MappedDevice, nr_users: int | None = None, mounted: Collection[str] = ()) -> DeviceInfo:
        if nr_users is None:
            nr_users = len(self._registry.users_of(device))
        return DeviceInfo(
            name=device.name,
            uuid=device.uuid,
            major=device.major,
            minor=device.minor,
            open_count=device.handles + nr_users + (device.name in mounted),
            event_nr=device.event_nr,
            target_count=0 if device.live is None else len(device.live.targets),
            suspended=device.suspended,
            read_only=device.read_only,
            live_table=device.live is not None,
            inactive_table=device.inactive is not None,
            deferred_remove=device.deferred_remove,
        )

    # -- the seam: life of a device ----------------------------------------------------------------------

    async def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        self._registry.check_new_name(name)
        self.listener.check_new_name(name)
        device = self._registry.add(name, uuid, minor)
        device.on_last_close = partial(self._closed, device)
        device.on_gate_opened = self.pools.pump
        if table is not None:
            try:
                await self.load(name, table, read_only=read_only)
                await self.resume(name)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._destroy(device)
                raise
        return self._info(device)

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        async with self._locked(name) as device:
            lines = parse_table(table)
            targets: list[Target] = []
            try:
                for line in lines:
                    targets.append(await self._load_target(device, line, alone=len(lines) == 1, read_only=read_only))
                self._check_replaceable(device, lines)
            except BaseException:
                with trio.CancelScope(shield=True):
                    for target in targets:
                        await target.close()
                raise
            old, device.inactive = device.inactive, Table(targets, read_only=read_only)
            if old is not None:
                await old.close()

    def _check_replaceable(self, device: MappedDevice, lines: Sequence[TargetLine]) -> None:
        """A pool stays a pool; error is the wildcard, as `remove --force` replaces one (seen)."""
        kind = None if device.live is None else device.live.targets[0].line.target
        if kind is not None and TARGETS[kind].immutable and not {kind, "error"} & {line.target for line in lines}:
            raise InvalidArgument(f"{device.name}: can't replace immutable target type {kind} by {lines[0].target}")

    async def _load_target(self, device: MappedDevice, line: TargetLine, *, alone: bool, read_only: bool) -> Target:
        kind = TARGETS.get(line.target)
        if kind is None:
            raise InvalidArgument(f"{line.target}: unknown target type")
        loading = Loading(
            line,
            device,
            alone,
            read_only,
            acquire=partial(self._acquire, device),
            release=self._backings.release,
            check_present=self._check_present,
            users_of_device=partial(self._registry.users_of, device),
            mapped_device_of=self._registry.of_word,
            pools=self.pools,
            start=self._nursery.start_soon,
        )
        return await kind.load(loading)

    async def _acquire(self, upper: MappedDevice, word: str, *, read_only: bool = False) -> Backing:
        """The device below that a word in a table of `upper` means: any of ours, but none that stands on it."""
        mapped = self._registry.of_word(word)
        if mapped is None:
            files = await run_blocking(_what_they_are, word, self.mount_dir)
            mapped = None if files is None else self._registry.of_file(*files)
        if mapped is None:
            return await run_blocking(partial(self._backings.acquire, word, read_only=read_only))
        if self._registry.stands_on(mapped, upper):
            raise InvalidArgument(f"{upper.name}: cannot stand on {mapped.name}, which stands on it")
        if self._registry.nesting(mapped) >= MAX_NESTING:
            raise InvalidArgument(f"{upper.name}: {mapped.name} is level {MAX_NESTING} of devices on devices already")
        return self._backings.acquire_mapped(mapped, read_only=read_only)

    async def _check_present(self, word: str) -> None:
        """A path that names nothing is ENODEV before the id is looked at, a number ENXIO, as in the kernel (seen)."""
        number = mapped_number(word)
        if number is not None:
            if not await trio.Path(f"/sys/dev/block/{word}").exists():
                raise NoSuchDevice(f"thin: Error opening pool device: {word}: no such device")
        elif mapped_name(word, self.mount_dir) is not None or not await trio.Path(word).exists():
            raise BackingMissing(f"thin: Error opening pool device: {word}: no such device")

    async def clear(self, name: str) -> None:
        async with self._locked(name) as device:
            old, device.inactive = device.inactive, None
            if old is not None:
                await old.close()

    async def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        async with self._locked(name) as device:
            await self._suspend(device, noflush=noflush, lockfs=lockfs)

    async def _suspend(self, device: MappedDevice, *, noflush: bool, lockfs: bool) -> None:
        if device.live is None:
            device.suspended = True  # a state only, until there is a table: as the kernel
        elif not device.suspended:
            await device.internally_resumed()
            try:
                if not noflush:
                    await self.listener.before_suspend(device, lockfs=lockfs)
                await device.suspend(noflush=noflush)
            except BaseException:
                await self.listener.resumed(device)
                raise

    async def resume(self, name: str) -> None:
        async with self._locked(name) as device:
            if device.inactive is not None:
                # May wait for I/O, and be given up meanwhile.
                await self._suspend(device, noflush=False, lockfs=True)
            with trio.CancelScope(shield=True):
                await self._resume(device)
            await self.listener.resumed(device)

    async def _resume(self, device: MappedDevice) -> None:
        old: Table | None = None
        size_before = device.size_bytes
        if device.live is None and device.inactive is None:
            if device.suspended:
                raise InvalidArgument(f"{device.name}: resume: no table is loaded")
            return  # as the kernel: a success without effect
        if device.inactive is not None:
            table, device.inactive = device.inactive, None
            try:
                for target in table.targets:
                    target.check_swap()
            except ThinfsError:
                await table.close()
                raise
            old = device.swap_in(table)
        try:
            if device.suspended or device.live is None:
                await device.resume()
        finally:
            if old is not None:
                await old.close()
        if not device.announced:
            device.announced = True
            await self.listener.activated(device)
        elif device.size_bytes != size_before:
            await self.listener.resized(device)

    async def remove(self, name: str, *, deferred: bool = False) -> None:
        async with self._locked(name) as device:
            with trio.CancelScope(shield=True):  # half a removal is no state to leave a device in
                await self._remove(device, deferred=deferred)

    async def _remove(self, device: MappedDevice, *, deferred: bool) -> None:
        try:
            if self._open_count(device):
                raise Busy(f"{device.name}: {self._why_busy(device)}")
            await self.listener.before_remove(device, deferred=deferred)
        except Busy:
            if not deferred:
                raise
            device.deferred_remove = True
        else:
            await self._destroy(device)

    def _why_busy(self, device: MappedDevice) -> str:
        users = ", ".join(user.name for user in self._registry.users_of(device))
        parts = [f"in use by {users}"] if users else []
        if device.handles:
            parts.append(f"open {device.handles} times")
        return " and ".join(parts)

    async def _destroy(self, device: MappedDevice) -> None:
        """Take the device away: nothing opens it any more, its I/O has ended or ends now."""
        device.announced = False
        self._registry.drop(device)
        used = self._registry.used_by(device)
        if device.live is not None:
            await device.suspend(noflush=True)
        device.retire()
        for table in (device.live, device.inactive):
            if table is not None:
                await table.close()
        device.live = device.inactive = None
        await self.listener.removed(device)
        for other in used:
            self._closed(other)

    def _closed(self, device: MappedDevice) -> None:
        """A use of the device has ended: a deferred removal may be due."""
        if device.deferred_remove and self._open_count(device) == 0 and not device.gone:
            self._nursery.start_soon(self._remove_deferred, device)

    async def _remove_deferred(self, device: MappedDevice) -> None:
        if self._registry.get(device.name) is device and device.deferred_remove:
            try:
                await self.remove(device.name)
            except ThinfsError as error:
                log.error("%s: deferred removal: %s", device.name, error)

    async def rename(self, name: str, new_name: str) -> None:
        async with self._locked(name) as device:
            self._registry.check_new_name(new_name)
            self.listener.check_new_name(new_name)
            self._registry.rename(device, new_name)
            if device.live is not None:
                device.raise_event()  # who waits for the device learns its new name (seen)
            if device.announced:
                with trio.CancelScope(shield=True):
                    await self.listener.renamed(device, name)

    async def set_uuid(self, name: str, uuid: str) -> None:
        async with self._locked(name) as device:
            self._registry.set_uuid(device, uuid)

    # -- the seam: asking --------------------------------------------------------------------------------

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        device = self.find(name)
        words = split_message(message)
        if words[0].lower() == CANCEL_DEFERRED_REMOVE:
            if len(words) > 1:
                raise InvalidArgument(f"{name}: {words[0]} takes no arguments")
            device.deferred_remove = False
            return ""
        if device.live is None:
            raise InvalidArgument(f"{name}: message: no table is loaded")
        for target in device.live.targets:
            line = target.line
            if line.start_sectors <= sector < line.start_sectors + line.length_sectors:
                await target.message(words)
                return ""
        raise InvalidArgument(f"{name}: message: Target message sector {sector} outside device.")

    async def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        device = self.find(name)
        table = device.inactive if inactive else device.live
        targets = [] if table is None else table.targets
        return "\n".join([_line(target, await target.status_params(noflush=noflush)) for target in targets])

    async def table(self, name: str, *, inactive: bool = False) -> str:
        device = self.find(name)
        table = device.inactive if inactive else device.live
        return "\n".join(_line(target, target.table_params()) for target in (table.targets if table else []))

    async def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        self.find(name)
        mounted = await self.listener.mounted()
        device = self.find(name)
        info = self._info(device, mounted=mounted)
        if not inactive:
            return info
        table = device.inactive
        return replace(
            info,
            target_count=0 if table is None else len(table.targets),
            read_only=table is not None and table.read_only,
        )

    async def wait(self, name: str, event_nr: int) -> DeviceInfo:
        device = self.find(name)
        await device.wait_event(event_nr)
        return self._info(device)  # a removal ends it without an error, as in the kernel (seen)

    async def deps(self, name: str) -> Sequence[tuple[int, int]]:
        device = self.find(name)
        return [] if device.live is None else device.live.deps()

    async def list(self) -> Sequence[DeviceInfo]:
        mounted = await self.listener.mounted()
        uses = Counter(number for device in self._registry for number in device.deps())
        devices = sorted(self._registry, key=lambda device: device.name)
        return [self._info(device, uses[device.major, device.minor], mounted) for device in devices]

    async def targets(self) -> Sequence[TargetVersion]:
        return TARGET_VERSIONS

    async def open(self, name: str) -> OpenDevice:
        device = self.find(name)
        if not device.announced:
            raise NoSuchDevice(f"{name}: the device has no live table")
        device.opened()
        return Handle(device)

    async def shut_down(self) -> None:
        """Remove every device, users before what they use, whoever still holds it open."""
        for device in self._registry:
            if device.suspended and any(
                self._registry.stands_on(pool, device) for pool in self.pools.devices() if pool is not device
            ):
                try:  # a pool above must be able to commit
                    await device.resume()
                except ThinfsError as error:
                    log.error("%s: resuming, for what stands on it: %s", device.name, error)
        while len(self._registry):
            device = next(d for d in reversed(list(self._registry)) if not self._registry.users_of(d))
            try:
                await self._destroy(device)
            except ThinfsError as error:
                log.error("%s: closing: %s", device.name, error)


def _line(target: Target, params: str) -> str:
    line = target.line
    return f"{line.start_sectors} {line.length_sectors} {line.target} {params}"


def _what_they_are(word: str, mount_dir: str) -> tuple[os.stat_result, os.stat_result | None] | None:
    """Of a path and of the mount; None where the path is none. In a thread: the answer may be this server's."""
    try:
        info = os.stat(word)
    except (OSError, ValueError):
        return None  # who opens it says why
    try:
        return info, os.stat(mount_dir)
    except OSError:
        return info, None


class Handle:
    """An open handle on a device (thinfs.dm.backend.OpenDevice): the edge, where callers wait."""

    def __init__(self, device: MappedDevice) -> None:
        self._device = device
        self._open = True

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes: short at the end of the device, as a block device reads."""
        length = min(length, self._device.size_bytes - offset)
        if length <= 0:
            return b""
        data = self._device.read_now(offset, length)
        return bytes((await do(self._device, Bio(Op.READ, offset, length))).data) if data is None else data

    async def write(self, offset: int, data: bytes) -> None:
        """All of `data`; NoSpace past the end of the device, as a block device answers."""
        size = self._device.size_bytes
        if offset + len(data) > size:
            raise NoSpace(f"{self._device.name}: write of {len(data)} bytes at {offset} passes its end, {size}")
        if not self._device.write_now(offset, data):
            await do(self._device, Bio(Op.WRITE, offset, len(data), data))

    async def discard(self, offset: int, length: int) -> None:
        size = self._device.size_bytes
        if offset + length > size:
            raise InvalidArgument(f"{self._device.name}: discard of {length} bytes at {offset} passes its end, {size}")
        await do(self._device, Bio(Op.DISCARD, offset, length))

    async def flush(self) -> None:
        await do(self._device, Bio(Op.FLUSH))

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._device.closed()
