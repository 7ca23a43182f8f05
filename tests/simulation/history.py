"""A random history of one pool by a printed seed, on recording devices and a virtual clock, with its model.

Promises: every operation tells the model first what may now happen, and afterwards what was acknowledged; errors
(of injected faults) leave the model with "may". Drives the engine as the userspace backend does. Never checks
anything beyond what the live pool answers: see power_cut.py and test_faults.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from tests.simulation.content_model import BLOCK_BYTES, ZEROS, PoolModel, ThinModel
from tests.simulation.recording import Image, Journal, ProcessKilled, RecordingDevice
from thinfs.bio import Bio, Op
from thinfs.dm.table import Feature
from thinfs.errors import NoSpace, ThinfsError
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolMode, PoolSettings
from thinfs.pool.pool import Pool
from thinfs.pool.thin import Thin
from thinfs.steps import Steps, drive
from thinfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

METADATA, DATA = "metadata", "data"
UNIT_BYTES = 4096, 16384  # what a power cut keeps or loses as a whole, of metadata and data
BLOCK_SECTORS = BLOCK_BYTES // SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of pool a history has; drawn from its seed."""

    features: frozenset[Feature]
    nr_metadata_blocks: int = 256
    nr_data_blocks: int = 160
    thin_blocks: int = 16
    max_thins: int = 6

    @classmethod
    def drawn(cls, random: Random) -> "Shape":
        features = {Feature.ERROR_IF_NO_SPACE}
        if random.random() < 0.2:
            features.add(Feature.SKIP_BLOCK_ZEROING)
        if random.random() < 0.2:
            features.add(Feature.NO_DISCARD_PASSDOWN)
        return cls(
            frozenset(features),
            nr_metadata_blocks=random.choice((160, 256, 512)),
            nr_data_blocks=random.choice((20, 60, 160)),
            thin_blocks=random.choice((4, 16, 24)),
        )


def start_pool(
    metadata_device: "RecordingDevice | Image", data_device: "RecordingDevice | Image", binding: PoolSettings,
    clock: Callable[[], float],
) -> Pool:  # fmt: skip
    """Open, and format if blank; resumed. What a table load and a resume do."""
    metadata = PoolMetadata.open(metadata_device, BLOCK_SECTORS, data=data_device)
    pool = Pool(metadata, metadata_device, data_device, clock=clock)
    drive(pool.preresume(binding))
    drive(pool.resume())
    return pool


class History:
    def __init__(self, seed: int, shape: Shape | None = None) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.shape = shape = shape or Shape.drawn(random)
        self.journal = Journal()
        self.devices = {
            METADATA: RecordingDevice(
                self.journal,
                METADATA,
                shape.nr_metadata_blocks * METADATA_BLOCK_BYTES,
                METADATA_BLOCK_BYTES,
                UNIT_BYTES[0],
            ),
            DATA: RecordingDevice(self.journal, DATA, shape.nr_data_blocks * BLOCK_BYTES, BLOCK_BYTES, UNIT_BYTES[1]),
        }
        self.binding = PoolSettings(shape.features, 0, shape.nr_data_blocks)
        self.now = 0.0
        self.model = PoolModel()
        self.thins: dict[int, Thin] = {}
        self._trouble = False
        self.over = False  # the pool could not be opened or resumed
        self.nr_writes = 0
        self.nr_ends = 0
        self.log: list[str] = []
        self.pool: Pool

    def start(self) -> None:
        """Also after an end of the pool: what was open before is opened again."""
        self.thins = {}
        self.pool = start_pool(self.devices[METADATA], self.devices[DATA], self.binding, lambda: self.now)
        for dev_id in self.model.thins:
            self._open(dev_id)

    @property
    def trouble(self) -> bool:
        """An operation has failed that had no reason of its own to: of a bio, or unseen by any, of a commit."""
        self._trouble = self._trouble or self.pool.mode > PoolMode.OUT_OF_DATA_SPACE
        return self._trouble

    def step(self) -> None:
        choices = (
            (self.create, 3), (self.snapshot, 4), (self.delete, 2), (self.write, 14), (self.write_blocks, 6),
            (self.discard, 6), (self.batch, 8), (self.flush, 10), (self.status, 2), (self.wait, 6),
            (self.set_transaction_id, 2), (self.reserve, 1), (self.release, 1), (self.suspend_and_resume, 1),
            (self.grow_data, 1), (self.grow_metadata, 1), (self.reopen, 1), (self.end_of_the_process_soon, 2),
        )  # fmt: skip
        operations, weights = zip(*choices, strict=True)
        operation = self.random.choices(operations, weights)[0] if len(self.thins) > 1 else self.create
        self.log.append(operation.__name__)
        self.now += self.random.choice((0.0, 0.01, 0.2))
        try:
            operation()
        except ProcessKilled:
            self.log[-1] += " -> killed"
            self.nr_ends += 1
            try:
                self._restart()
            except ThinfsError as error:
                self.note_error(error)
                self.over = True

    # -- messages

    def _message(self, *words: object) -> bool:
        """Whether it was done and its commit as well: only then it is acknowledged."""
        self.log[-1] = " ".join(map(str, words))
        try:
            drive(self.pool.message([str(word) for word in words]))
        except ThinfsError as error:
            self.note_error(error)
            return False
        return self.pool.mode <= PoolMode.OUT_OF_DATA_SPACE

    def note_error(self, error: ThinfsError) -> None:
        self.log[-1] += f" -> {type(error).__name__}: {error}"
        if not isinstance(error, NoSpace):
            self._trouble = True

    def create(self) -> None:
        dev_id = self.random.randrange(1 << 24)
        if len(self.model.thins) >= self.shape.max_thins:
            self.delete()
        elif dev_id not in self.model.everything():
            self._come(dev_id, ThinModel(), "create_thin", dev_id)

    def snapshot(self) -> None:
        origin, dev_id = self._any(), self.random.randrange(1 << 24)
        if origin is not None and len(self.model.thins) < self.shape.max_thins:
            old = self.model.thins[origin]
            thin = ThinModel(dict(old.latest), dict(old.latest))
            if self.trouble:  # the origin may show anything that it allows
                thin.since = {block: old.candidates(block) for block in old.blocks()}
            self._come(dev_id, thin, "create_snap", dev_id, origin)

    def _come(self, dev_id: int, thin: ThinModel, *words: object) -> None:
        model = self.model
        model.coming[dev_id] = thin
        if self._message(*words):
            model.thins[dev_id] = model.coming.pop(dev_id)
            self._settle()
            self._open(dev_id)

    def _open(self, dev_id: int) -> None:
        try:
            self.thins[dev_id] = self.pool.open_thin(dev_id)
        except ThinfsError as error:
            self.note_error(error)

    def delete(self) -> None:
        dev_id, model = self._any(), self.model
        if dev_id is None:
            return
        if len(model.thins) < 3:
            self.create()
            return
        self.pool.close_thin(self.thins.pop(dev_id))
        model.going[dev_id] = model.thins.pop(dev_id)
        if self._message("delete", dev_id):
            del model.going[dev_id]
            self._settle()

    def set_transaction_id(self) -> None:
        old, new = self.pool.metadata.transaction_id, self.random.randrange(1 << 64)
        self.model.transaction_ids.add(new)
        if self._message("set_transaction_id", old, new):
            self.model.transaction_ids = {new}
            self._settle()

    def reserve(self) -> None:
        if not self.pool.metadata.held_root:
            self.model.held = {False, True}
            if self._message("reserve_metadata_snap"):
                self.model.held = {True}
                self._settle()

    def release(self) -> None:
        if self.pool.metadata.held_root:
            self.model.held = {False, True}
            if self._message("release_metadata_snap"):
                self.model.held = {False}
                self._settle()

    def _settle(self) -> None:
        if not self.trouble:
            self.model.settle()

    # -- I/O

    def _any(self) -> int | None:
        return self.random.choice(sorted(self.thins)) if self.thins else None

    def _tag(self, nr_sectors: int) -> bytes:
        """Contents nobody else has written, sector by sector."""
        self.nr_writes += 1
        tag = self.nr_writes.to_bytes(4, "little") * (SECTOR_BYTES // 4)
        return tag * nr_sectors

    def _submit(self, dev_id: int, begin: int, data: bytes) -> list[tuple[int, Bio]]:
        """A write from sector `begin`: in place at once, the rest deferred. The model knows before."""
        thin, model, done, touched = self.thins[dev_id], self.model.thins[dev_id], 0, set()
        while done < len(data):
            block, start = divmod(begin * SECTOR_BYTES + done, BLOCK_BYTES)
            size = min(BLOCK_BYTES - start, len(data) - done)
            old = model.latest.get(block, ZEROS)
            wild = (
                size < BLOCK_BYTES and Feature.SKIP_BLOCK_ZEROING in self.shape.features and block not in model.latest
            )
            model.change(block, b"".join((old[:start], data[done : done + size], old[start + size :])), wild=wild)
            touched.add(block)
            done += size
        bio = Bio(Op.WRITE, begin * SECTOR_BYTES, len(data), data)
        thin.submit(bio)
        return [(dev_id, bio)]

    def _work(self, *bios: tuple[int, Bio]) -> bool:
        """Whether all went well."""
        drive(self.pool.work())
        failed = False
        for dev_id, bio in bios:
            if not bio.done:
                raise AssertionError(f"{bio.op} at {bio.offset} is not done in mode {self.pool.mode.name}")
            if bio.error is not None:
                self.note_error(bio.error)
                blocks = range(bio.offset // BLOCK_BYTES, -(-(bio.offset + bio.length) // BLOCK_BYTES))
                self.model.thins[dev_id].doubtful.update(blocks)
                failed = True
        return not failed

    def _look_again(self, dev_ids: Iterable[int]) -> None:
        """The live pool shows what was last written; adopt what it shows where the model cannot know (wild, failed)."""
        for dev_id in dev_ids:
            model, thin = self.model.thins[dev_id], self.thins[dev_id]
            for block in model.since:
                found = self._read_live(thin, block)
                if found is None or found == model.latest.get(block, ZEROS):
                    continue
                if not (self.trouble or block in model.doubtful or model.is_wild(block)):
                    raise AssertionError(f"thin {dev_id} block {block}: not what was written last")
                if not model.accepts(block, found):
                    raise AssertionError(f"thin {dev_id} block {block}: the live pool shows what nobody wrote")
                if block in model.doubtful or model.is_wild(block):
                    model.adopt(block, found)

    def _read_live(self, thin: Thin, block: int) -> bytes | None:
        try:
            return thin.read(block * BLOCK_BYTES, BLOCK_BYTES)
        except ThinfsError as error:
            self.note_error(error)
            return None

    def _block(self, nr: int = 1) -> int:
        """Some blocks are hot, so that things meet."""
        return self.random.randrange(self.random.choice((self.shape.thin_blocks, 4)) - nr + 1)

    def write(self) -> None:
        dev_id = self._any()
        if dev_id is not None:
            nr = self.random.choice((1, 8, 64))
            begin = self._block() * BLOCK_SECTORS + self.random.randrange(BLOCK_SECTORS)
            begin = min(begin, self.shape.thin_blocks * BLOCK_SECTORS - nr)
            self._work(*self._submit(dev_id, begin, self._tag(nr)))
            self._look_again({dev_id})

    def write_blocks(self) -> None:
        dev_id = self._any()
        if dev_id is not None:
            nr = self.random.choice((1, 1, 2, 4))
            begin = self._block(nr)
            self._work(*self._submit(dev_id, begin * BLOCK_SECTORS, self._tag(nr * BLOCK_SECTORS)))
            self._look_again({dev_id})

    def _discard(self, dev_id: int) -> Bio:
        begin = self._block() * BLOCK_SECTORS + self.random.choice((0, 0, 7))
        end = min(begin + self.random.choice((1, 2, 5, 100)) * BLOCK_SECTORS, self.shape.thin_blocks * BLOCK_SECTORS)
        for block in range(-(-begin // BLOCK_SECTORS), end // BLOCK_SECTORS):
            if block in self.model.thins[dev_id].blocks():
                self.model.thins[dev_id].change(block, None)
        return Bio(Op.DISCARD, begin * SECTOR_BYTES, (end - begin) * SECTOR_BYTES)

    def discard(self) -> None:
        dev_id = self._any()
        if dev_id is not None:
            bio = self._discard(dev_id)
            self.pool.defer(self.thins[dev_id], [bio])
            self._work((dev_id, bio))
            if self.pool.mode > PoolMode.OUT_OF_DATA_SPACE:  # a success without effect
                self.model.thins[dev_id].doubtful |= self.model.thins[dev_id].since.keys()
            self._look_again({dev_id})

    def batch(self) -> None:
        """Several things at once: the worker sees them in one pass; a flush covers only what came before."""
        dev_id = self._any()
        if dev_id is None:
            return
        before = {one: dict(model.latest) for one, model in self.model.thins.items()}
        bios: list[tuple[int, Bio]] = []
        flush = Bio(Op.FLUSH)
        has_flush, begin = self.random.getrandbits(1), self.random.randrange(self.shape.thin_blocks)
        touched = set()
        for number in range(self.random.randrange(2, min(7, self.shape.thin_blocks + 1))):  # no block twice
            other, block = self._any(), (begin + number) % self.shape.thin_blocks
            assert other is not None
            touched.add(other)
            start = self.random.choice((0, 0, 5))
            nr = self.random.choice((1, 30, BLOCK_SECTORS - start))
            bios += self._submit(other, block * BLOCK_SECTORS + start, self._tag(nr))
            if has_flush and number == 1:
                self.pool.defer(self.thins[dev_id], [flush])
        if self._work(*bios, *([(dev_id, flush)] if has_flush else [])) and has_flush and not self.trouble:
            self.model.thins[dev_id].sure = before[dev_id]
        self._look_again(touched)

    def flush(self) -> None:
        dev_id = self._any()
        if dev_id is not None:
            bio = Bio(Op.FLUSH)
            self.pool.defer(self.thins[dev_id], [bio])
            if self._work((dev_id, bio)):
                self._flushed(dev_id)

    def _flushed(self, dev_id: int) -> None:
        """An acknowledged flush. After trouble: it covers what can be read, and that is no less than was written."""
        model, thin = self.model.thins[dev_id], self.thins[dev_id]
        if not self.trouble:
            model.settle()
            return
        for block in list(model.since):
            found = self._read_live(thin, block)
            if found is None:
                continue
            if found != model.latest.get(block, ZEROS) and block not in model.doubtful:
                raise AssertionError(f"thin {dev_id} block {block}: a write is lost, and a flush acknowledged it")
            model.latest[block] = model.sure[block] = found
            del model.since[block]

    # -- the pool

    def wait(self) -> None:
        self.now += self.random.choice((0.3, 1.0, 2.0))
        self._work()

    def status(self) -> None:
        """Commits, and yet promises nothing: before the first change of a pool just opened no commit does anything."""
        self.log[-1] = f"status {drive(self.pool.status())}"

    def _try(self, steps: Steps[None]) -> bool:
        try:
            drive(steps)
        except ThinfsError as error:
            self.note_error(error)
            return False
        return True

    def suspend_and_resume(self) -> None:
        pool = self.pool
        self._try(pool.suspend())
        self.over = not (self._try(pool.preresume(self.binding)) and self._try(pool.resume()))

    def grow_data(self) -> None:
        nr_blocks = self.binding.nr_data_blocks + self.random.choice((1, 30))
        self.devices[DATA].resize(nr_blocks * BLOCK_BYTES)
        self.binding = PoolSettings(self.shape.features, 0, nr_blocks)
        self.suspend_and_resume()

    def grow_metadata(self) -> None:
        device = self.devices[METADATA]
        device.resize(device.size_bytes + self.random.choice((1, 64)) * METADATA_BLOCK_BYTES)
        self.suspend_and_resume()

    def end(self) -> None:
        while self.thins:
            self.pool.close_thin(self.thins.popitem()[1])
        self._try(self.pool.close())

    def end_of_the_process_soon(self) -> None:
        """Within one of the next calls; what was written and not flushed lies in the devices' caches still."""
        self.journal.killed_in = self.random.randrange(1, 12)

    def _restart(self) -> None:
        """What the pool opened again shows is on stable storage as far as metadata goes; of blocks it may be any."""
        model = self.model
        metadata = PoolMetadata.open(self.devices[METADATA], BLOCK_SECTORS)
        ids = {dev_id for dev_id, _ in metadata.devices()}
        model.transaction_ids, model.held = {metadata.transaction_id}, {bool(metadata.held_root)}
        model.thins |= {dev_id: thin for dev_id, thin in {**model.coming, **model.going}.items() if dev_id in ids}
        model.coming.clear()
        model.going.clear()
        self.start()
        self._forget_what_was_not_flushed()

    def _forget_what_was_not_flushed(self) -> None:
        """The new process cannot know what an old one wrote and lost: of blocks it may show any contents since."""
        for thin in self.model.thins.values():
            thin.doubtful |= thin.since.keys()
        self._look_again(self.thins.keys())

    def reopen(self) -> None:
        self.end()
        try:
            self.start()
            if self.trouble:  # the last commit may have failed
                self._forget_what_was_not_flushed()
        except ThinfsError as error:
            self.note_error(error)
            self.over = True
