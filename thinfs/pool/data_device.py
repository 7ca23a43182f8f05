"""The data device as the pool sees it: an array of data blocks over a BlockDevice.

Promises: offsets are checked by the device below; copies and zeroes go in slices of at most 1 MiB, so a
1 GiB block needs no 1 GiB of memory. Never: allocates, knows who owns a block.
"""

from typing import Final, Protocol

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import ThinfsError
from thinfs.units import sectors_to_bytes

_SLICE_BYTES: Final = 1 << 20
_ZEROES: Final = bytes(_SLICE_BYTES)


class Readable(Protocol):
    """What blocks are copied in from: a device, or an external origin."""

    def read(self, offset: int, length: int) -> bytes: ...


class DataDevice:
    """`block_bytes` is the pool's data block size; data_block numbers count from the device's start."""

    def __init__(self, device: BlockDevice, block_size_sectors: int) -> None:
        self.device = device
        self.block_bytes = sectors_to_bytes(block_size_sectors)
        # the hot paths of thin volumes; bound once
        self.read = device.read
        self.write = device.write

    @property
    def supports_passdown(self) -> bool:
        return self.device.supports_discard

    def flush(self) -> None:
        self.device.flush()

    def copy_block(self, source_block: int, target_block: int) -> None:
        self.copy_in(self.device, source_block * self.block_bytes, target_block, self.block_bytes)

    def copy_in(self, source: Readable, source_offset: int, target_block: int, length: int) -> None:
        """Copy `length` bytes from another device to the start of a data block."""
        target = target_block * self.block_bytes
        for done in range(0, length, _SLICE_BYTES):
            size = min(_SLICE_BYTES, length - done)
            self.device.write(target + done, source.read(source_offset + done, size))

    def zero(self, data_block: int, begin_bytes: int = 0) -> None:
        """Zero a data block from `begin_bytes` within it to its end."""
        start = data_block * self.block_bytes
        for done in range(begin_bytes, self.block_bytes, _SLICE_BYTES):
            size = min(_SLICE_BYTES, self.block_bytes - done)
            self.device.write(start + done, _ZEROES if size == _SLICE_BYTES else _ZEROES[:size])

    def write_in_block(self, data_block: int, offset: int, data: Buffer) -> None:
        self.device.write(data_block * self.block_bytes + offset, data)

    def discard_blocks(self, begin: int, end: int) -> None:
        """Pass a discard down; a device that fails it has merely kept the data (reference, 6.3)."""
        try:
            self.device.discard(begin * self.block_bytes, (end - begin) * self.block_bytes)
        except ThinfsError:
            return
