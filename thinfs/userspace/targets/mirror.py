"""The mirror target with its log in core: what pvmove copies through, and a plain mirror without a disk log.

    mirror = "core" SP NR_LOG_ARGS SP REGION_SECTORS [SP "sync" | "nosync"] SP NR_LEGS 2*(SP DEVICE SP OFFSET_SECTORS)
             [SP NR_FEATURES *(SP "handle_errors" | "keep_log")]

Promises: a region is copied from the first leg to the others once after each load, unless nosync; a write waits while
its region is copied, goes to the first leg before and to all legs after. A leg that fails is used no more. An event
tells that all is copied, or that a leg has failed. Answers as kernel 6.1 (tests/userspace/test_mirror.py).
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from thinfs.bio import Bio, Op, Split
from thinfs.dm.table import TargetLine, parse_decimal, quote_word
from thinfs.errors import InvalidArgument, IOFailed, ThinfsError, prefixed
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain, check_window, zero_by_writing
from thinfs.waiting import do

log = logging.getLogger(__name__)

_LEAST_REGION_SECTORS = 2
_FEATURES = ("handle_errors", "keep_log")


@dataclass(slots=True, eq=False)
class Leg:
    backing: Backing
    offset_sectors: int
    alive: bool = True

    @property
    def start(self) -> int:
        return sectors_to_bytes(self.offset_sectors)


@dataclass(frozen=True, slots=True)
class Words:
    """The line's words but for the legs."""

    log: tuple[str, ...]
    region_sectors: int
    in_sync: bool
    nr_legs: int
    features: tuple[str, ...]


class MirrorTarget(Plain):
    def __init__(self, loading: Loading, words: Words, legs: list[Leg]) -> None:
        super().__init__(loading.line)
        self._loading = loading
        self._words = words
        self._legs = legs
        self._region = sectors_to_bytes(words.region_sectors)
        self._length = sectors_to_bytes(self.line.length_sectors)
        self._in_sync = bytearray([words.in_sync]) * -(-self._length // self._region)
        self._writes = Counter[int]()  # under way, by region
        self._copied: int | None = None  # the region that is being copied
        self._held: list[Bio] = []  # writes to it
        self._quiet = trio.Event()  # no write to it is under way
        self._stopping = False
        self._ended: trio.Event | None = None

    # -- what is said ------------------------------------------------------------------------------------

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return all(leg.backing.supports_discard for leg in self._legs)

    def table_params(self) -> str:
        legs = [f"{quote_word(leg.backing.label)} {leg.offset_sectors}" for leg in self._legs]
        features = [str(len(self._words.features)), *self._words.features] if self._words.features else []
        return " ".join([*self._words.log, str(len(legs)), *legs, *features])

    async def status_params(self, *, noflush: bool) -> str:
        labels = [quote_word(leg.backing.label) for leg in self._legs]
        health = "".join("A" if leg.alive else "D" for leg in self._legs)
        done = f"{sum(self._in_sync)}/{len(self._in_sync)}"
        return " ".join([str(len(labels)), *labels, done, "1", health, "1", "core"])

    def lowers(self) -> Iterator[Backing]:
        for leg in self._legs:
            yield leg.backing

    def check_swap(self) -> None:
        for leg in self._legs:
            check_window("mirror", leg.backing.label, leg.backing, leg.offset_sectors, self.line.length_sectors)

    # -- copying -----------------------------------------------------------------------------------------

    async def resume(self) -> None:
        if self._ended is None and not all(self._in_sync):
            self._stopping = False
            self._ended = trio.Event()
            self._loading.start(self._copy)

    async def presuspend(self, *, noflush: bool) -> None:
        """The region under way is finished first; whoever gives up waiting has it go on."""
        ended = self._ended
        if ended is not None:
            self._stopping = True
            try:
                await ended.wait()
            except trio.Cancelled:
                self._stopping = False
                raise

    async def _copy(self) -> None:
        assert self._ended is not None
        try:
            for region in range(len(self._in_sync)):
                if self._stopping or not all(leg.alive for leg in self._legs):
                    break
                if not self._in_sync[region]:
                    await self._copy_region(region)
                    await trio.lowlevel.checkpoint()
        finally:
            self._ended.set()
            self._ended = None
        if all(self._in_sync):
            self._loading.device.raise_event()

    async def _copy_region(self, region: int) -> None:
        self._copied = region
        try:
            while self._writes[region]:
                self._quiet = trio.Event()
                await self._quiet.wait()
            start = region * self._region
            length = min(self._region, self._length - start)
            source, *targets = self._legs
            try:
                data = (await do(source.backing, Bio(Op.READ, source.start + start, length))).data
            except ThinfsError as error:
                self._failed(source, error)
                return
            for leg in targets:
                try:
                    await do(leg.backing, Bio(Op.WRITE, leg.start + start, length, data))
                except ThinfsError as error:
                    self._failed(leg, error)
                    return
            self._in_sync[region] = True
        finally:
            self._copied = None
            held, self._held = self._held, []
            for bio in held:
                self.submit(bio)

    def _failed(self, leg: Leg, error: ThinfsError) -> None:
        log.error("mirror: %s is used no more: %s", leg.backing.label, error)
        if leg.alive:
            leg.alive = False
            self._loading.device.raise_event()

    # -- I/O ---------------------------------------------------------------------------------------------

    def read_now(self, offset: int, length: int) -> bytes | None:
        first = self._legs[0]
        return first.backing.read_now(first.start + offset, length) if first.alive else None

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.READ:
            self._read(bio)
        elif bio.op is Op.FLUSH:
            self._to_legs(bio, [leg for leg in self._legs if leg.alive])
        elif bio.op is Op.ZERO:
            zero_by_writing(self, bio)
        elif bio.op is Op.DISCARD and not self.supports_discard:
            super().submit(bio)
        elif bio.offset // self._region == (bio.offset + bio.length - 1) // self._region:
            self._change(bio, bio.offset // self._region)
        else:
            split, view, done = Split(bio), memoryview(bio.data), 0
            while done < bio.length:
                at = bio.offset + done
                size = min(bio.length - done, self._region - at % self._region)
                self._change(split.piece(at, size, view[done : done + size]), at // self._region)
                done += size
            split.seal()

    def _read(self, bio: Bio) -> None:
        """From the first leg, or from another where it has failed and all is there."""
        legs = [leg for leg in self._legs if leg.alive]
        if not legs or (legs[0] is not self._legs[0] and not all(self._in_sync)):
            bio.complete(IOFailed("mirror: no leg is left that has the data"))
            return
        below = Bio(Op.READ, legs[0].start + bio.offset, bio.length)
        legs[0].backing.submit(below)

        def done() -> None:
            if below.error is not None and len(legs) > 1 and all(self._in_sync):
                self._failed(legs[0], below.error)
                self._read(bio)
                return
            bio.data = below.data
            bio.complete(below.error)

        below.then(done)

    def _change(self, bio: Bio, region: int) -> None:
        """Within one region: a write, a discard, a promise of space."""
        if region == self._copied:
            self._held.append(bio)
            return
        self._writes[region] += 1
        bio.then(lambda: self._is_done(region))
        self._to_legs(bio, [leg for leg in (self._legs if self._in_sync[region] else self._legs[:1]) if leg.alive])

    def _is_done(self, region: int) -> None:
        self._writes[region] -= 1
        if not self._writes[region]:
            del self._writes[region]
            if region == self._copied:
                self._quiet.set()

    def _to_legs(self, bio: Bio, legs: list[Leg]) -> None:
        """Done when it is on all of them; as long as one has it, one that fails is only used no more."""
        pieces = [(leg, Bio(bio.op, leg.start + bio.offset if bio.length else 0, bio.length, bio.data)) for leg in legs]
        if not pieces:
            bio.complete(IOFailed("mirror: no leg is left"))
            return
        nr_open = len(pieces)

        def one_is_done() -> None:
            nonlocal nr_open
            nr_open -= 1
            if nr_open:
                return
            errors = [(leg, piece.error) for leg, piece in pieces if piece.error is not None]
            if len(errors) == len(pieces):
                bio.complete(errors[0][1])
                return
            for leg, error in errors:
                self._failed(leg, error)
            bio.complete()

        for leg, piece in pieces:
            leg.backing.submit(piece)
            piece.then(one_is_done)

    async def close(self) -> None:
        for leg in self._legs:
            self._loading.release(leg.backing)


# -- loading ---------------------------------------------------------------------------------------------------------


async def load(loading: Loading) -> MirrorTarget:
    words, where = _parse(loading.line)
    legs: list[Leg] = []
    target = MirrorTarget(loading, words, legs)
    try:
        for word, offset_text in zip(where[::2], where[1::2], strict=True):
            offset = parse_decimal(offset_text)
            if offset is None:
                raise InvalidArgument(f"mirror: Invalid offset: {offset_text}")
            try:
                legs.append(Leg(await loading.acquire(word), offset))
            except ThinfsError as error:
                raise prefixed("mirror: Device lookup failure", error) from None
        if loading.first_table:
            target.check_swap()
    except BaseException:
        await target.close()
        raise
    return target


def _parse(line: TargetLine) -> tuple[Words, tuple[str, ...]]:
    """The words, and those of the legs."""
    params = line.params
    count = parse_decimal(params[1]) if len(params) > 1 else None
    if count is None or len(params) < 2 + count:
        raise InvalidArgument(f"mirror: Insufficient mirror log arguments: {' '.join(params[:4])!r}")
    log_words, rest = params[: 2 + count], params[2 + count :]
    if log_words[0] != "core":
        raise InvalidArgument(f"mirror: Error creating mirror dirty log: {log_words[0]}: thinfs has core only")
    if not 1 <= count <= 2 or (count == 2 and log_words[3] not in ("sync", "nosync")):
        raise InvalidArgument(f"mirror: Error creating mirror dirty log: wrong arguments: {' '.join(log_words[2:])!r}")
    region = parse_decimal(log_words[2], maximum=0xFFFFFFFF)
    if region is None or region < _LEAST_REGION_SECTORS or region & (region - 1):
        raise InvalidArgument(f"mirror: Error creating mirror dirty log: invalid region size {log_words[2]}")
    nr_legs = parse_decimal(rest[0]) if rest else None
    if nr_legs is None or nr_legs < 2:
        raise InvalidArgument(f"mirror: Invalid number of mirrors: {rest[0] if rest else ''}")
    if len(rest) < 1 + 2 * nr_legs:
        raise InvalidArgument(f"mirror: Too few mirror arguments: {len(rest) - 1} words for {nr_legs} legs")
    where, features = rest[1 : 1 + 2 * nr_legs], _parse_features(rest[1 + 2 * nr_legs :])
    return Words(log_words, region, count == 2 and log_words[3] == "nosync", nr_legs, features), where


def _parse_features(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words:
        return ()
    count = parse_decimal(words[0])
    if count is None:
        raise InvalidArgument(f"mirror: Invalid number of features: {words[0]}")
    if count != len(words) - 1:
        raise InvalidArgument(f"mirror: Not enough arguments to support feature count: {count}")
    for word in words[1:]:
        if word not in _FEATURES:
            raise InvalidArgument(f"mirror: Unrecognised feature requested: {word}")
    return words[1:]
