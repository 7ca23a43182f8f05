"""Every row of the tables of refusals. Source: docs/reference/behaviour.md, 1 (table loads), 2 and 3."""

from errno import EBUSY, EILSEQ, EINVAL, ENODATA, ENOSPC, ENOTBLK, EOPNOTSUPP, EPERM

import pytest

from thinfs.errors import InvalidArgument, NoSuchDevice, ThinfsError

from .workbench import MIB, PoolOnBench, Workbench

MISSING = -1  # stands for bench.errno_of_missing_path

# name -> the table of a pool (md and data are its disks), and the errno; 131072 sectors are 1024 blocks
POOL_TABLES: dict[str, tuple[str, int]] = {
    "it starts after sector 0": ("8 1024 thin-pool {md} {data} 128 0", EINVAL),
    "another target follows": ("0 1024 thin-pool {md} {data} 128 0\n1024 8 error", EINVAL),
    "two pools in one table": ("0 1024 thin-pool {md} {data} 128 0\n1024 1024 thin-pool {md} {data} 128 0", EINVAL),
    "no arguments": ("0 1024 thin-pool", EINVAL),
    "three arguments": ("0 1024 thin-pool {md} {data} 128", EINVAL),
    "metadata and data are the same word": ("0 1024 thin-pool {md} {md} 128 0", EINVAL),
    "a feature count that is no number": ("0 1024 thin-pool {md} {data} 128 0 x", EINVAL),
    "a negative feature count": ("0 1024 thin-pool {md} {data} 128 0 -1", EINVAL),
    "more features counted than given": ("0 1024 thin-pool {md} {data} 128 0 2 read_only", EINVAL),
    "five features": (
        "0 1024 thin-pool {md} {data} 128 0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only "
        "error_if_no_space",
        EINVAL,
    ),
    "an unknown feature": ("0 1024 thin-pool {md} {data} 128 0 1 bogus", EINVAL),
    "an unknown feature, before the devices are looked at": ("0 1024 thin-pool /dev/nosuch {data} 128 0 1 x", EINVAL),
    "missing metadata": ("0 1024 thin-pool /dev/nosuch {data} 128 0", MISSING),
    "missing data": ("0 1024 thin-pool {md} /dev/nosuch 128 0", MISSING),
    "missing metadata, before the block size is looked at": ("0 1024 thin-pool /dev/nosuch {data} 0 0", MISSING),
    "a block size of 0": ("0 1024 thin-pool {md} {data} 0 0", EINVAL),
    "a block size of 64": ("0 1024 thin-pool {md} {data} 64 0", EINVAL),
    "a block size of 127": ("0 1024 thin-pool {md} {data} 127 0", EINVAL),
    "a block size of 129": ("0 1024 thin-pool {md} {data} 129 0", EINVAL),
    "a block size of 192": ("0 1024 thin-pool {md} {data} 192 0", EINVAL),
    "a block size that is no number": ("0 1024 thin-pool {md} {data} abc 0", EINVAL),
    "a negative block size": ("0 1024 thin-pool {md} {data} -128 0", EINVAL),
    "a hexadecimal block size": ("0 1024 thin-pool {md} {data} 0x80 0", EINVAL),
    "a block size with a tail": ("0 1024 thin-pool {md} {data} 128k 0", EINVAL),
    "a block size above 1 GiB": ("0 1024 thin-pool {md} {data} 2097280 0", EINVAL),
    "a low water mark that is no number": ("0 1024 thin-pool {md} {data} 128 abc", EINVAL),
    "a negative low water mark": ("0 1024 thin-pool {md} {data} 128 -1", EINVAL),
    "a low water mark of 2^64": ("0 1024 thin-pool {md} {data} 128 18446744073709551616", EINVAL),
    "a target longer than the data device": ("0 1048576 thin-pool {md} {data} 128 0", EINVAL),
    "an unknown target": ("0 1024 nosuchtarget {md}", EINVAL),
    "blank metadata with read_only": ("0 1024 thin-pool {md} {data} 128 0 1 read_only", EPERM),
}

GOOD_POOL_TABLES = {
    "a leading plus and zeros": "0 1024 thin-pool {md} {data} +00128 +0",
    "no features": "0 1024 thin-pool {md} {data} 128 0 0",
    "features in any case and order, one twice": (
        "0 1024 thin-pool {md} {data} 128 0 3 ERROR_if_no_space Skip_Block_Zeroing error_if_no_space"
    ),
    "words after the counted features": "0 1024 thin-pool {md} {data} 128 0 1 skip_block_zeroing extra junk",
    "the highest low water mark": "0 1024 thin-pool {md} {data} 128 18446744073709551615",
    "shorter than a block": "0 64 thin-pool {md} {data} 128 0",
    "a tail that is no whole block": "0 1000 thin-pool {md} {data} 384 0",
}


@pytest.mark.parametrize("name", POOL_TABLES)
async def test_a_pool_table_is_refused_and_leaves_no_device(bench: Workbench, name: str) -> None:
    pool = await bench.prepare()
    table, expected = POOL_TABLES[name]
    with pytest.raises(ThinfsError) as refusal:
        await bench.backend.create("p", table.format(md=pool.metadata.word, data=pool.data.word))
    assert refusal.value.errno == (bench.errno_of_missing_path if expected == MISSING else expected)
    with pytest.raises(NoSuchDevice):
        await bench.backend.info("p")


@pytest.mark.parametrize("name", GOOD_POOL_TABLES)
async def test_a_pool_table_is_accepted(bench: Workbench, name: str) -> None:
    pool = await bench.prepare()
    await bench.backend.create("p", GOOD_POOL_TABLES[name].format(md=pool.metadata.word, data=pool.data.word))
    assert await pool.mode() == "rw"


async def test_a_refused_reload_leaves_the_live_pool_as_it_was(bench: Workbench) -> None:
    pool = await bench.pool()
    before = await pool.status_line()
    for table, _ in POOL_TABLES.values():
        if "read_only" not in table and "1048576" not in table:
            with pytest.raises(ThinfsError):
                await bench.backend.load("p", table.format(md=pool.metadata.word, data=pool.data.word))
    assert await pool.status_line() == before
    assert not (await bench.backend.info("p")).inactive_table


@pytest.mark.parametrize(
    ("damage", "expected"),
    [("garbage", ENOTBLK), ("a wrong magic", EILSEQ), ("a wrong checksum", EILSEQ)],
)
async def test_damaged_metadata_is_refused(bench: Workbench, damage: str, expected: int) -> None:
    pool = await bench.prepare()
    if damage == "garbage":
        await pool.metadata.write(0, bytes(range(256)) * 16)
    else:
        await pool.create()
        await pool.remove()
        block = bytearray(await pool.metadata.read(0, 4096))
        block[40 if damage == "a wrong magic" else 32] ^= 0xFF  # 24..39 is the uuid and magic follows at 32
        await pool.metadata.write(0, bytes(block))
    bench.unchecked.add(pool.metadata.word)
    with pytest.raises(ThinfsError) as refusal:
        await pool.create()
    assert refusal.value.errno == expected


@pytest.mark.parametrize(
    ("nr_blocks", "expected"), [(1, EINVAL), (2, EINVAL), (3, ENOSPC), (4, ENOSPC), (8, ENOSPC), (10, ENOSPC)]
)
async def test_too_little_metadata_is_refused(bench: Workbench, nr_blocks: int, expected: int) -> None:
    pool = await bench.prepare(16384, metadata_bytes=nr_blocks * 4096)
    bench.unchecked.add(pool.metadata.word)
    with pytest.raises(ThinfsError) as refusal:
        await pool.create()
    assert refusal.value.errno == expected


async def test_another_block_size_than_the_stored_one_is_refused(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.remove()
    with pytest.raises(InvalidArgument):
        await bench.backend.create("p", pool.table(block_sectors=256, nr_blocks=32))


async def test_the_metadata_of_another_pool_is_busy(bench: Workbench) -> None:
    pool = await bench.pool()
    other = await bench.disk(16 * MIB)
    with pytest.raises(ThinfsError) as refusal:
        await bench.backend.create("q", pool.table(data=other))
    assert refusal.value.errno == EBUSY


async def test_other_data_for_the_same_metadata_is_busy(bench: Workbench) -> None:
    pool = await bench.pool()
    other = await bench.disk(16 * MIB)
    with pytest.raises(ThinfsError) as refusal:
        await pool.load(data=other)
    assert refusal.value.errno == EBUSY


async def test_a_reload_with_other_metadata_is_refused(bench: Workbench) -> None:
    pool = await bench.pool()
    other = await bench.metadata_disk()
    with pytest.raises(InvalidArgument):
        await pool.load(metadata=other)


async def test_two_pools_on_one_data_device_are_not_prevented(bench: Workbench) -> None:
    pool = await bench.pool()
    other = await bench.metadata_disk()
    await bench.backend.create("q", pool.table(metadata=other))


@pytest.mark.parametrize("before", ["", "1 ignore_discard"])
async def test_a_reload_that_changes_ignore_discard_is_refused(bench: Workbench, before: str) -> None:
    pool = await bench.pool(features=before)
    with pytest.raises(InvalidArgument):
        await pool.load(features="1 ignore_discard" if not before else "")


async def test_a_pool_cannot_be_replaced_by_another_target_but_error(bench: Workbench, pool: PoolOnBench) -> None:
    for table in ("0 1024 zero", f"0 1024 linear {pool.data.word} 0"):
        with pytest.raises(InvalidArgument):
            await bench.backend.load("p", table)
    await bench.backend.load("p", "0 1024 error")  # dm's wildcard: `dmsetup remove --force` relies on it
    await bench.backend.clear("p")


async def test_a_read_only_table_may_hold_no_pool(bench: Workbench) -> None:
    pool = await bench.prepare()
    with pytest.raises(InvalidArgument):
        await bench.backend.create("p", pool.table(), read_only=True)


THIN_TABLES: dict[str, tuple[str, int]] = {
    "no arguments": ("thin", EINVAL),
    "one argument": ("thin /dev/mapper/p", EINVAL),
    "four arguments": ("thin /dev/mapper/p 0 {disk} x", EINVAL),
    "the origin is the pool": ("thin /dev/mapper/p 0 /dev/mapper/p", EINVAL),
    "a missing origin": ("thin /dev/mapper/p 0 /dev/nosuch", MISSING),
    "a missing pool": ("thin /dev/mapper/nosuch 0", MISSING),
    "an id that is no number": ("thin /dev/mapper/p x", EINVAL),
    "an id of 2^24": ("thin /dev/mapper/p 16777216", EINVAL),
    "a negative id": ("thin /dev/mapper/p -1", EINVAL),
    "a hexadecimal id": ("thin /dev/mapper/p 0x0", EINVAL),
    "an unknown id": ("thin /dev/mapper/p 1", ENODATA),
    "a mapped device that is no pool": ("thin /dev/mapper/t0 0", EINVAL),
    "a missing pool, before the id is looked at": ("thin /dev/mapper/nosuch x", MISSING),
}


@pytest.mark.parametrize("name", THIN_TABLES)
async def test_a_thin_table_is_refused_and_leaves_no_device(bench: Workbench, pool: PoolOnBench, name: str) -> None:
    await pool.thin(0)
    disk = await bench.disk(MIB)
    target, expected = THIN_TABLES[name]
    with pytest.raises(ThinfsError) as refusal:
        await bench.backend.create("t", f"0 1024 {target.format(disk=disk.word)}")
    assert refusal.value.errno == (bench.errno_of_missing_path if expected == MISSING else expected)
    with pytest.raises(NoSuchDevice):
        await bench.backend.info("t")


async def test_a_pool_that_is_a_plain_device_is_refused(bench: Workbench, pool: PoolOnBench) -> None:
    with pytest.raises(InvalidArgument):
        await bench.backend.create("t", f"0 1024 thin {pool.data.word} 0")


async def test_a_thin_of_a_suspended_pool_is_refused(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0")
    await pool.suspend()
    with pytest.raises(InvalidArgument):
        await pool.activate(0)
    await pool.resume()
    await pool.activate(0)


MESSAGES: dict[str, int] = {
    "bogus": EINVAL,
    "create_thin": EINVAL,
    "create_thin 1 2": EINVAL,
    "create_thin x": EINVAL,
    "create_thin -1": EINVAL,
    "create_thin 1x": EINVAL,
    "create_thin 16777216": EINVAL,
    "create_thin 99999999999999999999": EINVAL,
    "delete 7": ENODATA,
    "create_snap 1 7": ENODATA,
    "set_transaction_id 1 2": EINVAL,
    "release_metadata_snap": EINVAL,
}


@pytest.mark.parametrize("message", MESSAGES)
async def test_a_message_is_refused_and_changes_nothing(pool: PoolOnBench, message: str) -> None:
    await pool.message("create_thin 0")
    before = await pool.status_line()
    with pytest.raises(ThinfsError) as refusal:
        await pool.message(message)
    assert refusal.value.errno == MESSAGES[message]
    assert await pool.status_line() == before


async def test_an_empty_message_is_invalid(pool: PoolOnBench) -> None:
    with pytest.raises(InvalidArgument):
        await pool.message("")


async def test_messages_are_read_in_any_case_and_with_any_white_space(pool: PoolOnBench) -> None:
    await pool.message("  Create_THIN    3 ")
    await pool.activate(3)


async def test_a_message_may_go_to_any_sector_of_the_pool_and_to_none_outside(pool: PoolOnBench) -> None:
    await pool.message("create_thin 0", sector=64 * 128 - 1)
    with pytest.raises(InvalidArgument):
        await pool.message("create_thin 1", sector=64 * 128)


async def test_a_thin_takes_no_messages(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.thin(0)
    with pytest.raises(InvalidArgument):
        await bench.backend.message("t0", "create_thin 1")


@pytest.mark.parametrize("message", ["create_thin 1", "delete 0", "reserve_metadata_snap", "bogus"])
async def test_a_read_only_pool_supports_no_message_at_all(bench: Workbench, message: str) -> None:
    pool = await bench.pool()
    await pool.message("create_thin 0")
    await pool.reload(features="1 read_only")
    with pytest.raises(ThinfsError) as refusal:
        await pool.message(message)
    assert refusal.value.errno == EOPNOTSUPP


async def test_what_is_asked_of_a_device_that_is_not_there_is_enxio(bench: Workbench) -> None:
    backend = bench.backend
    for call in (backend.remove, backend.suspend, backend.resume, backend.table, backend.status, backend.info):
        with pytest.raises(NoSuchDevice):
            await call("nosuch")
    with pytest.raises(NoSuchDevice):
        await backend.load("nosuch", "0 8 error")
    with pytest.raises(NoSuchDevice):
        await backend.message("nosuch", "create_thin 0")


async def test_a_name_is_given_once(bench: Workbench, pool: PoolOnBench) -> None:
    with pytest.raises(ThinfsError) as refusal:
        await bench.backend.create("p", None)
    assert refusal.value.errno == EBUSY
