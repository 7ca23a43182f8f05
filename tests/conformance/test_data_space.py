"""Out of data space: the mode, queueing, its timeout, the ways back. Source: docs/reference/behaviour.md, 5 and 5.1."""

import pytest

from thinfs.errors import NoSpace

from .workbench import PoolOnBench, Volume, Workbench


async def full(bench: Workbench, features: str = "") -> tuple[PoolOnBench, Volume]:
    """A pool of 4 blocks, all of them taken by thin 0."""
    pool = await bench.pool(4, features)
    thin = await pool.thin(0)
    for block in range(4):
        await thin.write(block, block)
    await thin.flush()
    return pool, thin


async def test_filling_the_last_block_leaves_the_mode(bench: Workbench) -> None:
    pool, _ = await full(bench)
    status = await pool.status()
    assert (status.used_data_blocks, status.mode) == (4, "rw")


async def test_the_next_allocation_changes_it_and_raises_an_event(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    before = await pool.event_nr()
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    assert (await pool.status()).mode == "out_of_data_space"
    assert await pool.event_nr() > before


async def test_mapped_blocks_are_read_and_written_as_before(bench: Workbench) -> None:
    _, thin = await full(bench, "1 error_if_no_space")
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    await thin.write(0, 100)
    await thin.flush()
    assert await thin.holds(0, 100)
    assert await thin.holds(9, None)


async def test_breaking_sharing_needs_space_as_well(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    snap = await pool.snap(1, thin, 0)
    with pytest.raises(NoSpace):
        await thin.write(0, 100)
    assert await thin.holds(0, 0)
    assert await snap.holds(0, 0)


async def test_messages_are_accepted(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    await pool.message("create_thin 1")
    await pool.message("set_transaction_id 0 1")
    assert (await pool.status()).mode == "out_of_data_space"


async def test_a_discard_makes_room_and_the_next_commit_finds_it(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    await thin.discard(0, 1)
    assert (await pool.status()).mode == "rw"
    await thin.write(4, 4)
    assert await thin.holds(4, 4)


async def test_deleting_a_thin_makes_room(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    await pool.message("create_thin 1")
    other = await pool.activate(1)
    with pytest.raises(NoSpace):
        await other.write(0, 1)
    await thin.remove()
    await pool.message("delete 0")
    assert (await pool.status()).mode == "rw"
    await other.write(0, 1)
    assert await other.holds(0, 1)


async def test_error_if_no_space_refuses_at_once_again_and_again(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    for _ in range(3):
        with pytest.raises(NoSpace):
            await thin.write(4, 4)
    assert await pool.used() == 4


async def test_a_fsync_with_block_0_unmapped_is_a_write_to_it(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    other = await pool.thin(1)
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    with pytest.raises(NoSpace):
        await other.flush()
    await thin.flush()


async def test_without_it_a_write_waits_and_goes_on_when_the_pool_has_grown(bench: Workbench) -> None:
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        assert (await pool.status()).no_space == "queue_if_no_space"
        assert not write.ended
        await pool.reload(nr_blocks=8)
        await write.done()
    assert (await pool.status()).mode == "rw"
    assert await thin.holds(4, 4)
    assert await pool.used() == 5


async def test_waiting_writes_go_on_when_a_discard_has_made_room(bench: Workbench) -> None:
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await thin.discard(0, 2)
        await pool.status()
        await write.done()
    assert await thin.holds(4, 4)
    assert await pool.used() == 3


async def test_waiting_writes_go_on_when_a_reload_asks_for_write_mode_though_nothing_grew(bench: Workbench) -> None:
    """They run again, find no space again, and then fail as the new table says."""
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await pool.reload(features="1 error_if_no_space")
        with pytest.raises(NoSpace):
            await write.done()


async def test_a_waiting_write_gets_enospc_when_its_time_is_up(bench: Workbench) -> None:
    await bench.machine.set_no_space_timeout(1)
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        before = await pool.event_nr()
        await bench.machine.elapse(1.1)
        with pytest.raises(NoSpace):
            await write.done()
    status = await pool.status()
    assert (status.mode, status.no_space) == ("out_of_data_space", "error_if_no_space")
    assert "error_if_no_space" not in await bench.backend.table("p")
    assert await pool.event_nr() == before + 1
    with pytest.raises(NoSpace):
        await thin.write(5, 5)


async def test_a_suspend_and_resume_restores_the_queueing_after_the_timeout(bench: Workbench) -> None:
    await bench.machine.set_no_space_timeout(1)
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await bench.machine.elapse(1.1)
        with pytest.raises(NoSpace):
            await write.done()
    await pool.suspend()
    await pool.resume()
    status = await pool.status()
    assert (status.mode, status.no_space) == ("out_of_data_space", "queue_if_no_space")
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.machine.elapse(1.1)  # the timer was set again by the resume
        with pytest.raises(NoSpace):
            await write.done()


async def test_back_in_write_mode_the_requested_setting_holds_again(bench: Workbench) -> None:
    await bench.machine.set_no_space_timeout(1)
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await bench.machine.elapse(1.1)
        with pytest.raises(NoSpace):
            await write.done()
    await thin.discard(0, 1)
    status = await pool.status()
    assert (status.mode, status.no_space) == ("rw", "queue_if_no_space")


async def test_a_timeout_of_0_is_none(bench: Workbench) -> None:
    await bench.machine.set_no_space_timeout(0)
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await bench.machine.elapse(1.5)
        assert not write.ended
        await pool.reload(nr_blocks=8)
        await write.done()


async def test_suspending_the_pool_does_not_wait_for_queued_writes(bench: Workbench) -> None:
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await pool.suspend()
        assert not write.ended
        await pool.load(nr_blocks=8)
        await pool.resume()
        await write.done()
    assert await thin.holds(4, 4)


async def test_a_flushing_suspend_of_the_thin_waits_for_its_queued_writes(bench: Workbench) -> None:
    """Not by growing the pool: the kernel's pool cannot be suspended meanwhile, it waits for the thin's suspend."""
    pool = await bench.pool(4)
    thin, other = await pool.thin(0), await pool.thin(1)
    for block in range(4):
        await other.write(block, block)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        async with bench.running(lambda: bench.backend.suspend("t0")) as suspend:
            await pool.message("create_thin 9")
            assert not suspend.ended
            assert not write.ended
            await other.discard(0, 1)
            await pool.status()
            await write.done()
            await suspend.done()
        await bench.backend.resume("t0")
    assert await thin.holds(4, 4)


async def test_a_noflush_suspend_of_the_thin_takes_its_queued_writes_back_until_it_resumes(bench: Workbench) -> None:
    pool, thin = await full(bench)
    async with bench.running(lambda: thin.write(4, 4)) as write:
        await bench.until_mode(pool, "out_of_data_space")
        await bench.backend.suspend("t0", noflush=True)
        assert not write.ended
        await pool.reload(nr_blocks=8)
        assert not write.ended
        await bench.backend.resume("t0")
        await write.done()
    assert await thin.holds(4, 4)


async def test_several_volumes_wait_and_all_go_on(bench: Workbench) -> None:
    pool, thin = await full(bench)
    other = await pool.thin(1)
    async with bench.running(lambda: thin.write(4, 4)) as one, bench.running(lambda: other.write(7, 7)) as two:
        await bench.until_mode(pool, "out_of_data_space")
        await pool.reload(nr_blocks=8)
        await one.done()
        await two.done()
    assert await thin.holds(4, 4)
    assert await other.holds(7, 7)
    assert await pool.used() == 6


async def test_it_is_told_again_after_a_reopening_only_when_a_block_is_needed(bench: Workbench) -> None:
    pool, thin = await full(bench, "1 error_if_no_space")
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    await thin.remove()
    await pool.reopen()
    assert (await pool.status()).mode == "rw"
    thin = await pool.activate(0)
    with pytest.raises(NoSpace):
        await thin.write(4, 4)
    assert (await pool.status()).mode == "out_of_data_space"
