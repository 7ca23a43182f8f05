"""External origins: a read-only device shown where the thin maps nothing. Source: docs/reference/behaviour.md, 7."""

import pytest

from kernel_backend.block_io import pattern
from thinfs.errors import InvalidArgument, ThinfsError

from .workbench import Disk, PoolOnBench, Workbench

BLOCK = 64 * 1024


async def origin_disk(bench: Workbench, size_bytes: int) -> Disk:
    """Filled with the pattern 77, sector by sector from 0."""
    disk = await bench.disk(size_bytes)
    whole = pattern(77, -(-size_bytes // 512) * 512)
    await disk.write(0, whole)
    return disk


def shown(offset: int, length: int) -> bytes:
    return pattern(77, offset + length)[offset:]


async def test_unmapped_blocks_show_the_origin(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 8 * BLOCK)
    thin = await pool.thin(0, blocks=8, origin=disk.word)
    assert await thin.device.read(0, 8 * BLOCK) == shown(0, 8 * BLOCK)
    assert await pool.used() == 0


async def test_a_partial_write_copies_the_block_from_the_origin(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 8 * BLOCK)
    thin = await pool.thin(0, blocks=8, origin=disk.word)
    await thin.write(2, 5, length=4096, at=4096)
    await thin.flush()
    assert await thin.device.read(2 * BLOCK, 4096) == shown(2 * BLOCK, 4096)
    assert await thin.holds(2, 5, length=4096, at=4096)
    assert await thin.device.read(2 * BLOCK + 8192, BLOCK - 8192) == shown(2 * BLOCK + 8192, BLOCK - 8192)
    assert await pool.used() == 1


async def test_a_whole_block_write_replaces_the_origins(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 8 * BLOCK)
    thin = await pool.thin(0, blocks=8, origin=disk.word)
    await thin.write(2, 5)
    assert await thin.holds(2, 5)
    assert await thin.device.read(3 * BLOCK, BLOCK) == shown(3 * BLOCK, BLOCK)


async def test_the_origin_itself_is_never_written(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 4 * BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    for block in range(4):
        await thin.write(block, block, length=4096)
    await thin.flush()
    assert await disk.read(0, 4 * BLOCK) == shown(0, 4 * BLOCK)


async def test_discarding_a_block_shows_the_origin_again(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 4 * BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await thin.write(1, 5)
    await thin.discard(1, 2)
    assert await thin.device.read(BLOCK, BLOCK) == shown(BLOCK, BLOCK)


async def test_a_smaller_origin_is_followed_by_zeros(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 2 * BLOCK)
    thin = await pool.thin(0, blocks=8, origin=disk.word)
    assert await thin.device.read(0, 2 * BLOCK) == shown(0, 2 * BLOCK)
    assert await thin.device.read(2 * BLOCK, 6 * BLOCK) == bytes(6 * BLOCK)
    await thin.write(5, 1, length=4096)
    assert await thin.holds(5, None, length=BLOCK - 4096, at=4096)


async def test_a_bigger_origin_is_cut_off_at_the_thins_end(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, 16 * BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    assert thin.device.size_bytes == 4 * BLOCK
    assert await thin.device.read(3 * BLOCK, BLOCK) == shown(3 * BLOCK, BLOCK)


@pytest.mark.parametrize("fraction_bytes", [4096, 32768, 61440])
async def test_an_origin_that_ends_inside_a_block_is_followed_by_zeros(
    bench: Workbench, pool: PoolOnBench, fraction_bytes: int
) -> None:
    disk = await origin_disk(bench, 2 * BLOCK + fraction_bytes)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    expected = shown(2 * BLOCK, fraction_bytes) + bytes(BLOCK - fraction_bytes)
    assert await thin.device.read(2 * BLOCK, BLOCK) == expected


@pytest.mark.parametrize("fraction_bytes", [4096, 32768, 61440])
async def test_the_first_write_to_a_straddling_block_copies_the_origin_and_zeroes_the_rest(
    bench: Workbench, pool: PoolOnBench, fraction_bytes: int
) -> None:
    disk = await origin_disk(bench, 2 * BLOCK + fraction_bytes)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await thin.write(2, 5, length=512, at=0)
    await thin.flush()
    expected = pattern(5, 512) + shown(2 * BLOCK + 512, fraction_bytes - 512) + bytes(BLOCK - fraction_bytes)
    assert await thin.device.read(2 * BLOCK, BLOCK) == expected


async def test_with_skip_block_zeroing_the_rest_of_a_straddling_block_keeps_old_data(bench: Workbench) -> None:
    prepared = await bench.prepare(16, "1 skip_block_zeroing")
    await prepared.data.write(0, pattern(33, BLOCK))
    pool = await prepared.create()
    disk = await origin_disk(bench, 2 * BLOCK + 32768)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await thin.write(2, 5, length=4096)
    await thin.flush()
    expected = pattern(5, 4096) + shown(2 * BLOCK + 4096, 28672) + pattern(33, BLOCK)[32768:]
    assert await thin.device.read(2 * BLOCK, BLOCK) == expected


async def test_a_write_beyond_the_origin_is_zeroed_as_without_one(bench: Workbench) -> None:
    prepared = await bench.prepare(16)
    await prepared.data.write(0, pattern(33, BLOCK))
    pool = await prepared.create()
    disk = await origin_disk(bench, BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await thin.write(3, 5, length=4096)
    assert await thin.holds(3, None, length=BLOCK - 4096, at=4096)


async def test_a_snapshot_activated_with_the_origin_shows_it_and_without_shows_zeros(
    bench: Workbench, pool: PoolOnBench
) -> None:
    disk = await origin_disk(bench, 4 * BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await thin.write(0, 1)
    await pool.snap(1, thin, 0, blocks=4)
    without = await pool.activate(1, blocks=4, name="without")
    with_origin = await pool.activate(1, blocks=4, origin=disk.word, name="with")
    assert await without.holds(0, 1)
    assert await without.holds(1, None)
    assert await with_origin.holds(0, 1)
    assert await with_origin.device.read(BLOCK, BLOCK) == shown(BLOCK, BLOCK)


async def test_a_thin_of_the_same_pool_may_be_the_origin(pool: PoolOnBench) -> None:
    below = await pool.thin(0, blocks=4)
    await below.write(1, 9)
    await below.flush()
    thin = await pool.thin(1, blocks=4, origin="/dev/mapper/t0")
    assert await thin.holds(1, 9)
    await thin.write(1, 3, length=4096)
    assert await below.holds(1, 9)
    assert await thin.holds(1, 3, length=4096)


async def test_its_size_is_taken_at_each_resume_of_the_thin(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, BLOCK)
    thin = await pool.thin(0, blocks=4, origin=disk.word)
    await disk.resize(2 * BLOCK)
    await disk.write(0, pattern(77, 2 * BLOCK))
    await bench.backend.suspend("t0")
    await bench.backend.resume("t0")
    assert await thin.device.read(BLOCK, BLOCK) == shown(BLOCK, BLOCK)


async def test_the_table_names_it(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await origin_disk(bench, BLOCK)
    await pool.thin(0, blocks=4, origin=disk.word)
    assert (await bench.backend.table("t0")).endswith(f" 0 {disk.word}")


async def test_an_origin_that_is_the_pool_is_invalid(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    with pytest.raises(InvalidArgument):
        await pool.activate(0, origin="/dev/mapper/p")


async def test_an_origin_that_is_not_there_is_refused_before_the_pool_is_looked_at(bench: Workbench) -> None:
    with pytest.raises(ThinfsError) as refusal:
        await bench.backend.create("t", "0 128 thin /dev/mapper/nopool 0 /dev/nosuch")
    assert refusal.value.errno == bench.errno_of_missing_path
