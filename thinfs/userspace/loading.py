"""What a line of a table gets while it becomes a target: where it stands, and how it finds the devices it names."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from thinfs.dm.table import TargetLine
from thinfs.userspace.backing import Backing
from thinfs.userspace.mapped_device import MappedDevice
from thinfs.userspace.pools import Pools


class Acquire(Protocol):
    async def __call__(self, word: str, *, read_only: bool = False) -> Backing:
        """The device below that a word of a table means, opened or shared. BackingMissing, Busy, NoSuchDevice."""


@dataclass(frozen=True, slots=True)
class Loading:
    line: TargetLine
    device: MappedDevice  # whose table it is
    alone: bool  # the only line of its table
    read_only: bool  # the table
    acquire: Acquire
    release: Callable[[Backing], None]
    check_present: Callable[[str], Awaitable[None]]
    users_of_device: Callable[[], Sequence[MappedDevice]]
    mapped_device_of: Callable[[str], MappedDevice | None]
    pools: Pools
    start: Callable[[Callable[[], Awaitable[None]]], None]  # a task of the device-mapper's

    @property
    def first_table(self) -> bool:
        """The device has had none yet."""
        return self.device.live is None
