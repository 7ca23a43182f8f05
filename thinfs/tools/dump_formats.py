"""A pool as text: XML and the human-readable form, byte for byte what thin_dump 0.9.0 and (`xml1`) 1.1.0 print; JSON.

Promises: piece by piece, nothing held back, so a dump of thinfs and one of thin-provisioning-tools can be compared with
cmp. The uuid is always empty there: dm-thin never uses it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

from thinfs.tools import _mappings
from thinfs.tools.ir import PoolDump

Pieces: TypeAlias = Iterator[bytes]  # of many lines, whole ones

_SINGLE: Final = re.compile(rb"^    (\d+) -> (\d+), ", re.MULTILINE)


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


def xml1_pieces(pool: PoolDump) -> Pieces:
    """As 1.x: no flags where none is set, no newline at the end."""
    for piece in xml_pieces(pool):
        if piece == b"</superblock>\n":
            piece = piece.rstrip()
        yield piece.replace(b' flags="0" version', b" version", 1) if piece.startswith(b"<superblock") else piece


def human_readable1_pieces(pool: PoolDump) -> Pieces:
    """As 1.x: a single mapping is a range as well."""
    for piece in human_readable_pieces(pool):
        yield _SINGLE.sub(rb"    (\1..\1) -> (\2..\2), ", piece)


def json_pieces(pool: PoolDump) -> Pieces:
    """One object; a mapping is [thin_begin, data_begin, length, time]."""
    header = pool.header
    yield (
        f'{{"time": {header.time}, "transaction": {header.trans_id}, "flags": {header.flags}, '
        f'"version": {header.version}, "data_block_size": {header.data_block_size}, '
        f'"nr_data_blocks": {header.nr_data_blocks},\n "devices": ['
    ).encode()
    for i, thin in enumerate(pool.thins):
        details = thin.details
        yield (
            f"{',' if i else ''}\n  "
            f'{{"dev_id": {thin.dev_id}, "mapped_blocks": {details.mapped_blocks}, '
            f'"transaction": {details.transaction_id}, "creation_time": {details.creation_time}, '
            f'"snap_time": {details.snapshotted_time}, "mappings": ['
        ).encode()
        for k, batch in enumerate(thin.batches):
            runs = ",".join(f"[{one.thin_begin},{one.data_begin},{one.length},{one.time}]" for one in batch)
            yield f"{',' if k else ''}\n   {runs}".encode()
        yield b"]}"
    yield b"]}\n"


FORMATS: Final[Mapping[str, Callable[[PoolDump], Pieces]]] = {
    "xml": xml_pieces,
    "human_readable": human_readable_pieces,
    "xml1": xml1_pieces,
    "human_readable1": human_readable1_pieces,
    "json": json_pieces,
}
