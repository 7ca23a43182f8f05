"""Devices on devices: who is suspended holds what comes from above, and any target stands on any device.

Source: docs/reference/behaviour.md, 9; each was seen on 6.1 and 6.12.
"""

import pytest

from kernel_backend.block_io import pattern
from thinfs.errors import Busy, NoSuchDevice
from thinfs.units import SECTOR_BYTES

from .workbench import KIB, MIB, Disk, PoolOnBench, Volume, Workbench

BLOCK = 64 * KIB
NR_BLOCKS = 64
SIZE = NR_BLOCKS * BLOCK
SECTORS = SIZE // SECTOR_BYTES
METADATA_BYTES = 4 * MIB
ABSENT = "251:77"


async def _linear(bench: Workbench, name: str, below: str, sectors: int = SECTORS, offset: int = 0) -> Volume:
    await bench.backend.create(name, f"0 {sectors} linear {below} {offset}")
    return await bench.volume(name)


async def _pool_on(bench: Workbench, metadata: str, data: str, *, name: str = "p", nr_blocks: int = NR_BLOCKS) -> None:
    await bench.backend.create(name, f"0 {nr_blocks * 128} thin-pool {metadata} {data} 128 0")


async def _thin_on(bench: Workbench, pool: str, name: str, *, blocks: int = NR_BLOCKS, dev_id: int = 0) -> Volume:
    await bench.backend.message(pool, f"create_thin {dev_id}")
    await bench.backend.create(name, f"0 {blocks * 128} thin /dev/mapper/{pool} {dev_id}")
    return await bench.volume(name)


async def _copy(source: Disk, target: Disk) -> None:
    await target.write(0, await source.read(0, SIZE))


@pytest.mark.parametrize("noflush", [False, True], ids=["flush", "noflush"])
async def test_what_comes_from_above_waits_while_a_linear_is_suspended(bench: Workbench, noflush: bool) -> None:
    disk = await bench.disk(SIZE)
    await _linear(bench, "below", disk.word)
    above = await _linear(bench, "above", "/dev/mapper/below")
    await above.write(0, 1)
    await bench.backend.suspend("below", noflush=noflush)
    async with bench.running(lambda: above.write(1, 2)) as write, bench.running(lambda: above.holds(0, 1)) as read:
        await bench.backend.info("above")
        await bench.backend.status("above")
        assert not write.ended
        assert not read.ended
        await bench.backend.resume("below")
        await write.done()
        await read.done()
    assert await above.holds(1, 2)


async def test_a_write_through_a_pool_while_its_data_moves_lands_on_the_new_device(bench: Workbench) -> None:
    """What pvmove does by hand: suspend, copy, load, resume."""
    old, new = await bench.disk(SIZE), await bench.disk(SIZE)
    metadata = await bench.metadata_disk(METADATA_BYTES)
    await _linear(bench, "data", old.word)
    await _pool_on(bench, metadata.word, "/dev/mapper/data")
    thin = await _thin_on(bench, "p", "v")
    await thin.write(0, 1)
    await thin.write(1, 1)
    await thin.flush()

    async def write_and_flush() -> None:
        await thin.write(0, 2)
        await thin.write(2, 2)
        await thin.flush()

    await bench.backend.suspend("data")
    await _copy(old, new)
    async with bench.running(write_and_flush) as writing:
        await bench.backend.info("p")
        await bench.backend.load("data", f"0 {SECTORS} linear {new.word} 0")
        assert not writing.ended
        await bench.backend.resume("data")
        await writing.done()
    await thin.remove()
    await bench.backend.create("v", f"0 {SECTORS} thin /dev/mapper/p 0")
    again = await bench.volume("v")
    assert await again.holds(0, 2)
    assert await again.holds(1, 1)
    assert await again.holds(2, 2)


async def test_reads_and_a_break_of_sharing_wait_for_the_data_device_too(bench: Workbench) -> None:
    disk, metadata = await bench.disk(SIZE), await bench.metadata_disk(METADATA_BYTES)
    await _linear(bench, "data", disk.word)
    await _pool_on(bench, metadata.word, "/dev/mapper/data")
    thin = await _thin_on(bench, "p", "v")
    await thin.write(0, 1)
    await thin.flush()
    await bench.backend.suspend("v")
    await bench.backend.message("p", "create_snap 1 0")
    await bench.backend.resume("v")
    await bench.backend.create("s", f"0 {SECTORS} thin /dev/mapper/p 1")
    snap = await bench.volume("s")
    await bench.backend.suspend("data")
    async with (
        bench.running(lambda: thin.write(0, 2, length=4096)) as write,
        bench.running(lambda: snap.holds(0, 1)) as read,
    ):
        await bench.backend.info("p")
        assert not write.ended
        assert not read.ended
        await bench.backend.resume("data")
        await write.done()
        await read.done()
    assert await snap.holds(0, 1)
    assert await thin.holds(0, 2, length=4096)
    assert await thin.device.read(4096, 4096) == pattern(1, BLOCK)[4096:8192]


async def test_a_commit_waits_for_the_metadata_device(bench: Workbench) -> None:
    disk, metadata = await bench.disk(SIZE), await bench.metadata_disk(METADATA_BYTES)
    await _linear(bench, "meta", metadata.word, METADATA_BYTES // SECTOR_BYTES)
    await _pool_on(bench, "/dev/mapper/meta", disk.word)
    thin = await _thin_on(bench, "p", "v")

    async def write_and_flush() -> None:
        await thin.write(3, 1)
        await thin.flush()

    await bench.backend.suspend("meta")
    async with bench.running(write_and_flush) as writing:
        await bench.backend.info("p")
        assert not writing.ended
        await bench.backend.resume("meta")
        await writing.done()
    await thin.remove()
    await bench.backend.remove("p")
    await _pool_on(bench, "/dev/mapper/meta", disk.word)
    await bench.backend.create("v", f"0 {SECTORS} thin /dev/mapper/p 0")
    again = await bench.volume("v")
    assert await again.holds(3, 1)


async def test_reads_of_an_external_origin_wait_while_it_is_suspended(bench: Workbench, pool: PoolOnBench) -> None:
    disk = await bench.disk(SIZE)
    origin = await _linear(bench, "origin", disk.word)
    await origin.write(0, 7)
    thin = await pool.thin(0, origin="/dev/mapper/origin")
    await bench.backend.suspend("origin")
    async with (
        bench.running(lambda: thin.holds(0, 7)) as read,
        bench.running(lambda: thin.write(1, 1, length=512)) as w,
    ):
        await bench.backend.info("p")
        assert not read.ended
        assert not w.ended
        await bench.backend.resume("origin")
        await read.done()
        await w.done()
    assert await thin.holds(0, 7)
    assert await thin.holds(1, 1, length=512)


async def _pool_over_thins(bench: Workbench, pool: PoolOnBench) -> Volume:
    """Metadata and data of the upper pool are thins of the lower one."""
    meta = await pool.thin(0, blocks=METADATA_BYTES // BLOCK, name="meta")
    data = await pool.thin(1, blocks=32, name="data")
    await meta.close()
    await data.close()
    await _pool_on(bench, "/dev/mapper/meta", "/dev/mapper/data", name="upper", nr_blocks=32)
    return await _thin_on(bench, "upper", "v", blocks=32)


async def test_a_pool_over_thins_keeps_what_it_is_given(bench: Workbench) -> None:
    pool = await bench.pool(256)
    thin = await _pool_over_thins(bench, pool)
    for block in range(8):
        await thin.write(block, block + 1)
    await thin.flush()
    with pytest.raises(Busy):
        await bench.backend.remove("data")
    assert {(await bench.backend.info("data")).minor, (await bench.backend.info("meta")).minor} == {
        minor for _, minor in await bench.backend.deps("upper")
    }
    await thin.remove()
    await bench.backend.remove("upper")
    await _pool_on(bench, "/dev/mapper/meta", "/dev/mapper/data", name="upper", nr_blocks=32)
    await bench.backend.create("v", "0 4096 thin /dev/mapper/upper 0")
    again = await bench.volume("v")
    for block in range(8):
        assert await again.holds(block, block + 1)
    assert await again.holds(8, None)


@pytest.mark.parametrize("suspended", ["data", "meta", "p"])
async def test_a_pool_over_thins_waits_for_whatever_is_suspended_below(bench: Workbench, suspended: str) -> None:
    pool = await bench.pool(256)
    thin = await _pool_over_thins(bench, pool)
    await thin.write(0, 1)
    await thin.flush()

    async def write_and_flush() -> None:
        await thin.write(1, 2)
        await thin.flush()

    await bench.backend.suspend(suspended)
    async with bench.running(write_and_flush) as writing:
        await bench.backend.info("upper")
        assert not writing.ended
        await bench.backend.resume(suspended)
        await writing.done()
    assert await thin.holds(0, 1)
    assert await thin.holds(1, 2)


async def test_a_discard_goes_down_through_what_is_between(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    above = await _linear(bench, "above", "/dev/mapper/t0", 32 * 128, 128)
    for block in range(4):
        await above.write(block, 1)
    assert await thin.mapped_blocks() == 4
    assert await thin.holds(1, 1)
    await above.discard(1, 3)
    assert await thin.mapped_blocks() == 2
    assert await above.holds(0, 1)
    assert await above.holds(1, None)


async def test_a_window_of_a_pool_device_shows_its_data_device(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.flush()
    window = await _linear(bench, "window", "/dev/mapper/p")
    assert await window.holds(0, 1)
    with pytest.raises(Busy):
        await pool.remove()


async def test_several_targets_of_a_table_stand_on_several_devices(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    disk = await bench.disk(SIZE)
    table = f"0 1024 linear /dev/mapper/t0 0\n1024 1024 linear {disk.word} 0\n2048 128 zero"
    await bench.backend.create("mixed", table)
    mixed = await bench.volume("mixed")
    data = pattern(5, 2 * BLOCK)
    await mixed.device.write(7 * BLOCK, data)  # half of it in each of the first two
    assert await mixed.device.read(7 * BLOCK, 2 * BLOCK) == data
    assert await thin.device.read(7 * BLOCK, BLOCK) == data[:BLOCK]
    assert await mixed.device.read(16 * BLOCK, BLOCK) == bytes(BLOCK)
    await mixed.flush()


async def test_eight_levels_of_nesting_work(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.thin(0)
    below = "t0"
    for level in range(8):
        await bench.backend.create(f"level{level}", f"0 2048 linear /dev/mapper/{below} 0")
        below = f"level{level}"
    top = await bench.volume(below)
    await top.write(3, 1)
    await top.flush()
    assert await top.holds(3, 1)


@pytest.mark.parametrize(
    "table",
    [
        f"0 8 linear {ABSENT} 0",
        f"0 128 thin {ABSENT} 0",
        f"0 128 thin-pool {ABSENT} {{disk}} 128 0",
        f"0 128 thin-pool {{disk}} {ABSENT} 128 0",
    ],
    ids=["linear", "thin", "metadata", "data"],
)
async def test_a_number_that_no_device_has_is_enxio(bench: Workbench, table: str) -> None:
    disk = await bench.disk(SIZE)
    with pytest.raises(NoSuchDevice):
        await bench.backend.create("x", table.format(disk=disk.word))
