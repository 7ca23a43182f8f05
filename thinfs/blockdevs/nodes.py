"""Block devices for mapped devices, as root: a loop device over DIR/NAME and the link /dev/mapper/NAME.

Listens to the device-mapper (DeviceListener). Promises: both are gone when the device is; a mounted or open
loop device makes the removal Busy, naming it; what a crashed server left is cleaned away first. Where
loop devices or the directory cannot be had: one line in the log, and the files alone. Every touch of
DIR/NAME is in a thread, because this very process answers for it.
"""

import logging
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import trio

from thinfs.blockdevs import file_system, loop
from thinfs.blockdevs.agent import Agent
from thinfs.blockdevs.loop import InUse, LoopDevice
from thinfs.dead_server import FS_TYPE, resolved
from thinfs.errors import Busy
from thinfs.mountinfo import mounted_on

log = logging.getLogger(__name__)

T = TypeVar("T")

# Threads of our own: these calls wait for answers of this process, which may take threads of trio's common ones.
_LIMITER: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("loop device calls")


def _threads() -> trio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(64)
        _LIMITER.set(limiter)
        return limiter


MAPPER_DIR: Final = "/dev/mapper"
_THAW_SECONDS: Final = 10


class NamedDevice(Protocol):
    """Of a mapped device, what is needed here; `shown_as` is told to it: the number of its loop device."""

    shown_as: tuple[int, int] | None

    @property
    def name(self) -> str: ...

    @property
    def read_only(self) -> bool: ...

    def opened(self) -> None: ...

    def closed(self) -> None: ...


def available(mapper_dir: str = MAPPER_DIR) -> str | None:
    """Why there can be no block devices here, or None."""
    if os.geteuid() != 0:
        return "not root"
    if os.path.exists(f"{mapper_dir}/control") and _kernel_has_device_mapper():
        return f"the kernel's device-mapper owns {mapper_dir}"
    if not os.path.exists(loop.CONTROL):
        return f"{loop.CONTROL} is missing; modprobe loop"
    return None


def _kernel_has_device_mapper() -> bool:
    """The node alone says little: the real dmsetup makes it even on a kernel without."""
    with open("/proc/misc") as listing:
        return any(line.split()[1:] == ["device-mapper"] for line in listing)


class _Freeze:
    """One freeze of a file system. Whoever began it claims it, or its thread undoes it."""

    def __init__(self, agent: Agent, device: LoopDevice) -> None:
        self._agent = agent
        self._device = device
        self._lock = threading.Lock()
        self._given_up = False
        self._frozen = False

    def begin(self) -> None:
        frozen = self._agent.call("freeze", self._device.number, os.getpid())
        with self._lock:
            if not self._given_up:
                self._frozen = frozen
                return
        if frozen:
            self._agent.call("thaw", self._device.number)

    def claim(self) -> bool:
        """Is it frozen? If not now, then it will not stay so."""
        with self._lock:
            self._given_up = not self._frozen
            return not self._given_up

    def end(self) -> None:
        frozen, self._frozen = self._frozen, False
        if frozen:
            self._agent.call("thaw", self._device.number)


class Nodes:
    """The loop devices and links of one server."""

    def __init__(self, mount_dir: str, *, mapper_dir: str = MAPPER_DIR) -> None:
        self._mount_dir = mount_dir
        self._mapper_dir = mapper_dir
        self._agent = Agent(mount_dir)
        self._loops: dict[str, LoopDevice] = {}
        self._devices: dict[str, NamedDevice] = {}
        self._frozen: dict[str, _Freeze] = {}
        self._going: set[NamedDevice] = set()  # removed when their last user lets go: till then one open, counted

    def close(self) -> None:
        """No call is made after it."""
        self._agent.close()

    async def _call(self, name: str, *arguments: Any, abandon_on_cancel: bool = False) -> Any:
        """One of `agent_process`, which touches what may wait for this process."""
        self._agent.ensure()
        return await _in_thread(self._agent.call, name, *arguments, abandon_on_cancel=abandon_on_cancel)

    def loop_of(self, name: str) -> LoopDevice | None:
        return self._loops.get(name)

    async def holder(self, name: str) -> str | None:
        """How the block device of that name is in use beyond the open count, or None."""
        device = self._loops.get(name)
        if device is not None and await self._call("mounted", device.number):
            return f"{device.path} is mounted"
        return None

    def check_new_name(self, name: str) -> None:
        """Busy if the link of that name is another server's: whoever went by it would come to the wrong volume. Asks
        no device, so it may be called from the trio thread."""
        path = os.path.join(self._mapper_dir, name)
        try:
            device = loop.by_path(os.readlink(path))
        except OSError:
            return
        file = None if device is None else loop.backing_path(device)
        if file is None or name in self._loops:
            return
        directory = os.path.dirname(file)
        entry = mounted_on(directory)
        if entry is not None and entry.fs_type == FS_TYPE and directory != resolved(self._mount_dir):
            raise Busy(f"{name}: {path} leads to the device of that name of another server, that of {directory}")

    async def activated(self, device: NamedDevice) -> None:
        path = os.path.join(self._mount_dir, device.name)
        try:
            number, file = await self._call("attach", path, device.read_only)
        except OSError as error:
            log.warning("%s: no loop device: %s", device.name, error)
            return
        attached = LoopDevice(number, None if file is None else (file[0], file[1]))
        # The loop driver's own open of the file is not a use of the device.
        device.closed()
        self._loops[device.name], self._devices[device.name] = attached, device
        device.shown_as = (loop.LOOP_MAJOR, attached.number)
        log.info("%s: %s", device.name, attached.path)
        await _in_thread(self._link, device.name, attached)

    async def resized(self, device: NamedDevice) -> None:
        attached = self._loops.get(device.name)
        if attached is not None:
            try:
                await self._call("resize", attached.number)
            except OSError as error:
                log.warning("%s: %s keeps its size: %s", device.name, attached.path, error)

    async def mounted(self) -> Collection[str]:
        """The devices with a file system mounted on them whose use is not counted in another way."""
        if not self._loops:
            return ()
        numbers = await _in_thread(file_system.mounted_loops)
        return {
            name
            for name, attached in self._loops.items()
            if attached.number in numbers and self._devices[name] not in self._going
        }

    async def before_suspend(self, device: NamedDevice, *, lockfs: bool = True) -> None:
        """Freeze the file system on the loop device if there is one, else sync: as device-mapper's own suspend does.

        Both may wait for space. Given up meanwhile, a freeze that comes about later is undone by its own thread.
        """
        attached = self._loops.get(device.name)
        if attached is None:
            return
        try:
            if lockfs and attached.number in await _in_thread(file_system.mounted_loops):
                self._agent.ensure()
                freeze = _Freeze(self._agent, attached)
                try:
                    await _in_thread(freeze.begin, abandon_on_cancel=True)
                finally:
                    if freeze.claim():
                        self._frozen[device.name] = freeze
            if device.name not in self._frozen:
                await self._call("sync", attached.number, abandon_on_cancel=True)
        except OSError as error:
            log.warning("%s: %s cannot be synced: %s", device.name, attached.path, error)

    async def write_dirty_pages(self, name: str) -> None:
        """What was dirtied through mappings of the device's file reaches the device; may wait as its writes wait."""
        try:
            await self._call("write_dirty_pages", os.path.join(self._mount_dir, name), abandon_on_cancel=True)
        except OSError as error:
            log.debug("%s: its dirty pages: %s", name, error)

    def frozen(self) -> list[str]:
        """The devices whose file system waits to be thawed."""
        return list(self._frozen)

    async def resumed(self, device: NamedDevice) -> None:
        """I/O runs again: the end of what `before_suspend` began."""
        freeze = self._frozen.pop(device.name, None)
        if freeze is None:
            return
        try:
            self._agent.ensure()
            with trio.move_on_after(_THAW_SECONDS, shield=True) as limit:  # a pool that is suspended holds it up
                await _in_thread(freeze.end, abandon_on_cancel=True)
            if limit.cancelled_caught:
                log.warning("%s: its file system is thawed when I/O runs again", device.name)
        except OSError as error:
            log.warning("%s: its file system cannot be thawed: %s", device.name, error)

    async def before_remove(self, device: NamedDevice, *, deferred: bool = False) -> None:
        """Raises Busy while the loop device is in use; else neither it nor the link is there afterwards.

        If `deferred`, a loop device in use is marked to go with its last user, and is an open of the device till
        then: its release is what brings the removal about.
        """
        attached = self._loops.get(device.name)
        if attached is None:
            return
        try:
            if await self._call("is_same", attached.number, attached.file):
                device.opened()  # counted again, because its release will be
                await self._detach(device, attached, deferred=deferred)
        except OSError as error:
            raise Busy(f"{device.name}: {attached.path} cannot be detached: {error.strerror}") from None
        del self._loops[device.name], self._devices[device.name]
        device.shown_as = None
        self._going.discard(device)
        await _in_thread(self._unlink, device.name, attached)

    async def _detach(self, device: NamedDevice, attached: LoopDevice, *, deferred: bool) -> None:
        try:
            await self._call("detach", attached.number, deferred)
        except InUse as error:
            if deferred:
                self._going.add(device)
            else:
                device.closed()
            raise Busy(f"{device.name}: {error}") from None
        except (OSError, trio.Cancelled):  # cancelled before it was begun, never within
            device.closed()
            raise

    async def renamed(self, device: NamedDevice, old_name: str) -> None:
        attached = self._loops.pop(old_name, None)
        if attached is not None:
            self._loops[device.name] = attached
            self._devices[device.name] = self._devices.pop(old_name)
            if old_name in self._frozen:
                self._frozen[device.name] = self._frozen.pop(old_name)
            await _in_thread(self._unlink, old_name, attached)
            await _in_thread(self._link, device.name, attached)

    async def detach_all(self) -> None:
        """At the end of the server: what is still in use goes with its last user. May be cancelled, for writes that
        wait for space keep a loop device from being let go."""
        for name, attached in list(self._loops.items()):
            with suppress(OSError):
                if await self._call("mounted", attached.number, abandon_on_cancel=True):
                    log.warning("%s: %s is mounted; its I/O fails from now on", name, attached.path)
                if await self._call("is_same", attached.number, attached.file, abandon_on_cancel=True):
                    self._devices[name].opened()
                    with suppress(InUse):
                        await self._call("detach", attached.number, True, abandon_on_cancel=True)
            await _in_thread(self._unlink, name, attached)
        self._loops.clear()
        self._devices.clear()
        self._going.clear()

    async def clean_stale(self) -> None:
        """Before the first device: the loop devices and links that a server of this directory left."""
        self._agent.ensure()
        await _in_thread(self._clean_stale)

    def _clean_stale(self) -> None:
        links = _links_in(self._mapper_dir)
        stale = {device.path: device for device in loop.attached_under(os.path.realpath(self._mount_dir))}
        for path, target in links.items():  # the dead mount may be gone, and then the file's path says less
            device = loop.by_path(target)
            if device is not None and self._agent.call("is_orphan", device.number, os.path.basename(path)):
                stale[target] = device
        for device in stale.values():
            try:
                mounted = self._agent.call("mounted", device.number)
                if mounted and self._agent.call("thaw_abandoned", device.number):
                    log.warning("%s: the file system on it was frozen by a suspend: thawed", device.path)
                self._agent.call("abandon", device.number)
            except OSError as error:
                log.warning("%s: left by a server that ended badly, cannot be detached: %s", device.path, error)
                continue
            when = "goes with its mount" if mounted else "detached"
            log.warning("%s: left by a server that ended badly: %s", device.path, when)
        for path, target in links.items():
            device = loop.by_path(target)
            if device is not None and (target in stale or loop.backing_path(device) is None):
                with suppress(OSError):  # another server has removed it, or has its own there
                    if os.readlink(path) == target:
                        os.unlink(path)
                        log.warning("%s: removed, it led to %s", path, target)

    def _link(self, name: str, attached: LoopDevice) -> None:
        path = os.path.join(self._mapper_dir, name)
        try:
            os.makedirs(self._mapper_dir, exist_ok=True)
            if os.path.islink(path):
                old = loop.by_path(os.readlink(path))
                if old is not None and loop.backing_path(old) is None:
                    os.unlink(path)
            os.symlink(attached.path, path)
        except OSError as error:
            log.warning("%s: no link: %s; the device is %s", path, error.strerror, attached.path)

    def _unlink(self, name: str, attached: LoopDevice) -> None:
        path = os.path.join(self._mapper_dir, name)
        with suppress(OSError):  # not there, or not a link
            if os.readlink(path) == attached.path:
                os.unlink(path)


def _links_in(directory: str) -> dict[str, str]:
    """Path and target of each; other servers make and remove theirs meanwhile."""
    links = {}
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            with suppress(OSError):  # no link, or no longer there
                links[entry.path] = os.readlink(entry.path)
    return links


async def _in_thread(function: Callable[..., T], *arguments: object, abandon_on_cancel: bool = False) -> T:
    return await trio.to_thread.run_sync(
        lambda: function(*arguments), limiter=_threads(), abandon_on_cancel=abandon_on_cancel
    )
