"""The offline tools that read a pool: check, dump, ls, map, metadata-size; options and exit status of
thin-provisioning-tools 0.9.0, whose names these have with `thin_` before them; `map` is our own.

Promises: those of tool_frame.py. Only `check` writes, and only what it was asked for, when all else is well.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from thinfs.cli.tool_frame import (
    Parser,
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
from thinfs.errors import InvalidArgument, from_oserror
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, SUPERBLOCK_LOCATION, Superblock
from thinfs.tools.block_map import map_lines
from thinfs.tools.check import Verdict, check_pool, check_superblock
from thinfs.tools.dump_formats import FORMATS, Pieces
from thinfs.tools.ir import PoolDump, dump_of
from thinfs.tools.listing import DEFAULT_FIELDS, FIELDS, listing_lines
from thinfs.tools.metadata_size import UNITS, format_amount, metadata_bytes, parse_amount
from thinfs.tools.restore import Overrides
from thinfs.tools.walk import PoolTrees

_LINES_SHOWN = 20


# -- check


def check(arguments: Sequence[str], program: str = "thinfs check") -> int:
    parser = Parser(program, "Check a pool's metadata, all of it; exit status 1 if something is wrong.")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the exit status")
    parser.add_argument(
        "-m", "--metadata-snap", "--metadata-snapshot", action="store_true", help="the metadata snapshot"
    )
    parser.add_argument("--super-block-only", action="store_true")
    parser.add_argument("--skip-mappings", action="store_true", help="no mappings and no reference counts")
    parser.add_argument("--ignore-non-fatal-errors", action="store_true", help="leaked blocks are no error")
    parser.add_argument("--clear-needs-check-flag", action="store_true", help="in the superblock, if all is well")
    parser.add_argument("--auto-repair", action="store_true", help="give leaked blocks back, if all else is well")
    parser.add_argument("--override-mapping-root", type=natural, metavar="BLOCK", help="instead of the superblock's")
    parser.add_argument("--override-details-root", type=natural, metavar="BLOCK", help="instead of the superblock's")
    parser.add_argument("--json", action="store_true", help="what was found, as JSON")
    metadata_argument(parser)
    options = parser.parse_args(arguments)
    return run(program, lambda: _check(options, program))


def _check(options: argparse.Namespace, program: str) -> int:
    _refuse_half_a_fix(options, as_thin_tool(program))
    with reading(options.metadata, program, in_use_allowed=options.metadata_snap) as device:
        if options.super_block_only:
            verdict = check_superblock(device)
        else:
            verdict = check_pool(
                device,
                mappings=not options.skip_mappings,
                metadata_snapshot=options.metadata_snap,
                mapping_root=options.override_mapping_root,
                details_root=options.override_details_root,
            )
    mended: list[str] = []
    if options.auto_repair and verdict.leaks and not verdict.damages:
        from thinfs.tools.leaks import mend_leaks

        with writing(options.metadata) as device:
            verdict.superblock = mend_leaks(device, PoolTrees.open(device).superblock)
        mended, verdict.leaks = verdict.leaks, []
    passed = not verdict.damages and (options.ignore_non_fatal_errors or not verdict.leaks)
    if options.json:
        _say_json(verdict, mended, passed)
    elif not options.quiet:
        _say(verdict, mended)
    if passed and options.clear_needs_check_flag:
        _clear_needs_check(options.metadata)
    return 0 if passed else 1


def _refuse_half_a_fix(options: argparse.Namespace, as_thin_check: bool) -> None:
    """What is written only after a check of the pool itself. 0.9.0 refuses to clear the flag where leaks are ignored,
    1.x does not."""
    fixes = [name for name in ("auto_repair", "clear_needs_check_flag") if getattr(options, name)]
    parts = ["super_block_only", "skip_mappings", "metadata_snap", "override_mapping_root", "override_details_root"]
    for fix in fixes:
        if fix == "auto_repair" or as_thin_check:
            parts = [*parts, "ignore_non_fatal_errors"]
        for part in parts:
            if getattr(options, part) not in (False, None):
                raise InvalidArgument(f"--{fix} with --{part}: only after a check of all of the pool".replace("_", "-"))


def _say(verdict: Verdict, mended: list[str]) -> None:
    superblock = verdict.superblock
    if superblock is not None:
        print(f"TRANSACTION_ID={superblock.trans_id}")
        free = superblock.metadata_space_map_root
        print(f"METADATA_FREE_BLOCKS={free.nr_blocks - free.nr_allocated}")
        if superblock.flags & FLAG_NEEDS_CHECK:
            print("needs_check is set")
    found = (("damaged", verdict.damages), ("leaked", verdict.leaks), ("mended", mended), ("remark", verdict.sums))
    for name, lines in found:
        for line in lines[:_LINES_SHOWN]:
            print(f"{name}: {line}", file=sys.stderr)
        if len(lines) > _LINES_SHOWN:
            print(f"{name}: and {len(lines) - _LINES_SHOWN} more", file=sys.stderr)


def _say_json(verdict: Verdict, mended: list[str], passed: bool) -> None:
    superblock = verdict.superblock
    found: dict[str, Any] = {"passed": passed}
    if superblock is not None:
        free = superblock.metadata_space_map_root
        found["transaction_id"] = superblock.trans_id
        found["metadata_free_blocks"] = free.nr_blocks - free.nr_allocated
        found["needs_check"] = bool(superblock.flags & FLAG_NEEDS_CHECK)
    print_json(
        {**found, "damaged": verdict.damages, "leaked": verdict.leaks, "mended": mended, "remarks": verdict.sums}
    )


def _clear_needs_check(path: str) -> None:
    with writing(path) as device:
        superblock = PoolTrees.open(device).superblock
        if superblock.flags & FLAG_NEEDS_CHECK:
            cleared: Superblock = replace(superblock, flags=superblock.flags & ~FLAG_NEEDS_CHECK)
            device.write(0, cleared.build(SUPERBLOCK_LOCATION))
            device.flush()


# -- dump and ls


def dump(arguments: Sequence[str], program: str = "thinfs dump") -> int:
    parser = Parser(program, "A pool's metadata as text.")
    formats = ", ".join(FORMATS)
    parser.add_argument(
        "-f",
        "--format",
        default="xml",
        help=f"{formats}, or custom=FILE: Python, its `pieces(pool)` gives bytes",
    )
    parser.add_argument("-o", "--output", dest="output", metavar="FILE", type=Path, help="instead of standard output")
    parser.add_argument(
        "-m", "--metadata-snap", metavar="[=BLOCK]", help="the metadata snapshot: -m, -mBLOCK or --metadata-snap=BLOCK"
    )
    parser.add_argument("--dev-id", type=natural, action="append", metavar="ID", help="one device only, or some")
    parser.add_argument("--skip-mappings", action="store_true", help="devices without their mappings")
    parser.add_argument("-r", "--repair", action="store_true", help="what can be read, of the best roots there are")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on standard error but why it failed")
    override_arguments(parser)
    metadata_argument(parser)
    options = parser.parse_args(with_block(arguments))
    return run(program, lambda: _dump(options, program))


def override_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transaction-id", type=natural, metavar="NUMBER", help="instead of what is there")
    parser.add_argument("--data-block-size", type=natural, metavar="SECTORS", help="instead of what is there")
    parser.add_argument("--nr-data-blocks", type=natural, metavar="NUMBER", help="instead of what is there")


def overrides_of(options: argparse.Namespace) -> Overrides:
    return Overrides(
        trans_id=options.transaction_id,
        data_block_size=options.data_block_size,
        nr_data_blocks=options.nr_data_blocks,
    )


def _format(name: str) -> Callable[[PoolDump], Pieces]:
    if name.startswith("custom="):
        import runpy

        path = name.removeprefix("custom=")
        try:
            pieces = runpy.run_path(path).get("pieces")
        except OSError as error:
            raise from_oserror(error, f"--format {name}") from None
        except Exception as error:  # whatever a file of others raises
            raise InvalidArgument(f"--format {name}: {type(error).__name__}: {error}") from None
        if not callable(pieces):
            raise InvalidArgument(f"--format {name}: no function `pieces` in it")
        return cast("Callable[[PoolDump], Pieces]", pieces)
    if name not in FORMATS:
        raise InvalidArgument(f"unknown format {name!r}; there are {', '.join(FORMATS)} and custom=FILE")
    return FORMATS[name]


def _dump(options: argparse.Namespace, program: str) -> int:
    pieces = _format(options.format)
    snapshot, mappings = options.metadata_snap, not options.skip_mappings
    if options.repair and (snapshot or options.dev_id):
        raise InvalidArgument("--repair: of the whole pool, neither with --metadata-snap nor with --dev-id")
    overrides = overrides_of(options)
    to_file = options.output is not None
    passes = 2 if options.repair else 1
    with reading(options.metadata, program, in_use_allowed=bool(snapshot), passes=passes, prints=not to_file) as device:
        if options.repair:
            from thinfs.tools.repair import dump_of_rescued, rescue

            rescued = rescue(device, overrides)
            write_out(options.output, pieces(dump_of_rescued(rescued, mappings=mappings)))
            if not options.quiet:
                for line in rescued.lines():
                    print(f"{program}: {line}", file=sys.stderr)
            return 0
        pool = dump_of(trees_of(device, snapshot), dev_ids=options.dev_id, mappings=mappings)
        write_out(options.output, pieces(PoolDump(overrides.of(pool.header), pool.thins)))
    return 0


def ls(arguments: Sequence[str], program: str = "thinfs ls") -> int:
    parser = Parser(program, "The thins of a pool, a line each.")
    parser.add_argument("-o", "--format", metavar="FIELDS", default=",".join(DEFAULT_FIELDS), help=",".join(FIELDS))
    parser.add_argument("--no-headers", action="store_true")
    parser.add_argument("-m", "--metadata-snap", action="store_true", help="of the metadata snapshot")
    metadata_argument(parser)
    options = parser.parse_args(arguments)
    return run(program, lambda: _ls(options, program))


def _ls(options: argparse.Namespace, program: str) -> int:
    with reading(options.metadata, program, in_use_allowed=options.metadata_snap, passes=3, prints=True) as device:
        trees = trees_of(device, options.metadata_snap)
        write_out(
            None, map(str.encode, listing_lines(trees, options.format.split(","), headers=not options.no_headers))
        )
    return 0


def map_blocks(arguments: Sequence[str], program: str = "thinfs map") -> int:
    parser = Parser(program, "Which thins map which data blocks, and what nobody maps.")
    parser.add_argument("-m", "--metadata-snap", action="store_true", help="of the metadata snapshot")
    metadata_argument(parser)
    options = parser.parse_args(arguments)
    return run(program, lambda: _map(options, program))


def _map(options: argparse.Namespace, program: str) -> int:
    with reading(options.metadata, program, in_use_allowed=options.metadata_snap, prints=True) as device:
        write_out(None, map(str.encode, map_lines(trees_of(device, options.metadata_snap))))
    return 0


# -- metadata-size


def metadata_size(arguments: Sequence[str], program: str = "thinfs metadata-size") -> int:
    units = "".join(UNITS)
    parser = Parser(program, f"How large a pool's metadata device must be. SIZE: a number and one of {units}.")
    parser.add_argument("-b", "--block-size", metavar="SIZE", default="0")
    parser.add_argument("-s", "--pool-size", metavar="SIZE", default="0")
    parser.add_argument("-m", "--max-thins", metavar="NUMBER", default="0")
    parser.add_argument("-u", "--unit", metavar="UNIT", default="s", help="of the answer")
    # argparse holds the value that stands for none to the choices as well.
    kinds = ("short", "long", "alone")
    parser.add_argument("-n", "--numeric-only", nargs="?", choices=kinds, const="alone", help="with its unit or alone")
    options = parser.parse_args(arguments)
    return run(program, lambda: _metadata_size(options, program))


def _metadata_size(options: argparse.Namespace, program: str) -> int:
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
            f"{program} - {amount} {unit.name} estimated metadata area size for "
            f'"--block-size={said_block_size} --pool-size={said_pool_size} --max-thins={options.max_thins}"'
        )
    return 0
