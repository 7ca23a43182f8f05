"""Mapped devices on mapped devices: linear and error under a pool, linear over a thin, thins as origins."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.errors import Busy, InvalidArgument, IOFailed
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper
from thinfs.userspace.registry import MAX_NESTING

MIB = 1 << 20
SECTORS = 64 * MIB // 512


@pytest.fixture
def files(tmp_path: Path) -> PoolFiles:
    return make_pool(tmp_path, data_bytes=64 * MIB, metadata_bytes=4 * MIB)


@pytest.fixture
async def mapper(files: PoolFiles) -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        yield made
    if files.metadata.read_bytes()[:4096] != bytes(4096):
        accepted(files.metadata)


async def _pool_over_linear(mapper: DeviceMapper, files: PoolFiles) -> None:
    await mapper.create("meta", f"0 8192 linear {files.metadata} 0")
    await mapper.create("data", f"0 {SECTORS} linear {files.data} 0")
    await mapper.create("p", f"0 {SECTORS} thin-pool /dev/mapper/meta /dev/mapper/data 128 0")
    await mapper.message("p", "create_thin 0")
    await mapper.create("t", "0 2048 thin /dev/mapper/p 0")


async def test_a_pool_over_linear_devices_works_and_holds_them_open(mapper: DeviceMapper, files: PoolFiles) -> None:
    await _pool_over_linear(mapper, files)
    device = await mapper.open("t")
    await device.write(5000, b"through two layers")
    await device.flush()
    assert await device.read(5000, 18) == b"through two layers"
    assert files.data.read_bytes()[5000:5018] == b"through two layers"
    assert (await mapper.table("p")).startswith(f"0 {SECTORS} thin-pool {mapper.major}:0 {mapper.major}:1 128 0")
    with pytest.raises(Busy, match="data: in use by p"):
        await mapper.remove("data")
    await device.aclose()


async def test_a_metadata_device_that_turns_to_errors_under_the_pool_makes_it_fail(
    mapper: DeviceMapper, files: PoolFiles
) -> None:
    await _pool_over_linear(mapper, files)
    device = await mapper.open("t")
    await device.write(0, b"committed")
    await device.flush()
    await mapper.load("meta", "0 8192 error")
    await mapper.suspend("meta")
    await mapper.resume("meta")
    await device.write(70000, b"lost")
    with pytest.raises(IOFailed):
        await device.flush()
    assert (await mapper.status("p")).split()[3] == "Fail"
    with pytest.raises(IOFailed, match="fail mode"):
        await device.read(0, 9)
    await device.aclose()


async def test_a_linear_device_over_a_thin_allocates_in_it(mapper: DeviceMapper, files: PoolFiles) -> None:
    await _pool_over_linear(mapper, files)
    await mapper.create("l", "0 1024 linear /dev/mapper/t 1024")
    device = await mapper.open("l")
    await device.write(0, b"half way")
    await device.flush()
    assert await mapper.status("t") == "0 2048 thin 128 1151"
    assert await device.read(0, 8) == b"half way"
    await device.aclose()


async def test_a_linear_target_past_the_end_of_its_device_is_refused(mapper: DeviceMapper, files: PoolFiles) -> None:
    with pytest.raises(InvalidArgument, match="too small for target: start=8, len=8192, dev_size=8192"):
        await mapper.create("l", f"0 8192 linear {files.metadata} 8")


async def test_a_thin_of_the_same_pool_may_be_the_external_origin(mapper: DeviceMapper, files: PoolFiles) -> None:
    await _pool_over_linear(mapper, files)
    origin = await mapper.open("t")
    await origin.write(0, b"of the origin")
    await mapper.message("p", "create_thin 1")
    await mapper.create("u", "0 2048 thin /dev/mapper/p 1 /dev/mapper/t")
    device = await mapper.open("u")
    assert await device.read(0, 13) == b"of the origin"
    await device.write(0, b"my")
    assert await device.read(0, 13) == b"my the origin"
    assert await origin.read(0, 13) == b"of the origin"
    with pytest.raises(Busy):
        await mapper.remove("t")
    await device.aclose()
    await origin.aclose()


async def test_a_device_on_itself_is_refused(mapper: DeviceMapper, files: PoolFiles) -> None:
    """EINVAL as 6.12 answers; 6.1 accepts it, and every request to it is then lost in a circle (seen)."""
    await mapper.create("a", f"0 1024 linear {files.data} 0")
    with pytest.raises(InvalidArgument, match="a: cannot stand on a"):
        await mapper.load("a", "0 1024 linear /dev/mapper/a 0")
    assert (await mapper.info("a")).inactive_table is False


async def test_a_circle_of_several_devices_is_refused(mapper: DeviceMapper, files: PoolFiles) -> None:
    """Both kernels accept the load, and hang or crash at the first request: here it is EINVAL."""
    await _pool_over_linear(mapper, files)
    await mapper.create("l", "0 1024 linear /dev/mapper/t 0")
    for table in (f"0 {SECTORS} linear /dev/mapper/l 0", "0 1024 thin /dev/mapper/p 0"):
        with pytest.raises(InvalidArgument, match="data: cannot stand on"):
            await mapper.load("data", table)


async def test_devices_nest_to_a_limit_and_work_up_to_it(mapper: DeviceMapper, files: PoolFiles) -> None:
    await _pool_over_linear(mapper, files)
    below = "t"
    for level in range(MAX_NESTING - 3):  # meta or data, pool, thin
        await mapper.create(f"l{level}", f"0 1024 linear /dev/mapper/{below} 0")
        below = f"l{level}"
    with pytest.raises(InvalidArgument, match=f"{below} is level {MAX_NESTING} of devices on devices"):
        await mapper.create("x", f"0 1024 linear /dev/mapper/{below} 0")
    top = await mapper.open(below)
    await top.write(0, b"far down")
    await top.flush()
    assert await top.read(0, 8) == b"far down"
    await mapper.suspend("data")
    read: list[bytes] = []

    async def read_it() -> None:
        read.append(await top.read(0, 8))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_it)
        await trio.testing.wait_all_tasks_blocked()
        assert read == []
        await mapper.resume("data")
    assert read == [b"far down"]
    await top.aclose()


async def test_a_server_ends_though_a_device_below_a_pool_is_suspended(tmp_path: Path) -> None:
    run_on_the_spot()
    files = make_pool(tmp_path, data_bytes=64 * MIB, metadata_bytes=4 * MIB)
    async with open_device_mapper("/nonexistent") as mapper:
        await _pool_over_linear(mapper, files)
        device = await mapper.open("t")
        await device.write(0, b"last")
        await device.aclose()
        await mapper.suspend("data")
        await mapper.suspend("meta")
    accepted(files.metadata)
    async with open_device_mapper("/nonexistent") as mapper:
        await mapper.create("p", f"0 {SECTORS} thin-pool {files.metadata} {files.data} 128 0")
        await mapper.create("t", "0 2048 thin /dev/mapper/p 0")
        device = await mapper.open("t")
        assert await device.read(0, 4) == b"last"
        await device.aclose()
