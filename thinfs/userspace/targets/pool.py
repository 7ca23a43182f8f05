"""The thin-pool target: a table line over the pool of its device; I/O goes one to one to the data device (seen).

thin-pool = METADATA_DEV " " DATA_DEV " " BLOCK_SECTORS " " LOW_WATER_BLOCKS [" " NR_FEATURES FEATURE…]
"""

from collections.abc import Callable, Iterator, Sequence

from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer
from thinfs.dm.table import Feature, PoolArguments, TargetLine, format_pool_params
from thinfs.errors import InvalidArgument, NotSupported, ThinfsError, prefixed
from thinfs.pool.modes import PoolSettings
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.pools import ActivePool, Pools
from thinfs.userspace.target import Plain, UpperDevice, zero_by_writing


class PoolTarget(Plain):
    def __init__(
        self,
        line: TargetLine,
        active: ActivePool,
        settings: PoolSettings,
        pools: Pools,
        *,
        thins_above: Callable[[], Sequence[UpperDevice]],
        release: Callable[[Backing], None],
    ) -> None:
        super().__init__(line)
        self._active = active
        self._settings = settings
        self._pools = pools
        self._thins_above = thins_above
        self._release = release

    def table_params(self) -> str:
        return format_pool_params(
            self._active.metadata.label,
            self._active.data.label,
            self._active.pool.block_size_sectors,
            self._settings.low_water_blocks,
            self._settings.features,
            self._settings.guard_blocks,
        )

    async def status_params(self, *, noflush: bool) -> str:
        return await self._active.worker.run(self._active.pool.status(noflush=noflush))

    def lowers(self) -> Iterator[Backing]:
        return self._active.lowers()

    def uppers(self) -> Sequence[UpperDevice]:
        return self._thins_above()

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return Feature.IGNORE_DISCARD not in self._settings.features and self._active.data.supports_discard

    def read_now(self, offset: int, length: int) -> bytes | None:
        return self._active.data.read_now(offset, length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return self._active.data.write_now(offset, data)

    def submit(self, bio: Bio) -> None:
        if bio.op is Op.ZERO:
            zero_by_writing(self, bio)
        elif bio.op is Op.DISCARD and not self.supports_discard:
            bio.complete(NotSupported("thin-pool: discard is not supported"))
        else:
            self._active.data.submit(bio)

    async def postsuspend(self) -> None:
        await self._active.worker.run(self._active.pool.suspend())

    def check_swap(self) -> None:
        length, available = sectors_to_bytes(self.line.length_sectors), self._active.data.size_bytes
        if length > available:
            raise InvalidArgument(f"thin-pool: target of {length} bytes is longer than its data device, {available}")

    async def preresume(self) -> None:
        await self._active.worker.run(self._active.pool.preresume(self._settings))

    async def resume(self) -> None:
        await self._active.worker.run(self._active.pool.resume())

    async def message(self, words: list[str]) -> None:
        await self._active.worker.run(self._active.pool.message(words))

    async def close(self) -> None:
        await self._pools.release(self._active)
        self._release(self._active.data)
        self._release(self._active.metadata)

    @property
    def block_bytes(self) -> int:
        return self._active.pool.data.block_bytes


async def load(loading: Loading) -> PoolTarget:
    """The metadata is opened, and formatted if blank, on the first load."""
    if not loading.alone:
        raise InvalidArgument("thin-pool: target type thin-pool must appear alone in table")
    if loading.read_only:
        raise InvalidArgument("thin-pool: target type may not be included in a read-only table")
    arguments = PoolArguments.parse(loading.line.params)
    async with loading.pools.loading:
        metadata = await _acquire(loading, arguments.metadata_dev, "Error opening metadata block device")
        try:
            data = await _acquire(loading, arguments.data_dev, "Error getting data device")
            try:
                active, settings = await loading.pools.load(loading.device, loading.line, arguments, metadata, data)
            except BaseException:
                loading.release(data)
                raise
        except BaseException:
            loading.release(metadata)
            raise
    return PoolTarget(
        loading.line, active, settings, loading.pools, thins_above=loading.users_of_device, release=loading.release
    )


async def _acquire(loading: Loading, word: str, what: str) -> Backing:
    try:
        return await loading.acquire(word)
    except ThinfsError as error:
        raise prefixed(f"thin-pool: {what}", error) from None
