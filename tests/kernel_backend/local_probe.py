"""Run inside a guest by test_local.py, where dm-thin is the local kernel's: the local backend, through trio."""

import contextlib
import os
import sys

import trio

from kernel_backend.backend import KernelBackend
from kernel_backend.local import LocalDeviceMapper
from thinfs.errors import Busy, NoSuchDevice, NoSuchThin

BLOCK = 64 * 1024


async def wait_until_it_goes(backend: KernelBackend, name: str, event_nr: int) -> None:
    with contextlib.suppress(NoSuchDevice):  # gone before the thread came to wait
        await backend.wait(name, event_nr)


async def main(metadata: str, data: str) -> None:
    local = LocalDeviceMapper()
    backend = KernelBackend(local)
    await backend.create("p", f"0 2097152 thin-pool {metadata} {data} 128 0")
    print(await backend.status("p"))
    await backend.message("p", "create_thin 0")
    try:
        await backend.message("p", "delete 9")
    except NoSuchThin as error:
        print(error)
    await backend.create("a b", "0 8192 thin /dev/mapper/p 0")
    print(sorted(os.listdir("/dev/mapper")))
    await backend.rename("a b", "t")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_it_goes, backend, "p", (await backend.info("p")).event_nr)
        device = await backend.open("t")
        await device.write(0, b"x" * BLOCK)
        assert await device.read(0, BLOCK) == b"x" * BLOCK
        await device.flush()
        try:
            await backend.remove("t")
        except Busy as error:
            print(error)
        await device.aclose()
        await backend.remove("t")
        await backend.remove("p")  # ends the wait
    print(sorted(os.listdir("/dev/mapper")))
    local.close()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
