"""A container mounted by `thinfs docker mount`, as root: its files, what stays, what goes, what fails."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Machine
from tests.docker.crashes import digests, mappings_of, metadata_file, transaction_id
from tests.thin_tools import accepted
from thinfs.cli.tree_listing import differences, list_directory, read_manifest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")

MANIFEST = Path(__file__).parents[1] / "data/docker-ext4-clean/manifest-c2.tsv"


@pytest.fixture
def mountpoint(mounted: Machine, tmp_path: Path) -> "Path":
    path = tmp_path / "container"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def unmounted(mounted: Machine, mountpoint: Path):  # type: ignore[no-untyped-def]
    """Before the server of `mounted` ends."""
    yield
    if os.path.ismount(mountpoint):
        subprocess.run(["umount", mountpoint], check=True)
    assert [path for path in Path("/dev/mapper").glob("docker-*") if not path.exists()] == []


def succeeded(machine: Machine, *words: str) -> str:
    run = machine.thinfs("docker", *words)
    assert run.returncode == 0, run.stdout + machine.log()
    return run.stdout


def test_a_mounted_container_has_every_file_of_its_manifest_and_goes_without_a_trace(
    mounted: Machine, whole: Path, mountpoint: Path
) -> None:
    before, files = mappings_of(whole), digests(whole)
    answer = succeeded(mounted, "mount", str(whole), "c2", str(mountpoint))
    assert answer == f"c2 is at {mountpoint}, its files below {mountpoint}/rootfs (device 1024)\n"
    with MANIFEST.open(encoding="utf-8") as lines:
        manifest = read_manifest(lines)
    assert len(manifest) == 138
    assert differences(manifest, list_directory(mountpoint / "rootfs")) == []
    with pytest.raises(OSError, match="Read-only file system"):
        (mountpoint / "rootfs/new").touch()
    assert succeeded(mounted, "umount", str(mountpoint)) == f"{mountpoint}: unmounted, device 1024 removed\n"
    assert mounted.prints("ls") == "No devices found\n"
    assert mappings_of(whole) == before
    changed = {name for name, digest in digests(whole).items() if files.get(name) != digest}
    assert changed <= {"devicemapper/devicemapper/metadata", "devicemapper/devicemapper/data"}
    assert transaction_id(whole) == 39
    accepted(metadata_file(whole))


def test_two_containers_are_mounted_side_by_side(mounted: Machine, whole: Path, mountpoint: Path) -> None:
    other = mountpoint.with_name("other")
    other.mkdir()
    succeeded(mounted, "mount", str(whole), "c1", str(mountpoint))
    try:
        succeeded(mounted, "mount", str(whole), "c2", str(other))
        assert (other / "rootfs/c2.txt").read_text() == "hello-from-c2\n"
        assert (mountpoint / "rootfs/c1.txt").read_text() == "hello-from-c1\n"
        listed = succeeded(mounted, "list", str(whole))
        assert "in use by another process of thinfs" in listed
        assert "problem:" not in listed
        succeeded(mounted, "umount", str(other))
    finally:
        if os.path.ismount(other):
            subprocess.run(["umount", other], check=True)
    succeeded(mounted, "umount", str(mountpoint))


def test_what_is_written_to_a_scratch_snapshot_is_gone(mounted: Machine, whole: Path, mountpoint: Path) -> None:
    before = mappings_of(whole)
    succeeded(mounted, "mount", "--rw", str(whole), "c2", str(mountpoint))
    (mountpoint / "rootfs/new").write_text("scratch")
    succeeded(mounted, "umount", str(mountpoint))
    assert mappings_of(whole) == before


def test_what_is_written_to_a_snapshot_with_a_name_stays_in_it_alone(
    mounted: Machine, whole: Path, mountpoint: Path
) -> None:
    before = mappings_of(whole)
    succeeded(mounted, "snapshot", str(whole), "c2", "--name", "mine")
    succeeded(mounted, "mount", "--rw", str(whole), "mine", str(mountpoint))
    (mountpoint / "rootfs/new").write_text("kept")
    assert succeeded(mounted, "umount", str(mountpoint)).endswith("device 1024 kept\n")
    succeeded(mounted, "mount", str(whole), "mine", str(mountpoint))
    assert (mountpoint / "rootfs/new").read_text() == "kept"
    succeeded(mounted, "umount", str(mountpoint))
    succeeded(mounted, "mount", str(whole), "c2", str(mountpoint))
    assert not (mountpoint / "rootfs/new").exists()
    succeeded(mounted, "umount", str(mountpoint))
    after = mappings_of(whole)
    assert set(after) == {*before, 1024}
    assert {dev_id: after[dev_id] for dev_id in before} == before


def test_a_snapshot_in_use_is_mounted_a_second_time_as_it_is_now(
    mounted: Machine, whole: Path, mountpoint: Path
) -> None:
    other = mountpoint.with_name("other")
    other.mkdir()
    succeeded(mounted, "snapshot", str(whole), "c2", "--name", "mine")
    succeeded(mounted, "mount", "--rw", str(whole), "mine", str(mountpoint))
    try:
        (mountpoint / "rootfs/new").write_text("so far")
        succeeded(mounted, "mount", str(whole), "mine", str(other))
        (mountpoint / "rootfs/new").write_text("later")
        assert (other / "rootfs/new").read_text() == "so far"
        succeeded(mounted, "umount", str(other))
    finally:
        if os.path.ismount(other):
            subprocess.run(["umount", other], check=True)
    succeeded(mounted, "umount", str(mountpoint))


def test_a_mount_that_fails_is_taken_back(mounted: Machine, whole: Path, mountpoint: Path) -> None:
    (whole / "devicemapper/devicemapper/data").unlink()
    with (whole / "devicemapper/devicemapper/data").open("wb") as file:
        file.truncate(512 << 20)  # no file system in it
    before = mappings_of(whole)
    run = mounted.thinfs("docker", "mount", str(whole), "c2", str(mountpoint))
    assert run.returncode == 1
    assert re.fullmatch(rf"thinfs docker mount: mount {mountpoint}: .*\n", run.stdout)
    assert mounted.prints("ls") == "No devices found\n"
    assert mappings_of(whole) == before


def test_a_mount_point_that_is_missing_is_refused_before_anything_is_done(
    mounted: Machine, whole: Path, mountpoint: Path
) -> None:
    files = digests(whole)
    run = mounted.thinfs("docker", "mount", str(whole), "c2", f"{mountpoint}/nowhere")
    assert (run.returncode, run.stdout) == (1, f"thinfs docker mount: {mountpoint}/nowhere: not a directory\n")
    assert digests(whole) == files


def test_another_mount_point_is_not_unmounted(mounted: Machine, mountpoint: Path) -> None:
    run = mounted.thinfs("docker", "umount", str(mountpoint))
    assert (run.returncode, run.stdout) == (
        1,
        f"thinfs docker umount: {mountpoint}: not mounted by thinfs docker mount\n",
    )
