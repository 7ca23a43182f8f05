"""How many data blocks each thin of a pool maps, and how many it has for itself alone.

Promises: exclusive = the data blocks that no other thin of the live tree reaches. A reference count of 1 does not say
that: two thins that share a leaf share its blocks, each counted once. Every node is read at most twice and runs are
counted at C speed; one byte of memory for a data block.
"""

from dataclasses import dataclass
from typing import Final

from thinfs.errors import BadMetadata
from thinfs.tools import _mappings
from thinfs.tools.graph import MappingGraph
from thinfs.tools.ref_counts import checked_nr_data_blocks
from thinfs.tools.walk import PoolTrees

SHARED: Final = -1


@dataclass(frozen=True, slots=True)
class Usage:
    mapped_blocks: int
    exclusive_blocks: int

    @property
    def shared_blocks(self) -> int:
        return self.mapped_blocks - self.exclusive_blocks


def usage_of_all(trees: PoolTrees) -> dict[int, Usage]:
    """By device id; mapped blocks as the details say."""
    details = trees.details()
    exclusive = _exclusive_blocks(MappingGraph(trees))
    return {dev_id: Usage(one.mapped_blocks, exclusive.get(dev_id, 0)) for dev_id, one in details.items()}


def owners(graph: MappingGraph) -> dict[int, int]:
    """Node -> the one thin that reaches it, or SHARED."""
    found: dict[int, int] = {}
    for dev_id, root in graph.roots.items():
        _own(graph, root, dev_id, found)
    return found


def _own(graph: MappingGraph, block_nr: int, dev_id: int, found: dict[int, int]) -> None:
    owner = found.setdefault(block_nr, dev_id)
    if owner == SHARED:
        return
    if owner != dev_id:
        found[block_nr] = SHARED
    for child in graph.children.get(block_nr, ()):
        _own(graph, child, dev_id, found)


def _exclusive_blocks(graph: MappingGraph) -> dict[int, int]:
    owner = owners(graph)
    counts = bytearray(checked_nr_data_blocks(graph.trees))
    many: dict[int, int] = {}
    for leaf, batch in graph.leaf_batches():
        for _ in range(2 if owner[leaf] == SHARED else 1):
            refused = _mappings.count_runs(batch.words, batch.nr_runs, counts, many)
            if refused >= 0:
                raise BadMetadata(f"metadata block {leaf}: maps data blocks past the end, {len(counts)}")
    exclusive = dict.fromkeys(graph.roots, 0)
    for leaf, batch in graph.leaf_batches():
        if owner[leaf] != SHARED:
            exclusive[owner[leaf]] += _mappings.nr_with_count(batch.words, batch.nr_runs, counts, 1)
    return exclusive
