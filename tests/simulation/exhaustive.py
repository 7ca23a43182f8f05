"""Every history of one to three calls, cut at every call it makes of its devices: nothing by chance.

Promises: for each call that a history's last operation makes (those before belong to a shorter history), the images
that lose all, nothing, one or all but one of the unflushed writes, and those with one write torn, meet the model's
demands (power_cut); a flush that lied, and a block that reads as garbage, leave a pool that opens or is BadMetadata,
and answers every question with an error of the tree. An image seen before with the same demands is not looked at again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from hashlib import blake2b
from itertools import product
from random import Random

from tests.simulation.content_model import BLOCK_BYTES, ThinModel
from tests.simulation.history import BLOCK_SECTORS, DATA, METADATA, History, Shape, start_pool
from tests.simulation.metadata_check import MetadataCheck
from tests.simulation.power_cut import CutFound, check_contents
from tests.simulation.recording import NOTHING, Choice, Image, RecordingDevice, Unit, everything
from thinfs.bio import Bio, Op
from thinfs.dm.table import Feature
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.pool.modes import PoolSettings
from thinfs.steps import drive
from thinfs.units import SECTOR_BYTES

SHAPE = Shape(
    frozenset({Feature.ERROR_IF_NO_SPACE}), nr_metadata_blocks=64, nr_data_blocks=12, thin_blocks=6, max_thins=9
)
ORIGIN, SNAPSHOT, NEW = 1, 2, 10


class Scripted(History):
    """A history of named operations. At the start: thin 1 with blocks 0 to 2, its snapshot 2, all flushed."""

    def __init__(self) -> None:
        super().__init__(0, SHAPE)
        self.start()
        self.log.append("set up")
        self._come(ORIGIN, ThinModel(), "create_thin", ORIGIN)
        for block in range(3):
            self.full_write(ORIGIN, block)
        self.log.append("set up")
        self.flush_one(ORIGIN)
        self._come(SNAPSHOT, self.copy_of(ORIGIN), "create_snap", SNAPSHOT, ORIGIN)

    def copy_of(self, origin: int) -> ThinModel:
        old = self.model.thins[origin]
        since = {block: old.candidates(block) for block in old.blocks()} if self.trouble else {}
        return ThinModel(dict(old.latest), dict(old.latest), since)

    def full_write(self, dev_id: int, block: int, nr_sectors: int = BLOCK_SECTORS) -> None:
        if dev_id in self.thins:
            self._work(*self._submit(dev_id, block * BLOCK_SECTORS, self._tag(nr_sectors)))
            self._look_again({dev_id})

    def flush_one(self, dev_id: int) -> None:
        bio = Bio(Op.FLUSH)
        self.pool.defer(self.thins[dev_id], [bio])
        if self._work((dev_id, bio)):
            self._flushed(dev_id)

    def a_free_id(self) -> int:
        return next(dev_id for dev_id in range(NEW, NEW + 100) if dev_id not in self.model.everything())

    def do(self, name: str) -> None:
        self.log.append(name)
        OPERATIONS[name](self)

    # -- the operations, each with its flush where it has one

    def op_create(self) -> None:
        dev_id = self.a_free_id()
        self._come(dev_id, ThinModel(), "create_thin", dev_id)

    def op_snapshot(self) -> None:
        dev_id = self.a_free_id()
        if ORIGIN in self.thins:
            self._come(dev_id, self.copy_of(ORIGIN), "create_snap", dev_id, ORIGIN)

    def op_first_write(self) -> None:
        dev_id = max(self.thins)
        free = [block for block in range(SHAPE.thin_blocks) if block not in self.model.thins[dev_id].latest]
        if free:
            self.full_write(dev_id, free[0], 8)
            self.flush_one(dev_id)

    def op_overwrite(self) -> None:
        """Of the newest thin, which nobody else may have."""
        dev_id = max(self.thins)
        blocks = sorted(self.model.thins[dev_id].latest)
        if blocks:
            self.full_write(dev_id, blocks[-1])
            self.flush_one(dev_id)

    def op_break_sharing(self) -> None:
        dev_id = min(self.thins)
        blocks = sorted(self.model.thins[dev_id].latest)
        if blocks:
            self.full_write(dev_id, blocks[0], 3)
            self.flush_one(dev_id)

    def op_discard(self) -> None:
        dev_id = min(self.thins)
        for block in (0, 1):
            if block in self.model.thins[dev_id].blocks():
                self.model.thins[dev_id].change(block, None)
        bio = Bio(Op.DISCARD, 0, 2 * BLOCK_BYTES)
        self.pool.defer(self.thins[dev_id], [bio])
        self._work((dev_id, bio))
        self.flush_one(dev_id)

    def op_delete(self) -> None:
        if len(self.thins) > 1:
            dev_id = max(self.thins)
            self.pool.close_thin(self.thins.pop(dev_id))
            self.model.going[dev_id] = self.model.thins.pop(dev_id)
            if self._message("delete", dev_id):
                del self.model.going[dev_id]
                self._settle()

    def op_grow(self) -> None:
        nr_blocks = self.binding.nr_data_blocks + 5
        self.devices[DATA].resize(nr_blocks * BLOCK_BYTES)
        self.binding = PoolSettings(SHAPE.features, 0, nr_blocks)
        self.suspend_and_resume()

    def op_suspend(self) -> None:
        self.suspend_and_resume()


OPERATIONS: Mapping[str, Callable[[Scripted], None]] = {
    "create": Scripted.op_create,
    "snapshot": Scripted.op_snapshot,
    "first write": Scripted.op_first_write,
    "overwrite": Scripted.op_overwrite,
    "break of sharing": Scripted.op_break_sharing,
    "discard": Scripted.op_discard,
    "delete": Scripted.op_delete,
    "grow": Scripted.op_grow,
    "reserve": Scripted.reserve,
    "release": Scripted.release,
    "suspend": Scripted.op_suspend,
}


def _fingerprint(value: object) -> object:
    """Equal for equal demands; contents by their hash."""
    if isinstance(value, bytes):
        return hash(value)
    if isinstance(value, dict):
        return [(key, _fingerprint(one)) for key, one in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        return [_fingerprint(one) for one in value]
    if isinstance(value, set):
        return sorted(value)
    if is_dataclass(value):
        return [_fingerprint(getattr(value, one.name)) for one in fields(value)]
    return repr(value)


def histories(longest: int) -> Iterator[tuple[str, ...]]:
    for length in range(1, longest + 1):
        yield from product(OPERATIONS, repeat=length)


def cuts_of(units: Sequence[Unit]) -> list[Choice]:
    """All, nothing, each alone, each missing, each torn at its middle with all others there or none."""
    numbers = tuple(range(len(units)))
    choices = [NOTHING, everything(units)]
    for number in numbers:
        others = tuple(other for other in numbers if other != number)
        half = tuple(range(units[number].length // SECTOR_BYTES // 2))
        choices += [Choice((number,)), Choice(others), Choice(numbers, number, half), Choice((number,), number, half)]
    return list(dict.fromkeys(choices))


@dataclass(slots=True)
class Exhaustive:
    """Shares what it has seen between the histories it runs."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    kept: list[tuple[Image, Image]] = field(default_factory=list)  # a sample of the images, for other judges
    keep_every: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def run(self, names: Sequence[str]) -> None:
        history = Scripted()
        self.counts[f"histories of {len(names)}"] += 1
        try:
            for name in names[:-1]:
                history.do(name)
            with _Watched(self, history, names):
                history.do(names[-1])
            self.at(history, names, "the end")
        except (ThinfsError, AssertionError) as error:
            self.failures.append(f"{names}: {type(error).__name__}: {error}")

    def at(self, history: Scripted, names: Sequence[str], where: str) -> None:
        """All the cuts at one crash point."""
        self.counts["crash points"] += 1
        metadata, data = history.devices[METADATA], history.devices[DATA]
        choices = [(one, everything(data.unflushed)) for one in cuts_of(metadata.unflushed)]
        choices += [(everything(metadata.unflushed), one) for one in cuts_of(data.unflushed)]
        choices += [
            (NOTHING, NOTHING),
            (NOTHING, everything(data.unflushed)),
            (everything(metadata.unflushed), NOTHING),
        ]
        for of_metadata, of_data in dict.fromkeys(choices):
            self.counts["cuts"] += 1
            images = metadata.power_cut(of_metadata), data.power_cut(of_data)
            if self._is_new(images, history, b"honest"):
                self._try(partial(self._honest, *images, history), f"{names} at {where}, cut {of_metadata}, {of_data}")

    def lied(self, images: tuple[Image, Image], history: Scripted, names: Sequence[str], where: str) -> None:
        """A flush that was acknowledged and did nothing, and then the power went."""
        self.counts["flushes that lied"] += 1
        if self._is_new(images, history, b"lied"):
            self._try(partial(self._bad, *images, history), f"{names} at {where}, a flush lied")

    def _is_new(self, images: tuple[Image, Image], history: Scripted, demand: bytes) -> bool:
        key = blake2b(demand, digest_size=16)
        for image in images:
            for number, chunk in sorted(image.chunks.items()):
                key.update(number.to_bytes(8, "little"))
                key.update(chunk)
            key.update(b"end")
        if demand == b"honest":
            key.update(repr((_fingerprint(history.model), history.binding.nr_data_blocks)).encode())
        seen = key.digest() in self._seen
        self._seen.add(key.digest())
        self.counts["states seen before" if seen else "states"] += 1
        return not seen

    def _try(self, check: Callable[[], None], context: str) -> None:
        try:
            check()
        except Exception as error:  # whatever it is, it is the finding
            self.failures.append(f"{context}: {type(error).__name__}: {error}")

    def _honest(self, metadata: Image, data: Image, history: Scripted) -> None:
        if metadata.chunk(0).strip(b"\0"):
            MetadataCheck(metadata).run()
        pool = start_pool(metadata, data, PoolSettings(SHAPE.features, 0, history.binding.nr_data_blocks), lambda: 0.0)
        check_contents(pool, history.model)
        if self.keep_every and self.counts["states"] % self.keep_every == 0:
            self.kept.append((metadata.copy(), data.copy()))

    def _bad(self, metadata: Image, data: Image, history: Scripted) -> None:
        """Whatever the metadata are now: an error of the tree, or an answer."""
        binding = PoolSettings(SHAPE.features, 0, history.binding.nr_data_blocks)
        try:
            pool = start_pool(metadata, data, binding, lambda: 0.0)
            ids = [dev_id for dev_id, _ in pool.metadata.devices()]
        except BadMetadata:
            self.counts["BadMetadata at the opening"] += 1
            return
        except ThinfsError as error:
            self.counts[f"{type(error).__name__} at the opening"] += 1
            return
        for dev_id in ids[:3]:
            try:
                thin = pool.open_thin(dev_id)
                for block in range(SHAPE.thin_blocks):
                    thin.read(block * BLOCK_BYTES, BLOCK_BYTES)
                bios = [
                    Bio(Op.WRITE, 0, BLOCK_BYTES, bytes(BLOCK_BYTES)),
                    Bio(Op.DISCARD, 0, 3 * BLOCK_BYTES),
                    Bio(Op.FLUSH),
                ]
                pool.defer(thin, bios)
                drive(pool.work())
                if not all(bio.done for bio in bios):
                    raise CutFound(f"thin {dev_id}: I/O is not done in mode {pool.mode.name}")
                pool.close_thin(thin)
            except ThinfsError as error:
                self.counts[f"{type(error).__name__} in use"] += 1
        for words in (["create_thin", "77"], ["create_snap", "78", str(ORIGIN)], ["delete", str(ORIGIN)]):
            try:
                drive(pool.message(words))
            except ThinfsError as error:
                self.counts[f"{type(error).__name__} in use"] += 1
        drive(pool.status())
        self.counts[f"opened, and {pool.mode.name} afterwards"] += 1


class _Watched:
    """While it is entered each call of a device is a crash point before it happens, and each flush may lie."""

    def __init__(self, exhaustive: Exhaustive, history: Scripted, names: Sequence[str]) -> None:
        self._exhaustive = exhaustive
        self._history = history
        self._names = names
        self._nr = 0

    def __enter__(self) -> None:
        for device in self._history.devices.values():
            self._watch(device)

    def _watch(self, device: RecordingDevice) -> None:
        for name in ("write", "discard", "flush"):
            setattr(device, name, partial(self._called, getattr(device, name), device, name))

    def _called(self, call: Callable[..., None], device: RecordingDevice, name: str, *arguments: object) -> None:
        self._nr += 1
        where = f"call {self._nr}, a {name} of {device.label}"
        self._exhaustive.at(self._history, self._names, where)
        if name == "flush" and device.unflushed:
            self._lie(device, where)
        call(*arguments)

    def _lie(self, device: RecordingDevice, where: str) -> None:
        """What comes after the flush is on the medium, what it should have written is not (or half of it)."""
        devices = self._history.devices
        for number in range(len(device.unflushed)):
            others = tuple(other for other in range(len(device.unflushed)) if other != number)
            images = {name: one.power_cut(everything(one.unflushed)) for name, one in devices.items()}
            images[device.label] = device.power_cut(Choice(others))
            self._exhaustive.lied((images[METADATA], images[DATA]), self._history, self._names, where)

    def __exit__(self, *_: object) -> None:
        for device in self._history.devices.values():
            for name in ("write", "discard", "flush"):
                delattr(device, name)


def corrupt_reads(exhaustive: Exhaustive, names: Sequence[str], seed: int) -> None:
    """After the history: each metadata block in turn reads as garbage, as zeros, with a bit turned, torn."""
    history = Scripted()
    for name in names:
        history.do(name)
    random = Random(seed)
    metadata, data = (device.image for device in history.devices.values())
    for number in sorted(metadata.chunks):
        old = metadata.chunk(number)
        turned = bytearray(old)
        turned[random.randrange(len(old))] ^= 1 << random.randrange(8)
        for new in (random.randbytes(len(old)), bytes(len(old)), bytes(turned), old[:2048] + bytes(2048)):
            image = metadata.copy()
            image.chunks[number] = new
            exhaustive.counts["blocks that read wrong"] += 1
            images = image, data.copy()
            if exhaustive._is_new(images, history, b"bad"):
                exhaustive._try(
                    partial(exhaustive._bad, *images, history), f"{names}: metadata block {number} reads wrong"
                )


def run_share(longest: int, share: int, nr_shares: int, keep_every: int = 0) -> Exhaustive:
    """Every `nr_shares`-th history."""
    logging.disable(logging.CRITICAL)  # what the engine says of the modes that it is driven into
    try:
        exhaustive = Exhaustive(keep_every=keep_every)
        for i, names in enumerate(histories(longest)):
            if i % nr_shares == share:
                exhaustive.run(names)
        for i, names in enumerate(histories(min(longest, 2))):
            if i % nr_shares == share:
                corrupt_reads(exhaustive, names, i)
        return exhaustive
    finally:
        logging.disable(logging.NOTSET)
