"""The linear target: a window of a device, `offset` sectors into it.

    linear = DEVICE " " OFFSET_SECTORS

The length is checked at load for a device's first table; a later one may be longer than what is below, which may
grow before the resume: it is checked there (seen, reference 9).
"""

from collections.abc import Callable, Iterator

from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer
from thinfs.dm.table import TargetLine, parse_decimal, quote_word
from thinfs.errors import InvalidArgument, ThinfsError, prefixed
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain, check_window, zero_by_writing


class LinearTarget(Plain):
    def __init__(
        self, line: TargetLine, backing: Backing, offset_sectors: int, release: Callable[[Backing], None]
    ) -> None:
        super().__init__(line)
        self._backing = backing
        self._offset_sectors = offset_sectors
        self._start = sectors_to_bytes(offset_sectors)
        self._release = release

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return self._backing.supports_discard

    def table_params(self) -> str:
        return f"{quote_word(self._backing.label)} {self._offset_sectors}"

    def lowers(self) -> Iterator[Backing]:
        yield self._backing

    def check_swap(self) -> None:
        check_window("linear", self.line.params[0], self._backing, self._offset_sectors, self.line.length_sectors)

    def read_now(self, offset: int, length: int) -> bytes | None:
        return self._backing.read_now(self._start + offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self._backing.write_now(self._start + offset, data)

    def next_data(self, offset: int, end: int) -> int | None:
        for first, _ in self._backing.data_ranges(self._start + offset, self._start + end):
            return first - self._start
        return None

    def next_hole(self, offset: int, end: int) -> int:
        for first, last in self._backing.data_ranges(self._start + offset, self._start + end):
            if first - self._start > offset:
                break
            offset = last - self._start
        return offset

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.ZERO:
            zero_by_writing(self, bio)
            return
        if bio.op is Op.DISCARD and not self._backing.supports_discard:
            super().submit(bio)
            return
        below = Bio(bio.op, self._start + bio.offset, bio.length, bio.data)
        self._backing.submit(below)
        bio.follow(below)

    async def close(self) -> None:
        self._release(self._backing)


async def load(loading: Loading) -> LinearTarget:
    line = loading.line
    if len(line.params) != 2:
        raise InvalidArgument(f"linear: Invalid argument count: {len(line.params)}, expected 2")
    offset = parse_decimal(line.params[1])
    if offset is None:
        raise InvalidArgument(f"linear: Invalid device sector: {line.params[1]}")
    try:
        backing = await loading.acquire(line.params[0])
    except ThinfsError as error:
        raise prefixed("linear: Device lookup failed", error) from None
    target = LinearTarget(line, backing, offset, loading.release)
    try:
        if loading.first_table:
            target.check_swap()
    except BaseException:
        await target.close()
        raise
    return target
