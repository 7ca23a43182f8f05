"""A Docker directory whose pool is a thin pool of LVM ("direct-lvm"): opened through the pool's parts as served."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Machine, machine, mounted
from tests.docker.conftest import original
from tests.docker.test_mounts import MANIFEST
from tests.lvm.builder import UUIDS, VG_UUID, Disk, Text, lv_section, text_of
from tests.lvm.reading import read_all
from tests.lvm.test_real_sets import digests
from thinfs.cli.tree_listing import differences, list_directory, read_manifest

__all__ = ["machine", "mounted", "original"]

EXTENT = 1 << 20
START = 1 << 20


def lvm_disk(docker: Path, path: Path, transaction_id: int = 0) -> str:
    """The pool of the directory on a disk of LVM's, as Docker's set-up of direct-lvm has it."""
    parts = {name: docker / "devicemapper/devicemapper" / name for name in ("data", "metadata")}
    extents = {name: -(-part.stat().st_size // EXTENT) for name, part in parts.items()}
    subprocess.run(["truncate", "-s", str(START + sum(extents.values()) * EXTENT), path], check=True)
    begin = 0
    lvs: Text = {}
    for number, (name, part) in enumerate(parts.items(), 1):
        seek = START // 65536 + begin * (EXTENT // 65536)
        command = ["dd", f"if={part}", f"of={path}", "bs=64k", f"seek={seek}", "conv=notrunc,sparse", "status=none"]
        subprocess.run(command, check=True)
        segment: Text = {
            "start_extent": 0,
            "extent_count": extents[name],
            "type": "striped",
            "stripe_count": 1,
        }
        lvs[{"data": "thinpool_tdata", "metadata": "thinpool_tmeta"}[name]] = lv_section(
            {**segment, "stripes": ["pv0", begin]}, visible=False, number=number
        )
        begin += extents[name]
    pool: Text = {"start_extent": 0, "extent_count": extents["data"], "type": "thin-pool", "metadata": "thinpool_tmeta"}
    pool |= {"pool": "thinpool_tdata", "transaction_id": transaction_id, "chunk_size": 128, "discards": "passdown"}
    lvs["thinpool"] = lv_section(pool, number=3)
    pv: Text = {"id": UUIDS["pv0"], "device": "/dev/sdb", "status": ["ALLOCATABLE"], "flags": []}
    pv |= {"pe_start": START // 512, "pe_count": begin}
    group: Text = {"id": VG_UUID, "seqno": 1, "format": "lvm2", "status": ["READ", "WRITE"], "flags": []}
    group |= {"extent_size": EXTENT // 512, "physical_volumes": {"pv0": pv}, "logical_volumes": lvs}
    text = {"docker": group, "contents": "Text Format Volume Group", "version": 1}
    disk = Disk(UUIDS["pv0"], START)
    disk.device_size, disk.pe_start = START + begin * EXTENT, START
    disk.write_label()
    disk.write_area(0, text_of(text).encode())
    with path.open("r+b") as file:
        file.write(disk.data)
    return str(path)


def test_a_pool_without_volumes_of_lvms_has_a_transaction_of_its_own(original: Path, tmp_path: Path) -> None:
    read = read_all([lvm_disk(original, tmp_path / "sdb.img")])
    assert (read.refused, read.problems, read.doubts) == ({}, (), [])


def test_one_that_lvm_has_counted_transactions_of_is_held_to_them(original: Path, tmp_path: Path) -> None:
    read = read_all([lvm_disk(original, tmp_path / "sdb.img", 7)])
    assert "transaction_id is 39, while expected 7" in read.refused["docker/thinpool"]


@pytest.fixture
def opened(mounted: Machine, original: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Words for `thinfs docker`: the directory without its pool's files, and the pool's parts as they are served."""

    def opened(*options: str) -> list[str]:
        image, directory = lvm_disk(original, tmp_path / "sdb.img"), tmp_path / "docker"
        served = Machine(tmp_path / "parts", {**mounted.environment, "THINFS_MOUNT": str(tmp_path / "parts")})
        done = served.thinfs("lvm", image, "serve", "thinpool_tmeta", "thinpool_tdata", "--files-only", *options)
        assert done.returncode == 0, done.stdout
        subprocess.run(["cp", "-r", "--sparse=always", original, directory], check=True)
        shutil.rmtree(directory / "devicemapper/devicemapper")
        parts = [f"{served.mount_dir}/docker-thinpool_{part}" for part in ("tmeta", "tdata")]
        return [str(directory), "--pool", *parts]

    return opened


@pytest.fixture(autouse=True)
def stopped(mounted: Machine, tmp_path: Path):  # type: ignore[no-untyped-def]
    yield
    mounted.thinfs("stop")
    mounted.thinfs("stop", "--mount", str(tmp_path / "parts"))


def test_docker_lists_it_as_if_the_pool_were_in_its_files(
    mounted: Machine, original: Path, opened: Callable[..., list[str]]
) -> None:
    listed = mounted.thinfs("docker", "list", *opened())
    assert (listed.returncode, listed.stdout) == (0, mounted.thinfs("docker", "list", str(original)).stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_a_container_is_mounted_out_of_it_over_an_overlay(
    mounted: Machine, opened: Callable[..., list[str]], tmp_path: Path
) -> None:
    words, mountpoint = opened("--overlay", str(tmp_path / "overlay")), tmp_path / "container"
    before = digests([tmp_path / "sdb.img"])
    mountpoint.mkdir()
    done = mounted.thinfs("docker", "mount", words[0], "c2", str(mountpoint), *words[1:])
    assert done.returncode == 0, done.stdout + mounted.log()
    try:
        with MANIFEST.open(encoding="utf-8") as lines:
            manifest = read_manifest(lines)
        assert differences(manifest, list_directory(mountpoint / "rootfs")) == []
    finally:
        done = mounted.thinfs("docker", "umount", str(mountpoint))
    assert done.returncode == 0, done.stdout
    assert digests([tmp_path / "sdb.img"]) == before
