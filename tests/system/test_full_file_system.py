"""A pool whose data file lies on a file system that is full: ENOSPC, said in the log, and nothing leaks."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Server, running_server
from tests.system.images import PoolFiles
from tests.thin_tools import accepted

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mount(8) takes root")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.fixture
def server(small: Path, tmp_path: Path) -> Iterator[Server]:
    """Ends before its file system goes."""
    directory = tmp_path / "server"
    directory.mkdir()
    with running_server(directory) as made:
        yield made


@pytest.mark.parametrize("features", ["1 skip_block_zeroing", ""])
def test_writes_fail_with_enospc_the_log_says_why_and_nothing_leaks(small: Path, server: Server, features: str) -> None:
    files = PoolFiles(server.directory / "metadata", small / "data")
    for path, size in ((files.metadata, 4 * MIB), (files.data, 64 * MIB)):
        path.touch()
        os.truncate(path, size)
    table = f"0 {64 * MIB // 512} thin-pool {files.metadata} {files.data} 128 0 {features}".rstrip()
    server.dmsetup("create", "p", "--table", table)
    server.dmsetup("message", "p", "0", "create_thin 0")
    server.dmsetup("create", "t", "--table", f"0 {32 * MIB // 512} thin /dev/mapper/p 0")
    descriptor = os.open(server.mount / "t", os.O_RDWR)
    written = failed = 0
    for block in range(32 * MIB // 65536):
        try:
            assert os.pwrite(descriptor, bytes([block % 255 + 1]) * 65536, block * 65536) == 65536
            written += 1
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed += 1
    os.close(descriptor)
    assert 100 < written < 130 and failed > 300
    status = server.dmsetup("status", "p").split()
    assert status[7] == "rw"
    used = int(status[5].split("/")[0])
    if not features or written == used:
        assert used == written
    assert server.log.read_text().count(f"{files.data}: write at byte") == 1
    assert "No space left on device" in server.log.read_text()
    for name in ("t", "p"):
        server.dmsetup("remove", name)
    accepted(files.metadata)
