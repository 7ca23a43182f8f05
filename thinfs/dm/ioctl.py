"""struct dm_ioctl and its payloads in both directions: what a client sends and reads, what device-mapper does.

Promises: what <linux/dm-ioctl.h> says, offsets, alignment and the two meanings of `next` included; a buffer that
breaks its rules is MalformedBuffer (EINVAL), never another exception; text survives as bytes (surrogateescape).
Never: imports beyond the standard library, makes a call: the guest's agent runs this very file.
Source: the header; what it leaves open, raw ioctls of kernel 6.1 (tests/ioctl).
"""

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

CONTROL: Final = "/dev/mapper/control"
CONTROL_NUMBER: Final = (10, 236)  # MISC_MAJOR, MAPPER_CTRL_MINOR
VERSION: Final = (4, 47, 0)  # of the interface, as kernel 6.1
TYPE: Final = 0xFD  # DM_IOCTL

COMMANDS: Final = (
    "version", "remove_all", "list_devices", "create", "remove", "rename", "suspend", "status", "wait",
    "table_load", "table_clear", "table_deps", "table_status", "list_versions", "message", "set_geometry",
    "arm_poll", "get_target_version",
)  # fmt: skip
WHOLE_MAPPER: Final = frozenset(  # they name no device
    {"version", "remove_all", "list_devices", "list_versions", "arm_poll", "get_target_version"}
)

READONLY: Final = 1 << 0
SUSPEND: Final = 1 << 1
PERSISTENT_DEV: Final = 1 << 3
STATUS_TABLE: Final = 1 << 4
ACTIVE_PRESENT: Final = 1 << 5
INACTIVE_PRESENT: Final = 1 << 6
BUFFER_FULL: Final = 1 << 8
SKIP_LOCKFS: Final = 1 << 10
NOFLUSH: Final = 1 << 11
QUERY_INACTIVE_TABLE: Final = 1 << 12
UEVENT_GENERATED: Final = 1 << 13
UUID: Final = 1 << 14
SECURE_DATA: Final = 1 << 15
DATA_OUT: Final = 1 << 16
DEFERRED_REMOVE: Final = 1 << 17

NAME_BYTES: Final = 128  # DM_NAME_LEN and DM_UUID_LEN, with the zero at the end
UUID_BYTES: Final = 129

# struct dm_ioctl: version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding,
# dev, name[128], uuid[129], data[7]
_HEADER: Final = struct.Struct("<3I I I I i I I I Q 128s 129s 7x")
HEADER_BYTES: Final = _HEADER.size  # 312
SHORT_HEADER_BYTES: Final = HEADER_BYTES - 7  # without `data`: a request has no less, an answer without payload no more
_SPEC: Final = struct.Struct("<QQiI16s")  # struct dm_target_spec: sector_start, length, status, next, target_type
_NAME: Final = struct.Struct("<QI")  # struct dm_name_list: dev, next; then the name
_NAME_END: Final = struct.Struct("<II")  # event_nr, flags; then the uuid
_TARGET_VERSION: Final = struct.Struct("<4I")  # struct dm_target_versions: next, version[3]; then the name
_SECTOR: Final = struct.Struct("<Q")  # struct dm_target_msg: sector; then the message
_HAS_UUID, _HAS_NO_UUID = 1, 2
LEAST_NAMES_ROOM: Final = 16  # sizeof(struct dm_name_list), for none too

Number: TypeAlias = tuple[int, int]  # (major, minor)


class MalformedBuffer(OSError):
    """EINVAL: a payload that passes the end of its buffer, or is not what its command takes."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EINVAL, what)


def request_number(command: str) -> int:
    """The ioctl's number: _IOWR(DM_IOCTL, index, struct dm_ioctl)."""
    return (3 << 30) | (HEADER_BYTES << 16) | (TYPE << 8) | COMMANDS.index(command)


def encode_dev(number: Number) -> int:
    major, minor = number
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_dev(dev: int) -> Number:
    return (dev & 0xFFF00) >> 8, (dev & 0xFF) | ((dev >> 12) & 0xFFF00)


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """Up to the first zero."""
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _string_at(raw: bytes | bytearray, at: int, end: int, what: str) -> str:
    found = raw.find(0, at, end) if 0 <= at < end else -1
    if found < 0:
        raise MalformedBuffer(f"{what} at {at} has no end within the {end} bytes of the buffer")
    return to_text(bytes(raw[at:found]))


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


@dataclass(frozen=True, slots=True)
class Header:
    """struct dm_ioctl without its payload; `dev` is a number pair."""

    version: tuple[int, int, int] = (4, 0, 0)  # what a client says that uses nothing newer
    data_size: int = HEADER_BYTES
    data_start: int = HEADER_BYTES
    target_count: int = 0
    open_count: int = 0
    flags: int = 0
    event_nr: int = 0
    dev: Number = (0, 0)
    name: str = ""
    uuid: str = ""

    @classmethod
    def parse(cls, raw: bytes | bytearray) -> "Header":
        """Of at least SHORT_HEADER_BYTES."""
        if len(raw) < SHORT_HEADER_BYTES:
            raise MalformedBuffer(f"a struct dm_ioctl of {len(raw)} bytes")
        major, minor, patch, size, start, count, opens, flags, event_nr, _, dev, name, uuid = _HEADER.unpack(
            bytes(raw[:HEADER_BYTES]).ljust(HEADER_BYTES, b"\0")
        )
        return cls(
            (major, minor, patch), size, start, count, opens, flags, event_nr, decode_dev(dev),
            to_text(name[: NAME_BYTES - 1]), to_text(uuid[: UUID_BYTES - 1]),
        )  # fmt: skip

    def pack(self) -> bytes:
        name, uuid = to_bytes(self.name), to_bytes(self.uuid)
        if len(name) >= NAME_BYTES or len(uuid) >= UUID_BYTES:
            raise MalformedBuffer(f"name or uuid {(self.name + self.uuid)[:40]!r}... is too long")
        return _HEADER.pack(
            *self.version, self.data_size, self.data_start, self.target_count, self.open_count, self.flags,
            self.event_nr, 0, encode_dev(self.dev), name, uuid,
        )  # fmt: skip


# -- a client's side -------------------------------------------------------------------------------------------------


def pack_request(header: Header, payload: bytes, size: int) -> bytearray:
    """The buffer of an ioctl: at least `size` bytes, so that an answer has room."""
    size = max(size, HEADER_BYTES + len(payload))
    raw = bytearray(replace(header, data_size=size, data_start=HEADER_BYTES).pack())
    raw += payload
    raw += bytes(size - len(raw))
    return raw


def pack_load(table: str) -> tuple[int, bytes]:
    """(target count, payload of DM_TABLE_LOAD) of table lines; `next` counts from the line's own start."""
    parts = []
    for line in table.splitlines():
        if not line.strip():
            continue
        words = line.split(None, 3)
        if len(words) < 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise MalformedBuffer(f"table line {line!r}: not `start length target params`")
        params = to_bytes(words[3] if len(words) > 3 else "") + b"\0"
        params += bytes(-(_SPEC.size + len(params)) % 8)
        size = _SPEC.size + len(params)
        parts.append(_SPEC.pack(int(words[0]), int(words[1]), 0, size, to_bytes(words[2])) + params)
    return len(parts), b"".join(parts)


def pack_message(sector: int, message: str) -> bytes:
    return _SECTOR.pack(sector) + to_bytes(message) + b"\0"


def pack_string(text: str) -> bytes:
    """The payload of DM_DEV_RENAME and DM_DEV_SET_GEOMETRY, and the answer of a message."""
    return to_bytes(text) + b"\0"


def read_string(header: Header, raw: bytes | bytearray) -> str:
    return _string_at(raw, header.data_start, len(raw), "a string")


def read_table(header: Header, raw: bytes | bytearray) -> str:
    """The lines of a DM_TABLE_STATUS answer; `next` counts from the first line's start."""
    lines, at = [], header.data_start
    for _ in range(header.target_count):
        start, length, _status, following, kind = _unpack(_SPEC, raw, at, "a target")
        lines.append(f"{start} {length} {to_text(kind)} {_string_at(raw, at + _SPEC.size, len(raw), 'params')}")
        at = header.data_start + following
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class NameEntry:
    """One device of DM_LIST_DEVICES; `uuid` is None where it was not asked for."""

    number: Number
    name: str
    event_nr: int = 0
    uuid: str | None = None


def read_names(header: Header, raw: bytes | bytearray) -> list[NameEntry]:
    """`next` counts from the record's own start; a single record with dev 0 means none."""
    found, at = [], header.data_start
    while True:
        dev, following = _unpack(_NAME, raw, at, "a device")
        if dev:
            name = _string_at(raw, at + _NAME.size, len(raw), "a name")
            end = at + _NAME.size + len(to_bytes(name)) + 1
            end += -(end - header.data_start) % 8
            event_nr, flags = _unpack(_NAME_END, raw, end, "an event number")
            uuid = None
            if flags:
                uuid = _string_at(raw, end + _NAME_END.size, len(raw), "a uuid") if flags & _HAS_UUID else ""
            found.append(NameEntry(decode_dev(dev), name, event_nr, uuid))
        if not following:
            return found
        at += following


def read_versions(header: Header, raw: bytes | bytearray) -> list[tuple[str, tuple[int, int, int]]]:
    """`next` counts from the record's own start."""
    found, at = [], header.data_start
    while True:
        following, major, minor, patch = _unpack(_TARGET_VERSION, raw, at, "a target version")
        name = _string_at(raw, at + _TARGET_VERSION.size, len(raw), "a target's name")
        found.append((name, (major, minor, patch)))
        if not following:
            return found
        at += following


def read_deps(header: Header, raw: bytes | bytearray) -> list[Number]:
    (count,) = _unpack(struct.Struct("<I"), raw, header.data_start, "a count")
    devs = _unpack(struct.Struct(f"<{count}Q"), raw, header.data_start + 8, "the devices") if count else ()
    return [decode_dev(dev) for dev in devs]


def _unpack(schema: struct.Struct, raw: bytes | bytearray, at: int, what: str) -> tuple[Any, ...]:
    if not 0 <= at <= len(raw) - schema.size:
        raise MalformedBuffer(f"{what} at {at} passes the end of the buffer, {len(raw)}")
    return schema.unpack_from(raw, at)


# -- device-mapper's side --------------------------------------------------------------------------------------------


def read_load(header: Header, raw: bytes | bytearray) -> list[tuple[int, int, str, str]]:
    """(start, length, target, params) of each line of a DM_TABLE_LOAD."""
    lines, at, least = [], header.data_start, HEADER_BYTES - 7
    for _ in range(header.target_count):
        if at < least:
            raise MalformedBuffer(f"a target at {at}, within what comes before it")
        start, length, _status, following, kind = _unpack(_SPEC, raw, at, "a target")
        params = _string_at(raw, at + _SPEC.size, len(raw), "params")
        lines.append((start, length, to_text(kind), params))
        at, least = at + following, at + _SPEC.size
    return lines


def read_message(header: Header, raw: bytes | bytearray) -> tuple[int, str]:
    if header.data_start < SHORT_HEADER_BYTES:
        raise MalformedBuffer(f"a message at {header.data_start}, within the header")
    (sector,) = _unpack(_SECTOR, raw, header.data_start, "a sector")
    return sector, _string_at(raw, header.data_start + _SECTOR.size, len(raw), "a message")


def read_new_name(header: Header, raw: bytes | bytearray) -> str:
    """Of DM_DEV_RENAME: a name, or with the flag UUID a uuid; not empty, not too long."""
    if header.data_start < SHORT_HEADER_BYTES:
        raise MalformedBuffer(f"a name at {header.data_start}, within the header")
    text = read_string(header, raw)
    limit = UUID_BYTES if header.flags & UUID else NAME_BYTES
    if not text or len(to_bytes(text)) >= limit:
        raise MalformedBuffer(f"{text[:40]!r}: not 1 to {limit - 1} bytes")
    return text


def pack_table(text: str) -> tuple[int, bytes, list[int]]:
    """(target count, payload of DM_TABLE_STATUS, where it may be cut): after a string's end; `next` is aligned."""
    out = b""
    ends = []
    lines = text.split("\n") if text else []
    for line in lines:
        start, length, kind, params = [*line.split(" ", 3), ""][:4]
        body = to_bytes(params) + b"\0"
        ends.append(len(out) + _SPEC.size + len(body))
        body += bytes(-(_SPEC.size + len(body)) % 8)
        following = len(out) + _SPEC.size + len(body)
        out += _SPEC.pack(int(start), int(length), 0, following, to_bytes(kind)) + body
    return len(lines), out[: ends[-1] if ends else 0], ends


def pack_names(entries: Sequence[NameEntry]) -> bytes:
    records = []
    for entry in entries:
        record = _aligned(_NAME.pack(encode_dev(entry.number), 0) + to_bytes(entry.name) + b"\0")
        flags = 0 if entry.uuid is None else _HAS_UUID if entry.uuid else _HAS_NO_UUID
        record += _NAME_END.pack(entry.event_nr, flags)
        if entry.uuid:
            record += _aligned(to_bytes(entry.uuid) + b"\0")
        records.append(bytearray(record))
    for earlier in records[:-1]:
        struct.pack_into("<I", earlier, 8, len(earlier))
    return b"".join(records)


def pack_versions(targets: Sequence[tuple[str, tuple[int, int, int]]]) -> tuple[bytes, int]:
    """(payload, the bytes that the kernel demands and counts for it: each record at its worst alignment)."""
    plain = [_TARGET_VERSION.pack(0, *version) + to_bytes(name) + b"\0" for name, version in targets]
    records = [bytearray(_aligned(record)) for record in plain]
    for earlier in records[:-1]:
        struct.pack_into("<I", earlier, 0, len(earlier))
    return b"".join(records), sum(len(record) + 7 for record in plain)


def pack_deps(numbers: Sequence[Number]) -> bytes:
    return struct.pack(f"<II{len(numbers)}Q", len(numbers), 0, *map(encode_dev, numbers))


def pack_answer(
    header: Header, payload: bytes | None, room: int, *, counted: int = 0, least_room: int = 0, cuts: Sequence[int] = ()
) -> bytes:
    """What is copied back into a buffer of `room` bytes. Of a payload that does not fit, what does up to one of the
    `cuts`, and BUFFER_FULL. `counted` is the payload's size as the kernel counts it, where that is more than its
    length, `least_room` what the kernel wants to have for it, where that is more."""
    if payload is None:
        return replace(header, data_size=SHORT_HEADER_BYTES).pack()[:SHORT_HEADER_BYTES]
    header = replace(header, data_start=HEADER_BYTES)
    size = max(counted, len(payload))
    if HEADER_BYTES + max(size, least_room) > room:
        header = replace(header, flags=header.flags | BUFFER_FULL)
        size = max((cut for cut in cuts if HEADER_BYTES + cut <= room), default=0)
        if not size:
            return replace(header, data_size=SHORT_HEADER_BYTES).pack()[:SHORT_HEADER_BYTES]
    return replace(header, data_size=HEADER_BYTES + size).pack() + payload[:size].ljust(size, b"\0")
