"""The pools of this process, each bound to the mapped device it was first loaded on.

Promises: a pool lives as long as a table of its device names it; the checks of a table load in the kernel's
order; a metadata device belongs to one pool. Blocking opens run in a thread.
Source: behaviour reference, section 1, "Table-load checks".
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from thinfs.dm.table import Feature, PoolArguments, TargetLine
from thinfs.errors import Busy, InvalidArgument, ThinfsError, prefixed
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import Binding
from thinfs.pool.pool import NO_SPACE_TIMEOUT_SECONDS, Pool
from thinfs.units import sectors_to_bytes
from thinfs.userspace.backing import Backing, BackingDevices
from thinfs.userspace.blocking import run_blocking
from thinfs.userspace.mapped_device import MappedDevice
from thinfs.userspace.targets import PoolTarget
from thinfs.userspace.worker import PoolWorker


@dataclass(slots=True, eq=False)
class ActivePool:
    """A pool in service and what it stands on; `targets` counts the tables that name it."""

    device: MappedDevice
    metadata: Backing
    data: Backing
    worker: PoolWorker
    timer: trio.CancelScope
    targets: int = 0


class Pools:
    """All pools of one device-mapper. `nursery` keeps their timers."""

    def __init__(
        self,
        backings: BackingDevices,
        acquire: Callable[[str], Awaitable[Backing]],
        nursery: trio.Nursery,
        users_of: Callable[[MappedDevice], list[MappedDevice]],
    ) -> None:
        self._backings = backings
        self._acquire = acquire
        self._nursery = nursery
        self._users_of = users_of
        self._active: list[ActivePool] = []
        self._loading = trio.Lock()
        self.no_space_timeout = NO_SPACE_TIMEOUT_SECONDS

    def of_device(self, device: MappedDevice) -> ActivePool | None:
        return next((pool for pool in self._active if pool.device is device), None)

    async def load(self, device: MappedDevice, line: TargetLine) -> PoolTarget:
        """A thin-pool line becomes a target; the metadata is opened, and formatted if blank, on the first load."""
        arguments = PoolArguments.parse(line.params)
        async with self._loading:
            metadata = await self._acquire_or_say(arguments.metadata_dev, "Error opening metadata block device")
            try:
                data = await self._acquire_or_say(arguments.data_dev, "Error getting data device")
                try:
                    return await self._load(device, line, arguments, metadata, data)
                except BaseException:
                    self._backings.release(data)
                    raise
            except BaseException:
                self._backings.release(metadata)
                raise

    async def _acquire_or_say(self, path: str, what: str) -> Backing:
        try:
            return await self._acquire(path)
        except ThinfsError as error:
            raise prefixed(f"thin-pool: {what}", error) from None

    async def _load(
        self, device: MappedDevice, line: TargetLine, arguments: PoolArguments, metadata: Backing, data: Backing
    ) -> PoolTarget:
        block_size, low_water = arguments.block_size_sectors(), arguments.low_water_blocks()
        active = self._find(device, metadata, data)
        if active is None:
            read_only = Feature.READ_ONLY in arguments.features
            active = await self._open(device, line, metadata, data, block_size, read_only=read_only)
        pool = active.worker.pool
        # a reload with another block size is accepted and ignored (seen): lengths count in the pool's blocks
        binding = Binding(arguments.features, low_water, line.length_sectors // pool.block_size_sectors)
        if binding.discard_enabled != pool.discard_enabled and active.targets:
            raise InvalidArgument("thin-pool: Discard support cannot be disabled once enabled")
        pool.register_metadata_threshold()
        active.targets += 1
        return PoolTarget(
            line,
            active.worker,
            binding,
            metadata,
            data,
            users=partial(self._users_of, device),
            release=partial(self._release, active, metadata, data),
        )

    def _find(self, device: MappedDevice, metadata: Backing, data: Backing) -> ActivePool | None:
        for active in self._active:
            if active.metadata is metadata:
                if active.device is not device:
                    raise Busy(
                        f"thin-pool: metadata device already in use by a pool: {metadata.device.label}, "
                        f"by {active.device.name}"
                    )
                if active.data is not data:
                    raise Busy(f"thin-pool: data device already in use by a pool: {active.data.device.label}")
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
        if length > data.device.size_bytes:
            raise InvalidArgument(
                f"thin-pool: Cannot calculate initial queue limits: the target of {length} bytes is longer than "
                f"its data device {data.device.label}, {data.device.size_bytes}"
            )
        open_metadata = partial(
            PoolMetadata.open,
            metadata.device,
            block_size,
            format_allowed=not read_only,
            pre_commit=data.device.flush,
        )
        try:
            pool_metadata = await run_blocking(open_metadata)
        except ThinfsError as error:
            raise prefixed(f"thin-pool: Error creating metadata object: {metadata.device.label}", error) from None
        pool = Pool(
            pool_metadata,
            metadata.device,
            data.device,
            clock=trio.current_time,
            notify=device.raise_event,
            no_space_timeout=self.no_space_timeout,
        )
        worker = PoolWorker(pool)
        timer = trio.CancelScope()
        active = ActivePool(device, metadata, data, worker, timer)
        self._active.append(active)
        self._nursery.start_soon(self._run_timer, active)
        return active

    async def _run_timer(self, active: ActivePool) -> None:
        with active.timer:
            await active.worker.run_timer()

    async def _release(self, active: ActivePool, metadata: Backing, data: Backing) -> None:
        active.targets -= 1
        if active.targets == 0:
            active.timer.cancel()
            self._active.remove(active)
            await active.worker.run(active.worker.pool.close())
        self._backings.release(data)
        self._backings.release(metadata)
