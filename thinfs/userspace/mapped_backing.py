"""A mapped device of this process under another one: linear, zero or error below a pool, anything as an origin.

Promises: always the device's present live table, so that a reload under a pool is seen, as dm does it.
Synchronous, like every BlockDevice: a table that needs its pool's worker (thin) can be read, not written.
A suspended device below is not waited for: its old table serves until the new one is live.
"""

from collections.abc import Iterator

from thinfs.blockdev import Buffer
from thinfs.errors import IOFailed, ThinfsError
from thinfs.userspace.mapped_device import MappedDevice, Table
from thinfs.userspace.targets import SyncTarget


class MappedBacking:
    """thinfs.blockdev.BlockDevice over a MappedDevice; its owner counts the use through the table's deps."""

    def __init__(self, device: MappedDevice) -> None:
        self.mapped = device

    @property
    def label(self) -> str:
        return f"{self.mapped.major}:{self.mapped.minor}"

    @property
    def size_bytes(self) -> int:
        return self.mapped.size_bytes

    @property
    def supports_discard(self) -> bool:
        table = self.mapped.live
        return table is not None and all(
            isinstance(target, SyncTarget) and target.supports_discard for target in table.targets
        )

    @property
    def is_writable(self) -> bool:
        """Whether every target of the live table can be written synchronously."""
        table = self.mapped.live
        return table is not None and all(isinstance(target, SyncTarget) for target in table.targets)

    def _table(self) -> Table:
        if self.mapped.live is None:
            raise IOFailed(f"{self.mapped.name}: the device has no live table")
        return self.mapped.live

    def _sync_pieces(self, operation: str, offset: int, length: int) -> Iterator[tuple[SyncTarget, int, int, int]]:
        table = self._table()
        if offset + length > table.size_bytes:
            raise IOFailed(
                f"{self.mapped.name}: {operation} of {length} bytes at {offset} passes its end, {table.size_bytes}"
            )
        for target, start, size, done in table.pieces(offset, length):
            if not isinstance(target, SyncTarget):
                raise IOFailed(f"{self.mapped.name}: {operation}: its table has become one of {target.line.target}")
            yield target, start, size, done

    def read(self, offset: int, length: int) -> bytes:
        return self.mapped.read_now(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        for target, start, size, done in self._sync_pieces("write", offset, len(data)):
            target.write_now(start, view[done : done + size])

    def flush(self) -> None:
        errors: list[ThinfsError] = []
        for target, _, _, _ in self._sync_pieces("flush", 0, self.size_bytes):
            try:
                target.flush_now()
            except ThinfsError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def discard(self, offset: int, length: int) -> None:
        for target, start, size, _ in self._sync_pieces("discard", offset, length):
            target.discard_now(start, size)

    def close(self) -> None:
        return
