"""When changes become durable. Source: docs/reference/behaviour.md, 6.4."""

import pytest

from thinfs.errors import IOFailed

from .workbench import PoolOnBench, Volume, Workbench


async def committed_blocks(pool: PoolOnBench) -> int:
    """As the last commit left it: a suspended pool's status does not commit, and a noflush one neither."""
    return (await pool.status(noflush=True)).used_data_blocks


async def superblock(pool: PoolOnBench) -> bytes:
    return await pool.metadata.read(0, 4096)


async def prepared(bench: Workbench) -> tuple[PoolOnBench, Volume]:
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    return pool, thin


async def test_a_flush_commits_what_changed(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    before = await superblock(pool)
    await thin.write(1, 2)
    await thin.flush()
    assert await superblock(pool) != before


async def test_a_flush_without_changes_commits_nothing(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    await thin.write(0, 3)  # in place
    before = await superblock(pool)
    await thin.flush()
    assert await superblock(pool) == before


async def test_a_flush_of_another_thin_commits_nothing(bench: Workbench) -> None:
    pool, _ = await prepared(bench)
    other = await pool.thin(1)
    await other.flush()
    await bench.machine.elapse(0)
    before = await superblock(pool)
    await other.flush()
    assert await superblock(pool) == before


async def test_a_status_commits_and_a_noflush_one_does_not(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    before = await superblock(pool)
    await thin.write(1, 2)
    await pool.status()
    assert await superblock(pool) != before


async def test_a_message_commits(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    await thin.write(1, 2)
    before = await superblock(pool)
    await pool.message("set_transaction_id 0 1")
    assert await superblock(pool) != before


async def test_a_change_is_committed_within_a_second_without_being_asked(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    await thin.write(1, 2)
    await thin.write(2, 2)
    await bench.machine.elapse(2.2)  # the kernel's worker wakes once a second
    before = await superblock(pool)
    await pool.status()
    assert await superblock(pool) == before


async def test_removing_the_pool_commits(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    await thin.write(1, 2)
    await thin.remove()
    await pool.reopen()
    assert await (await pool.activate(0)).holds(1, 2)
    assert await pool.used() == 2


async def test_what_was_flushed_is_there_though_the_rest_was_lost(bench: Workbench) -> None:
    pool, thin = await prepared(bench)
    await thin.write(1, 2)
    await pool.metadata.fail()
    with pytest.raises(IOFailed):
        await thin.flush()
    await pool.metadata.work()
    await thin.remove()
    await pool.reopen()
    thin = await pool.activate(0)
    assert await thin.holds(0, 1)
    assert await thin.holds(1, None)
