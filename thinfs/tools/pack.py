"""Metadata in a file of its blocks that hold something, compressed: for reports, and for the archive.

Promises: what `unpack` of thin_metadata_unpack 1.x reads, and reads what thin_metadata_pack 1.x writes; every block
that is not zeros is in it, the damaged ones too, which theirs leaves out. Unpacking makes no more than the file says
and is refused where that is nonsense. The format was worked out from files of 1.1.0, it is described nowhere.
"""

import zlib
from array import array
from collections.abc import Callable, Iterator
from struct import Struct, error
from typing import BinaryIO, Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument
from thinfs.units import METADATA_BLOCK_BYTES

_HEADER: Final = Struct("<QQQQ")  # magic, version, block size, number of blocks of the device
_MAGIC: Final = 0xA537A0AA6309EF77
_VERSION: Final = 3
_MAX_BLOCKS: Final = 1 << 26
_BLOCKS_PER_CHUNK: Final = 1024
_READ_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(METADATA_BLOCK_BYTES)
# A block of a chunk: its number, then instructions until it is full. The high half of the first byte of an
# instruction says what it is, the low half is a number or says how many bytes of one follow.
_SET, _ADD, _ADD_LONG, _SUBTRACT, _SUBTRACT_LONG = 0, 1, 2, 3, 4
_SAME, _SAME_LONG, _REPEAT, _REPEAT_LONG, _BYTES, _BYTES_LONG, _SPLIT = 5, 6, 7, 8, 9, 10, 11
_WHOLE_BLOCK: Final = bytes((_BYTES_LONG << 4 | 2,)) + METADATA_BLOCK_BYTES.to_bytes(2, "little")
_TIME_BITS: Final = 24  # the values of a split are what lies above, then what lies below


def pack(device: BlockDevice, file: BinaryIO) -> int:
    """How many blocks are in it."""
    nr_blocks = device.size_bytes // METADATA_BLOCK_BYTES
    file.write(_HEADER.pack(_MAGIC, _VERSION, METADATA_BLOCK_BYTES, nr_blocks))
    packed = 0
    chunk: list[bytes] = []
    for first in range(0, nr_blocks, 256):
        nr = min(256, nr_blocks - first)
        data = device.read(first * METADATA_BLOCK_BYTES, nr * METADATA_BLOCK_BYTES)
        for i in range(nr):
            block = data[i * METADATA_BLOCK_BYTES : (i + 1) * METADATA_BLOCK_BYTES]
            if block != _ZEROS:
                chunk += ((first + i).to_bytes(8, "little"), _WHOLE_BLOCK, block)
                packed += 1
        if len(chunk) >= 3 * _BLOCKS_PER_CHUNK:
            _write_chunk(file, chunk)
    if chunk:
        _write_chunk(file, chunk)
    return packed


def _write_chunk(file: BinaryIO, chunk: list[bytes]) -> None:
    data = zlib.compress(b"".join(chunk))
    file.write(len(data).to_bytes(8, "little"))
    file.write(data)
    chunk.clear()


class _Chunks:
    """The uncompressed bytes of all chunks, a few at a time."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress
        self._left = 0  # of the chunk, compressed
        self._inflate = zlib.decompressobj()
        self._bytes = bytearray()

    def at_end(self) -> bool:
        return not self._fill(1)

    def take(self, nr: int) -> bytes:
        if not self._fill(nr):
            raise InvalidArgument("not a packed metadata file: it ends too early")
        taken = bytes(self._bytes[:nr])
        del self._bytes[:nr]
        return taken

    def number(self, nr_bytes: int) -> int:
        return int.from_bytes(self.take(nr_bytes), "little")

    def _fill(self, nr: int) -> bool:
        while len(self._bytes) < nr:
            if not self._left and not self._inflate.unconsumed_tail and not self._next_chunk():
                return False
            data = self._inflate.unconsumed_tail
            if not data:
                data = self._file.read(min(self._left, _READ_BYTES))
                self._progress(len(data))
                if not data:
                    raise InvalidArgument("not a packed metadata file: it ends too early")
                self._left -= len(data)
            try:
                self._bytes += self._inflate.decompress(data, _READ_BYTES)
            except zlib.error as problem:
                raise InvalidArgument(f"not a packed metadata file: {problem}") from None
        return True

    def _next_chunk(self) -> bool:
        head = self._file.read(8)
        if not head:
            return False
        self._left = int.from_bytes(head, "little")
        self._inflate = zlib.decompressobj()
        if len(head) < 8 or not self._left:
            raise InvalidArgument("not a packed metadata file: a chunk without a length")
        return True


def read_header(file: BinaryIO) -> int:
    """How many blocks the device had."""
    try:
        magic, version, block_bytes, nr_blocks = _HEADER.unpack(file.read(_HEADER.size))
    except error:
        magic = None
    if magic != _MAGIC:
        raise InvalidArgument("not a packed metadata file")
    if version != _VERSION or block_bytes != METADATA_BLOCK_BYTES or nr_blocks > _MAX_BLOCKS:
        raise InvalidArgument(f"packed metadata of version {version}: {nr_blocks} blocks of {block_bytes} bytes")
    return int(nr_blocks)


def blocks(
    file: BinaryIO, nr_blocks: int, progress: Callable[[int], None] = lambda nr_bytes: None
) -> Iterator[tuple[int, bytes]]:
    """(number, block) of all that follows the header."""
    chunks = _Chunks(file, progress)
    while not chunks.at_end():
        block_nr = chunks.number(8)
        if block_nr >= nr_blocks:
            raise InvalidArgument(f"packed metadata: block {block_nr} of {nr_blocks}")
        yield block_nr, _block(chunks)


def _block(chunks: _Chunks) -> bytes:
    block = bytearray()
    value = 0
    while len(block) < METADATA_BLOCK_BYTES:
        room = METADATA_BLOCK_BYTES - len(block)
        what, low = divmod(chunks.number(1), 16)
        if what in (_BYTES, _BYTES_LONG):
            nr = low if what == _BYTES else chunks.number(_length(low))
            if not 0 < nr <= room:
                raise InvalidArgument("packed metadata: more than a block")
            block += chunks.take(nr)
        elif what == _SPLIT:
            nr = _count(low << 8 | chunks.number(1), room // 8)
            above, below = _numbers(chunks, nr), _numbers(chunks, nr)
            words = [(one << _TIME_BITS | other) & _MASK for one, other in zip(above, below, strict=True)]
            block += array("Q", words).tobytes()
        else:
            values, value = _step(chunks, what, low, value, room // 8)
            block += array("Q", values).tobytes()
    return bytes(block)


_MASK: Final = (1 << 64) - 1


def _numbers(chunks: _Chunks, nr: int) -> list[int]:
    found: list[int] = []
    value = 0
    while len(found) < nr:
        what, low = divmod(chunks.number(1), 16)
        values, value = _step(chunks, what, low, value, nr - len(found))
        found += values
    return found


def _step(chunks: _Chunks, what: int, low: int, value: int, room: int) -> tuple[list[int], int]:
    """What one instruction about numbers gives, and the last of them."""
    if what in (_SAME, _SAME_LONG):
        return [value] * _count(low if what == _SAME else low << 8 | chunks.number(1), room), value
    times = 1
    if what in (_REPEAT, _REPEAT_LONG):
        times = _count(low if what == _REPEAT else low << 8 | chunks.number(1), room)
        what, low = divmod(chunks.number(1), 16)
    if what == _SET:
        found = [chunks.number(_length(low)) if low else 0] * times
    elif what in (_ADD, _ADD_LONG, _SUBTRACT, _SUBTRACT_LONG):
        step = low if what in (_ADD, _SUBTRACT) else chunks.number(_length(low))
        if what in (_SUBTRACT, _SUBTRACT_LONG):
            step = -step
        found = [value + step * i & _MASK for i in range(1, _count(times, room) + 1)]
    else:
        raise InvalidArgument(f"packed metadata: instruction {what}, which is not known")
    _count(len(found), room)
    return found, found[-1]


def _count(nr: int, room: int) -> int:
    if not 0 < nr <= room:
        raise InvalidArgument("packed metadata: more than a block")
    return nr


def _length(nr_bytes: int) -> int:
    if not 0 < nr_bytes <= 8:
        raise InvalidArgument(f"packed metadata: a number of {nr_bytes} bytes")
    return nr_bytes
