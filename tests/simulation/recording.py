"""Devices that remember what is not on stable storage yet, and can show what a power cut would leave of it.

Promises: writes, discards and flushes of all devices of one `Journal` in one order; an image after a power cut
holds everything flushed and any subset of the rest in sectors, by the caller's choice; the n-th call fails with
EIO, once or from then on. The engine runs on these as on any BlockDevice. Never: real files, real time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from thinfs.blockdev import Buffer
from thinfs.errors import IOFailed
from thinfs.units import SECTOR_BYTES


class Call(Enum):
    READ = "read"
    WRITE = "write"
    DISCARD = "discard"
    FLUSH = "flush"


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a write that a power cut keeps or loses as a whole, or tears; `data` None: a discard."""

    offset: int
    length: int
    data: bytes | None

    def sectors(self, kept: Iterable[int]) -> list["Unit"]:
        """The sectors of it that made it."""
        units = []
        for sector in kept:
            begin = sector * SECTOR_BYTES
            data = None if self.data is None else self.data[begin : begin + SECTOR_BYTES]
            units.append(Unit(self.offset + begin, SECTOR_BYTES, data))
        return units


class Image:
    """Sparse contents in immutable chunks: a copy costs next to nothing. Itself a BlockDevice without a memory."""

    supports_discard = True

    def __init__(self, label: str, size_bytes: int, chunk_bytes: int, chunks: dict[int, bytes] | None = None) -> None:
        self.label = label
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self.chunks = {} if chunks is None else chunks
        self._zeros = bytes(chunk_bytes)

    def copy(self) -> "Image":
        return Image(self.label, self.size_bytes, self.chunk_bytes, dict(self.chunks))

    def chunk(self, number: int) -> bytes:
        return self.chunks.get(number, self._zeros)

    def apply(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self._put(unit.offset, bytes(unit.length) if unit.data is None else unit.data)

    def _put(self, offset: int, data: Buffer) -> None:
        done, size = 0, self.chunk_bytes
        while done < len(data):
            number, start = divmod(offset + done, size)
            part = bytes(data[done : done + size - start])
            if len(part) != size:
                old = self.chunk(number)
                part = b"".join((old[:start], part, old[start + len(part) :]))
            self.chunks[number] = part
            done += size - start

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size_bytes:
            raise IOFailed(f"{self.label}: bytes {offset}..{offset + length} are past its end, {self.size_bytes}")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        size = self.chunk_bytes
        number, start = divmod(offset, size)
        if start + length <= size:
            return self.chunk(number)[start : start + length]
        chunks = b"".join(map(self.chunk, range(number, (offset + length - 1) // size + 1)))
        return chunks[start : start + length]

    def write(self, offset: int, data: Buffer) -> None:
        self._check(offset, len(data))
        self._put(offset, data)

    def flush(self) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._put(offset, bytes(length))

    def close(self) -> None:
        return


@dataclass(slots=True)
class Fault:
    """EIO for the n-th of certain calls, counted from 1 over all devices of the journal."""

    device: str | None  # label; None: any
    calls: frozenset[Call]
    nth: int
    for_good: bool = False
    partial: bool = False  # a failing write leaves half of it on the device
    seen: int = 0
    hit: int = 0

    def strikes(self, device: str, call: Call) -> bool:
        if call not in self.calls or (self.device is not None and self.device != device):
            return False
        self.seen += 1
        struck = self.seen >= self.nth if self.for_good else self.seen == self.nth
        self.hit += struck
        return struck


class ProcessKilled(BaseException):
    """The engine's process ends within a call: no error that anything could handle."""


class Journal:
    """What happened to several devices, in one order. `on_flush` sees the state before each flush takes hold."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Call]] = []
        self.nr_calls = dict.fromkeys(Call, 0)
        self.fault: Fault | None = None
        self.killed_in: int | None = None  # this many more calls, reads aside
        self.on_flush: Callable[[RecordingDevice], None] = lambda device: None

    def note(self, device: "RecordingDevice", call: Call) -> None:
        self.nr_calls[call] += 1
        if call is not Call.READ:
            self.calls.append((device.label, call))
            if self.killed_in is not None:
                self.killed_in -= 1
                if self.killed_in == 0:
                    self.killed_in = None
                    raise ProcessKilled
        if self.fault is not None and self.fault.strikes(device.label, call):
            raise IOFailed(f"{device.label}: {call.value} made to fail")


class RecordingDevice:
    """`image` is what reads see, `stable` what surely survives, `unflushed` what lies between, oldest first."""

    supports_discard = True

    def __init__(self, journal: Journal, label: str, size_bytes: int, chunk_bytes: int, unit_bytes: int) -> None:
        self.journal = journal
        self.label = label
        self.image = Image(label, size_bytes, chunk_bytes)
        self.stable = self.image.copy()
        self.unflushed: list[Unit] = []
        self._unit_bytes = unit_bytes

    @property
    def size_bytes(self) -> int:
        return self.image.size_bytes

    def resize(self, size_bytes: int) -> None:
        self.image.size_bytes = self.stable.size_bytes = size_bytes

    def read(self, offset: int, length: int) -> bytes:
        self.journal.note(self, Call.READ)
        return self.image.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        try:
            self.journal.note(self, Call.WRITE)
        except IOFailed:
            fault = self.journal.fault
            if fault is not None and fault.partial:
                self._write(offset, bytes(data[: len(data) // 2 // SECTOR_BYTES * SECTOR_BYTES]))
            raise
        self._write(offset, bytes(data))

    def _write(self, offset: int, data: bytes) -> None:
        self.image.write(offset, data)
        self._remember(offset, len(data), data)

    def discard(self, offset: int, length: int) -> None:
        self.journal.note(self, Call.DISCARD)
        self.image.discard(offset, length)
        self._remember(offset, length, None)

    def _remember(self, offset: int, length: int, data: bytes | None) -> None:
        done = 0
        while done < length:
            size = min(length - done, self._unit_bytes - (offset + done) % self._unit_bytes)
            part = None if data is None else data[done : done + size]
            self.unflushed.append(Unit(offset + done, size, part))
            done += size

    def flush(self) -> None:
        self.journal.note(self, Call.FLUSH)
        self.journal.on_flush(self)
        self.stable.apply(self.unflushed)
        self.unflushed.clear()

    def close(self) -> None:
        return

    def power_cut(self, choice: "Choice") -> Image:
        """The image that is left when of the unflushed units just `choice` has reached the medium."""
        image = self.stable.copy()
        unflushed = self.unflushed
        for number in choice.kept:
            unit = unflushed[number]
            image.apply([unit] if number != choice.torn else unit.sectors(choice.sectors))
        return image


@dataclass(frozen=True, slots=True)
class Choice:
    """Which unflushed units survive, and of the one that is torn, which sectors."""

    kept: tuple[int, ...] = ()
    torn: int = -1
    sectors: tuple[int, ...] = ()


NOTHING = Choice()


def everything(units: Sequence[Unit]) -> Choice:
    return Choice(tuple(range(len(units))))


def some(units: Sequence[Unit], random: Random) -> Choice:
    """A random subset, more often a nearly whole or nearly empty one than even coins would give; one is torn."""
    share = random.choice((0.05, 0.3, 0.5, 0.7, 0.95))
    kept = tuple(number for number in range(len(units)) if random.random() < share)
    if not kept:
        return NOTHING
    torn = random.choice(kept)
    nr_sectors = units[torn].length // SECTOR_BYTES
    return Choice(kept, torn, tuple(sector for sector in range(nr_sectors) if random.getrandbits(1)))
