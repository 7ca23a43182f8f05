"""Every change that takes a permission away, while readers and writers are at work on the files, natively served."""

import os
import random
from pathlib import Path

import pytest
import trio

from tests.system.conftest import Server
from tests.system.images import make_pool
from tests.system.load import BLOCK, Load, path_content
from tests.thin_tools import accepted
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from thinfs.server import paths
from thinfs.server.client import ControlClient, open_control_client

NR_BLOCKS = 96
DISCARDABLE = frozenset(range(64, NR_BLOCKS))
SECTORS = NR_BLOCKS * BLOCK // 512


class Changes:
    """Of a pool `p` with volumes `a` and `b` under load; thin ids of snapshots count from 10."""

    def __init__(self, client: ControlClient, mount: Path, loads: list[Load], seed: int) -> None:
        self.client = client
        self.mount = mount
        self.loads = loads
        self.choose = random.Random(seed)
        self.snapshots: dict[int, tuple[Load, bytes]] = {}
        self._last_id = 9

    async def in_thread(self, call: object, *arguments: object) -> object:
        return await trio.to_thread.run_sync(call, *arguments)  # type: ignore[arg-type]

    async def snapshot(self, load: Load) -> None:
        self._last_id += 1
        name, origin = f"s{self._last_id}", load.volume
        least = list(load.acknowledged)
        await self.client.message("p", f"create_snap {self._last_id} {origin}")
        most = list(load.begun)
        await self.client.create(name, f"0 {SECTORS} thin {self.mount}/p {self._last_id}")
        data = await self.in_thread(load.check_snapshot, self.mount / name, least, most)
        assert isinstance(data, bytes)
        self.snapshots[self._last_id] = (load, data)

    async def delete_oldest_snapshot(self) -> None:
        if not self.snapshots:
            return
        number = min(self.snapshots)
        load, before = self.snapshots.pop(number)
        data = await self.in_thread(path_content, self.mount / f"s{number}", len(before))
        if data != before:
            load.failures.append(f"snapshot s{number} has changed")
        await self.client.remove(f"s{number}")
        await self.client.message("p", f"delete {number}")

    async def suspend(self, load: Load, name: str) -> None:
        """What begins while it is suspended is not acknowledged before it is resumed."""
        await self.client.suspend(name)
        begun = list(load.begun)
        await trio.sleep(0.1)
        if any(number > before for number, before in zip(load.acknowledged, begun, strict=True)):
            load.failures.append(f"{load.path.name}: written while {name} was suspended")
        await self.client.resume(name)

    async def reload(self, load: Load) -> None:
        await self.client.load(load.path.name, f"0 {SECTORS} thin {self.mount}/p {load.volume}")
        await self.client.suspend(load.path.name)
        await self.client.resume(load.path.name)

    async def discard(self, load: Load) -> None:
        begin = self.choose.choice(sorted(DISCARDABLE))
        length = self.choose.randint(1, NR_BLOCKS - begin) * BLOCK
        fd = os.open(load.path, os.O_RDWR)
        try:
            await self.in_thread(fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin * BLOCK, length)
        finally:
            await self.in_thread(os.close, fd)

    async def status(self) -> None:
        await self.client.status("p")  # commits

    async def one(self) -> None:
        load = self.choose.choice(self.loads)
        if len(self.snapshots) > 4:
            await self.delete_oldest_snapshot()
        match self.choose.randrange(8):
            case 0 | 1:
                await self.snapshot(load)
            case 2 if len(self.snapshots) > 2:
                await self.delete_oldest_snapshot()
            case 3:
                await self.suspend(load, load.path.name)
            case 4:
                await self.suspend(load, "p")
            case 5:
                await self.reload(load)
            case 6 | 7:
                await self.discard(load)
            case _:
                await self.status()


@pytest.mark.parametrize("features", ["0", "1 no_discard_passdown"])
async def test_a_volume_holds_what_was_written_whatever_changes_under_load(server: Server, features: str) -> None:
    pool = make_pool(server.directory, data_bytes=1 << 27, metadata_bytes=4 << 20)
    mount = server.mount
    async with open_control_client(paths.socket_path(str(mount))) as client:
        await client.create("p", pool.table(features=features))
        loads = []
        for number, name in enumerate("ab"):
            await client.message("p", f"create_thin {number}")
            await client.create(name, f"0 {SECTORS} thin {mount}/p {number}")
            loads.append(Load(mount / name, number, NR_BLOCKS, DISCARDABLE))
        changes = Changes(client, mount, loads, seed=1)
        for load in loads:
            load.start()
        try:
            for _ in range(40):
                await changes.one()
        finally:
            for load in loads:
                await trio.to_thread.run_sync(load.stop)
        while changes.snapshots:
            await changes.delete_oldest_snapshot()
        for load in loads:
            data = await trio.to_thread.run_sync(path_content, load.path, NR_BLOCKS * BLOCK)
            load.check(data, 0, load.acknowledged, load.begun, "at the end")
            assert not load.failures, "\n".join(load.failures[:20])
            assert load.nr_acknowledged > 500
        for name in ("a", "b", "p"):
            await client.remove(name)
    server.stop()
    accepted(pool.metadata)
    log = server.log.read_text()
    assert "a bug" not in log, log
    served, by_python, _ = log.split("requests served natively, by Python, by pyfuse3: ")[1].split("\n")[0].split(", ")
    assert int(served) > 500 and int(by_python) > 50, log
