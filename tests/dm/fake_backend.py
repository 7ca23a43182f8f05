"""A device-mapper that keeps tables and ids in dictionaries: enough for what the front ends say and parse.

It has no data: mapped sectors are invented, and so is the use of metadata. Errors are dm-thin's, in the
order of docs/reference/behaviour.md. `/dev/loopN` is the device 7:N, other paths are what `files` names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from thinfs.dm.backend import DeviceInfo, OpenDevice, TargetVersion
from thinfs.dm.message import (
    CreateSnap,
    CreateThin,
    Delete,
    ReleaseMetadataSnap,
    ReserveMetadataSnap,
    SetTransactionId,
    parse_pool_message,
    split_message,
)
from thinfs.dm.table import (
    PoolArguments,
    TargetLine,
    ThinArguments,
    format_pool_params,
    format_thin_params,
    parse_table,
)
from thinfs.errors import (
    BackingMissing,
    Busy,
    Exists,
    InvalidArgument,
    NoSuchDevice,
    NoSuchThin,
    ThinfsError,
)

MAJOR = 254
Number = tuple[int, int]


@dataclass
class Pool:
    ids: set[int] = field(default_factory=set)
    transaction_id: int = 0
    held_root: int | None = None


@dataclass
class Table:
    lines: tuple[TargetLine, ...]  # as dmsetup prints them
    uses: tuple[Number, ...]
    thins: tuple[tuple[Number, int], ...] = ()


@dataclass
class Device:
    name: str
    uuid: str
    minor: int
    read_only: bool
    live: Table | None = None
    inactive: Table | None = None
    suspended: bool = False
    deferred: bool = False
    event_nr: int = 0
    handles: int = 0
    event: trio.Event = field(default_factory=trio.Event)

    @property
    def number(self) -> Number:
        return MAJOR, self.minor


class FakeBackend:
    """thinfs.dm.backend.Backend."""

    def __init__(self, files: Sequence[str] = ()) -> None:
        self.files = list(files)
        self.devices: dict[str, Device] = {}
        self.pools: dict[Number, Pool] = {}
        self.calls: list[str] = []

    # -- what tests do to it ---------------------------------------------------------------------------------

    def raise_event(self, name: str) -> None:
        device = self.devices[name]
        device.event_nr += 1
        device.event.set()
        device.event = trio.Event()

    # -- the seam --------------------------------------------------------------------------------------------

    async def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        await self._called("create")
        if name in self.devices:
            raise Busy(f"{name}: a device of that name exists")
        minors = {device.minor for device in self.devices.values()}
        if minor in minors:
            raise NoSuchDevice(f"{name}: minor number {minor} is taken")
        minor = next(free for free in range(1 << 20) if free not in minors) if minor is None else minor
        self.devices[name] = Device(name, uuid, minor, read_only)
        if table is not None:
            try:
                await self.load(name, table, read_only=read_only)
                await self.resume(name)
            except ThinfsError:
                del self.devices[name]
                raise
        return self._info(self.devices[name])

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        await self._called("load")
        device = self._device(name)
        device.inactive = self._parsed(device, table)
        device.read_only = read_only

    async def clear(self, name: str) -> None:
        await self._called("clear")
        self._device(name).inactive = None

    async def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        await self._called("suspend")
        self._device(name).suspended = True

    async def resume(self, name: str) -> None:
        await self._called("resume")
        device = self._device(name)
        if device.inactive is not None:
            device.live, device.inactive = device.inactive, None
        device.suspended = False

    async def remove(self, name: str, *, deferred: bool = False) -> None:
        await self._called("remove")
        device = self._device(name)
        if self._open_count(device):
            if not deferred:
                raise Busy(f"{name}: the device is open, {self._open_count(device)} times")
            device.deferred = True
            return
        del self.devices[name]
        self.pools.pop(device.number, None)
        for other in list(self.devices.values()):
            if other.deferred and not self._open_count(other):
                await self.remove(other.name)

    async def rename(self, name: str, new_name: str) -> None:
        await self._called("rename")
        device = self._device(name)
        if new_name in self.devices:
            raise Busy(f"{new_name}: a device of that name exists")
        self.devices = {new_name if key == name else key: value for key, value in self.devices.items()}
        device.name = new_name

    async def set_uuid(self, name: str, uuid: str) -> None:
        await self._called("set_uuid")
        if any(device.uuid == uuid for device in self.devices.values()):
            raise Busy(f"{name}: uuid {uuid} is in use")
        if self._device(name).uuid:
            raise InvalidArgument(f"{name}: its uuid cannot be changed")
        self._device(name).uuid = uuid

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        await self._called("message")
        device = self._device(name)
        if message == "@cancel_deferred_remove":
            device.deferred = False
            return ""
        pool = self.pools.get(device.number)
        if pool is None:
            raise InvalidArgument(f"{name}: Target type does not support messages")
        words = split_message(message)
        match parse_pool_message(words):
            case CreateThin(dev_id):
                if dev_id in pool.ids:
                    raise Exists(f"create_thin {dev_id}: thin {dev_id} exists")
                pool.ids.add(dev_id)
            case CreateSnap(dev_id, origin_id):
                if dev_id in pool.ids:
                    raise Exists(f"create_snap {dev_id} {origin_id}: thin {dev_id} exists")
                if origin_id not in pool.ids:
                    raise NoSuchThin(f"create_snap {dev_id} {origin_id}: thin {origin_id} does not exist")
                pool.ids.add(dev_id)
            case Delete(dev_id):
                if dev_id not in pool.ids:
                    raise NoSuchThin(f"delete {dev_id}: thin {dev_id} does not exist")
                if any((device.number, dev_id) in other.live.thins for other in self.devices.values() if other.live):
                    raise Busy(f"delete {dev_id}: thin {dev_id} is active")
                pool.ids.remove(dev_id)
            case SetTransactionId(current, new):
                if current != pool.transaction_id:
                    raise InvalidArgument(f"{message}: mismatched transaction id: it is {pool.transaction_id}")
                pool.transaction_id = new
            case ReserveMetadataSnap():
                if pool.held_root is not None:
                    raise Busy("reserve_metadata_snap: one is held already")
                pool.held_root = 42
            case ReleaseMetadataSnap():
                if pool.held_root is None:
                    raise InvalidArgument("release_metadata_snap: none is held")
                pool.held_root = None
        return ""

    async def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        await self._called("status")
        device = self._device(name)
        table = device.inactive if inactive else device.live
        return "\n".join(self._status_line(device, line) for line in (table.lines if table else ()))

    async def table(self, name: str, *, inactive: bool = False) -> str:
        await self._called("table")
        device = self._device(name)
        table = device.inactive if inactive else device.live
        return "\n".join(map(str, table.lines)) if table else ""

    async def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        await self._called("info")
        device = self._device(name)
        info = self._info(device)
        if inactive:
            return replace(info, target_count=len(device.inactive.lines) if device.inactive else 0)
        return info

    async def wait(self, name: str, event_nr: int) -> DeviceInfo:
        await self._called("wait")
        device = self._device(name)
        try:
            while device.event_nr == event_nr:
                await device.event.wait()
        except trio.Cancelled:
            self.calls.append("wait cancelled")
            raise
        return self._info(device)

    async def deps(self, name: str) -> Sequence[Number]:
        await self._called("deps")
        device = self._device(name)
        return device.live.uses if device.live else ()

    async def list(self) -> Sequence[DeviceInfo]:
        await self._called("list")
        return [self._info(device) for device in self.devices.values()]

    async def targets(self) -> Sequence[TargetVersion]:
        await self._called("targets")
        versions = {"thin-pool": 22, "thin": 22, "striped": 6, "linear": 4, "error": 5}
        return [TargetVersion(name, (1, minor, 0)) for name, minor in versions.items()]

    async def open(self, name: str) -> OpenDevice:
        await self._called("open")
        return FakeOpenDevice(self, self._device(name))

    # -- how it does it --------------------------------------------------------------------------------------

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        await trio.lowlevel.checkpoint()

    def _device(self, name: str) -> Device:
        if name not in self.devices:
            raise NoSuchDevice(f"{name}: no such device")
        return self.devices[name]

    def _info(self, device: Device) -> DeviceInfo:
        return DeviceInfo(
            name=device.name,
            uuid=device.uuid,
            major=MAJOR,
            minor=device.minor,
            open_count=self._open_count(device),
            event_nr=device.event_nr,
            target_count=len(device.live.lines) if device.live else 0,
            suspended=device.suspended,
            read_only=device.read_only,
            live_table=device.live is not None,
            inactive_table=device.inactive is not None,
            deferred_remove=device.deferred,
        )

    def _open_count(self, device: Device) -> int:
        tables = [table for other in self.devices.values() for table in (other.live, other.inactive) if table]
        return device.handles + sum(device.number in table.uses for table in tables)

    def _number(self, path: str) -> Number | None:
        if path.startswith("/dev/loop"):
            return 7, int(path.removeprefix("/dev/loop"))
        name = path.removeprefix("/dev/mapper/")
        if name in self.devices:
            return self.devices[name].number
        return (0, self.files.index(path)) if path in self.files else None

    def _label(self, path: str) -> str:
        number = self._number(path)
        return path if number is None or number[0] == 0 else f"{number[0]}:{number[1]}"

    def _parsed(self, device: Device, text: str) -> Table:
        lines: list[TargetLine] = []
        uses: dict[Number, None] = {}
        thins: list[tuple[Number, int]] = []
        for line in parse_table(text):
            match line.target:
                case "thin-pool":
                    pool = PoolArguments.parse(line.params)
                    for path, what in (
                        (pool.metadata_dev, "Error opening metadata block device"),
                        (pool.data_dev, "Error getting data device"),
                    ):
                        number = self._number(path)
                        if number is None:
                            raise BackingMissing(f"thin-pool: {what}: {path}")
                        uses[number] = None
                    params = format_pool_params(
                        self._label(pool.metadata_dev),
                        self._label(pool.data_dev),
                        pool.block_size_sectors(),
                        pool.low_water_blocks(),
                        pool.features,
                    )
                    self.pools.setdefault(device.number, Pool())
                case "thin":
                    thin = ThinArguments.parse(line.params)
                    number = self._number(thin.pool_dev)
                    if number is None:
                        raise BackingMissing(f"thin: Error opening pool device: {thin.pool_dev}")
                    dev_id = thin.dev_id()
                    if number not in self.pools:
                        raise InvalidArgument(f"thin: Couldn't get pool mapped device: {thin.pool_dev}")
                    if dev_id not in self.pools[number].ids:
                        raise NoSuchThin(f"thin: Couldn't open thin internal device: {dev_id}")
                    uses[number] = None
                    thins.append((number, dev_id))
                    params = format_thin_params(f"{number[0]}:{number[1]}", dev_id, thin.origin_dev)
                case "error" | "linear":
                    params = " ".join(line.params)
                case _:
                    raise InvalidArgument(f"{line.target}: unknown target type")
            # As printed: what stands after the target is one string.
            lines.append(TargetLine(line.start_sectors, line.length_sectors, line.target, _Verbatim(params)))
        return Table(tuple(lines), tuple(uses), tuple(thins))

    def _status_line(self, device: Device, line: TargetLine) -> str:
        params = ""
        if line.target == "thin-pool":
            pool = self.pools[device.number]
            held = "-" if pool.held_root is None else pool.held_root
            no_space = "error_if_no_space" if "error_if_no_space" in str(line) else "queue_if_no_space"
            params = f"{pool.transaction_id} 114/1024 3/1024 {held} rw discard_passdown {no_space} - 256 "
        elif line.target == "thin":
            params = "384 383"
        return f"{line.start_sectors} {line.length_sectors} {line.target} {params}"


class _Verbatim(tuple[str, ...]):
    """Parameters that are printed as they are, the blank at the end of a pool's included."""

    __slots__ = ()

    def __new__(cls, text: str) -> "_Verbatim":
        return super().__new__(cls, text.split(" "))


class FakeOpenDevice:
    """Zeros of the table's length, and what was written."""

    def __init__(self, backend: FakeBackend, device: Device) -> None:
        self._backend = backend
        self._device = device
        device.handles += 1
        self._data: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        return sum(line.length_sectors for line in self._device.live.lines) * 512 if self._device.live else 0

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        length = max(0, min(length, self.size_bytes - offset))  # short at the end, as a block device reads
        if not self._data:
            return bytes(length)
        return bytes(self._data.get(position, 0) for position in range(offset, offset + length))

    async def write(self, offset: int, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._data.update(enumerate(data, offset))

    async def discard(self, offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()
        for position in range(offset, offset + length):
            self._data.pop(position, None)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._device.handles -= 1
        self._backend.calls.append("closed")
