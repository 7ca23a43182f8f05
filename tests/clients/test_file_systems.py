"""mkfs, mount, fstrim, resize and fsck on /dev/mapper/NAME; snapshots of what is mounted."""

import os
import random
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run

SIZE = 512 * MIB


@pytest.fixture(autouse=True)
def block_devices() -> None:
    need_block_devices()


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
        assert volumes.dmsetup("info", "-c", "--noheadings", "-o", "open", volumes.name("t")) == "1\n"
    volumes.dmsetup("remove", volumes.name("t"))
