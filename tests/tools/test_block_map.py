"""`thinfs map`: the data device from end to end, each block with those who map it."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.tools.pools import NR_DATA_BLOCKS, changing, make_pool, write
from thinfs.blockdev import FileDevice
from thinfs.cli.main import run
from thinfs.tools.block_map import owned_ranges
from thinfs.tools.walk import PoolTrees


def test_the_ranges_cover_the_device_and_say_who_maps_each_block(pool: Path) -> None:
    device = FileDevice(str(pool), read_only=True)
    try:
        trees = PoolTrees.open(device)
        expected: list[list[int]] = [[] for _ in range(trees.nr_data_blocks)]
        for dev_id, root in trees.roots().items():
            for one in trees.runs(root):
                for data_block in range(one.data_begin, one.data_begin + one.length):
                    expected[data_block].append(dev_id)
        ranges = list(owned_ranges(trees))
        assert [list(one.dev_ids) for one in ranges for _ in range(one.begin, one.end)] == expected
        assert [one.begin for one in ranges] == [0] + [one.end for one in ranges[:-1]]
        assert all(one.dev_ids != other.dev_ids for one, other in pairwise(ranges))
    finally:
        device.close()


def test_a_map_is_a_table_with_the_sums_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_pool(tmp_path / "pool")
    with changing(path) as metadata:
        metadata.create_thin(1)
        write(metadata, 1, *range(10, 20))
        metadata.create_snap(2, 1)
        write(metadata, 2, 10)
    assert run(["map", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{NR_DATA_BLOCKS} data blocks of 128 sectors: 11 mapped, 9 of them shared, 19989 not mapped",
        "DATA BLOCKS  COUNT  THINS",
        "          0      1  1",
        "       1..9      9  1 2",
        "         10      1  2",
        "  11..19999  19989  -",
    ]


def test_a_pool_without_thins_is_one_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["map", str(make_pool(tmp_path / "pool"))]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["   0..19999  20000  -"]
