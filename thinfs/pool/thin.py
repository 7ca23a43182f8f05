"""One active thin volume: reads, and writes to blocks it maps and owns alone, served on the spot.

Promises: a read never allocates; a write in place never touches metadata; everything else is deferred, one bio a thin
block, to the pool's worker. Over devices that answer at once, what is in place is done when the call returns.
Mirrors the mapping half of dm-thin. Source: docs/reference/behaviour.md, 6.1 and 7.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

from thinfs.bio import Bio, Held, LowerDevice, Op, Split, Submits, answers_at_once, submitter
from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import IOFailed, NotSupported, ThinfsError
from thinfs.pool.modes import PoolMode
from thinfs.pool.state import PoolState
from thinfs.pool.thin_device import ThinDevice
from thinfs.steps import Chain, Requests

log = logging.getLogger(__name__)


class Thin:
    """A thin target's context. Offsets are bytes from the volume's start; bounds are the caller's table.

    `origin` is a read-only external origin: any size, seen where the thin maps nothing.
    """

    __slots__ = (
        "_block_bytes", "_data", "_defer", "activation_nr", "at_once", "deferred", "internal", "origin",
        "origin_below", "origin_size_bytes", "state", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        state: PoolState,
        internal: ThinDevice,
        origin: BlockDevice | LowerDevice | None,
        activation_nr: int,
        defer: Callable[["Thin", Sequence[Bio]], None],
    ) -> None:
        self.state = state
        self.activation_nr = activation_nr  # the worker serves thins in this order
        self.internal = internal
        self.origin = origin
        self.origin_below: Submits | None = None if origin is None else submitter(origin)
        self.origin_size_bytes = 0  # read at each resume of the thin
        self.deferred: list[Bio] = []  # for the worker's next pass
        self.waiting: list[Bio] = []  # out of space: retried on resume or when the pool can write again
        self.at_once = (
            state.data.at_once
            and answers_at_once(state.metadata_device)
            and (origin is None or answers_at_once(origin))
        )
        self._defer = defer
        self._data = state.data
        self._block_bytes = state.data.block_bytes

    @property
    def dev_id(self) -> int:
        return self.internal.dev_id

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @property
    def mapped_bytes(self) -> int:
        return self.internal.mapped_blocks * self._block_bytes

    def take_back(self) -> list[Bio]:
        """The bios that the worker has not begun or that wait for space: a noflush suspend sends them back."""
        bios = self.deferred + self.waiting
        self.deferred, self.waiting = [], []
        return bios

    def resume(self) -> None:
        """Adopt the origin's present size."""
        if self.origin is not None:
            self.origin_size_bytes = self.origin.size_bytes

    def _check_mode(self, operation: str, offset: int) -> None:
        if self.state.mode is PoolMode.FAIL:
            raise IOFailed(f"thin {self.dev_id}: {operation} at byte {offset}: the pool is in fail mode")

    # -- without a bio, where everything answers at once: the hot paths --------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; zeros or the origin where nothing is mapped. IOFailed in fail mode."""
        if self.state.mode is PoolMode.FAIL:
            self._check_mode("read", offset)
        block_bytes = self._block_bytes
        thin_block, start = divmod(offset, block_bytes)
        if start + length <= block_bytes:  # the common case: inside one block
            found = self.internal.find_block(thin_block)
            if found is not None:
                return self._data.read(found[0] * block_bytes + start, length)
            if self.origin is None:
                return bytes(length)
        bio = Bio(Op.READ, offset, length)
        self.submit_read(bio)
        assert bio.done
        if bio.error is not None:
            raise bio.error
        return bytes(bio.data)

    def write_now(self, offset: int, data: Buffer) -> bool:
        """Write within a block that is mapped and unshared, in place; False: submit a bio. IOFailed in fail mode."""
        if self.state.mode is PoolMode.FAIL:
            self._check_mode("write", offset)
        block_bytes = self._block_bytes
        thin_block, start = divmod(offset, block_bytes)
        if start + len(data) > block_bytes:
            return False
        found = self.internal.find_block(thin_block)
        if found is None or found[1]:
            return False
        self._data.write(found[0] * block_bytes + start, data)
        return True

    # -- bios ------------------------------------------------------------------------------------------------

    def submit(self, bio: Bio) -> None:
        """Do what is in place, leave the rest to the worker. NotSupported for a discard that the pool ignores."""
        try:
            self._check_mode(bio.op.name.lower(), bio.offset)
            match bio.op:
                case Op.READ if not self._data.held:
                    self.submit_read(bio)
                case Op.WRITE if not self._data.held:
                    self._submit_write(bio)
                case Op.PROVISION if not self._data.held:
                    self._submit_provision(bio)
                case Op.DISCARD if not self.state.settings.discard_enabled:
                    raise NotSupported(f"thin {self.dev_id}: discard: the pool ignores discards")
                case Op.DISCARD | Op.FLUSH:
                    self._defer(self, [bio])
                case Op.ZERO:
                    self._submit_zero(bio)
                case _:
                    self._defer_whole(bio)
        except Held:
            self._defer_whole(bio)
        except ThinfsError as error:
            bio.complete(error)

    def _blocks_of(self, bio: Bio) -> Iterator[tuple[int, int, int]]:
        """(thin_block, offset within the bio, length) of each block that it touches."""
        thin_block, start = divmod(bio.offset, self._block_bytes)
        done = 0
        while done < bio.length:
            size = min(self._block_bytes - start, bio.length - done)
            yield thin_block, done, size
            done, start, thin_block = done + size, 0, thin_block + 1

    def _defer_whole(self, bio: Bio) -> None:
        if bio.op is Op.READ or bio.offset // self._block_bytes == (bio.offset + bio.length - 1) // self._block_bytes:
            self._defer(self, [bio])  # `write_now` was tried before, and found nothing to write in place
            return
        split, view = Split(bio), memoryview(bio.data)
        pieces = [
            split.piece(bio.offset + done, size, view[done : done + size]) for _, done, size in self._blocks_of(bio)
        ]
        split.seal()
        self._defer(self, pieces)

    def _submit_write(self, bio: Bio) -> None:
        block_bytes = self._block_bytes
        thin_block, start = divmod(bio.offset, block_bytes)
        if start + bio.length <= block_bytes:
            self._defer(self, [bio])  # `write_now` was tried before, and found nothing to write in place
            return
        split, view, rest = Split(bio), memoryview(bio.data), []
        for thin_block, done, size in self._blocks_of(bio):
            found = self.internal.find_block(thin_block)
            piece = split.piece(bio.offset + done, size, view[done : done + size])
            if found is None or found[1]:
                rest.append(piece)
            else:
                self.write_in_place(piece, found[0])
        split.seal()
        if rest:
            self._defer(self, rest)

    def write_in_place(self, bio: Bio, data_block: int) -> None:
        """Within one block, which the thin owns alone."""
        offset = data_block * self._block_bytes + bio.offset % self._block_bytes
        if not self._data.at_once:
            self._data.forward(bio, offset)
            return
        try:
            self._data.write(offset, bio.data)
        except ThinfsError as error:
            bio.complete(error)
        else:
            bio.complete()

    def _submit_provision(self, bio: Bio) -> None:
        """Bios that map every block of the range and own it alone; contents stay as they read."""
        split, rest = Split(bio), []
        begin, end = bio.offset // self._block_bytes, -(-(bio.offset + bio.length) // self._block_bytes)
        for thin_block in range(begin, end):
            found = self.internal.find_block(thin_block)
            if found is None or found[1]:
                rest.append(split.piece(thin_block * self._block_bytes, 0))
        split.seal()
        if rest:
            self._defer(self, rest)

    def submit_read(self, bio: Bio) -> None:
        pieces = list(self._read_pieces(bio.offset, bio.offset + bio.length))
        split = Split(bio)
        for below, offset, length in pieces:
            piece = split.piece(offset, length)
            if below is None:
                piece.data = bytes(length)
                piece.complete()
            elif below is self._data.below and not self._data.at_once:
                self._data.forward(piece, offset)
            else:
                below.submit(piece)
        split.seal()

    def _read_pieces(self, begin: int, end: int) -> Iterator[tuple[Submits | None, int, int]]:
        """(where, offset there, length) of each run of the range; None: zeros."""
        block_bytes = self._block_bytes
        last_block = -(-end // block_bytes)
        while begin < end:
            thin_block = begin // block_bytes
            run = self.internal.find_mapped_range(thin_block, last_block)
            mapped_from = end if run is None else min(end, max(begin, run[0] * block_bytes))
            if mapped_from > begin:
                yield from self._unmapped_pieces(begin, mapped_from)
                begin = mapped_from
            if run is not None and begin < end:
                size = min(end, run[1] * block_bytes) - begin
                if self.internal.served is not None:
                    self.internal.teach(begin // block_bytes)
                    self.internal.teach((begin + size - 1) // block_bytes)
                yield self._data.below, run[2] * block_bytes + begin - run[0] * block_bytes, size
                begin += size

    def _unmapped_pieces(self, begin: int, end: int) -> Iterator[tuple[Submits | None, int, int]]:
        inside = end
        if self.origin_below is None:
            inside = begin
        elif self.state.mode is PoolMode.WRITE:  # else without the size rule: past its end is EIO (seen)
            inside = max(begin, min(end, self.origin_size_bytes))
        if inside > begin:
            yield self.origin_below, begin, inside - begin
        if end > inside:
            yield None, inside, end - inside

    def _submit_zero(self, bio: Bio) -> None:
        """Unmap whole blocks where that reads as zeros, write zeros where something is mapped or shown."""
        chain = Chain(self._zero_requests(bio.offset, bio.offset + bio.length), blocks=False)
        chain.start()
        chain.then(lambda: bio.complete(chain.error))

    def _zero_requests(self, begin: int, end: int) -> Requests:
        block_bytes = self._block_bytes
        first, last = -(-begin // block_bytes) * block_bytes, end // block_bytes * block_bytes
        if self.origin is None and self.state.settings.discard_enabled and first < last:
            yield self, Bio(Op.DISCARD, first, last - first)
            yield from self._write_zeros(begin, first)
            yield from self._write_zeros(last, end)
        else:
            yield from self._write_zeros(begin, end)

    def _write_zeros(self, begin: int, end: int) -> Requests:
        while begin < end:
            data = self.next_data(begin, end)
            if data is None:
                return
            stop = min(end, (data // self._block_bytes + 1) * self._block_bytes)
            yield self, Bio(Op.WRITE, data, stop - data, bytes(stop - data))
            begin = stop

    # -- where there is data ---------------------------------------------------------------------------------

    def next_data(self, offset: int, end: int) -> int | None:
        """First byte at or after `offset` that is mapped (or shows an origin), or None before `end`."""
        if offset >= end:
            return None
        if offset < self.origin_size_bytes:
            return offset
        block_bytes = self._block_bytes
        try:
            run = self.internal.find_mapped_range(offset // block_bytes, -(-end // block_bytes))
        except Held:
            return offset  # not known now: data is what never misleads
        return None if run is None else max(offset, run[0] * block_bytes)

    def next_hole(self, offset: int, end: int) -> int:
        """First byte at or after `offset` that is not data, `end` if there is none."""
        block_bytes = self._block_bytes
        offset = max(offset, min(end, self.origin_size_bytes))
        last_block = -(-end // block_bytes)
        while offset < end:
            try:
                run = self.internal.find_mapped_range(offset // block_bytes, last_block)
            except Held:
                return end
            if run is None or run[0] * block_bytes > offset:
                break
            offset = run[1] * block_bytes
        return min(offset, end)
