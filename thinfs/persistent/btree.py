"""Copy-on-write btrees of one or two levels: look up, insert, walk, delete; mirrors dm-btree.

Promises: the kernel's splits and moves, entry for entry; a lookup of a cached path touches no construct and
allocates next to nothing. A two-level tree is walked as one path whose upper leaf is the parent of the
subtree's root. Never decides what a value means: `ValueType` hooks do. Source: docs/reference/format.md, 4, 7, 8.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from thinfs.errors import BadMetadata, InvalidArgument
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode
from thinfs.ondisk.fields import value_typecode
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.steps import Steps

SPACE_THRESHOLD: Final = 8  # free slots that make a sibling worth moving entries to

ValuesHook = Callable[["array[int]"], None]


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a leaf holds, and what a copied (inc) or dropped (dec) value means elsewhere."""

    size: int
    inc: ValuesHook | None = None
    dec: ValuesHook | None = None
    equal: Callable[[int, int], bool] | None = None


def runs(values: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Maximal ascending runs of consecutive numbers, in the given order, as [begin, end)."""
    begin = end = -1
    for value in values:
        if value != end:
            if end >= 0:
                yield begin, end
            begin = value
        end = value + 1
    if end >= 0:
        yield begin, end


class Btree:
    """The operations; roots are passed in and handed back, as their owner decides when they count."""

    __slots__ = ("_level_types", "_typecode", "levels", "tm")

    def __init__(self, tm: TransactionManager, *levels: ValueType) -> None:
        self.tm = tm
        self.levels = levels
        self._typecode = value_typecode(levels[-1].size)
        # While inserting through an upper level, the roots it holds are plain metadata blocks.
        self._level_types = (*(ValueType(8, inc=self.inc_children) for _ in levels[:-1]), levels[-1])

    def empty(self) -> int:
        return self.tm.new(BtreeNode.blank(LEAF_NODE, self.levels[0].size))

    # -- reading

    def find_leaf(self, root: int, key: int) -> tuple[BtreeNode, int]:
        """The leaf that would hold `key` and the index of the last key <= it (-1: none)."""
        hot = self.tm.bm.hot
        while True:
            node = hot.get(root)
            if type(node) is not BtreeNode:
                node = self.tm.bm.read(root, BtreeNode)
            i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if i < 0 or node.is_leaf:
                return node, i
            root = node.values[i]

    def lookup(self, root: int, key: int) -> int | None:
        """The first word of the value of `key` in a tree of one level. The hot path."""
        hot = self.tm.bm.hot
        while True:
            node = hot.get(root)
            if type(node) is not BtreeNode:
                node = self.tm.bm.read(root, BtreeNode)
            keys = node.keys
            i = bisect_right(keys, key, 0, node.nr_entries) - 1
            if i < 0:
                return None
            if node.is_leaf:
                return node.values[i * node.stride] if keys[i] == key else None
            root = node.values[i]

    def lookup_words(self, root: int, key: int) -> "array[int] | None":
        node, i = self.find_leaf(root, key)
        self._check_leaf(node)
        return node.value(i) if i >= 0 and node.keys[i] == key else None

    def _check_leaf(self, node: BtreeNode) -> None:
        if node.is_leaf and node.value_size != self.levels[-1].size:
            raise BadMetadata(f"btree leaf with values of {node.value_size} bytes, not {self.levels[-1].size}")

    def next_position(self, root: int, key: int) -> tuple[BtreeNode, int] | None:
        """Leaf and index of the first key >= `key`: tries the child that may hold it, then the next only."""
        node = self.tm.bm.read(root, BtreeNode)
        if node.is_leaf:
            i = bisect_left(node.keys, key, 0, node.nr_entries)
            return (node, i) if i < node.nr_entries else None
        i = max(bisect_right(node.keys, key, 0, node.nr_entries) - 1, 0)
        found = None
        if i < node.nr_entries:
            found = self.next_position(node.values[i], key)
            if found is None and i + 1 < node.nr_entries:
                found = self.next_position(node.values[i + 1], key)
        return found

    def highest_key(self, root: int) -> int | None:
        while True:
            node = self.tm.bm.read(root, BtreeNode)
            if not node.nr_entries:
                return None
            if node.is_leaf:
                return node.keys[node.nr_entries - 1]
            root = node.values[node.nr_entries - 1]

    def walk(self, root: int) -> Iterator[tuple[int, "array[int]"]]:
        """(key, value words) in ascending order; the tree must not change meanwhile."""
        node = self.tm.bm.read(root, BtreeNode)
        for i in range(node.nr_entries):
            if node.is_leaf:
                yield node.keys[i], node.value(i)
            else:
                yield from self.walk(node.values[i])

    # -- shadows and hooks

    def shadow(self, block_nr: int, value_type: ValueType) -> tuple[int, BtreeNode]:
        block_nr, node, shared = self.tm.shadow(block_nr, BtreeNode)
        if shared:
            if not node.is_leaf:
                self.inc_children(node.live_values())
            elif value_type.inc is not None:
                value_type.inc(node.live_values())
        return block_nr, node

    def inc_children(self, children: "array[int]") -> None:
        for begin, end in runs(children):
            self.tm.sm.inc(begin, end)

    # -- insertion

    def insert(self, root: int, keys: tuple[int, ...], *words: int) -> tuple[int, bool]:
        """Insert or overwrite; the new root and whether the key is new."""
        value = array(self._typecode, words)
        insertion = _Insertion(self)
        i, block_nr = -1, root
        for level, key in enumerate(keys):
            i = insertion.descend(block_nr, key, i, self._level_types[level])
            node = insertion.node
            found = i < node.nr_entries and node.keys[i] == key
            if level < len(keys) - 1:
                if not found:
                    raise InvalidArgument(f"btree {root}: no subtree {key} to insert into")
                block_nr = node.values[i]
        if not found:
            self._check_leaf(node)
            node.insert_at(i, keys[-1], value)
            return insertion.root, True
        value_type = self.levels[-1]
        if value_type.dec is not None:
            old = node.value(i)
            if value_type.equal is None or not value_type.equal(old[0], value[0]):
                value_type.dec(old)
        node.set_value(i, value)
        return insertion.root, False

    def overwrite_leaf(self, root: int, key: int) -> tuple[int, BtreeNode, int]:
        """Shadow the path to a key that is there, without splitting: (new root, its leaf, its index)."""
        new_root, node = self.shadow(root, self.levels[-1])
        while True:
            i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if i < 0 or (node.is_leaf and node.keys[i] != key):
                raise BadMetadata(f"btree {root}: key {key} is missing")
            if node.is_leaf:
                return new_root, node, i
            node.values[i], node = self.shadow(node.values[i], self.levels[-1])

    # -- deletion of whole trees

    def delete(self, root: int, level: int = 0) -> Steps[None]:
        """Drop one reference of the tree; the last one takes the nodes with it, child after child."""
        tm = self.tm
        if tm.sm.count(root) <= 1:
            node = tm.bm.read(root, BtreeNode)
            last_level = level == len(self.levels) - 1
            if not node.is_leaf or not last_level:
                for child in node.live_values():
                    yield from self.delete(child, level + node.is_leaf)
            else:
                dec = self.levels[-1].dec
                if dec is not None and node.nr_entries:
                    dec(node.live_values())
                yield None
        tm.dec(root)


class _Insertion:
    """One downward pass: the current node, its parent, and the first node shadowed."""

    __slots__ = ("_tree", "node", "parent", "root")

    def __init__(self, tree: Btree) -> None:
        self._tree = tree
        self.node: BtreeNode
        self.parent: BtreeNode | None = None
        self.root = -1

    def descend(self, block_nr: int, key: int, i: int, value_type: ValueType) -> int:
        """Down one level of the tree to its leaf; the index of `key` or where it belongs."""
        tree, top, parent = self._tree, True, self.node if self.root >= 0 else None
        while True:
            block_nr, node = tree.shadow(block_nr, value_type)
            if self.root < 0:
                self.root = block_nr
            if parent is not None:
                parent.values[i] = block_nr
            parent_i = i
            i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if node.nr_entries == node.max_entries and not (node.is_leaf and i >= 0 and node.keys[i] == key):
                if top:
                    self._split_beneath(node)
                else:
                    assert parent is not None
                    node = self._make_room(parent, parent_i, node, key, value_type)
                i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if node.is_leaf:
                break
            if i < 0:
                node.keys[0], i = key, 0
            block_nr, parent, top = node.values[i], node, False
        self.node, self.parent = node, parent
        return i if i >= 0 and node.keys[i] == key else i + 1

    def _split_beneath(self, node: BtreeNode) -> None:
        """Two halves below; the root keeps its block number."""
        left, right = _like(node), _like(node)
        left_nr = self._tree.tm.new(left)
        right_nr = self._tree.tm.new(right)
        half, s = node.nr_entries // 2, node.stride
        left.assign(node.keys[:half], node.values[: half * s])
        right.assign(node.keys[half : node.nr_entries], node.values[half * s : node.nr_entries * s])
        node.become_internal()
        node.assign(array("Q", (left.keys[0], right.keys[0])), array("Q", (left_nr, right_nr)))

    def _make_room(self, parent: BtreeNode, i: int, node: BtreeNode, key: int, value_type: ValueType) -> BtreeNode:
        """Give entries of the full `node` to an unshared sibling with room, or split; the piece for `key`."""
        tree, any_shared = self._tree, False
        if i > 0:
            sibling_nr = parent.values[i - 1]
            if tree.tm.sm.is_shared(sibling_nr):
                any_shared = True
            elif _nr_free(tree, sibling_nr) >= SPACE_THRESHOLD:
                parent.values[i - 1], left = tree.shadow(sibling_nr, value_type)
                balance(left, node)
                parent.keys[i] = node.keys[0]
                return left if key < node.keys[0] else node
        if i < parent.nr_entries - 1:
            sibling_nr = parent.values[i + 1]
            if tree.tm.sm.is_shared(sibling_nr):
                any_shared = True
            elif _nr_free(tree, sibling_nr) >= SPACE_THRESHOLD:
                parent.values[i + 1], right = tree.shadow(sibling_nr, value_type)
                balance(node, right)
                parent.keys[i + 1] = right.keys[0]
                return node if key < right.keys[0] else right
        if any_shared or parent.nr_entries <= 2 or i == 0 or i == parent.nr_entries - 1:
            right = _like(node)
            right_nr = tree.tm.new(right)
            balance(node, right)
            parent.insert_at(i + 1, right.keys[0], array("Q", (right_nr,)))
            return node if key < right.keys[0] else right
        return self._two_into_three(parent, i, node, key, value_type)

    def _two_into_three(self, parent: BtreeNode, i: int, right: BtreeNode, key: int, vt: ValueType) -> BtreeNode:
        parent.values[i - 1], left = self._tree.shadow(parent.values[i - 1], vt)
        middle = _like(right)
        middle_nr = self._tree.tm.new(middle)
        total = left.nr_entries + right.nr_entries
        nr_left = total // 3
        redistribute((left, middle, right), nr_left, (total - nr_left) // 2)
        parent.keys[i] = right.keys[0]
        parent.insert_at(i, middle.keys[0], array("Q", (middle_nr,)))
        if key < middle.keys[0]:
            return left
        return middle if key < right.keys[0] else right


def _nr_free(tree: Btree, block_nr: int) -> int:
    node = tree.tm.bm.read(block_nr, BtreeNode)
    return node.max_entries - node.nr_entries


def _like(node: BtreeNode) -> BtreeNode:
    return BtreeNode.blank(node.flags & (INTERNAL_NODE | LEAF_NODE), node.value_size, node.max_entries)


def redistribute(nodes: tuple[BtreeNode, ...], *targets: int) -> None:
    """Spread the live entries, in key order: `targets` to the first nodes, the rest to the last."""
    keys, values, s = nodes[0].keys[: nodes[0].nr_entries], nodes[0].live_values(), nodes[0].stride
    for node in nodes[1:]:
        keys += node.keys[: node.nr_entries]
        values += node.live_values()
    begin = 0
    for node, end in zip(nodes, [*_running(targets), len(keys)], strict=True):
        node.assign(keys[begin:end], values[begin * s : end * s])
        begin = end


def _running(targets: tuple[int, ...]) -> Iterator[int]:
    total = 0
    for target in targets:
        total += target
        yield total


def balance(left: BtreeNode, right: BtreeNode) -> None:
    """Half to the left; only what changes sides is touched, and a pair in balance not at all: the path of removals."""
    nr_left, nr_right, s = left.nr_entries, right.nr_entries, left.stride
    nr_moved = (nr_left + nr_right) // 2 - nr_left
    if nr_moved > 0:
        left.keys[nr_left : nr_left + nr_moved] = right.keys[:nr_moved]
        left.values[nr_left * s : (nr_left + nr_moved) * s] = right.values[: nr_moved * s]
        right.assign(right.keys[nr_moved:nr_right], right.values[nr_moved * s : nr_right * s])
        left.nr_entries = nr_left + nr_moved
    elif nr_moved < 0:
        redistribute((left, right), nr_left + nr_moved)
