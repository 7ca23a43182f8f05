"""Disks that Debian's lvm2 made on a kernel's dm-thin: every byte, and every file, as the kernel showed them."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lvm.conftest import SETS
from tests.lvm.reading import sums_of
from tests.lvm.test_command import refused, run
from thinfs.cli.tree_listing import Entry, differences, list_directory, list_ext4

PROXMOX = ("swap", "root", "vm-100-disk-0", "snap_vm-100-disk-0_before", "vm-101-disk-0", "base-9000-disk-0",
           "vm-102-disk-0", "vm-100-state-before", "vm-103-disk-0")  # fmt: skip
TWO_PVS = ("golden", "share", "wedge", "share-monday", "guest1", "guest1-snap", "big")


def sums(name: str) -> dict[str, str]:
    lines = (SETS / name / "volumes.sha256").read_text().splitlines()
    return {device.removeprefix("/dev/"): digest for digest, device in map(str.split, lines)}


def manifest(name: str, volume: str) -> dict[str, Entry]:
    """Its columns are ours but for the heading, and that what is no file or link has nothing in the last."""
    entries = {}
    for line in (SETS / name / f"manifest-{volume}.tsv").read_text().splitlines()[1:]:
        path, kind, mode, uid, gid, size, contents = line.split("\t")
        entries[path] = Entry(kind, int(mode, 8), int(uid), int(gid), int(size) if kind == "f" else 0, contents or "-")
    return entries


def plain(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Modes without the type; hard links are files like others in these manifests."""
    return {
        path: Entry(e.kind, e.mode & 0o7777, e.uid, e.gid, e.size_bytes, e.contents, number)
        for number, (path, e) in enumerate(tree.items())
    }


def digests(paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


@pytest.fixture(params=["lvm-proxmox", "lvm-two-pvs"])
def real(request: pytest.FixtureRequest) -> tuple[str, list[Path]]:
    return request.param, request.getfixturevalue({"lvm-proxmox": "proxmox", "lvm-two-pvs": "two_pvs"}[request.param])


def test_every_volume_is_byte_for_byte_what_the_kernel_showed(real: tuple[str, list[Path]]) -> None:
    name, paths = real
    assert sums_of([str(path) for path in paths]) == sums(name)


@pytest.mark.parametrize(
    ("name", "volume"),
    [("lvm-proxmox", volume) for volume in PROXMOX] + [("lvm-two-pvs", volume) for volume in TWO_PVS],
)
def test_every_file_of_an_exported_volume_is_as_its_manifest_says(
    name: str, volume: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths = request.getfixturevalue({"lvm-proxmox": "proxmox", "lvm-two-pvs": "two_pvs"}[name])
    if not (SETS / name / f"manifest-{volume}.tsv").exists():
        pytest.skip(f"{volume}: no file system on it")
    target = tmp_path / "volume"
    assert run(*map(str, paths), "export", volume, str(target)).returncode == 0
    if target.read_bytes()[:4] == b"XFSB":
        with mounted(target, tmp_path) as top:
            tree = list_directory(top)
    else:
        tree = list_ext4(target, "")
    wanted = manifest(name, volume)
    assert len(wanted) > 50
    assert differences(wanted, plain(tree)) == []


@contextmanager
def mounted(image: Path, tmp_path: Path) -> Iterator[Path]:
    """xfs: only the kernel reads it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts an xfs")
    top = tmp_path / "mounted"
    top.mkdir()
    done = subprocess.run(["mount", "-o", "ro,norecovery,loop", image, top], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this machine mounts no xfs: {done.stderr.strip()}")
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True)


def test_all_of_it_leaves_the_disks_byte_for_byte_as_they_were(real: tuple[str, list[Path]], tmp_path: Path) -> None:
    name, paths = real
    before = digests(paths)
    words = [str(path) for path in paths]
    for command in (["list", "--all"], ["check"], ["export", next(iter(sums(name))), str(tmp_path / "volume")]):
        done = run(*words, *command)
        assert (done.returncode, done.stderr) == (0, "")
    assert digests(paths) == before


def test_half_of_a_set_is_refused_in_one_line(two_pvs: list[Path], tmp_path: Path) -> None:
    for path, missing in ((two_pvs[0], "wQfXth-"), (two_pvs[1], "OpZfke-")):
        line = refused(run(str(path), "export", "nas/share", str(tmp_path / "volume")))
        assert line.startswith(f"thinfs lvm export: VG nas: PV {missing}")
        assert "is on none of the images" in line


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.1])
def test_a_set_that_was_cut_short_is_refused_in_one_line(proxmox: list[Path], tmp_path: Path, keep: float) -> None:
    cut = tmp_path / "cut.img"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", proxmox[0], cut], check=True)
    os.truncate(cut, int(cut.stat().st_size * keep))
    line = refused(run(str(cut), "export", "vm-100-disk-0", str(tmp_path / "volume")))
    assert "cut short" in line
