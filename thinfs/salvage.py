"""What can still be read of a pool whose metadata is damaged: lookups that lead as far as they lead, and older roots.

Promises: reads only, and of the metadata only nodes on the way (and, for `roots`, every block once); a node that cannot
be trusted is BadMetadata where the way leads through it, and nowhere else; every walk is bounded. Needs no space map,
and no superblock if told the size of a data block. Source: docs/reference/format.md, 2 to 4.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import BadMetadata, NoSuchThin, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import unpack_mapping
from thinfs.units import MAX_DEV_ID, METADATA_BLOCK_BYTES

MAX_DEPTH: Final = 16
NO_BOUND: Final = (1 << 64) - 1
_CACHED_NODES: Final = 1024


@dataclass(frozen=True, slots=True)
class Root:
    """A tree of mappings that some root of devices has led to; `current` if the superblock still does."""

    dev_id: int
    block_nr: int
    current: bool


@dataclass(slots=True)
class Survey:
    """What a walk of one thin's mappings found."""

    mapped_blocks: int = 0
    highest_block: int | None = None
    lost: list[tuple[int, int, str]] = field(default_factory=list)  # thin blocks [begin, end) and why
    data_blocks: set[int] = field(default_factory=set)


class Salvage:
    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self._nodes: dict[int, BtreeNode] = {}

    def _block(self, block_nr: int) -> bytes:
        if block_nr >= self.nr_blocks:
            raise BadMetadata(f"metadata block {block_nr}: of {self.nr_blocks}")
        return self.device.read(block_nr * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)

    @property
    def nr_blocks(self) -> int:
        return self.device.size_bytes // METADATA_BLOCK_BYTES

    def superblock(self) -> Superblock:
        return Superblock.parse(self._block(SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)

    def node(self, block_nr: int, value_size: int = 8) -> BtreeNode:
        node = self._nodes.get(block_nr)
        if node is None:
            node = BtreeNode.parse(self._block(block_nr), block_nr)
            keys = node.keys[: node.nr_entries]
            if any(one >= other for one, other in pairwise(keys)):
                raise BadMetadata(f"metadata block {block_nr}: btree node: its keys are not in order")
            if len(self._nodes) >= _CACHED_NODES:
                self._nodes.pop(next(iter(self._nodes)))
            self._nodes[block_nr] = node
        if node.value_size != (value_size if node.is_leaf else 8):
            raise BadMetadata(f"metadata block {block_nr}: btree node: values of {node.value_size} bytes")
        return node

    def lookup(self, root: int, key: int) -> int | None:
        """The value of the key, or None; BadMetadata where the way to it is damaged."""
        block_nr = root
        for _ in range(MAX_DEPTH):
            node = self.node(block_nr)
            at = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if at < 0:
                return None
            if node.is_leaf:
                return node.values[at] if node.keys[at] == key else None
            block_nr = node.values[at]
        raise BadMetadata(f"metadata block {block_nr}: btree: more than {MAX_DEPTH} nodes lead to it")

    def data_block(self, root: int, thin_block: int) -> int | None:
        value = self.lookup(root, thin_block)
        return None if value is None else unpack_mapping(value)[0]

    def root_of(self, dev_id: int) -> int:
        """As the superblock leads to it. NoSuchThin, or BadMetadata."""
        root = self.lookup(self.superblock().data_mapping_root, dev_id)
        if root is None:
            raise NoSuchThin(f"thin {dev_id} does not exist in the metadata as they are")
        return root

    # -- everything

    def survey(self, root: int) -> Survey:
        found = Survey()
        seen: set[int] = set()
        for begin, end, leaf in self._leaves(root, 0, NO_BOUND, 1, seen):
            if isinstance(leaf, BtreeNode):
                found.mapped_blocks += leaf.nr_entries
                if leaf.nr_entries:
                    found.highest_block = leaf.keys[leaf.nr_entries - 1]
                found.data_blocks.update(unpack_mapping(value)[0] for value in leaf.live_values())
            else:
                found.lost.append((begin, end, str(leaf)))
        return found

    def _leaves(
        self, block_nr: int, begin: int, end: int, depth: int, seen: set[int]
    ) -> Iterator[tuple[int, int, BtreeNode | ThinfsError]]:
        """(first key, end of the keys, leaf or why there is none), in the order of keys; no node twice."""
        try:
            if depth > MAX_DEPTH or block_nr in seen:
                raise BadMetadata(f"metadata block {block_nr}: btree: a loop")
            seen.add(block_nr)
            node = self.node(block_nr)
        except ThinfsError as error:
            yield begin, end, error
            return
        if node.is_leaf:
            yield begin, end, node
            return
        for i in range(node.nr_entries):
            first = max(begin, node.keys[i])
            last = node.keys[i + 1] if i + 1 < node.nr_entries else end
            yield from self._leaves(node.values[i], first, min(end, last), depth + 1, seen)

    def roots(self) -> list[Root]:
        """Of every thin that the metadata, as they are or once were, lead to: those of today first, then older ones
        that lie in blocks not used again since, in the order of ids. A finding aid: an older one may be half gone."""
        current: dict[int, int] = {}
        try:
            for _, _, leaf in self._leaves(self.superblock().data_mapping_root, 0, NO_BOUND, 1, set()):
                if isinstance(leaf, BtreeNode):
                    current.update(zip(leaf.keys[: leaf.nr_entries], leaf.live_values(), strict=True))
        except ThinfsError:
            pass  # no superblock: then all that is found is older
        older = dict.fromkeys(
            (dev_id, root) for block_nr in range(1, self.nr_blocks) for dev_id, root in self._as_roots(block_nr)
        )
        found = [Root(dev_id, root, True) for dev_id, root in sorted(current.items())]
        return found + [Root(*one, False) for one in sorted(older) if current.get(one[0]) != one[1]]

    def _as_roots(self, block_nr: int) -> list[tuple[int, int]]:
        """The entries of a leaf, if it may be one of the tree of devices: each leads to a node of mappings."""
        try:
            leaf = self.node(block_nr)
        except ThinfsError:
            return []
        values = leaf.live_values()
        if not leaf.is_leaf or not len(values) or leaf.keys[leaf.nr_entries - 1] > MAX_DEV_ID:
            return []
        if not all(0 < value < self.nr_blocks for value in values) or len(set(values)) != len(values):
            return []
        entries = []
        for dev_id, root in zip(leaf.keys[: leaf.nr_entries], values, strict=True):
            try:
                self.node(root)
            except ThinfsError:
                continue  # used again since
            entries.append((dev_id, root))
        return entries
