"""The machines of the kernel backend: a guest, and this machine's own kernel.

Promises: a disk is a linear device of the test's own over a raw one, so that it can be resized and made to fail under
a live pool. Raw ones are images of the guest, or loop devices over memory where discards are to be passed down.
"""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from kernel_backend.backend import KernelBackend
from kernel_backend.local import LocalDeviceMapper
from kernel_backend.runner import Guest
from kernel_backend.uml import GuestKernel
from thinfs.blockdevs import loop
from thinfs.dm.backend import Backend
from thinfs.units import SECTOR_BYTES

from .files import thin_check
from .removal import remove_devices
from .userspace_machines import DEFAULT_NO_SPACE_TIMEOUT, scratch_directory
from .workbench import Disk, Machine

DISK_PREFIX: Final = "disk-"
GUEST_IMAGE_BYTES: Final = 80 << 30
NR_GUEST_IMAGES: Final = 8
_NO_SPACE_TIMEOUT: Final = ("dm_thin_pool", "no_space_timeout")


@dataclass(frozen=True, slots=True)
class Raw:
    """What lies below a disk: `device` in tables, `node` to open there, `path` of the same bytes on this side."""

    device: str
    node: str
    path: str
    passes_discards: bool


class KernelDisk:
    def __init__(self, backend: KernelBackend, name: str, raw: Raw, word: str, size_bytes: int) -> None:
        self._backend = backend
        self._name = name
        self._raw = raw
        self._sectors = size_bytes // SECTOR_BYTES
        self.word = word
        self.passes_discards = raw.passes_discards

    async def resize(self, size_bytes: int) -> None:
        self._sectors = size_bytes // SECTOR_BYTES
        await self.work()

    async def fail(self, *, reads: bool = True, writes: bool = True) -> None:
        assert writes, "flakey of 6.1 cannot fail reads alone"
        below = f"{self._raw.device} 0"
        await self._swap("error" if reads else f"flakey {below} 0 1 1 error_writes")

    async def work(self) -> None:
        await self._swap(f"linear {self._raw.device} 0")

    async def _swap(self, target: str) -> None:
        await self._backend.load(self._name, f"0 {self._sectors} {target}")
        await self._backend.suspend(self._name, noflush=True)
        await self._backend.resume(self._name)

    async def read(self, offset: int, length: int) -> bytes:
        calls = self._backend.calls
        handle = calls.open(self._raw.node, read_only=True)
        try:
            return calls.read(handle, offset, length)
        finally:
            calls.close_handle(handle)

    async def write(self, offset: int, data: bytes) -> None:
        calls = self._backend.calls
        handle = calls.open(self._raw.node)
        try:
            calls.write(handle, offset, data)
        finally:
            calls.close_handle(handle)

    async def thin_check(self, *options: str) -> tuple[int, str]:
        return thin_check(self._path_to_check(), *options)

    def _path_to_check(self) -> str:
        """On this machine thin_check opens exclusively, and the linear device holds the raw one while it is there."""
        path, mapped = self._raw.path, f"/dev/mapper/{self._name}"
        return mapped if path == self._raw.node and os.path.exists(mapped) else path


class KernelMachine:
    """What both have in common; `raw` makes the next raw disk."""

    def __init__(self, backend: KernelBackend, kernel: tuple[int, int]) -> None:
        self._kernel_backend = backend
        self.kernel = kernel
        self._nr_disks = 0

    @property
    def backend(self) -> Backend:
        return self._kernel_backend

    def raw(self, size_bytes: int, *, discard: bool) -> Raw:
        raise NotImplementedError

    async def disk(self, size_bytes: int, *, discard: bool = False) -> Disk:
        raw = self.raw(size_bytes, discard=discard)
        self._nr_disks += 1
        name = f"{DISK_PREFIX}{self._nr_disks}"
        table = f"0 {size_bytes // SECTOR_BYTES} linear {raw.device} 0"
        info = await self.backend.create(name, table)
        return KernelDisk(self._kernel_backend, name, raw, f"{info.major}:{info.minor}", size_bytes)

    async def elapse(self, seconds: float) -> None:
        await trio.sleep(seconds)


class GuestMachine(KernelMachine):
    def __init__(self, guest: Guest) -> None:
        super().__init__(KernelBackend.of_guest(guest), _version(guest.kernel.name))
        self._guest = guest
        self._free = list(guest.images)

    def raw(self, size_bytes: int, *, discard: bool) -> Raw:
        if discard:
            node, device = self._guest.loop_create(4 * size_bytes)
            return Raw(device, node, "", True)
        image = self._free.pop(0)
        return Raw(image.device, image.node, image.path, False)

    async def set_no_space_timeout(self, seconds: int) -> None:
        self._guest.set_parameter(*_NO_SPACE_TIMEOUT, str(seconds))

    async def clean(self) -> None:
        try:
            await remove_devices(self.backend, keep=DISK_PREFIX)
            self._guest.reset()
            await self.set_no_space_timeout(DEFAULT_NO_SPACE_TIMEOUT)
        except BaseException:
            self._guest.kill()  # the next test gets another one
            raise


class LocalMachine(KernelMachine):
    def __init__(self, mapper: LocalDeviceMapper, directory: Path, stack: contextlib.ExitStack) -> None:
        super().__init__(KernelBackend(mapper), _version(os.uname().release))
        self._directory = directory
        self._stack = stack

    def raw(self, size_bytes: int, *, discard: bool) -> Raw:
        path = self._directory / f"raw{self._nr_disks}"
        with path.open("xb") as file:
            file.truncate(max(4 * size_bytes, 64 << 20))
        device = loop.attach(str(path), read_only=False)
        self._stack.callback(partial(loop.detach, device, deferred=True))
        return Raw(f"{loop.LOOP_MAJOR}:{device.number}", device.path, device.path, True)

    async def set_no_space_timeout(self, seconds: int) -> None:
        module, name = _NO_SPACE_TIMEOUT
        await trio.Path(f"/sys/module/{module}/parameters/{name}").write_text(str(seconds))

    async def clean(self) -> None:
        try:
            await remove_devices(self.backend, keep=DISK_PREFIX)
        finally:
            await remove_devices(self.backend)
            await self.set_no_space_timeout(DEFAULT_NO_SPACE_TIMEOUT)


def _version(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(minor)


class GuestSupply:
    """A guest with enough images for any test of the suite; another one when a test has left it unfit."""

    def __init__(self, kernel: GuestKernel) -> None:
        self._kernel = kernel
        self._guest: Guest | None = None

    def fit(self) -> Guest:
        if self._guest is None or not self._guest.running:
            self.close()
            self._guest = Guest(self._kernel, images=[GUEST_IMAGE_BYTES] * NR_GUEST_IMAGES, memory_mb=256)
        return self._guest

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None


@contextlib.contextmanager
def guest_supply(kernel: GuestKernel) -> Iterator[GuestSupply]:
    supply = GuestSupply(kernel)
    try:
        yield supply
    finally:
        supply.close()


@contextlib.asynccontextmanager
async def guest_machine(supply: GuestSupply) -> AsyncIterator[Machine]:
    guest = supply.fit()
    for image in guest.images:
        image.blank()
    guest.kernel_log()
    yield GuestMachine(guest)


@contextlib.asynccontextmanager
async def local_machine() -> AsyncIterator[Machine]:
    directory = scratch_directory()
    mapper = LocalDeviceMapper()
    try:
        others = [info.name for info in mapper.list()]
        assert not others, f"this machine's device-mapper has devices, and the suite removes all it finds: {others}"
        with contextlib.ExitStack() as stack:
            yield LocalMachine(mapper, directory, stack)
    finally:
        mapper.close()
        shutil.rmtree(directory)
