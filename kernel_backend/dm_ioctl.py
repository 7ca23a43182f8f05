"""device-mapper's ioctls as calls: packs the requests of <linux/dm-ioctl.h>, parses the answers.

Promises: tables and status lines as text exactly as the kernel prints them; failures are OSError with the
kernel's errno; safe from several threads, none of which holds the interpreter lock while it waits.
Never: imports beyond the standard library (the guest's agent runs this file as well as the local backend),
retries, or resends a request that may have had an effect.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

CONTROL: Final = "/dev/mapper/control"

# struct dm_ioctl: version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding,
# dev, name[128], uuid[129], data[7]
_HEADER: Final = struct.Struct("<3I I I I i I I I Q 128s 129s 7x")
_SPEC: Final = struct.Struct("<QQiI16s")  # dm_target_spec: start, length, status, next, type
_VERSION: Final = (4, 0, 0)

_COMMANDS: Final = (
    "version", "remove_all", "list_devices", "create", "remove", "rename", "suspend", "status", "wait",
    "table_load", "table_clear", "table_deps", "table_status", "list_versions", "message",
)  # fmt: skip
_NUMBERS: Final = {
    name: (3 << 30) | (_HEADER.size << 16) | (0xFD << 8) | number for number, name in enumerate(_COMMANDS)
}

READ_ONLY: Final = 1 << 0
SUSPEND: Final = 1 << 1
STATUS_TABLE: Final = 1 << 4
ACTIVE_PRESENT: Final = 1 << 5
INACTIVE_PRESENT: Final = 1 << 6
BUFFER_FULL: Final = 1 << 8
SKIP_LOCKFS: Final = 1 << 10
NOFLUSH: Final = 1 << 11
QUERY_INACTIVE: Final = 1 << 12
DATA_OUT: Final = 1 << 16
DEFERRED_REMOVE: Final = 1 << 17

_QUERIES: Final = frozenset({"version", "list_devices", "wait", "table_deps", "table_status", "list_versions"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class Answer:
    """The header and the payload of one answered ioctl."""

    def __init__(self, raw: bytearray) -> None:
        fields = _HEADER.unpack_from(raw)
        self.raw = raw
        self.version: tuple[int, int, int] = fields[0:3]
        self.start: int = fields[4]
        self.target_count: int = fields[5]
        self.open_count: int = fields[6]
        self.flags: int = fields[7]
        self.event_nr: int = fields[8]
        self.dev: int = fields[10]
        self.name = _text(fields[11])
        self.uuid = _text(fields[12])

    def info(self) -> dict[str, Any]:
        """The fields of thinfs.dm.backend.DeviceInfo, by name."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "major": os.major(self.dev),
            "minor": os.minor(self.dev),
            "open_count": self.open_count,
            "event_nr": self.event_nr,
            "target_count": self.target_count,
            "suspended": bool(self.flags & SUSPEND),
            "read_only": bool(self.flags & READ_ONLY),
            "live_table": bool(self.flags & ACTIVE_PRESENT),
            "inactive_table": bool(self.flags & INACTIVE_PRESENT),
            "deferred_remove": bool(self.flags & DEFERRED_REMOVE),
        }

    def text_at(self, offset: int) -> str:
        return self.raw[offset : self.raw.index(0, offset)].decode()


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def pack_table(table: str) -> tuple[int, bytes]:
    """(number of targets, payload of DM_TABLE_LOAD) of table lines `start length target params`."""
    parts = []
    for line in table.splitlines():
        if not line.strip():
            continue
        words = line.split(None, 3)
        if len(words) < 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise OSError(22, f"table line {line!r}: not `start length target params`")
        params = (words[3] if len(words) > 3 else "").encode() + b"\0"
        params += bytes(-(_SPEC.size + len(params)) % 8)
        size = _SPEC.size + len(params)
        parts.append(_SPEC.pack(int(words[0]), int(words[1]), 0, size, words[2].encode()) + params)
    return len(parts), b"".join(parts)


def unpack_table(answer: Answer) -> str:
    """The lines of a DM_TABLE_STATUS answer; `next` counts from the start of the payload."""
    lines, at = [], answer.start
    for _ in range(answer.target_count):
        start, length, _status, following, kind = _SPEC.unpack_from(answer.raw, at)
        lines.append(f"{start} {length} {_text(kind)} {answer.text_at(at + _SPEC.size)}")
        at = answer.start + following
    return "\n".join(lines)


class Control:
    """An open /dev/mapper/control."""

    def __init__(self) -> None:
        self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def ioctl(
        self,
        command: str,
        name: str = "",
        *,
        flags: int = 0,
        payload: bytes = b"",
        event_nr: int = 0,
        nr_targets: int = 0,
        uuid: str = "",
    ) -> Answer:
        """Through ctypes: fcntl.ioctl keeps the interpreter lock for mutable buffers over 1024 bytes, and one
        DM_DEV_WAIT would stop every thread (docs/reference/guest.md, "Facts that cost time to find")."""
        if len(name.encode()) > 127 or len(uuid.encode()) > 128:
            raise OSError(22, f"name or uuid {(name + uuid)[:40]!r}... is too long")
        size = 16384
        while True:
            size = max(size, _HEADER.size + len(payload))
            raw = bytearray(size)
            _HEADER.pack_into(
                raw, 0, *_VERSION, size, _HEADER.size, nr_targets, 0, flags, event_nr, 0, 0,
                name.encode(), uuid.encode(),
            )  # fmt: skip
            raw[_HEADER.size : _HEADER.size + len(payload)] = payload
            if _libc.ioctl(self._fd, _NUMBERS[command], (ctypes.c_char * size).from_buffer(raw)) < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            answer = Answer(raw)
            if answer.flags & BUFFER_FULL and command in _QUERIES and size < 1 << 24:
                size *= 8
                continue
            return answer

    def message(self, name: str, message: str, sector: int) -> str:
        payload = struct.pack("<Q", sector) + message.encode() + b"\0"
        answer = self.ioctl("message", name, payload=payload)
        return answer.text_at(answer.start) if answer.flags & DATA_OUT else ""

    def names(self) -> Iterator[str]:
        """Names of all devices in the kernel's order (by name; struct dm_name_list)."""
        answer = self.ioctl("list_devices")
        at = answer.start
        while True:
            dev, following = struct.unpack_from("<QI", answer.raw, at)
            if dev:
                yield answer.text_at(at + 12)
            if not following:
                return
            at += following

    def deps(self, name: str) -> list[tuple[int, int]]:
        answer = self.ioctl("table_deps", name)
        (count,) = struct.unpack_from("<I", answer.raw, answer.start)
        devs = struct.unpack_from(f"<{count}Q", answer.raw, answer.start + 8)
        return [(os.major(dev), os.minor(dev)) for dev in devs]

    def target_versions(self) -> list[tuple[str, tuple[int, int, int]]]:
        """Registered targets (struct dm_target_versions)."""
        answer = self.ioctl("list_versions")
        found, at = [], answer.start
        while True:
            following, *version = struct.unpack_from("<I3I", answer.raw, at)
            found.append((answer.text_at(at + 16), (version[0], version[1], version[2])))
            if not following:
                return found
            at += following
