"""What is on the disks is read: every volume, from every place where LVM puts its labels and texts."""

import hashlib
import os
import struct
import zlib
from pathlib import Path

import pytest

from tests.lvm.builder import AREA, World
from tests.lvm.reading import read_all
from thinfs.lvm.opening import open_volumes

DISK_SECTORS = 12_000
FIRST = 2048  # sector of the partition


def test_every_volume_is_read_linear_striped_thin_snapshot_and_over_an_external_origin(
    world: World, tmp_path: Path
) -> None:
    read = read_all(world.write(tmp_path))
    assert read.contents == world.contents
    assert (read.refused, read.problems, read.doubts) == ({}, (), [])


def test_the_order_of_the_disks_does_not_matter(world: World, tmp_path: Path) -> None:
    assert read_all(world.write(tmp_path)[::-1]).contents == world.contents


@pytest.mark.parametrize("sector", range(4))
def test_a_label_may_be_in_each_of_the_first_four_sectors(world: World, tmp_path: Path, sector: int) -> None:
    world.disks["pv0"].label_sector = sector
    assert read_all(world.write(tmp_path)).contents == world.contents


def test_a_label_in_the_fifth_sector_is_none(world: World, tmp_path: Path) -> None:
    world.disks["pv0"].label_sector = 4
    assert any("is on none of the images" in line for line in read_all(world.write(tmp_path)).problems)


@pytest.mark.parametrize("before_end", [1, 512, 1000, 4000])
def test_a_text_may_pass_the_end_of_its_ring(world: World, tmp_path: Path, before_end: int) -> None:
    for disk in world.disks.values():
        disk.text_offset = AREA[1] - before_end
    assert read_all(world.write(tmp_path)).contents == world.contents


def test_a_disk_without_metadata_is_known_from_the_other(world: World, tmp_path: Path) -> None:
    world.disks["pv0"].areas = []
    read = read_all(world.write(tmp_path))
    assert (read.contents, read.problems) == (world.contents, ())


def test_a_disk_that_no_text_names_is_said(world: World, tmp_path: Path) -> None:
    for disk in world.disks.values():
        disk.areas = []
    read = read_all(world.write(tmp_path))
    assert read.contents == {}
    assert len(read.problems) == 2
    assert all("has no metadata of its own: give the other disks of its group too" in line for line in read.problems)


def test_a_fresh_disk_is_in_no_group(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    world.disks["pv1"].write_area(0, world.raw_text(), offset=0)
    world.disks["pv1"].uuid = "eeeeee-4444-4444-4444-4444-4444-eeeeee"
    world.disks["pv1"].write_label()
    read = read_all(world.store(tmp_path))
    assert any(
        "pv1.img: PV eeeeee-4444-4444-4444-4444-4444-eeeeee is in no volume group" in line for line in read.problems
    )


def test_a_second_area_serves_when_the_first_is_damaged_and_it_is_said(world: World, tmp_path: Path) -> None:
    for disk in world.disks.values():
        disk.areas = [AREA, (disk.size_bytes - 4096 - 61440, 61440)]
    world.write(tmp_path)
    for disk in world.disks.values():
        disk.data[AREA[0] + 100] ^= 1
    read = read_all(world.store(tmp_path))
    assert read.contents == world.contents
    assert len(read.problems) == 2
    assert all("metadata area at byte 4096: checksum" in line for line in read.problems)
    assert len(read.doubts) == 2


def test_a_text_that_was_never_committed_is_not_read(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    for disk in world.disks.values():
        disk.write_area(0, world.raw_text(), slot1_offset=20480)
        disk.data[4096 + 20480 : 4096 + 20490] = b"vg {broken"
    assert read_all(world.store(tmp_path)).contents == world.contents


def test_a_group_without_volumes_has_none(world: World, tmp_path: Path) -> None:
    del world.vg["logical_volumes"]
    read = read_all(world.write(tmp_path))
    assert (read.contents, read.problems) == ({}, ())


def test_a_volume_shorter_or_longer_than_what_its_device_maps_ends_where_the_text_says(
    world: World, tmp_path: Path
) -> None:
    world.lvs["one"]["segment1"]["extent_count"] = 2
    world.lvs["two"]["segment1"]["extent_count"] = 30
    read = read_all(world.write(tmp_path))
    assert read.contents["vg/one"] == world.contents["vg/one"][: 2 * 65536]
    assert read.contents["vg/two"] == world.contents["vg/two"] + bytes(20 * 65536)


def test_a_volume_may_stand_on_another(world: World, tmp_path: Path) -> None:
    world.lvs["thick"]["segment1"]["stripes"] = ["below", 0]
    world.lvs["below"] = {**world.lvs["ro-one"], "id": "dddddd-3333-3333-3333-3333-3333-000099"}
    world.lvs["below"]["segment1"] = {**world.lvs["ro-one"]["segment1"], "extent_count": 4, "stripes": ["pv0", 0]}
    assert read_all(world.write(tmp_path)).contents["vg/thick"] == world.contents["vg/thick"]


def test_reading_leaves_every_byte_and_every_time_of_the_disks_as_it_was(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    before = [(hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path).st_mtime_ns) for path in paths]
    for path in paths:
        os.chmod(path, 0o444)
    read_all(paths)
    after = [(hashlib.sha256(Path(path).read_bytes()).digest(), os.stat(path).st_mtime_ns) for path in paths]
    assert after == before


def test_any_range_of_a_volume_is_what_the_whole_has_there(world: World, tmp_path: Path) -> None:
    with open_volumes(world.write(tmp_path)) as (volumes, _):
        for name, whole in world.contents.items():
            readable = volumes.open(volumes.find(name))
            for begin, end in ((0, 1), (65535, 65537), (1000, 200_000), (8191, 8193), (len(whole) - 1, len(whole))):
                assert readable.read(begin, max(min(end, len(whole)) - begin, 0)) == whole[begin:end], (name, begin)


def test_what_is_in_no_data_range_reads_as_zeros(world: World, tmp_path: Path) -> None:
    with open_volumes(world.write(tmp_path)) as (volumes, _):
        for name, whole in world.contents.items():
            readable, position = volumes.open(volumes.find(name)), 0
            for begin, end in [*readable.data_ranges(0, len(whole)), (len(whole), len(whole))]:
                assert position <= begin <= end <= len(whole)
                assert not any(whole[position:begin]), (name, position, begin)
                position = end
        one = volumes.open(volumes.find("vg/one"))
        assert sum(end - begin for begin, end in one.data_ranges(0, one.size_bytes)) == 4 * 65536


def test_volumes_are_found_by_all_their_names(world: World, tmp_path: Path) -> None:
    with open_volumes(world.write(tmp_path)) as (volumes, _):
        for name in ("vg/ro-one", "ro-one", "/dev/vg/ro-one", "vg-ro--one", "/dev/mapper/vg-ro--one"):
            assert volumes.find(name).label == "vg/ro-one"
        assert volumes.file_name(volumes.find("ro-one")) == "vg-ro--one"


# -- partitions


def _mbr(*entries: tuple[int, int, int]) -> bytes:
    table = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def _gpt(disk: bytearray, sector_bytes: int, *partitions: tuple[int, int]) -> None:
    """Both headers; partitions as first and last LBA."""
    type_guid = bytes.fromhex("79d3d6e607f5c244a23c238f2a3df928")
    entries = b"".join(type_guid + bytes(range(16)) + struct.pack("<QQ", *one) + bytes(80) for one in partitions)
    entries = entries.ljust(128 * 128, b"\0")
    last = len(disk) // sector_bytes - 1
    for lba, entries_lba in ((1, 2), (last, last - 16384 // sector_bytes)):
        header = bytearray(92)
        struct.pack_into("<8sIII4xQQ", header, 0, b"EFI PART", 0x10000, 92, 0, lba, last + 1 - lba)
        struct.pack_into("<QIII", header, 72, entries_lba, 128, 128, zlib.crc32(entries))
        struct.pack_into("<I", header, 16, zlib.crc32(header))
        disk[lba * sector_bytes : lba * sector_bytes + 92] = header
        disk[entries_lba * sector_bytes : entries_lba * sector_bytes + len(entries)] = entries
    disk[:512] = _mbr((0xEE, 1, 0xFFFFFFFF))


def _partitioned(world: World, tmp_path: Path, start: int = FIRST) -> tuple[bytearray, list[str], Path]:
    """An empty disk with the first PV in it at sector `start`; the paths of both disks; its own path."""
    paths = world.write(tmp_path)
    disk = bytearray(DISK_SECTORS * 512)
    data = Path(paths[0]).read_bytes()
    disk[start * 512 : start * 512 + len(data)] = data
    return disk, paths, Path(paths[0])


def test_a_primary_partition_of_an_mbr_of_any_type(world: World, tmp_path: Path) -> None:
    disk, paths, path = _partitioned(world, tmp_path)
    disk[:512] = _mbr((0x83, FIRST, DISK_SECTORS - FIRST))
    path.write_bytes(disk)
    assert read_all(paths).contents == world.contents


def test_the_second_logical_partition_of_an_mbr(world: World, tmp_path: Path) -> None:
    disk, paths, path = _partitioned(world, tmp_path, 4096)
    disk[:512] = _mbr((0x05, 1000, DISK_SECTORS - 1000))
    disk[1000 * 512 : 1001 * 512] = _mbr((0x83, 10, 100), (0x05, 2000, DISK_SECTORS - 3000))
    disk[3000 * 512 : 3001 * 512] = _mbr((0x8E, 4096 - 3000, DISK_SECTORS - 4096), (0, 0, 0))
    path.write_bytes(disk)
    read = read_all(paths)
    assert (read.contents, read.problems) == (world.contents, ())


def test_a_chain_of_logical_partitions_that_never_ends_is_said(world: World, tmp_path: Path) -> None:
    disk, paths, path = _partitioned(world, tmp_path)
    disk[:512] = _mbr((0x8E, FIRST, DISK_SECTORS - FIRST - 100), (0x05, 1000, DISK_SECTORS - 1000))
    disk[1000 * 512 : 1001 * 512] = _mbr((0x83, 10, 100), (0x05, 0, 100))
    path.write_bytes(disk)
    read = read_all(paths)
    assert read.contents == world.contents
    assert any("never ends" in line for line in read.problems)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_partition_of_a_gpt_in_sectors_of_either_size(world: World, tmp_path: Path, sector_bytes: int) -> None:
    disk, paths, path = _partitioned(world, tmp_path)
    unit = sector_bytes // 512
    _gpt(disk, sector_bytes, (FIRST // unit, (DISK_SECTORS - 48) // unit - 1))
    path.write_bytes(disk)
    read = read_all(paths)
    assert (read.contents, read.problems) == (world.contents, ())


@pytest.mark.parametrize("place", [512 + 30, 512 + 90, 1024 + 10], ids=["header", "entries' checksum", "entries"])
def test_the_backup_of_a_damaged_gpt_is_used_and_it_is_said(world: World, tmp_path: Path, place: int) -> None:
    disk, paths, path = _partitioned(world, tmp_path)
    _gpt(disk, 512, (FIRST, DISK_SECTORS - 41))
    disk[place] ^= 1
    path.write_bytes(disk)
    read = read_all(paths)
    assert read.contents == world.contents
    assert any("backup is used" in line for line in read.problems)


def test_a_partition_that_ends_past_the_end_of_the_image_is_refused_as_cut_short(world: World, tmp_path: Path) -> None:
    disk, paths, path = _partitioned(world, tmp_path)
    disk[:512] = _mbr((0x8E, FIRST, DISK_SECTORS - FIRST))
    path.write_bytes(disk[: FIRST * 512 + world.disks["pv0"].size_bytes - 8192])
    read = read_all(paths)
    assert any("it was cut short" in line for line in read.problems)
    assert "cut short" in read.refused["vg/thick"]


def test_a_label_within_a_volume_is_not_looked_for(world: World, tmp_path: Path) -> None:
    """A guest's disk may hold LVM of its own, even with the very names."""
    paths = world.write(tmp_path)
    inner = bytearray(world.disks["pv1"].data)
    inner[512:1024] = inner[512:1024].replace(b"bbbbbb1111", b"bbbbbb9999")
    world.disks["pv0"].data[world.disks["pv0"].extents(20) : world.disks["pv0"].extents(21)] = inner[:65536]
    world.store(tmp_path)
    read = read_all(paths)
    assert (read.contents, read.problems) == (world.contents, ())
