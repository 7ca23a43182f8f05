"""`thinfs check`: sound pools pass, every damage is found and named; the exit status is thin_check's."""

import shutil
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thin_tools import answer
from tests.tools.pools import changing, make_pool, write
from thinfs.blockdev import FileDevice
from thinfs.cli.main import run
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import Superblock
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive
from thinfs.tools.nodes import read_block
from thinfs.tools.ref_counts import RefCounts
from thinfs.tools.runs import MappingRun, RunBatch
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES

Change = Callable[[PoolMetadata], object]


def check(path: Path, *options: str) -> int:
    return run(["check", *options, str(path)])


def thin_check(path: Path, *options: str) -> int:
    return answer("thin_check", *options, path).returncode


def test_a_sound_pool_passes_and_is_not_written(pool: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = pool.read_bytes()
    assert check(pool) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines()[0] == answer("thin_check", pool).stdout.splitlines()[0]
    assert pool.read_bytes() == before


@pytest.mark.parametrize("option", ["-m", "--super-block-only", "--skip-mappings", "-q"])
def test_a_sound_pool_passes_the_parts_of_the_check(held: Path, option: str) -> None:
    assert check(held, option) == thin_check(held, option) == 0


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Thin 1 of 600 mappings in some leaves; thin 2, a snapshot of it with a block of its own; thin 3, empty."""
    path = make_pool(tmp_path / "pool")
    with changing(path) as metadata:
        metadata.create_thin(1)
        metadata.create_thin(3)
        write(metadata, 1, *range(600))
        drive(metadata.commit())
        metadata.create_snap(2, 1)
        write(metadata, 2, 5)
    assert check(path, "-q") == thin_check(path, "-q") == 0
    return path


def found(path: Path, capfd: pytest.CaptureFixture[str], *options: str) -> list[str]:
    capfd.readouterr()
    assert check(path, *options) == 1
    return capfd.readouterr().err.splitlines()


def set_features(path: Path, incompat_flags: int) -> None:
    device = FileDevice(str(path))
    superblock = replace(PoolTrees.open(device).superblock, incompat_flags=incompat_flags)
    device.write(0, superblock.build(0))
    device.close()


def change_node(path: Path, find: Callable[[PoolTrees], int], change: Callable[[BtreeNode], object]) -> int:
    """Its number; it gets a right checksum."""
    device = FileDevice(str(path))
    trees = PoolTrees.open(device)
    block_nr = find(trees)
    node = trees.node(block_nr)
    change(node)
    device.write(block_nr * METADATA_BLOCK_BYTES, node.build(block_nr))
    device.close()
    return block_nr


def root_of(dev_id: int) -> Callable[[PoolTrees], int]:
    return lambda trees: trees.roots()[dev_id]


def first_leaf_of(dev_id: int) -> Callable[[PoolTrees], int]:
    return lambda trees: trees.node(trees.roots()[dev_id]).values[0]


def details_root(trees: PoolTrees) -> int:
    return trees.superblock.device_details_root


def set_key(i: int, key: int) -> Callable[[BtreeNode], object]:
    def change(node: BtreeNode) -> None:
        node.keys[i] = key

    return change


def set_value(i: int, value: int) -> Callable[[BtreeNode], object]:
    def change(node: BtreeNode) -> None:
        node.values[i] = value

    return change


def test_a_flipped_bit_anywhere_in_a_block_in_use_is_found_and_the_block_named(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    device = FileDevice(str(small), read_only=True)
    superblock = PoolTrees.open(device).superblock
    blocks = {
        superblock.data_mapping_root, superblock.device_details_root, superblock.data_space_map_root.bitmap_root,
        superblock.data_space_map_root.ref_count_root, superblock.metadata_space_map_root.bitmap_root,
        superblock.metadata_space_map_root.ref_count_root, first_leaf_of(2)(PoolTrees.open(device)),
    }  # fmt: skip
    device.close()
    for block_nr in blocks:
        with small.open("r+b") as file:
            position = block_nr * METADATA_BLOCK_BYTES + 1000
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes((byte[0] ^ 4,)))
            file.flush()
            lines = found(small, capfd)
            assert any(f"metadata block {block_nr}:" in line for line in lines), lines
            assert thin_check(small, "-q") == 1
            file.seek(position)
            file.write(byte)
    assert check(small, "-q") == 0


def test_a_blank_device_has_no_superblock(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "blank"
    path.write_bytes(bytes(1 << 20))
    (line,) = found(path, capfd)
    assert line.startswith("damaged: superblock: metadata block 0:")


@pytest.mark.parametrize(
    ("find", "change", "what"),
    [
        (details_root, set_value(0, 601), "thin 1: its details say 601 mapped blocks, it has 600"),
        (details_root, lambda node: node.delete_at(2), "thin 3: has mappings, no details"),
        (first_leaf_of(1), set_key(3, 2), "keys out of order"),
        (first_leaf_of(1), lambda node: set_key(node.nr_entries - 1, 590)(node), "outside"),
        (first_leaf_of(1), set_value(3, 20_000 << 24), "maps data block 20000 of 20000"),
        (root_of(1), set_value(1, 1 << 20), "metadata block 1048576 of 2048"),
    ],
    ids=["count", "details", "order", "bounds", "data block", "child"],
)
def test_damage_in_a_tree_is_named(
    small: Path,
    find: Callable[[PoolTrees], int],
    change: Callable[[BtreeNode], object],
    what: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change_node(small, find, change)
    lines = found(small, capfd)
    assert any(what in line for line in lines), lines
    assert all(line.startswith("damaged: ") for line in lines)


def test_a_tree_that_leads_back_to_its_root_ends(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    block_nr = change_node(small, root_of(1), lambda node: None)
    change_node(small, root_of(1), set_value(0, block_nr))
    assert found(small, capfd)


def test_a_block_of_two_trees_is_named(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    device = FileDevice(str(small), read_only=True)
    details = PoolTrees.open(device).superblock.device_details_root
    device.close()
    change_node(small, lambda trees: trees.superblock.data_mapping_root, set_value(2, details))
    assert f"damaged: the mappings: metadata block {details} is also of the details tree" in found(small, capfd)


def leak_data(metadata: PoolMetadata) -> None:
    metadata.inc_data_blocks(700, 703)


def leak_metadata(metadata: PoolMetadata) -> None:
    metadata.begin_change()
    metadata.objects.tm.inc(metadata.objects.bottom.empty())


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (leak_data, [f"leaked: data block {block}: reference count 1, expected 0" for block in (700, 701, 702)]),
        (leak_metadata, ["leaked: metadata block {}: reference count 2, expected 0"]),
    ],
)
def test_leaks_are_named_and_may_be_ignored(
    small: Path, change: Change, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with changing(small) as metadata:
        change(metadata)
    got = found(small, capfd)
    assert len(got) == len(lines)
    for line, wanted in zip(got, lines, strict=True):
        before, _, after = wanted.partition("{}")
        assert line.startswith(before) and line.endswith(after)
    # 0.9.0 does not count the references of data blocks.
    assert thin_check(small, "-q") == (change is leak_metadata)
    assert check(small, "--ignore-non-fatal-errors") == thin_check(small, "-q", "--ignore-non-fatal-errors") == 0


def test_a_count_that_is_too_low_is_damage_that_is_not_ignored(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with changing(small) as metadata:
        metadata.dec_data_blocks(7, 8)
    expected = ["damaged: data block 7: reference count {}, expected {}".format(*pair) for pair in ((0, 1), (1, 2))]
    (line,) = found(small, capfd, "--ignore-non-fatal-errors")
    assert line in expected


def test_counts_in_the_overflow_tree_are_compared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_pool(tmp_path / "pool")
    with changing(path) as metadata:
        metadata.create_thin(0)
        write(metadata, 0, *range(10))
        for dev_id in range(1, 300):
            metadata.create_snap(dev_id, 0)
            write(metadata, dev_id, 0)
    assert check(path) == thin_check(path, "-q") == 0
    with changing(path) as metadata:
        metadata.inc_data_blocks(3, 4)
    assert found(path, capfd) == ["leaked: data block 3: reference count 301, expected 300"]


def test_needs_check_is_cleared_after_a_check_that_passed_and_only_then(small: Path) -> None:
    with changing(small) as metadata:
        metadata.set_needs_check()
    assert flags(small) == 1
    assert check(small, "-q") == 0
    assert flags(small) == 1
    with changing(small) as metadata:
        leak_data(metadata)
    assert check(small, "-q", "--clear-needs-check-flag") == 1
    assert flags(small) == 1
    assert check(small, "-q", "--ignore-non-fatal-errors", "--clear-needs-check-flag") == 0
    assert flags(small) == 0


def test_clearing_writes_what_thin_check_writes(small: Path, tmp_path: Path) -> None:
    with changing(small) as metadata:
        metadata.set_needs_check()
    other = tmp_path / "other"
    shutil.copy(small, other)
    assert check(small, "-q", "--clear-needs-check-flag") == 0
    assert thin_check(other, "-q", "--clear-needs-check-flag") == 0
    assert small.read_bytes() == other.read_bytes()


def flags(path: Path) -> int:
    device = FileDevice(str(path), read_only=True)
    try:
        return Superblock.parse(read_block(device, 0), 0).flags
    finally:
        device.close()


def test_quiet_says_nothing_at_all(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with changing(small) as metadata:
        leak_data(metadata)
    assert check(small, "-q") == 1
    assert capfd.readouterr() == ("", "")


def test_many_lines_are_cut_and_counted(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with changing(small) as metadata:
        metadata.inc_data_blocks(1000, 1100)
    lines = found(small, capfd)
    assert (len(lines), lines[-1]) == (21, "leaked: and 80 more")


def test_features_that_are_not_known_are_not_checked(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    set_features(small, 4)
    assert found(small, capfd) == ["damaged: superblock: unsupported incompatible features 0x4"]


def test_a_device_that_is_too_short_is_damage(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with small.open("r+b") as file:
        file.truncate(4 << 20)
    assert found(small, capfd) == [f"damaged: superblock: 2048 metadata blocks, {small} has 1024"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 20), st.integers(1, 400)), max_size=8))
def test_reference_counts_of_any_size_are_exact(runs: list[tuple[int, int, int]]) -> None:
    counts, expected = RefCounts(40), Counter[int]()
    for begin, length, times in runs:
        end = min(begin + length, 40)
        for _ in range(times):
            assert counts.inc_runs(RunBatch.of([MappingRun(0, begin, end - begin, 0)])) is None
        for block in range(begin, end):
            expected[block] += times
    assert [counts[block] for block in range(40)] == [expected[block] for block in range(40)]
    assert counts.small(0, 40) == bytes(min(expected[block], 3) for block in range(40))
    assert counts.nr_allocated == sum(1 for count in expected.values() if count)
    assert array("B", counts.small(5, 5)).tolist() == []
