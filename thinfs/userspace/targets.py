"""The targets a table may name: thin-pool, thin, linear, zero and error, each over the engine or a backing device.

Promises: reads are synchronous (no read waits or allocates); writes return at once when they can be done in
place. A target belongs to one table of one device and lets go of everything in `close`. Offsets are bytes
from the target's start, and already within it. Source: behaviour reference, sections 1, 2, 6.3 and 7.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.dm.backend import TargetVersion
from thinfs.dm.table import Feature, TargetLine, format_pool_params, format_thin_params, quote_word
from thinfs.errors import InvalidArgument, IOFailed, NotSupported, ThinfsError
from thinfs.pool.bio import Bio, Op
from thinfs.pool.modes import Binding
from thinfs.pool.thin import Thin
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.blocking import run_blocking
from thinfs.userspace.worker import PoolWorker

TARGET_VERSIONS: Final = (
    TargetVersion("thin-pool", (1, 22, 0)),
    TargetVersion("thin", (1, 22, 0)),
    TargetVersion("zero", (1, 2, 0)),
    TargetVersion("linear", (1, 4, 0)),
    TargetVersion("error", (1, 5, 0)),
)
DEFAULT_BLOCK_BYTES: Final = 65536


class Requeued(ThinfsError):
    """Never leaves userspace/: the bio goes back to its device, to be submitted again after the resume."""


class InternallySuspended(Protocol):
    """A thin's device, whose I/O waits while its pool is suspended."""

    def suspend_internally(self) -> None: ...
    def resume_internally(self) -> None: ...


class LowerDevice(Protocol):
    """A mapped device below a linear target."""

    major: int
    minor: int

    def read_now(self, offset: int, length: int) -> bytes: ...
    async def write(self, offset: int, data: Buffer) -> None: ...
    async def discard(self, offset: int, length: int) -> None: ...
    async def flush(self) -> None: ...


class Target(Protocol):
    """What a MappedDevice asks of the targets in its tables."""

    line: TargetLine

    def table_params(self) -> str: ...
    async def status_params(self, *, noflush: bool) -> str: ...
    def read(self, offset: int, length: int) -> bytes: ...
    async def write(self, offset: int, data: Buffer) -> None: ...
    async def discard(self, offset: int, length: int) -> None: ...
    async def flush(self) -> None: ...
    async def presuspend(self, *, noflush: bool) -> None:
        """Before the device waits for its I/O in flight."""

    async def postsuspend(self) -> None: ...
    async def preresume(self) -> None:
        """May refuse; the device then stays suspended."""

    async def resume(self) -> None: ...
    async def message(self, words: list[str]) -> None: ...
    async def close(self) -> None: ...
    def deps(self) -> list[tuple[int, int]]: ...
    @property
    def block_bytes(self) -> int: ...
    def allocated_bytes(self) -> int: ...
    def next_data(self, offset: int, end: int) -> int | None:
        """First byte of data at or after `offset`, None when there is none before `end`."""

    def next_hole(self, offset: int, end: int) -> int:
        """First byte at or after `offset` that is a hole, `end` when there is none before."""

    async def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros; may unmap."""

    async def provision(self, offset: int, length: int) -> None:
        """Later writes to the range need no space; contents stay."""


class _Plain:
    """The answers that most targets share: no state to suspend, all of it data, no messages."""

    def __init__(self, line: TargetLine) -> None:
        self.line = line

    def table_params(self) -> str:
        return ""

    async def status_params(self, *, noflush: bool) -> str:
        return ""

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    async def write(self, offset: int, data: Buffer) -> None:
        raise NotImplementedError

    async def discard(self, offset: int, length: int) -> None:
        raise NotSupported(f"{self.line.target}: discard is not supported")

    async def flush(self) -> None:
        return

    async def presuspend(self, *, noflush: bool) -> None:
        return

    async def postsuspend(self) -> None:
        return

    async def preresume(self) -> None:
        return

    async def resume(self) -> None:
        return

    async def message(self, words: list[str]) -> None:
        raise InvalidArgument(f"{self.line.target}: Target type does not support messages: {' '.join(words)}")

    async def close(self) -> None:
        return

    def deps(self) -> list[tuple[int, int]]:
        return []

    @property
    def block_bytes(self) -> int:
        return DEFAULT_BLOCK_BYTES

    def allocated_bytes(self) -> int:
        return sectors_to_bytes(self.line.length_sectors)

    def next_data(self, offset: int, end: int) -> int | None:
        return offset if offset < end else None

    def next_hole(self, offset: int, end: int) -> int:
        return end

    async def provision(self, offset: int, length: int) -> None:
        return

    async def zero(self, offset: int, length: int) -> None:
        for done in range(0, length, DEFAULT_BLOCK_BYTES):
            await self.write(offset + done, bytes(min(DEFAULT_BLOCK_BYTES, length - done)))


class SyncTarget(_Plain):
    """A target all of whose I/O is synchronous: these can stand below other devices."""

    supports_discard = False

    def write_now(self, offset: int, data: Buffer) -> None:
        raise NotImplementedError

    def discard_now(self, offset: int, length: int) -> None:
        raise NotSupported(f"{self.line.target}: discard is not supported")

    def flush_now(self) -> None:
        return

    async def write(self, offset: int, data: Buffer) -> None:
        self.write_now(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        await run_blocking(self.discard_now, offset, length)

    async def flush(self) -> None:
        await run_blocking(self.flush_now)


class ErrorTarget(SyncTarget):
    """Every I/O is EIO."""

    supports_discard = True

    def read(self, offset: int, length: int) -> bytes:
        raise IOFailed(f"error target: read at byte {offset}")

    def write_now(self, offset: int, data: Buffer) -> None:
        raise IOFailed(f"error target: write at byte {offset}")

    def discard_now(self, offset: int, length: int) -> None:
        raise IOFailed(f"error target: discard at byte {offset}")

    def flush_now(self) -> None:
        raise IOFailed("error target: flush")


class ZeroTarget(SyncTarget):
    """Reads as zeros, forgets what is written."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write_now(self, offset: int, data: Buffer) -> None:
        return

    def allocated_bytes(self) -> int:
        return 0

    def next_data(self, offset: int, end: int) -> int | None:
        return None

    def next_hole(self, offset: int, end: int) -> int:
        return offset

    async def zero(self, offset: int, length: int) -> None:
        return


class LinearTarget(SyncTarget):
    """A window of a backing device, `offset_sectors` into it."""

    def __init__(
        self, line: TargetLine, backing: Backing, offset_sectors: int, release: Callable[[Backing], None]
    ) -> None:
        super().__init__(line)
        self._backing = backing
        self._device: BlockDevice = backing.device
        self._offset_sectors = offset_sectors
        self._start = sectors_to_bytes(offset_sectors)
        self._release = release

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return self._device.supports_discard

    def table_params(self) -> str:
        return f"{quote_word(self._device.label)} {self._offset_sectors}"

    def deps(self) -> list[tuple[int, int]]:
        return _numbers_of(self._backing)

    def read(self, offset: int, length: int) -> bytes:
        return self._device.read(self._start + offset, length)

    def write_now(self, offset: int, data: Buffer) -> None:
        self._device.write(self._start + offset, data)

    def discard_now(self, offset: int, length: int) -> None:
        self._device.discard(self._start + offset, length)

    def flush_now(self) -> None:
        self._device.flush()

    async def close(self) -> None:
        self._release(self._backing)


class LinearOverThin(_Plain):
    """A window of a mapped device of this process whose I/O may wait for its pool."""

    def __init__(self, line: TargetLine, lower: LowerDevice, offset_sectors: int) -> None:
        super().__init__(line)
        self._lower = lower
        self._offset_sectors = offset_sectors
        self._start = sectors_to_bytes(offset_sectors)

    def table_params(self) -> str:
        return f"{self._lower.major}:{self._lower.minor} {self._offset_sectors}"

    def deps(self) -> list[tuple[int, int]]:
        return [(self._lower.major, self._lower.minor)]

    def read(self, offset: int, length: int) -> bytes:
        return self._lower.read_now(self._start + offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._lower.write(self._start + offset, data)

    async def discard(self, offset: int, length: int) -> None:
        await self._lower.discard(self._start + offset, length)

    async def flush(self) -> None:
        await self._lower.flush()


class ThinTarget(_Plain):
    """A thin volume active on a pool of this process."""

    def __init__(
        self,
        line: TargetLine,
        worker: PoolWorker,
        thin: Thin,
        pool_number: tuple[int, int],
        origin_label: str | None,
        origin_number: tuple[int, int] | None,
        *,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(line)
        self.thin = thin
        self._worker = worker
        self._pool_number = pool_number
        self._origin_label = origin_label
        self._origin_number = origin_number
        self._release = release
        self.read = thin.read  # type: ignore[method-assign]  # one call less on the hottest path

    @property
    def pool_worker(self) -> PoolWorker:
        return self._worker

    def table_params(self) -> str:
        if self._worker.pool.failed:
            return "Fail"
        major, minor = self._pool_number
        return format_thin_params(f"{major}:{minor}", self.thin.dev_id, self._origin_label)

    async def status_params(self, *, noflush: bool) -> str:
        return self._worker.pool.thin_status(self.thin)

    def deps(self) -> list[tuple[int, int]]:
        return [self._pool_number, *([self._origin_number] if self._origin_number else [])]

    async def write(self, offset: int, data: Buffer) -> None:
        bios = self.thin.write(offset, data)
        if bios:
            await self._worker.submit(self.thin, bios)

    async def discard(self, offset: int, length: int) -> None:
        if not self._worker.pool.discard_enabled:
            raise NotSupported(f"thin {self.thin.dev_id}: discard: the pool ignores discards")
        await self._worker.submit(self.thin, [Bio(Op.DISCARD, offset, length)])

    async def flush(self) -> None:
        await self._worker.submit(self.thin, [Bio(Op.FLUSH)])

    async def presuspend(self, *, noflush: bool) -> None:
        if noflush:
            for bio in self.thin.take_back():
                bio.complete(Requeued("suspended without flushing"))

    async def resume(self) -> None:
        self.thin.resume()

    async def close(self) -> None:
        self._worker.pool.close_thin(self.thin)
        await self._release()

    @property
    def block_bytes(self) -> int:
        return self.thin.block_bytes

    def allocated_bytes(self) -> int:
        return self.thin.mapped_bytes

    def next_data(self, offset: int, end: int) -> int | None:
        return self.thin.next_data(offset, end)

    def next_hole(self, offset: int, end: int) -> int:
        return self.thin.next_hole(offset, end)

    async def provision(self, offset: int, length: int) -> None:
        bios = self.thin.provision(offset, length)
        if bios:
            await self._worker.submit(self.thin, bios)

    async def zero(self, offset: int, length: int) -> None:
        """Unmap whole blocks where that reads as zeros, write zeros where something is mapped or shown."""
        thin, end = self.thin, offset + length
        block_bytes = thin.block_bytes
        first, last = -(-offset // block_bytes) * block_bytes, end // block_bytes * block_bytes
        unmaps = thin.origin is None and self._worker.pool.discard_enabled
        if unmaps and first < last:
            await self.discard(first, last - first)
            await self._write_zeros(offset, first)
            await self._write_zeros(last, end)
        else:
            await self._write_zeros(offset, end)

    async def _write_zeros(self, begin: int, end: int) -> None:
        while begin < end:
            data = self.thin.next_data(begin, end)
            if data is None:
                return
            stop = min(end, (data // self.block_bytes + 1) * self.block_bytes)
            await self.write(data, bytes(stop - data))
            begin = stop


class PoolTarget(_Plain):
    """A thin-pool line over the pool of its device; I/O goes one to one to the data device (seen)."""

    def __init__(
        self,
        line: TargetLine,
        worker: PoolWorker,
        binding: Binding,
        metadata: Backing,
        data: Backing,
        *,
        users: Callable[[], Sequence[InternallySuspended]],
        release: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(line)
        self._worker = worker
        self._binding = binding
        self._metadata = metadata
        self._data = data
        self._device: BlockDevice = data.device
        self.users = users
        self._release = release

    @property
    def pool_worker(self) -> PoolWorker:
        return self._worker

    def table_params(self) -> str:
        return format_pool_params(
            self._metadata.device.label,
            self._device.label,
            self._worker.pool.block_size_sectors,
            self._binding.low_water_blocks,
            self._binding.features,
        )

    async def status_params(self, *, noflush: bool) -> str:
        return await self._worker.run(self._worker.pool.status(noflush=noflush))

    def deps(self) -> list[tuple[int, int]]:
        return _numbers_of(self._metadata, self._data)

    def read(self, offset: int, length: int) -> bytes:
        return self._device.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        self._device.write(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        if Feature.IGNORE_DISCARD in self._binding.features or not self._device.supports_discard:
            raise NotSupported("thin-pool: discard is not supported")
        await run_blocking(self._device.discard, offset, length)

    async def flush(self) -> None:
        await run_blocking(self._device.flush)

    async def postsuspend(self) -> None:
        await self._worker.run(self._worker.pool.suspend())

    async def preresume(self) -> None:
        length, available = sectors_to_bytes(self.line.length_sectors), self._device.size_bytes
        if length > available:
            raise InvalidArgument(f"thin-pool: target of {length} bytes is longer than its data device, {available}")
        await self._worker.run(self._worker.pool.preresume(self._binding))

    async def resume(self) -> None:
        await self._worker.run(self._worker.pool.resume())

    async def message(self, words: list[str]) -> None:
        await self._worker.run(self._worker.pool.message(words))

    async def close(self) -> None:
        await self._release()

    @property
    def block_bytes(self) -> int:
        return self._worker.pool.data.block_bytes


def _numbers_of(*backings: Backing) -> list[tuple[int, int]]:
    return [backing.block_number for backing in backings if backing.block_number is not None]
