"""Exclusive blocks by their definition, and reading a pool that changes meanwhile."""

from collections import Counter
from pathlib import Path

import pytest

from tests.tools.pools import changing, make_pool, write
from thinfs.blockdev import FileDevice
from thinfs.errors import BadMetadata, Busy
from thinfs.steps import drive
from thinfs.tools.usage import usage_of_all
from thinfs.tools.walk import PoolTrees, steady


def test_a_block_is_exclusive_if_no_other_thin_reaches_it(pool: Path) -> None:
    device = FileDevice(str(pool), read_only=True)
    try:
        trees = PoolTrees.open(device)
        blocks = {
            dev_id: [block for run in trees.runs(root) for block in range(run.data_begin, run.data_begin + run.length)]
            for dev_id, root in trees.roots().items()
        }
        nr_thins = Counter(block for one in blocks.values() for block in one)
        assert {dev_id: (one.mapped_blocks, one.exclusive_blocks) for dev_id, one in usage_of_all(trees).items()} == {
            dev_id: (len(one), sum(nr_thins[block] == 1 for block in one)) for dev_id, one in blocks.items()
        }
    finally:
        device.close()


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    path = make_pool(tmp_path / "pool")
    with changing(path) as metadata:
        metadata.create_thin(1)
    return path


def test_what_is_read_while_the_pool_changes_is_read_again(growing: Path) -> None:
    device = FileDevice(str(growing), read_only=True)
    seen = []

    def read(trees: PoolTrees) -> int:
        usage = usage_of_all(trees)[1].mapped_blocks
        seen.append(usage)
        if usage < 2:
            with changing(growing) as metadata:
                write(metadata, 1, usage)
        return usage

    try:
        assert steady(device, read) == 2
        assert seen == [0, 1, 2]
    finally:
        device.close()


def test_a_block_that_was_overwritten_meanwhile_is_no_damage(growing: Path) -> None:
    device = FileDevice(str(growing), read_only=True)
    calls = []

    def read(trees: PoolTrees) -> int:
        calls.append(trees)
        if len(calls) == 1:
            with changing(growing) as metadata:
                for thin_block in range(30):
                    write(metadata, 1, thin_block)
                    drive(metadata.commit())
            raise BadMetadata("metadata block 9: a block of another time")
        return usage_of_all(trees)[1].mapped_blocks

    try:
        assert steady(device, read) == 30
    finally:
        device.close()


def test_damage_of_a_pool_that_does_not_change_is_an_error_at_once(growing: Path) -> None:
    device = FileDevice(str(growing), read_only=True)

    def read(trees: PoolTrees) -> None:
        raise BadMetadata("metadata block 9: checksum")

    try:
        with pytest.raises(BadMetadata, match=r"^metadata block 9: checksum$"):
            steady(device, read)
    finally:
        device.close()


def test_a_pool_that_never_stops_changing_is_busy(growing: Path) -> None:
    device = FileDevice(str(growing), read_only=True)
    written: list[int] = []

    def read(trees: PoolTrees) -> None:
        with changing(growing) as metadata:
            write(metadata, 1, len(written))
        written.append(1)

    try:
        with pytest.raises(Busy, match=f"^{growing}: in use, its metadata changed 5 times while it was read$"):
            steady(device, read)
    finally:
        device.close()
