"""Bugs planted in the engine, and that histories find them: with the model and thin_check, and no kernel.

A commit that writes the superblock first is planted in tests/simulation/test_power_cuts: only a crash shows it.
"""

from collections.abc import Callable, Iterator

import pytest

from tests.planting import planted
from thinfs.persistent.space_map_disk import DiskSpaceMap
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.thin_device import ThinDevice
from thinfs.steps import Steps

from . import history
from .pair import UserspaceSide, compare, shrunk, userspace_side
from .plants import PLANTS, Shown
from .variants import VARIANTS

PLAIN = VARIANTS["plain"]
MOST_SEEDS = 5


@pytest.fixture
def ours() -> Iterator[UserspaceSide]:
    with userspace_side() as side:
        yield side


def operations_that_show_it(ours: UserspaceSide) -> int:
    """Of the shrunk history that found it."""
    for seed in range(MOST_SEEDS):
        result = compare(PLAIN, history.make(PLAIN, seed), ours, None)
        if result.differences:
            small = shrunk(result, ours, None)
            print(history.as_commands(small.operations), *small.differences, sep="\n")
            return len(small.operations)
    raise AssertionError(f"seeds 0 to {MOST_SEEDS - 1} did not find the planted bug")


def test_the_engine_as_it_is_has_none(ours: UserspaceSide) -> None:
    for seed in range(MOST_SEEDS):
        assert compare(PLAIN, history.make(PLAIN, seed), ours, None).differences == []


def test_a_snapshot_that_shares_without_incrementing_is_caught(
    monkeypatch: pytest.MonkeyPatch, ours: UserspaceSide
) -> None:
    honest = PoolMetadata.create_snap

    def create_snap(self: PoolMetadata, dev_id: int, origin_id: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(TransactionManager, "inc", lambda self, block_nr: None)
            honest(self, dev_id, origin_id)

    monkeypatch.setattr(PoolMetadata, "create_snap", create_snap)
    assert operations_that_show_it(ours) <= 10


def test_a_discard_that_frees_a_shared_block_is_caught(monkeypatch: pytest.MonkeyPatch, ours: UserspaceSide) -> None:
    honest: Callable[[ThinDevice, int, int], Steps[None]] = ThinDevice.remove_range
    honest_dec = DiskSpaceMap.dec

    def free(self: DiskSpaceMap, begin: int, end: int) -> None:
        for block in range(begin, end):
            while self.count(block):
                honest_dec(self, block, block + 1)

    def remove_range(self: ThinDevice, begin: int, end: int) -> Steps[None]:
        with monkeypatch.context() as patch:
            patch.setattr(DiskSpaceMap, "dec", free)
            yield from honest(self, begin, end)

    monkeypatch.setattr(ThinDevice, "remove_range", remove_range)
    assert operations_that_show_it(ours) <= 10


@pytest.mark.parametrize("shown", PLANTS, ids=lambda shown: shown.plant.name)
def test_a_planted_bug_is_found_within_three_histories(shown: Shown, ours: UserspaceSide) -> None:
    variant = VARIANTS[shown.variant]
    with planted(shown.plant) as module:
        for seed in range(3):
            result = compare(variant, history.make(variant, seed), ours, None)
            if result.differences:
                print(f"in {module}: {variant.name}, seed {seed}: {result.differences[0]}")
                return
    raise AssertionError(f"{variant.name}, seeds 0 to 2, did not find it")


@pytest.mark.parametrize("name", sorted({shown.variant for shown in PLANTS}))
def test_without_them_nothing_is_found(name: str, ours: UserspaceSide) -> None:
    for seed in range(3):
        assert compare(VARIANTS[name], history.make(VARIANTS[name], seed), ours, None).differences == []
