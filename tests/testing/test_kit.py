"""The kit as its users have it: a backup tool in Python on the fixtures, and a snapshotter that runs dmsetup."""

import subprocess
from pathlib import Path

import pytest

from thinfs.errors import IOFailed, NoSpace
from thinfs.library.pool import Pool, Volume
from thinfs.testing.plugin import ThinDisks

BLOCK = 65536


def backup(volume: Volume) -> dict[int, bytes]:
    """A tool under test: what is mapped, and nothing else."""
    return {begin: volume.read(begin, end - begin) for begin, end in volume.runs()}


def test_a_backup_tool_reads_what_is_mapped(thin_volume: Volume) -> None:
    thin_volume.write(5 * BLOCK, b"data")
    assert backup(thin_volume) == {5 * BLOCK: b"data" + bytes(BLOCK - 4)}


def test_a_full_pool(thin_volume: Volume, thin_pool: Pool) -> None:
    with pytest.raises(NoSpace):
        for block in range(2000):
            thin_volume.write(block * BLOCK, b"x")
    status = thin_pool.status()
    assert status is not None
    assert status.used_data_blocks == status.nr_data_blocks == 1024


def test_the_nth_write_fails_and_the_next_does_not(thin_volume: Volume, thin_disks: ThinDisks) -> None:
    thin_volume.write(0, b"a" * BLOCK)
    thin_disks.data.fail_write(2)
    thin_volume.write(0, b"b")
    with pytest.raises(IOFailed, match="made to fail"):
        thin_volume.write(0, b"c")
    thin_volume.write(0, b"d")
    assert thin_volume.read(0, 2) == b"da"
    with pytest.raises(ValueError, match="counts from 1"):
        thin_disks.data.fail_write(0)


def test_a_power_cut_takes_what_was_not_flushed(thin_volume: Volume, thin_disks: ThinDisks) -> None:
    thin_volume.write(0, b"kept")
    thin_volume.flush()
    thin_volume.write(0, b"lost")
    thin_volume.write(7 * BLOCK, b"lost too")
    thin_disks.power_cut()
    with thin_disks.open_pool() as again:
        volume = again.volume(0, 1 << 30)
        assert volume.read(0, 4) == b"kept"
        assert [begin for begin, _ in volume.runs()] == [0]


def test_a_disk_that_fails_makes_the_pool_read_only(
    thin_volume: Volume, thin_disks: ThinDisks, thin_pool: Pool
) -> None:
    thin_volume.write(0, b"x")
    thin_disks.metadata.fail_write()
    with pytest.raises(IOFailed):
        thin_volume.flush()
    status = thin_pool.status()
    assert status is not None
    assert (status.mode, status.needs_check) == ("ro", True)


def test_a_slow_disk_takes_its_time_and_answers(thin_volume: Volume, thin_disks: ThinDisks) -> None:
    thin_disks.data.delay_seconds = 0.001
    thin_volume.write(0, b"slow")
    assert thin_volume.read(0, 4) == b"slow"
    assert thin_disks.data.nr_writes > 0


def test_a_snapshotter_that_runs_dmsetup(dmsetup_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever language it is written in: it finds `dmsetup` in its PATH."""
    for name, size in (("meta", 4 << 20), ("data", 64 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)

    def dmsetup(*words: str) -> str:
        return subprocess.run(["dmsetup", *words], check=True, capture_output=True, text=True).stdout

    prefix = tmp_path.name
    dmsetup("create", f"{prefix}-p", "--table", f"0 131072 thin-pool {tmp_path}/meta {tmp_path}/data 128 0")
    dmsetup("message", f"{prefix}-p", "0", "create_thin 0")
    dmsetup("create", f"{prefix}-v", "--table", f"0 2048 thin /dev/mapper/{prefix}-p 0")
    assert dmsetup("status", f"{prefix}-v") == "0 2048 thin 0 -\n"
    assert dmsetup_path.name == "dmsetup"
