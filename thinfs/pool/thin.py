"""One active thin volume: reads, and writes to blocks it maps and owns alone, served on the spot.

Promises: a read never allocates and never waits; a write in place never touches metadata; everything else
is handed back as bios, one per thin block, for the pool's worker. Mirrors the mapping half of dm-thin.
Source: behaviour reference, sections 6.1 and 7.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from thinfs.blockdev import Buffer
from thinfs.errors import IOFailed
from thinfs.pool.bio import Bio, Op
from thinfs.pool.modes import PoolMode

if TYPE_CHECKING:
    from thinfs.pool.metadata import ThinDevice
    from thinfs.pool.pool import Pool


class Origin(Protocol):
    """A read-only external origin: any size, seen where the thin maps nothing."""

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class Thin:
    """A thin target's context. Offsets are bytes from the volume's start; bounds are the caller's table."""

    __slots__ = (
        "_block_bytes", "_data", "activation_nr", "deferred", "internal", "origin", "origin_size_bytes", "pool",
        "waiting",
    )  # fmt: skip

    def __init__(self, pool: "Pool", internal: "ThinDevice", origin: Origin | None, activation_nr: int) -> None:
        self.pool = pool
        self.activation_nr = activation_nr  # the worker serves thins in this order
        self.internal = internal
        self.origin = origin
        self.origin_size_bytes = 0  # read at each resume of the thin
        self.deferred: list[Bio] = []  # for the worker's next pass
        self.waiting: list[Bio] = []  # out of space: retried on resume or when the pool can write again
        self._data = pool.data
        self._block_bytes = pool.data.block_bytes

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

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes; zeros or the origin where nothing is mapped. IOFailed in fail mode."""
        if self.pool.mode is PoolMode.FAIL:
            raise IOFailed(f"thin {self.dev_id}: read at byte {offset}: the pool is in fail mode")
        block_bytes = self._block_bytes
        thin_block, start = divmod(offset, block_bytes)
        if start + length <= block_bytes:  # the common case: inside one block
            found = self.internal.find_block(thin_block)
            if found is not None:
                return self._data.read(found[0] * block_bytes + start, length)
            return self._read_unmapped(offset, length)
        return b"".join(self._read_pieces(offset, length))

    def _read_pieces(self, offset: int, length: int) -> Iterator[bytes]:
        block_bytes = self._block_bytes
        end = offset + length
        last_block = -(-end // block_bytes)
        while offset < end:
            thin_block = offset // block_bytes
            run = self.internal.find_mapped_range(thin_block, last_block)
            begin = end if run is None else max(offset, run[0] * block_bytes)
            if begin > offset:
                yield self._read_unmapped(offset, min(begin, end) - offset)
                offset = begin
            if run is not None and offset < end:
                size = min(end, run[1] * block_bytes) - offset
                yield self._data.read(run[2] * block_bytes + offset - run[0] * block_bytes, size)
                offset += size

    def _read_unmapped(self, offset: int, length: int) -> bytes:
        if self.origin is None:
            return bytes(length)
        if self.pool.mode is not PoolMode.WRITE:
            return self.origin.read(offset, length)  # without the size rule: past its end is EIO (seen)
        inside = max(0, min(length, self.origin_size_bytes - offset))
        return (self.origin.read(offset, inside) if inside else b"") + bytes(length - inside)

    def write(self, offset: int, data: Buffer) -> list[Bio]:
        """Write what is mapped and unshared in place; the rest comes back as bios for `Pool.defer`."""
        if self.pool.mode is PoolMode.FAIL:
            raise IOFailed(f"thin {self.dev_id}: write at byte {offset}: the pool is in fail mode")
        block_bytes = self._block_bytes
        thin_block, start = divmod(offset, block_bytes)
        length = len(data)
        find_block = self.internal.find_block
        if start + length <= block_bytes:
            found = find_block(thin_block)
            if found is not None and not found[1]:
                self._data.write(found[0] * block_bytes + start, data)
                return []
            return [Bio(Op.WRITE, offset, length, data)]
        bios: list[Bio] = []
        view = memoryview(data)
        done = 0
        while done < length:
            size = min(block_bytes - start, length - done)
            found = find_block(thin_block)
            if found is None or found[1]:
                bios.append(Bio(Op.WRITE, offset + done, size, view[done : done + size]))
            else:
                self._data.write(found[0] * block_bytes + start, view[done : done + size])
            done, start, thin_block = done + size, 0, thin_block + 1
        return bios

    def provision(self, offset: int, length: int) -> list[Bio]:
        """Bios that map every block of the range and own it alone; contents stay as they read."""
        if self.pool.mode is PoolMode.FAIL:
            raise IOFailed(f"thin {self.dev_id}: provision at byte {offset}: the pool is in fail mode")
        block_bytes = self._block_bytes
        bios = []
        for thin_block in range(offset // block_bytes, -(-(offset + length) // block_bytes)):
            found = self.internal.find_block(thin_block)
            if found is None or found[1]:
                bios.append(Bio(Op.PROVISION, thin_block * block_bytes))
        return bios

    def next_data(self, offset: int, end: int) -> int | None:
        """First byte at or after `offset` that is mapped (or shows an origin), or None before `end`."""
        if offset >= end:
            return None
        if offset < self.origin_size_bytes:
            return offset
        block_bytes = self._block_bytes
        run = self.internal.find_mapped_range(offset // block_bytes, -(-end // block_bytes))
        return None if run is None else max(offset, run[0] * block_bytes)

    def next_hole(self, offset: int, end: int) -> int:
        """First byte at or after `offset` that is not data, `end` if there is none."""
        block_bytes = self._block_bytes
        offset = max(offset, min(end, self.origin_size_bytes))
        last_block = -(-end // block_bytes)
        while offset < end:
            run = self.internal.find_mapped_range(offset // block_bytes, last_block)
            if run is None or run[0] * block_bytes > offset:
                break
            offset = run[1] * block_bytes
        return min(offset, end)
