"""The low water mark of the data device, events and wait. Source: docs/reference/behaviour.md, 5.2."""

import pytest

from thinfs.errors import NoSuchDevice

from .workbench import PoolOnBench, Volume, Workbench


async def write_blocks(thin: Volume, begin: int, end: int) -> None:
    for block in range(begin, end):
        await thin.write(block, block)


async def test_one_event_when_free_blocks_reach_the_mark(bench: Workbench) -> None:
    pool = await bench.pool(16, low_water=6)
    thin = await pool.thin(0)
    await write_blocks(thin, 0, 10)
    assert await pool.event_nr() == 0
    await write_blocks(thin, 10, 11)  # looked at before the allocation: 6 are free
    assert await pool.event_nr() == 1
    await write_blocks(thin, 11, 16)
    assert await pool.event_nr() == 1


async def test_a_resume_arms_it_again(bench: Workbench) -> None:
    pool = await bench.pool(16, low_water=6)
    thin = await pool.thin(0)
    await write_blocks(thin, 0, 12)
    await pool.suspend()
    await pool.resume()
    assert await pool.event_nr() == 1
    await write_blocks(thin, 12, 14)
    assert await pool.event_nr() == 2


async def test_a_mark_of_0_tells_when_the_pool_is_full(bench: Workbench) -> None:
    pool = await bench.pool(4, "1 error_if_no_space", low_water=0)
    thin = await pool.thin(0)
    await write_blocks(thin, 0, 4)
    assert await pool.event_nr() == 0


async def test_a_mark_above_the_size_tells_at_the_first_allocation(bench: Workbench) -> None:
    pool = await bench.pool(16, low_water=1 << 40)
    thin = await pool.thin(0)
    assert await pool.event_nr() == 0
    await write_blocks(thin, 0, 1)
    assert await pool.event_nr() == 1


async def test_a_reload_changes_it(bench: Workbench) -> None:
    pool = await bench.pool(16)
    thin = await pool.thin(0)
    await write_blocks(thin, 0, 4)
    await pool.reload(low_water=15)
    assert (await bench.backend.table("p")).split()[6] == "15"
    await write_blocks(thin, 4, 5)
    assert await pool.event_nr() == 1


async def test_wait_returns_at_the_event(bench: Workbench) -> None:
    pool = await bench.pool(16, low_water=6)
    thin = await pool.thin(0)
    async with bench.running(lambda: bench.backend.wait("p", 0)) as wait:
        await write_blocks(thin, 0, 10)
        await pool.status()
        assert not wait.ended
        await write_blocks(thin, 10, 11)
        await wait.done()


async def test_wait_returns_at_once_for_an_event_of_the_past(bench: Workbench) -> None:
    pool = await bench.pool(16, low_water=16)
    thin = await pool.thin(0)
    await write_blocks(thin, 0, 1)
    info = await bench.backend.wait("p", 0)
    assert (info.name, info.event_nr) == ("p", 1)


async def test_removing_the_device_ends_a_wait_without_an_error(pool: PoolOnBench, bench: Workbench) -> None:
    for _ in range(10):
        async with bench.running(lambda: bench.backend.wait("p", 0)) as wait:
            await pool.status()
            assert not wait.ended
            await pool.remove()
            try:
                await wait.done()
                return
            except NoSuchDevice:  # it had not come to wait by then, on a kernel: once more
                await pool.create()
    raise AssertionError("it ended with an error each time")


async def test_a_wait_for_a_device_that_is_not_there_is_refused(bench: Workbench) -> None:
    with pytest.raises(NoSuchDevice):
        await bench.backend.wait("nosuch", 0)
