"""What table and status print, to the letter. Source: docs/reference/behaviour.md, 4; docs/reference/format.md, 9.2."""

import pytest

from .workbench import KIB, MIB, PoolOnBench, Workbench


def passdown(pool: PoolOnBench) -> str:
    return "discard_passdown" if pool.data.passes_discards else "no_discard_passdown"


FRESH = {
    "64 KiB": (64 * KIB, 16384, "11/16", 4),
    "128 KiB": (128 * KIB, 16384, "13/32", 8),
    "1 MiB": (MIB, 16384, "35/256", 64),
    "2 MiB": (2 * MIB, 16384, "61/512", 128),
    "4 MiB": (4 * MIB, 16384, "112/1024", 256),
    "8 MiB": (8 * MIB, 16384, "214/2048", 512),
    "8 MiB for a million": (8 * MIB, 1048576, "277/2048", 512),
    "16 MiB small": (16 * MIB, 1024, "418/4096", 1024),
    "16 MiB": (16 * MIB, 16384, "419/4096", 1024),
    "16 MiB for a million": (16 * MIB, 1048576, "482/4096", 1024),
    "64 MiB": (64 * MIB, 16384, "1649/16384", 1024),
    "128 MiB": (128 * MIB, 1024, "3287/32768", 1024),
    "1 GiB": (1024 * MIB, 16384, "4122/262144", 1024),
}


@pytest.mark.parametrize("name", FRESH)
async def test_the_status_of_a_fresh_pool(bench: Workbench, name: str) -> None:
    metadata_bytes, nr_blocks, used, low_water = FRESH[name]
    data_bytes = nr_blocks * 64 * KIB
    pool = await bench.pool(nr_blocks, metadata_bytes=metadata_bytes, data_bytes=data_bytes)
    counts, low = f"0 {used} 0/{nr_blocks}", low_water
    expected = f"0 {nr_blocks * 128} thin-pool {counts} - rw {passdown(pool)} queue_if_no_space - {low} "
    assert await pool.status_line() == expected


FEATURES = {
    "": "0 ",
    "0": "0 ",
    "1 skip_block_zeroing": "1 skip_block_zeroing ",
    "1 ignore_discard": "1 ignore_discard ",
    "1 no_discard_passdown": "1 no_discard_passdown ",
    "1 error_if_no_space": "1 error_if_no_space ",
    "4 error_if_no_space no_discard_passdown ignore_discard skip_block_zeroing": (
        "4 skip_block_zeroing ignore_discard no_discard_passdown error_if_no_space "
    ),
    "2 error_if_no_space error_if_no_space": "1 error_if_no_space ",
}


@pytest.mark.parametrize("features", FEATURES)
async def test_the_table_of_a_pool_shows_its_features_in_the_kernels_order(bench: Workbench, features: str) -> None:
    pool = await bench.pool(features=features, low_water=7)
    words = f"{pool.metadata.word} {pool.data.word} 128 7 {FEATURES[features]}"
    assert await bench.backend.table("p") == f"0 8192 thin-pool {words}"


@pytest.mark.parametrize(
    ("features", "discard", "no_space"),
    [
        ("1 ignore_discard", "ignore_discard", "queue_if_no_space"),
        ("1 no_discard_passdown", "no_discard_passdown", "queue_if_no_space"),
        ("1 error_if_no_space", "", "error_if_no_space"),
        ("2 ignore_discard error_if_no_space", "ignore_discard", "error_if_no_space"),
    ],
)
async def test_the_status_shows_what_the_features_make_of_it(
    bench: Workbench, features: str, discard: str, no_space: str
) -> None:
    pool = await bench.pool(features=features)
    status = await pool.status()
    assert (status.discard, status.no_space) == (discard or passdown(pool), no_space)


async def test_a_data_device_that_can_discard_is_passed_discards(bench: Workbench) -> None:
    pool = await bench.pool(discard=True)
    assert (await pool.status()).discard == "discard_passdown"


async def test_a_read_only_pool_is_ro(bench: Workbench) -> None:
    pool = await bench.pool()
    await pool.reload(features="1 read_only")
    assert (await pool.status()).mode == "ro"
    assert (await bench.backend.table("p")).endswith(" 1 read_only ")


async def test_the_table_and_status_of_a_thin(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    info = await bench.backend.info("p")
    assert await bench.backend.table("t0") == f"0 8192 thin {info.major}:{info.minor} 0"
    assert await bench.backend.status("t0") == "0 8192 thin 0 -"
    for block in (2, 3, 7, 10):
        await thin.write(block, 1)
    assert await bench.backend.status("t0") == "0 8192 thin 512 1407"


async def test_the_mapped_count_is_live_before_any_commit(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    await thin.write(1, 1)
    assert await thin.mapped_blocks() == 2
    await thin.discard(0, 1)
    assert await thin.mapped_blocks() == 1


async def test_a_suspended_pool_shows_its_last_commit(pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    await thin.write(0, 1)
    before = await pool.status_line()
    await pool.suspend()
    assert await pool.status_line() == before
    await pool.resume()


async def test_a_table_not_yet_resumed_is_the_inactive_one(bench: Workbench, pool: PoolOnBench) -> None:
    live = await bench.backend.table("p")
    await pool.load(low_water=5)
    assert await bench.backend.table("p") == live
    assert (await bench.backend.table("p", inactive=True)).split()[6] == "5"
    assert (await bench.backend.info("p")).inactive_table
    await bench.backend.clear("p")
    assert not (await bench.backend.info("p")).inactive_table


async def test_a_device_lists_what_it_stands_on(bench: Workbench, pool: PoolOnBench) -> None:
    await pool.thin(0)
    info = await bench.backend.info("p")
    assert await bench.backend.deps("t0") == [(info.major, info.minor)]
    assert info.open_count == 1


async def test_info_counts_opens_and_tells_the_state(bench: Workbench, pool: PoolOnBench) -> None:
    thin = await pool.thin(0)
    info = await bench.backend.info("t0")
    assert (info.open_count, info.suspended, info.live_table, info.target_count) == (1, False, True, 1)
    await thin.close()
    await bench.backend.suspend("t0")
    info = await bench.backend.info("t0")
    assert (info.open_count, info.suspended) == (0, True)


async def test_a_length_that_is_no_multiple_of_the_block_counts_whole_blocks(bench: Workbench) -> None:
    prepared = await bench.prepare(block_sectors=384, data_bytes=4194303 * 512)
    table = f"0 4194303 thin-pool {prepared.metadata.word} {prepared.data.word} 384 0"
    await bench.backend.create("p", table)
    assert (await prepared.status()).nr_data_blocks == 10922
