"""The engine without FUSE, one case a process: python -m bench.engine_cases CASE NUMBER SCRATCH_DIRECTORY

Promises: prints one JSON object, metric -> value; times are processor time of this process (the engine only computes:
its data device swallows everything, its metadata lies in memory), and the peak memory is that of the case alone.
Never: cheats with the order: what is "random" is uniform over the whole volume, from a fixed seed.
"""

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.metadata_images import DATA_BLOCK_SECTORS, SPARE_METADATA_BLOCKS, copy_in_memory
from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer, FileDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolSettings
from thinfs.pool.pool import Pool
from thinfs.pool.thin import Thin
from thinfs.steps import drive
from thinfs.units import METADATA_BLOCK_BYTES, sectors_to_bytes

SEED: Final = 20240229
BLOCK_BYTES: Final = sectors_to_bytes(DATA_BLOCK_SECTORS)
_4K: Final = 4096
_DATA: Final = b"\xa5" * _4K
# Enough accesses that every leaf of ten million mappings is in the cache, where it fits.
_WARM_UP: Final = 400_000
_SAMPLE: Final = 100_000


class NullDevice:
    """A data device that costs nothing, so that what is left is the engine's."""

    label = "null"
    supports_discard = True

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def read(self, offset: int, length: int) -> bytes:
        return _DATA if length == _4K else bytes(length)

    def write(self, offset: int, data: Buffer) -> None:
        return

    def flush(self) -> None:
        return

    def discard(self, offset: int, length: int) -> None:
        return

    def close(self) -> None:
        return


class OpenPool:
    def __init__(self, path: str) -> None:
        begin = time.process_time()
        self.device = FileDevice(path)
        metadata = PoolMetadata.open(self.device, DATA_BLOCK_SECTORS)
        nr_data_blocks = metadata.nr_data_blocks or 10_000_000
        data = NullDevice(nr_data_blocks * BLOCK_BYTES)
        self.pool = Pool(metadata, self.device, data, clock=lambda: 0.0)  # its clock stands: no commit by time
        drive(self.pool.preresume(PoolSettings(frozenset(), 0, nr_data_blocks)))
        drive(self.pool.resume())
        self.open_seconds = time.process_time() - begin

    def message(self, text: str) -> None:
        drive(self.pool.message(text.split()))

    def thin(self, dev_id: int) -> Thin:
        return self.pool.open_thin(dev_id)

    def submit(self, thin: Thin, bio: Bio) -> None:
        thin.submit(bio)
        drive(self.pool.work())
        assert bio.done, "the pool is full or suspended"
        if bio.error is not None:
            raise bio.error

    def write(self, thin: Thin, thin_block: int) -> None:
        if not thin.write_now(thin_block * BLOCK_BYTES, _DATA):
            self.submit(thin, Bio(Op.WRITE, thin_block * BLOCK_BYTES, len(_DATA), _DATA))


def blank(directory: str, nr_metadata_blocks: int = SPARE_METADATA_BLOCKS) -> str:
    path = Path(directory) / "metadata.img"
    with open(path, "wb") as file:
        file.truncate(nr_metadata_blocks * METADATA_BLOCK_BYTES)
    return str(path)


def microseconds(work: Callable[[], object], times: int) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / times * 1e6


def each(function: Callable[[int], object], numbers: list[int]) -> float:
    """Processor time of one call, microseconds."""

    def all_of_them() -> None:
        for number in numbers:
            function(number)

    return microseconds(all_of_them, len(numbers))


def mapped(nr_mappings: int, directory: str) -> dict[str, float]:
    """Open; look up, read and write what is mapped, uniformly at random."""
    opened = OpenPool(copy_in_memory(nr_mappings, Path(directory)))
    thin, rng = opened.thin(0), random.Random(SEED)
    find_block = thin.internal.find_block

    def sample(nr: int) -> list[int]:
        return [rng.randrange(nr_mappings) for _ in range(nr)]

    result = {"open, ms": opened.open_seconds * 1e3}
    result["lookup after opening, us"] = each(find_block, sample(min(nr_mappings, 10_000)))
    if nr_mappings >= 1_000_000:
        each(find_block, sample(_WARM_UP))
    offsets = [block * BLOCK_BYTES + _4K * rng.randrange(16) for block in sample(_SAMPLE)]
    result["lookup, us"] = each(find_block, sample(_SAMPLE))
    result["4K read, us"] = each(lambda offset: thin.read(offset, _4K), offsets)
    result["4K write, us"] = each(lambda offset: thin.write_now(offset, _DATA), offsets)
    return result


def changes(nr_mappings: int, directory: str) -> dict[str, float]:
    """First writes, breaks of sharing, discards, snapshots and commits on a volume of so many mappings."""
    opened = OpenPool(copy_in_memory(nr_mappings, Path(directory)))
    thin, rng = opened.thin(0), random.Random(SEED)
    result: dict[str, float] = {}
    new = rng.sample(range(nr_mappings, nr_mappings + 100_000), 5000)
    result["first write, us"] = each(lambda block: opened.write(thin, block), new)
    result["commit of 5000 new mappings, ms"] = microseconds(lambda: drive(opened.pool.space.commit()), 1) / 1e3

    def write_and_commit(block: int) -> None:
        opened.write(thin, block)
        drive(opened.pool.space.commit())

    result["first write + commit, us"] = each(
        write_and_commit, list(range(nr_mappings + 100_000, nr_mappings + 100_300))
    )
    result["snapshot, ms"] = each(lambda dev_id: opened.message(f"create_snap {dev_id} 0"), list(range(1, 21))) / 1e3
    mapped_blocks = rng.sample(range(nr_mappings), min(nr_mappings, 5000))
    result["break of sharing, us"] = each(lambda block: opened.write(thin, block), mapped_blocks)
    drive(opened.pool.space.commit())
    result["discard of a block, us"] = each(
        lambda block: opened.submit(thin, Bio(Op.DISCARD, block * BLOCK_BYTES, BLOCK_BYTES)), new[:2000]
    )
    drive(opened.pool.space.commit())
    return result


def deletion(nr_mappings: int, directory: str) -> dict[str, float]:
    """Deleting the only owner of so many mappings, commit included."""
    opened = OpenPool(copy_in_memory(nr_mappings, Path(directory)))
    return {"delete, ms": microseconds(lambda: opened.message("delete 0"), 1) / 1e3}


def check(nr_mappings: int, directory: str) -> dict[str, float]:
    """Wall clock: thin_check (compiled, several threads), and thinfs's own where there is one."""
    path = copy_in_memory(nr_mappings, Path(directory))
    result = {"thin_check, ms": _wall_ms(["thin_check", "-q", path])}
    from thinfs.cli.main import COMMANDS

    if "check" in COMMANDS:
        result["thinfs check, ms"] = _wall_ms([str(Path(sys.executable).parent / "thinfs"), "check", "-q", path])
    return result


def _wall_ms(command: list[str]) -> float:
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return (time.monotonic() - begin) * 1e3


def depth(nr_snapshots: int, directory: str) -> dict[str, float]:
    """A chain: 100,000 mappings, each snapshot of the one before, 20 blocks rewritten after each."""
    nr_mappings = 100_000
    opened = OpenPool(copy_in_memory(nr_mappings, Path(directory)))
    rng = random.Random(SEED)
    for dev_id in range(1, nr_snapshots + 1):
        opened.message(f"create_snap {dev_id} {dev_id - 1}")
        thin = opened.thin(dev_id)
        for _ in range(20):
            opened.write(thin, rng.randrange(nr_mappings))
        opened.pool.close_thin(thin)
    thin = opened.thin(nr_snapshots)
    blocks = [rng.randrange(nr_mappings) for _ in range(20_000)]
    result = {"lookup, us": each(thin.internal.find_block, blocks)}
    result["4K read, us"] = each(lambda block: thin.read(block * BLOCK_BYTES, _4K), blocks)
    last = nr_snapshots + 1
    result["snapshot, ms"] = microseconds(lambda: opened.message(f"create_snap {last} {nr_snapshots}"), 1) / 1e3
    result["break of sharing, us"] = each(lambda block: opened.write(thin, block), blocks[:2000])
    drive(opened.pool.space.commit())
    result["delete of one, ms"] = microseconds(lambda: opened.message(f"delete {last}"), 1) / 1e3
    return result


def volumes(nr_volumes: int, directory: str) -> dict[str, float]:
    """So many volumes, all of them active, one block written to each; then one of them works."""
    opened = OpenPool(blank(directory))
    result = {"create, us": each(lambda dev_id: opened.message(f"create_thin {dev_id}"), list(range(nr_volumes)))}
    thins: list[Thin] = []
    result["open, us"] = each(lambda dev_id: thins.append(opened.thin(dev_id)), list(range(nr_volumes)))
    result["first write of each, us"] = each(lambda dev_id: opened.write(thins[dev_id], 0), list(range(nr_volumes)))
    result["commit after that, ms"] = microseconds(lambda: drive(opened.pool.space.commit()), 1) / 1e3
    thin = thins[nr_volumes // 2]
    result["first write in one, us"] = each(lambda block: opened.write(thin, block), list(range(1, 2001)))

    def write_and_commit(block: int) -> None:
        opened.write(thin, block)
        drive(opened.pool.space.commit())

    result["first write + commit in one, us"] = each(write_and_commit, list(range(2001, 2201)))
    result["snapshot, ms"] = each(lambda n: opened.message(f"create_snap {nr_volumes + n} 0"), list(range(10))) / 1e3
    return result


CASES: Final = {
    "mapped": mapped, "changes": changes, "deletion": deletion, "check": check, "depth": depth, "volumes": volumes,
}  # fmt: skip


def _peak_kib() -> int:
    """Not getrusage's, which begins with that of the process that forked this one."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(case: str, number: str, directory: str) -> None:
    result = CASES[case](int(number), directory)
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if case == "check" else _peak_kib()
    result["peak memory, MB"] = peak_kib / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
