"""The bulk paths, kept small: they do what they should, in memory that the number of mappings does not set."""

import pytest

from tests.simulation import bulk
from thinfs.dm.table import Feature


def test_a_big_volume_is_deleted_in_slices_between_which_others_are_served() -> None:
    figures = bulk.measure(bulk.delete, 0, 50_000)
    assert (figures.used_data_blocks, figures.nr_thins) == (0, 0)
    assert figures.peak_mb - figures.before_mb < 20


@pytest.mark.parametrize("features", [(), (Feature.NO_DISCARD_PASSDOWN,)], ids=["passed down", "not passed down"])
def test_a_discard_over_a_big_volume_frees_every_block(features: tuple[Feature, ...]) -> None:
    figures = bulk.measure(bulk.discard, 50_000, 50_000, features)
    assert (figures.used_data_blocks, figures.nr_thins) == (0, 1)
    assert figures.peak_mb - figures.before_mb < 20


def test_many_snapshots_share_the_blocks_of_their_origin() -> None:
    figures = bulk.measure(bulk.snapshot, 300, 1000)
    assert (figures.used_data_blocks, figures.nr_thins) == (1000, 301)
