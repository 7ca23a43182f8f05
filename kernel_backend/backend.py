"""The seam over a kernel's device-mapper: thinfs.dm.backend on top of synchronous calls.

Promises: each call runs in a thread and, in a guest, in a thread there: one that waits (an event, a suspended
device, a pool out of space) delays no other. A cancelled call is abandoned: the kernel finishes it when it
can, a `wait` at the latest when its device is removed. Never: retries or interprets.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import trio

from kernel_backend.calls import DeviceMapperCalls
from kernel_backend.runner import Guest
from thinfs.dm.forwarding import ForwardingBackend

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


class KernelBackend(ForwardingBackend):
    """Implements thinfs.dm.backend.Backend. Over a guest: `KernelBackend(guest.threaded)`."""

    def __init__(self, calls: DeviceMapperCalls) -> None:
        self.calls = calls
        self._limiter = trio.CapacityLimiter(math.inf)  # waiting calls must not use up a limit of others

    @classmethod
    def of_guest(cls, guest: Guest) -> "KernelBackend":
        return cls(guest.threaded)

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def _pass_on(self, verb: str, /, **arguments: Any) -> Any:
        return await self.run(lambda: self.calls.verb(verb, **arguments))

    async def open(self, name: str) -> KernelDevice:
        handle = await self.run(lambda: self.calls.open(self.calls.node(name)))
        return KernelDevice(self, handle)
