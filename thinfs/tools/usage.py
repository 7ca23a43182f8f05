"""How many data blocks each thin of a pool maps, and how many it has for itself alone.

Promises: exclusive = the data blocks that no other thin of the live tree reaches. A reference count of 1 does not say
that: two thins that share a leaf share its blocks, each counted once. Every node is read at most twice and runs are
counted at C speed, so that a million mappings take about a second; one byte of memory for a data block.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from thinfs.errors import BadMetadata
from thinfs.tools.walk import PoolTrees, check_internal, leaf_runs

_SHARED: Final = -1
_ONCE_MORE: Final = bytes((1, 2, 2)) + bytes(253)  # how often a data block is reached: never, once, more often


@dataclass(frozen=True, slots=True)
class Usage:
    mapped_blocks: int
    exclusive_blocks: int

    @property
    def shared_blocks(self) -> int:
        return self.mapped_blocks - self.exclusive_blocks


def usage_of_all(trees: PoolTrees) -> dict[int, Usage]:
    """By device id; mapped blocks as the details say."""
    roots, details = trees.roots(), trees.details()
    census = _Census(trees)
    for dev_id, root in roots.items():
        census.visit(root, dev_id, 1)
    exclusive = census.count_exclusive(roots)
    return {dev_id: Usage(one.mapped_blocks, exclusive.get(dev_id, 0)) for dev_id, one in details.items()}


class _Census:
    """Which device reaches which node: first the nodes, then the data blocks below the leaves."""

    def __init__(self, trees: PoolTrees) -> None:
        self._trees = trees
        self._owner: dict[int, int] = {}  # node -> device or _SHARED
        self._children: dict[int, array[int]] = {}  # of internal nodes
        self._leaves: list[int] = []

    def visit(self, block_nr: int, dev_id: int, depth: int) -> None:
        owner = self._owner.get(block_nr)
        if owner is None:
            self._owner[block_nr] = dev_id
            node = self._trees.node(block_nr)
            if node.is_leaf:
                self._leaves.append(block_nr)
                return
            check_internal(node, block_nr, depth)
            self._children[block_nr] = node.live_values()
        elif owner == _SHARED:
            return
        elif owner == dev_id:
            raise BadMetadata(f"thin {dev_id}: metadata block {block_nr} is twice in its tree")
        else:
            self._owner[block_nr] = _SHARED
        for child in self._children.get(block_nr, ()):
            self.visit(child, dev_id, depth + 1)

    def count_exclusive(self, dev_ids: Iterable[int]) -> dict[int, int]:
        nr_blocks = self._trees.nr_data_blocks
        reached = bytearray(nr_blocks)
        for leaf in self._leaves:
            owner = self._owner[leaf]
            for run in leaf_runs(self._trees.node(leaf)):
                begin, end = run.data_begin, run.data_begin + run.length
                if end > nr_blocks:
                    raise BadMetadata(f"metadata block {leaf}: maps data block {end - 1} of {nr_blocks}")
                if owner == _SHARED:
                    reached[begin:end] = b"\2" * run.length
                else:
                    reached[begin:end] = reached[begin:end].translate(_ONCE_MORE)
        exclusive = dict.fromkeys(dev_ids, 0)
        for leaf in self._leaves:
            owner = self._owner[leaf]
            if owner != _SHARED:
                for run in leaf_runs(self._trees.node(leaf)):
                    exclusive[owner] += reached.count(1, run.data_begin, run.data_begin + run.length)
        return exclusive
