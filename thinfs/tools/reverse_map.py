"""Which thin blocks lie on which data blocks, in the order of these: what thin_rmap prints.

Promises: of each region the stretches that lie in it, cut to it; a thin's neighbouring stretches joined, their times do
not matter. In bounded memory: a large region goes in windows of some hundred thousand stretches, the trees are read for
each.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from thinfs.tools import _mappings
from thinfs.tools.runs import MappingRun, RunBatch
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES

_WINDOW_RUNS: Final = 400_000
_NR_SLOTS: Final = 4096


class Owned(NamedTuple):
    data_begin: int
    length: int
    dev_id: int
    thin_begin: int


def reverse_map(trees: PoolTrees, begin: int, end: int, *, once: bool = False) -> Iterator[Owned]:
    """By the first data block, then the last, then by device. What thins share as a subtree is named for each, or for
    the first of them only (`once`), as both versions of thin_rmap do."""
    roots = trees.roots()
    for window_begin, window_end in _windows(trees, roots, begin, end):
        found: list[Owned] = []
        met = bytearray(trees.device.size_bytes // METADATA_BLOCK_BYTES) if once else None
        for dev_id, root in roots.items():
            last: Owned | None = None
            for run in _clipped(trees, root, window_begin, window_end, met):
                if last is not None and (
                    run.thin_begin == last.thin_begin + last.length and run.data_begin == last.data_begin + last.length
                ):
                    last = found[-1] = last._replace(length=last.length + run.length)
                else:
                    last = Owned(run.data_begin, run.length, dev_id, run.thin_begin)
                    found.append(last)
        found.sort()
        yield from found


def _clipped(trees: PoolTrees, root: int, begin: int, end: int, met: bytearray | None) -> Iterator[MappingRun]:
    for batch in trees.batches(root, met):
        words = array("Q")
        words.frombytes(_mappings.clip_runs(batch.words, batch.nr_runs, begin, end))
        yield from RunBatch(words, len(words) // 4)


def _windows(trees: PoolTrees, roots: dict[int, int], begin: int, end: int) -> list[tuple[int, int]]:
    """Parts of the region with few enough runs in each, unless one slot alone has more."""
    end = min(end, trees.nr_data_blocks)
    if begin >= end:
        return []
    width = -(-(end - begin) // _NR_SLOTS)
    slots = array("Q", bytes(8 * _NR_SLOTS))
    for root in roots.values():
        for batch in trees.batches(root):
            _mappings.histogram(batch.words, batch.nr_runs, begin, width, slots)
    windows, first, nr = [], 0, 0
    for slot, more in enumerate(slots):
        if nr and nr + more > _WINDOW_RUNS:
            windows.append((begin + first * width, begin + slot * width))
            first, nr = slot, 0
        nr += more
    windows.append((begin + first * width, end))
    return windows


def lines(trees: PoolTrees, regions: Sequence[tuple[int, int]], *, once: bool = False) -> Iterator[bytes]:
    for begin, end in regions:
        for one in reverse_map(trees, begin, end, once=once):
            yield (
                f"data {one.data_begin}..{one.data_begin + one.length} -> "
                f"thin({one.dev_id}) {one.thin_begin}..{one.thin_begin + one.length}\n"
            ).encode()
