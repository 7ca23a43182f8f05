"""Histories with one fault: the n-th call of a kind on a device is EIO, once or from then on.

Promises, for each: the live pool never shows what nobody wrote, never acknowledges a flush of what is lost; after the
fault is gone and the pool opened again, everything acknowledged is there, read-only where needs_check is set; with the
flag cleared the pool is writable again, its counts exact. Source: docs/reference/behaviour.md, 5, 5.4.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.simulation.content_model import BLOCK_BYTES, PoolModel
from tests.simulation.history import DATA, METADATA, History, Shape, start_pool
from tests.simulation.metadata_check import MetadataCheck
from tests.simulation.power_cut import CutFound, ExternalChecks, check_contents
from tests.simulation.recording import Call, Fault, Image, some
from thinfs.bio import Bio, Op
from thinfs.dm.table import Feature
from thinfs.errors import NotSupported, ThinfsError
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, SUPERBLOCK_LOCATION, Superblock
from thinfs.persistent.block_manager import BlockManager
from thinfs.pool.modes import PoolMode, PoolSettings
from thinfs.steps import drive

SHAPE = Shape(frozenset({Feature.ERROR_IF_NO_SPACE}), nr_data_blocks=60, thin_blocks=8)
KINDS = tuple((device, call) for device in (METADATA, DATA) for call in (Call.READ, Call.WRITE, Call.FLUSH))


def run_with(seed: int, nr_steps: int, fault: Fault | None) -> History:
    """The history up to its end, or to where the pool could not go on; the fault is gone afterwards."""
    history = History(seed, SHAPE)
    history.start()
    history.journal.fault = fault
    for _ in range(nr_steps):
        history.step()
        if history.over:
            break
    history.journal.fault = history.journal.killed_in = None
    return history


def nr_calls(seed: int, nr_steps: int, device: str, call: Call) -> int:
    """How many faults there are to be injected."""
    counting = Fault(device, frozenset({call}), nth=1 << 62)
    run_with(seed, nr_steps, counting)
    return counting.seen


def try_fault(seed: int, nr_steps: int, fault: Fault, external: ExternalChecks) -> str:
    """Everything demanded of one fault; the mode that the pool was in at the end."""
    history = run_with(seed, nr_steps, fault)
    if not fault.hit:
        return "not reached"
    random = Random(fault.nth)
    metadata, data = history.devices[METADATA], history.devices[DATA]
    cut = [
        (metadata.power_cut(some(metadata.unflushed, random)), data.power_cut(some(data.unflushed, random)))
        for _ in range(3)
    ]
    mode = history.pool.mode
    _look_at_the_live_pool(history)
    for image, contents in [*cut, _ended(history)]:
        _reopen(image, contents, history, external)
    return "not opened" if history.over else mode.name


def _look_at_the_live_pool(history: History) -> None:
    for dev_id, thin in history.thins.items():
        for block in range(history.shape.thin_blocks):
            try:
                found = thin.read(block * BLOCK_BYTES, BLOCK_BYTES)
            except ThinfsError:
                continue
            if not history.model.thins[dev_id].accepts(block, found) and found != history.model.thins[
                dev_id
            ].latest.get(block):
                raise CutFound(f"thin {dev_id} block {block}: the live pool shows what it must not")


def _ended(history: History) -> tuple[Image, Image]:
    history.end()
    return history.devices[METADATA].image.copy(), history.devices[DATA].image.copy()


def _reopen(metadata: Image, data: Image, history: History, external: ExternalChecks) -> None:
    context = f"seed {history.seed}: {history.log[-3:]}"
    binding = history.binding
    needs_check = bool(Superblock.parse(metadata.chunk(0), 0).flags & FLAG_NEEDS_CHECK)
    if needs_check:
        pool = start_pool(metadata, data, fresh(binding), lambda: 0.0)
        check_contents(pool, history.model, mode=PoolMode.READ_ONLY)
        try:
            drive(pool.message(["create_thin", "0"]))
        except NotSupported:
            pass
        else:
            raise CutFound("a message was accepted while needs_check is set")
        drive(pool.close())
        clear_needs_check(metadata)
    findings = MetadataCheck(metadata).run()
    external.run(metadata, overcounted=bool(findings.overcounted), context=context)
    pool = start_pool(metadata, data, fresh(binding), lambda: 0.0)
    check_contents(pool, history.model)
    _write_everywhere(metadata, data, history.model, binding)


def _write_everywhere(metadata: Image, data: Image, model: PoolModel, binding: PoolSettings) -> None:
    pool = start_pool(metadata, data, fresh(binding), lambda: 0.0)
    for dev_id, _ in list(pool.metadata.devices()):
        thin = pool.open_thin(dev_id)
        for bio in (Bio(Op.WRITE, 0, 512, b"again" * 100 + bytes(12)), Bio(Op.FLUSH)):
            thin.submit(bio)
        drive(pool.work())
        pool.close_thin(thin)
    drive(pool.close())
    MetadataCheck(metadata).run()


def fresh(binding: PoolSettings) -> PoolSettings:
    return PoolSettings(binding.features, binding.low_water_blocks, binding.nr_data_blocks)


def clear_needs_check(image: Image) -> None:
    """As `thin_check --clear-needs-check-flag`, which a test holds this against."""
    superblock = Superblock.parse(image.chunk(SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
    image.write(0, replace(superblock, flags=superblock.flags & ~FLAG_NEEDS_CHECK).build(SUPERBLOCK_LOCATION))


def run_all_uncached(
    seed: int, nr_steps: int, programs: Sequence[Path], directory: Path, *, stride: int = 1
) -> tuple[Counter[str], list[str]]:
    """`run_all` of metadata reads only, with a cache of clean blocks so small that there are many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockManager.__init__, "__defaults__", (2,))
        return run_all(seed, nr_steps, programs, directory, stride=stride, kinds=((METADATA, Call.READ),))


def run_all(
    seed: int,
    nr_steps: int,
    programs: Sequence[Path],
    directory: Path,
    *,
    stride: int = 1,
    kinds: Sequence[tuple[str, Call]] = KINDS,
) -> tuple[Counter[str], list[str]]:
    """Every n of every kind of call of both devices, once and for good: what became of it, and failures."""
    external = ExternalChecks(directory, programs)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for device, call in kinds:
        for nth in range(1, nr_calls(seed, nr_steps, device, call) + 1, stride):
            for for_good, partial in ((False, False), (False, True), (True, False)):
                if partial and call is not Call.WRITE:
                    continue
                fault = Fault(device, frozenset({call}), nth, for_good=for_good, partial=partial)
                try:
                    mode = try_fault(seed, nr_steps, fault, external)
                except (ThinfsError, AssertionError) as error:
                    failures.append(f"seed {seed}, {fault}: {type(error).__name__}: {error}")
                    mode = "failure"
                outcomes[f"{device} {call.value} {'for good' if for_good else 'once'} -> {mode}"] += 1
    failures += external.failures()
    return outcomes + external.counts, failures
