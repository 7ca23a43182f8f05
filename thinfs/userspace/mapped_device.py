"""One mapped device: a name, a live and an inactive table, a gate for its I/O, an event counter.

Promises: I/O passes while the gate is open and is counted in flight; a suspend closes the gate and waits
for what is in flight; a suspended device still answers everything that is not I/O. Satisfies the Image
of thinfs.fuse. Mirrors dm's mapped_device. Source: behaviour reference, 6.5.
"""

import bisect
import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from thinfs.blockdev import Buffer
from thinfs.errors import InvalidArgument, IOFailed, NoSpace
from thinfs.units import sectors_to_bytes
from thinfs.userspace.targets import DEFAULT_BLOCK_BYTES, InternallySuspended, PoolTarget, Requeued, Target

log = logging.getLogger("thinfs.device")


class Table:
    """Targets one after the other, from sector 0 without a gap."""

    def __init__(self, targets: list[Target], *, read_only: bool) -> None:
        self.targets = targets
        self.read_only = read_only
        self.starts = [sectors_to_bytes(target.line.start_sectors) for target in targets]
        last = targets[-1].line
        self.size_bytes = sectors_to_bytes(last.start_sectors + last.length_sectors)

    @property
    def pool_target(self) -> PoolTarget | None:
        first = self.targets[0]
        return first if isinstance(first, PoolTarget) else None

    def read(self, offset: int, length: int) -> bytes:
        if len(self.targets) == 1:
            return self.targets[0].read(offset, length)
        return b"".join(target.read(start, size) for target, start, size, _ in self.pieces(offset, length))

    def pieces(self, offset: int, length: int) -> list[tuple[Target, int, int, int]]:
        """(target, offset within it, length, offset within the request) of each target touched."""
        pieces = []
        index = bisect.bisect_right(self.starts, offset) - 1
        done = 0
        while done < length:
            target, start = self.targets[index], self.starts[index]
            end = self.starts[index + 1] if index + 1 < len(self.starts) else self.size_bytes
            size = min(length - done, end - offset - done)
            pieces.append((target, offset + done - start, size, done))
            done, index = done + size, index + 1
        return pieces

    async def close(self) -> None:
        for target in self.targets:
            await target.close()


class MappedDevice:
    """A device of this process's device-mapper. Offsets and lengths of I/O are bytes."""

    def __init__(self, name: str, uuid: str, major: int, minor: int, inode: int) -> None:
        self.name = name
        self.uuid = uuid
        self.major = major
        self.minor = minor
        self.inode = inode
        self.live: Table | None = None
        self.inactive: Table | None = None
        self.suspended = False
        self.deferred_remove = False
        self.read_only = False
        self.announced = False  # the front ends know of it
        self.gone = False
        self.event_nr = 0
        self.handles = 0
        self.lock = trio.Lock()  # one change of tables or state at a time
        self.on_last_close: Callable[[], None] | None = None
        self._internally_suspended = False
        self._gate: trio.Event | None = None  # set while closed: what waiting I/O waits for
        self._in_flight = 0
        self._drained: trio.Event | None = None
        self._event = trio.Event()
        self._size_bytes = 0

    # -- state -------------------------------------------------------------------------------------------

    def swap_in(self, table: Table) -> Table | None:
        """Make `table` the live one; the old one is the caller's to close."""
        old, self.live = self.live, table
        self.read_only = table.read_only
        self._size_bytes = table.size_bytes
        return old

    async def suspend(self, *, noflush: bool) -> None:
        """Close the gate and wait for the I/O in flight; idempotent. What waits for space is waited for,
        unless `noflush`: then it goes back to the gate."""
        if self.suspended or self.live is None:
            return
        thins = self._thins_above()
        for thin_device in thins:
            thin_device.suspend_internally()
        self._close_gate()
        try:
            for target in self.live.targets:
                await target.presuspend(noflush=noflush)
            await self._drain()
        except BaseException:
            self._open_gate_if_allowed()
            for thin_device in thins:
                thin_device.resume_internally()
            raise
        self.suspended = True
        with trio.CancelScope(shield=True):
            for target in self.live.targets:
                await target.postsuspend()

    def _thins_above(self) -> Sequence[InternallySuspended]:
        pool_target = None if self.live is None else self.live.pool_target
        return [] if pool_target is None else pool_target.users()

    async def resume(self) -> None:
        """Let the targets resume, then the I/O. On a refusal the device stays suspended."""
        if self.live is None:
            raise InvalidArgument(f"{self.name}: resume: no table is loaded")
        for target in self.live.targets:
            await target.preresume()
        for target in self.live.targets:
            await target.resume()
        self.suspended = False
        self._open_gate_if_allowed()
        for thin_device in self._thins_above():
            thin_device.resume_internally()

    def suspend_internally(self) -> None:
        """Its pool is suspended: I/O waits, yet the device still shows as active (seen)."""
        self._internally_suspended = True
        self._close_gate()

    def resume_internally(self) -> None:
        self._internally_suspended = False
        if not self.suspended:
            self._open_gate_if_allowed()

    def _close_gate(self) -> None:
        if self._gate is None:
            self._gate = trio.Event()

    def _open_gate_if_allowed(self) -> None:
        if self._gate is not None and not self._internally_suspended:
            self._gate.set()
            self._gate = None

    async def _drain(self) -> None:
        while self._in_flight:
            self._drained = trio.Event()
            await self._drained.wait()

    def retire(self) -> None:
        """The device is removed: whoever still waits at the gate gets an error."""
        self.gone = True
        self.raise_event()
        self._internally_suspended = False
        self._open_gate_if_allowed()

    def raise_event(self) -> None:
        self.event_nr += 1
        self._event.set()
        self._event = trio.Event()

    async def wait_event(self, event_nr: int) -> None:
        """Until the event counter differs from `event_nr`, or the device is gone."""
        while self.event_nr == event_nr and not self.gone:
            await self._event.wait()

    def deps(self) -> set[tuple[int, int]]:
        """Block devices named by either table: what this device keeps open."""
        tables = [table for table in (self.live, self.inactive) if table is not None]
        return {number for table in tables for target in table.targets for number in target.deps()}

    def opened(self) -> None:
        self.handles += 1

    def closed(self) -> None:
        # A loop device's own open is not counted; if somebody else detaches it, its close is none of ours either.
        self.handles = max(0, self.handles - 1)
        if self.handles == 0 and self.on_last_close is not None:
            self.on_last_close()

    # -- I/O ---------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    async def _pass_gate(self) -> Table:
        while self._gate is not None:
            await self._gate.wait()
        if self.gone or self.live is None:
            raise IOFailed(f"{self.name}: the device has no live table")
        return self.live

    def _leave(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._drained is not None:
            self._drained.set()

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes: short at the end of the device, as a block device reads."""
        table = self.live if self._gate is None and not self.gone else None
        if table is None:
            table = await self._pass_gate()
        length = min(length, table.size_bytes - offset)
        return table.read(offset, length) if length > 0 else b""

    def read_now(self, offset: int, length: int) -> bytes:
        """For a device above this one: exactly `length` bytes of the live table, suspended or not."""
        table = self.live
        if table is None or offset + length > table.size_bytes:
            raise IOFailed(f"{self.name}: read of {length} bytes at {offset} passes its end, {self._size_bytes}")
        return table.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """All of `data`; NoSpace past the end of the device, as a block device answers."""
        while True:
            table = self.live if self._gate is None and not self.gone else None
            if table is None:
                table = await self._pass_gate()
            if offset + len(data) > table.size_bytes:
                raise NoSpace(f"{self.name}: write of {len(data)} bytes at {offset} passes its end, {table.size_bytes}")
            if table.read_only:
                raise IOFailed(f"{self.name}: write to a read-only device")
            self._in_flight += 1
            try:
                if len(table.targets) == 1:
                    await table.targets[0].write(offset, data)
                else:
                    view = memoryview(data)
                    for target, start, size, done in table.pieces(offset, len(data)):
                        await target.write(start, view[done : done + size])
                return
            except Requeued:
                continue
            finally:
                self._leave()

    async def discard(self, offset: int, length: int) -> None:
        await self._by_target("discard", lambda target: target.discard, offset, length)

    async def zero(self, offset: int, length: int) -> None:
        """The range reads as zeros; whole blocks of a thin are unmapped."""
        await self._by_target("zero", lambda target: target.zero, offset, length)

    async def provision(self, offset: int, length: int) -> None:
        """Later writes to the range need no space; contents stay."""
        await self._by_target("provision", lambda target: target.provision, offset, length)

    async def _by_target(
        self,
        operation: str,
        method: Callable[[Target], Callable[[int, int], Awaitable[None]]],
        offset: int,
        length: int,
    ) -> None:
        while True:
            table = await self._pass_gate()
            if offset + length > table.size_bytes:
                raise InvalidArgument(
                    f"{self.name}: {operation} of {length} bytes at {offset} passes its end, {table.size_bytes}"
                )
            if table.read_only:
                raise IOFailed(f"{self.name}: {operation} on a read-only device")
            self._in_flight += 1
            try:
                for target, start, size, _ in table.pieces(offset, length):
                    await method(target)(start, size)
                return
            except Requeued:
                continue
            finally:
                self._leave()

    async def flush(self) -> None:
        """What was acknowledged before is durable, mappings included."""
        while True:
            table = await self._pass_gate()
            self._in_flight += 1
            try:
                for target in table.targets:
                    await target.flush()
                return
            except Requeued:
                continue
            finally:
                self._leave()

    # -- the picture as a file ---------------------------------------------------------------------------

    @property
    def allocated_bytes(self) -> int:
        return 0 if self.live is None else sum(target.allocated_bytes() for target in self.live.targets)

    @property
    def block_bytes(self) -> int:
        return DEFAULT_BLOCK_BYTES if self.live is None else self.live.targets[0].block_bytes

    def next_data(self, offset: int) -> int | None:
        """First byte of data at or after `offset`, None when there is none."""
        for target, start, size in self._targets_from(offset):
            found = target.next_data(max(0, offset - start), size)
            if found is not None:
                return start + found
        return None

    def next_hole(self, offset: int) -> int:
        """First byte of a hole at or after `offset`, the size when there is none."""
        for target, start, size in self._targets_from(offset):
            found = target.next_hole(max(0, offset - start), size)
            if found < size:
                return start + found
        return self._size_bytes

    def _targets_from(self, offset: int) -> list[tuple[Target, int, int]]:
        if self.live is None:
            return []
        sized = [
            (target, start, sectors_to_bytes(target.line.length_sectors))
            for target, start in zip(self.live.targets, self.live.starts, strict=True)
        ]
        return [(target, start, size) for target, start, size in sized if start + size > offset]
