"""The control client is a Backend: the same calls, values and errors as the backend at the other end."""

import pytest
import trio

from tests.server.conftest import Running
from thinfs.errors import Exists, NoSuchDevice
from thinfs.server.client import open_control_client

pytestmark = pytest.mark.trio

POOL = "0 131072 thin-pool /dev/loop1 /dev/loop0 128 32"


async def test_every_call_gives_what_the_backend_gives(running: Running) -> None:
    direct = running.backend
    async with open_control_client(running.path) as client:
        assert await client.create("p", POOL, uuid="U") == await direct.info("p")
        assert await client.message("p", "create_thin 1") == ""
        await client.create("t", None)
        await client.load("t", "0 8 thin /dev/mapper/p 1")
        assert await client.table("t", inactive=True) == "0 8 thin 254:0 1"
        await client.clear("t")
        await client.load("t", "0 16 thin /dev/mapper/p 1")
        await client.resume("t")
        await client.suspend("t", noflush=True)
        assert (await client.info("t")).suspended
        assert await client.status("p") == await direct.status("p")
        assert await client.table("t") == "0 16 thin 254:0 1"
        assert await client.deps("t") == [(254, 0)]
        assert await client.list() == await direct.list()
        assert await client.targets() == await direct.targets()
        await client.rename("t", "u")
        await client.remove("u", deferred=True)
        assert list(direct.devices) == ["p"]


async def test_an_error_is_the_same_class_with_the_same_words(running: Running) -> None:
    async with open_control_client(running.path) as client:
        with pytest.raises(NoSuchDevice, match=r"^nope: no such device$"):
            await client.info("nope")
        await client.create("p", POOL)
        await client.message("p", "create_thin 1")
        with pytest.raises(Exists, match=r"^create_thin 1: thin 1 exists$"):
            await client.message("p", "create_thin 1")


async def test_an_open_device_reads_what_it_wrote(running: Running) -> None:
    async with open_control_client(running.path) as client:
        await client.create("x", "0 8 error")
        device = await client.open("x")
        assert device.size_bytes == 4096
        await device.write(512, b"\x00\xffabc")
        assert await device.read(511, 7) == b"\x00\x00\xffabc\x00"
        await device.discard(514, 2)
        await device.flush()
        assert await device.read(513, 4) == b"\xff\x00\x00c"
        assert await device.read(4090, 8) == bytes(6)
        assert await device.read(4096, 1) == b""
        assert (await client.info("x")).open_count == 1
        await device.aclose()
        assert (await client.info("x")).open_count == 0


async def test_calls_run_beside_a_wait_and_a_cancelled_wait_is_cancelled_there_too(running: Running) -> None:
    async with open_control_client(running.path) as client:
        await client.create("x", "0 8 error")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.wait, "x", 0)
            while "wait" not in running.backend.calls:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await client.info("x")).event_nr == 0
            nursery.cancel_scope.cancel()
        while "wait cancelled" not in running.backend.calls:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_no_server_is_an_error_that_names_the_socket(running: Running) -> None:
    async with open_control_client(running.path + "nope") as client:
        with pytest.raises(Exception, match="nope: No such file or directory"):
            await client.list()
