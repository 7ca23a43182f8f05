"""Several clients of one device-mapper at once, clients that give up, and I/O that waits.

The clock must be an argument of the test itself: pytest-trio does not see one that a fixture asks for.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.bio import Bio, Op
from thinfs.errors import NoSpace, NoSuchDevice, ThinfsError
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper
from thinfs.waiting import do

MIB = 1 << 20
BLOCK = 65536


@pytest.fixture
def files(tmp_path: Path) -> PoolFiles:
    return make_pool(tmp_path, data_bytes=MIB, metadata_bytes=4 * MIB)


@pytest.fixture
async def mapper(files: PoolFiles) -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        await made.create("p", files.table())
        await made.message("p", "create_thin 0")
        await made.create("t", "0 8192 thin /dev/mapper/p 0")
        yield made
    accepted(files.metadata)


async def test_of_two_removals_at_once_one_finds_no_device(autojump_clock: MockClock, mapper: DeviceMapper) -> None:
    outcomes: list[str] = []

    async def remove() -> None:
        try:
            await mapper.remove("t")
            outcomes.append("removed")
        except NoSuchDevice as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remove)
        nursery.start_soon(remove)
    assert sorted(outcomes) == ["removed", "t: no such device"]


async def test_a_removal_whose_client_gives_up_is_complete_all_the_same(
    autojump_clock: MockClock, mapper: DeviceMapper
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await mapper.remove("t")
    if any(info.name == "t" for info in await mapper.list()):  # cancelled before it began
        await mapper.remove("t")
    assert await mapper.status("p") == "0 2048 thin-pool 0 112/1024 0/16 - rw discard_passdown queue_if_no_space - 256 "


async def _fill(mapper: DeviceMapper) -> None:
    device = await mapper.open("t")
    await device.write(0, b"x" * MIB)
    await device.aclose()


async def test_writers_without_space_wait_while_others_go_on_and_growth_lets_them_through(
    autojump_clock: MockClock, mapper: DeviceMapper, files: PoolFiles
) -> None:
    await _fill(mapper)
    done: list[int] = []

    async def write(block: int) -> None:
        device = await mapper.open("t")
        await device.write(block * BLOCK, b"y" * 100)
        done.append(block)
        await device.aclose()

    async with trio.open_nursery() as nursery:
        for block in (20, 21, 22):
            nursery.start_soon(write, block)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        device = await mapper.open("t")
        await device.write(0, b"in place")
        assert await device.read(0, 8) == b"in place"
        await device.aclose()
        with files.data.open("r+b") as data:
            data.truncate(2 * MIB)
        await mapper.load("p", files.table())
        await mapper.suspend("p")
        await mapper.resume("p")
    assert sorted(done) == [20, 21, 22]
    assert (await mapper.status("p")).split()[5] == "19/32"


async def test_the_wait_for_space_ends_with_enospc_after_the_timeout(
    autojump_clock: MockClock, mapper: DeviceMapper
) -> None:
    await _fill(mapper)
    device = await mapper.open("t")
    begin = trio.current_time()
    with pytest.raises(NoSpace):
        await device.write(20 * BLOCK, b"y")
    assert trio.current_time() - begin == pytest.approx(60)
    assert (await mapper.status("p")).split()[9] == "error_if_no_space"
    await device.aclose()


async def test_a_suspend_that_waits_for_space_can_be_given_up_and_leaves_the_device_in_service(
    autojump_clock: MockClock,
    mapper: DeviceMapper,
) -> None:
    await _fill(mapper)
    device = await mapper.open("t")
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises(ThinfsError):
                await device.write(20 * BLOCK, b"y")

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(2) as given_up:
            await mapper.suspend("t")
        assert given_up.cancelled_caught
        assert not (await mapper.info("t")).suspended
        assert await device.read(0, 1) == b"x"
    await device.aclose()


async def test_a_noflush_suspend_sends_waiting_writes_back_to_the_gate(
    autojump_clock: MockClock, mapper: DeviceMapper, files: PoolFiles
) -> None:
    await _fill(mapper)
    device = await mapper.open("t")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 20 * BLOCK, b"y" * 8)
        await trio.testing.wait_all_tasks_blocked()
        await mapper.suspend("t", noflush=True)
        with files.data.open("r+b") as data:
            data.truncate(2 * MIB)
        await mapper.load("p", files.table())
        await mapper.suspend("p")
        await mapper.resume("p")
        await mapper.resume("t")
    assert await device.read(20 * BLOCK, 8) == b"y" * 8
    await device.aclose()


async def test_a_server_ends_though_a_write_waits_below_a_suspended_pool(
    autojump_clock: MockClock, files: PoolFiles
) -> None:
    run_on_the_spot()
    async with trio.open_nursery() as nursery, open_device_mapper("/nonexistent") as mapper:
        await mapper.create("p", files.table())
        await mapper.message("p", "create_thin 0")
        await mapper.create("t", "0 8192 thin /dev/mapper/p 0")
        device = await mapper.open("t")
        target = mapper.find("t").live

        async def write_past_the_gate() -> None:
            assert target is not None
            with pytest.raises(ThinfsError):
                await do(target.targets[0], Bio(Op.WRITE, 0, 1, b"x"))

        await mapper.suspend("p")
        nursery.start_soon(write_past_the_gate)
        await trio.testing.wait_all_tasks_blocked()
        await device.aclose()
    accepted(files.metadata)


async def test_io_to_a_suspended_device_waits_for_the_resume(autojump_clock: MockClock, mapper: DeviceMapper) -> None:
    device = await mapper.open("t")
    await mapper.suspend("t")
    done: list[bytes] = []

    async def use() -> None:
        await device.write(0, b"later")
        done.append(await device.read(0, 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        assert await mapper.status("t") == "0 8192 thin 0 -"
        await mapper.resume("t")
    assert done == [b"later"]
    await device.aclose()


async def test_changes_are_committed_within_a_second_without_being_asked(
    autojump_clock: MockClock, mapper: DeviceMapper, files: PoolFiles
) -> None:
    device = await mapper.open("t")
    await trio.sleep(5)
    before = files.metadata.read_bytes()
    await device.write(0, b"first after idleness: committed at once")
    first = files.metadata.read_bytes()
    assert first != before
    await device.write(BLOCK, b"a second change waits for the timer")
    assert files.metadata.read_bytes() == first
    await trio.sleep(1.1)
    assert files.metadata.read_bytes() != first
    await device.aclose()


async def test_reads_go_on_while_a_long_discard_runs_and_see_blocks_go(tmp_path: Path) -> None:
    run_on_the_spot()
    nr_blocks = 20_000
    files = make_pool(tmp_path, data_bytes=nr_blocks * BLOCK, metadata_bytes=16 * MIB)
    seen: list[bytes] = []
    async with open_device_mapper("/nonexistent") as mapper:
        await mapper.create("p", files.table(features="1 skip_block_zeroing"))
        await mapper.message("p", "create_thin 0")
        await mapper.create("t", f"0 {nr_blocks * 128} thin /dev/mapper/p 0")
        device = await mapper.open("t")
        for block in range(nr_blocks):
            await device.write(block * BLOCK, b"mapped")
        ended = trio.Event()

        async def discard() -> None:
            await device.discard(0, (nr_blocks - 1) * BLOCK)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard)
            while not ended.is_set():
                await trio.lowlevel.checkpoint()
                seen.append(await device.read(nr_blocks // 2 * BLOCK, 6))
                assert await device.read((nr_blocks - 1) * BLOCK, 6) == b"mapped"
        assert await device.read(0, 6) == bytes(6)
        await device.aclose()
    accepted(files.metadata)
    # the block in the middle was there first and then gone, and was looked at more often than once or twice
    assert seen == sorted(seen, reverse=True)
    assert len(seen) > 5
    assert {seen[0], seen[-1]} == {b"mapped", bytes(6)}
