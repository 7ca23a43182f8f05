"""mkfs, mount, fstrim, resize and fsck on /dev/mapper/NAME; snapshots of what is mounted."""

import os
import random
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run
from tests.system.images import make_pool

SIZE = 512 * MIB
CAP_SYS_RESOURCE = 24
ENGLISH = {**os.environ, "LC_ALL": "C"}


@pytest.fixture(autouse=True)
def block_devices() -> None:
    need_block_devices()


def may_resize() -> bool:
    effective = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) & 1 << CAP_SYS_RESOURCE)


@pytest.fixture
def ext4(volumes: Volumes) -> Path:
    """A volume "t" with an ext4, not mounted."""
    need("mkfs.ext4")
    volumes.create_thin("t", SIZE)
    run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", volumes.node("t"))
    return volumes.node("t")


@pytest.mark.parametrize(
    ("make", "check"), [(("mkfs.ext4", "-q"), ("e2fsck", "-fn")), (("mkfs.xfs", "-q"), ("xfs_repair", "-n"))]
)
def test_a_file_system_lives_on_a_volume_and_is_found_clean(
    volumes: Volumes, make: tuple[str, ...], check: tuple[str, ...]
) -> None:
    need(make[0], check[0], "fstrim")
    volumes.create_thin("t", SIZE)
    run(*make, volumes.node("t"))
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    data = random.Random(seed).randbytes(8 * MIB)
    for _ in range(2):
        directory = volumes.mounted_at("t")
        (directory / "kept").write_bytes(data)
        (directory / "passing").write_bytes(data)
        os.sync()
        (directory / "passing").unlink()
        run("fstrim", "-v", directory)
        run("umount", directory)
        run(*check, volumes.node("t"))
    directory = volumes.mounted_at("t")
    assert (directory / "kept").read_bytes() == data
    run("umount", directory)


def test_fstrim_after_deleting_64_mib_gives_their_blocks_back(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    empty = volumes.used_data_blocks()
    (directory / "large").write_bytes(os.urandom(64 * MIB))
    run("sync", "-f", directory)
    full = volumes.used_data_blocks()
    (directory / "large").unlink()
    run("sync", "-f", directory)
    deleted = volumes.used_data_blocks()
    run("fstrim", directory)
    trimmed = volumes.used_data_blocks()
    print(f"used data blocks: empty {empty}, with 64 MiB {full}, deleted {deleted}, trimmed {trimmed}")
    assert full >= empty + 1024
    assert deleted >= full
    assert trimmed <= empty + 16
    run("umount", directory)
    run("e2fsck", "-fn", ext4)


def test_an_ext4_grows_online_with_its_volume(volumes: Volumes, ext4: Path) -> None:
    need("resize2fs", "blockdev")
    if not may_resize():
        pytest.skip("to resize a mounted ext4 takes CAP_SYS_RESOURCE")
    directory = volumes.mounted_at("t")
    (directory / "before").write_text("before\n")
    volumes.dmsetup("reload", volumes.name("t"), "--table", volumes.thin_table(volumes.ids["t"], 2 * SIZE))
    volumes.dmsetup("suspend", volumes.name("t"))
    volumes.dmsetup("resume", volumes.name("t"))
    assert int(run("blockdev", "--getsize64", ext4)) == 2 * SIZE
    assert volumes.file("t").stat().st_size == 2 * SIZE
    run("resize2fs", ext4)
    assert os.statvfs(directory).f_blocks * os.statvfs(directory).f_frsize > SIZE * 1.8
    (directory / "after").write_bytes(b"after\n" * 100000)
    run("umount", directory)
    run("e2fsck", "-fn", ext4)


def test_an_xfs_grows_online_with_its_volume(volumes: Volumes) -> None:
    need("mkfs.xfs", "xfs_growfs", "xfs_repair", "blockdev")
    volumes.create_thin("t", SIZE)
    run("mkfs.xfs", "-q", volumes.node("t"))
    directory = volumes.mounted_at("t")
    (directory / "before").write_text("before\n")
    volumes.dmsetup("reload", volumes.name("t"), "--table", volumes.thin_table(volumes.ids["t"], 2 * SIZE))
    volumes.dmsetup("resume", volumes.name("t"))
    assert int(run("blockdev", "--getsize64", volumes.node("t"))) == 2 * SIZE
    assert volumes.file("t").stat().st_size == 2 * SIZE
    run("xfs_growfs", directory)
    assert os.statvfs(directory).f_blocks * os.statvfs(directory).f_frsize > SIZE * 1.7
    (directory / "after").write_bytes(b"after\n" * 100000)
    run("umount", directory)
    run("xfs_repair", "-n", volumes.node("t"))


def test_a_mounted_volume_is_busy_for_remove_and_its_thin_for_delete(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    refused = volumes.server.run("dmsetup", "remove", volumes.name("t"))
    assert refused.returncode == 1
    assert refused.stdout.splitlines()[0].endswith("failed: Device or resource busy")
    refused = volumes.server.run("dmsetup", "message", volumes.name("pool"), "0", "delete 0")
    assert refused.stdout.splitlines()[0].endswith("failed: Device or resource busy")
    assert volumes.dmsetup("info", "-c", "--noheadings", "-o", "open", volumes.name("t")) == "1\n"
    run("umount", directory)
    assert volumes.dmsetup("info", "-c", "--noheadings", "-o", "open", volumes.name("t")) == "0\n"


def test_an_open_block_device_is_busy_for_remove(volumes: Volumes, ext4: Path) -> None:
    with ext4.open("rb"):
        refused = volumes.server.run("dmsetup", "remove", volumes.name("t"))
        assert refused.stdout.splitlines()[0].endswith("failed: Device or resource busy")
    volumes.dmsetup("remove", volumes.name("t"))


def write_until_stopped(directory: Path, enough: threading.Event, over: threading.Event) -> None:
    """Small files, each fsynced, as a busy server makes them."""
    for number in range(100_000):
        if over.is_set():
            return
        with (directory / f"file-{number}").open("wb") as file:
            file.write(number.to_bytes(4, "big") * 1000)
            file.flush()
            os.fsync(file.fileno())
        if number == 20:
            enough.set()


def test_a_snapshot_of_an_ext4_that_is_being_written_is_clean(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    enough, over = threading.Event(), threading.Event()
    writer = threading.Thread(target=write_until_stopped, args=(directory, enough, over))
    writer.start()
    try:
        assert enough.wait(60)
        for number in range(5):
            volumes.create_snap(f"s{number}", "t", SIZE)
    finally:
        over.set()
        writer.join()
    for number in range(5):
        # Without a journal to replay: the suspend froze the file system.
        assert "needs_recovery" not in run("dumpe2fs", "-h", volumes.node(f"s{number}"))
        run("e2fsck", "-fn", volumes.node(f"s{number}"))
        snap = volumes.mounted_at(f"s{number}", "-o", "ro")
        for path in snap.glob("file-*"):
            data = path.read_bytes()
            assert data == int(path.name.removeprefix("file-")).to_bytes(4, "big") * (len(data) // 4)
        run("umount", snap)
    run("umount", directory)
    run("e2fsck", "-fn", ext4)


def test_writers_wait_while_their_volume_is_suspended_and_go_on_after_it(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    volumes.dmsetup("suspend", volumes.name("t"))
    done = threading.Event()

    def write() -> None:
        (directory / "late").write_text("after the resume\n")
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert not done.is_set()
    volumes.dmsetup("resume", volumes.name("t"))
    assert done.wait(60)
    writer.join()
    run("umount", directory)


def test_nolockfs_suspends_without_freezing(volumes: Volumes, ext4: Path) -> None:
    need("fsfreeze")
    directory = volumes.mounted_at("t")
    for options, answer in (("--nolockfs",), "Invalid argument"), ((), ""):
        volumes.dmsetup("suspend", *options, volumes.name("t"))
        # What is not frozen cannot be thawed. A thaw writes, so it ends after the resume.
        thaw = subprocess.Popen(["fsfreeze", "-u", directory], stderr=subprocess.PIPE, text=True, env=ENGLISH)
        volumes.dmsetup("resume", volumes.name("t"))
        _, error = thaw.communicate(timeout=60)
        assert answer in error
        assert (thaw.returncode == 0) == (answer == "")
    run("umount", directory)


def test_a_server_that_ends_thaws_what_it_had_frozen(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    (directory / "before").write_text("before\n")
    volumes.dmsetup("suspend", volumes.name("t"))
    volumes.server.stop()
    run("umount", directory)  # of a frozen file system it would leave the block device in use for ever


def test_a_server_killed_while_it_had_frozen_is_cleaned_up_by_the_next(volumes: Volumes, ext4: Path) -> None:
    directory = volumes.mounted_at("t")
    volumes.dmsetup("suspend", volumes.name("t"))
    volumes.server.kill()
    volumes.server.start()
    run("umount", directory)
    volumes.create_pool()
    volumes.activate("t", 0, SIZE)
    run("e2fsck", "-fy", volumes.node("t"))


def test_a_file_system_that_holds_pool_files_of_the_server_is_not_frozen(volumes: Volumes, ext4: Path) -> None:
    need("fsfreeze")
    directory = volumes.mounted_at("t")
    inner = make_pool(directory, data_bytes=16 * MIB, metadata_bytes=4 * MIB)
    volumes.dmsetup("create", volumes.name("inner"), "--table", inner.table())
    volumes.dmsetup("message", volumes.name("inner"), "0", "create_thin 0")
    volumes.dmsetup("suspend", volumes.name("t"))
    thaw = subprocess.Popen(["fsfreeze", "-u", directory], stderr=subprocess.PIPE, text=True, env=ENGLISH)
    volumes.dmsetup("resume", volumes.name("t"))
    assert "Invalid argument" in thaw.communicate(timeout=60)[1]
    assert "frozen" not in volumes.server.log.read_text()
    volumes.dmsetup("remove", volumes.name("inner"))
    run("umount", directory)
