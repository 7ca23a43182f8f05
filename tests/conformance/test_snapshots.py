"""create_snap and the sharing of blocks. Source: docs/reference/behaviour.md, 3 and 6.1."""

import pytest

from thinfs.errors import Exists, InvalidArgument, NoSuchThin

from .workbench import MIB, PoolOnBench, Workbench


async def test_a_snapshot_reads_as_its_origin_did_and_takes_no_block(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    assert await snap.holds(0, 1)
    assert await snap.holds(1, None)
    assert await pool.used() == 1
    assert str(await snap.status()) == "128 127"


async def test_writing_the_origin_leaves_the_snapshot(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await origin.write(0, 2)
    assert await snap.holds(0, 1)
    assert await origin.holds(0, 2)
    assert await pool.used() == 2


async def test_writing_the_snapshot_leaves_the_origin(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await snap.write(0, 2)
    assert await origin.holds(0, 1)
    assert await snap.holds(0, 2)
    assert await pool.used() == 2


async def test_a_partial_write_copies_the_rest_of_the_block(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await snap.write(0, 2, length=4096, at=8192)
    assert await snap.holds(0, 2, length=4096, at=8192)
    assert (await snap.device.read(0, 8192)) == (await origin.device.read(0, 8192))
    assert (await snap.device.read(12288, 53248)) == (await origin.device.read(12288, 53248))
    assert await origin.holds(0, 1)


async def test_a_block_written_after_the_snapshot_is_the_writers_alone(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    snap = await pool.snap(1, origin, 0)
    await origin.write(0, 1)
    await snap.write(0, 2)
    assert await pool.used() == 2
    await origin.write(0, 3)
    await snap.write(0, 4)
    assert await pool.used() == 2
    assert await origin.holds(0, 3)
    assert await snap.holds(0, 4)


async def test_both_sides_copy_even_when_the_other_has_diverged_already(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    for block in range(9):
        await origin.write(block, block)
    snap = await pool.snap(1, origin, 0)
    await origin.write(0, 100)
    assert await pool.used() == 10
    await snap.write(0, 101)
    assert await pool.used() == 10  # copied to a tenth block, the first one is free then


async def test_an_origin_copies_old_blocks_even_after_its_snapshot_is_deleted(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await snap.remove()
    await pool.message("delete 1")
    await origin.write(0, 2, length=4096)
    await pool.status()
    await origin.write(0, 3, length=4096)
    assert await pool.used() == 1
    assert await origin.holds(0, 3, length=4096)
    assert await origin.device.read(4096, 4096) != bytes(4096)


async def test_a_snapshot_of_a_snapshot_is_a_world_of_its_own(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    first = await pool.snap(1, origin, 0)
    await first.write(0, 2)
    second = await pool.snap(2, first, 1)
    await first.write(0, 3)
    await second.write(1, 4)
    assert [await volume.holds(0, tag) for volume, tag in ((origin, 1), (first, 3), (second, 2))] == [True] * 3
    assert await origin.holds(1, None)
    assert await first.holds(1, None)


async def test_a_chain_of_snapshots_a_thousand_deep_keeps_every_generation(bench: Workbench) -> None:
    pool = await bench.pool(1100, metadata_bytes=32 * MIB)
    await pool.message("create_thin 0")
    for generation in range(1000):
        if generation % 100 == 0:
            thin = await pool.activate(generation)
            await thin.write(0, generation)
            await thin.write(1 + generation // 100, 1)
            await thin.remove()
        await pool.message(f"create_snap {generation + 1} {generation}")
    for generation in (0, 99, 100, 550, 1000):
        thin = await pool.activate(generation)
        assert await thin.holds(0, min(generation, 999) // 100 * 100)
        assert await thin.mapped_blocks() == 2 + min(generation, 999) // 100
        await thin.remove()


async def test_a_thousand_snapshots_of_one_origin_all_hold_its_content(bench: Workbench) -> None:
    pool = await bench.pool(64, metadata_bytes=32 * MIB)
    origin = await pool.thin(0)
    await origin.write(0, 1)
    for dev_id in range(1, 1001):
        await pool.message(f"create_snap {dev_id} 0")
    await origin.write(0, 2)
    assert await pool.used() == 2
    for dev_id in (1, 500, 1000):
        snap = await pool.activate(dev_id)
        assert await snap.holds(0, 1)
        await snap.remove()
    for dev_id in range(1, 1001):
        await pool.message(f"delete {dev_id}")
    assert await pool.used() == 1


async def test_a_tree_of_snapshots_can_be_deleted_in_any_order(bench: Workbench) -> None:
    pool = await bench.pool(128)
    root = await pool.thin(0)
    await root.write(0, 1)
    await root.remove()
    for child in range(1, 31):
        await pool.message(f"create_snap {child} {(child - 1) // 2}")
        thin = await pool.activate(child)
        await thin.write(child, child)
        await thin.remove()
    for dev_id in (0, 3, 30, 1, 15, 2, 7, 14):
        await pool.message(f"delete {dev_id}")
    leaf = await pool.activate(29)
    assert await leaf.holds(0, 1)
    assert await leaf.holds(29, 29)
    await leaf.remove()
    for dev_id in sorted(set(range(31)) - {0, 3, 30, 1, 15, 2, 7, 14}):
        await pool.message(f"delete {dev_id}")
    assert await pool.used() == 0


async def test_an_id_that_exists_is_refused_before_the_origin_is_looked_at(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    with pytest.raises(Exists):
        await pool.message("create_snap 0 99")
    with pytest.raises(Exists):
        await pool.message("create_snap 0 0")


async def test_an_origin_that_does_not_exist_leaves_nothing_behind(pool: PoolOnBench) -> None:
    before = await pool.status_line()
    with pytest.raises(NoSuchThin):
        await pool.message("create_snap 1 99")
    assert await pool.status_line() == before
    with pytest.raises(NoSuchThin):
        await pool.activate(1)


MALFORMED = ("", "1", "1 0 2", "x 0", "1 x", "16777216 0", "1 16777216", "-1 0")


@pytest.mark.parametrize("words", MALFORMED)
async def test_malformed_snapshots_are_invalid(pool: PoolOnBench, words: str) -> None:
    await pool.message("create_thin 0")
    with pytest.raises(InvalidArgument):
        await pool.message(f"create_snap {words}".rstrip())


async def test_an_origin_need_not_be_suspended(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    await origin.flush()
    await pool.message("create_snap 1 0")
    await origin.write(0, 2)
    assert await (await pool.activate(1)).holds(0, 1)


async def test_a_snapshot_starts_with_its_origins_count_of_mapped_blocks(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    for block in range(7):
        await origin.write(2 * block, block)
    snap = await pool.snap(1, origin, 0)
    assert str(await snap.status()) == str(await origin.status()) == f"{7 * 128} {13 * 128 - 1}"


async def test_a_snapshot_may_be_longer_or_shorter_than_its_origin(pool: PoolOnBench) -> None:
    origin = await pool.thin(0, blocks=8)
    await origin.write(7, 7)
    snap = await pool.snap(1, origin, 0, blocks=4)
    assert str(await snap.status()) == "128 1023"
    longer = await pool.activate(1, blocks=32, name="longer")
    assert await longer.holds(7, 7)
    await longer.write(31, 1)
    assert await longer.mapped_blocks() == 2


async def test_snapshots_survive_a_reopening(pool: PoolOnBench) -> None:
    origin = await pool.thin(0)
    await origin.write(0, 1)
    snap = await pool.snap(1, origin, 0)
    await origin.write(0, 2)
    await snap.write(1, 3)
    await origin.remove()
    await snap.remove()
    await pool.reopen()
    origin, snap = await pool.activate(0), await pool.activate(1)
    assert await origin.holds(0, 2)
    assert await snap.holds(0, 1)
    assert await snap.holds(1, 3)
    assert await pool.used() == 3
