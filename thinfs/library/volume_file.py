"""A volume as a Python file object: what dissect, fsspec's callers, zipfile or shutil take.

Promises: io.RawIOBase's contract over anything with `read`, `write`, `flush` and `size_bytes`.
"""

import io
import os
from typing import Any, Protocol


class Bytes(Protocol):
    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def flush(self) -> None: ...


class VolumeFile(io.RawIOBase):
    def __init__(self, volume: Bytes, *, writable: bool) -> None:
        super().__init__()
        self._volume = volume
        self._writable = writable
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._writable

    def seekable(self) -> bool:
        return True

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def tell(self) -> int:
        self._check()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._volume.size_bytes}.get(whence)
        if start is None or start + offset < 0:
            raise ValueError(f"seek to {offset}, whence {whence}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._check()
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._volume.size_bytes - self._position))
        view[:length] = self._volume.read(self._position, length)
        self._position += length
        return length

    def write(self, data: Any) -> int:
        """As many as fit before the end; ENOSPC when none do, as on a block device."""
        self._check()
        if not self._writable:
            raise io.UnsupportedOperation("not writable")
        view = memoryview(data).cast("B")
        length = max(0, min(len(view), self._volume.size_bytes - self._position))
        if len(view) and not length:
            raise OSError(28, os.strerror(28))
        self._volume.write(self._position, view[:length])
        self._position += length
        return length

    def flush(self) -> None:
        """What was written is durable."""
        if not self.closed and self._writable:
            self._volume.flush()
