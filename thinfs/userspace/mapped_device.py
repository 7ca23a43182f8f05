"""One mapped device: a name, a live and an inactive table, a gate for its I/O, an event counter.

Promises: a bio passes while the gate is open and is counted in flight until it is done; a suspend shuts the gate, waits
for what is in flight, and holds what comes, from whomever, until the resume; a suspended device still answers
everything that is not I/O. Satisfies the Image of thinfs.fuse. Mirrors dm's mapped_device.
Source: docs/reference/behaviour.md, 6.5 and 9.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from thinfs.bio import Bio, Op, Requeued, Split
from thinfs.blockdev import Buffer
from thinfs.errors import InvalidArgument, IOFailed
from thinfs.pool.served import Volume
from thinfs.userspace.table import Table
from thinfs.userspace.target import DEFAULT_BLOCK_BYTES, Target, UpperDevice

log = logging.getLogger(__name__)

_READS = (Op.READ, Op.FLUSH)


class MappedDevice:
    """A device of this process's device-mapper. Offsets and lengths of I/O are bytes.

    `on_gate_opened` is told when what waited for this device may go on: pools whose metadata it carries.
    """

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
        self.shown_as: tuple[int, int] | None = None  # (major, minor) of the machine's block device that shows it
        self.on_gate_opened: Callable[[], None] | None = None
        self._now: Table | None = None  # the live table while the gate is open
        self._volume: Volume | None = None  # serves our file beside us
        self._shut = False
        self._internally_suspended = False
        self._held: list[Bio] = []
        self._in_flight = 0
        self._drained: trio.Event | None = None
        self._event = trio.Event()
        self._internally_resumed = trio.Event()

    # -- state -------------------------------------------------------------------------------------------

    def swap_in(self, table: Table) -> Table | None:
        """Make `table` the live one, gate shut; the old one is the caller's to close."""
        old, self.live = self.live, table
        self.read_only = table.read_only
        self._shut_gate()
        self.suspended = True
        return old

    async def suspend(self, *, noflush: bool) -> None:
        """Shut the gate and wait for the I/O in flight; idempotent. What waits for space is waited for,
        unless `noflush`: then it goes back to the gate."""
        if self.suspended or self.live is None:
            return
        uppers = self._uppers()
        for upper in uppers:
            upper.suspend_internally()
        self._shut_gate()
        try:
            for target in self.live.targets:
                await target.presuspend(noflush=noflush)
            await self._drain()
        except BaseException:
            self._open_gate_if_allowed()
            for upper in uppers:
                upper.resume_internally()
            raise
        self.suspended = True
        with trio.CancelScope(shield=True):
            for target in self.live.targets:
                await target.postsuspend()

    def _uppers(self) -> Sequence[UpperDevice]:
        targets = [] if self.live is None else self.live.targets
        return [upper for target in targets for upper in target.uppers()]

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
        for upper in self._uppers():
            upper.resume_internally()

    def suspend_internally(self) -> None:
        """Its pool is suspended: I/O waits, yet the device still shows as active (seen)."""
        self._internally_suspended = True
        self._shut_gate()

    def resume_internally(self) -> None:
        self._end_internal_suspension()
        if not self.suspended:
            self._open_gate_if_allowed()

    def _end_internal_suspension(self) -> None:
        self._internally_suspended = False
        self._internally_resumed.set()
        self._internally_resumed = trio.Event()

    async def internally_resumed(self) -> None:
        """Until its pool runs: a suspend of the device waits for that, as the kernel's (seen)."""
        while self._internally_suspended:
            await self._internally_resumed.wait()

    def _shut_gate(self) -> None:
        self._shut = True
        self._let_pass(None)

    def _open_gate_if_allowed(self) -> None:
        if self._internally_suspended:
            return
        self._shut = False
        self._let_pass(None if self.gone else self.live)
        if self.on_gate_opened is not None:
            self.on_gate_opened()
        held, self._held = self._held, []
        for bio in held:
            self.submit(bio)

    def _let_pass(self, table: Table | None) -> None:
        """What I/O goes to from now on; on return nothing is under way any more past us by what it went to before."""
        if self._volume is not None:
            self._volume.withdraw(self.inode)
        self._now = table
        self._volume = None if table is None else table.volume
        if table is not None and self._volume is not None:
            self._volume.serve(self.inode, table.size_bytes, not table.read_only)

    async def _drain(self) -> None:
        while self._in_flight:
            self._drained = trio.Event()
            await self._drained.wait()

    def retire(self) -> None:
        """The device is removed: whoever still waits at the gate gets an error."""
        self.gone = True
        self.raise_event()
        self._end_internal_suspension()
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
        return {number for table in tables for number in table.deps()}

    def is_held(self) -> bool:
        """Whether it, or something that it stands on, holds its I/O at present."""
        targets = [] if self.live is None else self.live.targets
        return self._shut or any(backing.is_held() for target in targets for backing in target.lowers())

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
        return 0 if self.live is None else self.live.size_bytes

    @property
    def supports_discard(self) -> bool:
        return self.live is not None and all(target.supports_discard for target in self.live.targets)

    def read_now(self, offset: int, length: int) -> bytes | None:
        """A read that needs no waiting, without a bio; None: submit one. Its errors are raised."""
        table = self._now
        if table is None or not 0 <= offset <= table.size_bytes - length:
            return None
        return table.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Whether it is written, without a bio and without waiting; False: submit one. Its errors are raised."""
        table = self._now
        if table is None or table.read_only or not 0 <= offset <= table.size_bytes - len(data):
            return False
        return table.write_now(offset, data)

    def submit(self, bio: Bio) -> None:
        """Held while the gate is shut. IOFailed past the end, on a read-only device, without a live table."""
        if self.gone or (self.live is None and not self._shut):
            bio.complete(IOFailed(f"{self.name}: the device has no live table"))
        elif self._now is None:
            self._held.append(bio)
        else:
            self._pass_on(bio, self._now)

    def _pass_on(self, bio: Bio, table: Table) -> None:
        end = bio.offset + bio.length
        if not 0 <= bio.offset <= end <= table.size_bytes:
            what = f"{bio.op.name.lower()} of {bio.length} bytes at {bio.offset}"
            bio.complete(IOFailed(f"{self.name}: {what} passes its end, {table.size_bytes}"))
            return
        if table.read_only and bio.op not in _READS:
            bio.complete(IOFailed(f"{self.name}: {bio.op.name.lower()} on a read-only device"))
            return
        # A bio of our own goes to the target: a suspend may take it back, and the other one is then held here.
        own = Bio(bio.op, bio.offset, bio.length, bio.data)
        self._in_flight += 1
        if len(table.targets) == 1:
            _submit(table.targets[0], own)
        else:
            split, view = Split(own), memoryview(bio.data)
            if bio.op is Op.FLUSH:
                pieces = [(target, split.piece(0, 0)) for target in table.targets]
            else:
                pieces = [
                    (target, split.piece(start, size, view[done : done + size]))
                    for target, start, size, done in table.pieces(bio.offset, bio.length)
                ]
            for target, piece in pieces:
                _submit(target, piece)
            split.seal()
        own.then(lambda: self._came_back(bio, own))

    def _came_back(self, bio: Bio, own: Bio) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._drained is not None:
            self._drained.set()
        if isinstance(own.error, Requeued):
            if self._shut:
                self._held.append(bio)
            else:  # the suspend was given up meanwhile
                self.submit(bio)
        else:
            bio.data = own.data
            bio.complete(own.error)

    # -- the picture as a file ---------------------------------------------------------------------------

    @property
    def written_ns(self) -> int:
        """When its file was last written past us, as time.time_ns(); 0 where it was not, or nobody knows any more."""
        return 0 if self._volume is None else self._volume.written_ns

    @property
    def allocated_bytes(self) -> int:
        return 0 if self.live is None else sum(target.allocated_bytes() for target in self.live.targets)

    @property
    def block_bytes(self) -> int:
        return DEFAULT_BLOCK_BYTES if self.live is None else self.live.targets[0].block_bytes

    def next_data(self, offset: int) -> int | None:
        """First byte of data at or after `offset`, None when there is none."""
        for target, start, size in [] if self.live is None else self.live.targets_from(offset):
            found = target.next_data(max(0, offset - start), size)
            if found is not None:
                return start + found
        return None

    def next_hole(self, offset: int) -> int:
        """First byte of a hole at or after `offset`, the size when there is none."""
        for target, start, size in [] if self.live is None else self.live.targets_from(offset):
            found = target.next_hole(max(0, offset - start), size)
            if found < size:
                return start + found
        return self.size_bytes


def _submit(target: Target, bio: Bio) -> None:
    try:
        target.submit(bio)
    except Exception as error:
        log.exception("%s: %r: a bug", target.line.target, bio)
        if not bio.done:
            bio.complete(IOFailed(f"{target.line.target}: internal error, see the log: {error!r}"))
