"""The pytest plugin: fixtures `thin_disks`, `thin_pool`, `thin_volume`, `dmsetup_path`, `dmsetup_environment`.

Promises: every test has its own; nothing is left when it ends, also when it fails. The pool fixtures need no
privileges and no FUSE; `dmsetup_path` needs /dev/fuse. Nothing of thinfs but this file is imported before it is used.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from thinfs.library.pool import Pool, Volume
    from thinfs.testing.disk import Disk

MIB = 1 << 20
METADATA_BYTES = 4 * MIB
DATA_BYTES = 64 * MIB
VOLUME_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ThinDisks:
    """What a pool stands on: fill, fail, slow down or cut the power of either."""

    metadata: "Disk"
    data: "Disk"

    def open_pool(self, *, block_bytes: int = 65536) -> "Pool":
        """Open, or format if blank: again after a `power_cut`, as after a restart."""
        from thinfs.library.pool import open_pool_on

        return open_pool_on(self.metadata, self.data, block_bytes=block_bytes)

    def power_cut(self) -> None:
        """Both lose what was not flushed."""
        self.metadata.power_cut()
        self.data.power_cut()


@pytest.fixture
def thin_disks() -> ThinDisks:
    """Two blank disks in memory: 4 MiB for metadata, 64 MiB (1,024 blocks) for data."""
    from thinfs.testing.disk import Disk

    return ThinDisks(Disk(METADATA_BYTES, label="metadata"), Disk(DATA_BYTES, label="data"))


@pytest.fixture
def thin_pool(thin_disks: ThinDisks) -> Iterator["Pool"]:
    """A pool over `thin_disks`, without thins."""
    pool = thin_disks.open_pool()
    yield pool
    thin_disks.metadata.work()
    thin_disks.data.work()
    pool.close()


@pytest.fixture
def thin_volume(thin_pool: "Pool") -> "Volume":
    """Thin 0 of `thin_pool`, 1 GiB."""
    thin_pool.create_thin(0)
    return thin_pool.volume(0, VOLUME_BYTES)


@pytest.fixture
def dmsetup_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables under which `dmsetup` is the drop-in, on a server of the test's own."""
    directory = tmp_path / "thinfs"
    (directory / "bin").mkdir(parents=True)
    program = Path(sys.executable).with_name("thinfs-dmsetup")
    if not program.exists():
        pytest.fail(f"{program}: not there: thinfs is not installed for {sys.executable}")
    (directory / "bin/dmsetup").symlink_to(program)
    mount = directory / "dm"
    environment = {
        **os.environ,
        "THINFS_MOUNT": str(mount),
        "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    yield environment
    if (directory / "dm.sock").exists():
        command = [sys.executable, "-m", "thinfs.cli.main", "stop", "--force"]
        subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60)


@pytest.fixture
def dmsetup_path(dmsetup_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a `dmsetup`, first in PATH for the test and its children. Devices are files in $THINFS_MOUNT."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be opened: volumes cannot be shown as files")
    for name in ("THINFS_MOUNT", "PATH"):
        monkeypatch.setenv(name, dmsetup_environment[name])
    return Path(dmsetup_environment["PATH"].split(os.pathsep)[0], "dmsetup")
