"""Who maps which data block: ranges of the data device, each with the thins that reach it.

Promises: ascending ranges without gaps over the whole device, neighbours with the same thins joined; what no thin maps
is a range of nobody's. Takes time and memory by the runs of all thins together, shared ones counted for each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from thinfs.errors import BadMetadata
from thinfs.tools.walk import PoolTrees

_IDS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class OwnedRange:
    begin: int
    end: int
    dev_ids: tuple[int, ...]


def owned_ranges(trees: PoolTrees) -> Iterator[OwnedRange]:
    nr_blocks = trees.nr_data_blocks
    changes: dict[int, set[int]] = {nr_blocks: set()}  # data block -> thins whose reach begins or ends there
    for dev_id, root in trees.roots().items():
        for run in trees.runs(root):
            end = run.data_begin + run.length
            if end > nr_blocks:
                raise BadMetadata(f"thin {dev_id}: maps data block {end - 1} of {nr_blocks}")
            for position in (run.data_begin, end):
                # A run that ends where another of the same thin begins changes nothing.
                changes.setdefault(position, set()).symmetric_difference_update((dev_id,))
    begin, owners = 0, set[int]()
    for position in sorted(changes):
        changed = changes[position]
        if position > begin and (changed or position == nr_blocks):
            yield OwnedRange(begin, position, tuple(sorted(owners)))
            begin = position
        owners ^= changed


def map_lines(trees: PoolTrees) -> Iterator[str]:
    ranges = list(owned_ranges(trees))
    mapped = sum(one.end - one.begin for one in ranges if one.dev_ids)
    shared = sum(one.end - one.begin for one in ranges if len(one.dev_ids) > 1)
    yield (
        f"{trees.nr_data_blocks} data blocks of {trees.superblock.data_block_size} sectors: "
        f"{mapped} mapped, {shared} of them shared, {trees.nr_data_blocks - mapped} not mapped\n"
    )
    table = [("DATA BLOCKS", "COUNT", "THINS")]
    for one in ranges:
        first_to_last = str(one.begin) if one.end == one.begin + 1 else f"{one.begin}..{one.end - 1}"
        table.append((first_to_last, str(one.end - one.begin), _ids(one.dev_ids)))
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    for blocks, count, ids in table:
        yield f"{blocks.rjust(widths[0])}  {count.rjust(widths[1])}  {ids}\n"


def _ids(dev_ids: tuple[int, ...]) -> str:
    if not dev_ids:
        return "-"
    more = len(dev_ids) - _IDS_SHOWN
    return " ".join(map(str, dev_ids[:_IDS_SHOWN])) + (f" and {more} more" if more > 0 else "")
