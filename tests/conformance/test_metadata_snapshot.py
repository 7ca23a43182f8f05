"""reserve_ and release_metadata_snap. Source: docs/reference/behaviour.md, 3; docs/reference/format.md, 9.6."""

import pytest

from thinfs.errors import BadMetadata, Busy, InvalidArgument

from .workbench import PoolOnBench, Workbench


async def test_its_block_is_in_the_status_while_it_is_held(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    assert (await pool.status()).held_root == 0
    await pool.message("reserve_metadata_snap")
    assert (await pool.status()).held_root != 0
    await pool.message("release_metadata_snap")
    assert (await pool.status()).held_root == 0


async def test_only_one_can_be_held(pool: PoolOnBench) -> None:
    await pool.message("reserve_metadata_snap")
    held = (await pool.status()).held_root
    with pytest.raises(Busy):
        await pool.message("reserve_metadata_snap")
    assert (await pool.status()).held_root == held


async def test_none_held_cannot_be_released(pool: PoolOnBench) -> None:
    with pytest.raises(InvalidArgument):
        await pool.message("release_metadata_snap")


@pytest.mark.parametrize("words", ["reserve_metadata_snap x", "release_metadata_snap 1"])
async def test_arguments_are_invalid(pool: PoolOnBench, words: str) -> None:
    with pytest.raises(InvalidArgument):
        await pool.message(words)


async def test_the_pool_lives_on_beside_it_and_releasing_gives_everything_back(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    for block in range(10):
        await thin.write(block, block)
    await pool.message("reserve_metadata_snap")
    snap = await pool.snap(1, thin, 0)
    for block in range(10):
        await thin.write(block, 100 + block)
        await snap.discard(block, block + 1)
    assert await pool.used() == 20  # the metadata snapshot counts the first ten
    await snap.remove()
    await pool.message("delete 1")
    await pool.message("release_metadata_snap")
    assert await pool.used() == 10
    assert await thin.holds(9, 109)


async def test_it_survives_a_reopening_and_is_released_then(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await pool.message("reserve_metadata_snap")
    held = (await pool.status()).held_root
    await thin.remove()
    await pool.message("delete 0")
    await pool.reopen()
    assert (await pool.status()).held_root == held
    assert await pool.used() == 1
    await pool.message("release_metadata_snap")
    assert await pool.used() == 0


async def test_many_in_a_row_take_no_space_that_stays(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    await pool.message("reserve_metadata_snap")
    await pool.message("release_metadata_snap")
    before = (await pool.status()).used_metadata_blocks
    for _ in range(50):
        await pool.message("reserve_metadata_snap")
        await pool.message("release_metadata_snap")
    assert (await pool.status()).used_metadata_blocks == before


@pytest.mark.parametrize("damaged", ["tree", "held root"])
async def test_a_damaged_one_is_let_go_and_the_pool_lives_on(bench: Workbench, damaged: str) -> None:
    pool = await bench.prepare()
    pool.metadata = await bench.metadata_disk(checked=False)  # what is below it leaks
    await pool.create()
    thin = await pool.thin(0)
    for block in range(8):
        await thin.write(block, block)
    await thin.remove()
    await pool.message("reserve_metadata_snap")
    await pool.message("create_thin 1")
    held = (await pool.status()).held_root
    assert held is not None
    await pool.remove()
    superblock = await pool.metadata.read(held * 4096, 4096)
    root = int.from_bytes(superblock[320:328], "little")  # data_mapping_root
    await pool.metadata.write((root if damaged == "tree" else held) * 4096, bytes(4096))
    await pool.create()
    if damaged == "tree":
        await pool.message("release_metadata_snap")
    else:
        with pytest.raises(BadMetadata):
            await pool.message("release_metadata_snap")
    stays = damaged == "held root" and bench.machine.kernel >= (6, 12)  # 6.12 reads it before it lets it go (seen)
    status = await pool.status()
    assert (status.mode, status.needs_check, status.held_root) == ("rw", False, held if stays else 0)
    await pool.message("create_thin 9")
    if stays:
        with pytest.raises(Busy):
            await pool.message("reserve_metadata_snap")
    else:
        await pool.message("reserve_metadata_snap")
