"""Which devices somebody uses, and the removal of all that nobody does: what `stop` asks before it acts.

A device's open count has the tables of other devices in it; what is left after them are programs. A mount
of a loop device is not in it (the loop driver's own open does not count): the `holder` hook knows of it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.errors import ThinfsError

Holder: TypeAlias = Callable[[str], Awaitable[str | None]]  # who holds the device of that name, or None


async def nobody(_name: str) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Occupied:
    info: DeviceInfo
    by: str

    def __str__(self) -> str:
        return f"{self.info.name} ({self.by})"


async def open_devices(backend: Backend, holder: Holder = nobody) -> Sequence[Occupied]:
    """The devices that a program or a mount has open, in the order of their creation."""
    infos = await backend.list()
    by_tables = Counter[tuple[int, int]]()
    for info in infos:
        by_tables.update(set(await backend.deps(info.name)))
    occupied = []
    for info in infos:
        opened = info.open_count - by_tables[info.major, info.minor]
        if (by := await holder(info.name)) is not None:
            occupied.append(Occupied(info, by))
        elif opened > 0 and not any(other.inactive_table for other in infos):
            occupied.append(Occupied(info, f"open {opened} time{'s' * (opened > 1)}"))
    return occupied


async def remove_everything(backend: Backend) -> None:
    """Remove, the users of a device before the device, until nothing more goes. Open devices stay."""
    progress = True
    while progress:
        progress = False
        for info in reversed(await backend.list()):
            try:
                await backend.clear(info.name)
                await backend.remove(info.name)
            except ThinfsError:
                continue
            progress = True
