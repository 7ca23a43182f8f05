"""Take all devices of a backend away at the end of a test, users before what they use."""

import contextlib

import trio
import trio.lowlevel

from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.errors import Busy, ThinfsError

_ROUNDS = 200  # a device may be busy for a moment after its last close


async def remove_devices(backend: Backend, *, keep: str = "\0") -> None:
    """Those whose names begin with `keep` stay. AssertionError names what would not go."""

    async def present() -> list[DeviceInfo]:
        return [info for info in await backend.list() if not info.name.startswith(keep)]

    for info in await present():
        if info.suspended:
            with contextlib.suppress(ThinfsError):
                await backend.resume(info.name)
    for _ in range(_ROUNDS):
        left = await present()
        if not left:
            return
        for info in reversed(left):
            with contextlib.suppress(Busy):
                await backend.remove(info.name)
        if len(await present()) == len(left):
            await trio.lowlevel.checkpoint()
    raise AssertionError(f"cannot be removed: {', '.join(info.name for info in await present())}")
