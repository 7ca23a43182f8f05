"""Device-mapper in a process: named devices and their tables, behind the seam.

Promises: the kernel's checks, in its order, with its errno; a refusal leaves everything as it was. Never
blocks the event loop. `open_device_mapper` is the way in: leaving it suspends, commits and closes every pool.
Source: behaviour reference; clients.md for what programs rely on.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

import trio

from thinfs.dm.backend import DeviceInfo, OpenDevice, TargetVersion
from thinfs.dm.message import split_message
from thinfs.dm.table import TargetLine, ThinArguments, parse_decimal, parse_table
from thinfs.errors import (
    BackingMissing,
    Busy,
    InvalidArgument,
    NoSuchDevice,
    ThinfsError,
    prefixed,
)
from thinfs.pool.thin import Origin
from thinfs.units import bytes_to_sectors
from thinfs.userspace.backing import Backing, BackingDevices, mapped_name, mapped_number
from thinfs.userspace.blocking import run_blocking
from thinfs.userspace.mapped_backing import MappedBacking
from thinfs.userspace.mapped_device import MappedDevice, Table
from thinfs.userspace.pools import Pools
from thinfs.userspace.targets import (
    TARGET_VERSIONS,
    ErrorTarget,
    LinearOverThin,
    LinearTarget,
    Target,
    ThinTarget,
    ZeroTarget,
)

log = logging.getLogger("thinfs.dm")

MAX_NAME_BYTES: Final = 127
MAX_UUID_BYTES: Final = 128
MAX_MINOR: Final = (1 << 20) - 1
_FIRST_INODE: Final = 2  # 1 is the mount's root
CANCEL_DEFERRED_REMOVE: Final = "@cancel_deferred_remove"


class DeviceListener(Protocol):
    """What a front end wants to know, called within the operation.

    `before_suspend` is not called for a noflush suspend: nothing is flushed then (it might wait for space). `resumed`
    is called once I/O runs again. `mounted` names the devices with a file system mounted on them: an open each.
    `before_remove` may refuse with Busy; if `deferred`, it has then counted its use as one more open of the device.
    """

    async def activated(self, device: MappedDevice) -> None: ...

    async def resized(self, device: MappedDevice) -> None: ...

    async def before_suspend(self, device: MappedDevice, *, lockfs: bool) -> None: ...

    async def resumed(self, device: MappedDevice) -> None: ...

    async def mounted(self) -> Collection[str]: ...

    async def before_remove(self, device: MappedDevice, *, deferred: bool) -> None: ...

    async def removed(self, device: MappedDevice) -> None: ...

    async def renamed(self, device: MappedDevice, old_name: str) -> None: ...


class NoListener:
    """For a device-mapper without front ends: in tests, in tools."""

    async def activated(self, device: MappedDevice) -> None:
        return

    async def resized(self, device: MappedDevice) -> None:
        return

    async def before_suspend(self, device: MappedDevice, *, lockfs: bool) -> None:
        return

    async def resumed(self, device: MappedDevice) -> None:
        return

    async def mounted(self) -> Collection[str]:
        return ()

    async def before_remove(self, device: MappedDevice, *, deferred: bool) -> None:
        return

    async def removed(self, device: MappedDevice) -> None:
        return

    async def renamed(self, device: MappedDevice, old_name: str) -> None:
        return


@asynccontextmanager
async def open_device_mapper(
    mount_dir: str = "/nonexistent", *, listener: DeviceListener | None = None, major: int | None = None
) -> AsyncIterator["DeviceMapper"]:
    """A device-mapper for the body of the `with`; afterwards every pool is committed and closed."""
    async with trio.open_nursery() as nursery:
        mapper = DeviceMapper(nursery, mount_dir, listener or NoListener(), major or unused_major())
        try:
            yield mapper
        finally:
            with trio.CancelScope(shield=True):
                await mapper.shut_down()
            nursery.cancel_scope.cancel()


def unused_major() -> int:
    """A block major no driver of this machine has, 254 (what dm usually gets) if it is free."""
    try:
        with open("/proc/devices") as listing:
            text = listing.read().partition("Block devices:")[2]
    except OSError:
        text = ""
    taken = {int(line.split()[0]) for line in text.splitlines() if line.strip()}
    return next(major for major in range(254, 0, -1) if major not in taken)


class DeviceMapper:
    """The userspace backend of the seam (thinfs.dm.backend.Backend), in process."""

    def __init__(self, nursery: trio.Nursery, mount_dir: str, listener: DeviceListener, major: int) -> None:
        self.mount_dir = mount_dir
        self.major = major
        self.listener = listener
        self._nursery = nursery
        self._devices: dict[str, MappedDevice] = {}
        self._next_inode = _FIRST_INODE
        self._backings = BackingDevices()
        self.pools = Pools(self._backings, self._acquire, nursery, self._users_of)

    # -- looking up --------------------------------------------------------------------------------------

    def find(self, name: str) -> MappedDevice:
        """The device of that name; NoSuchDevice (ENXIO) names it."""
        try:
            return self._devices[name]
        except KeyError:
            raise NoSuchDevice(f"{name}: no such device") from None

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
        return [name for name, device in self._devices.items() if device.announced]

    def lookup(self, name: str) -> MappedDevice | None:
        device = self._devices.get(name)
        return device if device is not None and device.announced else None

    def _mapped_device_of(self, word: str) -> MappedDevice | None:
        """The device of ours that a word of a table means, or None."""
        number = mapped_number(word)
        if number is not None:
            return next((d for d in self._devices.values() if (d.major, d.minor) == number), None)
        name = mapped_name(word, self.mount_dir)
        return None if name is None else self._devices.get(name)

    async def _acquire(self, word: str, *, read_only: bool = False) -> Backing:
        """The backing device that a word of a table means; one of ours must be able to carry another."""
        mapped = self._mapped_device_of(word)
        if mapped is None:
            return await run_blocking(partial(self._backings.acquire, word, read_only=read_only))
        lower = MappedBacking(mapped)
        if not read_only and not lower.is_writable:
            raise InvalidArgument(f"{mapped.name}: a device of its targets cannot carry another in the same server")
        return self._backings.acquire_mapped(mapped.major, mapped.minor, lambda: lower, read_only=read_only)

    def _users_of(self, device: MappedDevice) -> list[MappedDevice]:
        """Devices with a table, live or inactive, that names `device`."""
        number = (device.major, device.minor)
        return [other for other in self._devices.values() if number in other.deps()]

    def _open_count(self, device: MappedDevice) -> int:
        return device.handles + len(self._users_of(device))

    def _info(self, device: MappedDevice, nr_users: int | None = None, mounted: Collection[str] = ()) -> DeviceInfo:
        if nr_users is None:
            nr_users = len(self._users_of(device))
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
        self._check_new_name(name)
        self._check_new_uuid(name, uuid)
        minors = {device.minor for device in self._devices.values()}
        if minor is None:
            minor = next(minor for minor in range(len(minors) + 1) if minor not in minors)
        elif minor in minors or not 0 <= minor <= MAX_MINOR:
            raise NoSuchDevice(f"{name}: minor number {minor} is taken, or not one of 0 to {MAX_MINOR}")
        device = MappedDevice(name, uuid, self.major, minor, self._next_inode)
        self._next_inode += 1
        device.on_last_close = partial(self._closed, device)
        self._devices[name] = device
        if table is not None:
            try:
                await self.load(name, table, read_only=read_only)
                await self.resume(name)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._destroy(device)
                raise
        return self._info(device)

    def _check_new_name(self, name: str) -> None:
        if not name or "/" in name or len(name.encode()) > MAX_NAME_BYTES or name in (".", "..") or "\0" in name:
            raise InvalidArgument(f"{name!r}: not a device name (1 to {MAX_NAME_BYTES} bytes, no slash)")
        if name in self._devices:
            raise Busy(f"{name}: a device of that name exists")

    def _check_new_uuid(self, name: str, uuid: str) -> None:
        if len(uuid.encode("utf-8", "surrogateescape")) > MAX_UUID_BYTES:
            raise InvalidArgument(f"{name}: uuid of {len(uuid)} bytes is longer than {MAX_UUID_BYTES}")
        if uuid and any(device.uuid == uuid for device in self._devices.values()):
            raise Busy(f"{name}: uuid {uuid} is in use")

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        async with self._locked(name) as device:
            lines = parse_table(table)
            targets: list[Target] = []
            try:
                for line in lines:
                    targets.append(await self._load_target(device, line, alone=len(lines) == 1, read_only=read_only))
                immutable = device.live is not None and device.live.pool_target is not None
                # error is the wildcard: a pool may be replaced by it, as `remove --force` does (seen)
                if immutable and not {"thin-pool", "error"} & {line.target for line in lines}:
                    raise InvalidArgument(f"{name}: can't replace immutable target type thin-pool by {lines[0].target}")
            except BaseException:
                with trio.CancelScope(shield=True):
                    for target in targets:
                        await target.close()
                raise
            old, device.inactive = device.inactive, Table(targets, read_only=read_only)
            if old is not None:
                await old.close()

    async def _load_target(self, device: MappedDevice, line: TargetLine, *, alone: bool, read_only: bool) -> Target:
        match line.target:
            case "thin-pool":
                if not alone:
                    raise InvalidArgument("thin-pool: target type thin-pool must appear alone in table")
                if read_only:
                    raise InvalidArgument("thin-pool: target type may not be included in a read-only table")
                return await self.pools.load(device, line)
            case "thin":
                return await self._load_thin(line)
            case "linear":
                return await self._load_linear(line)
            case "zero" | "error":
                return ZeroTarget(line) if line.target == "zero" else ErrorTarget(line)
        raise InvalidArgument(f"{line.target}: unknown target type")

    async def _load_thin(self, line: TargetLine) -> ThinTarget:
        arguments = ThinArguments.parse(line.params)
        async with AsyncExitStack() as stack:
            origin, origin_label, origin_number = None, None, None
            if arguments.origin_dev is not None:
                origin, origin_label, origin_number = await self._open_origin(arguments.origin_dev, stack)
            pool_device = self._mapped_device_of(arguments.pool_dev)
            if pool_device is None:
                await self._check_present(arguments.pool_dev)
            dev_id = arguments.dev_id()
            if pool_device is None:
                raise InvalidArgument(f"thin: Couldn't get pool mapped device: {arguments.pool_dev}")
            active = self.pools.of_device(pool_device)
            if active is None:
                raise InvalidArgument(f"thin: Couldn't find pool object: {pool_device.name} is not a pool")
            pool_number = (pool_device.major, pool_device.minor)
            thin = active.worker.pool.open_thin(dev_id, origin)
            return ThinTarget(
                line, active.worker, thin, pool_number, origin_label, origin_number, release=stack.pop_all().aclose
            )

    async def _open_origin(self, word: str, stack: AsyncExitStack) -> tuple[Origin, str, tuple[int, int] | None]:
        try:
            backing = await self._acquire(word, read_only=True)
        except ThinfsError as error:
            raise prefixed("thin: Error opening origin device", error) from None
        stack.callback(self._backings.release, backing)
        return backing.device, backing.device.label, backing.block_number

    async def _check_present(self, word: str) -> None:
        """A path that names nothing is ENODEV before the id is looked at, as in the kernel."""
        present = mapped_number(word) is not None or await trio.Path(word).exists()
        if mapped_name(word, self.mount_dir) is not None or not present:
            raise BackingMissing(f"thin: Error opening pool device: {word}: no such device")

    async def _load_linear(self, line: TargetLine) -> LinearTarget | LinearOverThin:
        if len(line.params) != 2:
            raise InvalidArgument(f"linear: Invalid argument count: {len(line.params)}, expected 2")
        offset = parse_decimal(line.params[1])
        if offset is None:
            raise InvalidArgument(f"linear: Invalid device sector: {line.params[1]}")
        try:
            lower = self._mapped_device_of(line.params[0])
            if lower is not None and not MappedBacking(lower).is_writable:
                self._check_fits(line, offset, lower.size_bytes)
                return LinearOverThin(line, lower, offset)
            backing = await self._acquire(line.params[0])
        except ThinfsError as error:
            raise prefixed("linear: Device lookup failed", error) from None
        try:
            self._check_fits(line, offset, backing.device.size_bytes)
        except BaseException:
            self._backings.release(backing)
            raise
        return LinearTarget(line, backing, offset, self._backings.release)

    def _check_fits(self, line: TargetLine, offset_sectors: int, size_bytes: int) -> None:
        available = bytes_to_sectors(size_bytes)
        if offset_sectors + line.length_sectors > available:
            raise InvalidArgument(
                f"linear: {line.params[0]} too small for target: start={offset_sectors}, len={line.length_sectors}, "
                f"dev_size={available}"
            )

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
            old = device.swap_in(table)
            device.suspended = True
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
        users = ", ".join(user.name for user in self._users_of(device))
        parts = [f"in use by {users}"] if users else []
        if device.handles:
            parts.append(f"open {device.handles} times")
        return " and ".join(parts)

    async def _destroy(self, device: MappedDevice) -> None:
        """Take the device away: nothing opens it any more, its I/O has ended or ends now."""
        device.announced = False
        del self._devices[device.name]
        used = [other for other in self._devices.values() if (other.major, other.minor) in device.deps()]
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
        if self._devices.get(device.name) is device and device.deferred_remove:
            try:
                await self.remove(device.name)
            except ThinfsError as error:
                log.error("%s: deferred removal: %s", device.name, error)

    async def rename(self, name: str, new_name: str) -> None:
        async with self._locked(name) as device:
            self._check_new_name(new_name)
            self._devices = {new_name if key == name else key: value for key, value in self._devices.items()}
            device.name = new_name
            if device.announced:
                with trio.CancelScope(shield=True):
                    await self.listener.renamed(device, name)

    async def set_uuid(self, name: str, uuid: str) -> None:
        async with self._locked(name) as device:
            self._check_new_uuid(name, uuid)
            if device.uuid or not uuid:
                raise InvalidArgument(f"{name}: its uuid cannot be changed from {device.uuid!r} to {uuid!r}")
            device.uuid = uuid

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
        targets = [] if device.live is None else device.live.targets
        return list(dict.fromkeys(number for target in targets for number in target.deps()))

    async def list(self) -> Sequence[DeviceInfo]:
        mounted = await self.listener.mounted()
        uses = Counter(number for device in self._devices.values() for number in device.deps())
        devices = [device for _, device in sorted(self._devices.items())]
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
        while self._devices:
            device = next(d for d in reversed(self._devices.values()) if not self._users_of(d))
            try:
                await self._destroy(device)
            except ThinfsError as error:
                log.error("%s: closing: %s", device.name, error)


def _line(target: Target, params: str) -> str:
    line = target.line
    return f"{line.start_sectors} {line.length_sectors} {line.target} {params}"


class Handle:
    """An open handle on a device (thinfs.dm.backend.OpenDevice)."""

    def __init__(self, device: MappedDevice) -> None:
        self._device = device
        self._open = True
        self.read = device.read
        self.write = device.write
        self.discard = device.discard
        self.flush = device.flush

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._device.closed()
