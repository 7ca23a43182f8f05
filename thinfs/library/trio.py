"""The same in trio: `thinfs.open_pool_trio`. Calls run in threads, one at a time in the order they came.

Promises: the event loop is never held up; a call that has begun is finished even when its caller is cancelled.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from thinfs.dm.status import PoolStatus
from thinfs.library.pool import Pool, Volume, open_pool
from thinfs.ondisk.thin import DeviceDetails

T = TypeVar("T")


@asynccontextmanager
async def open_pool_trio(metadata: str, data: str, **options: Any) -> AsyncIterator["TrioPool"]:
    """`open_pool` for the body of the `async with`, with its options and its errors."""
    pool = await trio.to_thread.run_sync(lambda: open_pool(metadata, data, **options))
    try:
        yield TrioPool(pool)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(pool.close)


class _Turns:
    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        async with self._lock:
            return await trio.to_thread.run_sync(call, *arguments)


class TrioPool:
    """thinfs.library.pool.Pool, awaited."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turns = _Turns()
        self.block_bytes = pool.block_bytes

    async def create_thin(self, dev_id: int) -> None:
        await self._turns.run(self._pool.create_thin, dev_id)

    async def create_snap(self, dev_id: int, origin_id: int) -> None:
        await self._turns.run(self._pool.create_snap, dev_id, origin_id)

    async def delete(self, dev_id: int) -> None:
        await self._turns.run(self._pool.delete, dev_id)

    async def thins(self) -> dict[int, DeviceDetails]:
        return await self._turns.run(self._pool.thins)

    async def volume(self, dev_id: int, size_bytes: int) -> "TrioVolume":
        return TrioVolume(await self._turns.run(self._pool.volume, dev_id, size_bytes), self._turns)

    async def status(self) -> PoolStatus | None:
        return await self._turns.run(self._pool.status)

    async def commit(self) -> None:
        await self._turns.run(self._pool.commit)


class TrioVolume:
    """thinfs.library.pool.Volume, awaited; a trio resource."""

    def __init__(self, volume: Volume, turns: _Turns) -> None:
        self._volume = volume
        self._turns = turns
        self.size_bytes = volume.size_bytes

    async def read(self, offset: int, length: int) -> bytes:
        return await self._turns.run(self._volume.read, offset, length)

    async def write(self, offset: int, data: bytes) -> None:
        await self._turns.run(self._volume.write, offset, data)

    async def discard(self, offset: int, length: int) -> None:
        await self._turns.run(self._volume.discard, offset, length)

    async def flush(self) -> None:
        await self._turns.run(self._volume.flush)

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._turns.run(self._volume.close)
