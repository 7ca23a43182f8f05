"""The bulk paths: delete, snapshot and discard over many mappings, with seconds and peak memory.

Promises: each case in a process of its own, so that a peak is its own; metadata in a temporary file, data writes go
nowhere. Run as `python -m tests.simulation.bulk [mappings [snapshots]]`.
"""

import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer, FileDevice, MemoryDevice
from thinfs.dm.table import Feature
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolSettings
from thinfs.pool.pool import Pool
from thinfs.steps import Steps
from thinfs.units import DATA_BLOCK_MIN_SECTORS, SECTOR_BYTES

_METADATA_BYTES = 256 << 20
BLOCK_BYTES = DATA_BLOCK_MIN_SECTORS * SECTOR_BYTES


class Nowhere(MemoryDevice):
    """A data device of any size that takes everything and keeps nothing."""

    def write(self, offset: int, data: Buffer) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        return


@dataclass(frozen=True, slots=True)
class Figures:
    seconds: float
    longest_slice_seconds: float  # between two points where the server may serve others
    before_mb: int
    peak_mb: int
    used_data_blocks: int
    nr_thins: int


def drive_timed(steps: Steps[object]) -> float:
    """Run to the end; the longest stretch in which nobody else is served."""
    longest, begin = 0.0, time.process_time()
    while True:
        try:
            job = next(steps)
        except StopIteration:
            return max(longest, time.process_time() - begin)
        longest = max(longest, time.process_time() - begin)
        if job is not None:
            job.start()
            assert job.error is None
        begin = time.process_time()


def filled_pool(metadata_file: Path, nr_mappings: int, *features: Feature) -> Pool:
    data = Nowhere((nr_mappings + 16) * BLOCK_BYTES)
    with metadata_file.open("wb") as file:
        file.truncate(_METADATA_BYTES)
    metadata_device = FileDevice(str(metadata_file))
    metadata = PoolMetadata.open(metadata_device, DATA_BLOCK_MIN_SECTORS, data=data)
    pool = Pool(metadata, metadata_device, data, clock=lambda: 0.0)
    drive_timed(pool.preresume(PoolSettings(frozenset(features), 0, nr_mappings + 16)))
    drive_timed(pool.resume())
    drive_timed(pool.message(["create_thin", "0"]))
    thin = metadata.open_thin(0)
    for thin_block in range(nr_mappings):
        thin.insert_block(thin_block, metadata.alloc_data_block())
    metadata.close_thin(thin)
    drive_timed(pool.message(["set_transaction_id", "0", "1"]))
    return pool


def delete(pool: Pool, _: int) -> float:
    return drive_timed(pool.message(["delete", "0"]))


def snapshot(pool: Pool, nr: int) -> float:
    return max(drive_timed(pool.message(["create_snap", str(dev_id), "0"])) for dev_id in range(1, nr + 1))


def discard(pool: Pool, nr: int) -> float:
    thin = pool.open_thin(0)
    bio = Bio(Op.DISCARD, 0, nr * BLOCK_BYTES)
    pool.defer(thin, [bio])
    longest = drive_timed(pool.work())
    assert bio.done and bio.error is None
    pool.close_thin(thin)
    return longest


def measure(
    case: Callable[[Pool, int], float], nr: int, nr_mappings: int, features: tuple[Feature, ...] = ()
) -> Figures:
    with tempfile.TemporaryDirectory() as directory:
        pool = filled_pool(Path(directory, "metadata"), nr_mappings, *features)
        try:
            before, begin = _peak_mb(), time.process_time()
            longest = case(pool, nr)
            seconds = time.process_time() - begin
            used = pool.metadata.nr_data_blocks - pool.metadata.nr_free_data_blocks
            nr_thins = sum(1 for _ in pool.metadata.devices())
            return Figures(seconds, longest, before, _peak_mb(), used, nr_thins)
        finally:
            assert isinstance(pool.state.metadata_device, FileDevice)
            pool.state.metadata_device.close()


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    nr_mappings = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    nr_snapshots = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    cases = [
        (f"delete a volume of {nr_mappings} mappings", delete, 0, nr_mappings, ()),
        (f"{nr_snapshots} snapshots of a volume of 1000 mappings", snapshot, nr_snapshots, 1000, ()),
        (f"discard {nr_mappings} mappings", discard, nr_mappings, nr_mappings, (Feature.NO_DISCARD_PASSDOWN,)),
        (f"discard {nr_mappings} mappings, passed down", discard, nr_mappings, nr_mappings, ()),
    ]
    for name, *arguments in cases:
        with multiprocessing.get_context("spawn").Pool(1, logging.disable) as process:
            figures = process.apply(measure, arguments)
        print(
            f"{name}: {figures.seconds:.2f} s of CPU, longest slice {figures.longest_slice_seconds:.2f} s, "
            f"peak {figures.peak_mb} MB ({figures.before_mb} MB before)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
