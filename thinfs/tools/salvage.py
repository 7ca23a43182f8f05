"""What can still be read of a pool: its mapping trees with their damaged parts left out, and which parts these are.

Promises: every node is read once, damage ends at the node it is in, what is lost is known as ranges of thin blocks;
thins whose root is gone are there with everything lost. Subtrees that thins share stay shared. Memory: some 60 bytes a
node. Never: guesses a mapping.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import BadMetadata, ThinfsError
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.thin import DeviceDetails, unpack_mapping
from thinfs.tools.nodes import NO_BOUND, children, mapping_node_is_leaf, read_blocks, try_read_blocks
from thinfs.tools.runs import RunBatch, joined
from thinfs.units import METADATA_BLOCK_BYTES

_LEAF: Final = 1
_WHOLE: Final = 2  # an internal node with all that is below it
_DAMAGED: Final = 3  # an internal node that lost something
_GONE: Final = 4


@dataclass(frozen=True, slots=True)
class Lost:
    """Thin blocks begin..last, the highest there can be where nothing follows; and why."""

    begin: int
    last: int
    why: str


@dataclass(frozen=True, slots=True)
class SalvagedThin:
    dev_id: int
    details: DeviceDetails  # as they were read or made up; mapped_blocks as found
    root: int
    lost: tuple[Lost, ...]

    @property
    def is_whole(self) -> bool:
        return not self.lost


class Salvage:
    """`roots` and `details` may be of different devices: what has no details gets some, what has no root is lost."""

    def __init__(
        self, device: BlockDevice, roots: Mapping[int, int], details: Mapping[int, DeviceDetails], nr_data_blocks: int
    ) -> None:
        self.device = device
        self.nr_data_blocks = nr_data_blocks
        self.children: dict[int, array[int]] = {}  # of internal nodes, those that are there
        self.highest_data_block = -1
        self._lost: dict[int, list[Lost]] = {}  # in a node, or as a whole
        self._states = bytearray(device.size_bytes // METADATA_BLOCK_BYTES)
        self._nr_mappings: dict[int, int] = {}
        self._keys: dict[int, tuple[int, int]] = {}  # the lowest and the highest below a node that has any
        self.thins: list[SalvagedThin] = []
        for dev_id in sorted(roots.keys() | details.keys()):
            self.thins.append(self._thin(dev_id, roots.get(dev_id), details.get(dev_id)))

    def _thin(self, dev_id: int, root: int | None, details: DeviceDetails | None) -> SalvagedThin:
        if root is None:
            assert details is not None
            return SalvagedThin(dev_id, details, -1, (Lost(0, NO_BOUND, "the tree of devices has no root of it"),))
        why = self._visit([(root, 0, NO_BOUND)], 1)
        if why:
            return SalvagedThin(dev_id, details or DeviceDetails(), -1, tuple(why))
        mapped_blocks = self._nr_mappings[root]
        if details is None:
            details = DeviceDetails(mapped_blocks)
        else:
            details = DeviceDetails(
                mapped_blocks, details.transaction_id, details.creation_time, details.snapshotted_time
            )
        return SalvagedThin(dev_id, details, root, tuple(self._losses(root)))

    def _losses(self, block_nr: int) -> Iterator[Lost]:
        if self._states[block_nr] == _DAMAGED:
            yield from self._lost.get(block_nr, ())
            for child in self.children[block_nr]:
                yield from self._losses(child)

    # -- nodes

    def _visit(self, nodes: list[tuple[int, int, int]], depth: int) -> list[Lost]:
        """What is lost of these as a whole."""
        lost, new = [], []
        for node in nodes:
            if not 0 <= node[0] < len(self._states):
                lost.append(Lost(node[1], node[2], f"metadata block {node[0]}: past the end"))
            elif not self._states[node[0]]:
                self._states[node[0]] = _GONE  # until it is known; so is what leads back to itself
                new.append(node)
            elif self._states[node[0]] == _GONE:
                lost.append(Lost(node[1], node[2], f"metadata block {node[0]}: lost before"))
        for node, block in zip(new, try_read_blocks(self.device, [node[0] for node in new]), strict=True):
            try:
                if isinstance(block, ThinfsError):
                    raise block
                self._look(block, *node, depth)
            except ThinfsError as error:
                lost.append(Lost(node[1], node[2], str(error)))
        return sorted(lost, key=lambda one: one.begin)

    def _look(self, block: Buffer, block_nr: int, low: int, last: int, depth: int) -> None:
        if mapping_node_is_leaf(block, block_nr, low, last):
            node = BtreeNode.parse(block, block_nr)
            values = node.live_values()
            highest = unpack_mapping(max(values))[0] if values else -1
            if highest >= self.nr_data_blocks:
                raise BadMetadata(f"metadata block {block_nr}: maps data block {highest} of {self.nr_data_blocks}")
            self.highest_data_block = max(self.highest_data_block, highest)
            self._states[block_nr] = _LEAF
            self._nr_mappings[block_nr] = node.nr_entries
            if node.nr_entries:
                self._keys[block_nr] = node.keys[0], node.keys[node.nr_entries - 1]
            return
        below = children(BtreeNode.parse(block, block_nr), block_nr, depth, last)
        lost = self._visit(below, depth + 1)
        there = []
        for child, child_low, child_last in below:
            if child >= len(self._states) or self._states[child] == _GONE:
                continue
            keys_there = self._keys.get(child)  # none: an empty tree of another thin
            if keys_there is not None and child_low <= keys_there[0] and keys_there[1] <= child_last:
                there.append(child)
            else:  # it was met in its own place
                lost.append(Lost(child_low, child_last, f"metadata block {child}: of another place"))
        if not there:
            raise BadMetadata(f"metadata block {block_nr}: all below it is lost ({lost[0].why})")
        self.children[block_nr] = array("Q", there)
        damaged = bool(lost) or any(self._states[child] == _DAMAGED for child in there)
        self._states[block_nr] = _DAMAGED if damaged else _WHOLE
        self._lost[block_nr] = lost
        self._nr_mappings[block_nr] = sum(self._nr_mappings[child] for child in there)
        keys = [self._keys[child] for child in there if child in self._keys]
        if keys:
            self._keys[block_nr] = keys[0][0], keys[-1][1]

    # -- what is there

    def is_whole(self, block_nr: int) -> bool:
        return self._states[block_nr] in (_LEAF, _WHOLE)

    def is_leaf(self, block_nr: int) -> bool:
        return self._states[block_nr] == _LEAF

    def leaves(self, block_nr: int) -> Iterator[int]:
        if block_nr < 0:
            return
        if self.is_leaf(block_nr):
            yield block_nr
            return
        for child in self.children[block_nr]:
            yield from self.leaves(child)

    def batches(self, thin: SalvagedThin) -> Iterator[RunBatch]:
        return joined(self._leaf_blocks(thin.root))

    def _leaf_blocks(self, root: int) -> Iterator[Buffer]:
        part: list[int] = []
        for leaf in self.leaves(root):
            part.append(leaf)
            if len(part) == 256:
                yield from read_blocks(self.device, part)
                part.clear()
        yield from read_blocks(self.device, part)
