"""The delete message. Source: docs/reference/behaviour.md, 3 and 6.3."""

import pytest

from thinfs.errors import Busy, InvalidArgument, NoSuchThin

from .workbench import PoolOnBench, Workbench


async def test_deleting_frees_the_blocks_nobody_shares(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    for block in range(5):
        await thin.write(block, block)
    await thin.remove()
    assert await pool.used() == 5
    await pool.message("delete 0")
    assert await pool.used() == 0


async def test_deleting_an_origin_keeps_what_its_snapshot_shares(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    await origin.write(1, 2)
    snap = await pool.snap(1, origin, 0)
    await origin.write(0, 3)
    await origin.remove()
    await pool.message("delete 0")
    assert await pool.used() == 2
    assert await snap.holds(0, 1)
    assert await snap.holds(1, 2)


async def test_deleting_a_snapshot_keeps_its_origin(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await snap.write(0, 2)
    await snap.remove()
    await pool.message("delete 1")
    assert await pool.used() == 1
    assert await origin.holds(0, 1)


async def test_a_thin_that_does_not_exist_cannot_be_deleted(pool: PoolOnBench) -> None:
    with pytest.raises(NoSuchThin):
        await pool.message("delete 0")


async def test_an_active_thin_is_busy(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    with pytest.raises(Busy):
        await pool.message("delete 0")
    await thin.remove()
    await pool.message("delete 0")


async def test_a_thin_active_twice_is_busy_until_the_second_goes(pool: PoolOnBench) -> None:
    one, other = await pool.thin(0), await pool.activate(0, name="other")
    await one.remove()
    with pytest.raises(Busy):
        await pool.message("delete 0")
    await other.remove()
    await pool.message("delete 0")


async def test_a_deleted_id_may_be_given_again_and_is_empty(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.remove()
    await pool.message("delete 0")
    again = await pool.thin(0)
    assert await again.holds(0, None)


async def test_deleting_never_passes_discards_down(bench: Workbench) -> None:
    pool = await bench.pool(discard=True)
    thin = await pool.thin(0)
    await thin.write(0, 7)
    await thin.flush()
    await thin.remove()
    await pool.message("delete 0")
    await pool.remove()
    assert any(await pool.data.read(0, 64 * 1024))


async def test_the_blocks_of_a_deleted_thin_can_be_allocated_again(bench: Workbench) -> None:
    pool = await bench.pool(4, "1 error_if_no_space")
    for _ in range(5):
        thin = await pool.thin(0)
        for block in range(4):
            await thin.write(block, block)
        await thin.remove()
        await pool.message("delete 0")
    assert await pool.used() == 0


async def test_deleting_all_of_a_full_pool_leaves_the_mode_of_a_new_one(bench: Workbench) -> None:
    pool = await bench.pool(4)
    fresh = await pool.status()
    thin = await pool.thin(0)
    for block in range(4):
        await thin.write(block, block)
    await thin.remove()
    await pool.message("delete 0")
    assert await pool.status() == fresh


@pytest.mark.parametrize("words", ["delete", "delete 0 1", "delete x", "delete -1", "delete 16777216", "delete 0x1"])
async def test_malformed_deletions_are_invalid(pool: PoolOnBench, words: str) -> None:
    await pool.message("create_thin 0")
    await pool.message("create_thin 1")
    with pytest.raises(InvalidArgument):
        await pool.message(words)
