"""What a safe reader refuses, rule by rule (docs/reference/lvm.md, 9), in one line each; what is sound is read."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lvm.builder import UUIDS, VG_UUID, World, lv_section, lvm_crc
from tests.lvm.reading import Read, read_all
from thinfs.errors import BadMetadata, Busy, InvalidArgument, ThinfsError
from thinfs.lvm import in_use
from thinfs.lvm.image import DiskImage
from thinfs.lvm.opening import open_volumes
from thinfs.lvm.reading import Window

ON_PV0_ALONE = {"vg/thick", "vg/ro-one"}
ALL = {"vg/thick", "vg/wide", "vg/ro-one", "vg/one", "vg/two", "vg/guest"}


def only(read: Read, world: World, names: set[str]) -> None:
    """Just these are read, and hold what they should."""
    assert read.contents == {name: world.contents[name] for name in names}
    assert set(read.contents) | {name for name in read.refused if name in ALL} == ALL


def label_field(world: World, offset: int, value: bytes) -> None:
    """Of pv0's label, with its checksum made right again."""
    sector = world.disks["pv0"].data[512:1024]
    sector[offset : offset + len(value)] = value
    struct.pack_into("<I", sector, 16, lvm_crc(bytes(sector[20:])))
    world.disks["pv0"].data[512:1024] = sector


# -- 1: checksums, magics, numbers, offsets


def test_a_label_with_a_wrong_checksum_is_none(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    world.disks["pv0"].data[512 + 200] ^= 1
    read = read_all(world.store(tmp_path))
    assert any("pv0.img: label in sector 1: checksum" in line for line in read.problems)
    assert f"PV {UUIDS['pv0']} (pv0) is on none of the images" in read.refused["vg/thick"]
    only(read, world, set())


@pytest.mark.parametrize(
    ("offset", "value", "line"),
    [
        (8, struct.pack("<Q", 2), "says it is in sector 2"),
        (24, b"LVM1 001", "type b'LVM1 001'"),
        (20, struct.pack("<I", 600), "header at byte 600"),
        (20, struct.pack("<I", 508), "PV_HEADER|header|bytes|stream"),
        (32, b"\xff" * 32, "is not a UUID"),
        (88, struct.pack("<QQ", 1, 1), "data areas"),
        (104, struct.pack("<QQ", 4096, 61440) * 3, "3 metadata areas"),
    ],
)
def test_a_label_that_contradicts_itself_is_none(
    world: World, tmp_path: Path, offset: int, value: bytes, line: str
) -> None:
    world.write(tmp_path)
    label_field(world, offset, value)
    read = read_all(world.store(tmp_path))
    found = [problem for problem in read.problems if "label in sector 1" in problem]
    assert len(found) == 1
    assert any(word in found[0] for word in line.split("|"))
    only(read, world, set())


def test_areas_without_an_end_are_refused(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    label_field(world, 72, struct.pack("<QQ", 65536, 1) * 27)
    read = read_all(world.store(tmp_path))
    assert any("label in sector 1" in problem for problem in read.problems)
    only(read, world, set())


def only_area_of_pv0(world: World) -> None:
    world.disks["pv1"].areas = []


def area_fault(world: World, tmp_path: Path) -> str:
    """Of the only metadata area; then there is no group at all."""
    read = read_all(world.store(tmp_path))
    assert read.contents == {}
    return read.problems[0]


def test_an_area_with_a_wrong_checksum_is_not_read(world: World, tmp_path: Path) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    world.disks["pv0"].data[4096 + 300] ^= 1
    assert "metadata area at byte 4096: checksum" in area_fault(world, tmp_path)


@pytest.mark.parametrize(
    ("offset", "value", "line"),
    [
        (4, b"?", "magic"),
        (20, struct.pack("<I", 2), "version 2"),
        (24, struct.pack("<Q", 8192), "at 8192"),
        (32, struct.pack("<Q", 8192), "says it is 8192 bytes"),
    ],
)
def test_an_area_that_contradicts_its_pv_is_not_read(
    world: World, tmp_path: Path, offset: int, value: bytes, line: str
) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    header = world.disks["pv0"].data[4096:4608]
    header[offset : offset + len(value)] = value
    struct.pack_into("<I", header, 0, lvm_crc(bytes(header[4:])))
    world.disks["pv0"].data[4096:4608] = header
    assert line in area_fault(world, tmp_path)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"offset": 256}, "not in 512.."),
        ({"offset": 61440}, "not in 512.."),
        ({"size": 61440}, "not in 512.."),
        ({"size": 0}, "not in 512.."),
        ({"size": 1 << 62}, "not in 512.."),
        ({"size": 100}, "checksum"),
        ({"crc": 1}, "checksum"),
    ],
)
def test_a_slot_outside_of_the_ring_or_with_a_wrong_checksum_is_not_read(
    world: World, tmp_path: Path, changed: dict[str, int], line: str
) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    world.disks["pv0"].write_area(0, world.raw_text(), **changed)
    assert line in area_fault(world, tmp_path)


def test_a_text_without_its_nul_is_not_read(world: World, tmp_path: Path) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    raw = world.raw_text()
    world.disks["pv0"].write_area(0, raw, size=len(raw), crc=lvm_crc(raw))
    assert "does not end with a NUL" in area_fault(world, tmp_path)


def test_a_text_that_is_not_utf_8_is_not_read(world: World, tmp_path: Path) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    world.disks["pv0"].write_area(0, world.raw_text() + b"# \xff\n")
    assert "is not UTF-8" in area_fault(world, tmp_path)


def test_an_area_past_the_end_of_its_disk_is_not_read(world: World, tmp_path: Path) -> None:
    only_area_of_pv0(world)
    world.write(tmp_path)
    world.disks["pv0"].areas = [(4096, 1 << 40)]
    world.disks["pv0"].write_label()
    assert "of a device of" in area_fault(world, tmp_path)


def test_an_area_that_is_to_be_ignored_is_ignored(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    world.disks["pv0"].write_area(0, b"nonsense", flags=1)
    read = read_all(world.store(tmp_path))
    only(read, world, ALL)


# -- 2: disks


def test_a_missing_disk_refuses_what_stands_on_it_and_nothing_else(world: World, tmp_path: Path) -> None:
    read = read_all(world.write(tmp_path)[:1])
    only(read, world, ON_PV0_ALONE)
    line = f"VG vg: PV {UUIDS['pv1']} (pv1) is on none of the images, last seen as /dev/pv1"
    assert read.problems == (line,)
    assert read.refused["vg/one"] == read.refused["vg/wide"] == line


def test_two_copies_of_a_disk_are_refused(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    copy = tmp_path / "copy.img"
    copy.write_bytes(Path(paths[1]).read_bytes())
    read = read_all([*paths, str(copy)])
    only(read, world, ON_PV0_ALONE)
    assert "one is a copy; give one of them" in read.refused["vg/one"]


def test_one_image_given_twice_is_refused(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    link = tmp_path / "link.img"
    link.symlink_to(paths[0])
    with pytest.raises(InvalidArgument, match=r"link\.img: given twice"):
        read_all([*paths, str(link)])


@pytest.mark.parametrize("cut", [512, 8192, 1 << 20])
def test_a_disk_that_was_cut_short_refuses_what_stands_on_it(world: World, tmp_path: Path, cut: int) -> None:
    paths = world.write(tmp_path)
    os.truncate(paths[1], os.path.getsize(paths[1]) - cut)
    read = read_all(paths)
    only(read, world, ON_PV0_ALONE)
    assert read.refused["vg/one"].startswith("VG vg: cut short:")


def test_a_disk_shorter_than_its_extents_is_refused_whatever_its_header_says(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    world.disks["pv1"].device_size = os.path.getsize(paths[1]) - 65536
    paths = world.write(tmp_path)
    os.truncate(paths[1], os.path.getsize(paths[1]) - 65536)
    read = read_all(paths)
    only(read, world, ON_PV0_ALONE)
    assert "its extents end at byte" in read.refused["vg/one"]


def test_a_disk_whose_data_begin_elsewhere_is_refused(world: World, tmp_path: Path) -> None:
    world.vg["physical_volumes"]["pv1"]["pe_start"] = 256
    world.vg["physical_volumes"]["pv1"]["pe_count"] = 38
    read = read_all(world.write(tmp_path))
    only(read, world, ON_PV0_ALONE)
    assert "data begin at byte 65536 by its header, at 131072 by the text" in read.refused["vg/one"]


# -- 3: texts that differ


def test_the_text_with_the_highest_seqno_is_the_groups_and_a_stale_one_is_said(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    old = world.raw_text().replace(b"seqno = 7", b"seqno = 6").replace(b'"pv0", 0', b'"pv0", 9')
    world.disks["pv0"].write_area(0, old)
    read = read_all(world.store(tmp_path))
    only(read, world, ALL)
    assert len(read.problems) == len(read.doubts) == 1
    assert "seqno 6 of VG vg, behind 7: not used" in read.problems[0]


def test_two_texts_of_one_seqno_refuse_the_group(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    world.disks["pv0"].write_area(0, world.raw_text().replace(b'"pv0", 0', b'"pv0", 9'))
    read = read_all(world.store(tmp_path))
    only(read, world, set())
    assert "differ, both have seqno 7" in read.refused["vg/thick"]


def test_two_groups_of_one_name_are_told_apart(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for name, uuid in UUIDS.items():
        world.disks[name].uuid = world.vg["physical_volumes"][name]["id"] = uuid.replace("-0", "-8").replace("-1", "-9")
    world.vg["id"] = second = VG_UUID.replace("2222", "7777")
    read = read_all([*paths, *world.write(other)])
    assert read.problems == ()
    assert read.contents == {
        f"{uuid}/{name[3:]}": data for uuid in (VG_UUID, second) for name, data in world.contents.items()
    }


def test_a_disk_that_two_groups_claim_is_read_for_neither(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    theirs = world.raw_text().replace(VG_UUID.encode(), VG_UUID.replace("2222", "7777").encode())
    world.disks["pv1"].write_area(0, theirs)
    read = read_all(world.store(tmp_path))
    assert read.contents == {}
    assert all("is claimed by VG vg" in line for line in read.problems)


# -- 4: status


@pytest.mark.parametrize("flag", ["PVMOVE", "LOCKED", "CONVERTING", "PARTIAL", "NEVER_HEARD_OF"])
def test_a_volume_of_unknown_status_is_refused(world: World, tmp_path: Path, flag: str) -> None:
    world.lvs["thick"]["status"].append(flag)
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/thick", "vg/guest"})
    assert read.refused["vg/thick"] == f"VG vg/thick: status {flag} is not known here"


def test_a_status_that_is_one_word_is_a_list_of_one(world: World, tmp_path: Path) -> None:
    world.lvs["thick"]["status"] = "VISIBLE"
    only(read_all(world.write(tmp_path)), world, ALL)


def test_flags_may_be_ignored(world: World, tmp_path: Path) -> None:
    world.lvs["thick"]["flags"] = ["ACTIVATION_SKIP", "NEVER_HEARD_OF"]
    only(read_all(world.write(tmp_path)), world, ALL)


def test_a_group_of_unknown_status_is_refused(world: World, tmp_path: Path) -> None:
    world.vg["status"].append("CLUSTERED")
    read = read_all(world.write(tmp_path))
    only(read, world, set())
    assert read.refused["vg/one"] == "VG vg: status CLUSTERED is not known here"


@pytest.mark.parametrize("where", ["status", "flags"])
def test_a_disk_that_the_group_went_on_without_is_not_read(world: World, tmp_path: Path, where: str) -> None:
    world.vg["physical_volumes"]["pv1"][where].append("MISSING")
    read = read_all(world.write(tmp_path))
    only(read, world, ON_PV0_ALONE)
    assert "status MISSING" in read.refused["vg/one"]


def test_an_exported_group_and_another_systems_are_read(world: World, tmp_path: Path) -> None:
    world.vg["status"].append("EXPORTED")
    world.vg["system_id"] = "elsewhere"
    world.vg["physical_volumes"]["pv0"]["status"].append("EXPORTED")
    only(read_all(world.write(tmp_path)), world, ALL)


# -- 5: types


@pytest.mark.parametrize(
    "kind",
    ["raid1", "raid5_ls", "mirror", "cache", "cache+CACHE_USES_CACHEVOL", "writecache", "vdo", "vdo-pool", "error"],
)
def test_a_type_that_is_not_read_is_named(world: World, tmp_path: Path, kind: str) -> None:
    world.lvs["thick"]["segment1"]["type"] = kind
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/thick", "vg/guest"})
    assert read.refused["vg/thick"] == f"VG vg/thick: {kind}: volumes of this type are not read"
    assert read.refused["vg/guest"] == read.refused["vg/thick"]


def test_a_pool_whose_data_are_cached_is_refused_with_its_volumes(world: World, tmp_path: Path) -> None:
    world.lvs["pool_tdata_corig"] = {**world.lvs["pool_tdata"], "id": "dddddd-3333-3333-3333-3333-3333-000098"}
    world.lvs["pool_tdata"] = lv_section(
        {"start_extent": 0, "extent_count": 16, "type": "cache+CACHE_USES_CACHEVOL"}
        | {"cache_pool": "fast_cvol", "origin": "pool_tdata_corig", "cache_mode": "writeback"},
        visible=False,
    )
    read = read_all(world.write(tmp_path))
    only(read, world, {"vg/thick", "vg/wide", "vg/ro-one"})
    assert "cache+CACHE_USES_CACHEVOL" in read.refused["vg/one"]
    assert read.refused["vg/pool_tdata_corig"] == (
        "VG vg/pool_tdata_corig: a part of pool_tdata (cache+CACHE_USES_CACHEVOL), no volume by itself"
    )


def _thick_snapshot(world: World, store: str) -> None:
    world.lvs["snapshot0"] = lv_section(
        {"start_extent": 0, "extent_count": 4, "type": "snapshot", "chunk_size": 8, "origin": "thick", store: "ro-one"},
    )


def test_the_store_of_a_thick_snapshot_is_no_volume_and_its_origin_is_one(world: World, tmp_path: Path) -> None:
    _thick_snapshot(world, "cow_store")
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/ro-one"})
    assert "a part of snapshot0 (snapshot)" in read.refused["vg/ro-one"]


def test_the_origin_of_a_thick_snapshot_that_is_being_merged_is_none(world: World, tmp_path: Path) -> None:
    _thick_snapshot(world, "merging_store")
    only(read_all(world.write(tmp_path)), world, ALL - {"vg/ro-one", "vg/thick", "vg/guest"})


# -- 6: segments


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lvs: lvs["thick"]["segment1"].update(start_extent=1), "leaves a gap"),
        (lambda lvs: lvs["thick"].update(segment_count=2), "segment_count = 2"),
        (lambda lvs: lvs["thick"].update(segment_count=2, segment2=lvs["thick"]["segment1"]), "overlaps"),
        (lambda lvs: lvs["thick"]["segment1"].update(stripes=["pv0", 38]), "it has 40"),
        (lambda lvs: lvs["thick"]["segment1"].update(stripes=["pv9", 0]), "not in its group"),
        (lambda lvs: lvs["thick"]["segment1"].update(stripes=["pv0"]), "not a list of 1 names"),
        (lambda lvs: lvs["thick"]["segment1"].update(stripes=[0, "pv0"]), "is not a name and an extent"),
        (lambda lvs: lvs["thick"]["segment1"].update(extent_count=0), "extent_count = 0"),
        (lambda lvs: lvs["thick"]["segment1"].update(extent_count=1 << 60), "is not in 1.."),
        (lambda lvs: lvs["thick"]["segment1"].update(stripes=["thick", 0]), "stands on itself"),
        (lambda lvs: lvs["thick"]["segment1"].pop("type"), "type is missing"),
        (lambda lvs: lvs["thick"].pop("id"), "id is missing"),
        (lambda lvs: lvs["thick"].update(id="short"), "is not a UUID"),
    ],
)
def test_segments_that_cannot_be_are_refused(
    world: World, tmp_path: Path, change: Callable[[object], object], line: str
) -> None:
    change(world.lvs)
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/thick", "vg/guest"})
    assert line in read.refused["vg/thick"]


@pytest.mark.parametrize(("key", "value"), [("stripe_size", 24), ("stripe_size", 0), ("extent_count", 7)])
def test_stripes_that_do_not_come_out_even_are_refused(world: World, tmp_path: Path, key: str, value: int) -> None:
    world.lvs["wide"]["segment1"][key] = value
    only(read_all(world.write(tmp_path)), world, ALL - {"vg/wide"})


def test_two_volumes_on_one_extent_are_both_refused(world: World, tmp_path: Path) -> None:
    world.lvs["ro-one"]["segment1"]["stripes"] = ["pv0", 2]
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/ro-one", "vg/thick", "vg/guest"})
    assert read.refused["vg/ro-one"] == "VG vg/ro-one: extent 2 of pv0 is also thick's"
    assert read.refused["vg/thick"] == "VG vg/thick: extent 2 of pv0 is also ro-one's"


def test_volumes_that_stand_on_each_other_in_a_circle_are_refused(world: World, tmp_path: Path) -> None:
    world.lvs["guest"]["segment1"]["external_origin"] = "two"
    world.lvs["two"]["segment1"]["external_origin"] = "guest"
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/guest", "vg/two"})
    assert "stands on itself" in read.refused["vg/two"]


def test_a_tower_of_volumes_is_refused_at_some_height(world: World, tmp_path: Path) -> None:
    for i in range(2000):
        world.lvs[f"floor{i}"] = lv_section(
            {**world.lvs["ro-one"]["segment1"], "stripes": [f"floor{i + 1}", 0] if i < 1999 else ["pv0", 30]}, number=i
        )
    for disk in world.disks.values():
        disk.size_bytes += 4 << 20
        disk.data += bytes(4 << 20)
        disk.areas = [(disk.size_bytes - (4 << 20), 4 << 20)]
    read = read_all(world.write(tmp_path))
    assert "volumes upon each other" in read.refused["vg/floor0"]
    assert {name: read.contents[name] for name in ALL} == world.contents


@pytest.mark.parametrize("pool", ["thick", "nowhere"])
def test_a_thin_whose_pool_is_none_is_refused(world: World, tmp_path: Path, pool: str) -> None:
    world.lvs["one"]["segment1"]["thin_pool"] = pool
    read = read_all(world.write(tmp_path))
    only(read, world, ALL - {"vg/one"})
    assert read.refused["vg/one"] == f"VG vg/one: its thin_pool '{pool}' is not a pool"


# -- 7, 8: what the pool says of itself (its transactions: test_transactions)


def test_a_pool_of_another_chunk_size_is_refused(world: World, tmp_path: Path) -> None:
    world.pool["chunk_size"] = 256
    read = read_all(world.write(tmp_path))
    only(read, world, {"vg/thick", "vg/wide", "vg/ro-one"})
    assert read.refused["vg/one"] == "pool vg/pool: chunk_size 256 sectors, its metadata have 128"


@pytest.mark.parametrize("part", ["pool_tdata", "pool_tmeta"])
def test_a_pool_larger_than_its_parts_is_refused(world: World, tmp_path: Path, part: str) -> None:
    lv = world.lvs[part]
    lv["segment_count"] = 1
    del lv["segment2"]
    if part == "pool_tdata":
        world.pool["extent_count"] = 8
    read = read_all(world.write(tmp_path))
    only(read, world, {"vg/thick", "vg/wide", "vg/ro-one"})
    assert f"vg/{part} has 524288 bytes" in read.refused["vg/one"]


def test_a_pool_that_needs_a_check_is_read_and_its_writing_is_in_doubt(
    changed_world: Callable[..., World], tmp_path: Path
) -> None:
    world = changed_world(lambda metadata: metadata.set_needs_check())
    read = read_all(world.write(tmp_path))
    only(read, world, ALL)
    assert read.doubts == ["pool vg/pool: needs_check is set"]


def test_a_volume_whose_mappings_are_damaged_is_refused_before_it_is_read(world: World, tmp_path: Path) -> None:
    from thinfs.blockdev import MemoryDevice
    from thinfs.tools.walk import PoolTrees

    paths = world.write(tmp_path)
    with open_volumes(paths) as (volumes, _):
        tmeta = volumes.open(volumes.find("pool_tmeta"))
        device = MemoryDevice(tmeta.size_bytes)
        device.write(0, tmeta.read(0, tmeta.size_bytes))
    root = PoolTrees.open(device).roots()[2]
    block = root * 4096 // 65536
    pv, first = ("pv1", 12 + block) if block < 8 else ("pv1", 4 + block - 8)
    world.disks[pv].data[world.disks[pv].extents(first) + root * 4096 % 65536 + 100] ^= 1
    read = read_all(world.store(tmp_path))
    only(read, world, ALL - {"vg/two"})
    assert f"metadata block {root}: btree node checksum" in read.refused["vg/two"]


def test_a_pool_without_a_superblock_is_refused(world: World, tmp_path: Path) -> None:
    start = world.disks["pv1"].extents(12)
    world.disks["pv1"].data[start : start + 4096] = bytes(4096)
    read = read_all(world.write(tmp_path))
    only(read, world, {"vg/thick", "vg/wide", "vg/ro-one"})
    assert read.refused["vg/one"].startswith("pool vg/pool: metadata block 0: ")


# -- 9: disks in use


def test_a_disk_that_a_process_has_open_for_writing_is_refused(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    with (
        open(paths[1], "r+b"),
        pytest.raises(Busy, match=r"pv1\.img: in use by a process that has it open for writing"),
    ):
        read_all(paths)
    assert read_all(paths).contents == world.contents


def test_a_disk_that_thinfs_itself_writes_to_is_refused(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    with open(paths[1], "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy, match=r"pv1\.img: in use by another process"):
            read_all(paths)


def test_a_disk_with_a_lock_as_qemu_takes_it_is_refused(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    script = (
        "import fcntl, struct, sys; f = open(sys.argv[1], 'r+b');"
        "fcntl.fcntl(f, 37, struct.pack('hhqqi', fcntl.F_WRLCK, 0, 201, 1, 0)); print(flush=True); input()"
    )
    holder = subprocess.Popen(
        ["/usr/bin/python3", "-c", script, paths[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Busy, match=r"pv0\.img: in use by a process that has locked it"):
            read_all(paths)
    finally:
        holder.communicate(b"\n", timeout=30)


def test_as_long_as_a_disk_is_read_thinfs_itself_does_not_write_to_it(world: World, tmp_path: Path) -> None:
    from thinfs.blockdev import FileDevice

    paths = world.write(tmp_path)
    with DiskImage(paths[0]), pytest.raises(Busy):
        FileDevice(paths[0])


def test_a_group_that_is_active_on_this_machine_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As device-mapper of the kernel shows it in sysfs, which no machine of ours has."""
    paths = world.write(tmp_path)
    uuid = tmp_path / "block/dm-3/dm/uuid"
    uuid.parent.mkdir(parents=True)
    monkeypatch.setattr(in_use, "SYS_BLOCK", tmp_path / "block")
    uuid.write_text("LVM-" + "x" * 32 + "dddddd33333333333333333333000001\n")
    assert read_all(paths).contents == world.contents
    uuid.write_text("LVM-" + VG_UUID.replace("-", "") + "dddddd33333333333333333333000001\n")
    with pytest.raises(Busy, match=r"VG vg: active on this machine \(dm-3\); vgchange -an vg first"):
        read_all(paths)


@pytest.fixture
def attached() -> Iterator[Callable[..., str]]:
    """Attach a loop device."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loop devices")
    with ExitStack() as stack:

        def attach(*words: str) -> str:
            done = subprocess.run(["losetup", "--show", "-f", *words], check=True, capture_output=True, text=True)
            device = done.stdout.strip()
            stack.callback(subprocess.run, ["losetup", "-d", device], check=True)
            return device

        yield attach


def test_an_image_under_a_loop_device_that_can_be_written_is_refused(
    world: World, tmp_path: Path, attached: Callable[..., str]
) -> None:
    paths = world.write(tmp_path)
    attached("-r", paths[0])
    assert read_all(paths).contents == world.contents
    device = attached(paths[1])
    with pytest.raises(Busy, match=rf"pv1\.img: in use by {device}"):
        read_all(paths)


def test_block_devices_are_disks_like_images(world: World, tmp_path: Path, attached: Callable[..., str]) -> None:
    paths = world.write(tmp_path)
    devices = [attached("-r", paths[0]), attached(paths[1])]
    assert read_all(devices).contents == world.contents


# -- 11: what only looks like a disk of ours


def test_a_group_that_machines_share_by_a_lock_is_refused(world: World, tmp_path: Path) -> None:
    world.vg["lock_type"] = "sanlock"
    read = read_all(world.write(tmp_path))
    only(read, world, set())
    assert "lock_type 'sanlock'" in read.refused["vg/thick"]


def test_a_leg_of_an_md_array_is_not_taken_for_its_pv(world: World, tmp_path: Path) -> None:
    disk = world.disks["pv0"]
    disk.device_size = disk.size_bytes
    world.write(tmp_path)
    disk.data += bytes(128 << 10)
    place = (len(disk.data) - 8192) & ~4095
    disk.data[place : place + 4] = bytes.fromhex("fc4e2ba9")
    read = read_all(world.store(tmp_path))
    only(read, world, set())
    assert any("a member of an md array" in line for line in read.problems)


def test_an_encrypted_disk_is_named(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    world.disks["pv0"].data[:6] = b"LUKS\xba\xbe"
    read = read_all(world.store(tmp_path))
    only(read, world, set())
    assert any("LUKS (encrypted)" in line for line in read.problems)


@pytest.mark.parametrize(("magic", "kind"), [(b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk")])
def test_an_image_that_is_not_raw_is_refused_with_the_remedy(tmp_path: Path, magic: bytes, kind: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(magic.ljust(65536, b"\0"))
    with pytest.raises(InvalidArgument, match=f"a {kind} image; make it raw: qemu-img convert -O raw"):
        read_all([str(path)])


@pytest.mark.parametrize("path", ["/nonexistent", "/dev/null", "/", "/etc/passwd/x"])
def test_what_is_no_disk_is_refused(path: str) -> None:
    with pytest.raises(ThinfsError, match=path):
        read_all([path])


def test_a_tree_that_leads_to_one_node_from_many_places_is_refused_before_it_is_read(
    world: World, tmp_path: Path
) -> None:
    """Each level of such a tree would take 250 times the time of the one below."""
    from thinfs.blockdev import MemoryDevice
    from thinfs.lvm.thin_volume import Nodes, ThinVolume
    from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode
    from thinfs.ondisk.superblock import Superblock
    from thinfs.tools.walk import PoolTrees

    device = MemoryDevice(1 << 20)
    for level in range(5):
        node = BtreeNode.blank(INTERNAL_NODE if level else LEAF_NODE, 8)
        node.nr_entries = 200
        for i in range(200):
            node.keys[i], node.values[i] = i, level - 1 if level else 0
        device.write(level * 4096, node.build(level))
    nodes = Nodes(PoolTrees(device, Superblock(), 16))
    data = Window("data", DiskImage(world.write(tmp_path)[0]), 0, 1 << 20)
    volume = ThinVolume("vg/lv", 1 << 40, nodes, 4, data, 65536, 16, None)
    with pytest.raises(BadMetadata, match=r"outside \d+\.\.\d+"):
        volume.verify({})
