"""What a conformance test stands on: a backend, fresh disks for its tables, pools and volumes in few words.

Promises: the same words on every backend. A Machine is what differs between them: how disks are made and made
to fail, how time passes. Never: hides an answer of the backend; errors arrive as the seam raises them.
"""

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio

from kernel_backend.block_io import pattern
from thinfs.dm.backend import Backend, OpenDevice
from thinfs.dm.status import PoolStatus, ThinStatus
from thinfs.units import SECTOR_BYTES

KIB: Final = 1 << 10
MIB: Final = 1 << 20
PROBES: Final = 5000  # of `until`: a condition that does not come about in so many answers never will

PAGE: Final = 4096


class Disk(Protocol):
    """A backing device of the test's own, zeros at first. `word` names it in tables and is how tables print it."""

    @property
    def word(self) -> str: ...

    @property
    def passes_discards(self) -> bool:
        """Whether a pool of 64 KiB blocks can pass discards down to it."""

    async def resize(self, size_bytes: int) -> None: ...

    async def fail(self, *, reads: bool = True, writes: bool = True) -> None:
        """From now on these are EIO. Flushes fail with the writes."""

    async def work(self) -> None: ...

    async def read(self, offset: int, length: int) -> bytes:
        """What lies there; no device may use it meanwhile, nor in `write`."""

    async def write(self, offset: int, data: bytes) -> None: ...

    async def thin_check(self, *options: str) -> tuple[int, str]:
        """Exit status and output of thin_check on it; no pool may use it."""


class Machine(Protocol):
    """Where a backend runs. One a test, though what lies below may live for the session."""

    @property
    def backend(self) -> Backend: ...

    @property
    def kernel(self) -> tuple[int, int]:
        """The version whose behaviour is to be expected."""

    async def disk(self, size_bytes: int, *, discard: bool = False) -> Disk: ...

    async def elapse(self, seconds: float) -> None: ...

    async def set_no_space_timeout(self, seconds: int) -> None:
        """For pools made after it; 0 is never."""

    async def clean(self) -> None:
        """Remove all devices, stuck ones too; the disks stay readable."""


@dataclass(slots=True)
class Volume:
    """An active thin (or any device) with a handle, addressed by pool blocks."""

    backend: Backend
    name: str
    device: OpenDevice
    block_bytes: int

    async def write(self, block: int, tag: int, *, length: int | None = None, at: int = 0) -> None:
        """`tag` over a whole block, or `length` bytes `at` an offset within it."""
        size = self.block_bytes if length is None else length
        await self.device.write(block * self.block_bytes + at, pattern(tag, size))

    async def holds(self, block: int, tag: int | None, *, length: int | None = None, at: int = 0) -> bool:
        """Does it read as `write` with that tag wrote it? None: as zeros."""
        size = self.block_bytes if length is None else length
        expected = bytes(size) if tag is None else pattern(tag, size)
        return await self.device.read(block * self.block_bytes + at, size) == expected

    async def discard(self, begin: int, end: int) -> None:
        await self.device.discard(begin * self.block_bytes, (end - begin) * self.block_bytes)

    async def flush(self) -> None:
        await self.device.flush()

    async def status(self) -> ThinStatus:
        text = (await self.backend.status(self.name)).split(" ", 3)[3]
        status = ThinStatus.parse(text)
        assert status is not None, text
        return status

    async def mapped_blocks(self) -> int:
        return (await self.status()).mapped_sectors * SECTOR_BYTES // self.block_bytes

    async def close(self) -> None:
        await self.device.aclose()

    async def remove(self) -> None:
        await self.close()
        await self.backend.remove(self.name)


@dataclass(slots=True)
class PoolOnBench:
    """A pool `name` over two disks, and its table line."""

    bench: "Workbench"
    name: str
    metadata: Disk
    data: Disk
    nr_blocks: int
    block_sectors: int
    low_water: int
    features: str

    def table(self, **other: Any) -> str:
        """Its line; keywords as the fields, where it is to differ."""
        value = {name: other.get(name, getattr(self, name)) for name in self.__dataclass_fields__}
        length = value["nr_blocks"] * value["block_sectors"]
        words = f"{value['metadata'].word} {value['data'].word} {value['block_sectors']} {value['low_water']}"
        return f"0 {length} thin-pool {words} {value['features']}".rstrip()

    @property
    def block_bytes(self) -> int:
        return self.block_sectors * SECTOR_BYTES

    async def create(self) -> "PoolOnBench":
        await self.bench.backend.create(self.name, self.table())
        return self

    async def load(self, **other: Any) -> None:
        await self.bench.backend.load(self.name, self.table(**other))

    async def reload(self, **other: Any) -> None:
        """Load, suspend, resume, as an operator changes a live pool."""
        await self.load(**other)
        await self.suspend()
        await self.resume()

    async def suspend(self) -> None:
        await self.bench.backend.suspend(self.name)

    async def resume(self) -> None:
        await self.bench.backend.resume(self.name)

    async def message(self, text: str, *, sector: int = 0) -> None:
        answer = await self.bench.backend.message(self.name, text, sector=sector)
        assert answer == ""

    async def status_line(self, *, noflush: bool = False) -> str:
        return await self.bench.backend.status(self.name, noflush=noflush)

    async def status(self, *, noflush: bool = False) -> PoolStatus:
        line = await self.status_line(noflush=noflush)
        status = PoolStatus.parse(line.split(" ", 3)[3])
        assert status is not None, line
        return status

    async def mode(self) -> str:
        """`rw`, `ro`, `out_of_data_space`, `Fail` or `Error`, without committing."""
        words = (await self.status_line(noflush=True)).split()
        return words[7] if len(words) > 4 else words[3]

    async def used(self) -> int:
        return (await self.status()).used_data_blocks

    async def event_nr(self) -> int:
        return (await self.bench.backend.info(self.name)).event_nr

    async def thin(self, dev_id: int, *, blocks: int = 64, origin: str | None = None, name: str = "") -> Volume:
        """Create a thin and activate it."""
        await self.message(f"create_thin {dev_id}")
        return await self.activate(dev_id, blocks=blocks, origin=origin, name=name)

    async def snap(self, dev_id: int, of: Volume, origin_id: int, *, blocks: int = 64) -> Volume:
        """Snapshot an active thin as its user must: suspended meanwhile; and activate it."""
        await self.bench.backend.suspend(of.name)
        await self.message(f"create_snap {dev_id} {origin_id}")
        await self.bench.backend.resume(of.name)
        return await self.activate(dev_id, blocks=blocks)

    async def activate(
        self, dev_id: int, *, blocks: int = 64, sectors: int | None = None, origin: str | None = None, name: str = ""
    ) -> Volume:
        name = name or f"t{dev_id}"
        length = blocks * self.block_sectors if sectors is None else sectors
        table = f"0 {length} thin /dev/mapper/{self.name} {dev_id} {origin or ''}".rstrip()
        await self.bench.backend.create(name, table)
        return await self.bench.volume(name, self.block_bytes)

    async def remove(self) -> None:
        await self.bench.backend.remove(self.name)

    async def reopen(self) -> None:
        """Remove it and make it again with the same table: what is on disk is what there is."""
        await self.remove()
        await self.create()


@dataclass(slots=True)
class Workbench:
    machine: Machine
    metadata_disks: list[Disk] = field(default_factory=list)
    unchecked: set[str] = field(default_factory=set)  # metadata a test has damaged on purpose
    volumes: list[Volume] = field(default_factory=list)

    @property
    def backend(self) -> Backend:
        return self.machine.backend

    @property
    def errno_of_missing_path(self) -> int:
        """What a table answers that names a path that is not there: 6.1 ENODEV, 6.12 what the lookup answered."""
        return errno.ENOENT if self.machine.kernel >= (6, 12) else errno.ENODEV

    async def metadata_disk(self, size_bytes: int = 4 * MIB, *, checked: bool = True) -> Disk:
        disk = await self.machine.disk(size_bytes)
        self.metadata_disks.append(disk)
        if not checked:
            self.unchecked.add(disk.word)
        return disk

    async def disk(self, size_bytes: int, *, discard: bool = False) -> Disk:
        return await self.machine.disk(size_bytes, discard=discard)

    async def prepare(
        self,
        nr_blocks: int = 64,
        features: str = "",
        *,
        name: str = "p",
        block_sectors: int = 128,
        low_water: int = 0,
        metadata_bytes: int = 4 * MIB,
        data_bytes: int | None = None,
        discard: bool = False,
    ) -> PoolOnBench:
        """Disks and a table; `create` is still to be called. The data disk has room for twice the blocks."""
        metadata = await self.metadata_disk(metadata_bytes)
        size = 2 * nr_blocks * block_sectors * SECTOR_BYTES if data_bytes is None else data_bytes
        data = await self.disk(size, discard=discard)
        return PoolOnBench(self, name, metadata, data, nr_blocks, block_sectors, low_water, features)

    async def pool(self, nr_blocks: int = 64, features: str = "", **other: Any) -> PoolOnBench:
        return await (await self.prepare(nr_blocks, features, **other)).create()

    async def volume(self, name: str, block_bytes: int = 64 * KIB) -> Volume:
        """A handle on an active device, closed at the end of the test."""
        volume = Volume(self.backend, name, await self.backend.open(name), block_bytes)
        self.volumes.append(volume)
        return volume

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask until it is so. Every answer is real work of the backend: time passes by itself."""
        for _ in range(PROBES):
            if await condition():
                return
            await trio.lowlevel.checkpoint()
        raise AssertionError("it did not come about")

    async def until_mode(self, pool: PoolOnBench, mode: str) -> None:
        async def reached() -> bool:
            return await pool.mode() == mode

        await self.until(reached)

    @contextlib.asynccontextmanager
    async def running(self, call: Callable[[], Awaitable[Any]]) -> AsyncIterator["Started"]:
        """`call` beside the body; ended with it, unless it has ended before."""
        async with trio.open_nursery() as nursery:
            started = Started()
            nursery.start_soon(started.run, call)
            try:
                yield started
            finally:
                nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """Close, remove, check: the end of every test."""
        for volume in self.volumes:
            await volume.close()
        await self.machine.clean()
        for disk in self.metadata_disks:
            if disk.word not in self.unchecked and any(await disk.read(0, PAGE)):
                code, text = await disk.thin_check()
                assert code == 0, f"thin_check {disk.word}: exit {code}\n{text}"


class Started:
    """A call in the background and what became of it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._ended = trio.Event()

    async def run(self, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except Exception as error:
            self.error = error
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def done(self) -> None:
        """Wait for it; raises what it raised."""
        await self._ended.wait()
        if self.error is not None:
            raise self.error
