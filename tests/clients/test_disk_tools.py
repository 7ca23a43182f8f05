"""qemu-img, cp, dd, blkdiscard and fallocate on DIR/NAME and /dev/mapper/NAME: holes are holes, discards unmap."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run

SIZE = 64 * MIB
BLOCK = 65536


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A raw image of SIZE with data in [1 MiB, 3 MiB) and in its last block."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    path = tmp_path / "sparse.raw"
    with path.open("wb") as image:
        image.truncate(SIZE)
        image.seek(MIB)
        image.write(random.Random(seed).randbytes(2 * MIB))
        image.seek(SIZE - BLOCK)
        image.write(random.Random(seed + 1).randbytes(BLOCK))
    return path


NR_DATA_BLOCKS = 2 * MIB // BLOCK + 1


def extents(volume: Path) -> list[tuple[int, int]]:
    """(begin, end) of the data in a file, by SEEK_DATA and SEEK_HOLE."""
    found: list[tuple[int, int]] = []
    with volume.open("rb") as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return found
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.append((begin, end))


def test_qemu_img_converts_onto_a_volume_and_maps_its_holes(volumes: Volumes, sparse: Path) -> None:
    need("qemu-img")
    volume = volumes.create_thin("t", SIZE)
    run("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", sparse, volume)
    assert volumes.used_data_blocks() == NR_DATA_BLOCKS
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", sparse, volume)
    maps = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", volume))
    assert [(entry["start"], entry["start"] + entry["length"]) for entry in maps if entry["data"]] == extents(volume)
    assert extents(volume) == [(MIB, 3 * MIB), (SIZE - BLOCK, SIZE)]


def test_qemu_img_converts_a_volume_to_qcow2_and_back(volumes: Volumes, sparse: Path, tmp_path: Path) -> None:
    need("qemu-img")
    volume = volumes.create_thin("t", SIZE)
    run("dd", f"if={sparse}", f"of={volume}", "bs=64k", "conv=notrunc,sparse", "status=none")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", volume, tmp_path / "copy.qcow2")
    assert (tmp_path / "copy.qcow2").stat().st_blocks * 512 < 4 * MIB
    other = volumes.create_thin("u", SIZE)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", tmp_path / "copy.qcow2", other)
    run("cmp", sparse, other)


def test_cp_sparse_keeps_the_holes_in_both_directions(volumes: Volumes, sparse: Path, tmp_path: Path) -> None:
    volume = volumes.create_thin("t", SIZE)
    run("cp", "--sparse=always", sparse, volume)
    run("cmp", sparse, volume)
    assert volumes.used_data_blocks() == NR_DATA_BLOCKS
    run("cp", "--sparse=always", volume, tmp_path / "copy")
    run("cmp", sparse, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 <= NR_DATA_BLOCKS * BLOCK


def test_fallocate_punches_zeroes_and_provisions(volumes: Volumes) -> None:
    volume = volumes.create_thin("t", SIZE)
    run("fallocate", "-n", "-o", "0", "-l", str(4 * MIB), volume)
    assert volumes.used_data_blocks() == 4 * MIB // BLOCK
    volume_bytes = b"\xa5" * (4 * MIB)
    with volume.open("r+b") as file:
        file.write(volume_bytes)
    run("fallocate", "-p", "-o", str(BLOCK - 100), "-l", str(BLOCK + 200), volume)
    assert volumes.used_data_blocks() == 4 * MIB // BLOCK - 1
    run("fallocate", "-z", "-o", str(MIB + 5), "-l", str(MIB), volume)
    with volume.open("rb") as file:
        data = file.read(4 * MIB)
    expected = bytearray(volume_bytes)
    expected[BLOCK - 100 : 2 * BLOCK + 100] = bytes(BLOCK + 200)
    expected[MIB + 5 : 2 * MIB + 5] = bytes(MIB)
    assert data == expected


def test_blkdiscard_of_ranges_and_of_the_whole_device_unmaps(volumes: Volumes) -> None:
    need("blkdiscard")
    need_block_devices()
    volumes.create_thin("t", SIZE)
    node = volumes.node("t")
    run("dd", "if=/dev/urandom", f"of={node}", "bs=1M", "count=16", "oflag=direct", "status=none")
    assert volumes.used_data_blocks() == 16 * MIB // BLOCK
    run("blkdiscard", "-o", str(4 * MIB), "-l", str(2 * MIB), node)
    assert volumes.used_data_blocks() == 14 * MIB // BLOCK
    run("blkdiscard", "-z", "-o", "0", "-l", str(MIB), node)
    assert node.read_bytes()[:MIB] == bytes(MIB)
    assert node.read_bytes()[4 * MIB : 6 * MIB] == bytes(2 * MIB)
    run("blkdiscard", node)
    assert volumes.used_data_blocks() == 0
    assert not any(node.read_bytes())


def test_blkdiscard_of_a_snapshot_leaves_its_origin(volumes: Volumes) -> None:
    need("blkdiscard")
    need_block_devices()
    volumes.create_thin("t", SIZE)
    run("dd", "if=/dev/urandom", f"of={volumes.node('t')}", "bs=1M", "count=4", "oflag=direct", "status=none")
    before = volumes.file("t").read_bytes()
    volumes.create_snap("s", "t", SIZE)
    run("blkdiscard", volumes.node("s"))
    assert volumes.file("t").read_bytes() == before
    assert not any(volumes.file("s").read_bytes())
    assert volumes.used_data_blocks() == 4 * MIB // BLOCK


def test_dd_past_the_end_writes_what_fits_and_says_no_space(volumes: Volumes) -> None:
    volume = volumes.create_thin("t", SIZE)
    failed = subprocess.run(
        ["dd", "if=/dev/zero", f"of={volume}", "bs=1M", "seek=63", "count=2", "conv=notrunc"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr
    assert volume.stat().st_size == SIZE
