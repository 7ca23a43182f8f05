"""A pool as text: XML and the human-readable form, both byte for byte what thin_dump 0.9.0 prints.

Promises: piece by piece, nothing held back, so a dump of thinfs and one of thin-provisioning-tools can be compared with
cmp. The uuid is always empty there: dm-thin never uses it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from thinfs.tools import _mappings
from thinfs.tools.ir import PoolDump

Pieces: TypeAlias = Iterator[bytes]  # of many lines, whole ones


def xml_pieces(pool: PoolDump) -> Pieces:
    header = pool.header
    yield (
        f'<superblock uuid="" time="{header.time}" transaction="{header.trans_id}" flags="{header.flags}" '
        f'version="{header.version}" data_block_size="{header.data_block_size}" '
        f'nr_data_blocks="{header.nr_data_blocks}">\n'
    ).encode()
    for thin in pool.thins:
        details = thin.details
        yield (
            f'  <device dev_id="{thin.dev_id}" mapped_blocks="{details.mapped_blocks}" '
            f'transaction="{details.transaction_id}" creation_time="{details.creation_time}" '
            f'snap_time="{details.snapshotted_time}">\n'
        ).encode()
        for batch in thin.batches:
            yield _mappings.xml(batch.words, batch.nr_runs)
        yield b"  </device>\n"
    yield b"</superblock>\n"


def human_readable_pieces(pool: PoolDump) -> Pieces:
    header = pool.header
    yield (
        f'begin superblock: "", {header.time}, {header.trans_id}, {header.flags}, '
        f"{header.version}, {header.data_block_size}, {header.nr_data_blocks}\n"
    ).encode()
    for thin in pool.thins:
        details = thin.details
        yield (
            f"device: {thin.dev_id}\nmapped_blocks: {details.mapped_blocks}\n"
            f"transaction: {details.transaction_id}\ncreation time: {details.creation_time}\n"
            f"snap time: {details.snapshotted_time}\n"
        ).encode()
        for batch in thin.batches:
            yield _mappings.human_readable(batch.words, batch.nr_runs)
        yield b"\n"
    yield b"end superblock\n"


FORMATS: Final[Mapping[str, Callable[[PoolDump], Pieces]]] = {
    "xml": xml_pieces,
    "human_readable": human_readable_pieces,
}
