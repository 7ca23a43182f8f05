"""guard:BLOCKS, a feature of our own in the pool's table line: new blocks are ENOSPC while the last are kept back."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.dm.table import PoolArguments
from thinfs.errors import InvalidArgument, NoSpace
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

BLOCK = 65536
NR_BLOCKS = 32
GUARD = 8


@pytest.fixture
def files(tmp_path: Path) -> PoolFiles:
    return make_pool(tmp_path, data_bytes=2 * NR_BLOCKS * BLOCK, metadata_bytes=2 << 20)


@pytest.fixture
async def mapper(files: PoolFiles) -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        yield made
    accepted(files.metadata)


def table(files: PoolFiles, features: str, nr_blocks: int = NR_BLOCKS) -> str:
    return f"0 {nr_blocks * 128} thin-pool {files.metadata} {files.data} 128 0 {features}"


async def free(mapper: DeviceMapper) -> int:
    used, total = (await mapper.status("p")).split()[5].split("/")
    return int(total) - int(used)


async def test_new_blocks_are_refused_at_the_margin_and_shared_ones_are_still_overwritten(
    mapper: DeviceMapper, files: PoolFiles
) -> None:
    await mapper.create("p", table(files, f"2 skip_block_zeroing guard:{GUARD}"))  # it would queue without the guard
    assert (await mapper.table("p")).endswith(f" 128 0 2 skip_block_zeroing guard:{GUARD} ")
    await mapper.message("p", "create_thin 0")
    await mapper.create("t", f"0 {64 * 128} thin /dev/mapper/p 0")
    device = await mapper.open("t")
    for block in range(NR_BLOCKS - GUARD):
        await device.write(block * BLOCK, bytes([block + 1]) * 512)
    await device.flush()
    for _ in range(3):
        with pytest.raises(NoSpace, match=f"guard:{GUARD}"):
            await device.write(60 * BLOCK, b"new")
    assert (await mapper.status("p")).split()[7] == "rw"
    assert await free(mapper) == GUARD
    await mapper.message("p", "create_snap 1 0")
    for block in range(GUARD - 1):
        await device.write(block * BLOCK, b"over")  # a copy of its own
    await device.flush()
    assert await free(mapper) == 1
    # room is made: new blocks again
    await mapper.load("p", table(files, f"2 skip_block_zeroing guard:{GUARD}", 2 * NR_BLOCKS))
    await mapper.suspend("p")
    await mapper.resume("p")
    await device.write(60 * BLOCK, b"new")
    await device.aclose()


async def test_without_it_the_line_is_the_kernel_s(mapper: DeviceMapper, files: PoolFiles) -> None:
    await mapper.create("p", table(files, "1 skip_block_zeroing"))
    assert (await mapper.table("p")).endswith(" 128 0 1 skip_block_zeroing ")


@pytest.mark.parametrize("word", ["guard:", "guard:x", "guard:-1", "guard:1x"])
def test_a_guard_that_is_no_number_is_refused(word: str) -> None:
    with pytest.raises(InvalidArgument, match=word):
        PoolArguments.parse(["meta", "data", "128", "0", "1", word])
