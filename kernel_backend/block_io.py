"""Direct I/O on block devices, and the data a test writes: patterns from a seed, digests for answers.

Promises: O_DIRECT, so every request reaches the device and its errno comes back; several threads at once.
Never: imports beyond the standard library (the guest's agent runs this file as well as the local backend).
Patterns and digests exist so that bulk data need not cross the guest's boundary: both sides compute them.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

BUFFER_BYTES: Final = 1 << 20
_BLKDISCARD: Final = 0x1277
_BLKGETSIZE64: Final = 0x80081272


def pattern(seed: int, length: int) -> bytes:
    """`length` bytes (whole sectors), sector i of them holding `seed` and i over and over."""
    return b"".join(struct.pack("<QQ", seed, i) * 32 for i in range(length // 512))


def digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class BlockIO:
    """Open handles on block devices, by number, and a store of aligned buffers for O_DIRECT."""

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []
        self._open: set[int] = set()

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[mmap.mmap]:
        try:
            buffer = self._buffers.pop()  # list.pop is atomic: no lock for the threads
        except IndexError:
            buffer = mmap.mmap(-1, BUFFER_BYTES)
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)

    def open(self, path: str, read_only: bool = False) -> int:
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT | os.O_CLOEXEC
        handle = os.open(path, flags)
        self._open.add(handle)
        return handle

    def close(self, handle: int) -> None:
        if handle not in self._open:
            raise OSError(9, f"handle {handle} is not open")
        self._open.discard(handle)
        os.close(handle)

    def close_all(self) -> None:
        for handle in list(self._open):
            self.close(handle)

    def size_bytes(self, handle: int) -> int:
        (size,) = struct.unpack("<Q", fcntl.ioctl(handle, _BLKGETSIZE64, bytes(8)))
        return int(size)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        return b"".join(self._pieces(handle, offset, length))

    def read_digest(self, handle: int, offset: int, length: int) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for piece in self._pieces(handle, offset, length):
            whole.update(piece)
        return whole.hexdigest()

    def _pieces(self, handle: int, offset: int, length: int) -> Iterator[bytes]:
        with self._buffer() as buffer:
            view = memoryview(buffer)
            while length:
                size = min(length, BUFFER_BYTES)
                done = os.preadv(handle, [view[:size]], offset)
                if done == 0:
                    raise OSError(5, f"no data at byte {offset}, the device ends before")
                yield bytes(view[:done])
                offset, length = offset + done, length - done

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> None:
        with self._buffer() as buffer:
            view, rest = memoryview(buffer), memoryview(data)
            while rest:
                size = min(len(rest), BUFFER_BYTES)
                view[:size] = rest[:size]
                done = os.pwritev(handle, [view[:size]], offset)
                offset, rest = offset + done, rest[done:]

    def write_pattern(self, handle: int, offset: int, length: int, seed: int) -> None:
        self.write(handle, offset, pattern(seed, length))

    def discard(self, handle: int, offset: int, length: int) -> None:
        fcntl.ioctl(handle, _BLKDISCARD, struct.pack("<QQ", offset, length))

    def flush(self, handle: int) -> None:
        os.fsync(handle)
