"""What the offline tools of the command line have in common: their names, options, devices, progress and output.

Promises: what is read from is opened for reading only, and not at all where another process has it for writing (a
metadata snapshot, `-m`, may be read at any time). Errors are one line on standard error. On a terminal, what takes more
than a second says how far it is. A tool called by its name of thin-provisioning-tools, `thin_check`, answers as that:
its version, and 1 for a wrong command line.
"""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from thinfs.blockdev import BlockDevice, Buffer, FileDevice
from thinfs.errors import Busy, InvalidArgument, ThinfsError, from_oserror
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.tools.nodes import read_block
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES

THIN_TOOLS_VERSION: Final = "0.9.0"  # whose options, output and exit status the tools have
_QUIET_SECONDS: Final = 1.0
_STEP_SECONDS: Final = 0.2


class Parser(argparse.ArgumentParser):
    """`program`: `thinfs check`, or `thin_check`."""

    def __init__(self, program: str, does: str) -> None:
        super().__init__(prog=program, description=does, allow_abbrev=False)
        self.add_argument("-V", "--version", action="version", version=_version(program))

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1 if as_thin_tool(self.prog) else 2, f"{self.prog}: error: {message}\n")


def as_thin_tool(program: str) -> bool:
    return program.startswith("thin_")


def _version(program: str) -> str:
    if as_thin_tool(program):
        return THIN_TOOLS_VERSION
    from importlib.metadata import version

    return version("thinfs")


def natural(text: str) -> int:
    """An argparse type."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or int(text) >> 64:
        raise argparse.ArgumentTypeError(f"{text!r}: not a number")
    return int(text)


def run(program: str, tool: Callable[[], int]) -> int:
    try:
        return tool()
    except ThinfsError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except RecursionError:
        print(f"{program}: the metadata nests too deeply", file=sys.stderr)
        return 1


# -- devices


class Progress:
    """Says on a terminal how much of `total` is done, from the second second on."""

    def __init__(self, program: str, total: int, *, shown: bool = True) -> None:
        self._program = program
        self._total = total
        self._done = 0
        shown = shown and sys.stderr is not None and sys.stderr.isatty()
        self._next = time.monotonic() + _QUIET_SECONDS if shown else None
        self._said = False

    def __call__(self, nr: int) -> None:
        self._done += nr
        if self._next is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _STEP_SECONDS
            self._said = True
            share = min(100 * self._done // max(self._total, 1), 100)
            with suppress(OSError):
                print(f"\r{self._program}: {share} %", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._said:
            with suppress(OSError):
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._said = False


class WatchedDevice:
    """A device whose reads and writes are progress."""

    def __init__(self, device: FileDevice, progress: Progress) -> None:
        self._device = device
        self._progress = progress

    @property
    def label(self) -> str:
        return self._device.label

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def supports_discard(self) -> bool:
        return self._device.supports_discard

    def read(self, offset: int, length: int) -> bytes:
        self._progress(length)
        return self._device.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._progress(len(data))
        self._device.write(offset, data)

    def flush(self) -> None:
        self._device.flush()

    def discard(self, offset: int, length: int) -> None:
        self._device.discard(offset, length)

    def close(self) -> None:
        self._device.close()


@contextmanager
def reading(
    path: str,
    program: str,
    *,
    in_use_allowed: bool = False,
    passes: int = 1,
    everything: bool = False,
    prints: bool = False,
) -> Iterator[BlockDevice]:
    """Metadata; `passes` times what the pool has in use is how much will be read, about, or once `everything`. Who
    `prints` meanwhile shows no progress where that goes to a terminal."""
    device = FileDevice(path, read_only=True)
    total = device.size_bytes if everything else passes * _bytes_in_use(device)
    progress = Progress(program, total, shown=not (prints and sys.stdout is not None and sys.stdout.isatty()))
    try:
        lock = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not in_use_allowed:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield WatchedDevice(device, progress)
        finally:
            os.close(lock)
    except BlockingIOError:
        raise Busy(f"{path}: in use by another process") from None
    finally:
        progress.clear()
        device.close()


def _bytes_in_use(device: FileDevice) -> int:
    try:
        superblock = Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
    except ThinfsError:
        return device.size_bytes
    return min(superblock.metadata_space_map_root.nr_allocated * METADATA_BLOCK_BYTES, device.size_bytes)


@contextmanager
def writing(path: str, other_than: str | None = None) -> Iterator[FileDevice]:
    """A device, or a file that is large enough already; not the file that is read."""
    if other_than is not None:
        with suppress(OSError):
            if os.path.samefile(path, other_than):
                raise InvalidArgument(f"{path}: would be written over what is read")
    device = FileDevice(path)
    try:
        yield device
    finally:
        device.close()


# -- words


def metadata_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("metadata", metavar="METADATA", help="the metadata file or block device of a pool")


def with_block(words: Iterable[str]) -> list[str]:
    """`-m` and `--metadata-snap` may have a block, never as a word of its own, which argparse does not know."""
    return ["--metadata-snap=held" if word in ("-m", "--metadata-snap") else word for word in words]


def trees_of(device: BlockDevice, snapshot: str | bool | None) -> PoolTrees:
    """Of the pool (None, False), of its metadata snapshot (True, "held"), or of that if it is in the block named."""
    trees = PoolTrees.open(device)
    if not snapshot:
        return trees
    if isinstance(snapshot, str) and snapshot != "held":
        if not (snapshot.isascii() and snapshot.isdecimal()):
            raise InvalidArgument(f"--metadata-snap={snapshot}: not a block number")
        if trees.superblock.held_root not in (0, int(snapshot)):
            raise InvalidArgument(f"metadata snap in block {snapshot}: it is in block {trees.superblock.held_root}")
    return trees.metadata_snapshot()


# -- output


def write_out(path: Path | None, pieces: Iterable[bytes]) -> None:
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(pieces)
        sys.stdout.buffer.flush()
        return
    try:
        with path.open("wb") as file:
            file.writelines(pieces)
    except OSError as error:
        raise from_oserror(error, str(path)) from None


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))
