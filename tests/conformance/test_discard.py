"""Discards: rounding, unmapping, sharing, passing down. Source: docs/reference/behaviour.md, 6.3."""

from dataclasses import dataclass

import pytest

from thinfs.errors import NotSupported

from .workbench import PoolOnBench, Volume, Workbench

BLOCK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [begin, end) discarded of a volume whose blocks 0..9 and 20..29 are mapped; blocks left mapped."""

    begin: int
    end: int
    left: frozenset[int]


MAPPED = frozenset(range(10)) | frozenset(range(20, 30))


def blocks(begin: int, end: int) -> Range:
    return Range(begin * BLOCK, end * BLOCK, MAPPED - frozenset(range(begin, end)))


RANGES = {
    "one block": blocks(3, 4),
    "the first block": blocks(0, 1),
    "the last mapped block": blocks(29, 30),
    "the last block of the volume": blocks(63, 64),
    "several blocks": blocks(2, 7),
    "from a hole into a run": blocks(15, 22),
    "from a run into a hole": blocks(8, 15),
    "over a hole": blocks(5, 25),
    "a hole": blocks(12, 18),
    "everything": blocks(0, 64),
    "both runs exactly": blocks(0, 30),
    "part of a block": Range(3 * BLOCK, 4 * BLOCK - 512, MAPPED),
    "the end of a block": Range(3 * BLOCK + 512, 4 * BLOCK, MAPPED),
    "the middle of a block": Range(3 * BLOCK + 4096, 3 * BLOCK + 8192, MAPPED),
    "two halves": Range(3 * BLOCK + BLOCK // 2, 4 * BLOCK + BLOCK // 2, MAPPED),
    "a block and the half before": Range(3 * BLOCK - BLOCK // 2, 4 * BLOCK, MAPPED - {3}),
    "a block and the half after": Range(3 * BLOCK, 4 * BLOCK + BLOCK // 2, MAPPED - {3}),
    "blocks and both halves": Range(2 * BLOCK - 512, 5 * BLOCK + 512, MAPPED - {2, 3, 4}),
    "one sector": Range(3 * BLOCK, 3 * BLOCK + 512, MAPPED),
}


async def filled(pool: PoolOnBench) -> Volume:
    thin = await pool.thin(0)
    for block in sorted(MAPPED):
        await thin.write(block, block + 1)
    await thin.flush()
    return thin


@pytest.mark.parametrize("passdown", [False, True], ids=["kept", "passed down"])
@pytest.mark.parametrize("name", RANGES)
async def test_whole_blocks_are_unmapped_and_the_rest_stays(bench: Workbench, name: str, passdown: bool) -> None:
    pool = await bench.pool(discard=True, features="" if passdown else "1 no_discard_passdown")
    thin, given = await filled(pool), RANGES[name]
    await thin.device.discard(given.begin, given.end - given.begin)
    for block in (*range(10), 15, *range(20, 30), 63):
        assert await thin.holds(block, block + 1 if block in given.left else None), block
    await thin.flush()
    status = await thin.status()
    assert status.mapped_sectors == len(given.left) * 128
    assert status.highest_mapped_sector == (max(given.left) * 128 + 127 if given.left else None)
    assert await pool.used() == len(given.left)


async def test_a_discarded_block_may_be_written_again(pool: PoolOnBench) -> None:
    thin = await filled(pool)
    await thin.discard(3, 4)
    await thin.write(3, 99, length=4096)
    assert await thin.holds(3, 99, length=4096)
    assert await thin.holds(3, None, length=4096, at=4096)


async def test_discarding_twice_is_the_same_as_once(pool: PoolOnBench) -> None:
    thin = await filled(pool)
    await thin.discard(0, 10)
    await thin.discard(0, 10)
    assert await pool.used() == 10


async def test_freed_blocks_make_room_in_a_full_pool(bench: Workbench) -> None:
    pool = await bench.pool(4, "1 error_if_no_space")
    thin = await pool.thin(0)
    for block in range(4):
        await thin.write(block, block)
    await thin.discard(1, 3)
    await thin.write(10, 1)
    await thin.write(11, 1)
    assert await pool.used() == 4
    assert (await pool.status()).mode == "rw"


@pytest.mark.parametrize("passdown", [False, True], ids=["kept", "passed down"])
async def test_a_shared_block_goes_only_from_the_volume_that_discards_it(bench: Workbench, passdown: bool) -> None:
    pool = await bench.pool(discard=True, features="" if passdown else "1 no_discard_passdown")
    origin = await filled(pool)
    snap = await pool.snap(1, origin, 0)
    await origin.discard(0, 5)
    for block in range(5):
        assert await snap.holds(block, block + 1)
        assert await origin.holds(block, None)
    assert await pool.used() == 20
    await snap.discard(0, 5)
    assert await pool.used() == 15


async def test_a_discard_over_shared_and_unshared_blocks_frees_the_unshared(pool: PoolOnBench) -> None:
    origin = await filled(pool)
    snap = await pool.snap(1, origin, 0)
    await origin.write(2, 200)
    await origin.write(40, 201)
    assert await pool.used() == 22
    await origin.discard(0, 64)
    assert await pool.used() == 20
    assert await snap.holds(2, 3)
    assert str(await origin.status()) == "0 -"


async def blocks_with_data(pool: PoolOnBench, count: int) -> list[int]:
    """Which of the first data blocks still hold something: the pool must not be used meanwhile."""
    return [block for block in range(count) if any(await pool.data.read(block * BLOCK, BLOCK))]


async def test_passed_down_the_data_device_loses_the_blocks(bench: Workbench) -> None:
    pool = await bench.pool(discard=True)
    thin = await filled(pool)
    await thin.discard(0, 5)
    await thin.flush()
    assert await blocks_with_data(pool, 20) == list(range(5, 20))


async def test_with_no_discard_passdown_the_data_device_keeps_the_blocks(bench: Workbench) -> None:
    pool = await bench.pool(discard=True, features="1 no_discard_passdown")
    thin = await filled(pool)
    await thin.discard(0, 5)
    await thin.flush()
    assert await blocks_with_data(pool, 20) == list(range(20))


async def test_shared_blocks_are_passed_down_by_their_last_discard(bench: Workbench) -> None:
    pool = await bench.pool(discard=True)
    origin = await filled(pool)
    snap = await pool.snap(1, origin, 0)
    await origin.discard(0, 5)
    await origin.flush()
    assert await blocks_with_data(pool, 20) == list(range(20))
    assert await snap.holds(0, 1)
    await snap.discard(0, 5)
    await snap.flush()
    assert await blocks_with_data(pool, 20) == list(range(5, 20))


async def test_a_partly_discarded_block_is_not_passed_down(bench: Workbench) -> None:
    pool = await bench.pool(discard=True)
    thin = await filled(pool)
    await thin.device.discard(4096, 2 * BLOCK)
    await thin.flush()
    assert await blocks_with_data(pool, 20) == [0, *range(2, 20)]


async def test_ignore_discard_refuses_them(bench: Workbench) -> None:
    pool = await bench.pool(features="1 ignore_discard")
    thin = await filled(pool)
    with pytest.raises(NotSupported):
        await thin.discard(0, 5)
    assert await thin.holds(0, 1)
    assert await pool.used() == 20


async def test_the_blocks_of_a_block_size_that_is_no_power_of_two(bench: Workbench) -> None:
    pool = await bench.pool(32, block_sectors=384)
    thin = await pool.thin(0, blocks=32)
    for block in range(6):
        await thin.write(block, block + 1)
    await thin.device.discard(BLOCK, 4 * 384 * 512)
    assert await thin.mapped_blocks() == 3
    assert await thin.holds(0, 1)
    assert await thin.holds(1, None)
    assert await thin.holds(4, 5)


async def test_the_mapped_count_falls_at_once_and_survives_a_reopening(pool: PoolOnBench) -> None:
    thin = await filled(pool)
    await thin.discard(0, 5)
    assert await thin.mapped_blocks() == 15
    await thin.remove()
    await pool.reopen()
    assert await (await pool.activate(0)).mapped_blocks() == 15


async def test_a_discard_of_a_volume_of_many_blocks_at_once(bench: Workbench) -> None:
    pool = await bench.pool(2048)
    thin = await pool.thin(0, blocks=2048)
    for block in range(0, 2048, 2):
        await thin.write(block, 1, length=4096)
    await thin.discard(0, 2048)
    assert str(await thin.status()) == "0 -"
    assert await pool.used() == 0
