"""The offline tools that write a pool's metadata: restore, repair, shrink, pack, unpack.

Promises: those of tool_frame.py; the options and exit status of thin-provisioning-tools (shrink, pack and unpack of
1.x). What is read is never written; while metadata is written its target is no pool, and is one at the end.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, cast

from thinfs.blockdev import BlockDevice, FileDevice
from thinfs.cli.tool_frame import Parser, Progress, as_thin_tool, natural, print_json, reading, run, write_out, writing
from thinfs.cli.tools import override_arguments, overrides_of
from thinfs.errors import BackingMissing, BadMetadata, Exists, InvalidArgument, from_oserror
from thinfs.persistent.candidates import MetadataCensus, RootCandidate
from thinfs.tools import pack as packing
from thinfs.tools.check import check_pool
from thinfs.tools.dump_formats import FORMATS
from thinfs.tools.ir import dump_of
from thinfs.tools.repair import Rescued, rescue, write
from thinfs.tools.restore import restore as restore_pool
from thinfs.tools.shrink import copy_data, counts_of, plan, shrunk, whole_pool, write_shrunk
from thinfs.tools.walk import PoolTrees
from thinfs.tools.xml_source import XmlSource
from thinfs.units import METADATA_BLOCK_BYTES, sectors_to_bytes


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise BackingMissing(f"{path}: no such file or device") from None
    except OSError as error:
        raise from_oserror(error, path) from None


def _input_and_output(parser: Parser, kind: str) -> None:
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help=kind)
    parser.add_argument("-o", "--output", metavar="FILE", help="where to; a file must be there, and large enough")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on standard error but why it failed")


def _wants_output(options: argparse.Namespace) -> str:
    if options.output is None:
        raise InvalidArgument("No output file provided.")
    return str(options.output)


# -- restore


def restore(arguments: Sequence[str], program: str = "thinfs restore") -> int:
    parser = Parser(program, "A pool's metadata from the XML of a dump.")
    _input_and_output(parser, "the XML")
    override_arguments(parser)
    options = parser.parse_args(arguments)
    return run(program, lambda: _restore(options, program))


def _restore(options: argparse.Namespace, program: str) -> int:
    output = _wants_output(options)
    with _open(options.input) as file, writing(output, options.input) as target:
        progress = Progress(program, os.fstat(file.fileno()).st_size)
        try:
            header, items = XmlSource(file, options.input, progress).items()
            restore_pool(header, items, target, overrides_of(options))
        finally:
            progress.clear()
    return 0


# -- repair


def repair(arguments: Sequence[str], program: str = "thinfs repair") -> int:
    parser = Parser(program, "What can be read of a damaged pool, or an older state of one, as new metadata.")
    _input_and_output(parser, "the damaged metadata")
    override_arguments(parser)
    parser.add_argument("--list", action="store_true", help="the states that are there, newest first; writes nothing")
    parser.add_argument("--mapping-root", type=natural, metavar="BLOCK", help="take the state of this root, of --list")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return run(program, lambda: _repair(options, program))


def _repair(options: argparse.Namespace, program: str) -> int:
    if options.list:
        with reading(options.input, program, everything=True) as device:
            candidates = MetadataCensus(device).candidates()
        _list(candidates, options.json)
        return 0
    output = _wants_output(options)
    with reading(options.input, program, passes=2) as device:
        rescued = rescue(device, overrides_of(options), mapping_root=options.mapping_root)
        with writing(output, options.input) as target:
            write(rescued, target)
    with reading(output, program) as written:
        _check_result(written)
    if options.json:
        print_json(_as_json(rescued))
    elif not options.quiet and not as_thin_tool(program):
        nr = sum(thin.details.mapped_blocks for thin in rescued.salvage.thins if thin.root >= 0)
        nr_thins = sum(thin.root >= 0 for thin in rescued.salvage.thins)
        print(f"{nr_thins} thins with {nr} mappings, from {rescued.origin}")
        for line in rescued.lines():
            print(line)
    return 0


def _check_result(device: BlockDevice) -> None:
    verdict = check_pool(device)
    for line in verdict.damages + verdict.leaks:
        raise BadMetadata(f"what was written is not sound: {line}")


def _list(candidates: list[RootCandidate], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "origin": one.origin,
                    "mapping_root": one.mapping_root,
                    "details_root": one.details_root,
                    "transaction_id": one.trans_id,
                    "time": one.time,
                    "thins": dict(one.thins),
                    "missing_nodes": one.nr_missing,
                    "thins_that_disagree": one.nr_disagreeing,
                }
                for one in candidates
            ]
        )
        return
    print(f"{'ROOT':>8} {'TRANSACTION':>11} {'TIME':>6} {'THINS':>6} {'MAPPINGS':>10} {'MISSING':>7}  STATE")
    live = dict(candidates[0].thins) if candidates and candidates[0].origin == "superblock" else {}
    for one in candidates:
        thins = dict(one.thins)
        extra = sorted(thins.keys() - live.keys())
        state = f"found, with thin{'s' * (len(extra) > 1)} {' '.join(map(str, extra[:8]))}" if extra else "found"
        if one.origin != "found":
            state = one.origin
        print(
            f"{one.mapping_root:>8} {one.trans_id:>11} {one.time:>6} {len(thins):>6} {sum(thins.values()):>10} "
            f"{one.nr_missing:>7}  {state}"
        )


def _as_json(rescued: Rescued) -> dict[str, object]:
    return {
        "origin": rescued.origin,
        "whole": rescued.is_whole,
        "remarks": list(rescued.remarks),
        "thins": [
            {
                "dev_id": thin.dev_id,
                "written": thin.root >= 0,
                "mapped_blocks": thin.details.mapped_blocks if thin.root >= 0 else 0,
                "lost": [{"begin": one.begin, "last": one.last, "why": one.why} for one in thin.lost],
            }
            for thin in rescued.salvage.thins
        ],
    }


# -- shrink


def shrink(arguments: Sequence[str], program: str = "thinfs shrink") -> int:
    parser = Parser(program, "Make a pool fit into fewer data blocks: new metadata, and data moved into free blocks.")
    parser.add_argument("-i", "--input", required=True, metavar="FILE", help="the pool's metadata, or XML of it")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="new metadata; XML if XML was read")
    parser.add_argument("--data", required=True, metavar="DATA", help="the pool's data device")
    parser.add_argument("--nr-blocks", required=True, type=natural, metavar="NUMBER", help="data blocks it shall have")
    parser.add_argument("--binary", action="store_true", help="input and output are metadata, no XML (thin_shrink)")
    parser.add_argument("--no-copy", action="store_true", help="leave the data where it is: the result is of no use")
    options = parser.parse_args(arguments)
    return run(program, lambda: _shrink(options, program))


def _shrink(options: argparse.Namespace, program: str) -> int:
    with _open(options.input) as file:
        is_xml = file.read(64).lstrip().startswith(b"<")
    if is_xml and (options.binary or not Path(options.input).is_file()):
        raise InvalidArgument(f"{options.input}: XML, not metadata")
    with ExitStack() as stack:
        data = FileDevice(options.data)
        stack.callback(data.close)
        if is_xml:
            return _shrink_xml(options, program, data)
        device = stack.enter_context(reading(options.input, program, passes=3))
        target = stack.enter_context(writing(options.output, options.input))
        trees = PoolTrees.open(device)
        salvage = whole_pool(trees)
        moves = plan(counts_of(dump_of(trees)), options.nr_blocks)
        size = trees.superblock.data_block_size
        _check_data(data, trees.nr_data_blocks, size)
        progress = Progress(program, moves.nr_blocks * sectors_to_bytes(size))
        stack.callback(progress.clear)
        if not options.no_copy:
            copy_data(moves, data, size, progress)
        write_shrunk(trees, salvage, moves, options.nr_blocks, target)
    if not as_thin_tool(program):
        print(f"{moves.nr_blocks} data blocks moved; load the pool with {options.output} before the data is cut")
    return 0


def _shrink_xml(options: argparse.Namespace, program: str, data: FileDevice) -> int:
    with _open(options.input) as file:
        counted = XmlSource(file, options.input).pool()
        moves = plan(counts_of(counted), options.nr_blocks)
        size = counted.header.data_block_size
        _check_data(data, counted.header.nr_data_blocks, size)
        if not options.no_copy:
            progress = Progress(program, moves.nr_blocks * sectors_to_bytes(size))
            try:
                copy_data(moves, data, size, progress)
            finally:
                progress.clear()
        file.seek(0)
        pool = shrunk(XmlSource(file, options.input).pool(), moves, options.nr_blocks)
        write_out(Path(options.output), FORMATS["xml"](pool))
    return 0


def _check_data(data: FileDevice, nr_data_blocks: int, data_block_size: int) -> None:
    wanted = nr_data_blocks * sectors_to_bytes(data_block_size)
    if data.size_bytes < wanted:
        raise InvalidArgument(f"{data.path}: {data.size_bytes} bytes, the pool has {wanted}")


# -- pack and unpack


def pack(arguments: Sequence[str], program: str = "thinfs pack") -> int:
    parser = Parser(program, "A pool's metadata as a small file, damaged blocks included.")
    return _packing(parser, arguments, program, _pack)


def unpack(arguments: Sequence[str], program: str = "thinfs unpack") -> int:
    parser = Parser(program, "Metadata out of a packed file, of `thinfs pack` or of thin_metadata_pack.")
    return _packing(parser, arguments, program, _unpack)


def _packing(
    parser: Parser, arguments: Sequence[str], program: str, tool: Callable[[argparse.Namespace, str], int]
) -> int:
    parser.add_argument("-i", "--input", required=True, metavar="FILE")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("-f", "--force", action="store_true", help="even if the output exists")
    options = parser.parse_args(arguments)
    return run(program, lambda: tool(options, program))


def _refuse_existing(options: argparse.Namespace) -> None:
    if os.path.exists(options.output) and not options.force:
        raise Exists(f"{options.output}: exists; --force writes over it")
    with suppress(OSError):
        if os.path.samefile(options.input, options.output):
            raise InvalidArgument(f"{options.output}: would be written over what is read")


def _pack(options: argparse.Namespace, program: str) -> int:
    _refuse_existing(options)
    directory = os.path.dirname(os.path.abspath(options.output))
    with reading(options.input, program) as device:
        try:
            with tempfile.NamedTemporaryFile(dir=directory, prefix=".pack-", delete=False) as file:
                try:
                    packing.pack(device, cast("BinaryIO", file))
                    file.flush()
                    os.chmod(file.name, 0o666 & ~_umask())
                    os.rename(file.name, options.output)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise from_oserror(error, str(options.output)) from None
    return 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unpack(options: argparse.Namespace, program: str) -> int:
    _refuse_existing(options)
    with _open(options.input) as file:
        progress = Progress(program, os.fstat(file.fileno()).st_size)
        nr_blocks = packing.read_header(file)
        is_new = not os.path.exists(options.output)
        try:
            if is_new or os.path.isfile(options.output):
                with open(options.output, "wb") as made:
                    made.truncate(nr_blocks * METADATA_BLOCK_BYTES)
        except OSError as error:
            raise from_oserror(error, str(options.output)) from None
        try:
            with writing(options.output) as target:
                if target.size_bytes < nr_blocks * METADATA_BLOCK_BYTES:
                    raise InvalidArgument(f"{options.output}: smaller than the {nr_blocks} blocks that were packed")
                for block_nr, block in packing.blocks(file, nr_blocks, progress):
                    target.write(block_nr * METADATA_BLOCK_BYTES, block)
                target.flush()
        except BaseException:
            if is_new:
                os.unlink(options.output)
            raise
        finally:
            progress.clear()
    return 0
