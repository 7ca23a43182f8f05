"""LVM 2.03, Debian's, from pvcreate to vgremove: its thin pools are thinfs's, on a machine without device-mapper."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import lvm as lvm_programs
from tests.clients.conftest import MIB, need, need_block_devices, run
from tests.clients.leftovers import clear_away, loop_devices_of, mounts_of
from tests.clients.lvm import Lvm, dmeventd_pid, group_on
from tests.system.conftest import Server, server
from thinfs.blockdevs import nodes

__all__ = ["server"]

AUTOEXTEND = "activation { thin_pool_autoextend_threshold = 70 thin_pool_autoextend_percent = 50 }"
MONITOR_SECONDS = 60


@pytest.fixture
def lvm(server: Server) -> Iterator[Lvm]:
    """Two disks of 1 GiB and a group on them."""
    reason = lvm_programs.missing()
    if reason is not None:
        pytest.skip(reason)
    need("mkfs.ext4", "losetup")
    need_block_devices()
    prefix = f"thinfs{os.getpid()}"
    try:
        with group_on(server, prefix, 1024 * MIB, 2, AUTOEXTEND) as made:
            yield made
        if server.process is not None:
            server.stop()
        assert mounts_of(server.directory) == []
        assert loop_devices_of(server.directory) == []
        assert not [path for path in Path(nodes.MAPPER_DIR).glob("*") if path.name.startswith(prefix)]
    finally:
        clear_away(server.directory)


def unmount(directory: Path) -> None:
    run("umount", directory)


def make_pool(lvm: Lvm, size: str = "300M") -> None:
    lvm("lvcreate", "--type", "thin-pool", "-L", size, "-n", "pool", lvm.group)
    lvm("lvcreate", "-V", "200M", "--thinpool", f"{lvm.group}/pool", "-n", "base")
    run("mkfs.ext4", "-q", lvm.node("base"))
    directory = lvm.mounted("base")
    (directory / "id.txt").write_text("hello world, I am a base\n")
    unmount(directory)


def test_a_group_lives_from_pvcreate_to_vgremove(lvm: Lvm) -> None:
    g = lvm.group
    lvm("lvcreate", "-L", "64M", "-n", "plain", g)
    lvm("lvcreate", "-L", "64M", "-i", "2", "-I", "64k", "-n", "striped", g)
    for name in ("plain", "striped"):
        run("mkfs.ext4", "-q", lvm.node(name))
        directory = lvm.mounted(name)
        (directory / "data").write_bytes(os.urandom(MIB) * 8)
        unmount(directory)
        run("fsck.ext4", "-fn", lvm.node(name))
    make_pool(lvm)

    lvm("lvcreate", "-s", "-n", "snap", f"{g}/base")
    lvm("lvchange", "-ay", "-K", f"{g}/snap")
    directory = lvm.mounted("snap")
    assert (directory / "id.txt").read_text() == "hello world, I am a base\n"
    (directory / "snap.txt").write_text("only here\n")
    unmount(directory)
    directory = lvm.mounted("base")
    assert not (directory / "snap.txt").exists()
    unmount(directory)

    lvm("lvextend", "-L", "+100M", f"{g}/pool")
    lvm("lvextend", "--poolmetadatasize", "+4M", f"{g}/pool")
    if lvm.grows_file_systems:
        lvm("lvextend", "-L", "+64M", "-r", f"{g}/base")
    else:
        lvm("lvextend", "-L", "+64M", f"{g}/base")
        run("e2fsck", "-fp", lvm.node("base"))
        run("resize2fs", lvm.node("base"))
    assert float(lvm.field("lv_size", "base")) == 264
    assert lvm.field("lv_size", "pool").split(".")[0] == "400"
    lvm("lvrename", g, "snap", "renamed")
    lvm("lvchange", "-an", f"{g}/renamed")
    lvm("lvchange", "-ay", "-K", f"{g}/renamed")
    volumes = lvm.volumes()
    assert volumes["renamed"][2:] == ["pool", "base"]
    assert volumes["base"][0].startswith("Vwi-a-tz")
    assert volumes["pool"][0].startswith("twi-aotz")
    assert lvm("lvs", "--noheadings", "-o", "data_percent", f"{g}/base").strip() != ""

    lvm("lvremove", "-y", f"{g}/renamed")
    lvm("vgchange", "-an", g)
    assert "No devices found" in lvm.server.dmsetup("ls")
    lvm("vgchange", "-ay", g)
    directory = lvm.mounted("base")
    assert (directory / "id.txt").read_text() == "hello world, I am a base\n"
    unmount(directory)
    lvm("vgremove", "-f", "-y", g)
    lvm("pvremove", *lvm.disks)
    assert "No devices found" in lvm.server.dmsetup("ls")


def test_after_a_kill_of_the_server_vgchange_brings_it_all_back(lvm: Lvm) -> None:
    make_pool(lvm)
    lvm("lvcreate", "-L", "32M", "-n", "plain", lvm.group)
    before = lvm.volumes()
    lvm.server.kill()
    lvm.server.start()
    lvm.configure()
    assert lvm.volumes().keys() == before.keys()
    lvm("vgchange", "-ay", lvm.group)
    assert lvm.volumes() == before
    directory = lvm.mounted("base")
    assert (directory / "id.txt").read_text() == "hello world, I am a base\n"
    unmount(directory)
    run("fsck.ext4", "-fn", lvm.node("base"))
    lvm("lvcreate", "-s", "-n", "snap", f"{lvm.group}/base")


def test_a_merged_snapshot_takes_its_origin_back(lvm: Lvm) -> None:
    make_pool(lvm)
    lvm("lvcreate", "-s", "-n", "before", f"{lvm.group}/base")
    directory = lvm.mounted("base")
    (directory / "id.txt").write_text("spoiled\n")
    unmount(directory)
    lvm("lvchange", "-an", f"{lvm.group}/base")
    lvm("lvconvert", "--merge", f"{lvm.group}/before")
    lvm("lvchange", "-ay", f"{lvm.group}/base")
    directory = lvm.mounted("base")
    assert (directory / "id.txt").read_text() == "hello world, I am a base\n"
    unmount(directory)
    assert "before" not in lvm.volumes()


def test_a_pool_is_repaired_by_lvconvert(lvm: Lvm) -> None:
    need("thin_repair")
    make_pool(lvm)
    lvm("vgchange", "-an", lvm.group)
    lvm("lvconvert", "-y", "--repair", f"{lvm.group}/pool")
    lvm("vgchange", "-ay", lvm.group)
    directory = lvm.mounted("base")
    assert (directory / "id.txt").read_text() == "hello world, I am a base\n"
    unmount(directory)


def test_dmeventd_grows_a_pool_by_itself_also_under_the_next_server(lvm: Lvm) -> None:
    make_pool(lvm, "100M")
    assert dmeventd_pid() is not None
    assert lvm.field("seg_monitor", "pool") == "monitored"
    fill(lvm, 80)
    await_size(lvm, 152)  # 1.5 times, in extents of 4 MiB
    lvm.server.kill()
    lvm.server.start()
    lvm.configure()
    lvm("vgchange", "-ay", lvm.group)
    fill(lvm, 120)
    await_size(lvm, 228)


def fill(lvm: Lvm, mib: int) -> None:
    run("dd", "if=/dev/zero", f"of={lvm.node('base')}", "bs=1M", f"count={mib}", "oflag=direct", "conv=notrunc")


def await_size(lvm: Lvm, mib: int) -> None:
    deadline = time.monotonic() + MONITOR_SECONDS
    while float(lvm.field("lv_size", "pool")) != mib:
        assert time.monotonic() < deadline, lvm.volumes()
        time.sleep(0.5)


def test_what_thinfs_does_not_do_is_refused_and_leaves_nothing(lvm: Lvm) -> None:
    lvm("lvcreate", "-L", "32M", "-n", "thick", lvm.group)
    before = lvm.volumes()
    done = lvm.attempt("lvcreate", "-s", "-L", "16M", "-n", "cow", f"{lvm.group}/thick")
    assert done.returncode == 5, done.stdout
    if "cow" in lvm.volumes():  # LVM's own way of giving up
        lvm("lvremove", "-y", f"{lvm.group}/cow")
    run("mkfs.ext4", "-q", lvm.node("thick"))
    for words in (
        ("lvcreate", "--type", "raid1", "-m", "1", "-L", "16M", "-n", "raid", lvm.group),
        ("lvcreate", "--type", "cache-pool", "-L", "16M", "-n", "cache", lvm.group),
    ):
        done = lvm.attempt(*words)
        assert done.returncode in (3, 5), done.stdout  # not supported; failed
    assert lvm.volumes() == before
    assert "thinfs has no such target" in lvm.server.log.read_text()


def test_the_real_dmsetup_drives_a_pool(lvm: Lvm) -> None:
    """The words of the README, by Debian's dmsetup."""
    data, metadata = lvm.disks
    p = lvm.group
    lvm("vgremove", "-y", p)
    lvm("pvremove", data, metadata)
    subprocess.run(["dd", "if=/dev/zero", f"of={metadata}", "bs=4096", "count=1"], check=True, capture_output=True)
    lvm(
        "dmsetup", "create", f"{p}-pool", "--table", f"0 2097152 thin-pool {metadata} {data} 128 0 1 skip_block_zeroing"
    )
    lvm("dmsetup", "message", f"{p}-pool", "0", "create_thin 0")
    lvm("dmsetup", "create", f"{p}-t", "--table", f"0 204800 thin /dev/mapper/{p}-pool 0")
    run("mkfs.ext4", "-q", f"/dev/mapper/{p}-t")
    lvm("dmsetup", "suspend", f"{p}-t")
    lvm("dmsetup", "message", f"{p}-pool", "0", "create_snap 1 0")
    lvm("dmsetup", "resume", f"{p}-t")
    lvm("dmsetup", "create", f"{p}-s", "--table", f"0 204800 thin /dev/mapper/{p}-pool 1")
    run("fsck.ext4", "-fn", f"/dev/mapper/{p}-s")
    assert lvm("dmsetup", "status", f"{p}-t") == lvm.server.dmsetup("status", f"{p}-t")
    tree = lvm("dmsetup", "ls", "--tree", "-o", "blkdevname,nodevice")
    assert f"{p}-s" in tree
    for name in ("s", "t", "pool"):
        lvm("dmsetup", "remove", f"{p}-{name}")


def test_pvmove_moves_a_pool_from_one_disk_to_another(lvm: Lvm) -> None:
    """Nothing is mounted meanwhile: should it fail half way, what it has suspended can be removed."""
    lvm("lvcreate", "--type", "thin-pool", "-L", "200M", "-n", "pool", lvm.group, lvm.disks[0])
    lvm("lvcreate", "-V", "100M", "--thinpool", f"{lvm.group}/pool", "-n", "base")
    run("mkfs.ext4", "-q", lvm.node("base"))
    directory = lvm.mounted("base")
    data = os.urandom(MIB) * 30
    (directory / "data").write_bytes(data)
    unmount(directory)
    lvm("pvmove", "-i", "1", lvm.disks[0], lvm.disks[1])
    run("fsck.ext4", "-fn", lvm.node("base"))
    directory = lvm.mounted("base")
    assert (directory / "data").read_bytes() == data
    unmount(directory)
    used = lvm("pvs", "--noheadings", "-o", "pv_name,pv_used", "--units", "m", "--nosuffix", *lvm.disks)
    assert dict(line.split() for line in used.splitlines())[lvm.disks[0]] in ("0", "0.00")
