"""Where the time of a 4 KiB read, a 4 KiB write, a first write and a commit goes, per layer and per function.

Promises: the serving side of a mount without FUSE's kernel half: ImageOperations called as pyfuse3 calls it, down to
files in memory. Layers are thinfs's packages; what they call of Python and C is theirs. cProfile makes small
functions look larger than they are: the shares count, the microseconds are measured again without it.
"""

import cProfile
import pstats
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from bench import machine
from bench.front import directory_on
from bench.subjects import TOP, sparse_file
from thinfs.fuse.operations import ImageOperations
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

_4K: Final = 4096
_BLOCK: Final = 65536
_DATA: Final = b"\xa5" * _4K
NR_ROWS: Final = 10
Operation = Callable[[int], Awaitable[object]]


async def _volume(mapper: DeviceMapper, directory: Path) -> None:
    metadata, data = sparse_file(directory / "meta", 64 << 20), sparse_file(directory / "data", 2 << 30)
    await mapper.create("pool", f"0 {(2 << 30) // 512} thin-pool {metadata} {data} 128 0")
    await mapper.message("pool", "create_thin 0")
    await mapper.create("volume", f"0 {(2 << 30) // 512} thin /dev/mapper/pool 0")


async def profile(directory: Path) -> str:
    async with open_device_mapper(str(directory / "mnt")) as mapper:
        await _volume(mapper, directory)
        operations: Any = ImageOperations(mapper)
        image = mapper.lookup("volume")
        assert image is not None
        operations._remember(image)
        handle = (await operations.open(image.inode, 2, None)).fh
        for block in range(2000):
            await operations.write(handle, block * _BLOCK, _DATA)

        async def write_and_fsync(i: int) -> None:
            await operations.write(handle, (20_000 + i) * _BLOCK, _DATA)
            await operations.fsync(handle, True)

        parts = [
            await _operation(
                "4 KiB read of a mapped block", lambda i: operations.read(handle, i % 2000 * _BLOCK, _4K), 20_000
            ),
            await _operation(
                "4 KiB write to a mapped block", lambda i: operations.write(handle, i % 2000 * _BLOCK, _DATA), 20_000
            ),
            await _operation(
                "first write: 4 KiB to a new block",
                lambda i: operations.write(handle, (2000 + i) * _BLOCK, _DATA),
                3000,
            ),
            await _operation("commit: first write, then fsync", write_and_fsync, 500),
        ]
    return "\n".join(parts)


async def _operation(name: str, operation: Operation, times: int) -> str:
    numbers = iter(range(10**9))
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        await operation(next(numbers))
    wall_us = (time.perf_counter() - begin) / times * 1e6
    cpu_us = (time.process_time() - cpu) / times * 1e6
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(times):
        await operation(next(numbers))
    profiler.disable()
    return _report(name, times, wall_us, cpu_us, profiler)


def layer_of(file: str) -> str:
    """`thinfs.pool` for a file below thinfs/pool, the package's name for a library's, `python` for the rest."""
    path = Path(file)
    if path.is_relative_to(TOP / "thinfs"):
        inside = path.relative_to(TOP / "thinfs")
        return f"thinfs.{inside.parts[0].removesuffix('.py')}"
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1].removesuffix(".py")
    return "python"


def _report(name: str, times: int, wall_us: float, cpu_us: float, profiler: cProfile.Profile) -> str:
    stats: Any = pstats.Stats(profiler)
    own: dict[tuple[str, int, str], float] = {}
    layers: dict[str, float] = {}
    for function, (_, _, seconds, _, callers) in stats.stats.items():
        file = function[0]
        if file == "~":  # built in: the time is that of whoever calls it
            for caller, (_, _, part, _) in callers.items():
                layers[layer_of(caller[0])] = layers.get(layer_of(caller[0]), 0) + part
        else:
            layers[layer_of(file)] = layers.get(layer_of(file), 0) + seconds
        own[function] = seconds
    total = sum(own.values()) or 1
    lines = [
        f"## {name}",
        "",
        f"{wall_us:.1f} us by the clock, {cpu_us:.1f} us of processor ({times} times, unprofiled)",
        "",
    ]
    for layer, seconds in sorted(layers.items(), key=lambda item: -item[1]):
        if seconds / total >= 0.005:
            lines.append(f"  {100 * seconds / total:5.1f} %  {layer}")
    lines += ["", "  share   calls  function"]
    for function, seconds in sorted(own.items(), key=lambda item: -item[1])[:NR_ROWS]:
        calls = stats.stats[function][1] / times
        lines.append(f"  {100 * seconds / total:5.1f} %  {calls:5.1f}  {_name(function)}")
    return "\n".join([*lines, ""])


def _name(function: tuple[str, int, str]) -> str:
    file, line, name = function
    if file == "~":
        return name
    return f"{layer_of(file)} {Path(file).name}:{line} {name}"


def write(path: Path) -> None:
    directory = directory_on("tmpfs")
    try:
        text = trio.run(profile, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    described = ", ".join(
        f"{key} {value}" for key, value in machine.describe().items() if key in ("date", "cpu", "python")
    )
    path.write_text(f"# make profile: {described}\n\n{text}")
    print(text)
