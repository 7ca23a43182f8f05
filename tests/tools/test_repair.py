"""`thinfs repair`: what thin_repair brings back, and what it does not; older states; nothing is written in place."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.thin_tools import VERSIONS, accepted, answer
from tests.tools.against_thin_tools import blank, hurt, sound
from tests.tools.damage import damaged, rot_in_a_leaf
from tests.tools.pools import changing, make_pool, random_pool, write
from thinfs.blockdev import FileDevice
from thinfs.cli.main import run
from thinfs.steps import drive
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES


def repaired(pool: Path, *options: str) -> Path:
    """Accepted by all who check."""
    target = blank(pool.with_name("repaired"), pool.stat().st_size)
    assert run(["repair", "-i", str(pool), "-o", str(target), *options]) == 0
    assert run(["check", "-q", str(target)]) == 0
    for version in VERSIONS:
        assert answer("thin_check", target, version=version).returncode == 0
    return target


def dumped(pool: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    capfd.readouterr()
    assert run(["dump", *options, str(pool)]) == 0
    return capfd.readouterr().out


def test_a_random_pool_fares_as_with_thin_provisioning_tools(tmp_path: Path) -> None:
    """A sample of `make tools-campaign`."""
    pool = random_pool(tmp_path / "pool", 14, metadata_snapshot=True)
    assert sound(pool, tmp_path, 14).wrong == []


@pytest.mark.parametrize("kind", ["rot_in_a_leaf", "rot_in_the_superblock", "rot_in_the_details", "a_child_elsewhere"])
def test_a_damaged_pool_fares_no_worse_than_with_thin_provisioning_tools(tmp_path: Path, kind: str) -> None:
    pool = random_pool(tmp_path / "pool", 12)
    assert hurt(damaged(pool, tmp_path / "damaged", kind, 12), tmp_path, kind, kind).wrong == []


def test_a_volume_deleted_by_mistake_is_among_the_candidates_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool(tmp_path / "pool")
    with changing(pool) as metadata:
        for dev_id in (1, 2):
            metadata.create_thin(dev_id)
            write(metadata, dev_id, *range(0, 900, dev_id))
    before = dumped(pool, capfd)
    with changing(pool) as metadata:
        drive(metadata.delete_thin(2))
    assert 'dev_id="2"' not in dumped(pool, capfd)
    assert run(["repair", "-i", str(pool), "--list", "--json"]) == 0
    candidates = json.loads(capfd.readouterr().out)
    assert candidates[0]["origin"] == "superblock" and "2" not in candidates[0]["thins"]
    older = next(one for one in candidates if one["thins"].get("2") == 450 and not one["missing_nodes"])
    assert dumped(repaired(pool, "--mapping-root", str(older["mapping_root"])), capfd) == before


def test_a_pool_formatted_over_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The superblock and the first blocks are new; what it had lies behind them."""
    pool = random_pool(tmp_path / "pool", 3)
    before = dumped(pool, capfd)
    with pool.open("r+b") as file:
        file.write(bytes(METADATA_BLOCK_BYTES))
    with changing(pool) as metadata:
        metadata.resize_data(20_000)
    assert "<device" not in dumped(pool, capfd)
    assert run(["repair", "-i", str(pool), "--list", "--json"]) == 0
    candidates = [one for one in json.loads(capfd.readouterr().out) if one["origin"] == "found"]
    root = str(candidates[0]["mapping_root"])
    again = repaired(pool, "--mapping-root", root, "--transaction-id", "7")
    got = dumped(again, capfd).splitlines()
    assert got[1:] == before.splitlines()[1:]


def test_without_a_superblock_the_newest_state_is_taken_and_the_size_of_a_block_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = random_pool(tmp_path / "pool", 4)
    before = dumped(pool, capfd)
    with pool.open("r+b") as file:
        file.write(b"\xff" * METADATA_BLOCK_BYTES)
    target = str(blank(tmp_path / "target"))
    assert run(["repair", "-i", str(pool), "-o", target]) == 1
    assert capfd.readouterr().err == "thinfs repair: the superblock cannot be read: --data-block-size must be given\n"
    again = repaired(pool, "--data-block-size", "128", "--nr-data-blocks", "20000", "--transaction-id", "7")
    assert dumped(again, capfd).splitlines()[1:] == before.splitlines()[1:]


def test_shared_subtrees_stay_shared_where_thin_repair_finds_no_room(tmp_path: Path) -> None:
    """Thirty snapshots of 20,000 fragmented mappings: as many metadata blocks as one thin has, and a few."""
    pool = make_pool(tmp_path / "pool", metadata_bytes=2 << 20)
    with changing(pool) as metadata:
        metadata.create_thin(0)
        write(metadata, 0, *range(0, 30_000, 2))
        for dev_id in range(1, 30):
            metadata.create_snap(dev_id, 0)
            write(metadata, dev_id, 2 * dev_id)
    target = blank(tmp_path / "theirs", 2 << 20)
    assert answer("thin_repair", "-i", pool, "-o", target).returncode != 0
    repaired(pool)


def test_bit_rot_in_one_leaf_loses_what_is_in_it_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = make_pool(tmp_path / "pool")
    with changing(pool) as metadata:
        metadata.create_thin(1)
        write(metadata, 1, *range(2000))
    device = FileDevice(str(pool))
    rot_in_a_leaf(device, PoolTrees.open(device), Random(1))
    device.close()
    target = blank(tmp_path / "target")
    assert run(["repair", "--json", "-i", str(pool), "-o", str(target)]) == 0
    said = json.loads(capfd.readouterr().out)
    (lost,) = said["thins"][0]["lost"]
    nr_lost = min(lost["last"], 1999) + 1 - lost["begin"]
    assert 0 < nr_lost <= 252
    assert said["thins"][0]["mapped_blocks"] == 2000 - nr_lost
    accepted(target)
    assert dumped(pool, capfd, "--repair") == dumped(target, capfd)


def test_a_leaf_of_another_place_is_left_out(tmp_path: Path) -> None:
    """A child that is sound, met before where it belongs: below its second parent its keys are wrong."""
    pool = damaged(random_pool(tmp_path / "sound", 106), tmp_path / "pool", "a_child_elsewhere", 106)
    repaired(pool)


def test_all_roots_of_the_last_transaction_gone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = random_pool(tmp_path / "pool", 5)
    device = FileDevice(str(pool))
    superblock = PoolTrees.open(device).superblock
    for root in (superblock.data_mapping_root, superblock.device_details_root):
        device.write(root * METADATA_BLOCK_BYTES, bytes(METADATA_BLOCK_BYTES))
    device.close()
    assert "<device" in dumped(repaired(pool), capfd)
    assert answer("thin_repair", "-i", pool, "-o", blank(tmp_path / "theirs")).returncode != 0


def test_what_is_repaired_is_never_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = damaged(random_pool(tmp_path / "sound", 6), tmp_path / "pool", "rot_in_both_roots", 6)
    before = pool.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(pool)
    for output in (pool, link):
        assert run(["repair", "-i", str(pool), "-o", str(output)]) == 1
        assert "would be written over what is read" in capfd.readouterr().err
    repaired(pool)
    assert pool.read_bytes() == before


def test_a_target_that_is_too_small_is_said_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = random_pool(tmp_path / "pool", 7)
    target = blank(tmp_path / "target", 16 * METADATA_BLOCK_BYTES)
    assert run(["repair", "-i", str(pool), "-o", str(target)]) == 1
    assert capfd.readouterr().err == f"thinfs repair: {target}: its 16 metadata blocks are too few\n"
    assert run(["check", "-q", str(target)]) == 1


def test_leaks_are_given_back_and_nothing_else_changes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = random_pool(tmp_path / "pool", 9, metadata_snapshot=True)
    before = dumped(pool, capfd)
    with changing(pool) as metadata:
        metadata.inc_data_blocks(700, 703)
        metadata.begin_change()
        metadata.objects.tm.inc(metadata.objects.bottom.empty())
    assert run(["check", "-q", str(pool)]) == 1
    copy = tmp_path / "copy"
    shutil.copy(pool, copy)
    assert run(["check", "-q", "--auto-repair", str(pool)]) == 0
    assert run(["check", str(pool)]) == 0
    assert capfd.readouterr().err == ""
    for version in VERSIONS:
        assert answer("thin_check", pool, version=version).returncode == 0
    assert dumped(pool, capfd) == before
    for dev_id in (4001, 4002):  # and it is a pool to go on with
        with changing(pool) as metadata:
            metadata.create_thin(dev_id)
            write(metadata, dev_id, *range(50))
        assert run(["check", "-q", str(pool)]) == 0
    for other in ("--skip-mappings", "--super-block-only", "-m", "--ignore-non-fatal-errors"):
        assert run(["check", "--auto-repair", other, str(copy)]) == 1
    assert run(["check", "-q", str(copy)]) == 1
