"""The striped target: chunks of the device in turn on several devices below.

    striped = NR_STRIPES " " CHUNK_SECTORS NR_STRIPES *( " " DEVICE " " OFFSET_SECTORS )

Promises: the checks of kernel 6.1, in its order, with its words; the length is judged as the linear target's. A range
is a piece on each stripe for what has no data of its own, a piece a chunk for reads and writes.
Source: its documentation, and tables tried on 6.1 and 6.12 (tests/ioctl/test_striped.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from thinfs.bio import Bio, Op, Split
from thinfs.blockdev import Buffer
from thinfs.dm.table import TargetLine, parse_decimal, quote_word
from thinfs.errors import InvalidArgument, ThinfsError, prefixed
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain, check_window, zero_by_writing

_MAX_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Stripe:
    backing: Backing
    offset_sectors: int

    @property
    def start(self) -> int:
        return sectors_to_bytes(self.offset_sectors)


class StripedTarget(Plain):
    def __init__(
        self, line: TargetLine, stripes: list[Stripe], chunk_sectors: int, release: Callable[[Backing], None]
    ) -> None:
        super().__init__(line)
        self._stripes = stripes
        self._chunk_sectors = chunk_sectors
        self._chunk = sectors_to_bytes(chunk_sectors)
        self._release = release

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return all(stripe.backing.supports_discard for stripe in self._stripes)

    def table_params(self) -> str:
        where = [f"{quote_word(stripe.backing.label)} {stripe.offset_sectors}" for stripe in self._stripes]
        return " ".join([str(len(self._stripes)), str(self._chunk_sectors), *where])

    async def status_params(self, *, noflush: bool) -> str:
        """All are alive: an error of a device below is its user's, and nobody counts them."""
        labels = [quote_word(stripe.backing.label) for stripe in self._stripes]
        return " ".join([str(len(labels)), *labels, "1", "A" * len(labels)])

    def lowers(self) -> Iterator[Backing]:
        for stripe in self._stripes:
            yield stripe.backing

    def check_swap(self) -> None:
        length = self.line.length_sectors // len(self._stripes)
        for stripe in self._stripes:
            check_window("striped", stripe.backing.label, stripe.backing, stripe.offset_sectors, length)

    # -- I/O ---------------------------------------------------------------------------------------------

    def _place(self, offset: int) -> tuple[Stripe, int, int]:
        """Of a byte: its stripe, where it is below, and the bytes to the end of its chunk."""
        chunk, within = divmod(offset, self._chunk)
        row, index = divmod(chunk, len(self._stripes))
        stripe = self._stripes[index]
        return stripe, stripe.start + row * self._chunk + within, self._chunk - within

    def _bytes_before(self, offset: int, index: int) -> int:
        """How much of what lies before `offset` is on that stripe."""
        rows, rest = divmod(offset, self._chunk * len(self._stripes))
        return rows * self._chunk + min(max(rest - index * self._chunk, 0), self._chunk)

    def read_now(self, offset: int, length: int) -> bytes | None:
        stripe, below, room = self._place(offset)
        return stripe.backing.read_now(below, length) if length <= room else None

    def write_now(self, offset: int, data: Buffer) -> bool:
        stripe, below, room = self._place(offset)
        return len(data) <= room and stripe.backing.write_now(below, data)

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.ZERO:
            zero_by_writing(self, bio)
            return
        if bio.op is Op.DISCARD and not self.supports_discard:
            super().submit(bio)
            return
        split = Split(bio)
        pieces = self._chunks(bio, split) if bio.op in (Op.READ, Op.WRITE) else self._ranges(bio, split)
        for backing, piece in list(pieces):
            backing.submit(piece)
        split.seal()

    def _chunks(self, bio: Bio, split: Split) -> Iterator[tuple[Backing, Bio]]:
        view, done = memoryview(bio.data), 0
        while done < bio.length:
            stripe, below, room = self._place(bio.offset + done)
            size = min(room, bio.length - done)
            yield stripe.backing, split.piece(below, size, view[done : done + size])
            done += size

    def _ranges(self, bio: Bio, split: Split) -> Iterator[tuple[Backing, Bio]]:
        for index, stripe in enumerate(self._stripes):
            begin = self._bytes_before(bio.offset, index)
            size = self._bytes_before(bio.offset + bio.length, index) - begin
            if size or bio.op is Op.FLUSH:
                yield stripe.backing, split.piece(0 if bio.op is Op.FLUSH else stripe.start + begin, size)

    async def close(self) -> None:
        for stripe in self._stripes:
            self._release(stripe.backing)


async def load(loading: Loading) -> StripedTarget:
    line = loading.line
    if len(line.params) < 2:
        raise InvalidArgument(f"striped: Not enough arguments: {len(line.params)}")
    nr_stripes = parse_decimal(line.params[0], maximum=_MAX_U32)
    if not nr_stripes:
        raise InvalidArgument(f"striped: Invalid stripe count: {line.params[0]}")
    chunk_sectors = parse_decimal(line.params[1], maximum=_MAX_U32)
    if not chunk_sectors:
        raise InvalidArgument(f"striped: Invalid chunk_size: {line.params[1]}")
    if line.length_sectors % nr_stripes:
        raise InvalidArgument(
            f"striped: Target length not divisible by number of stripes: {line.length_sectors} by {nr_stripes}"
        )
    if line.length_sectors // nr_stripes % chunk_sectors:
        raise InvalidArgument(
            f"striped: Target length not divisible by chunk size: {line.length_sectors // nr_stripes} sectors a stripe "
            f"by {chunk_sectors}"
        )
    where = line.params[2:]
    if len(where) != 2 * nr_stripes:
        raise InvalidArgument(
            f"striped: Not enough destinations specified: {len(where)} words, expected {2 * nr_stripes}"
        )
    stripes: list[Stripe] = []
    target = StripedTarget(line, stripes, chunk_sectors, loading.release)
    try:
        for word, offset_text in zip(where[::2], where[1::2], strict=True):
            stripes.append(await _destination(loading, word, offset_text))
        if loading.first_table:
            target.check_swap()
    except BaseException:
        await target.close()
        raise
    return target


async def _destination(loading: Loading, word: str, offset_text: str) -> Stripe:
    offset = parse_decimal(offset_text)
    if offset is None:
        raise InvalidArgument(f"striped: Couldn't parse stripe destination: {offset_text}: not a sector")
    try:
        return Stripe(await loading.acquire(word), offset)
    except ThinfsError as error:
        raise prefixed("striped: Couldn't parse stripe destination", error) from None
