"""The seam over a guest: what waits delays nothing else, and errors arrive as they are."""

import pytest
import trio

from kernel_backend import differential
from kernel_backend.backend import KernelBackend
from kernel_backend.batch import Operation
from kernel_backend.runner import Guest
from thinfs.dm.backend import Backend, DeviceInfo, OpenDevice
from thinfs.errors import IOFailed, NoSpace

pytestmark = pytest.mark.trio

BLOCK = 64 * 1024


@pytest.fixture
def backend(guest: Guest) -> Backend:
    return KernelBackend.of_guest(guest)


async def create_pool(backend: Backend, guest: Guest, *, nr_blocks: int = 64, features: str = "") -> None:
    metadata, data = guest.images[0].device, guest.images[1].device
    await backend.create("p", f"0 {nr_blocks * 128} thin-pool {metadata} {data} 128 0 {features}".rstrip())


async def create_thin(backend: Backend) -> OpenDevice:
    await backend.message("p", "create_thin 0")
    await backend.create("t", "0 131072 thin /dev/mapper/p 0")
    return await backend.open("t")


async def test_a_device_reads_back_what_was_written_through_the_seam(backend: Backend, guest: Guest) -> None:
    await create_pool(backend, guest)
    thin = await create_thin(backend)
    data = bytes(range(256)) * 12288  # 3 MiB, more than one piece
    await thin.write(0, data)
    await thin.flush()
    assert await thin.read(0, len(data)) == data
    await thin.discard(0, BLOCK)
    assert await thin.read(0, BLOCK) == bytes(BLOCK)
    assert thin.size_bytes == 131072 * 512
    await thin.aclose()
    assert [info.name for info in await backend.list()] == ["p", "t"]
    assert len(await backend.deps("p")) == 2


async def test_wait_returns_at_an_event_while_other_calls_are_answered(backend: Backend, guest: Guest) -> None:
    await create_pool(backend, guest, nr_blocks=1, features="1 error_if_no_space")
    thin = await create_thin(backend)
    before = (await backend.info("p")).event_nr
    answers: list[DeviceInfo] = []

    async def wait() -> None:
        answers.append(await backend.wait("p", before))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await thin.write(0, bytes(BLOCK))
            with pytest.raises(NoSpace):
                await thin.write(BLOCK, bytes(BLOCK))
    assert answers[0].event_nr > before
    assert " out_of_data_space " in await backend.status("p")
    await thin.aclose()


async def test_a_write_to_a_suspended_device_waits_for_its_resume(backend: Backend, guest: Guest) -> None:
    await create_pool(backend, guest)
    thin = await create_thin(backend)
    await backend.suspend("t")
    written = trio.Event()

    async def write() -> None:
        await thin.write(0, bytes(BLOCK))
        written.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            assert (await backend.info("t")).suspended
            assert await backend.status("t") == "0 131072 thin 0 -"
            assert not written.is_set()
            await backend.resume("t")
    assert await backend.status("t") == "0 131072 thin 128 127"
    await thin.aclose()


async def test_a_cancelled_wait_is_left_behind_and_its_device_can_be_removed(backend: Backend, guest: Guest) -> None:
    await create_pool(backend, guest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.wait, "p", 0)
        await backend.info("p")
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        await backend.remove("p")
    assert await backend.list() == []


async def test_the_errno_of_failed_io_is_kept(backend: Backend, guest: Guest) -> None:
    await backend.create("e", "0 128 error")
    device = await backend.open("e")
    for call in (lambda: device.read(0, 512), lambda: device.write(0, bytes(512))):
        with pytest.raises(IOFailed):
            await call()
    await device.aclose()


async def test_one_list_of_operations_has_the_same_outcomes_in_one_call_and_through_the_seam(
    backend: Backend, guest: Guest
) -> None:
    metadata, data = guest.images[0].device, guest.images[1].device
    operations: list[Operation] = [
        ("create", "p", f"0 8192 thin-pool {metadata} {data} 128 0"),
        ("message", "p", "create_thin 0"),
        ("message", "p", "create_thin 0"),
        ("create", "t", "0 8192 thin /dev/mapper/p 0", "an-uuid"),
        ("write_pattern", "t", 0, 3 * BLOCK, 1),
        ("discard", "t", BLOCK, BLOCK),
        ("flush", "t"),
        ("suspend", "t", True),
        ("resume", "t"),
        ("suspend", "t", False, False),
        ("info", "t"),
        ("info", "nosuch"),
        ("message", "p", "create_snap 1 0", 7),
        ("resume", "t"),
        ("read_digest", "t", 0, 3 * BLOCK),
        ("size_bytes", "t"),
        ("write_pattern", "t", 8192 * 512, BLOCK, 1),
        ("event_nr", "p"),
        ("load", "t", "0 128 nosuch"),
        ("table", "t"),
        ("status", "t"),
        ("remove", "p"),
        ("remove", "t"),
        ("status", "p", False),
        ("remove", "p"),
    ]
    in_one_call = guest.batch(operations)
    for image in guest.images:
        image.blank()
    through_the_seam = await differential.run(backend, operations)
    assert differential.differences(operations, through_the_seam, in_one_call) == []
    assert in_one_call[2][0] == 17
    assert guest.list() == []
