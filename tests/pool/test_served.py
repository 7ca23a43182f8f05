"""What a volume that serves I/O beside the engine is told, checked at every step of every operation."""

import random
from array import array
from collections.abc import Callable
from typing import TypeVar

import pytest

from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer, MemoryDevice
from thinfs.errors import IOFailed, ThinfsError
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolMode, PoolSettings
from thinfs.pool.pool import Pool
from thinfs.pool.thin import Thin
from thinfs.steps import Steps, drive

T = TypeVar("T")

MIB = 1 << 20
BLOCK = 65536
NR_THIN_BLOCKS = 900


class Table:
    """thinfs.pool.served.Volume as a dict, strict about its gate."""

    def __init__(self, fd: int, block_bytes: int) -> None:
        assert (fd, block_bytes) == (-1, BLOCK)
        self.words: dict[int, int] = {}
        self.clock = self.nr_shut = 0
        self.plain_flush = self.closed = False
        self.written_ns = 0

    def shut(self) -> None:
        self.nr_shut += 1

    def open(self) -> None:
        assert self.nr_shut
        self.nr_shut -= 1

    def is_shared(self, word: int) -> bool:
        return word & 0xFFFFFF < self.clock

    def learn(self, thin_block: int, mapping: int, /) -> None:
        known = self.words.get(thin_block, mapping)
        assert known == mapping or self.is_shared(known) or self.nr_shut
        self.words[thin_block] = mapping

    def learn_leaf(self, keys: "array[int]", values: "array[int]", nr_entries: int, begin: int, end: int, /) -> None:
        for key, value in zip(keys[:nr_entries], values[:nr_entries], strict=True):
            if begin <= key < end:
                self.words.setdefault(key, value)

    def word(self, thin_block: int, /) -> int | None:
        return self.words.get(thin_block)

    def forget(self, begin: int, end: int, /) -> None:
        assert self.nr_shut
        for block in [block for block in self.words if begin <= block < end]:
            del self.words[block]

    def set_clock(self, time: int, /) -> None:
        assert self.nr_shut
        self.clock = time

    def set_plain_flush(self, plain: bool, /) -> None:
        self.plain_flush = plain

    def serve(self, inode: int, size_bytes: int, writable: bool, /) -> None:
        raise AssertionError("the pool does not serve")

    def withdraw(self, inode: int, /) -> None:
        raise AssertionError("the pool does not serve")

    def close(self) -> None:
        self.closed = True


class DataFile(MemoryDevice):
    def fileno(self) -> int:
        return -1


class FailingDevice(MemoryDevice):
    failing = False

    def write(self, offset: int, data: Buffer) -> None:
        if self.failing:
            raise IOFailed("made to fail")
        super().write(offset, data)


class Served:
    """A pool with thins 0 and 1 open and served; `run` checks their tables at each step."""

    def __init__(self, seed: int, nr_data_blocks: int = 256) -> None:
        self.choose = random.Random(seed)
        self.metadata_device = FailingDevice(4 * MIB)
        self.data = DataFile(nr_data_blocks * BLOCK)
        metadata = PoolMetadata.open(self.metadata_device, BLOCK // 512, data=self.data)
        self.pool = Pool(metadata, self.metadata_device, self.data, clock=lambda: 0.0)
        self.thins: list[Thin] = []
        self.nr_words = 0
        self.run(self.pool.preresume(PoolSettings(frozenset(), 0, nr_data_blocks)))
        self.run(self.pool.resume())
        for dev_id in (0, 1):
            self.message(f"create_thin {dev_id}")
            self.open(dev_id)

    def open(self, dev_id: int) -> Thin:
        thin = self.pool.open_thin(dev_id)
        self.pool.serve(thin, Table)
        self.thins.append(thin)
        return thin

    def table(self, thin: Thin) -> Table:
        assert thin.internal.served is not None
        table = thin.internal.served.volume
        assert isinstance(table, Table)
        return table

    def check(self) -> None:
        for thin in self.thins:
            internal = thin.internal
            table = self.table(thin)
            assert table.nr_shut == 0
            self.nr_words += len(table.words)
            if self.pool.mode is PoolMode.FAIL:
                assert not table.words and not table.plain_flush
                continue
            assert table.clock == internal.snapshotted_time
            if table.plain_flush:
                assert not internal.changed and self.pool.mode is PoolMode.WRITE
            served, internal.served = internal.served, None  # look without teaching
            try:
                for block, word in table.words.items():
                    assert internal.find_block(block) == (word >> 24, table.is_shared(word)), f"block {block}"
            finally:
                internal.served = served

    def read_somewhere(self) -> None:
        """It teaches the table."""
        if self.pool.mode is not PoolMode.FAIL:
            for thin in self.thins:
                block = self.choose.randrange(NR_THIN_BLOCKS)
                thin.read(block * BLOCK, self.choose.choice((512, 3 * BLOCK)))

    def run(self, steps: Steps[T]) -> T:
        error: ThinfsError | None = None
        while True:
            try:
                job = next(steps) if error is None else steps.throw(error)
            except StopIteration as stop:
                self.check()
                result: T = stop.value
                return result
            self.check()
            self.read_somewhere()
            self.check()
            error = None
            if job is not None:
                job.start()
                assert job.done
                error = job.error

    def message(self, text: str) -> None:
        self.run(self.pool.message(text.split()))

    def submit(self, thin: Thin, op: Op, offset: int, length: int) -> Bio:
        bio = Bio(op, offset, length, bytes(length) if op is Op.WRITE else b"")
        thin.submit(bio)
        self.run(self.pool.work())
        return bio

    def write(self, thin: Thin, block: int, nr_bytes: int = 4096) -> Bio:
        return self.submit(thin, Op.WRITE, block * BLOCK, nr_bytes)


@pytest.mark.parametrize("seed", range(3))
def test_a_table_has_what_the_engine_has_at_every_step(seed: int) -> None:
    served = Served(seed)
    choose, snapshots = served.choose, [2]
    for _ in range(250):
        thin = choose.choice(served.thins)
        match choose.randrange(10):
            case 0 | 1 | 2 | 3:
                served.write(thin, choose.randrange(NR_THIN_BLOCKS), choose.choice((4096, BLOCK)))
            case 4:
                begin = choose.randrange(NR_THIN_BLOCKS)
                nr = choose.randrange(1, NR_THIN_BLOCKS - begin + 1)
                served.submit(thin, Op.DISCARD, begin * BLOCK, nr * BLOCK)
            case 5:
                snapshots.append(snapshots[-1] + 1)
                served.message(f"create_snap {snapshots[-1]} {thin.dev_id}")
            case 6 if len(snapshots) > 2:
                served.message(f"delete {snapshots.pop(1)}")
            case 7:
                served.submit(thin, Op.FLUSH, 0, 0)
                assert served.table(thin).plain_flush is (served.pool.mode is PoolMode.WRITE)
            case 8:
                served.submit(thin, Op.ZERO, choose.randrange(NR_THIN_BLOCKS) * BLOCK, 4 * BLOCK)
            case _:
                served.run(served.pool.status(noflush=False))
    assert served.nr_words > 10_000
    served.run(served.pool.suspend())


def test_while_a_range_is_removed_nothing_is_learnt_of_it() -> None:
    """The removal gives way in between: a read there sees what is to go."""
    served = Served(1, nr_data_blocks=2048)
    thin = served.thins[0]
    thin.submit(Bio(Op.WRITE, 0, 1500 * BLOCK, bytes(1500 * BLOCK)))
    drive(served.pool.work())
    nr_steps = 0
    for _ in thin.internal.remove_range(100, 1400):
        nr_steps += 1
        for block in (101, 700, 1399):
            thin.read(block * BLOCK, 512)
            thin.read(block * BLOCK, 2 * BLOCK)
        assert not any(100 <= block < 1400 for block in served.table(thin).words)
    assert nr_steps > 1
    served.check()
    thin.read(99 * BLOCK, 512)
    assert 99 in served.table(thin).words and 1399 not in served.table(thin).words


def test_an_aborted_transaction_s_mappings_are_forgotten() -> None:
    served = Served(1)
    thin = served.thins[0]
    served.write(thin, 0)
    served.submit(thin, Op.FLUSH, 0, 0)
    served.write(thin, 1)
    assert set(served.table(thin).words) == {0, 1}
    served.metadata_device.failing = True
    assert served.submit(thin, Op.FLUSH, 0, 0).error is not None
    served.metadata_device.failing = False
    assert served.pool.mode is PoolMode.READ_ONLY
    served.check()
    thin.read(0, 2 * BLOCK)
    assert set(served.table(thin).words) == {0}
    assert not served.table(thin).plain_flush


def test_a_failed_pool_serves_nothing() -> None:
    served = Served(1)
    served.write(served.thins[0], 0)
    served.pool.space.set_mode(PoolMode.FAIL)
    served.check()


def test_a_thin_in_core_has_one_table_until_its_last_close() -> None:
    served = Served(1)
    again = served.open(0)
    table = served.table(again)
    assert table is served.table(served.thins[0])
    served.pool.close_thin(again)
    assert not table.closed
    served.pool.close_thin(served.thins[0])
    assert table.closed and again.internal.served is None


def test_before_the_commit_what_was_replaced_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is being read though it is no longer mapped must not be handed out meanwhile."""
    served = Served(1)
    thin = served.thins[0]
    served.write(thin, 0)
    served.message("create_snap 5 0")
    shut: list[int] = []
    table = served.table(thin)
    count: Callable[[], None] = table.shut

    def shut_and_count() -> None:
        shut.append(1)
        count()

    monkeypatch.setattr(table, "shut", shut_and_count)
    served.write(thin, 0)
    assert not shut
    served.submit(thin, Op.FLUSH, 0, 0)
    assert len(shut) == 1
    served.submit(thin, Op.FLUSH, 0, 0)
    assert len(shut) == 1


def test_thins_over_what_is_no_file_are_not_served() -> None:
    device = MemoryDevice(4 * MIB)
    data = MemoryDevice(16 * BLOCK)
    pool = Pool(PoolMetadata.open(device, 128), device, data, clock=lambda: 0.0)
    pool.state.suspended = False
    pool.metadata.create_thin(0)
    thin = pool.open_thin(0)
    pool.serve(thin, Table)
    assert thin.internal.served is None
