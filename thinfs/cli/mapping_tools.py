"""The offline tools about mappings and the blocks below them: delta, rmap, trim, migrate.

Promises: those of tool_frame.py; delta, rmap and trim have the options, output and exit status of thin_delta, thin_rmap
and thin_trim 0.9.0. Only `trim` and `migrate` write, to the device that is named.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack, closing

from thinfs.blockdev import FileDevice
from thinfs.cli.tool_frame import (
    Parser,
    Progress,
    as_thin_tool,
    metadata_argument,
    natural,
    print_json,
    reading,
    run,
    trees_of,
    with_block,
    write_out,
    writing,
)
from thinfs.errors import Exists, InvalidArgument, from_oserror
from thinfs.tools.delta import Stretch, simple_pieces, stretches, verbose_pieces
from thinfs.tools.ir import header_of
from thinfs.tools.migrate import copy, extent_bytes
from thinfs.tools.reverse_map import lines, reverse_map
from thinfs.tools.trim import trim as trim_free
from thinfs.tools.walk import PoolTrees
from thinfs.units import sectors_to_bytes

# -- delta


def delta(arguments: Sequence[str], program: str = "thinfs delta") -> int:
    parser = Parser(program, "What differs between the mappings of two thins.")
    parser.add_argument("--thin1", "--snap1", type=natural, metavar="ID", help="the left one")
    parser.add_argument("--thin2", "--snap2", type=natural, metavar="ID", help="the right one")
    parser.add_argument("--root1", type=natural, metavar="BLOCK", help="the left one by the root of its tree")
    parser.add_argument("--root2", type=natural, metavar="BLOCK", help="the right one by the root of its tree")
    parser.add_argument("-m", "--metadata-snap", metavar="[=BLOCK]", help="in the metadata snapshot")
    parser.add_argument("--verbose", action="store_true", help="with the data blocks")
    parser.add_argument("--json", action="store_true", help="a list of stretches")
    metadata_argument(parser)
    options = parser.parse_args(with_block(arguments))
    return run(program, lambda: _delta(options, program))


def _delta(options: argparse.Namespace, program: str) -> int:
    snapshot = options.metadata_snap
    with reading(options.metadata, program, in_use_allowed=bool(snapshot), passes=2, prints=True) as device:
        trees = trees_of(device, snapshot)
        roots = [_root(trees, options, side) for side in ("1", "2")]
        names = [_name(options, side) for side in ("1", "2")]
        found = stretches(trees.runs(roots[0]), trees.runs(roots[1]))
        if options.json:
            print_json([_as_json(one) for one in found])
        else:
            pieces = verbose_pieces if options.verbose else simple_pieces
            write_out(None, pieces(header_of(trees), trees.superblock.held_root, names[0], names[1], found))
    return 0


def _root(trees: PoolTrees, options: argparse.Namespace, side: str) -> int:
    dev_id, root = getattr(options, f"thin{side}"), getattr(options, f"root{side}")
    if (dev_id is None) == (root is None):
        raise InvalidArgument(f"--snap{side} not specified." if root is None else f"--thin{side} or --root{side}")
    if root is not None:
        return int(root)
    found = trees.roots().get(dev_id)
    if found is None:
        raise InvalidArgument(f"Unable to find mapping tree for snap{side} ({dev_id})")
    return found


def _name(options: argparse.Namespace, side: str) -> str:
    dev_id = getattr(options, f"thin{side}")
    return str(dev_id) if dev_id is not None else f"root {getattr(options, f'root{side}')}"


def _as_json(one: Stretch) -> dict[str, int | str | None]:
    return {
        "kind": str(one.kind),
        "begin": one.begin,
        "length": one.length,
        "left_data_begin": one.left_data if one.left_data >= 0 else None,
        "right_data_begin": one.right_data if one.right_data >= 0 else None,
    }


# -- rmap


def rmap(arguments: Sequence[str], program: str = "thinfs rmap") -> int:
    parser = Parser(program, "Which thin blocks lie on the data blocks of a region.")
    parser.add_argument("--region", type=_region, action="append", metavar="BEGIN..END", help="or some")
    parser.add_argument(
        "--once",
        action="store_true",
        default=as_thin_tool(program),
        help="a subtree that thins share for the first of them only, as thin_rmap does",
    )
    parser.add_argument("--json", action="store_true", help="a list of stretches")
    metadata_argument(parser)
    options = parser.parse_args(arguments)
    return run(program, lambda: _rmap(options, program))


def _region(text: str) -> tuple[int, int]:
    begin, dots, end = text.partition("..")
    if not dots:
        raise argparse.ArgumentTypeError(f"{text!r}: not BEGIN..END")
    region = natural(begin), natural(end)
    if region[1] <= region[0]:
        raise argparse.ArgumentTypeError(f"{text!r}: badly formed region (end <= begin)")
    return region


def _rmap(options: argparse.Namespace, program: str) -> int:
    if not options.region:
        raise InvalidArgument("No regions provided.")
    with reading(options.metadata, program, passes=2 * len(options.region), prints=True) as device:
        trees = PoolTrees.open(device)
        if options.json:
            print_json(
                [
                    {"data_begin": one.data_begin, "length": one.length, "dev_id": one.dev_id, "begin": one.thin_begin}
                    for region in options.region
                    for one in reverse_map(trees, *region, once=options.once)
                ]
            )
        else:
            write_out(None, lines(trees, options.region, once=options.once))
    return 0


# -- trim


def trim(arguments: Sequence[str], program: str = "thinfs trim") -> int:
    parser = Parser(program, "Give the free data blocks of a pool back to its data file or device.")
    parser.add_argument("--metadata-dev", required=True, metavar="METADATA")
    parser.add_argument("--data-dev", required=True, metavar="DATA")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return run(program, lambda: _trim(options, program))


def _trim(options: argparse.Namespace, program: str) -> int:
    with reading(options.metadata_dev, program, passes=2) as metadata, writing(options.data_dev) as data:
        nr_ranges, nr_bytes = trim_free(PoolTrees.open(metadata), data)
    if options.json:
        print_json({"ranges": nr_ranges, "bytes": nr_bytes})
    elif not options.quiet and not as_thin_tool(program):
        print(f"{nr_bytes} bytes in {nr_ranges} ranges are free, and given back")
    return 0


# -- migrate


def migrate(arguments: Sequence[str], program: str = "thinfs migrate") -> int:
    parser = Parser(program, "Copy a thin out of its pool: all of it, or what differs from another.")
    parser.add_argument("--metadata-dev", required=True, metavar="METADATA", help="of the pool")
    parser.add_argument("--data-dev", required=True, metavar="DATA", help="of the pool")
    parser.add_argument("--thin", required=True, type=natural, metavar="ID")
    parser.add_argument("--delta-from", type=natural, metavar="ID", help="the thin that the target is a copy of")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--dest-file", metavar="FILE", help="a new file; an old one with --delta-from")
    target.add_argument("--dest-dev", metavar="DEVICE", help="what the thin maps nothing of becomes zeros")
    parser.add_argument("--size", type=natural, metavar="BYTES", help="of a new file; else up to its last mapping")
    parser.add_argument("-q", "--quiet", action="store_true")
    options = parser.parse_args(arguments)
    return run(program, lambda: _migrate(options, program))


def _migrate(options: argparse.Namespace, program: str) -> int:
    path = options.dest_file or options.dest_dev
    new_file = options.dest_file is not None and options.delta_from is None
    with ExitStack() as stack:
        trees = PoolTrees.open(stack.enter_context(reading(options.metadata_dev, program, passes=2)))
        data = stack.enter_context(closing(FileDevice(options.data_dev, read_only=True)))
        if data.size_bytes < trees.nr_data_blocks * sectors_to_bytes(trees.superblock.data_block_size):
            raise InvalidArgument(f"{options.data_dev}: {data.size_bytes} bytes, shorter than the pool")
        size = extent_bytes(trees, options.thin)
        if new_file:
            _make(path, size if options.size is None else options.size)
        try:
            target = stack.enter_context(writing(path, options.data_dev))
            progress = Progress(program, max(target.size_bytes, 1))
            stack.callback(progress.clear)
            zeros = not new_file
            copied = copy(trees, data, target, options.thin, options.delta_from, zeros=zeros, progress=progress)
        except BaseException:
            if new_file:
                os.unlink(path)  # nothing half done is left
            raise
    if not options.quiet:
        print(f"{copied} bytes copied")
    return 0


def _make(path: str, size: int) -> None:
    try:
        with open(path, "xb") as file:
            file.truncate(size)
    except FileExistsError:
        raise Exists(f"{path}: exists") from None
    except OSError as error:
        raise from_oserror(error, path) from None
