"""As root: active devices are block devices, with file systems mounted on them, as with the kernel's dm-thin."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blockdevs.loops import why_none
from tests.cli.conftest import Machine
from tests.thin_tools import accepted
from thinfs.blockdevs import loop, nodes

PREFIX = f"thinfs-test-{os.getpid()}-"
POOL, THIN, SNAPSHOT = (PREFIX + name for name in ("pool", "thin", "snap"))


@pytest.fixture
def disks(mounted: Machine, tmp_path: Path) -> Iterator[Machine]:
    """A pool with a thin of 32 MiB that has an ext4, not mounted; afterwards no mount, link or loop device."""
    reason = why_none() or nodes.available()
    if reason is not None:
        pytest.skip(reason)
    for name, size in (("metadata", 4 << 20), ("data", 64 << 20)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    try:
        mounted.prints("create", POOL, "--table", "0 131072 thin-pool metadata data 128 32 1 skip_block_zeroing")
        mounted.prints("message", POOL, "0", "create_thin 0")
        mounted.prints("create", THIN, "--table", f"0 65536 thin /dev/mapper/{POOL} 0")
        run("mkfs.ext4", "-q", f"/dev/mapper/{THIN}")
        yield mounted
        assert mounted.thinfs("stop").stdout == ""
        assert loop.attached_under(str(mounted.mount_dir)) == []
        assert not [name for name in os.listdir(nodes.MAPPER_DIR) if name.startswith(PREFIX)]
        accepted(tmp_path / "metadata")
    finally:
        for directory in ("base", "snap"):
            subprocess.run(["umount", "-l", tmp_path / directory], capture_output=True, check=False)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def mount(name: str, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    run("mount", f"/dev/mapper/{name}", str(directory))


def test_a_snapshot_of_a_suspended_mounted_device_has_what_was_written_before(disks: Machine, tmp_path: Path) -> None:
    base, snap = tmp_path / "base", tmp_path / "snap"
    mount(THIN, base)
    (base / "id.txt").write_text("hello world, I am a base\n")  # and no sync
    disks.prints("suspend", THIN)
    disks.prints("message", f"/dev/mapper/{POOL}", "0", "create_snap 1 0")
    disks.prints("resume", THIN)
    disks.prints("create", SNAPSHOT, "--table", f"0 65536 thin /dev/mapper/{POOL} 1")
    mount(SNAPSHOT, snap)
    assert (snap / "id.txt").read_text() == "hello world, I am a base\n"
    (snap / "id.txt").write_text("I am a snapshot\n")
    run("umount", str(snap))
    assert (base / "id.txt").read_text() == "hello world, I am a base\n"
    run("umount", str(base))


def test_a_mounted_device_is_busy_for_remove_and_for_stop(disks: Machine, tmp_path: Path) -> None:
    mount(THIN, tmp_path / "base")
    path = os.readlink(f"/dev/mapper/{THIN}")
    assert disks.dmsetup("remove", f"/dev/mapper/{THIN}").stdout.splitlines() == [
        f"device-mapper: remove ioctl on {THIN}  failed: Device or resource busy",
        f"thinfs: {THIN}: {path} is mounted",
        "Command failed.",
    ]
    stop = disks.thinfs("stop")
    assert (stop.stdout, stop.returncode) == (f"thinfs stop: in use: {THIN} ({path} is mounted)\n", 1)
    run("umount", str(tmp_path / "base"))


def test_a_deferred_removal_of_a_mounted_device_happens_at_its_unmount(disks: Machine, tmp_path: Path) -> None:
    mount(THIN, tmp_path / "base")
    disks.prints("remove", "--deferred", THIN)
    assert "ACTIVE (DEFERRED REMOVE)" in disks.prints("info", THIN)
    assert disks.prints("info", "-c", "--noheadings", "-o", "open", THIN) == "1\n"  # as the kernel counts a mount
    (tmp_path / "base" / "still").write_text("there")
    run("umount", str(tmp_path / "base"))
    assert disks.prints("ls").split("\t")[0] == POOL
    assert not os.path.lexists(f"/dev/mapper/{THIN}")


def test_discards_of_the_file_system_give_blocks_back(disks: Machine, tmp_path: Path) -> None:
    base = tmp_path / "base"
    mount(THIN, base)
    (base / "large").write_bytes(os.urandom(1 << 23))
    run("sync", "-f", str(base))
    before = int(disks.prints("status", THIN).split()[3])
    (base / "large").unlink()
    run("sync", "-f", str(base))  # its blocks are free with the journal's commit
    run("fstrim", str(base))
    assert int(disks.prints("status", THIN).split()[3]) < before - (1 << 13)
    run("umount", str(base))


def test_the_loop_device_of_a_device_is_that_device_in_a_table(disks: Machine) -> None:
    """Read as a block device of the machine it would wait for the very thread that reads it, for ever."""
    name = f"{THIN}-window"
    loop = os.path.realpath(f"/dev/mapper/{THIN}")
    disks.prints("create", name, "--table", f"0 2048 linear {loop} 0")
    try:
        with (disks.mount_dir / name).open("rb", buffering=0) as image:
            assert len(image.read(4096)) == 4096
        minor = disks.prints("info", "-c", "--noheadings", "-o", "minor", THIN).strip()
        assert disks.prints("table", name).split()[3].partition(":")[2] == minor
    finally:
        disks.prints("remove", name)


def test_a_grown_device_is_a_grown_block_device(disks: Machine) -> None:
    disks.prints("reload", THIN, "--table", f"0 131072 thin /dev/mapper/{POOL} 0")
    disks.prints("resume", THIN)
    with open(f"/dev/mapper/{THIN}", "rb") as block_device:
        assert block_device.seek(0, os.SEEK_END) == 131072 * 512


def test_a_server_killed_under_a_mount_is_followed_by_one_that_works(disks: Machine, tmp_path: Path) -> None:
    mount(THIN, tmp_path / "base")
    pidfd = os.pidfd_open(disks.pid())
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    disks.run("flock", "--shared", f"{disks.mount_dir}.lock", "true")
    assert disks.prints("ls") == "No devices found\n"
    run("umount", str(tmp_path / "base"))
    disks.prints("create", POOL, "--table", "0 131072 thin-pool metadata data 128 32")
    disks.prints("create", THIN, "--table", f"0 65536 thin /dev/mapper/{POOL} 0")
    run("e2fsck", "-fy", f"/dev/mapper/{THIN}")
    disks.mount_dir.joinpath(THIN).stat()
