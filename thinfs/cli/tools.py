"""The offline tools of the command line: check, dump, ls, map, metadata-size; options and exit status of
thin-provisioning-tools 0.9.0, whose names these have with `thin_` before them; `map` is our own.

Promises: what is read from is opened for reading only, and not at all where another thinfs has it for writing (a
metadata snapshot, `-m`, may be read at any time). One line on standard error says why something failed.
"""

import argparse
import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from thinfs.bio import Immediate
from thinfs.blockdev import FileDevice
from thinfs.errors import Busy, InvalidArgument, ThinfsError, from_oserror
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, SUPERBLOCK_LOCATION, Superblock
from thinfs.persistent.block_manager import write_and_flush
from thinfs.steps import do_now
from thinfs.tools.block_map import map_lines
from thinfs.tools.check import Verdict, check_pool, check_superblock
from thinfs.tools.dump_formats import FORMATS
from thinfs.tools.ir import dump_of
from thinfs.tools.listing import DEFAULT_FIELDS, FIELDS, listing_lines
from thinfs.tools.metadata_size import UNITS, format_amount, metadata_bytes, parse_amount
from thinfs.tools.walk import PoolTrees

_LINES_SHOWN = 20


def _run(name: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except ThinfsError as error:
        print(f"thinfs {name}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # nobody listens, also not at exit
        return 141


def _parser(name: str, does: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"thinfs {name}", description=does, allow_abbrev=False)


def _metadata_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("metadata", metavar="METADATA", help="the metadata file or block device of a pool")


@contextmanager
def _metadata(path: str, *, in_use_allowed: bool = False) -> Iterator[FileDevice]:
    device = FileDevice(path, read_only=True)
    try:
        lock = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not in_use_allowed:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield device
        finally:
            os.close(lock)
    except BlockingIOError:
        raise Busy(f"{path}: in use by another process") from None
    finally:
        device.close()


def _trees(device: FileDevice, metadata_snapshot: bool, block_nr: int | None = None) -> PoolTrees:
    trees = PoolTrees.open(device)
    if not metadata_snapshot:
        return trees
    if block_nr is not None and trees.superblock.held_root not in (0, block_nr):
        raise InvalidArgument(f"metadata snap in block {block_nr}: it is in block {trees.superblock.held_root}")
    return trees.metadata_snapshot()


# -- check


def check(arguments: Sequence[str]) -> int:
    parser = _parser("check", "Check a pool's metadata, all of it; exit status 1 if something is wrong.")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the exit status")
    parser.add_argument("-m", "--metadata-snap", action="store_true", help="the trees of the metadata snapshot")
    parser.add_argument("--super-block-only", action="store_true")
    parser.add_argument("--skip-mappings", action="store_true", help="no mappings and no reference counts")
    parser.add_argument("--ignore-non-fatal-errors", action="store_true", help="leaked blocks are no error")
    parser.add_argument(
        "--clear-needs-check-flag", action="store_true", help="if all is well; the one thing that is written"
    )
    _metadata_argument(parser)
    options = parser.parse_args(arguments)
    return _run("check", lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
    if options.clear_needs_check_flag and (options.super_block_only or options.metadata_snap):
        raise InvalidArgument("--clear-needs-check-flag: only after a check of the pool itself")
    with _metadata(options.metadata, in_use_allowed=options.metadata_snap) as device:
        if options.super_block_only:
            verdict = check_superblock(device)
        else:
            verdict = check_pool(device, mappings=not options.skip_mappings, metadata_snapshot=options.metadata_snap)
    passed = not verdict.damages and (options.ignore_non_fatal_errors or not verdict.leaks)
    if not options.quiet:
        _say(verdict)
    if passed and options.clear_needs_check_flag:
        _clear_needs_check(options.metadata)
    return 0 if passed else 1


def _say(verdict: Verdict) -> None:
    superblock = verdict.superblock
    if superblock is not None:
        print(f"TRANSACTION_ID={superblock.trans_id}")
        free = superblock.metadata_space_map_root
        print(f"METADATA_FREE_BLOCKS={free.nr_blocks - free.nr_allocated}")
        if superblock.flags & FLAG_NEEDS_CHECK:
            print("needs_check is set")
    for name, lines in (("damaged", verdict.damages), ("leaked", verdict.leaks), ("remark", verdict.sums)):
        for line in lines[:_LINES_SHOWN]:
            print(f"{name}: {line}", file=sys.stderr)
        if len(lines) > _LINES_SHOWN:
            print(f"{name}: and {len(lines) - _LINES_SHOWN} more", file=sys.stderr)


def _clear_needs_check(path: str) -> None:
    device = FileDevice(path)
    try:
        superblock = PoolTrees.open(device).superblock
        if superblock.flags & FLAG_NEEDS_CHECK:
            cleared: Superblock = replace(superblock, flags=superblock.flags & ~FLAG_NEEDS_CHECK)
            do_now(write_and_flush(Immediate(device), [(0, cleared.build(SUPERBLOCK_LOCATION))]))
    finally:
        device.close()


# -- dump and ls


def dump(arguments: Sequence[str]) -> int:
    parser = _parser("dump", "A pool's metadata as text.")
    parser.add_argument("-f", "--format", choices=tuple(FORMATS), default="xml")
    parser.add_argument("-o", dest="output", metavar="FILE", type=Path, help="instead of standard output")
    parser.add_argument(
        "-m", "--metadata-snap", metavar="[=BLOCK]", help="the metadata snapshot: -m, -mBLOCK or --metadata-snap=BLOCK"
    )
    parser.add_argument("--dev-id", type=int, metavar="ID", help="one device only")
    parser.add_argument("--skip-mappings", action="store_true", help="devices without their mappings")
    _metadata_argument(parser)
    # The block is optional and never a word of its own, which argparse does not know.
    words = ["--metadata-snap=held" if word in ("-m", "--metadata-snap") else word for word in arguments]
    options = parser.parse_args(words)
    return _run("dump", lambda: _dump(options))


def _dump(options: argparse.Namespace) -> int:
    block = options.metadata_snap
    if block not in (None, "held") and not block.isdecimal():
        raise InvalidArgument(f"--metadata-snap={block}: not a block number")
    with _metadata(options.metadata, in_use_allowed=block is not None) as device:
        trees = _trees(device, block is not None, int(block) if block and block != "held" else None)
        only = None if options.dev_id is None else (options.dev_id,)
        pool = dump_of(trees, dev_ids=only, mappings=not options.skip_mappings)
        _write(options.output, FORMATS[options.format](pool))
    return 0


def _write(path: Path | None, pieces: Iterable[bytes]) -> None:
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


def ls(arguments: Sequence[str]) -> int:
    parser = _parser("ls", "The thins of a pool, a line each.")
    parser.add_argument("-o", "--format", metavar="FIELDS", default=",".join(DEFAULT_FIELDS), help=",".join(FIELDS))
    parser.add_argument("--no-headers", action="store_true")
    parser.add_argument("-m", "--metadata-snap", action="store_true", help="of the metadata snapshot")
    _metadata_argument(parser)
    options = parser.parse_args(arguments)
    return _run("ls", lambda: _ls(options))


def _ls(options: argparse.Namespace) -> int:
    with _metadata(options.metadata, in_use_allowed=options.metadata_snap) as device:
        trees = _trees(device, options.metadata_snap)
        _write(None, map(str.encode, listing_lines(trees, options.format.split(","), headers=not options.no_headers)))
    return 0


def map_blocks(arguments: Sequence[str]) -> int:
    parser = _parser("map", "Which thins map which data blocks, and what nobody maps.")
    parser.add_argument("-m", "--metadata-snap", action="store_true", help="of the metadata snapshot")
    _metadata_argument(parser)
    options = parser.parse_args(arguments)
    return _run("map", lambda: _map(options))


def _map(options: argparse.Namespace) -> int:
    with _metadata(options.metadata, in_use_allowed=options.metadata_snap) as device:
        _write(None, map(str.encode, map_lines(_trees(device, options.metadata_snap))))
    return 0


# -- metadata-size


def metadata_size(arguments: Sequence[str]) -> int:
    units = "".join(UNITS)
    parser = _parser("metadata-size", f"How large a pool's metadata device must be. SIZE: a number and one of {units}.")
    parser.add_argument("-b", "--block-size", metavar="SIZE", default="0")
    parser.add_argument("-s", "--pool-size", metavar="SIZE", default="0")
    parser.add_argument("-m", "--max-thins", metavar="NUMBER", default="0")
    parser.add_argument("-u", "--unit", metavar="UNIT", default="s", help="of the answer")
    # argparse holds the value that stands for none to the choices as well.
    kinds = ("short", "long", "alone")
    parser.add_argument("-n", "--numeric-only", nargs="?", choices=kinds, const="alone", help="with its unit or alone")
    options = parser.parse_args(arguments)
    return _run("metadata-size", lambda: _metadata_size(options))


def _metadata_size(options: argparse.Namespace) -> int:
    unit = UNITS.get(options.unit)
    if unit is None:
        raise InvalidArgument("output unit specifier invalid!")
    block_size, said_block_size = parse_amount(options.block_size)
    pool_size, said_pool_size = parse_amount(options.pool_size)
    if not options.max_thins.isdecimal():
        raise InvalidArgument(f"--max-thins {options.max_thins}: not a number")
    amount = format_amount(metadata_bytes(block_size, pool_size, int(options.max_thins)), unit)
    if options.numeric_only is not None:
        print(amount + {"alone": "", "short": unit.letter, "long": unit.name}[options.numeric_only])
    else:
        print(
            f"thinfs metadata-size - {amount} {unit.name} estimated metadata area size for "
            f'"--block-size={said_block_size} --pool-size={said_pool_size} --max-thins={options.max_thins}"'
        )
    return 0
