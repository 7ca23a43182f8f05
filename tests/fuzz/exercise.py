"""What is done with a pool whose metadata is damaged: everything that the engine can, in an order made by the seed.

Promises: returns what each call answered; every refusal is a ThinfsError, after which the transaction is aborted as
a pool does it. Raises whatever else comes out, and TooManySteps for what does not end. Steps are calls of
functions, counted: the same on every machine, however busy it is.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any, Final

from tests.fuzz.pools import DATA_BLOCK_SECTORS, ImageDevice, Pool
from thinfs.errors import ThinfsError
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.thin_device import ThinDevice
from thinfs.steps import drive

MAX_STEPS: Final = 6_000_000  # a sound pool of this size takes less than a third of it


class TooManySteps(BaseException):
    """Something does not end. No Exception: nothing may take it for one."""


@contextmanager
def counted(limit: int = MAX_STEPS) -> Iterator[Callable[[], int]]:
    """Calls of functions, C functions too, within the body."""
    nr = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal nr
        if event in ("call", "c_call"):
            nr += 1
            if nr > limit:
                raise TooManySteps(f"more than {limit} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield lambda: nr
    finally:
        sys.setprofile(before)


class Exercise:
    def __init__(self, pool: Pool, device: ImageDevice, seed: int) -> None:
        self._pool = pool
        self._device = device
        self._random = Random(f"exercise {seed}")
        self._metadata: PoolMetadata
        self.outcomes: list[str] = []

    def run(self) -> None:
        if not self._attempt("open", self._open):
            return
        calls = list(_CALLS)
        self._random.shuffle(calls)
        for name in calls[: self._random.choice((4, 8, len(calls)))]:
            if not self._attempt(name, lambda name=name: _CALLS[name](self)):  # type: ignore[misc]
                self._attempt("abort", self._metadata.abort)
                if self._metadata.failed:
                    break
        self._attempt("commit", self._commit)
        if self._attempt("open again", self._open):
            self._attempt("read", self._read)

    def _attempt(self, name: str, call: Callable[[], object]) -> bool:
        try:
            call()
        except ThinfsError as error:
            self.outcomes.append(f"{name}: {type(error).__name__}: {error}")
            return False
        self.outcomes.append(f"{name}: done")
        return True

    def _open(self) -> None:
        self._metadata = PoolMetadata.open(self._device, DATA_BLOCK_SECTORS)

    def _commit(self) -> None:
        drive(self._metadata.commit())

    @contextmanager
    def _thin(self) -> Iterator[ThinDevice]:
        thin = self._metadata.open_thin(self._random.choice(self._pool.dev_ids))
        try:
            yield thin
        finally:
            self._metadata.close_thin(thin)

    def _some_block(self) -> int:
        return self._random.randrange(self._pool.top_thin_block + 3)

    def _status(self) -> None:
        metadata = self._metadata
        str((metadata.nr_data_blocks, metadata.nr_free_data_blocks, metadata.nr_free_metadata_blocks))
        with self._thin() as thin:
            thin.highest_mapped_block()

    def _list(self) -> None:
        list(self._metadata.devices())

    def _read(self) -> None:
        with self._thin() as thin:
            for _ in range(200):
                thin.find_block(self._some_block())

    def _runs(self) -> None:
        with self._thin() as thin:
            for _ in zip(range(2000), thin.mapped_runs(0, 1 << 40), strict=False):
                pass

    def _write(self) -> None:
        with self._thin() as thin:
            for _ in range(self._random.choice((1, 40, 300))):
                thin.insert_block(self._some_block(), self._metadata.alloc_data_block())
        self._commit()

    def _write_in_order(self) -> None:
        begin = self._some_block()
        with self._thin() as thin:
            for thin_block in range(begin, begin + 300):
                thin.insert_block(thin_block, self._metadata.alloc_data_block())
        self._commit()

    def _discard(self) -> None:
        begin = self._some_block()
        with self._thin() as thin:
            drive(thin.remove_range(begin, begin + self._random.choice((1, 30, 3000))))
        self._commit()

    def _discard_all(self) -> None:
        begin = 0 if self._pool.top_thin_block < 10_000 else self._pool.top_thin_block - 10_000
        with self._thin() as thin:
            drive(thin.remove_range(begin, 1 << 40))
        self._commit()

    def _create(self) -> None:
        for _ in range(self._random.choice((1, 150))):
            self._metadata.create_thin(self._random.randrange(1 << 24))
        self._commit()

    def _snapshot(self) -> None:
        self._metadata.create_snap(self._random.randrange(1 << 24), self._random.choice(self._pool.dev_ids))
        self._commit()

    def _delete(self) -> None:
        for dev_id in self._random.sample(self._pool.dev_ids, len(self._pool.dev_ids) // 5 or 1):
            failure = drive(self._metadata.delete_thin(dev_id))
            if failure is not None:
                raise failure
        self._commit()

    def _count(self) -> None:
        nr_blocks = min(self._metadata.nr_data_blocks, 1 << 20)
        for data_block in {0, 1, nr_blocks - 1, *(self._random.randrange(max(nr_blocks, 1)) for _ in range(50))}:
            self._metadata.data_block_count(data_block)

    def _hold_data_blocks(self) -> None:
        begin = self._random.randrange(500)
        self._metadata.inc_data_blocks(begin, begin + 100)
        self._metadata.dec_data_blocks(begin, begin + 100)
        self._commit()

    def _reserve(self) -> None:
        drive(self._metadata.reserve_metadata_snap())

    def _release(self) -> None:
        drive(self._metadata.release_metadata_snap())

    def _grow_data(self) -> None:
        self._metadata.resize_data(self._metadata.nr_data_blocks + 40_000)
        self._commit()

    def _grow_metadata(self) -> None:
        self._metadata.resize_metadata(self._metadata.nr_usable_device_blocks)
        self._commit()

    def _needs_check(self) -> None:
        self._metadata.set_needs_check()
        drive(self._metadata.write_flag())


_CALLS: Final[Mapping[str, Callable[[Exercise], None]]] = {
    "status": Exercise._status,
    "list": Exercise._list,
    "read": Exercise._read,
    "runs": Exercise._runs,
    "write": Exercise._write,
    "write in order": Exercise._write_in_order,
    "discard": Exercise._discard,
    "discard all": Exercise._discard_all,
    "create": Exercise._create,
    "snapshot": Exercise._snapshot,
    "delete": Exercise._delete,
    "count": Exercise._count,
    "hold data blocks": Exercise._hold_data_blocks,
    "reserve": Exercise._reserve,
    "release": Exercise._release,
    "grow data": Exercise._grow_data,
    "grow metadata": Exercise._grow_metadata,
    "needs_check": Exercise._needs_check,
}


def exercise(pool: Pool, damaged: Mapping[int, bytes], seed: int) -> list[str]:
    """What each call answered."""
    run = Exercise(pool, pool.device(damaged), seed)
    with counted():
        run.run()
    return run.outcomes
