"""The thin target: a thin volume active on a pool of this process.

thin = POOL_DEV " " DEV_ID [" " EXTERNAL_ORIGIN_DEV]
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

from thinfs.bio import Requeued
from thinfs.dm.table import TargetLine, ThinArguments, format_thin_params
from thinfs.errors import InvalidArgument, ThinfsError, prefixed
from thinfs.pool.served import Volume
from thinfs.pool.thin import Thin
from thinfs.userspace.backing import Backing
from thinfs.userspace.loading import Loading
from thinfs.userspace.pools import ActivePool
from thinfs.userspace.target import Plain


class ThinTarget(Plain):
    def __init__(
        self,
        line: TargetLine,
        active: ActivePool,
        pool_backing: Backing,
        thin: Thin,
        origin: Backing | None,
        *,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(line)
        self.thin = thin
        self._active = active
        self._pool_backing = pool_backing
        self._origin = origin
        self._release = release
        self.submit = thin.submit  # type: ignore[method-assign]
        if thin.at_once:  # one call less on the hottest paths
            self.read_now = thin.read  # type: ignore[method-assign]
            self.write_now = thin.write_now  # type: ignore[method-assign]

    def table_params(self) -> str:
        if self._active.pool.failed:
            return "Fail"
        origin = None if self._origin is None else self._origin.label
        return format_thin_params(self._pool_backing.label, self.thin.dev_id, origin)

    async def status_params(self, *, noflush: bool) -> str:
        return await self._active.ask(lambda: self._active.pool.thin_status(self.thin))

    def lowers(self) -> Iterator[Backing]:
        if self._origin is not None:
            yield self._origin
        yield self._pool_backing

    @property
    def supports_discard(self) -> bool:  # type: ignore[override]
        return self._active.pool.discard_enabled

    @property
    def volume(self) -> Volume | None:
        served = self.thin.internal.served
        return None if served is None else served.volume

    async def presuspend(self, *, noflush: bool) -> None:
        if noflush:
            for bio in self.thin.take_back():
                bio.complete(Requeued("suspended without flushing"))

    async def resume(self) -> None:
        self.thin.resume()

    async def close(self) -> None:
        self._active.pool.close_thin(self.thin)
        await self._release()

    @property
    def block_bytes(self) -> int:
        return self.thin.block_bytes

    def allocated_bytes(self) -> int:
        return self.thin.mapped_bytes

    def next_data(self, offset: int, end: int) -> int | None:
        return self.thin.next_data(offset, end)

    def next_hole(self, offset: int, end: int) -> int:
        return self.thin.next_hole(offset, end)


async def load(loading: Loading) -> ThinTarget:
    """The checks in the kernel's order: origin, pool device, id, pool."""
    arguments = ThinArguments.parse(loading.line.params)
    async with AsyncExitStack() as stack:
        origin: Backing | None = None
        if arguments.origin_dev is not None:
            try:
                origin = await loading.acquire(arguments.origin_dev, read_only=True)
            except ThinfsError as error:
                raise prefixed("thin: Error opening origin device", error) from None
            stack.callback(loading.release, origin)
        pool_device = loading.mapped_device_of(arguments.pool_dev)
        if pool_device is None:
            await loading.check_present(arguments.pool_dev)
        dev_id = arguments.dev_id()
        if pool_device is None:
            raise InvalidArgument(f"thin: Couldn't get pool mapped device: {arguments.pool_dev}")
        active = loading.pools.of_device(pool_device)
        if active is None:
            raise InvalidArgument(f"thin: Couldn't find pool object: {pool_device.name} is not a pool")
        pool_backing = await loading.acquire(arguments.pool_dev)
        stack.callback(loading.release, pool_backing)
        origin_device = None if origin is None else origin.device
        thin = await active.ask(lambda: active.pool.open_thin(dev_id, origin_device))
        if loading.pools.make_volume is not None:
            active.pool.serve(thin, loading.pools.make_volume)
        return ThinTarget(loading.line, active, pool_backing, thin, origin, release=stack.pop_all().aclose)
