"""Random histories against a plain model: mappings, counts, reopening, crashes, aborts, and thin_check's opinion."""

from pathlib import Path
from random import Random

import pytest

from tests.pool.metadata_image import (
    CrashingDevice,
    Mappings,
    all_mappings,
    commit,
    copy_into,
    copy_of,
    new_pool,
    thin_check,
)
from thinfs.blockdev import MemoryDevice
from thinfs.errors import NoSpace, ThinfsError
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive


class History:
    """A pool driven by a seeded random choice of operations, and a model that does the same to dicts."""

    def __init__(self, seed: int, nr_metadata_blocks: int, nr_data_blocks: int, spread: int) -> None:
        print(f"seed {seed}")
        self.random = Random(seed)
        self.device, self.metadata = new_pool(nr_metadata_blocks, nr_data_blocks)
        self.spread = spread  # thin blocks are chosen below this
        self.model: Mappings = {}
        self.committed: Mappings = {}
        self.transaction_id = 0

    def step(self) -> None:
        choices = (
            (self.create, 3), (self.snapshot, 4), (self.delete, 2), (self.write, 40), (self.write_run, 10),
            (self.discard, 8), (self.discard_passing_down, 4), (self.commit, 8),
        )  # fmt: skip
        operations, weights = zip(*choices, strict=True)
        self.random.choices(operations, weights)[0]()

    def _any(self) -> int | None:
        return self.random.choice(sorted(self.model)) if self.model else None

    def create(self) -> None:
        dev_id = self.random.randrange(1 << 24)
        if dev_id not in self.model:
            self.metadata.create_thin(dev_id)
            self.model[dev_id] = {}
            self.commit()  # as after every message

    def snapshot(self) -> None:
        origin, dev_id = self._any(), self.random.randrange(1 << 24)
        if origin is not None and dev_id not in self.model:
            self.metadata.create_snap(dev_id, origin)
            self.model[dev_id] = dict(self.model[origin])
            self.commit()

    def delete(self) -> None:
        dev_id = self._any()
        if dev_id is not None and len(self.model) > 2:
            drive(self.metadata.delete_thin(dev_id))
            del self.model[dev_id]
            self.commit()

    def _write(self, begin: int, end: int) -> None:
        dev_id = self._any()
        if dev_id is None:
            return
        thin = self.metadata.open_thin(dev_id)
        try:
            for thin_block in range(begin, end):
                found = thin.find_block(thin_block)
                assert (None if found is None else found[0]) == self.model[dev_id].get(thin_block)
                if found is None or found[1]:
                    data_block = self.metadata.alloc_data_block()
                    thin.insert_block(thin_block, data_block)
                    self.model[dev_id][thin_block] = data_block
        except NoSpace:
            if self.metadata.raw_free_metadata_blocks == 0:
                raise
            self.commit()
        finally:
            self.metadata.close_thin(thin)

    def write(self) -> None:
        begin = self.random.randrange(self.spread)
        self._write(begin, begin + 1)

    def write_run(self) -> None:
        begin = self.random.randrange(self.spread)
        self._write(begin, begin + self.random.randrange(1, 200))

    def _range(self) -> tuple[int, int]:
        begin = self.random.randrange(self.spread)
        return begin, begin + self.random.choice((1, 2, 10, 300))

    def discard(self) -> None:
        dev_id = self._any()
        if dev_id is not None:
            begin, end = self._range()
            thin = self.metadata.open_thin(dev_id)
            drive(thin.remove_range(begin, end))
            self.metadata.close_thin(thin)
            for thin_block in range(begin, end):
                self.model[dev_id].pop(thin_block, None)

    def discard_passing_down(self) -> None:
        dev_id = self._any()
        if dev_id is None:
            return
        begin, end = self._range()
        thin = self.metadata.open_thin(dev_id)
        for run_begin, run_end, data_begin, _ in thin.mapped_runs(begin, end):
            for thin_block in range(run_begin, run_end):
                assert self.model[dev_id].pop(thin_block) == data_begin + thin_block - run_begin
            drive(thin.remove_range(run_begin, run_end))
            self.metadata.inc_data_blocks(data_begin, data_begin + run_end - run_begin)
            if self.random.getrandbits(1):
                self.commit(model=False)
            self.metadata.dec_data_blocks(data_begin, data_begin + run_end - run_begin)
        self.metadata.close_thin(thin)
        self.commit()  # of a commit between the two the model knows nothing

    def commit(self, *, model: bool = True) -> None:
        self.transaction_id += 1
        self.metadata.set_transaction_id(self.metadata.transaction_id, self.transaction_id)
        commit(self.metadata)
        if model:
            self.committed = {dev_id: dict(mappings) for dev_id, mappings in self.model.items()}

    def abort(self) -> None:
        self.metadata.abort()
        self.model = {dev_id: dict(mappings) for dev_id, mappings in self.committed.items()}

    def check(self, tmp_path: Path) -> None:
        self.commit()
        assert all_mappings(self.metadata) == self.model
        self.check_committed(self.metadata)
        self.check_committed(PoolMetadata.open(copy_of(self.device.stable), 128))
        thin_check(self.device.stable, tmp_path)

    def check_committed(self, metadata: PoolMetadata) -> None:
        """Everything that can be derived from the committed mappings."""
        assert all_mappings(metadata) == self.committed
        details = dict(metadata.devices())
        assert {dev_id: one.mapped_blocks for dev_id, one in details.items()} == {
            dev_id: len(mappings) for dev_id, mappings in self.committed.items()
        }
        for dev_id, mappings in self.committed.items():
            thin = metadata.open_thin(dev_id)
            assert thin.highest_mapped_block() == max(mappings, default=None)
            runs = list(thin.mapped_runs(0, 1 << 48))
            assert {b + i: d + i for b, e, d, _ in runs for i in range(e - b)} == mappings
            metadata.close_thin(thin)
        used = {data_block for mappings in self.committed.values() for data_block in mappings.values()}
        assert metadata.nr_data_blocks - metadata.nr_free_data_blocks == len(used)


SHAPES = [
    pytest.param(4096, 60_000, 400, 600, id="dense"),
    pytest.param(8192, 60_000, 1 << 40, 600, id="sparse"),
    pytest.param(4096, 40_000, 3000, 800, id="deep"),
    pytest.param(2048, 900, 2000, 700, id="full"),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nr_metadata_blocks", "nr_data_blocks", "spread", "nr_steps"), SHAPES)
def test_a_random_history_leaves_what_the_model_says_and_thin_check_accepts(
    nr_metadata_blocks: int, nr_data_blocks: int, spread: int, nr_steps: int, seed: int, tmp_path: Path
) -> None:
    history = History(seed, nr_metadata_blocks, nr_data_blocks, spread)
    for number in range(nr_steps):
        history.step()
        if number % 200 == 199:
            history.check(tmp_path)
    history.check(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_reopened_after_every_commit_is_the_committed_one(seed: int, tmp_path: Path) -> None:
    history = History(seed, 4096, 20_000, 1000)
    for _ in range(60):
        for _ in range(history.random.randrange(8)):
            history.step()
        history.commit()
        history.metadata = PoolMetadata.open(history.device, 128)
        history.check_committed(history.metadata)
    thin_check(history.device.stable, tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_an_abort_goes_back_to_the_last_commit(seed: int, tmp_path: Path) -> None:
    history = History(seed, 4096, 20_000, 1000)
    for _ in range(40):
        for _ in range(history.random.randrange(12)):
            history.step()
        if history.random.getrandbits(1):
            history.abort()
            history.check_committed(history.metadata)
            history.metadata = PoolMetadata.open(history.device, 128)  # in-core counters are not rolled back
    history.check(tmp_path)


class CrashAnywhere(CrashingDevice):
    """Takes the picture a crash would leave before and after every flush."""

    def __init__(self, size_bytes: int, random: Random) -> None:
        super().__init__(size_bytes)
        self.random = random
        self.pictures: list[MemoryDevice] = []

    def flush(self) -> None:
        self.pictures += [self.after_crash(), self.after_crash(self.random), self.after_crash(self.random)]
        super().flush()
        self.pictures.append(self.after_crash())


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_any_point_leaves_the_state_before_or_after_the_commit(seed: int, tmp_path: Path) -> None:
    history = History(seed, 2048, 20_000, 1000)
    device = CrashAnywhere(history.device.size_bytes, history.random)
    copy_into(device, history.device.stable)
    history.device, history.metadata = device, PoolMetadata.open(device, 128)
    for number in range(150):
        history.step()
        device.pictures.clear()
        before = history.committed
        history.commit()
        first, *middle, last = [PoolMetadata.open(picture, 128) for picture in device.pictures]
        assert first.transaction_id == history.transaction_id - 1
        assert last.transaction_id == history.transaction_id
        for metadata in (first, *middle, last):
            is_new = metadata.transaction_id == history.transaction_id
            assert all_mappings(metadata) == (history.committed if is_new else before)
        if number % 10 == 0:
            thin_check(history.random.choice(device.pictures), tmp_path)


def test_a_metadata_device_that_fills_up_can_be_aborted_and_still_holds_the_last_commit(tmp_path: Path) -> None:
    history = History(7, 256, 60_000, 1 << 40)
    with pytest.raises(NoSpace):
        while True:
            history.write_run()
            history.create()
            if history.random.random() < 0.1:
                history.commit()
    history.abort()
    history.metadata.set_needs_check()
    drive(history.metadata.write_flag())
    reopened = PoolMetadata.open(copy_of(history.device.stable), 128)
    assert reopened.needs_check
    history.check_committed(reopened)
    clean = copy_of(history.device.stable)
    thin_check(clean, tmp_path)


@pytest.mark.parametrize("nr_blocks", [300, 1024, 16_320, 16_321, 50_000])
def test_metadata_can_grow_in_the_middle_of_a_history(nr_blocks: int, tmp_path: Path) -> None:
    history = History(11, 256, 20_000, 500)
    history.create()
    for _ in range(60):
        history.write()
    history.commit()
    history.device.resize(nr_blocks * 4096)
    history.metadata.resize_metadata(nr_blocks)
    for _ in range(20):
        history.write()
    history.check(tmp_path)
    assert history.metadata.nr_metadata_blocks == nr_blocks


def test_growing_beyond_255_bitmaps_is_refused() -> None:
    _, metadata = new_pool(256)
    with pytest.raises(ThinfsError, match="at most 4161600"):
        metadata.resize_metadata(4_161_601)
