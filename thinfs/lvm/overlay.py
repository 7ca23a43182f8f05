"""An overlay: one file beside the disks that takes what is written to their volumes; the disks are not touched.

Promises: a chunk is copied before it is written for the first time; what was written before a `flush` is there after a
crash. A volume's part of the file is bound to the state that it was made over: over another one it is refused.

    file   := slot slot volume*       slots of 64 KiB, written in turn; the valid one of the higher generation counts
    slot   := magic(16) crc32(4) length(4) JSON: generation, chunk_bytes, volumes (key, state, size, at)
    volume := bitmap (a bit a chunk, whole 4 KiB blocks)  chunks, each at its own place (a sparse file)
"""

import fcntl
import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata, Busy, InvalidArgument, IOFailed, from_oserror
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from thinfs.lvm.reading import Readable, check_range
from thinfs.units import ceil_div

CHUNK_BYTES: Final = 64 << 10
_MAGIC: Final = b"thinfs overlay 1"
_HEAD: Final = struct.Struct("<16sII")
_SLOT_BYTES: Final = 64 << 10
_BLOCK: Final = 4096


class Overlay:
    """The file. `open_volume` gives the devices; closing it closes them all."""

    def __init__(self, path: str) -> None:
        """Made if it is not there. Busy while another process has it, BadMetadata if it is something else."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_oserror(error, path) from None
        try:
            info = os.fstat(self._fd)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidArgument(f"{path}: an overlay is a regular file")
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.identity = (info.st_dev, info.st_ino)
            self._index = self._read_index() if info.st_size else _new_index()
        except BlockingIOError:
            os.close(self._fd)
            raise Busy(f"{path}: in use by another process") from None
        except BaseException:
            os.close(self._fd)
            raise
        self._volumes: list[OverlaidVolume] = []

    def close(self) -> None:
        if self._fd >= 0:
            try:
                for volume in self._volumes:
                    volume.flush()
            finally:
                os.close(self._fd)
                self._fd = -1

    def open_volume(self, below: Readable, key: str, state: str, label: str) -> "OverlaidVolume":
        """`key` names the volume for ever, `state` the contents that the overlay is over."""
        size = below.size_bytes
        found = next((entry for entry in self._index["volumes"] if entry["key"] == key), None)
        if found is None:
            found = {"key": key, "state": state, "size": size, "at": self._end()}
            self._index["volumes"].append(found)
            self._write_index()
        elif (found["state"], found["size"]) != (state, size):
            raise InvalidArgument(f"{self.path}: the disks have changed since it was made over {below.label}")
        volume = OverlaidVolume(self.path, self._fd, found["at"], below, label)
        self._volumes.append(volume)
        return volume

    def _end(self) -> int:
        ends = [entry["at"] + _bitmap_bytes(entry["size"]) + entry["size"] for entry in self._index["volumes"]]
        return ceil_div(max([2 * _SLOT_BYTES, *ends]), CHUNK_BYTES) * CHUNK_BYTES

    def _read_index(self) -> dict[str, Any]:
        found = [index for i in range(2) if (index := self._read_slot(i)) is not None]
        if not found:
            raise BadMetadata(f"{self.path}: not an overlay of thinfs")
        return max(found, key=lambda index: int(index["generation"]))

    def _read_slot(self, i: int) -> dict[str, Any] | None:
        raw = os.pread(self._fd, _SLOT_BYTES, i * _SLOT_BYTES)
        if len(raw) < _HEAD.size:
            return None
        magic, crc, length = _HEAD.unpack_from(raw)
        body = raw[_HEAD.size : _HEAD.size + length]
        if magic != _MAGIC or zlib.crc32(body) != crc:
            return None
        try:
            index: dict[str, Any] = json.loads(body)
            numbers = [index["generation"], *(entry[name] for entry in index["volumes"] for name in ("size", "at"))]
            words = [entry[name] for entry in index["volumes"] for name in ("key", "state")]
            sound = index["chunk_bytes"] == CHUNK_BYTES and all(isinstance(word, str) for word in words)
            sound = sound and all(isinstance(number, int) and 0 <= number < 1 << 60 for number in numbers)
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise BadMetadata(f"{self.path}: not an overlay that this thinfs can read")
        return index

    def _write_index(self) -> None:
        self._index["generation"] += 1
        body = json.dumps(self._index).encode("ascii")
        if _HEAD.size + len(body) > _SLOT_BYTES:
            raise InvalidArgument(
                f"{self.path}: an overlay has no room for so many volumes: name those that are wanted"
            )
        try:
            head = _HEAD.pack(_MAGIC, zlib.crc32(body), len(body))
            os.pwrite(self._fd, head + body, self._index["generation"] % 2 * _SLOT_BYTES)
            os.fsync(self._fd)
        except OSError as error:
            raise from_oserror(error, self.path) from None


def _new_index() -> dict[str, Any]:
    return {"generation": 0, "chunk_bytes": CHUNK_BYTES, "volumes": []}


def _bitmap_bytes(size: int) -> int:
    return ceil_div(ceil_div(size, CHUNK_BYTES), 8 * _BLOCK) * _BLOCK


class OverlaidVolume:
    """A volume of the disks with what was written over it: a BlockDevice."""

    def __init__(self, path: str, fd: int, at: int, below: Readable, label: str) -> None:
        self.label = label
        self.size_bytes = below.size_bytes
        self.supports_discard = True
        self._path, self._fd, self._bitmap_at, self._below = path, fd, at, below
        nr_bytes = _bitmap_bytes(self.size_bytes)
        self._at = at + nr_bytes
        self._present = bytearray(os.pread(fd, nr_bytes, at).ljust(nr_bytes, b"\0"))
        self._dirty = set[int]()  # blocks of the bitmap

    def _is_present(self, chunk: int) -> bool:
        return bool(self._present[chunk >> 3] >> (chunk & 7) & 1)

    def _set_present(self, chunk: int) -> None:
        self._present[chunk >> 3] |= 1 << (chunk & 7)
        self._dirty.add((chunk >> 3) // _BLOCK)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(first, last, whether it is in the file): chunks of one kind together."""
        while begin < end:
            chunk = begin // CHUNK_BYTES
            present = self._is_present(chunk)
            last = (chunk + 1) * CHUNK_BYTES
            while last < end and self._is_present(last // CHUNK_BYTES) == present:
                last += CHUNK_BYTES
            yield begin, min(last, end), present
            begin = min(last, end)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        parts = [
            self._pread(first, last - first) if present else self._below.read(first, last - first)
            for first, last, present in self._pieces(offset, offset + length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last, present in self._pieces(begin, end):
            if present:
                yield first, last
            else:
                yield from self._below.data_ranges(first, last)

    def write(self, offset: int, data: Buffer) -> None:
        check_range(self, offset, len(data))
        end = offset + len(data)
        for chunk in {offset // CHUNK_BYTES, max(end - 1, offset) // CHUNK_BYTES} if data else ():
            first, last = chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, self.size_bytes)
            if not self._is_present(chunk) and not (offset <= first and last <= end):
                self._pwrite(first, self._below.read(first, last - first))
        self._pwrite(offset, data)
        for chunk in range(offset // CHUNK_BYTES, ceil_div(end, CHUNK_BYTES)):
            self._set_present(chunk)

    def discard(self, offset: int, length: int) -> None:
        """Whole chunks read as zeros afterwards; the rest of the range is left."""
        check_range(self, offset, length)
        end = offset + length
        first = ceil_div(offset, CHUNK_BYTES)
        last = ceil_div(end, CHUNK_BYTES) if end == self.size_bytes else end // CHUNK_BYTES
        if first >= last:
            return
        try:
            at, length = self._at + first * CHUNK_BYTES, (last - first) * CHUNK_BYTES
            fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length)
        except OSError as error:
            raise from_oserror(error, f"{self._path}: discard") from None
        for chunk in range(first, last):
            self._set_present(chunk)

    def flush(self) -> None:
        """The chunks before the bits that say they are there."""
        try:
            os.fdatasync(self._fd)
            if self._dirty:
                for block in sorted(self._dirty):
                    at = block * _BLOCK
                    os.pwrite(self._fd, self._present[at : at + _BLOCK], self._bitmap_at + at)
                os.fdatasync(self._fd)
                self._dirty.clear()
        except OSError as error:
            raise from_oserror(error, f"{self._path}: flush") from None

    def close(self) -> None:
        self.flush()  # the file is the overlay's

    def _pread(self, offset: int, length: int) -> bytes:
        """What lies past the end of the file was discarded before anything was written behind it."""
        try:
            data = os.pread(self._fd, length, self._at + offset)
        except OSError as error:
            raise from_oserror(error, f"{self._path}: read") from None
        return data.ljust(length, b"\0")

    def _pwrite(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, self._at + offset)
                if not done:
                    raise IOFailed(f"{self._path}: write at byte {self._at + offset}: nothing was written")
                view, offset = view[done:], offset + done
        except OSError as error:
            raise from_oserror(error, f"{self._path}: write at byte {self._at + offset}") from None
