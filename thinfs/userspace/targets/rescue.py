"""The thin-rescue target, which the kernel has not: a thin of a pool that is damaged, needs a check or is half there.

    thin-rescue = METADATA " " DATA " " DEV_ID [ " " ROOT [ " " BLOCK_SECTORS ] ]

Promises: nothing is written, to the metadata, the data or the volume: a table with it must be read-only. What the
mappings lead to is read, what is not mapped reads as zeros, the rest is EIO. ROOT, a metadata block, stands for a root
of mappings that `thinfs rescue` has found; with it and BLOCK_SECTORS not even the superblock is needed.
"""

import logging
from collections.abc import Callable, Iterator

from thinfs.bio import Bio, Op, answers_at_once
from thinfs.dm.table import TargetLine, parse_decimal, quote_word
from thinfs.errors import InvalidArgument, IOFailed, ThinfsError, prefixed
from thinfs.salvage import Salvage
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain

log = logging.getLogger(__name__)


class RescueTarget(Plain):
    def __init__(
        self,
        line: TargetLine,
        backings: tuple[Backing, Backing],
        salvage: Salvage,
        root: int,
        block_sectors: int,
        release: Callable[[Backing], None],
    ) -> None:
        super().__init__(line)
        self._backings = backings
        self._salvage = salvage
        self._root = root
        self._block_sectors = block_sectors
        self._release = release
        self._lost: set[str] = set()  # what has been in the way so far

    @property
    def block_bytes(self) -> int:
        return sectors_to_bytes(self._block_sectors)

    def table_params(self) -> str:
        files = [quote_word(backing.label) for backing in self._backings]
        return " ".join([*files, *self.line.params[2:]])

    async def status_params(self, *, noflush: bool) -> str:
        """How many places of the metadata could not be read so far."""
        return str(len(self._lost))

    def lowers(self) -> Iterator[Backing]:
        yield from self._backings

    def read_now(self, offset: int, length: int) -> bytes:
        pieces = []
        while length:
            block, start = divmod(offset, self.block_bytes)
            size = min(length, self.block_bytes - start)
            pieces.append(self._read_block(block, start, size))
            offset, length = offset + size, length - size
        return b"".join(pieces)

    def _read_block(self, thin_block: int, start: int, size: int) -> bytes:
        try:
            data_block = self._salvage.data_block(self._root, thin_block)
            if data_block is None:
                return bytes(size)
            data = self._backings[1].read_now(data_block * self.block_bytes + start, size)
        except ThinfsError as error:
            self._remember(error)
            raise IOFailed(f"thin-rescue: block {thin_block}: {error}") from None
        if data is None:
            raise IOFailed(f"thin-rescue: block {thin_block}: the data device is suspended")
        return data

    def _remember(self, error: ThinfsError) -> None:
        if str(error) not in self._lost and len(self._lost) < 1000:
            self._lost.add(str(error))
            log.error("thin-rescue %s: %s", " ".join(self.line.params[2:]), error)

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.FLUSH:
            bio.complete()
        elif bio.op is not Op.READ:
            bio.complete(IOFailed(f"thin-rescue: {bio.op.name.lower()}: read only"))
        else:
            try:
                bio.data = self.read_now(bio.offset, bio.length)
            except ThinfsError as error:
                bio.complete(error)
            else:
                bio.complete()

    def allocated_bytes(self) -> int:
        return 0

    async def close(self) -> None:
        for backing in self._backings:
            self._release(backing)


async def load(loading: Loading) -> RescueTarget:
    line = loading.line
    if not 3 <= len(line.params) <= 5:
        raise InvalidArgument(f"thin-rescue: Invalid argument count: {len(line.params)}, expected 3 to 5")
    if not loading.read_only:
        raise InvalidArgument("thin-rescue: the table must be read-only (--readonly): nothing is ever written")
    numbers = [parse_decimal(word) for word in line.params[2:]]
    for word, number in zip(line.params[2:], numbers, strict=True):
        if number is None:
            raise InvalidArgument(f"thin-rescue: not a number: {word}")
    backings: list[Backing] = []
    try:
        for what, word in zip(("metadata", "data"), line.params, strict=False):
            try:
                backings.append(await loading.acquire(word, read_only=True))
            except ThinfsError as error:
                raise prefixed(f"thin-rescue: Error opening {what} device", error) from None
        device = backings[0].device
        if not answers_at_once(device):
            raise InvalidArgument(f"thin-rescue: {line.params[0]}: the metadata must be a file or a block device")
        salvage = Salvage(device)
        try:
            root = numbers[1] if len(numbers) > 1 else salvage.root_of(numbers[0] or 0)
            block_sectors = numbers[2] if len(numbers) > 2 else salvage.superblock().data_block_size
            salvage.node(root or 0)
        except ThinfsError as error:
            raise InvalidArgument(f"thin-rescue: {error}; `thinfs rescue` finds other roots") from None
        if not block_sectors or block_sectors % 128 or block_sectors > 2097152:
            raise InvalidArgument(f"thin-rescue: Invalid block size: {block_sectors}")
        return RescueTarget(line, (backings[0], backings[1]), salvage, root or 0, block_sectors, loading.release)
    except BaseException:
        for backing in backings:
            loading.release(backing)
        raise
