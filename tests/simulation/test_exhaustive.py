"""A part of what `make simulation` tries exhaustively, and bugs planted that the smallest histories must find."""

import pytest

from tests.simulation import exhaustive
from tests.simulation.exhaustive import Exhaustive, histories
from thinfs.bio import Bio, Op, Submits
from thinfs.errors import BadMetadata
from thinfs.persistent.block_manager import BlockManager, Write
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import Requests

SHARES = 12  # of the histories of two calls, one


def test_there_are_as_many_histories_as_there_should_be() -> None:
    assert len(list(histories(3))) == 11 + 11**2 + 11**3


def test_every_history_of_one_call_survives_every_cut() -> None:
    done = exhaustive.run_share(1, 0, 1)
    print(done.counts)
    assert done.failures == []
    assert done.counts["histories of 1"] == 11
    assert done.counts["states"] > 300


def test_some_of_two_calls_survive_every_cut() -> None:
    done = exhaustive.run_share(2, 5, SHARES)
    print(done.counts)
    assert done.failures == []
    assert done.counts["histories of 2"] >= 10


def test_a_superblock_that_does_not_wait_for_its_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(device: Submits, writes: list[Write]) -> Requests:
        for offset, data in writes:
            yield device, Bio(Op.WRITE, offset, len(data), data)
        if any(offset == 0 for offset, _ in writes):
            yield device, Bio(Op.FLUSH)

    monkeypatch.setattr("thinfs.pool.metadata.write_and_flush", at_once)
    assert exhaustive.run_share(1, 0, 1).failures


def test_a_commit_that_does_not_flush_the_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PoolMetadata, "data", property(lambda self: None, lambda self, value: None), raising=False)
    assert exhaustive.run_share(1, 0, 1).failures


def test_an_error_that_is_none_of_ours_is_found_and_one_of_ours_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BlockManager.read

    def with_a_bug(self: BlockManager, *arguments: object) -> object:
        try:
            return honest(self, *arguments)  # type: ignore[arg-type]
        except BadMetadata:
            raise IndexError("of a bug") from None

    found = Exhaustive()
    exhaustive.corrupt_reads(found, ("create",), 1)
    assert found.failures == []
    assert any("BadMetadata" in name for name in found.counts)
    monkeypatch.setattr(BlockManager, "read", with_a_bug)
    found = Exhaustive()
    exhaustive.corrupt_reads(found, ("create",), 1)
    assert any("IndexError" in failure for failure in found.failures)
