"""Suspend, resume, reload, resize of pools, thins and metadata. Source: docs/reference/behaviour.md, 1, 2 and 6.5."""

import pytest

from kernel_backend.block_io import pattern
from thinfs.errors import InvalidArgument, NoSpace

from .workbench import MIB, PoolOnBench, Workbench


async def test_io_to_a_suspended_thin_waits_for_its_resume(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await bench.backend.suspend("t0")
    async with bench.running(lambda: thin.write(0, 1)) as write:
        await pool.status()
        assert not write.ended
        await bench.backend.resume("t0")
        await write.done()
    assert await thin.holds(0, 1)


async def test_suspending_the_pool_holds_its_thins_which_still_show_as_active(
    bench: Workbench, pool: PoolOnBench
) -> None:
    thin = await pool.thin(0)
    await pool.suspend()
    assert not (await bench.backend.info("t0")).suspended
    async with bench.running(lambda: thin.write(0, 1)) as write:
        await pool.status()
        assert not write.ended
        await pool.resume()
        await write.done()


async def test_a_suspended_pool_takes_messages(pool: PoolOnBench) -> None:
    await pool.suspend()
    await pool.message("create_thin 0")
    await pool.message("create_snap 1 0")
    await pool.message("set_transaction_id 0 5")
    await pool.resume()
    assert (await pool.status()).transaction_id == 5
    await pool.activate(1)


async def test_suspending_and_resuming_twice_is_harmless(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.suspend()
    await pool.suspend()
    assert (await bench.backend.info("p")).suspended
    await pool.resume()
    await pool.resume()
    assert not (await bench.backend.info("p")).suspended


async def test_suspending_the_pool_commits(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await pool.status()
    await thin.write(0, 1)
    await pool.suspend()
    assert await pool.used() == 1
    await pool.resume()


@pytest.mark.parametrize("noflush", [False, True], ids=["flush", "noflush"])
async def test_a_suspend_either_way_loses_nothing(bench: Workbench, pool: PoolOnBench, noflush: bool) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await bench.backend.suspend("t0", noflush=noflush)
    await bench.backend.resume("t0")
    assert await thin.holds(0, 1)


async def test_a_plain_suspend_and_resume_keeps_the_mode(bench: Workbench) -> None:
    pool = await bench.pool(1, "1 error_if_no_space")
    thin = await pool.thin(0)
    await thin.write(0, 1)
    with pytest.raises(NoSpace):
        await thin.write(1, 1)
    await pool.suspend()
    await pool.resume()
    assert (await pool.status()).mode == "out_of_data_space"


async def test_a_reload_grows_the_data(pool: PoolOnBench) -> None:
    await pool.reload(nr_blocks=128)
    assert (await pool.status()).nr_data_blocks == 128
    await pool.remove()
    with pytest.raises(InvalidArgument):
        await pool.create()  # its table is for 64
    await pool.bench.backend.create("p", pool.table(nr_blocks=128))


async def test_a_grown_data_device_alone_changes_nothing(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.data.resize(32 * MIB)
    await pool.suspend()
    await pool.resume()
    assert (await pool.status()).nr_data_blocks == 64


async def test_the_data_cannot_shrink_and_a_right_table_recovers_the_pool(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await pool.load(nr_blocks=32)
    await pool.suspend()
    with pytest.raises(InvalidArgument):
        await pool.resume()
    assert (await bench.backend.info("p")).suspended
    assert (await bench.backend.table("p")).split()[1] == "4096"
    await pool.load()
    await pool.resume()
    assert await thin.holds(0, 1)
    assert (await pool.status()).nr_data_blocks == 64


async def test_a_shorter_table_at_creation_leaves_no_device(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.remove()
    with pytest.raises(InvalidArgument):
        await bench.backend.create("p", pool.table(nr_blocks=32))
    assert "p" not in [info.name for info in await bench.backend.list()]


async def test_a_reload_longer_than_the_data_device_is_refused_at_the_resume(
    bench: Workbench, pool: PoolOnBench
) -> None:
    await pool.load(nr_blocks=1 << 20)
    await pool.suspend()
    with pytest.raises(InvalidArgument):
        await pool.resume()
    await pool.load()
    await pool.resume()
    assert (await pool.status()).nr_data_blocks == 64


async def test_grown_metadata_is_used_after_a_suspend_and_resume(bench: Workbench) -> None:
    pool = await bench.pool(metadata_bytes=MIB)
    assert (await pool.status()).nr_metadata_blocks == 256
    await pool.metadata.resize(2 * MIB)
    assert (await pool.status()).nr_metadata_blocks == 256
    await pool.suspend()
    await pool.resume()
    status = await pool.status()
    assert (status.nr_metadata_blocks, status.metadata_low_water_blocks) == (512, 128)
    await pool.reopen()
    assert (await pool.status()).nr_metadata_blocks == 512


async def test_shrunk_metadata_is_refused(bench: Workbench) -> None:
    pool = await bench.pool(metadata_bytes=2 * MIB)
    await pool.remove()
    await pool.metadata.resize(MIB)
    with pytest.raises(InvalidArgument):
        await pool.create()


async def test_a_thin_grows_and_shrinks_by_reload_and_keeps_what_is_hidden(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0, blocks=8)
    await thin.write(7, 7)
    for blocks in (4, 16):
        await bench.backend.load("t0", f"0 {blocks * 128} thin /dev/mapper/p 0")
        await bench.backend.suspend("t0")
        await bench.backend.resume("t0")
        assert (await bench.volume("t0")).device.size_bytes == blocks * 65536
        assert str(await thin.status()) == "128 1023"
    assert await (await bench.volume("t0")).holds(7, 7)


async def test_a_thin_may_be_replaced_by_any_target(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    await bench.backend.create("t0", "0 1024 thin /dev/mapper/p 0")
    await bench.backend.load("t0", "0 1024 zero")
    await bench.backend.resume("t0")
    assert (await bench.backend.table("t0")).split()[2] == "zero"
    await pool.message("delete 0")


async def test_a_reload_changes_features_and_the_low_water_mark(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.reload(features="2 skip_block_zeroing error_if_no_space", low_water=3)
    assert (await bench.backend.table("p")).endswith(" 128 3 2 skip_block_zeroing error_if_no_space ")
    assert (await pool.status()).no_space == "error_if_no_space"


async def test_a_reload_with_another_block_size_is_accepted_and_ignored(bench: Workbench, pool: PoolOnBench) -> None:
    await bench.backend.load("p", f"0 8192 thin-pool {pool.metadata.word} {pool.data.word} 256 0")
    await pool.suspend()
    await pool.resume()
    assert (await bench.backend.table("p")).split()[5] == "128"
    assert (await pool.status()).nr_data_blocks == 64


async def test_resuming_a_device_without_a_table_does_nothing(bench: Workbench) -> None:
    await bench.backend.create("empty", None)
    await bench.backend.resume("empty")
    info = await bench.backend.info("empty")
    assert (info.live_table, info.target_count) == (False, 0)


async def test_io_to_the_pool_device_goes_to_the_data_one_to_one(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(5, 9)
    await thin.flush()
    below = await bench.volume("p")
    assert await below.holds(0, 9)
    assert below.device.size_bytes == 64 * 65536


async def test_skipped_zeroing_shows_what_the_data_device_held(bench: Workbench) -> None:
    for features, expected in (("", None), ("1 skip_block_zeroing", 77)):
        pool = await bench.prepare(16, features)
        await pool.data.write(0, pattern(77, 65536))
        await pool.create()
        thin = await pool.thin(0)
        await thin.write(0, 1, length=4096)
        assert await thin.holds(0, 1, length=4096)
        whole = await thin.device.read(4096, 61440)
        assert any(whole) == (expected is not None)
        await thin.remove()
        await pool.remove()


async def test_a_refused_longer_table_is_dropped_and_the_next_resume_takes_the_old_one(
    bench: Workbench, pool: PoolOnBench
) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    before = await bench.backend.table("p")
    await pool.load(nr_blocks=1 << 20)
    await pool.suspend()
    with pytest.raises(InvalidArgument):
        await pool.resume()
    info = await bench.backend.info("p")
    assert (info.suspended, info.inactive_table) == (True, False)
    assert await bench.backend.table("p") == before
    await pool.resume()
    assert not (await bench.backend.info("p")).suspended
    assert await bench.backend.table("p") == before
    assert await thin.holds(0, 1)
    await thin.write(1, 2)
    assert (await pool.status()).nr_data_blocks == 64


async def test_suspending_a_thin_of_a_suspended_pool_waits_for_the_pools_resume(
    bench: Workbench, pool: PoolOnBench
) -> None:
    await pool.thin(0)
    await pool.suspend()
    async with bench.running(lambda: bench.backend.suspend("t0")) as suspend:
        await bench.machine.elapse(0.3)
        assert not suspend.ended, suspend.error
        await pool.resume()
        await suspend.done()
    assert (await bench.backend.info("t0")).suspended
    await bench.backend.resume("t0")


async def test_a_rename_is_an_event_and_wakes_who_waits(bench: Workbench, pool: PoolOnBench) -> None:
    async with bench.running(lambda: bench.backend.wait("p", 0)) as wait:
        await bench.machine.elapse(0.3)
        assert not wait.ended
        await bench.backend.rename("p", "q")
        await wait.done()
    assert (await bench.backend.info("q")).event_nr == 1
    await bench.backend.rename("q", "p")
    assert (await bench.backend.info("p")).event_nr == 2
    await bench.backend.create("empty", None)  # nothing that could have events
    await bench.backend.rename("empty", "still-empty")
    assert (await bench.backend.info("still-empty")).event_nr == 0
