"""Failing devices, no metadata space: aborts, needs_check, read-only, fail. Source: docs/reference/behaviour.md, 5.

On kernels a disk fails by its linear table becoming error or flakey; in userspace its file fails.
"""

import pytest

from thinfs.dm.status import FAIL
from thinfs.errors import InvalidArgument, IOFailed, NotSupported

from .workbench import KIB, MIB, PoolOnBench, Volume, Workbench


async def broken(bench: Workbench, *, reads: bool) -> tuple[PoolOnBench, Volume]:
    """A pool whose commit has failed. Thin 0 has block 0 mapped; block 1 was lost."""
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    await thin.write(1, 2)
    await pool.metadata.fail(reads=reads)
    with pytest.raises(IOFailed):
        await thin.flush()
    await pool.metadata.work()
    return pool, thin


async def test_a_commit_that_fails_to_write_makes_the_pool_read_only_and_in_need_of_a_check(bench: Workbench) -> None:
    pool, thin = await broken(bench, reads=False)
    status = await pool.status()
    assert (status.mode, status.needs_check, status.used_data_blocks) == ("ro", True, 1)
    assert await thin.holds(0, 1)
    with pytest.raises(IOFailed):
        await thin.write(9, 1)
    with pytest.raises(NotSupported):
        await pool.message("create_thin 1")


async def test_until_it_is_opened_again_the_mapped_count_may_show_the_lost_mappings(bench: Workbench) -> None:
    pool, thin = await broken(bench, reads=False)
    assert await thin.mapped_blocks() == 2
    await thin.remove()
    await pool.reopen()
    assert await (await pool.activate(0)).mapped_blocks() == 1


async def test_a_flag_that_could_not_be_written_is_written_when_the_pool_goes(bench: Workbench) -> None:
    pool, thin = await broken(bench, reads=False)
    await thin.remove()
    await pool.reopen()
    assert (await pool.status()).needs_check
    await pool.reload()
    assert (await pool.status()).mode == "ro"
    await pool.remove()
    code, text = await pool.metadata.thin_check("--clear-needs-check-flag")
    assert code == 0, text
    await pool.create()
    assert (await pool.status()).mode == "rw"
    thin = await pool.activate(0)
    assert await thin.holds(0, 1)
    assert await thin.holds(1, None)


async def failed(bench: Workbench) -> tuple[PoolOnBench, Volume]:
    """A metadata device that could not be read either: the abort failed."""
    pool, thin = await broken(bench, reads=True)
    assert await pool.mode() == FAIL
    return pool, thin


async def test_in_fail_mode_all_io_is_eio(bench: Workbench) -> None:
    _, thin = await failed(bench)
    for call in (
        lambda: thin.write(0, 1), lambda: thin.holds(0, 1), lambda: thin.holds(5, None), lambda: thin.write(5, 1),
        lambda: thin.discard(0, 1), thin.flush,
    ):  # fmt: skip
        with pytest.raises(IOFailed):
            await call()


async def test_in_fail_mode_messages_are_not_supported_and_no_thin_is_opened(bench: Workbench) -> None:
    pool, _ = await failed(bench)
    for message in ("create_thin 5", "bogus"):
        with pytest.raises(NotSupported):
            await pool.message(message)
    with pytest.raises(InvalidArgument):
        await pool.activate(0, name="again")


async def test_in_fail_mode_status_is_fail_for_pool_and_thin_and_the_pools_table_as_ever(bench: Workbench) -> None:
    pool, _ = await failed(bench)
    assert await pool.status_line() == "0 8192 thin-pool Fail"
    assert await bench.backend.status("t0") == "0 8192 thin Fail"
    assert await bench.backend.table("t0") == "0 8192 thin Fail"
    assert await bench.backend.table("p") == f"0 8192 thin-pool {pool.metadata.word} {pool.data.word} 128 0 0 "


async def test_in_fail_mode_a_reload_is_refused_and_a_resume_is_not(bench: Workbench) -> None:
    pool, _ = await failed(bench)
    with pytest.raises(InvalidArgument):
        await pool.load()
    await pool.suspend()
    await pool.resume()
    assert await pool.mode() == FAIL


async def test_a_failed_pool_made_again_is_at_its_last_commit(bench: Workbench) -> None:
    pool, thin = await failed(bench)
    await thin.remove()
    await pool.reopen()
    assert (await pool.status()).mode == "rw"
    thin = await pool.activate(0)
    assert await thin.holds(0, 1)
    assert await thin.holds(1, None)


@pytest.mark.needs("failing data")
async def test_data_that_cannot_be_written_is_eio_and_leaves_the_mode(bench: Workbench) -> None:
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    await pool.data.fail(reads=False)
    with pytest.raises(IOFailed):
        await thin.write(0, 2)
    with pytest.raises(IOFailed):
        await thin.write(1, 2)
    await pool.data.work()
    assert (await pool.status()).mode == "rw"
    assert await thin.holds(0, 1)


async def test_a_failed_copy_gives_eio_maps_nothing_and_leaks_one_block(bench: Workbench) -> None:
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await pool.snap(1, thin, 0)
    await pool.data.fail(reads=False)
    for _ in range(2):
        with pytest.raises(IOFailed):
            await thin.write(0, 2, length=4096)
        assert (await pool.status(noflush=True)).mode == "rw"
    await pool.data.work()
    assert await pool.used() == 3
    assert await thin.holds(0, 1)
    assert await thin.mapped_blocks() == 1


@pytest.mark.needs("failing data")
async def test_data_that_cannot_be_read_is_eio(bench: Workbench) -> None:
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    await pool.data.fail()
    with pytest.raises(IOFailed):
        await thin.holds(0, 1)
    await pool.data.work()
    assert await thin.holds(0, 1)


async def filled_metadata(bench: Workbench) -> tuple[PoolOnBench, Volume]:
    """Metadata taken by thins until the pool says ro: each create_thin takes a block."""
    pool = await bench.pool(metadata_bytes=256 * KIB)
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    for dev_id in range(1, 100):
        try:
            await pool.message(f"create_thin {dev_id}")
        except NotSupported:
            return pool, thin
    raise AssertionError("the metadata did not run out")


async def test_without_free_metadata_the_pool_is_ro_without_needs_check(bench: Workbench) -> None:
    pool, _ = await filled_metadata(bench)
    status = await pool.status()
    assert (status.mode, status.needs_check) == ("ro", False)
    assert status.used_metadata_blocks == status.nr_metadata_blocks == 64


async def test_without_free_metadata_mapped_blocks_are_served_and_new_ones_are_eio(bench: Workbench) -> None:
    _, thin = await filled_metadata(bench)
    await thin.write(0, 2)
    assert await thin.holds(0, 2)
    assert await thin.holds(1, None)
    with pytest.raises(IOFailed):
        await thin.write(1, 1)
    await thin.discard(0, 1)  # succeeds and does nothing
    assert await thin.holds(0, 2)


async def test_without_free_metadata_every_message_is_refused(bench: Workbench) -> None:
    pool, _ = await filled_metadata(bench)
    for message in ("delete 1", "bogus", "release_metadata_snap"):
        with pytest.raises(NotSupported):
            await pool.message(message)


async def test_grown_metadata_brings_it_back(bench: Workbench) -> None:
    pool, thin = await filled_metadata(bench)
    await pool.metadata.resize(MIB)
    await pool.suspend()
    await pool.resume()
    status = await pool.status()
    assert (status.mode, status.nr_metadata_blocks) == ("rw", 256)
    await thin.write(1, 1)
    assert await thin.holds(1, 1)


async def test_a_reload_alone_lasts_until_the_next_commit(bench: Workbench) -> None:
    pool, _ = await filled_metadata(bench)
    await pool.reload()
    assert await pool.mode() == "rw"
    assert (await pool.status()).mode == "ro"


async def test_reopening_lasts_until_the_next_commit_too(bench: Workbench) -> None:
    pool, thin = await filled_metadata(bench)
    await thin.remove()
    await pool.reopen()
    assert await pool.mode() == "rw"


async def test_tiny_metadata_comes_up_read_only_and_needs_a_check(bench: Workbench) -> None:
    pool = await bench.prepare(16384, metadata_bytes=44 * KIB)
    await pool.create()
    status = await pool.status()
    assert (status.mode, status.needs_check, status.nr_data_blocks) == ("ro", True, 0)


async def needing_check(bench: Workbench) -> PoolOnBench:
    """A pool with the flag on disk, removed: growing its data ran out of metadata."""
    pool = await bench.prepare(16384, metadata_bytes=44 * KIB)
    await pool.create()
    assert (await pool.status()).needs_check
    return pool


async def test_needs_check_survives_a_reopening_and_keeps_the_pool_read_only(bench: Workbench) -> None:
    pool = await needing_check(bench)
    await pool.reopen()
    status = await pool.status()
    assert (status.mode, status.needs_check) == ("ro", True)
    with pytest.raises(NotSupported):
        await pool.message("create_thin 0")


async def test_while_it_needs_a_check_nothing_grows_and_the_resume_succeeds(bench: Workbench) -> None:
    pool = await needing_check(bench)
    await pool.metadata.resize(MIB)
    await pool.suspend()
    await pool.resume()
    status = await pool.status()
    assert (status.nr_metadata_blocks, status.nr_data_blocks, status.needs_check) == (11, 0, True)


async def test_thin_check_clears_the_flag_and_the_pool_is_writable_again(bench: Workbench) -> None:
    pool = await needing_check(bench)
    await pool.metadata.resize(MIB)
    await pool.remove()
    code, text = await pool.metadata.thin_check("--clear-needs-check-flag")
    assert code == 0, text
    await pool.create()
    status = await pool.status()
    assert (status.mode, status.needs_check, status.nr_data_blocks) == ("rw", False, 16384)


async def test_a_read_only_pool_serves_what_is_mapped_and_refuses_the_rest(bench: Workbench) -> None:
    pool = await bench.pool()
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await pool.snap(1, thin, 0)
    await thin.write(1, 2)
    await pool.reload(features="1 read_only")
    await thin.write(1, 3)
    assert await thin.holds(1, 3)
    assert await thin.holds(0, 1)
    assert await thin.holds(9, None)
    for block in (0, 9):  # shared, and unmapped
        with pytest.raises(IOFailed):
            await thin.write(block, 5)
    await thin.discard(0, 2)
    assert await thin.holds(1, 3)
    await thin.flush()


async def test_a_read_only_pool_opens_thins_and_a_fsync_needs_block_0(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.message("create_thin 0")
    await pool.reload(features="1 read_only")
    thin = await pool.activate(0)
    with pytest.raises(IOFailed):
        await thin.flush()


async def test_a_reload_makes_a_read_only_pool_writable_again(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.message("create_thin 0")
    await pool.reload(features="1 read_only")
    await pool.reload()
    thin = await pool.activate(0)
    await thin.write(0, 1)
    assert (await pool.status()).mode == "rw"


async def test_a_pool_opened_read_only_writes_nothing(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.message("create_thin 0")
    await pool.remove()
    before = await pool.metadata.read(0, MIB)
    await bench.backend.create("p", pool.table(features="1 read_only"))
    thin = await pool.activate(0)
    assert await thin.holds(0, None)
    await pool.status()
    await thin.remove()
    await pool.remove()
    assert await pool.metadata.read(0, MIB) == before


async def test_loading_and_asking_an_unchanged_pool_writes_nothing(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.message("create_thin 0")
    await pool.remove()
    before = await pool.metadata.read(0, MIB)
    await pool.create()
    await pool.status()
    await pool.remove()
    assert await pool.metadata.read(0, MIB) == before
