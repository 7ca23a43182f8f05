"""How a backend of your own is held against the engine: `thinfs differential --backend your_module:your_object`.

The object is called without arguments and answers an async context manager of a thinfs.dm.backend.Backend, whose tables
name files. Here it is the engine itself, once as it is and once with a fault.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from thinfs.dm.backend import Backend
from thinfs.userspace.devices import DeviceMapper, open_device_mapper


@asynccontextmanager
async def other_engine() -> AsyncIterator[Backend]:
    async with open_device_mapper() as mapper:
        yield mapper


class Forgetful(DeviceMapper):
    """Says that it has deleted a thin, and has not."""

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        return "" if message.startswith("delete") else await super().message(name, message, sector=sector)


@asynccontextmanager
async def forgetful() -> AsyncIterator[Backend]:
    async with open_device_mapper() as mapper:
        mapper.__class__ = Forgetful
        yield mapper
