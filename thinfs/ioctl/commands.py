"""The ioctls of /dev/mapper/control carried out on the seam: one function a command of <linux/dm-ioctl.h>.

Promises: the header of an answer has in it what kernel 6.1 writes there, the errno is the kernel's, and a refusal
changes nothing (tests/ioctl holds it against kernels). Never: touches a socket, knows which backend it serves.
What it refuses on purpose: docs/reference/ioctl.md.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from thinfs.dm import ioctl
from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.dm.ioctl import Header, NameEntry
from thinfs.errors import InvalidArgument, NoSuchDevice, NotSupported, ThinfsError

# What a request brings in of them means nothing: they are the answer's.
_CLEARED: Final = ioctl.BUFFER_FULL | ioctl.UEVENT_GENERATED | ioctl.SECURE_DATA | ioctl.DATA_OUT
_OF_A_DEVICE: Final = (
    ioctl.SUSPEND | ioctl.READONLY | ioctl.ACTIVE_PRESENT | ioctl.INACTIVE_PRESENT | ioctl.DEFERRED_REMOVE
)
_GEOMETRY_LIMITS: Final = (65535, 255, 255)  # cylinders, heads, sectors: struct hd_geometry


@dataclass(frozen=True, slots=True)
class Request:
    header: Header
    raw: bytes

    def flag(self, bit: int) -> bool:
        return bool(self.header.flags & bit)


@dataclass(frozen=True, slots=True)
class Answer:
    header: Header
    payload: bytes | None = None
    counted: int = 0  # these three: see ioctl.pack_answer
    least_room: int = 0
    cuts: Sequence[int] = ()


Command: TypeAlias = Callable[[Backend, Request], Awaitable[Answer]]


async def perform(backend: Backend, command: str, raw: bytes) -> bytes:
    """The bytes to copy back. Refusals: ThinfsError, and ioctl.MalformedBuffer (EINVAL)."""
    header = Header.parse(raw)
    request = Request(replace(header, version=ioctl.VERSION, flags=header.flags & ~_CLEARED), raw)
    if command == "create":
        if not header.name:
            raise InvalidArgument("create: no name")
    elif command not in ioctl.WHOLE_MAPPER and header.name and header.uuid:
        raise InvalidArgument(f"{command}: both a name, {header.name}, and a uuid, {header.uuid}")
    if command == "remove_all":
        await _remove_all(backend, request)
        return request.header.pack() + raw[ioctl.HEADER_BYTES :]  # the whole buffer, as the kernel
    answer = await _COMMANDS[command](backend, request)
    return ioctl.pack_answer(
        answer.header,
        answer.payload,
        len(raw),
        counted=answer.counted,
        least_room=answer.least_room,
        cuts=answer.cuts,
    )


def described(header: Header, info: DeviceInfo, target_count: int | None = None) -> Header:
    """The header with what every answer says of its device."""
    flags = header.flags & ~_OF_A_DEVICE
    for bit, present in (
        (ioctl.SUSPEND, info.suspended),
        (ioctl.READONLY, info.read_only),
        (ioctl.ACTIVE_PRESENT, info.live_table),
        (ioctl.INACTIVE_PRESENT, info.inactive_table),
        (ioctl.DEFERRED_REMOVE, info.deferred_remove),
    ):
        flags |= bit if present else 0
    return replace(
        header,
        flags=flags,
        name=info.name,
        uuid=info.uuid,
        dev=(info.major, info.minor),
        open_count=info.open_count,
        event_nr=info.event_nr,
        target_count=info.target_count if target_count is None else target_count,
    )


async def find(backend: Backend, header: Header) -> DeviceInfo:
    """By name, by uuid or by number, and by one of them alone; NoSuchDevice."""
    given = [value for value in (header.name, header.uuid, header.dev[0] or header.dev[1]) if value]
    if len(given) == 1:
        if header.name:
            return await backend.info(header.name)
        for info in await backend.list():
            if info.uuid == header.uuid if header.uuid else (info.major, info.minor) == header.dev:
                return info
    raise NoSuchDevice(f"no device of name {header.name!r}, uuid {header.uuid!r}, number {header.dev}")


async def _now(backend: Backend, name: str, request: Request) -> Header:
    """The header with the device as it is now, told of the table that the request means."""
    inactive = request.flag(ioctl.QUERY_INACTIVE_TABLE)
    return described(request.header, await backend.info(name, inactive=inactive))


async def _lines(backend: Backend, name: str, request: Request, header: Header) -> Answer:
    """The table or the status lines of the live table, or with the flag of the inactive one."""
    inactive = request.flag(ioctl.QUERY_INACTIVE_TABLE)
    if not header.flags & (ioctl.INACTIVE_PRESENT if inactive else ioctl.ACTIVE_PRESENT):
        return Answer(header)
    if request.flag(ioctl.STATUS_TABLE):
        text = await backend.table(name, inactive=inactive)
    else:
        text = await backend.status(name, noflush=request.flag(ioctl.NOFLUSH), inactive=inactive)
    count, payload, cuts = ioctl.pack_table(text)
    return Answer(replace(header, target_count=count), payload, cuts=cuts)


# -- the commands ----------------------------------------------------------------------------------------------------


async def _remove_all(backend: Backend, request: Request) -> None:
    """What nobody uses, the users of a device before the device; with the flag, the others once they are closed."""
    deferred = request.flag(ioctl.DEFERRED_REMOVE)
    left: set[str] | None = None
    while (names := {info.name for info in await backend.list()}) != left:
        left = names
        for name in names:
            with suppress(ThinfsError):
                await backend.remove(name)
    for name in left if deferred else ():
        with suppress(ThinfsError):
            await backend.remove(name, deferred=True)


async def _list_devices(backend: Backend, request: Request) -> Answer:
    """A name or a uuid in the request is a prefix."""
    wanted, with_uuid = request.header, request.flag(ioctl.UUID)
    infos = sorted(await backend.list(), key=lambda info: ioctl.to_bytes(info.name))
    entries = [
        NameEntry((info.major, info.minor), info.name, info.event_nr, info.uuid if with_uuid else None)
        for info in infos
        if info.name.startswith(wanted.name) and info.uuid.startswith(wanted.uuid)
    ]
    return Answer(request.header, ioctl.pack_names(entries), least_room=ioctl.LEAST_NAMES_ROOM)


async def _create(backend: Backend, request: Request) -> Answer:
    header = request.header
    minor = header.dev[1] if request.flag(ioctl.PERSISTENT_DEV) else None
    return Answer(described(header, await backend.create(header.name, None, uuid=header.uuid, minor=minor)))


async def _remove(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    await backend.remove(info.name, deferred=request.flag(ioctl.DEFERRED_REMOVE))
    return Answer(replace(request.header, name=info.name, uuid=info.uuid))


async def _rename(backend: Backend, request: Request) -> Answer:
    """By name only, and the answer's name and uuid are the request's: as the kernel."""
    header = request.header
    new = ioctl.read_new_name(header, request.raw)
    if not header.name:
        raise NoSuchDevice(f"rename to {new}: of no name")
    if request.flag(ioctl.UUID):
        await backend.set_uuid(header.name, new)
        changed = await _now(backend, header.name, request)
    else:
        await backend.rename(header.name, new)
        changed = await _now(backend, new, request)
    return Answer(replace(changed, name=header.name, uuid=header.uuid))


async def _suspend(backend: Backend, request: Request) -> Answer:
    """With the flag SUSPEND; without it, resume."""
    info = await find(backend, request.header)
    if request.flag(ioctl.SUSPEND):
        noflush, lockfs = request.flag(ioctl.NOFLUSH), not request.flag(ioctl.SKIP_LOCKFS)
        await backend.suspend(info.name, noflush=noflush, lockfs=lockfs)
    else:
        await backend.resume(info.name)
    return Answer(await _now(backend, info.name, request))


async def _status(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    return Answer(await _now(backend, info.name, request))


async def _wait(backend: Backend, request: Request) -> Answer:
    """For an event number other than the request's; then as table_status. A removal ends it too."""
    info = await find(backend, request.header)
    header = described(request.header, await backend.wait(info.name, request.header.event_nr))
    try:
        return await _lines(backend, info.name, request, header)
    except NoSuchDevice:
        return Answer(header)


async def _table_load(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    lines = []
    for start, length, target, params in ioctl.read_load(request.header, request.raw):
        if len(target.split()) != 1 or target.split()[0] != target:
            raise InvalidArgument(f"{target!r}: unknown target type")
        # White space of any kind separates words; a line is one line here.
        lines.append(f"{start} {length} {target} {params}".replace("\n", " "))
    await backend.load(info.name, "\n".join(lines), read_only=request.flag(ioctl.READONLY))
    return Answer(await _now(backend, info.name, request))


async def _table_clear(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    await backend.clear(info.name)
    return Answer(await _now(backend, info.name, request))


async def _table_deps(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    header = described(request.header, info)
    return Answer(header, ioctl.pack_deps(await backend.deps(info.name)) if info.live_table else None)


async def _table_status(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    return await _lines(backend, info.name, request, await _now(backend, info.name, request))


async def _list_versions(backend: Backend, request: Request) -> Answer:
    targets = [(target.name, target.version) for target in await backend.targets()]
    return Answer(request.header, *ioctl.pack_versions(targets))


async def _get_target_version(backend: Backend, request: Request) -> Answer:
    name = request.header.name
    targets = [(target.name, target.version) for target in await backend.targets() if target.name == name]
    if not targets:
        raise InvalidArgument(f"{name}: unknown target type")
    return Answer(request.header, *ioctl.pack_versions(targets))


async def _message(backend: Backend, request: Request) -> Answer:
    info = await find(backend, request.header)
    sector, message = ioctl.read_message(request.header, request.raw)
    said = await backend.message(info.name, message, sector=sector)
    header = await _now(backend, info.name, request)
    if not said:
        return Answer(header)
    return Answer(replace(header, flags=header.flags | ioctl.DATA_OUT), ioctl.pack_string(said))


async def _set_geometry(backend: Backend, request: Request) -> Answer:
    """Judged as the kernel judges it, then refused: no client of a device could ask for it (HDIO_GETGEO)."""
    info = await find(backend, request.header)
    text = ioctl.read_string(request.header, request.raw)
    words = text.split()[:4]
    if len(words) < 4 or not all(word.isdecimal() for word in words):
        raise InvalidArgument(f"{info.name}: geometry {text!r}: expected cylinders, heads, sectors, start")
    if any(int(word) > limit for word, limit in zip(words, _GEOMETRY_LIMITS, strict=False)):
        raise InvalidArgument(f"{info.name}: geometry {text!r} exceeds its range")
    raise NotSupported(f"{info.name}: a geometry cannot be set")


async def _arm_poll(_backend: Backend, _request: Request) -> Answer:
    raise NotSupported("arm_poll: events of all devices at once cannot be waited for")


_COMMANDS: Final[Mapping[str, Command]] = {
    "list_devices": _list_devices,
    "create": _create,
    "remove": _remove,
    "rename": _rename,
    "suspend": _suspend,
    "status": _status,
    "wait": _wait,
    "table_load": _table_load,
    "table_clear": _table_clear,
    "table_deps": _table_deps,
    "table_status": _table_status,
    "list_versions": _list_versions,
    "message": _message,
    "set_geometry": _set_geometry,
    "arm_poll": _arm_poll,
    "get_target_version": _get_target_version,
}
