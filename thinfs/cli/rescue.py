"""`thinfs rescue METADATA`: what can still be read of a pool that is damaged, and volumes that were deleted: each with
the table by which the server shows it read-only. Writes nothing. Exit status 1 where something of today's is lost."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from thinfs.blockdev import FileDevice
from thinfs.dm.table import quote_word
from thinfs.errors import ThinfsError
from thinfs.salvage import Root, Salvage, Survey

_SHOWN = 5


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="thinfs rescue", description=__doc__)
    parser.add_argument("metadata", metavar="METADATA", help="the metadata file or block device")
    parser.add_argument(
        "data", metavar="DATA", nargs="?", default="DATA", help="the data device, for the tables printed"
    )
    parser.add_argument("--block-sectors", type=int, help="size of a data block, where no superblock says it")
    parser.add_argument("--no-older", action="store_true", help="only what the superblock leads to")
    options = parser.parse_args(arguments)
    try:
        device = FileDevice(options.metadata, read_only=True)
        try:
            return _rescue(Salvage(device), options)
        finally:
            device.close()
    except ThinfsError as error:
        print(f"thinfs rescue: {error}", file=sys.stderr)
        return 1


def _rescue(salvage: Salvage, options: argparse.Namespace) -> int:
    status, block_sectors = 0, options.block_sectors
    try:
        superblock = salvage.superblock()
        block_sectors = block_sectors or superblock.data_block_size
    except ThinfsError as error:
        status = 1
        print(f"no superblock: {error}")
    taken: set[int] = set()  # data blocks of today's thins
    for root in salvage.roots():
        if not root.current and options.no_older:
            break
        survey = salvage.survey(root.block_nr)
        if root.current:
            taken |= survey.data_blocks
            status = status or bool(survey.lost)
        for line in _lines(root, survey, taken, block_sectors, options):
            print(line)
    return int(status)


def _lines(
    root: Root, survey: Survey, taken: set[int], block_sectors: int | None, options: argparse.Namespace
) -> Iterator[str]:
    what = f"thin {root.dev_id}" if root.current else f"older: thin {root.dev_id}, root {root.block_nr}"
    reused = 0 if root.current else len(survey.data_blocks & taken)
    yield f"{what}: {survey.mapped_blocks} blocks" + (f", {reused} of them belong to thins of today" if reused else "")
    for begin, end, why in survey.lost[:_SHOWN]:
        yield f"  lost: blocks {begin} to {end - 1 if end < 1 << 63 else 'the end'}: {why}"
    if len(survey.lost) > _SHOWN:
        yield f"  lost: {len(survey.lost) - _SHOWN} more ranges"
    if block_sectors and survey.highest_block is not None:
        words = [quote_word(options.metadata), quote_word(options.data), str(root.dev_id)]
        if not root.current or options.block_sectors:
            words += [str(root.block_nr), str(block_sectors)]
        length = (survey.highest_block + 1) * block_sectors
        yield f'  dmsetup create --readonly NAME --table "0 {length} thin-rescue {" ".join(words)}"'
