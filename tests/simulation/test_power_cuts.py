"""Power cuts at every flush of random histories, and bugs planted in the order of writing that they must find."""

from pathlib import Path
from typing import Any

import pytest

from tests.simulation.content_model import BLOCK_BYTES, ThinModel
from tests.simulation.history import DATA, METADATA, History, Shape
from tests.simulation.power_cut import ExternalChecks, PowerCuts, run_history
from tests.simulation.recording import Call, Image, RecordingDevice
from tests.thin_tools import thin_checks
from thinfs.bio import Bio, Op, Submits
from thinfs.dm.table import Feature
from thinfs.persistent import space_map
from thinfs.persistent.block_manager import Write
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.pending import Pending
from thinfs.steps import Requests

NR_STEPS = 50


@pytest.mark.parametrize("seed", range(1000, 1014))
def test_after_any_power_cut_the_pool_opens_and_holds_all_that_was_acknowledged(seed: int, tmp_path: Path) -> None:
    cuts = run_history(seed, NR_STEPS, thin_checks(), tmp_path)
    print(f"seed {seed}", *(f"{count} {name}" for name, count in cuts.counts.items()), sep="\n")
    assert cuts.failures == []
    assert cuts.counts["points"] >= 22 * cuts.counts["flush boundaries"] > 500


def nr_histories_until_found(tmp_path: Path, limit: int = 12) -> int:
    for seed in range(limit):
        if run_history(seed, NR_STEPS, [], tmp_path).failures:
            return seed + 1
    raise AssertionError(f"{limit} histories did not find the planted bug")


def test_a_superblock_written_before_its_blocks_are_flushed_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write_and_flush_the_superblock_only(device: Submits, writes: list[Write]) -> Requests:
        for offset, data in writes:
            yield device, Bio(Op.WRITE, offset, len(data), data)
        if any(offset == 0 for offset, _ in writes):
            yield device, Bio(Op.FLUSH)

    monkeypatch.setattr("thinfs.pool.metadata.write_and_flush", write_and_flush_the_superblock_only)
    assert nr_histories_until_found(tmp_path) == 1


def test_a_commit_without_a_flush_of_the_data_device_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(PoolMetadata, "data", property(lambda self: None, lambda self, value: None), raising=False)
    assert nr_histories_until_found(tmp_path) <= 2


def test_blocks_reused_within_the_transaction_that_freed_them_are_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = space_map.LowLevelMap.find_common
    monkeypatch.setattr(space_map.LowLevelMap, "find_common", lambda self, old, begin: honest(self, self, begin))
    assert nr_histories_until_found(tmp_path) <= 8


def test_a_pool_opened_on_what_a_killed_process_left_unflushed_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = PoolMetadata.open

    def without_its_first_flush(device: RecordingDevice | Image, *arguments: int, **options: Any) -> PoolMetadata:
        flush = device.flush

        def skip_one() -> None:
            device.flush = flush  # type: ignore[method-assign]

        device.flush = skip_one  # type: ignore[method-assign]
        return honest(device, *arguments, **options)

    monkeypatch.setattr(PoolMetadata, "open", without_its_first_flush)
    assert nr_histories_until_found(tmp_path) <= 12


def other_owner_is_cut_off(tmp_path: Path) -> PowerCuts:
    """Two thins share a block; one writes elsewhere, the other discards it, and the power goes before the commit."""
    history = History(1, Shape(frozenset({Feature.ERROR_IF_NO_SPACE})))
    history.start()
    history.log.append("by hand")
    history._come(1, ThinModel(), "create_thin", 1)
    history._work(*history._submit(1, 0, history._tag(128)))
    flush = Bio(Op.FLUSH)
    history.pool.defer(history.thins[1], [flush])
    assert history._work((1, flush))
    history._flushed(1)
    held = history.model.thins[1].latest
    history._come(2, ThinModel(dict(held), dict(held)), "create_snap", 2, 1)
    cuts = PowerCuts(history, ExternalChecks(tmp_path, []))
    history._work(*history._submit(1, 0, history._tag(128)))
    history.model.thins[2].change(0, None)
    discard = Bio(Op.DISCARD, 0, BLOCK_BYTES)
    history.pool.defer(history.thins[2], [discard])
    assert history._work((2, discard))
    cuts.at_flush()
    return cuts


def test_a_discard_is_not_passed_down_where_a_power_cut_would_bring_back_another_owner(tmp_path: Path) -> None:
    assert other_owner_is_cut_off(tmp_path).failures == []


def test_a_discard_passed_down_in_spite_of_another_owner_at_the_last_commit_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Pending, "copied_from", property(lambda self: set(), lambda self, value: None), raising=False)
    assert other_owner_is_cut_off(tmp_path).failures != []


def test_a_commit_writes_blocks_then_superblock_each_flushed_and_flushes_data_first() -> None:
    history = History(3)
    history.start()
    history.log.append("by hand")
    history._come(1, ThinModel(), "create_thin", 1)
    history.journal.calls.clear()
    history._come(2, ThinModel(), "create_thin", 2)
    order = [pair for i, pair in enumerate(history.journal.calls) if not i or pair != history.journal.calls[i - 1]]
    assert order == [
        (DATA, Call.FLUSH), (METADATA, Call.WRITE), (METADATA, Call.FLUSH), (METADATA, Call.WRITE),
        (METADATA, Call.FLUSH),
    ]  # fmt: skip
