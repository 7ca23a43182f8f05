"""device-mapper's ioctls as calls on an open /dev/mapper/control; the buffers are thinfs.dm.ioctl's.

Promises: failures are OSError with the kernel's errno; safe from several threads, none of which holds the
interpreter lock while it waits. Never: imports beyond the standard library and thinfs.dm.ioctl (the guest's
agent runs this file as well as the local backend), retries, or resends a request that may have had an effect.
"""

import ctypes
import os
from typing import Any, Final

from thinfs.dm import ioctl
from thinfs.dm.ioctl import Header

_FIRST_BYTES: Final = 16384
_MOST_BYTES: Final = 1 << 24
_QUERIES: Final = frozenset({"version", "list_devices", "wait", "table_deps", "table_status", "list_versions"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def info_fields(header: Header) -> dict[str, Any]:
    """The fields of thinfs.dm.backend.DeviceInfo, by name."""
    return {
        "name": header.name,
        "uuid": header.uuid,
        "major": header.dev[0],
        "minor": header.dev[1],
        "open_count": header.open_count,
        "event_nr": header.event_nr,
        "target_count": header.target_count,
        "suspended": bool(header.flags & ioctl.SUSPEND),
        "read_only": bool(header.flags & ioctl.READONLY),
        "live_table": bool(header.flags & ioctl.ACTIVE_PRESENT),
        "inactive_table": bool(header.flags & ioctl.INACTIVE_PRESENT),
        "deferred_remove": bool(header.flags & ioctl.DEFERRED_REMOVE),
    }


class Control:
    """An open /dev/mapper/control."""

    def __init__(self) -> None:
        self._fd = os.open(ioctl.CONTROL, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def ask(self, command: str, request: Header, payload: bytes = b"") -> tuple[Header, bytearray]:
        """The answer's header and its buffer.

        Through ctypes: fcntl.ioctl keeps the interpreter lock for mutable buffers over 1024 bytes, and one
        DM_DEV_WAIT would stop every thread (docs/reference/guest.md, "Facts that cost time to find").
        """
        size = _FIRST_BYTES
        while True:
            raw = ioctl.pack_request(request, payload, size)
            number = ioctl.request_number(command)
            if _libc.ioctl(self._fd, number, (ctypes.c_char * len(raw)).from_buffer(raw)) < 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
            answer = Header.parse(raw)
            if answer.flags & ioctl.BUFFER_FULL and command in _QUERIES and size < _MOST_BYTES:
                size *= 8
                continue
            return answer, raw

    def ioctl(self, command: str, name: str = "", *, flags: int = 0, payload: bytes = b"", **fields: Any) -> Header:
        """For an answer without payload; `fields` are more of thinfs.dm.ioctl.Header."""
        return self.ask(command, Header(name=name, flags=flags, **fields), payload)[0]

    def load(self, name: str, table: str, *, flags: int = 0) -> None:
        count, payload = ioctl.pack_load(table)
        self.ioctl("table_load", name, flags=flags, payload=payload, target_count=count)

    def table_status(self, name: str, *, flags: int = 0) -> str:
        return ioctl.read_table(*self.ask("table_status", Header(name=name, flags=flags)))

    def message(self, name: str, message: str, sector: int) -> str:
        answer, raw = self.ask("message", Header(name=name), ioctl.pack_message(sector, message))
        return ioctl.read_string(answer, raw) if answer.flags & ioctl.DATA_OUT else ""

    def names(self) -> list[str]:
        """Names of all devices in the kernel's order, by name."""
        return [entry.name for entry in ioctl.read_names(*self.ask("list_devices", Header()))]

    def deps(self, name: str) -> list[tuple[int, int]]:
        return ioctl.read_deps(*self.ask("table_deps", Header(name=name)))

    def target_versions(self) -> list[tuple[str, tuple[int, int, int]]]:
        return ioctl.read_versions(*self.ask("list_versions", Header()))
