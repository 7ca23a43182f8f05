"""What a history must answer, from plain dictionaries: no trees, no bits, no allocation.

A thin is {block: (token, time, pages)}: the token stands for a data block, the time says when it was mapped,
pages are what was written into it. Answers None where it has no opinion. Source: docs/reference/behaviour.md, 2, 3, 6.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from errno import EBUSY, EEXIST, EINVAL, ENODATA, ENOSPC, ENXIO, EOPNOTSUPP
from typing import Final, TypeAlias

from kernel_backend.batch import Operation
from kernel_backend.block_io import digest, pattern

from .disks import DISK
from .variants import PAGE, POOL, Variant

UNKNOWN: Final = b""  # what an unzeroed block held before
ZEROS: Final = bytes(PAGE)
Answer: TypeAlias = tuple[int, str | None]
Pages: TypeAlias = dict[int, bytes]


@dataclass(slots=True)
class Mapping:
    token: int
    time: int
    pages: Pages


@dataclass(slots=True)
class Thin:
    blocks: dict[int, Mapping] = field(default_factory=dict)
    snapshot_time: int = 0
    creation_time: int = 0
    transaction_id: int = 0

    def copy(self) -> dict[int, Mapping]:
        return {block: Mapping(m.token, m.time, m.pages) for block, m in self.blocks.items()}


class Model:
    """Metadata space never runs out for it, nor does a disk fail: only for variants of which that is true."""

    def __init__(self, variant: Variant, origin: bytes) -> None:
        self._variant = variant
        self._origin = origin
        self._zeroes = "skip_block_zeroing" not in variant.features
        self._discards = "ignore_discard" not in variant.features
        self._thins: dict[int, Thin] = {}
        self._active: dict[str, tuple[int, bool]] = {}
        self._pool_there = False
        self._tokens = itertools.count()
        self._time = 0
        self._transaction_id = 0
        self._held: set[int] | None = None
        self._counts: Counter[int] = Counter()  # of tokens: mappings, and the metadata snapshot's
        self._nr_blocks = self._loaded_blocks = 0
        self._low_water = self._loaded_low_water = 0
        self._low_water_signalled = False
        self._event_nr: int | None = 0  # None after changes of the mode, which have events too

    def answer(self, operation: Operation) -> Answer | None:
        kind, name, *arguments = operation
        assert isinstance(name, str)
        if kind == DISK:
            return None
        if name == POOL:
            return self._of_pool(str(kind), arguments)
        if kind == "create":
            return self._activate(name, str(arguments[0]))
        if name not in self._active:
            return (ENXIO, None)
        if kind in ("write_pattern", "read_digest", "discard", "status", "remove"):
            dev_id, shows_origin = self._active[name]
            answer: Answer | None = getattr(self, f"_{kind}")(name, self._thins[dev_id], shows_origin, *arguments)
            return answer
        return (0, None)

    def dump_lines(self) -> list[str]:
        """What thin_dump must say, data block numbers apart: devices, and when each of their blocks was mapped."""
        lines = []
        for dev_id, thin in sorted(self._thins.items()):
            numbers = (thin.transaction_id, thin.creation_time, thin.snapshot_time)
            lines.append(f"device {dev_id}: {len(thin.blocks)} mapped, {' '.join(map(str, numbers))}")
            lines += [f"{dev_id}/{block}: time {mapping.time}" for block, mapping in sorted(thin.blocks.items())]
        return lines

    # -- the pool

    def _of_pool(self, kind: str, arguments: Sequence[object]) -> Answer | None:
        if kind in ("create", "load"):
            if kind == "create" and self._pool_there:
                return (EBUSY, None)
            if kind == "load" and not self._pool_there:
                return (ENXIO, None)
            words = str(arguments[0]).split()
            self._loaded_blocks = int(words[1]) // self._variant.block_sectors
            self._loaded_low_water = int(words[6])
            if kind == "create":
                if self._loaded_blocks < self._nr_blocks:
                    return (EINVAL, None)
                self._nr_blocks, self._pool_there, self._event_nr = self._loaded_blocks, True, 0
                self._low_water, self._low_water_signalled = self._loaded_low_water, False
            return (0, None)
        if not self._pool_there:
            return (ENXIO, None)
        if kind == "remove":
            if self._active:
                return (EBUSY, None)
            self._pool_there = False
        elif kind == "resume":
            self._nr_blocks = max(self._nr_blocks, self._loaded_blocks)
            self._low_water, self._low_water_signalled = self._loaded_low_water, False
        elif kind == "message":
            return (self._message(str(arguments[0])), None)
        elif kind == "event_nr":
            return None if self._event_nr is None else (0, str(self._event_nr))
        elif kind == "status":
            return None
        return (0, None)

    def used_blocks(self) -> tuple[int, int]:
        """As the status shows data blocks: used and all."""
        return len(self._counts), self._nr_blocks

    def mapped_blocks(self, dev_id: int) -> Iterable[int]:
        return self._thins[dev_id].blocks.keys()

    def _take(self, tokens: Iterable[int]) -> None:
        self._counts.update(tokens)

    def _give_back(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._counts[token] -= 1
            if not self._counts[token]:
                del self._counts[token]

    def _allocate(self) -> bool:
        free = self._nr_blocks - len(self._counts)
        if free <= self._low_water and not self._low_water_signalled:
            self._low_water_signalled = True
            self._event_nr = None if self._event_nr is None else self._event_nr + 1
        if not free:
            self._event_nr = None
        return bool(free)

    def _message(self, text: str) -> int:
        words = text.split()
        numbers = [int(word) if word.isdecimal() and int(word) < 1 << 24 else -1 for word in words[1:]]
        if -1 in numbers or len(numbers) != _COUNTS.get(words[0], -1):
            return EINVAL
        number: int = getattr(self, f"_{words[0]}")(*numbers)
        return number

    def _create_thin(self, dev_id: int) -> int:
        if dev_id in self._thins:
            return EEXIST
        self._thins[dev_id] = Thin({}, self._time, self._time, self._transaction_id)
        return 0

    def _create_snap(self, dev_id: int, origin_id: int) -> int:
        if dev_id in self._thins:
            return EEXIST
        if origin_id not in self._thins:
            return ENODATA
        self._time += 1
        origin = self._thins[origin_id]
        origin.snapshot_time = self._time
        self._thins[dev_id] = Thin(origin.copy(), self._time, self._time, self._transaction_id)
        self._take(mapping.token for mapping in origin.blocks.values())
        return 0

    def _delete(self, dev_id: int) -> int:
        if dev_id not in self._thins:
            return ENODATA
        if dev_id in (active for active, _ in self._active.values()):
            return EBUSY
        self._give_back(mapping.token for mapping in self._thins.pop(dev_id).blocks.values())
        return 0

    def _set_transaction_id(self, current: int, new: int) -> int:
        if current != self._transaction_id:
            return EINVAL
        self._transaction_id = new
        return 0

    def _reserve_metadata_snap(self) -> int:
        if self._held is not None:
            return EBUSY
        self._held = set(self._counts)
        self._take(self._held)
        return 0

    def _release_metadata_snap(self) -> int:
        if self._held is None:
            return EINVAL
        self._give_back(self._held)
        self._held = None
        return 0

    # -- thins

    def _activate(self, name: str, table: str) -> Answer:
        words = table.split()
        if name in self._active:
            return (EBUSY, None)
        if not self._pool_there:
            return (-1, None)  # ENODEV or ENOENT: the kernels differ
        if int(words[4]) not in self._thins:
            return (ENODATA, None)
        self._active[name] = int(words[4]), len(words) > 5
        return (0, None)

    def _remove(self, name: str, thin: Thin, shows_origin: bool) -> Answer:
        del self._active[name]
        return (0, None)

    def _status(self, name: str, thin: Thin, shows_origin: bool) -> Answer:
        sectors, length = self._variant.block_sectors, self._variant.thin_blocks * self._variant.block_sectors
        highest = (max(thin.blocks) + 1) * sectors - 1 if thin.blocks else "-"
        return (0, f"0 {length} thin {len(thin.blocks) * sectors} {highest}")

    def _base(self, block: int, page: int, shows_origin: bool) -> bytes:
        begin = block * self._variant.block_bytes + page * PAGE
        inside = self._origin[begin : begin + PAGE] if shows_origin else b""
        return inside + bytes(PAGE - len(inside))

    def _write_pattern(self, name: str, thin: Thin, shows_origin: bool, offset: int, length: int, seed: int) -> Answer:
        size, data = self._variant.block_bytes, pattern(seed, length)
        done = 0
        while done < length:
            block, begin = divmod(offset + done, size)
            piece = data[done : done + size - begin]
            if not self._write_piece(thin, shows_origin, block, begin, piece):
                return (ENOSPC, None)
            done += len(piece)
        return (0, "")

    def _write_piece(self, thin: Thin, shows_origin: bool, block: int, begin: int, data: bytes) -> bool:
        old = thin.blocks.get(block)
        if old is None or thin.snapshot_time > old.time:
            if not self._allocate():
                return False
            pages = self._new_pages(block, shows_origin) if old is None else dict(old.pages)
            if old is not None:
                self._give_back((old.token,))
            thin.blocks[block] = Mapping(next(self._tokens), self._time, pages)
            self._take((thin.blocks[block].token,))
        pages = thin.blocks[block].pages
        for done in range(0, len(data), PAGE):
            pages[(begin + done) // PAGE] = data[done : done + PAGE]
        return True

    def _new_pages(self, block: int, shows_origin: bool) -> Pages:
        pages, nr_pages = {}, self._variant.block_bytes // PAGE
        inside = max(0, len(self._origin) - block * self._variant.block_bytes) if shows_origin else 0
        for page in range(nr_pages):
            if page * PAGE < inside:
                pages[page] = self._base(block, page, shows_origin)
            elif not self._zeroes:
                pages[page] = UNKNOWN
        return pages

    def _read_digest(self, name: str, thin: Thin, shows_origin: bool, offset: int, length: int) -> Answer | None:
        size, parts = self._variant.block_bytes, []
        for begin in range(offset, offset + length, PAGE):
            block, page = begin // size, begin % size // PAGE
            mapping = thin.blocks.get(block)
            if mapping is None:
                parts.append(self._base(block, page, shows_origin))
            else:
                parts.append(mapping.pages.get(page, ZEROS))
            if parts[-1] is UNKNOWN:
                return None
        return (0, digest(b"".join(parts)))

    def _discard(self, name: str, thin: Thin, shows_origin: bool, offset: int, length: int) -> Answer:
        if not self._discards:
            return (EOPNOTSUPP, None)
        size = self._variant.block_bytes
        begin, end = -(-offset // size), (offset + length) // size
        for block in [block for block in thin.blocks if begin <= block < end]:
            self._give_back((thin.blocks.pop(block).token,))
        return (0, "")


_COUNTS: Final = {
    "create_thin": 1, "create_snap": 2, "delete": 1, "set_transaction_id": 2, "reserve_metadata_snap": 0,
    "release_metadata_snap": 0,
}  # fmt: skip


def dumped_lines(xml: str) -> list[str]:
    """As `Model.dump_lines`, of a thin_dump."""
    lines = []
    device = 0
    for tag, text in re.findall(r"<(device|single_mapping|range_mapping) ([^>]*)>", xml):
        values = {name: int(value) for name, value in re.findall(r'(\w+)="(\d+)"', text)}
        if tag == "device":
            device = values["dev_id"]
            numbers = (values["transaction"], values["creation_time"], values["snap_time"])
            lines.append(f"device {device}: {values['mapped_blocks']} mapped, {' '.join(map(str, numbers))}")
        else:
            begin = values["origin_begin" if tag == "range_mapping" else "origin_block"]
            nr = values.get("length", 1)
            lines += [f"{device}/{block}: time {values['time']}" for block in range(begin, begin + nr)]
    return lines


def contradictions(
    variant: Variant, origin: bytes, operations: Sequence[Operation], answers: Sequence[tuple[int, str]], dump: str
) -> list[str]:
    """Lines for the answers that the model would not have given, and for what the metadata is at the end."""
    model, found = Model(variant, origin), []
    for index, (operation, (number, text)) in enumerate(zip(operations, answers, strict=True)):
        if operation[0] == "status" and operation[1] == POOL:
            if number == 0 and text:
                used, of = model.used_blocks()
                if text.split()[5] != f"{used}/{of}":
                    found.append(f"{index}: status {POOL}: {text}, the model: {used}/{of} data blocks")
            continue
        expected = model.answer(operation)
        if expected is None or expected[0] == -1:
            continue
        if expected[0] != number or (number == 0 and expected[1] is not None and expected[1] != text):
            words = " ".join(map(str, operation))
            found.append(f"{index}: {words}: {number} {text}, the model: {expected[0]} {expected[1]}")
    if dump:
        said, should = dict.fromkeys(dumped_lines(dump)), dict.fromkeys(model.dump_lines())
        found += [f"thin_dump: {line}, not in the model" for line in said if line not in should][:5]
        found += [f"thin_dump lacks: {line}" for line in should if line not in said][:5]
    return found
