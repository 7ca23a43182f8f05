"""Readers and writers of a volume's file that know at any time what it may hold: for changes made under their feet.

Promises: a sector (4 KiB) is written by one thread, each time with the next number, together with whose it is and
where; so what is read tells whether it is of this volume, of this place, and of which moment. Every second block of a
thread is written as a whole, the others by the sector. Direct I/O. `failures`: a line for each thing that may not be.
"""

import mmap
import os
import random
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 4096
BLOCK = 65536
SECTORS_PER_BLOCK = BLOCK // SECTOR
_STAMP = struct.Struct("<QQQQ")  # magic, volume, sector, number
_MAGIC = 0x7468696E66735F31


def sector_content(volume: int, sector: int, number: int) -> bytes:
    return _STAMP.pack(_MAGIC, volume, sector, number) * (SECTOR // _STAMP.size)


def numbers_in(data: bytes, volume: int, sector: int) -> set[int] | None:
    """The numbers that a sector read holds (two, where it was read while written; 0: zeros); None: it is no one's."""
    numbers = set()
    for stamp in set(_STAMP.iter_unpack(data)):
        if stamp == (0, 0, 0, 0):
            numbers.add(0)
        elif stamp[:3] == (_MAGIC, volume, sector):
            numbers.add(stamp[3])
        else:
            return None
    return numbers


@contextmanager
def _direct(path: Path) -> Iterator[tuple[int, mmap.mmap]]:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd, mmap.mmap(-1, 4 * BLOCK)
    finally:
        os.close(fd)


@dataclass
class Load:
    """`discardable`: blocks that somebody else unmaps meanwhile, which then may read as zeros."""

    path: Path
    volume: int
    nr_blocks: int
    discardable: frozenset[int] = frozenset()
    nr_writers: int = 2
    nr_readers: int = 1
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        nr_sectors = self.nr_blocks * SECTORS_PER_BLOCK
        self.begun, self.acknowledged = [0] * nr_sectors, [0] * nr_sectors
        self._stop = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._guarded, args=(self._write, i)) for i in range(self.nr_writers)),
            *(threading.Thread(target=self._guarded, args=(self._read, i)) for i in range(self.nr_readers)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def nr_acknowledged(self) -> int:
        return sum(self.acknowledged)

    def _guarded(self, work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except Exception as error:
            self.failures.append(f"{self.path.name}: {error!r}")

    def _write(self, number: int) -> None:
        choose = random.Random(self.volume * 100 + number)
        with _direct(self.path) as (fd, buffer):
            while not self._stop.is_set():
                block = choose.randrange(number, self.nr_blocks, self.nr_writers)
                first = block * SECTORS_PER_BLOCK
                sectors = range(first, first + SECTORS_PER_BLOCK)
                if block // self.nr_writers % 2 == 0:
                    sector = choose.choice(sectors)
                    sectors = range(sector, sector + 1)
                for sector in sectors:
                    self.begun[sector] += 1
                data = b"".join(sector_content(self.volume, sector, self.begun[sector]) for sector in sectors)
                buffer[: len(data)] = data
                nr = os.pwritev(fd, [memoryview(buffer)[: len(data)]], sectors[0] * SECTOR)
                if nr != len(data):
                    self.failures.append(f"{self.path.name}: write of {len(data)} bytes: {nr}")
                for sector in sectors:
                    self.acknowledged[sector] = self.begun[sector]
                if choose.random() < 0.02:
                    os.fsync(fd)

    def _read(self, number: int) -> None:
        choose = random.Random(self.volume * 100 + 50 + number)
        with _direct(self.path) as (fd, buffer):
            while not self._stop.is_set():
                nr_sectors = choose.choice((1, 4, 32))
                first = choose.randrange(len(self.begun) - nr_sectors)
                least = self.acknowledged[first : first + nr_sectors]
                view = memoryview(buffer)[: nr_sectors * SECTOR]
                nr = os.preadv(fd, [view], first * SECTOR)
                if nr != len(view):
                    self.failures.append(f"{self.path.name}: read of {len(view)} bytes: {nr}")
                self.check(bytes(view), first, least, self.begun[first : first + nr_sectors], "read")

    def check(self, data: bytes, first: int, least: Sequence[int], most: Sequence[int], what: str) -> None:
        """`data` from sector `first` on: nothing older than `least`, nothing newer than `most`."""
        for i in range(len(data) // SECTOR):
            numbers = numbers_in(data[i * SECTOR : (i + 1) * SECTOR], self.volume, first + i)
            if numbers is None:
                self.failures.append(f"{self.path.name}: {what}: sector {first + i} holds what was never written there")
                continue
            if (first + i) // SECTORS_PER_BLOCK in self.discardable:
                numbers.discard(0)
            wrong = [number for number in numbers if not least[i] <= number <= most[i]]
            if wrong:
                self.failures.append(
                    f"{self.path.name}: {what}: sector {first + i} has number {wrong}, not {least[i]} to {most[i]}"
                )

    def check_snapshot(self, path: Path, least: Sequence[int], most: Sequence[int]) -> bytes:
        """All of it, as it was at one moment between the two; a write of a whole block is in it or not at all."""
        data = path_content(path, self.nr_blocks * BLOCK)
        self.check(data, 0, least, most, f"snapshot {path.name}")
        for block in range(self.nr_blocks):
            if block // self.nr_writers % 2 == 1 and block not in self.discardable:
                found = {
                    _STAMP.unpack_from(data, (block * SECTORS_PER_BLOCK + i) * SECTOR)[3]
                    for i in range(SECTORS_PER_BLOCK)
                }
                if len(found) > 1:
                    self.failures.append(f"snapshot {path.name}: block {block} is of several moments: {found}")
        return data


def path_content(path: Path, size: int) -> bytes:
    """Past the page cache."""
    pieces = []
    with _direct(path) as (fd, buffer):
        for offset in range(0, size, len(buffer)):
            nr = os.preadv(fd, [memoryview(buffer)[: min(len(buffer), size - offset)]], offset)
            pieces.append(bytes(memoryview(buffer)[:nr]))
    return b"".join(pieces)
