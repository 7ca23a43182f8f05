"""A pool made to fit into fewer data blocks: what lies behind the new end is copied into free blocks before it.

Promises: data is written only to blocks that the pool's metadata has free, and is on the device before the first word
of the new metadata, which goes elsewhere: the old metadata with its data stays valid throughout, a crash loses nothing.
Shared blocks are copied once, shared subtrees stay shared. Raises NoSpace, before anything is written, if the pool
has more blocks in use than it shall have; Busy where a metadata snapshot is held, whose mappings would go.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, Busy, InvalidArgument, NoSpace
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.checksum import stored_block_nr
from thinfs.ondisk.thin import TIME_BITS, TIME_MASK
from thinfs.tools.copier import copy_thins
from thinfs.tools.ir import PoolDump, ThinDump, header_of
from thinfs.tools.metadata_writer import MetadataWriter
from thinfs.tools.node_writer import Subtree
from thinfs.tools.ref_counts import RefCounts
from thinfs.tools.runs import MappingRun, RunBatch
from thinfs.tools.salvage import Salvage
from thinfs.tools.walk import PoolTrees
from thinfs.units import sectors_to_bytes

_COPY_BYTES: Final = 4 << 20
_STEP: Final = 1 << 16


class Move(NamedTuple):
    """Data blocks `begin` and on go to `to` and on."""

    begin: int
    to: int
    length: int


@dataclass(frozen=True, slots=True)
class Moves:
    """Ascending; what they do not name stays."""

    moves: tuple[Move, ...]

    @property
    def nr_blocks(self) -> int:
        return sum(move.length for move in self.moves)

    def of(self, data_block: int) -> tuple[int, int]:
        """Where it goes, and how many from it on go with it."""
        i = bisect_right(self.moves, (data_block, 1 << 64, 0)) - 1
        if i >= 0 and data_block < self.moves[i].begin + self.moves[i].length:
            offset = data_block - self.moves[i].begin
            return self.moves[i].to + offset, self.moves[i].length - offset
        following = self.moves[i + 1].begin if i + 1 < len(self.moves) else 1 << 63
        return data_block, following - data_block


def plan(counts: RefCounts, nr_blocks: int) -> Moves:
    """`counts`: of the blocks in use."""
    if not 0 < nr_blocks <= counts.nr_blocks:
        raise InvalidArgument(f"{nr_blocks} data blocks: the pool has {counts.nr_blocks}, it can only shrink")
    if counts.nr_allocated > nr_blocks:
        raise NoSpace(f"{counts.nr_allocated} data blocks are in use, they do not fit into {nr_blocks}")
    moves: list[Move] = []
    free = _ranges(counts, 0, nr_blocks, in_use=False)
    to = room = 0
    for begin, end in _ranges(counts, nr_blocks, counts.nr_blocks, in_use=True):
        while begin < end:
            if not room:
                to, room = next(free)
                room -= to
            length = min(room, end - begin)
            moves.append(Move(begin, to, length))
            begin, to, room = begin + length, to + length, room - length
    return Moves(tuple(moves))


def _ranges(counts: RefCounts, begin: int, end: int, *, in_use: bool) -> Iterator[tuple[int, int]]:
    first = None
    for start in range(begin, end, _STEP):
        small = counts.small(start, min(start + _STEP, end))
        at = 0
        while at < len(small):
            # From here on to the next change.
            used = small[at] != 0
            stop = small.find(0, at) if used else at + len(small[at:]) - len(small[at:].lstrip(b"\0"))
            stop = len(small) if stop < 0 else stop
            if used == in_use and first is None:
                first = start + at
            elif used != in_use and first is not None:
                yield first, start + at
                first = None
            at = stop
    if first is not None:
        yield first, end


def counts_of(pool: PoolDump) -> RefCounts:
    counts = RefCounts(pool.header.nr_data_blocks)
    for thin in pool.thins:
        for batch in thin.batches:
            refused = counts.inc_runs(batch)
            if refused is not None:
                raise BadMetadata(f"thin {thin.dev_id}: maps data blocks past the end, {counts.nr_blocks}")
    return counts


def copy_data(moves: Moves, data: BlockDevice, data_block_size: int, progress: Callable[[int], None]) -> None:
    block_bytes = sectors_to_bytes(data_block_size)
    for begin, to, length in moves.moves:
        nr_bytes = length * block_bytes
        for offset in range(0, nr_bytes, _COPY_BYTES):
            part = data.read(begin * block_bytes + offset, min(_COPY_BYTES, nr_bytes - offset))
            data.write(to * block_bytes + offset, part)
            progress(len(part))
    data.flush()


# -- the mappings


def shrunk(pool: PoolDump, moves: Moves, nr_blocks: int) -> PoolDump:
    def thins() -> Iterator[ThinDump]:
        for thin in pool.thins:
            yield ThinDump(thin.dev_id, thin.details, _moved(thin.batches, moves))

    return PoolDump(replace(pool.header, nr_data_blocks=nr_blocks), thins())


def _moved(batches: Iterable[RunBatch], moves: Moves) -> Iterator[RunBatch]:
    for batch in batches:
        yield RunBatch.of(_moved_runs(batch, moves))


def _moved_runs(batch: RunBatch, moves: Moves) -> Iterator[MappingRun]:
    for thin_begin, data_begin, length, time in batch:
        while length:
            to, along = moves.of(data_begin)
            part = min(length, along)
            yield MappingRun(thin_begin, to, part, time)
            thin_begin, data_begin, length = thin_begin + part, data_begin + part, length - part


def whole_pool(trees: PoolTrees) -> Salvage:
    """Refuses what is damaged or has a metadata snapshot."""
    if trees.superblock.held_root:
        raise Busy(f"a metadata snapshot is held, in block {trees.superblock.held_root}: release it first")
    salvage = Salvage(trees.device, trees.roots(), trees.details(), trees.nr_data_blocks)
    for thin in salvage.thins:
        for lost in thin.lost:
            raise BadMetadata(f"thin {thin.dev_id}: {lost.why}")
    return salvage


def write_shrunk(trees: PoolTrees, salvage: Salvage, moves: Moves, nr_blocks: int, target: BlockDevice) -> None:
    writer = MetadataWriter(target, replace(header_of(trees), nr_data_blocks=nr_blocks))

    def leaf(block: Buffer) -> Subtree:
        node = BtreeNode.parse(block, stored_block_nr(block))
        values = node.live_values()
        if not values or max(values) >> TIME_BITS < nr_blocks:
            return writer.copied_leaf(block)
        moved = array("Q", [moves.of(one >> TIME_BITS)[0] << TIME_BITS | one & TIME_MASK for one in values])
        return writer.mapping_leaf(node.keys[: node.nr_entries], moved)

    copy_thins(salvage, writer, leaf)
    writer.finish()
