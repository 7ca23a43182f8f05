"""`thinfs lvm … mount`: the files of a volume, as root and as an ordinary user; and nothing left after `umount`."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import TOP
from tests.fuse.conftest import as_nobody, why_not_fuse
from tests.lvm.builder import EXTENT_BYTES, World, put_striped
from tests.lvm.test_real_sets import digests, manifest, plain
from thinfs.cli.tree_listing import differences, list_directory

Thinfs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where an ordinary user comes too; nothing but what a test puts there is left at the end."""
    reason = why_not_fuse()
    if reason is not None:
        pytest.skip(f"FUSE is not usable: {reason}")
    with tempfile.TemporaryDirectory(prefix="thinfs-test-") as name:
        place = Path(name)
        (place / "mnt").mkdir()
        place.chmod(0o755)
        yield place
        assert [path.name for path in place.iterdir() if path.name.startswith("dm")] == []


def runner(place: Path, *prefix: str) -> Thinfs:
    environment = {**os.environ, "THINFS_MOUNT": f"{place}/dm", "PYTHONPATH": str(TOP), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*prefix, sys.executable, "-m", "thinfs.cli.main", "lvm"]

    def thinfs(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], capture_output=True, text=True, env=environment, cwd="/", timeout=120
        )  # fmt: skip

    return thinfs


@pytest.fixture
def root(place: Path) -> Thinfs:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    return runner(place)


def with_ext4(world: World, tmp_path: Path) -> World:
    """On the striped volume."""
    files, image = tmp_path / "files", tmp_path / "ext4"
    files.mkdir()
    (files / "hello").write_text("hello from a stripe\n")
    size = f"{8 * EXTENT_BYTES >> 10}k"
    subprocess.run(["/usr/sbin/mke2fs", "-qt", "ext4", "-O", "^has_journal", "-d", files, image, size], check=True)
    put_striped(world.disks, image.read_bytes())
    return world


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_root_mounts_a_volume_read_only_and_nothing_is_left_of_it(
    root: Thinfs, place: Path, world: World, tmp_path: Path
) -> None:
    paths, mountpoint = with_ext4(world, tmp_path).write(place), str(place / "mnt")
    before = digests([Path(path) for path in paths])
    assert succeeded(root(*paths, "mount", "wide", mountpoint)) == f"vg/wide is at {mountpoint}: ext4, read-only\n"
    try:
        assert (place / "mnt/hello").read_text() == "hello from a stripe\n"
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "mnt/new").touch()
    finally:
        said = succeeded(root("umount", mountpoint))
    assert said == f"{mountpoint}: unmounted, vg-wide is served no more\n"
    assert digests([Path(path) for path in paths]) == before


def test_what_is_written_to_a_mounted_volume_is_in_its_overlay(
    root: Thinfs, place: Path, world: World, tmp_path: Path
) -> None:
    paths, mountpoint = with_ext4(world, tmp_path).write(place), str(place / "mnt")
    before = digests([Path(path) for path in paths])
    for number in range(2):
        succeeded(root(*paths, "mount", "wide", mountpoint, "--overlay", str(place / "overlay")))
        try:
            assert (place / "mnt/new").exists() == bool(number)
            (place / "mnt/new").write_text("new")
        finally:
            succeeded(root("umount", mountpoint))
    assert digests([Path(path) for path in paths]) == before


def test_what_is_written_to_a_volume_mounted_for_it_is_on_the_disks(
    root: Thinfs, place: Path, world: World, tmp_path: Path
) -> None:
    paths, mountpoint = with_ext4(world, tmp_path).write(place), str(place / "mnt")
    succeeded(root(*paths, "mount", "wide", mountpoint, "--rw"))
    try:
        (place / "mnt/new").write_text("new")
    finally:
        succeeded(root("umount", mountpoint))
    succeeded(root(*paths, "mount", "wide", mountpoint))
    try:
        assert (place / "mnt/new").read_text() == "new"
    finally:
        succeeded(root("umount", mountpoint))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mount", "one", "MNT"], "vg/one: holds no file system that is known here; serve or export it"),
        (["mount", "one", "MNT/nowhere"], "MNT/nowhere: not a directory"),
        (["mount", "nothing", "MNT"], "nothing: no such volume"),
        (["mount", "ro-one", "MNT", "--rw"], "vg/ro-one: LVM permits no writing to it"),
        (["umount", "MNT"], "MNT: not mounted by thinfs lvm mount"),
        (["umount", "/"], "/: not mounted by thinfs lvm mount"),
    ],
)
def test_what_cannot_be_mounted_is_refused(
    root: Thinfs, place: Path, world: World, words: list[str], line: str
) -> None:
    paths, mountpoint = world.write(place), str(place / "mnt")
    done = root(*paths, *(word.replace("MNT", mountpoint) for word in words))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"thinfs lvm {words[0]}: {line.replace('MNT', mountpoint)}")
    assert len(done.stderr.splitlines()) == 1


def test_a_mount_that_fails_is_taken_back(root: Thinfs, place: Path, world: World) -> None:
    world.disks["pv0"].data[world.disks["pv0"].extents(0) : world.disks["pv0"].extents(0) + 4] = b"XFSB"  # and no more
    done = root(*world.write(place), "mount", "thick", str(place / "mnt"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert re.match(rf"thinfs lvm mount: mount {place}/mnt: ", done.stderr)


@pytest.fixture
def nobody(place: Path) -> Thinfs:
    prefix = as_nobody()
    if shutil.which("fuse2fs") is None:
        pytest.skip("fuse2fs is not installed")
    os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)
    os.chown(place / "mnt", pwd.getpwnam("nobody").pw_uid, -1)
    return runner(place, *prefix)


def test_an_ordinary_user_mounts_a_volume_of_disks_that_he_may_only_read(
    nobody: Thinfs, place: Path, world: World, tmp_path: Path
) -> None:
    paths, mountpoint = with_ext4(world, tmp_path).write(place), str(place / "mnt")
    for path in paths:
        os.chmod(path, 0o444)
    succeeded(nobody(*paths, "mount", "wide", mountpoint))
    try:
        read = subprocess.run([*as_nobody(), "cat", f"{mountpoint}/hello"], capture_output=True, text=True)
        assert read.stdout == "hello from a stripe\n"
    finally:
        succeeded(nobody("umount", mountpoint))
    done = nobody(*paths, "mount", "one", mountpoint)
    assert done.stderr == "thinfs lvm mount: vg/one: holds no file system that is known here; serve or export it\n"


@pytest.mark.parametrize("volume", ["snap_vm-100-disk-0_before", "vm-101-disk-0"], ids=["ext4", "xfs"])
def test_every_file_of_a_mounted_volume_is_as_its_manifest_says(
    root: Thinfs, place: Path, proxmox: list[Path], volume: str
) -> None:
    before = digests(proxmox)
    succeeded(root(*map(str, proxmox), "mount", volume, str(place / "mnt")))
    try:
        tree = list_directory(place / "mnt")
    finally:
        succeeded(root("umount", str(place / "mnt")))
    assert differences(manifest("lvm-proxmox", volume), plain(tree)) == []
    assert digests(proxmox) == before
