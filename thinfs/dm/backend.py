"""The seam: device-mapper's own surface, in text, that every backend offers and every front end speaks.

Tables, messages and status lines are strings exactly as the kernel prints them, one target a line,
joined by newlines; typed values are had by parsing them with thinfs.dm. A refusal is a ThinfsError with
the kernel's errno. Names are plain names, never paths. Backends: userspace (in process, or through the
control socket), the kernel's dm on this machine, the kernel's dm in a guest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What DM_DEV_STATUS answers about one mapped device."""

    name: str
    uuid: str
    major: int
    minor: int
    open_count: int
    event_nr: int
    target_count: int  # of the live table, unless the inactive one was asked for
    suspended: bool
    read_only: bool
    live_table: bool
    inactive_table: bool
    deferred_remove: bool


@dataclass(frozen=True, slots=True)
class TargetVersion:
    name: str
    version: tuple[int, int, int]


class OpenDevice(Protocol):
    """An open handle on an active mapped device, counted in its open count until `aclose`.

    Offsets and lengths are bytes. I/O that must wait (a suspended device, a pool that queues for space)
    waits; a refusal is a ThinfsError (EIO, ENOSPC, EOPNOTSUPP).
    """

    @property
    def size_bytes(self) -> int:
        """The present length of the live table."""

    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes) -> None: ...

    async def discard(self, offset: int, length: int) -> None: ...

    async def flush(self) -> None:
        """Everything acknowledged before is durable, mappings included (an empty flush bio)."""

    async def aclose(self) -> None: ...


class Backend(Protocol):
    """One device-mapper."""

    async def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        """Create, load and resume; nothing is left behind on an error. With no table, create only.

        A minor number that is taken is NoSuchDevice (ENXIO), as the kernel answers.
        """

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        """Put `table` into the inactive slot (DM_TABLE_LOAD; dmsetup's load and reload)."""

    async def clear(self, name: str) -> None:
        """Drop the inactive table."""

    async def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        """Stop I/O; before that a file system mounted on it is frozen, unless noflush or not lockfs."""

    async def resume(self, name: str) -> None:
        """Swap in the inactive table, if any, and let I/O run."""

    async def remove(self, name: str, *, deferred: bool = False) -> None:
        """Busy while open, unless deferred: then it goes with its last close."""

    async def rename(self, name: str, new_name: str) -> None: ...

    async def set_uuid(self, name: str, uuid: str) -> None:
        """Of a device without one: InvalidArgument if it has one, Busy if another has this (dmsetup's --setuuid)."""

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        """Send a target message (or dm's own `@cancel_deferred_remove`); the answer, usually empty."""

    async def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        """Status lines, `start length target params`; commits a pool first unless noflush."""

    async def table(self, name: str, *, inactive: bool = False) -> str:
        """Table lines, `start length target params`."""

    async def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        """With `inactive`, `target_count` and `read_only` are those of the inactive table (0, False without one)."""

    async def wait(self, name: str, event_nr: int) -> DeviceInfo:
        """Return once the device's event number differs from `event_nr`."""

    async def deps(self, name: str) -> Sequence[tuple[int, int]]:
        """(major, minor) of the block devices the live table uses."""

    async def list(self) -> Sequence[DeviceInfo]:
        """All devices, by name."""

    async def targets(self) -> Sequence[TargetVersion]: ...

    async def open(self, name: str) -> OpenDevice: ...
