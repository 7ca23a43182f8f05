"""The seam over a kernel's device-mapper: thinfs.dm.backend on top of synchronous calls.

Promises: each call runs in a thread and, in a guest, in a thread there: one that waits (an event, a suspended
device, a pool out of space) delays no other. A cancelled call is abandoned: the kernel finishes it when it
can, a `wait` at the latest when its device is removed. Never: retries or interprets.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from kernel_backend.calls import DeviceMapperCalls
from kernel_backend.runner import Guest
from thinfs.dm.backend import DeviceInfo, TargetVersion

T = TypeVar("T")


class KernelDevice:
    """An open handle; its number is the guest's or this process's file descriptor."""

    def __init__(self, backend: "KernelBackend", handle: int) -> None:
        self._backend = backend
        self._handle = handle
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """Asked of the kernel in place: it never waits, and takes less than a switch to a thread."""
        return self._backend.calls.size_bytes(self._handle)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._backend.run(lambda: self._backend.calls.read(self._handle, offset, length))

    async def write(self, offset: int, data: bytes) -> None:
        await self._backend.run(lambda: self._backend.calls.write(self._handle, offset, data))

    async def discard(self, offset: int, length: int) -> None:
        await self._backend.run(lambda: self._backend.calls.discard(self._handle, offset, length))

    async def flush(self) -> None:
        await self._backend.run(lambda: self._backend.calls.flush(self._handle))

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            with trio.CancelScope(shield=True):  # as trio's own streams: closed even when cancelled
                await self._backend.run(lambda: self._backend.calls.close_handle(self._handle))


class KernelBackend:
    """Implements thinfs.dm.backend.Backend. Over a guest: `KernelBackend(guest.threaded)`."""

    def __init__(self, calls: DeviceMapperCalls) -> None:
        self.calls = calls
        self._limiter = trio.CapacityLimiter(math.inf)  # waiting calls must not use up a limit of others

    @classmethod
    def of_guest(cls, guest: Guest) -> "KernelBackend":
        return cls(guest.threaded)

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        return await self.run(lambda: self.calls.create(name, table, uuid=uuid, read_only=read_only, minor=minor))

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        await self.run(lambda: self.calls.load(name, table, read_only=read_only))

    async def clear(self, name: str) -> None:
        await self.run(lambda: self.calls.clear(name))

    async def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        await self.run(lambda: self.calls.suspend(name, noflush=noflush, lockfs=lockfs))

    async def resume(self, name: str) -> None:
        await self.run(lambda: self.calls.resume(name))

    async def remove(self, name: str, *, deferred: bool = False) -> None:
        await self.run(lambda: self.calls.remove(name, deferred=deferred))

    async def rename(self, name: str, new_name: str) -> None:
        await self.run(lambda: self.calls.rename(name, new_name))

    async def set_uuid(self, name: str, uuid: str) -> None:
        await self.run(lambda: self.calls.set_uuid(name, uuid))

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        return await self.run(lambda: self.calls.message(name, message, sector=sector))

    async def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        return await self.run(lambda: self.calls.status(name, noflush=noflush, inactive=inactive))

    async def table(self, name: str, *, inactive: bool = False) -> str:
        return await self.run(lambda: self.calls.table(name, inactive=inactive))

    async def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        return await self.run(lambda: self.calls.info(name, inactive=inactive))

    async def wait(self, name: str, event_nr: int) -> DeviceInfo:
        return await self.run(lambda: self.calls.wait(name, event_nr))

    async def deps(self, name: str) -> Sequence[tuple[int, int]]:
        return await self.run(lambda: self.calls.deps(name))

    async def list(self) -> Sequence[DeviceInfo]:
        return await self.run(self.calls.devices)

    async def targets(self) -> Sequence[TargetVersion]:
        return await self.run(self.calls.targets)

    async def open(self, name: str) -> KernelDevice:
        handle = await self.run(lambda: self.calls.open(self.calls.node(name)))
        return KernelDevice(self, handle)
