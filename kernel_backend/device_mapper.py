"""The kernel's device-mapper in this kernel: the calls of the seam, synchronous, answers fit for JSON.

Promises: the steps dmsetup takes (create, load, resume, and remove on failure), links in /dev/mapper.
Never: imports beyond the standard library and thinfs.dm.ioctl. The guest's agent serves this class over its
channel, the local backend calls it in place; failures are OSError with the kernel's errno.
"""

import contextlib
import errno
import time
from collections.abc import Sequence
from typing import Any, Final

from kernel_backend import device_nodes
from kernel_backend.control import Control, info_fields
from thinfs.dm.ioctl import (
    DEFERRED_REMOVE,
    NOFLUSH,
    PERSISTENT_DEV,
    QUERY_INACTIVE_TABLE,
    READONLY,
    SKIP_LOCKFS,
    STATUS_TABLE,
    SUSPEND,
    UUID,
    pack_string,
)

_REMOVAL_SECONDS: Final = 10.0


class KernelDeviceMapper:
    def __init__(self) -> None:
        self._control = Control()

    def close(self) -> None:
        self._control.close()

    def version(self) -> Sequence[int]:
        return list(self._control.ioctl("version").version)

    def create(
        self, name: str, table: str | None, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> dict[str, Any]:
        number: dict[str, Any] = {} if minor is None else {"flags": PERSISTENT_DEV, "dev": (0, minor)}
        answer = self._control.ioctl("create", name, uuid=uuid, **number)
        try:
            if table is not None:
                self.load(name, table, read_only)
                answer = self._control.ioctl("suspend", name)
            device_nodes.publish(name, answer.dev[1])
        except BaseException:
            self._control.ioctl("remove", name)
            device_nodes.withdraw(name)
            raise
        return self.info(name)

    def load(self, name: str, table: str, read_only: bool = False) -> None:
        self._control.load(name, table, flags=READONLY if read_only else 0)

    def clear(self, name: str) -> None:
        self._control.ioctl("table_clear", name)

    def suspend(self, name: str, noflush: bool = False, lockfs: bool = True) -> None:
        flags = SUSPEND | (NOFLUSH if noflush else 0) | (0 if lockfs else SKIP_LOCKFS)
        self._control.ioctl("suspend", name, flags=flags)

    def resume(self, name: str) -> None:
        self._control.ioctl("suspend", name)

    def remove(self, name: str, deferred: bool = False) -> None:
        self._control.ioctl("remove", name, flags=DEFERRED_REMOVE if deferred else 0)
        # A deferred removal that still waits keeps its link: the device is there.
        if not deferred or name not in self.names():
            device_nodes.withdraw(name)

    def rename(self, name: str, new_name: str) -> None:
        answer = self._control.ioctl("rename", name, payload=pack_string(new_name))
        device_nodes.withdraw(name)
        device_nodes.publish(new_name, answer.dev[1])

    def set_uuid(self, name: str, uuid: str) -> None:
        self._control.ioctl("rename", name, flags=UUID, payload=pack_string(uuid))

    def message(self, name: str, message: str, sector: int = 0) -> str:
        return self._control.message(name, message, sector)

    def status(self, name: str, noflush: bool = False, inactive: bool = False) -> str:
        flags = (NOFLUSH if noflush else 0) | (QUERY_INACTIVE_TABLE if inactive else 0)
        return self._control.table_status(name, flags=flags)

    def table(self, name: str, inactive: bool = False) -> str:
        return self._control.table_status(name, flags=STATUS_TABLE | (QUERY_INACTIVE_TABLE if inactive else 0))

    def info(self, name: str, inactive: bool = False) -> dict[str, Any]:
        return info_fields(self._control.ioctl("status", name, flags=QUERY_INACTIVE_TABLE if inactive else 0))

    def wait(self, name: str, event_nr: int) -> dict[str, Any]:
        """Blocks until the event number is another, or the device is removed."""
        return info_fields(self._control.ioctl("wait", name, event_nr=event_nr))

    def deps(self, name: str) -> Sequence[tuple[int, int]]:
        return self._control.deps(name)

    def names(self) -> Sequence[str]:
        return self._control.names()

    def list(self) -> Sequence[dict[str, Any]]:
        return [self.info(name) for name in self.names()]

    def targets(self) -> Sequence[Sequence[Any]]:
        return [[name, *version] for name, version in self._control.target_versions()]

    def node(self, name: str) -> str:
        """A path that opens the device: the kernel's own node, which needs neither udev nor a link."""
        return f"/dev/dm-{self.info(name)['minor']}"

    def remove_everything(self) -> Sequence[str]:
        """Remove all devices, stuck ones too; answers the names that would not go.

        A thin that still has I/O waiting gets an error table, as `dmsetup remove --force` does. A pool never:
        the kernel allows that too, and then closes its metadata under its thins.
        """
        for name in self.names():
            if self.info(name)["suspended"]:
                with contextlib.suppress(OSError):
                    self.resume(name)
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while (names := self.names()) and time.monotonic() < deadline:
            for name in self._on_top(names):
                try:
                    self.remove(name, deferred=True)
                    if name in self.names():  # still open: by I/O that waits, or is just ending
                        self._fail_io(name)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # a deferred removal got there first
                        raise
            if self.names() == names:
                time.sleep(0.001)
        return names

    def _on_top(self, names: Sequence[str]) -> Sequence[str]:
        """Those that no other mapped device uses."""
        used: set[tuple[int, int]] = set()
        numbers: dict[str, tuple[int, int]] = {}
        for name in names:
            with contextlib.suppress(OSError):
                info = self.info(name)
                numbers[name] = (info["major"], info["minor"])
                used.update(self._control.deps(name))
        return [name for name, number in numbers.items() if number not in used]

    def _fail_io(self, name: str) -> None:
        table = self.table(name)
        if not table or table.split()[2] in ("thin-pool", "error"):
            return
        length = sum(int(line.split()[1]) for line in table.splitlines())
        self.load(name, f"0 {length} error")
        self.suspend(name, noflush=True, lockfs=False)
        self.resume(name)
