"""A thin volume read through its pool's metadata: blocks from the data device, the rest from the origin, or zeros.

Promises: reads only, and only what it is asked for: nodes are read one by one, checked as tools/nodes.py says, the last
ones kept. A data block outside of the pool is BadMetadata, never a read somewhere else.
Source: docs/reference/format.md, 3 and 4.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, TypeAlias

from thinfs.errors import BadMetadata
from thinfs.lvm.reading import Readable, check_range
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.thin import unpack_mapping
from thinfs.tools.nodes import NO_BOUND, check_node, children
from thinfs.tools.walk import PoolTrees
from thinfs.units import ceil_div

_NODES_KEPT: Final = 1024
_MAPPING_BYTES: Final = 8


class Nodes:
    """The nodes of one pool, those read last kept. Volumes share them, as they share their trees."""

    def __init__(self, trees: PoolTrees) -> None:
        self._trees = trees
        self._kept: OrderedDict[int, BtreeNode] = OrderedDict()

    def node(self, block_nr: int) -> BtreeNode:
        node = self._kept.get(block_nr)
        if node is None:
            node = self._trees.node(block_nr)
            check_node(node, block_nr, _MAPPING_BYTES, 0, NO_BOUND)
            self._kept[block_nr] = node
            if len(self._kept) > _NODES_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(block_nr)
        return node


Seen: TypeAlias = dict[int, tuple[int, int]]  # nodes that were read: their first and last keys


class ThinVolume:
    def __init__(
        self,
        label: str,
        size_bytes: int,
        nodes: Nodes,
        root: int,
        data: Readable,
        block_bytes: int,
        nr_data_blocks: int,
        origin: Readable | None,
    ) -> None:
        self.label = label
        self.size_bytes = size_bytes
        self._nodes = nodes
        self._root = root
        self._data = data
        self._block_bytes = block_bytes
        self._nr_data_blocks = nr_data_blocks
        self._origin = origin

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        result = bytearray(length)
        for begin, end, data_offset in self._pieces(offset, offset + length):
            if data_offset is not None:
                result[begin - offset : end - offset] = self._data.read(data_offset, end - begin)
            elif self._origin is not None and begin < self._origin.size_bytes:
                end = min(end, self._origin.size_bytes)
                result[begin - offset : end - offset] = self._origin.read(begin, end - begin)
        return bytes(result)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last, data_offset in self._pieces(begin, end):
            if data_offset is not None:
                for at, until in self._data.data_ranges(data_offset, data_offset + last - first):
                    yield first + at - data_offset, first + until - data_offset
            elif self._origin is not None and first < self._origin.size_bytes:
                yield from self._origin.data_ranges(first, min(last, self._origin.size_bytes))

    def verify(self, seen: "Seen") -> None:
        """Read the whole tree, but for the nodes in `seen`, of other volumes; BadMetadata for what is wrong in it."""
        self._verify(self._root, 1, 0, NO_BOUND, seen)

    def _verify(self, block_nr: int, depth: int, low: int, last: int, seen: "Seen") -> None:
        if block_nr in seen:
            # a node that is met twice in one tree is within the bounds of one place alone
            first_key, last_key = seen[block_nr]
            if first_key < low or last_key > last:
                raise BadMetadata(f"metadata block {block_nr}: keys {first_key}..{last_key} outside {low}..{last}")
            return
        node = self._nodes.node(block_nr)
        check_node(node, block_nr, _MAPPING_BYTES, low, last)
        if node.is_leaf:
            for key, value in zip(node.keys[: node.nr_entries], node.live_values(), strict=True):
                self._data_offset(value, key)
        else:
            for child, child_low, child_last in children(node, block_nr, depth, last):
                self._verify(child, depth + 1, child_low, child_last, seen)
        seen[block_nr] = (node.keys[0], node.keys[node.nr_entries - 1]) if node.nr_entries else (NO_BOUND, 0)

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """(first, last, offset on the data device or None where nothing is mapped): ascending, without gaps."""
        size, position = self._block_bytes, begin
        run: tuple[int, int, int] | None = None
        for thin_block, value in self._mappings(self._root, 1, begin // size, ceil_div(end, size)):
            first, last = max(thin_block * size, begin), min((thin_block + 1) * size, end)
            at = self._data_offset(value, thin_block) + first - thin_block * size
            if run is not None and run[1] == first and run[2] + run[1] - run[0] == at:
                run = (run[0], last, run[2])
                continue
            if run is not None:
                yield run
                position = run[1]
            if position < first:
                yield position, first, None
                position = first
            run = (first, last, at)
        if run is not None:
            yield run
            position = run[1]
        if position < end:
            yield position, end, None

    def _data_offset(self, value: int, thin_block: int) -> int:
        data_block, _ = unpack_mapping(value)
        if data_block >= self._nr_data_blocks:
            raise BadMetadata(
                f"{self.label}: block {thin_block} is mapped to data block {data_block} of {self._nr_data_blocks}"
            )
        return data_block * self._block_bytes

    def _mappings(self, block_nr: int, depth: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Of the blocks `begin..end`, ascending."""
        node = self._nodes.node(block_nr)
        keys, nr = node.keys, node.nr_entries
        if node.is_leaf:
            for i in range(bisect_left(keys, begin, 0, nr), bisect_left(keys, end, 0, nr)):
                yield keys[i], node.values[i]
            return
        below = children(node, block_nr, depth, NO_BOUND)
        for child, _, _ in below[max(bisect_right(keys, begin, 0, nr) - 1, 0) : bisect_left(keys, end, 0, nr)]:
            yield from self._mappings(child, depth + 1, begin, end)
