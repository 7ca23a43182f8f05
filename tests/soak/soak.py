"""Volumes, writers, snapshots, deletes and discards on one server, and what the server takes meanwhile.

Promises: what a writer wrote last and fsynced is what it reads; at the end, with all devices removed, descriptors and
loop devices are as before and the metadata is sound. Figures: the peak of resident memory, descriptors and threads.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.leftovers import clear_away, loop_devices_of
from tests.system.conftest import Server
from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.dead_server import end_connection
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate

MIB = 1 << 20
BLOCK = 65536
VOLUME_BLOCKS = 256


@dataclass(slots=True)
class Taken:
    """What the server takes at one moment."""

    resident_bytes: int
    descriptors: int
    threads: int
    loop_devices: int


@dataclass(slots=True)
class Soak:
    directory: Path
    nr_volumes: int
    nr_writers: int
    seed: int
    server: Server = field(init=False)
    files: PoolFiles = field(init=False)
    errors: list[BaseException] = field(default_factory=list)
    done: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("writes", "discards", "snapshots", "deletes"), 0)
    )
    _ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server = Server(self.directory)

    def taken(self) -> Taken:
        assert self.server.process is not None
        process = Path(f"/proc/{self.server.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Taken(
            int(status["VmRSS"].split()[0]) * 1024,
            len(os.listdir(process / "fd")),
            int(status["Threads"]),
            len(loop_devices_of(self.directory)),
        )

    def name(self, number: int) -> str:
        return f"soak-{os.getpid()}-{number}"

    @contextmanager
    def running(self) -> Iterator[None]:
        self.files = make_pool(self.directory, data_bytes=4096 * MIB, metadata_bytes=32 * MIB)
        try:
            self.server.start()
            yield
            self.server.stop()
            accepted(self.files.metadata)
        finally:
            if self.server.process is not None:
                self.server.process.kill()
                end_connection(str(self.server.mount))
                self.server.process.wait(60)
            clear_away(self.directory)

    def _create(self, number: int) -> None:
        table = f"0 {VOLUME_BLOCKS * BLOCK // 512} thin {self.server.mount}/{self.name(-1)} {number}"
        self.server.dmsetup("create", self.name(number), "--table", table)

    def create_all(self) -> None:
        self.server.dmsetup("create", self.name(-1), "--table", self.files.table(features="1 skip_block_zeroing"))
        for number in range(self.nr_volumes):
            self.server.dmsetup("message", self.name(-1), "0", f"create_thin {number}")
            self._create(number)

    def remove_all(self) -> None:
        for number in [*range(self.nr_volumes), -1]:
            self.server.dmsetup("remove", self.name(number))

    # -- the load ----------------------------------------------------------------------------------------

    def run(self, seconds: float) -> tuple[Taken, Taken, Taken]:
        """What was taken before, at most, and after: all with no device."""
        before = self.taken()
        self.create_all()
        threads = [threading.Thread(target=self._guarded, args=(self._write, i)) for i in range(self.nr_writers)]
        threads.append(threading.Thread(target=self._guarded, args=(self._take_snapshots, self.seed)))
        for thread in threads:
            thread.start()
        peak = self.taken()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.errors:
            time.sleep(0.2)
            now = self.taken()
            peak = Taken(*(max(getattr(peak, name), getattr(now, name)) for name in Taken.__slots__))
        self._ending.set()
        for thread in threads:
            thread.join(120)
        if self.errors:
            raise self.errors[0]
        self.remove_all()
        return before, peak, self._settled(before)

    def _settled(self, before: Taken) -> Taken:
        """Idle threads of the server end after some seconds."""
        for _ in range(150):
            now = self.taken()
            if now.descriptors <= before.descriptors and now.threads <= before.threads:
                break
            time.sleep(0.1)
        return now

    def _guarded(self, work: object, argument: int) -> None:
        try:
            work(argument)  # type: ignore[operator]
        except BaseException as error:
            self.errors.append(error)

    def _write(self, writer: int) -> None:
        """Each writer has volumes of its own, and knows what is in them."""
        chance = random.Random(self.seed * 100 + writer)
        mine = list(range(writer, self.nr_volumes, self.nr_writers))
        written: dict[tuple[int, int], bytes] = {}
        while not self._ending.is_set():
            number = chance.choice(mine)
            descriptor = os.open(self.server.mount / self.name(number), os.O_RDWR)
            try:
                for _ in range(20):
                    self._one(descriptor, number, chance, written)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _one(self, descriptor: int, number: int, chance: random.Random, written: dict[tuple[int, int], bytes]) -> None:
        block = chance.randrange(VOLUME_BLOCKS)
        expected = written.get((number, block), bytes(16))
        got = os.pread(descriptor, 16, block * BLOCK)
        assert got == expected, f"volume {number}, block {block}: {got!r}, expected {expected!r}"
        if chance.random() < 0.2:
            fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block * BLOCK, BLOCK)
            written.pop((number, block), None)
            self.done["discards"] += 1
        else:
            data = chance.randbytes(16)
            os.pwrite(descriptor, data * 256, block * BLOCK)
            written[number, block] = data
            self.done["writes"] += 1

    def _take_snapshots(self, seed: int) -> None:
        chance = random.Random(seed)
        alive: list[int] = []
        for dev_id in range(1000, 1_000_000):
            if self._ending.is_set():
                break
            origin = chance.randrange(self.nr_volumes)
            self.server.dmsetup("suspend", self.name(origin))
            self.server.dmsetup("message", self.name(-1), "0", f"create_snap {dev_id} {origin}")
            self.server.dmsetup("resume", self.name(origin))
            alive.append(dev_id)
            self.done["snapshots"] += 1
            if len(alive) > 10:
                victim = alive.pop(chance.randrange(len(alive)))
                self.server.dmsetup("message", self.name(-1), "0", f"delete {victim}")
                self.done["deletes"] += 1
        with suppress(AssertionError):
            for dev_id in alive:
                self.server.dmsetup("message", self.name(-1), "0", f"delete {dev_id}")
