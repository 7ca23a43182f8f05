"""The mapping trees of all thins at once, as the graph that their sharing makes of them.

Promises: every node is read once, whoever shares it, and checked; there is no way in a circle. Memory: some 150 bytes
an internal node, 8 a leaf. `leaf_batches` reads the leaves once more, in the order in which they were met, for what
can only be said of a leaf when the whole graph is known.
"""

from array import array
from collections.abc import Iterator

from thinfs.errors import BadMetadata
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.tools.nodes import NO_BOUND, children, mapping_node_is_leaf, read_blocks
from thinfs.tools.runs import RunBatch, leaf_batch
from thinfs.tools.walk import PoolTrees


class MappingGraph:
    """`roots`: device id -> node; `children`: of each internal node; `leaves`: as they were first met."""

    def __init__(self, trees: PoolTrees, roots: dict[int, int] | None = None) -> None:
        self.trees = trees
        self.roots = trees.roots() if roots is None else roots
        self.children: dict[int, array[int]] = {}
        self.leaves: array[int] = array("Q")
        self._met = bytearray(trees.device.size_bytes // 4096 // 8 + 1)  # a bit a metadata block
        self._path: set[int] = set()
        for root in self.roots.values():
            self._visit([(root, 0, NO_BOUND)], 1)

    def _visit(self, nodes: list[tuple[int, int, int]], depth: int) -> None:
        new = []
        for node in nodes:
            block_nr = node[0]
            if block_nr in self._path:
                raise BadMetadata(f"metadata block {block_nr}: leads back to itself")
            if block_nr >= 8 * len(self._met) or not self._met[block_nr >> 3] & 1 << (block_nr & 7):
                new.append(node)
        for (block_nr, low, last), block in zip(
            new, read_blocks(self.trees.device, [node[0] for node in new]), strict=True
        ):
            if self._met[block_nr >> 3] & 1 << (block_nr & 7):
                continue  # twice below one node
            leaf = mapping_node_is_leaf(block, block_nr, low, last)
            self._met[block_nr >> 3] |= 1 << (block_nr & 7)
            if leaf:
                self.leaves.append(block_nr)
                continue
            below = children(BtreeNode.parse(block, block_nr), block_nr, depth, last)
            self.children[block_nr] = array("Q", [child for child, _, _ in below])
            self._path.add(block_nr)
            self._visit(below, depth + 1)
            self._path.discard(block_nr)

    def leaf_batches(self) -> Iterator[tuple[int, RunBatch]]:
        """(leaf, its runs), in the order of `leaves`."""
        for block_nr, block in zip(self.leaves, read_blocks(self.trees.device, self.leaves), strict=True):
            yield block_nr, leaf_batch(block)
