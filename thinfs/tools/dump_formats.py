"""A pool as text: XML and the human-readable form, both byte for byte what thin_dump 0.9.0 prints.

Promises: line by line, nothing held back; so a dump of thinfs and one of thin-provisioning-tools can be compared with
cmp. The uuid is always empty there: dm-thin never uses it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from thinfs.tools.ir import PoolDump

Lines: TypeAlias = Iterator[str]


def xml_lines(pool: PoolDump) -> Lines:
    superblock = pool.superblock
    yield (
        f'<superblock uuid="" time="{superblock.time}" transaction="{superblock.trans_id}" flags="{superblock.flags}" '
        f'version="{superblock.version}" data_block_size="{superblock.data_block_size}" '
        f'nr_data_blocks="{pool.nr_data_blocks}">\n'
    )
    for thin in pool.thins:
        details = thin.details
        yield (
            f'  <device dev_id="{thin.dev_id}" mapped_blocks="{details.mapped_blocks}" '
            f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
            f'snap_time="{details.snapshotted_time}">\n'
        )
        for begin, data_begin, length, time in thin.runs:
            if length == 1:
                yield f'    <single_mapping origin_block="{begin}" data_block="{data_begin}" time="{time}"/>\n'
            else:
                yield (
                    f'    <range_mapping origin_begin="{begin}" data_begin="{data_begin}" '
                    f'length="{length}" time="{time}"/>\n'
                )
        yield "  </device>\n"
    yield "</superblock>\n"


def text_lines(pool: PoolDump) -> Lines:
    superblock = pool.superblock
    yield (
        f'begin superblock: "", {superblock.time}, {superblock.trans_id}, {superblock.flags}, '
        f"{superblock.version}, {superblock.data_block_size}, {pool.nr_data_blocks}\n"
    )
    for thin in pool.thins:
        details = thin.details
        yield (
            f"device: {thin.dev_id}\nmapped_blocks: {details.mapped_blocks}\n"
            f"transaction: {details.transaction_id}\ncreation time: {details.creation_time}\n"
            f"snap time: {details.snapshotted_time}\n"
        )
        for begin, data_begin, length, time in thin.runs:
            if length == 1:
                yield f"    {begin} -> {data_begin}, {time}\n"
            else:
                yield (f"    ({begin}..{begin + length - 1}) -> ({data_begin}..{data_begin + length - 1}), {time}\n")
        yield "\n"
    yield "end superblock\n"


FORMATS: Final[Mapping[str, Callable[[PoolDump], Lines]]] = {"xml": xml_lines, "human_readable": text_lines}
