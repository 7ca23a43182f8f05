"""A pool for the clients: a server of the test's own, files, volumes as block devices, gone whatever happened.

Promises: names are unlike those of any other test process; at the end of a test that succeeded nothing is left and
the metadata is sound; of one that failed, what lies in its directory is unmounted, detached, ended.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.blockdevs.loops import why_none
from tests.clients.leftovers import clear_away, loop_devices_of, mounts_of
from tests.system.conftest import Server, server
from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.blockdevs import nodes

__all__ = ["MIB", "Volumes", "need", "need_block_devices", "run", "server", "volumes"]

MIB = 1 << 20
SECONDS = 120


@dataclass(slots=True)
class Volumes:
    """One server, one pool of files, and its volumes. `name("t")` is how the device "t" of this test is called."""

    server: Server
    pool_files: PoolFiles
    prefix: str
    ids: dict[str, int] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.server.directory

    def name(self, short: str) -> str:
        return self.prefix + short

    def file(self, short: str) -> Path:
        return self.server.mount / self.name(short)

    def node(self, short: str) -> Path:
        return Path(nodes.MAPPER_DIR) / self.name(short)

    def dmsetup(self, *words: str) -> str:
        return self.server.dmsetup(*words)

    def message(self, text: str) -> None:
        self.dmsetup("message", self.name("pool"), "0", text)

    def create_pool(self, features: str = "1 skip_block_zeroing") -> None:
        self.dmsetup("create", self.name("pool"), "--table", self.pool_files.table(features=features))

    def thin_table(self, dev_id: int, size_bytes: int) -> str:
        return f"0 {size_bytes // 512} thin /dev/mapper/{self.name('pool')} {dev_id}"

    def activate(self, short: str, dev_id: int, size_bytes: int) -> Path:
        self.dmsetup("create", self.name(short), "--table", self.thin_table(dev_id, size_bytes))
        return self.file(short)

    def create_thin(self, short: str, size_bytes: int) -> Path:
        """Of a new id: that of `ids[short]`."""
        dev_id = self.ids[short] = len(self.ids)
        self.message(f"create_thin {dev_id}")
        return self.activate(short, dev_id, size_bytes)

    def create_snap(self, short: str, origin: str, size_bytes: int) -> Path:
        """As documented for dm-thin: the origin is suspended meanwhile."""
        dev_id = self.ids[short] = len(self.ids)
        self.dmsetup("suspend", self.name(origin))
        self.message(f"create_snap {dev_id} {self.ids[origin]}")
        self.dmsetup("resume", self.name(origin))
        return self.activate(short, dev_id, size_bytes)

    def used_data_blocks(self) -> int:
        return int(self.dmsetup("status", self.name("pool")).split()[5].split("/")[0])

    def mounted_at(self, short: str, *options: str) -> Path:
        """Mount it on a directory of its name; the test unmounts."""
        directory = self.directory / f"on-{short}"
        directory.mkdir(exist_ok=True)
        run("mount", *options, str(self.node(short)), str(directory))
        return directory


def run(*command: str | Path, timeout: float = SECONDS) -> str:
    """What it printed; it must have succeeded."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stdout}"
    return done.stdout


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def need_block_devices() -> None:
    reason = why_none() or nodes.available()
    if reason is not None:
        pytest.skip(f"no block devices: {reason}")


@pytest.fixture
def volumes(server: Server) -> Iterator[Volumes]:
    """A pool of 1 GiB with skip_block_zeroing and no volume yet."""
    files = make_pool(server.directory, data_bytes=1024 * MIB, metadata_bytes=16 * MIB)
    made = Volumes(server, files, f"thinfs-{os.getpid()}-")
    try:
        made.create_pool()
        yield made
        if server.process is not None:
            server.stop()
        assert mounts_of(server.directory) == []
        assert loop_devices_of(server.directory) == []
        assert not [path for path in Path(nodes.MAPPER_DIR).glob("*") if path.name.startswith(made.prefix)]
        accepted(files.metadata)
    finally:
        clear_away(server.directory)
