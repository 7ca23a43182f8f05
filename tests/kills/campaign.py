"""Kill after kill of one server on one pool: is everything there that was acknowledged, and does the machine live?

Promises: after each kill nothing of ours waits in the kernel for longer than SECONDS, sync(1) and losetup(8) answer,
the next server starts, the metadata is sound, and every safe block, file and snapshot is there. Whatever goes wrong,
the mount's FUSE connection is ended and what was mounted and attached goes.
"""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.clients.leftovers import clear_away
from tests.kills import load
from tests.kills.load import BLOCK, MIB, NR_BLOCKS, Safe
from tests.system.conftest import Server
from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.blockdev import FileDevice
from thinfs.blockdevs import nodes
from thinfs.dead_server import end_connection
from thinfs.tools.walk import steady

SECONDS = 30.0
RAW, EXT4, FIO = 0, 1, 2
SIZES = {RAW: NR_BLOCKS * BLOCK, EXT4: 256 * MIB, FIO: 64 * MIB}
PREFIX = f"kills-{os.getpid()}-"  # no other run has these names
POOL, SNAPSHOT = f"{PREFIX}p", f"{PREFIX}s"
NAMES = {RAW: f"{PREFIX}r", EXT4: f"{PREFIX}e", FIO: f"{PREFIX}f"}


class Lost(AssertionError):
    """What was acknowledged and is not there, or who still waits."""


@dataclass(slots=True)
class Campaign:
    directory: Path
    seed: int
    server: Server = field(init=False)
    files: PoolFiles = field(init=False)
    safe: Safe = field(default_factory=Safe)
    kills: int = 0
    nr_checked: int = 0
    held_on: int = 0  # killed servers that only the next one's start let go

    def __post_init__(self) -> None:
        self.server = Server(self.directory)

    @property
    def on_ext4(self) -> Path:
        return self.directory / "on-e"

    @property
    def node(self) -> Path:
        return Path(nodes.MAPPER_DIR) / NAMES[EXT4]

    def dmsetup(self, *words: str) -> None:
        self.server.dmsetup(*words)

    def set_up(self) -> None:
        self.files = make_pool(self.directory, data_bytes=1024 * MIB, metadata_bytes=16 * MIB)
        self.on_ext4.mkdir()
        self.server.start()
        self._create_pool()
        for dev_id in SIZES:
            self.dmsetup("message", POOL, "0", f"create_thin {dev_id}")
        self._activate()
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", self.node], check=True, timeout=SECONDS)
        self._mount()

    def _create_pool(self) -> None:
        self.dmsetup("create", POOL, "--table", self.files.table(features="1 skip_block_zeroing"))

    def _activate(self) -> None:
        for dev_id, size in SIZES.items():
            self.dmsetup(
                "create", NAMES[dev_id], "--table", f"0 {size // 512} thin {self.server.mount}/{POOL} {dev_id}"
            )

    def _mount(self) -> None:
        subprocess.run(["mount", self.node, self.on_ext4], check=True, timeout=SECONDS)

    # -- one kill ----------------------------------------------------------------------------------------

    def kill(self) -> str:
        """One round; a line that says what was done."""
        self.kills += 1
        chance = random.Random(self.seed * 1000 + self.kills)
        assert self.server.process is not None
        server = self.server.process.pid
        agents = children_of(server)
        ending = threading.Event()
        raw, first_id = self.server.mount / NAMES[RAW], 10_000 * self.kills
        threads = [
            load.thread(load.write_blocks, raw, self.safe, self.seed + self.kills, ending),
            load.thread(load.write_files, self.on_ext4, self.safe, 2 * self.kills, ending),
            load.thread(load.write_files, self.on_ext4, self.safe, 2 * self.kills + 1, ending),
            load.thread(load.take_snapshots, self.server, PREFIX, self.safe, first_id, ending),
        ]
        fio = load.run_fio(self.server.mount / NAMES[FIO], self.kills)
        try:
            suspends = self.safe.suspends
            time.sleep(0.5 + 2.5 * chance.random())
            ending.set()
            both = chance.random() < 0.3  # with the process that would have helped
            for pid in [*(agents if both else []), server]:
                os.kill(pid, 9)
            self._await_end(self.server.process, both)
            for one in threads:
                one.join(SECONDS)
            if any(one.is_alive() for one in threads):
                raise Lost("a writer waits still")
            with suppress(subprocess.TimeoutExpired):
                fio.wait(SECONDS)
        finally:
            fio.kill()
            fio.wait()
        self._machine_lives(agents)
        self._check()
        return (
            f"kill {self.kills}{' (and its agent)' if both else ''}: {self.safe.suspends - suspends} suspends, "
            f"{len(self.safe.blocks)} blocks, {len(self.safe.files)} files, {len(self.safe.snapshots)} snapshots there"
        )

    def _await_end(self, process: "subprocess.Popen[bytes]", both: bool) -> None:
        """Of the killed server. Where its agent is dead too it is the next server that lets go whoever waits: threads
        of the dead one, writers to a frozen file system."""
        if both:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            self.held_on += process.returncode is None
            self.server.process = None
            self.server.start()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Lost(f"the killed server holds on{' (its agent is dead)' * both}: {waiting(process.pid)}") from None
        if not both:
            self.server.process = None

    def _machine_lives(self, agents: list[int]) -> None:
        for pid in agents:
            until(f"process {pid} ends", lambda pid=pid: not alive(pid))  # type: ignore[misc]
        until("the ext4 of the dead server is unmounted", self._unmounted)
        for command in (["sync"], ["losetup", "-a"]):
            subprocess.run(command, check=True, capture_output=True, timeout=4 * SECONDS)

    def _unmounted(self) -> bool:
        subprocess.run(["umount", self.on_ext4], capture_output=True, check=False, timeout=SECONDS)
        return f" {self.on_ext4} " not in Path("/proc/mounts").read_text()

    def _check(self) -> None:
        accepted(self.files.metadata)
        device = FileDevice(str(self.files.metadata), read_only=True)
        try:
            there = steady(device, lambda trees: set(trees.roots()))
        finally:
            device.close()
        missing = self.safe.snapshots - there
        if missing:
            raise Lost(f"snapshots {sorted(missing)}")
        self.safe.snapshots = there - set(SIZES)
        if self.server.process is None:
            self.server.start()
        self._create_pool()
        self._activate()
        with open(self.server.mount / NAMES[RAW], "rb") as volume:
            for block, data in self.safe.blocks.items():
                volume.seek(block * BLOCK)
                if volume.read(len(data)) != data:
                    raise Lost(f"block {block} of the raw volume")
        self._mount()
        for name, digest in self.safe.files.items():
            path = self.on_ext4 / name
            if not path.exists() or sha256(path.read_bytes()).hexdigest() != digest:
                raise Lost(f"file {name}")
        self._check_a_snapshot()
        self.nr_checked += self.safe.nr

    def _check_a_snapshot(self) -> None:
        """A snapshot of a mounted file system was taken while it was frozen: it needs no journal replay."""
        if not self.safe.snapshots:
            return
        dev_id = max(self.safe.snapshots)
        self.dmsetup("create", SNAPSHOT, "--table", f"0 {SIZES[EXT4] // 512} thin {self.server.mount}/{POOL} {dev_id}")
        done = subprocess.run(
            ["e2fsck", "-fn", self.server.mount / SNAPSHOT],
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * SECONDS,
        )
        if done.returncode != 0:
            raise Lost(f"snapshot {dev_id} is not sound: {done.stdout} {done.stderr}")
        self.dmsetup("remove", SNAPSHOT)
        for dev_id in sorted(self.safe.snapshots)[:-4]:
            self.dmsetup("message", POOL, "0", f"delete {dev_id}")
            self.safe.snapshots.discard(dev_id)

    # -- the end -----------------------------------------------------------------------------------------

    def end(self) -> None:
        """After a failure too."""
        try:
            if self.server.process is not None and self.server.process.poll() is None and self._unmounted():
                self.server.stop()
                accepted(self.files.metadata)
        finally:
            if self.server.process is not None:
                self.server.process.kill()
            end_connection(str(self.server.mount))
            if self.server.process is not None:
                self.server.process.wait(SECONDS)
            clear_away(self.directory)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def waiting(pid: int) -> list[str]:
    """Name, state, and where in the kernel, of its threads."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            path = Path(f"/proc/{pid}/task/{thread}")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            stack = (path / "stack").read_text().replace("[<0>] ", "").split("\n")[:12]
            found.append(f"{(path / 'comm').read_text().strip()} {state} {' < '.join(stack)}")
    return found


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def until(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise Lost(f"not within {SECONDS:.0f} s: {what}")
        time.sleep(0.05)
