"""A pool that serves volumes over damaged metadata: bios, messages, status, suspend; in an order made by the seed.

Promises: as tests.fuzz.exercise; a pool answers a bug in itself like a failed operation and writes it to the log, so
whatever stands there with a traceback is raised here as a Bug. No bio may be left when the pool has no work.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Final

from tests.fuzz.exercise import counted
from tests.fuzz.pools import DATA_BLOCK_SECTORS, ImageDevice
from tests.fuzz.pools import Pool as Sound
from thinfs.bio import Bio, Op
from thinfs.blockdev import MemoryDevice
from thinfs.dm.table import Feature
from thinfs.errors import ThinfsError
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolSettings
from thinfs.pool.pool import Pool
from thinfs.pool.thin import Thin
from thinfs.steps import drive
from thinfs.units import sectors_to_bytes

_BLOCK_BYTES: Final = sectors_to_bytes(DATA_BLOCK_SECTORS)
_PAGE: Final = 4096
_MAX_PASSES: Final = 50  # of the worker, for one call: far more than any takes
_LEVEL: Final = logging.ERROR
# No bio waits for space, and no time goes into zeroes.
_FEATURES: Final = frozenset({Feature.ERROR_IF_NO_SPACE, Feature.SKIP_BLOCK_ZEROING})


class Bug(Exception):
    """What the pool took for a bug in itself, or a bio that has no end."""


class _Tracebacks(logging.Handler):
    def __init__(self) -> None:
        super().__init__(_LEVEL)
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


@contextmanager
def _tracebacks() -> Iterator[list[BaseException]]:
    logger, handler = logging.getLogger("thinfs"), _Tracebacks()
    before = logger.propagate, logging.root.manager.disable
    logger.addHandler(handler)
    logger.propagate = False
    logging.disable(logging.NOTSET)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.propagate, logging.root.manager.disable = before


class Serving:
    def __init__(self, sound: Sound, device: ImageDevice, seed: int, tracebacks: list[BaseException]) -> None:
        self._sound = sound
        self._device = device
        self._random = Random(f"served {seed}")
        self._tracebacks = tracebacks
        self._thins: dict[int, Thin] = {}
        self._now = 0.0
        self._pool: Pool
        self.outcomes: list[str] = []

    def run(self) -> None:
        if not self._attempt("open", self._open):
            return
        names = self._random.choices(list(_CALLS), k=self._random.choice((5, 15, 40)))
        for name in names:
            self._attempt(name, lambda name=name: _CALLS[name](self))  # type: ignore[misc]
        self._attempt("close", lambda: drive(self._pool.close()))

    def _attempt(self, name: str, call: Callable[[], object]) -> bool:
        self._now += 0.4
        error: ThinfsError | None = None
        try:
            call()
        except ThinfsError as failure:
            error = failure
        if self._tracebacks:
            raise Bug(f"{name}: {self._tracebacks[0]!r}") from self._tracebacks[0]
        self.outcomes.append(f"{name}: done" if error is None else f"{name}: {type(error).__name__}: {error}")
        return error is None

    def _open(self) -> None:
        nr_blocks = self._sound.nr_data_blocks
        data = MemoryDevice(nr_blocks * _BLOCK_BYTES, label="data")
        metadata = PoolMetadata.open(self._device, DATA_BLOCK_SECTORS, data=data)
        self._pool = Pool(metadata, self._device, data, clock=lambda: self._now)
        drive(self._pool.preresume(PoolSettings(_FEATURES, 0, nr_blocks)))
        drive(self._pool.resume())

    def _thin(self) -> Thin:
        dev_id = self._random.choice(self._sound.dev_ids)
        if dev_id not in self._thins:
            self._thins[dev_id] = self._pool.open_thin(dev_id)
        return self._thins[dev_id]

    def _offset(self) -> int:
        return self._random.randrange(self._sound.top_thin_block + 3) * _BLOCK_BYTES

    def _submit(self, thin: Thin, bios: list[Bio]) -> None:
        for bio in bios:
            thin.submit(bio)
        for _ in range(_MAX_PASSES):
            if not self._pool.has_work:
                break
            drive(self._pool.work())
        else:
            raise Bug(f"the pool has work after {_MAX_PASSES} passes")
        left = [bio for bio in bios if not bio.done]
        if left:
            raise Bug(f"{len(left)} bios have no end, the first: {left[0]!r}")
        for bio in bios:
            if bio.error is not None:
                raise bio.error

    def _read(self) -> None:
        thin = self._thin()
        for _ in range(30):
            thin.read(self._offset() + self._random.randrange(8) * _PAGE, _PAGE)

    def _write(self) -> None:
        thin, data = self._thin(), bytes(_PAGE)
        self._submit(thin, [Bio(Op.WRITE, self._offset(), _PAGE, data) for _ in range(self._random.choice((1, 20)))])

    def _flush(self) -> None:
        self._submit(self._thin(), [Bio(Op.FLUSH)])

    def _discard(self) -> None:
        length = self._random.choice((1, 40, 400)) * _BLOCK_BYTES
        self._submit(self._thin(), [Bio(Op.DISCARD, self._offset(), length)])

    def _provision(self) -> None:
        self._submit(self._thin(), [Bio(Op.PROVISION, self._offset(), 3 * _BLOCK_BYTES)])

    def _message(self) -> None:
        dev_id, origin = self._random.randrange(1 << 24), self._random.choice(self._sound.dev_ids)
        texts = (
            f"create_thin {dev_id}", f"create_snap {dev_id} {origin}", f"delete {origin}", "reserve_metadata_snap",
            "release_metadata_snap", "set_transaction_id 0 1",
        )  # fmt: skip
        drive(self._pool.message(self._random.choice(texts).split()))

    def _status(self) -> None:
        drive(self._pool.status())
        if self._thins:
            self._pool.thin_status(self._random.choice(list(self._thins.values())))

    def _deactivate(self) -> None:
        if self._thins:
            self._pool.close_thin(self._thins.pop(self._random.choice(list(self._thins))))

    def _suspend(self) -> None:
        drive(self._pool.suspend())
        drive(self._pool.resume())


_CALLS: Final[Mapping[str, Callable[[Serving], None]]] = {
    "read": Serving._read,
    "write": Serving._write,
    "flush": Serving._flush,
    "discard": Serving._discard,
    "provision": Serving._provision,
    "message": Serving._message,
    "status": Serving._status,
    "deactivate": Serving._deactivate,
    "suspend": Serving._suspend,
}


def serve(sound: Sound, damaged: Mapping[int, bytes], seed: int) -> list[str]:
    """What each call answered."""
    with _tracebacks() as tracebacks:
        serving = Serving(sound, sound.device(damaged), seed, tracebacks)
        with counted():
            serving.run()
    return serving.outcomes
