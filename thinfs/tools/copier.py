"""Mapping trees copied into new metadata, node by node, each once.

Promises: what thins share is shared in the copy; whole internal nodes have the children they had, above what lost
something new ones are made. `leaf` says how a leaf is written, as it is if nothing is said.
"""

from collections.abc import Callable

from thinfs.blockdev import Buffer
from thinfs.tools.metadata_writer import MetadataWriter
from thinfs.tools.node_writer import Subtree
from thinfs.tools.nodes import read_blocks
from thinfs.tools.salvage import Salvage


def copy_thins(salvage: Salvage, writer: MetadataWriter, leaf: Callable[[Buffer], Subtree] | None = None) -> None:
    """Thins of which nothing is left are left out."""
    copier = _Copier(salvage, writer, leaf or writer.copied_leaf)
    for thin in salvage.thins:
        if thin.root >= 0:
            writer.add_thin(thin.dev_id, thin.details, copier.root(thin.root))


class _Copier:
    def __init__(self, salvage: Salvage, writer: MetadataWriter, leaf: Callable[[Buffer], Subtree]) -> None:
        self._salvage = salvage
        self._writer = writer
        self._leaf = leaf
        self._copies: dict[int, Subtree] = {}

    def root(self, root: int) -> int:
        if self._salvage.is_whole(root):
            return self._copied([root])[0].block_nr
        known = self._copies.get(root)
        if known is None:
            leaves = self._copied(list(self._salvage.leaves(root)))
            known = self._copies[root] = Subtree(leaves[0].lowest, self._writer.nodes.tree(leaves))
        return known.block_nr

    def _copied(self, block_nrs: list[int]) -> list[Subtree]:
        """Of whole subtrees, side by side."""
        new = [one for one in dict.fromkeys(block_nrs) if one not in self._copies]
        leaves = [one for one in new if self._salvage.is_leaf(one)]
        for leaf, block in zip(leaves, read_blocks(self._salvage.device, leaves), strict=True):
            self._copies[leaf] = self._leaf(block)
        for one in new:
            if not self._salvage.is_leaf(one):
                below = self._copied(list(self._salvage.children[one]))
                self._copies[one] = self._writer.nodes.internal_node(below)
        return [self._copies[one] for one in block_nrs]
