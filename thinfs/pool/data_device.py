"""The data device as the pool sees it: an array of data blocks over a device that answers at once, or may hold its I/O.

Promises: offsets are checked by the device below; copies and zeroes go in slices of at most 1 MiB, so a 1 GiB block
needs no 1 GiB of memory; what is under way in place on a device that may hold it is known, and can be waited for.
Never: allocates, knows who owns a block.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from thinfs.bio import Bio, LowerDevice, Op, Submits, answers_at_once, submitter
from thinfs.blockdev import BlockDevice, Buffer
from thinfs.steps import Chain, Requests, Steps, UnderWay
from thinfs.units import sectors_to_bytes

_SLICE_BYTES: Final = 1 << 20
_ZEROES: Final = bytes(_SLICE_BYTES)


class DataDevice:
    """`block_bytes` is the pool's data block size; data_block numbers count from the device's start.

    `read` and `write` are for a device that answers `at_once`, and raise its errors.
    """

    def __init__(self, device: BlockDevice | LowerDevice, block_size_sectors: int) -> None:
        self.device = device
        self.block_bytes = sectors_to_bytes(block_size_sectors)
        self.at_once = answers_at_once(device)
        self.below: Submits = submitter(device)
        self._under_way: set[Bio] = set()
        self.held = False  # in place nothing begins: a change waits for what is under way
        if answers_at_once(device):  # the hot paths of thin volumes; bound once
            self.read = device.read
            self.write = device.write

    @property
    def supports_passdown(self) -> bool:
        return self.device.supports_discard

    def chain(self, requests: Requests, *, source_at_once: bool = True, tries_all: bool = False) -> Chain:
        """Requests to this device; `source_at_once` of the other device in them, if there is one."""
        return Chain(requests, blocks=self.at_once and source_at_once, tries_all=tries_all)

    # -- in place ----------------------------------------------------------------------------------------

    def forward(self, bio: Bio, offset: int) -> None:
        """Do a thin's bio at `offset` of the data device; the bio completes when that has."""
        below = Bio(bio.op, offset, bio.length, bio.data)
        self.below.submit(below)
        if not below.done:
            self._under_way.add(below)
            below.then(lambda: self._under_way.discard(below))
        bio.follow(below)

    def drained(self) -> Steps[None]:
        """Until what is under way in place now has come to its end."""
        if self._under_way:
            yield UnderWay(self._under_way)

    # -- requests for a Chain ----------------------------------------------------------------------------

    def flush(self) -> Requests:
        return [(self.below, Bio(Op.FLUSH))]

    def copy_block(self, source_block: int, target_block: int) -> Requests:
        return self.copy_in(self.below, source_block * self.block_bytes, target_block, self.block_bytes)

    def copy_in(
        self, source: Submits, source_offset: int, target_block: int, length: int
    ) -> Iterator[tuple[Submits, Bio]]:
        """Copy `length` bytes from another device to the start of a data block."""
        target = target_block * self.block_bytes
        for done in range(0, length, _SLICE_BYTES):
            size = min(_SLICE_BYTES, length - done)
            read = Bio(Op.READ, source_offset + done, size)
            yield source, read
            yield self.below, Bio(Op.WRITE, target + done, size, read.data)

    def zero(self, data_block: int, begin_bytes: int = 0) -> Iterator[tuple[Submits, Bio]]:
        """Zero a data block from `begin_bytes` within it to its end."""
        start = data_block * self.block_bytes
        for done in range(begin_bytes, self.block_bytes, _SLICE_BYTES):
            size = min(_SLICE_BYTES, self.block_bytes - done)
            yield self.below, Bio(Op.WRITE, start + done, size, _ZEROES if size == _SLICE_BYTES else _ZEROES[:size])

    def write_in_block(self, data_block: int, offset: int, data: Buffer) -> Requests:
        return [(self.below, Bio(Op.WRITE, data_block * self.block_bytes + offset, len(data), data))]

    def discard_blocks(self, runs: Iterable[tuple[int, int]]) -> Iterator[tuple[Submits, Bio]]:
        """Discards of [begin, end) each; one that fails has merely kept the data (docs/reference/behaviour.md, 6.3)."""
        for begin, end in runs:
            yield self.below, Bio(Op.DISCARD, begin * self.block_bytes, (end - begin) * self.block_bytes)
