"""The pools of this process, each bound to the mapped device it was first loaded on.

Promises: a pool lives as long as a table of its device names it; a metadata device belongs to one pool; the checks of
a table load in the kernel's order. Source: docs/reference/behaviour.md, 1.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import trio

from thinfs.dm.table import Feature, PoolArguments, TargetLine
from thinfs.errors import Busy, InvalidArgument, ThinfsError, prefixed
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolSettings
from thinfs.pool.pool import NO_SPACE_TIMEOUT_SECONDS, Pool
from thinfs.pool.served import MakeVolume
from thinfs.steps import Steps
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing, BackingDevices
from thinfs.userspace.blocking import Background
from thinfs.userspace.mapped_device import MappedDevice
from thinfs.userspace.pool_worker import PoolWorker
from thinfs.userspace.stepping import run_steps

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class ActivePool:
    """A pool in service and what it stands on; `targets` counts the tables that name it."""

    device: MappedDevice
    metadata: Backing
    data: Backing
    worker: PoolWorker
    timer: trio.CancelScope
    targets: int = 0

    @property
    def pool(self) -> Pool:
        return self.worker.pool

    async def ask(self, question: Callable[[], T]) -> T:
        """What looks into the metadata: at once, or where that may have to wait, after what is under way."""
        if self.metadata.mapped is None:
            return question()
        return await self.worker.run(_asking(question))

    def lowers(self) -> Iterator[Backing]:
        yield self.metadata
        yield self.data


def _asking(question: Callable[[], T]) -> Steps[T]:
    yield from ()
    return question()


class Pools:
    """All pools of one device-mapper. `nursery` keeps their timers; `make_volume` is for thins that can be served."""

    def __init__(
        self,
        backings: BackingDevices,
        background: Background,
        nursery: trio.Nursery,
        make_volume: MakeVolume | None = None,
    ) -> None:
        self._backings = backings
        self._background = background
        self._nursery = nursery
        self.make_volume = make_volume
        self._active: list[ActivePool] = []
        self.loading = trio.Lock()
        self.no_space_timeout = NO_SPACE_TIMEOUT_SECONDS

    def of_device(self, device: MappedDevice) -> ActivePool | None:
        return next((pool for pool in self._active if pool.device is device), None)

    def devices(self) -> list[MappedDevice]:
        return [active.device for active in self._active]

    def pump(self) -> None:
        """A device has resumed: who waited for its metadata may go on."""
        for active in list(self._active):
            active.worker.pump()

    async def load(
        self, device: MappedDevice, line: TargetLine, arguments: PoolArguments, metadata: Backing, data: Backing
    ) -> tuple[ActivePool, PoolSettings]:
        """Find or open the pool, under `loading`; the metadata is formatted if blank. One more target names it then."""
        block_size, low_water = arguments.block_size_sectors(), arguments.low_water_blocks()
        active = self._find(device, metadata, data)
        if active is None:
            read_only = Feature.READ_ONLY in arguments.features
            active = await self._open(device, line, metadata, data, block_size, read_only=read_only)
        pool = active.pool
        # a reload with another block size is accepted and ignored (seen): lengths count in the pool's blocks
        nr_data_blocks = line.length_sectors // pool.block_size_sectors
        settings = PoolSettings(arguments.features, low_water, nr_data_blocks, guard_blocks=arguments.guard_blocks)
        if settings.discard_enabled != pool.discard_enabled and active.targets:
            raise InvalidArgument("thin-pool: Discard support cannot be disabled once enabled")
        pool.register_metadata_threshold()
        active.targets += 1
        return active, settings

    def _find(self, device: MappedDevice, metadata: Backing, data: Backing) -> ActivePool | None:
        for active in self._active:
            if active.metadata is metadata:
                if active.device is not device:
                    raise Busy(
                        f"thin-pool: metadata device already in use by a pool: {metadata.label}, "
                        f"by {active.device.name}"
                    )
                if active.data is not data:
                    raise Busy(f"thin-pool: data device already in use by a pool: {active.data.label}")
                return active
        if self.of_device(device) is not None:
            raise InvalidArgument(f"thin-pool: different pool cannot replace a pool: {device.name}")
        return None

    async def _open(
        self,
        device: MappedDevice,
        line: TargetLine,
        metadata: Backing,
        data: Backing,
        block_size: int,
        *,
        read_only: bool,
    ) -> ActivePool:
        length = sectors_to_bytes(line.length_sectors)
        if length > data.size_bytes:
            raise InvalidArgument(
                f"thin-pool: Cannot calculate initial queue limits: the target of {length} bytes is longer than "
                f"its data device {data.label}, {data.size_bytes}"
            )
        opening = PoolMetadata.opening(metadata.device, block_size, format_allowed=not read_only, data=data.device)
        try:
            pool_metadata = await run_steps(opening)
        except ThinfsError as error:
            raise prefixed(f"thin-pool: Error creating metadata object: {metadata.label}", error) from None
        pool = Pool(
            pool_metadata,
            metadata.device,
            data.device,
            clock=trio.current_time,
            notify=device.raise_event,
            no_space_timeout=self.no_space_timeout,
        )
        worker = PoolWorker(pool, self._background, metadata.is_held)
        timer = trio.CancelScope()
        active = ActivePool(device, metadata, data, worker, timer)
        self._active.append(active)
        self._nursery.start_soon(self._run_timer, active)
        return active

    async def _run_timer(self, active: ActivePool) -> None:
        with active.timer:
            await active.worker.run_timer()

    async def release(self, active: ActivePool) -> None:
        """A target that named it is closed; the last one closes the pool."""
        active.targets -= 1
        if active.targets == 0:
            active.timer.cancel()
            self._active.remove(active)
            await active.worker.run(active.pool.close())
