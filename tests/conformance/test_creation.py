"""create_thin and activation: ids, lengths, several devices of one id. Source: docs/reference/behaviour.md, 2 and 3."""

import pytest

from thinfs.errors import Busy, Exists, InvalidArgument, NoSuchThin

from .workbench import KIB, MIB, PoolOnBench, Workbench


async def test_a_new_thin_reads_as_zeros_and_maps_nothing(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    assert await thin.holds(0, None)
    assert await thin.holds(63, None)
    assert str(await thin.status()) == "0 -"
    assert await pool.used() == 0


async def test_what_is_written_is_read_back(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(3, 7)
    await thin.flush()
    assert await thin.holds(3, 7)
    assert str(await thin.status()) == "128 511"
    assert await pool.used() == 1


async def test_an_id_is_given_once(pool: PoolOnBench) -> None:
    await pool.message("create_thin 5")
    before = await pool.status_line()
    with pytest.raises(Exists):
        await pool.message("create_thin 5")
    assert await pool.status_line() == before


async def test_the_highest_id_is_accepted_and_one_more_is_not(pool: PoolOnBench) -> None:
    await pool.message("create_thin 16777215")
    with pytest.raises(InvalidArgument):
        await pool.message("create_thin 16777216")
    thin = await pool.activate(16777215)
    await thin.write(0, 1)


async def test_a_thin_that_does_not_exist_cannot_be_activated(pool: PoolOnBench, bench: Workbench) -> None:
    with pytest.raises(NoSuchThin):
        await pool.activate(0)
    assert "t0" not in [info.name for info in await bench.backend.list()]


async def test_one_id_may_be_active_twice_and_both_see_the_same(pool: PoolOnBench) -> None:
    one = await pool.thin(0)
    other = await pool.activate(0, name="other")
    await one.write(2, 9)
    await one.flush()
    assert await other.holds(2, 9)
    assert str(await other.status()) == str(await one.status())


async def test_several_thin_targets_share_a_table(pool: PoolOnBench, bench: Workbench) -> None:
    await pool.message("create_thin 0")
    await pool.message("create_thin 1")
    await bench.backend.create("both", "0 128 thin /dev/mapper/p 0\n128 256 thin /dev/mapper/p 1")
    both = await bench.volume("both")
    await both.write(0, 1)
    await both.write(1, 2)
    await both.write(2, 3)
    await both.flush()
    assert await bench.backend.status("both") == "0 128 thin 128 127\n128 256 thin 256 255"
    assert await both.holds(2, 3)


async def test_a_volume_longer_than_the_pool_is_fine_until_it_is_filled(bench: Workbench) -> None:
    pool = await bench.pool(4)
    thin = await pool.thin(0, blocks=1 << 24)
    await thin.write((1 << 24) - 1, 1)
    assert await thin.holds((1 << 24) - 1, 1)
    assert await pool.used() == 1


async def test_a_length_that_is_no_multiple_of_the_block_ends_inside_a_block(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    thin = await pool.activate(0, sectors=128 + 8)
    assert thin.device.size_bytes == 136 * 512
    await thin.write(1, 5, length=4096)
    assert await thin.holds(1, 5, length=4096)
    assert await pool.used() == 1


async def test_a_pool_with_active_thins_is_busy(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    with pytest.raises(Busy):
        await pool.remove()
    await thin.remove()
    await pool.remove()


@pytest.mark.parametrize("block_sectors", [128, 384, 2048, pytest.param(2097152, marks=pytest.mark.needs("gigabyte"))])
async def test_blocks_of_any_size_hold_their_data(bench: Workbench, block_sectors: int) -> None:
    pool = await bench.pool(3, block_sectors=block_sectors)
    thin = await pool.thin(0, blocks=3)
    end = block_sectors * 512 - 4096
    await thin.write(1, 3, length=4096, at=end)
    await thin.flush()
    assert await thin.holds(1, 3, length=4096, at=end)
    assert await thin.holds(1, None, length=4096)
    assert (await thin.status()).mapped_sectors == block_sectors


async def test_a_thousand_thins_survive_a_reopening(bench: Workbench) -> None:
    pool = await bench.pool(metadata_bytes=16 * MIB)
    for dev_id in range(1000):
        await pool.message(f"create_thin {dev_id}")
    await pool.reopen()
    for dev_id in (0, 499, 999):
        await (await pool.activate(dev_id)).remove()
    with pytest.raises(NoSuchThin):
        await pool.activate(1000)


async def test_metadata_that_just_holds_a_pool_has_one_event_at_its_creation(bench: Workbench) -> None:
    pool = await bench.pool(metadata_bytes=40 * KIB)
    assert await pool.event_nr() == 1
