"""Copy-on-write btrees of one or two levels: look up, insert, walk, delete; mirrors dm-btree.

Promises: the kernel's splits and moves, entry for entry; a lookup of a cached path touches no construct and
allocates next to nothing; a tree that cannot be (too deep, keys that are not the parent's) is BadMetadata with the
block, in bounded steps. A two-level tree is walked as one path whose upper leaf is the parent of the
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
# Nodes on the way from a root to a leaf. With 84 children at the least, but for the root, five levels hold more nodes
# than a metadata device has blocks: who finds no leaf within these goes round in a circle.
MAX_LEVELS: Final = 16
LEVELS: Final = range(MAX_LEVELS)

END_OF_KEYS: Final = 1 << 64

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


def too_deep(block_nr: int) -> BadMetadata:
    return BadMetadata(f"metadata block {block_nr}: btree: more than {MAX_LEVELS} nodes lead to it")


def check_keys(node: BtreeNode, block_nr: int, begin: int, end: int) -> None:
    """BadMetadata unless the keys of a node below another are in [begin, end), and there are some.

    Every way that changes a tree comes by here; lookups do not, for which a key in the wrong place is just not there.
    """
    nr = node.nr_entries
    if not nr or node.keys[0] < begin or node.keys[nr - 1] >= end:
        has = f"{node.keys[0]} to {node.keys[nr - 1]}" if nr else "none"
        raise BadMetadata(f"metadata block {block_nr}: btree node: keys: {has}, expected some of {begin} to {end - 1}")


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
        for _ in LEVELS:
            node = hot.get(root)
            if type(node) is not BtreeNode:
                node = self.tm.bm.read(root, BtreeNode)
            i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if i < 0 or node.is_leaf:
                return node, i
            root = node.values[i]
        raise too_deep(root)

    def lookup(self, root: int, key: int) -> int | None:
        """The first word of the value of `key` in a tree of one level. The hot path."""
        hot, levels = self.tm.bm.hot, MAX_LEVELS  # counted down: an iterator costs more
        while levels:
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
            levels -= 1
        raise too_deep(root)

    def lookup_words(self, root: int, key: int) -> "array[int] | None":
        node, i = self.find_leaf(root, key)
        self._check_leaf(node, root)
        return node.value(i) if i >= 0 and node.keys[i] == key else None

    def _check_leaf(self, node: BtreeNode, root: int) -> None:
        """A leaf of another tree has values of another size, but for some; `root` leads to it."""
        if node.is_leaf and node.value_size != self.levels[-1].size:
            raise BadMetadata(
                f"metadata block {root}: btree leaf: value_size: {node.value_size}, expected {self.levels[-1].size}"
            )

    def _children(self, node: BtreeNode, end: int) -> Iterator[tuple[int, int, int]]:
        """(block, where its keys may begin, where they end) of an internal node whose own keys end at `end`."""
        nr = node.nr_entries
        for i in range(nr):
            yield node.values[i], node.keys[i], node.keys[i + 1] if i + 1 < nr else end

    def next_position(self, root: int, key: int) -> tuple[BtreeNode, int] | None:
        """Leaf and index of the first key >= `key`, which is in the leaf that may hold it or begins the next one."""
        after = -1  # the lowest node on the right of the way down
        for _ in LEVELS:
            node = self.tm.bm.read(root, BtreeNode)
            if node.is_leaf:
                break
            i = max(bisect_right(node.keys, key, 0, node.nr_entries) - 1, 0)
            if i + 1 < node.nr_entries:
                after = node.values[i + 1]
            root = node.values[i]
        else:
            raise too_deep(root)
        self._check_leaf(node, root)
        i = bisect_left(node.keys, key, 0, node.nr_entries)
        if i < node.nr_entries:
            return node, i
        return None if after < 0 else (self._first_leaf(after, key), 0)

    def _first_leaf(self, root: int, key: int) -> BtreeNode:
        """The leaf that begins with the lowest key of all below `root`, which must be above `key`."""
        for _ in LEVELS:
            node = self.tm.bm.read(root, BtreeNode)
            if node.is_leaf:
                self._check_leaf(node, root)
                if not node.nr_entries or node.keys[0] < key:
                    raise BadMetadata(f"metadata block {root}: btree leaf: keys: none, or not after {key}")
                return node
            root = node.values[0]
        raise too_deep(root)

    def highest_key(self, root: int) -> int | None:
        for _ in LEVELS:
            node = self.tm.bm.read(root, BtreeNode)
            if not node.nr_entries:
                return None
            if node.is_leaf:
                return node.keys[node.nr_entries - 1]
            root = node.values[node.nr_entries - 1]
        raise too_deep(root)

    def walk(self, root: int) -> Iterator[tuple[int, "array[int]"]]:
        """(key, value words) in ascending order; the tree must not change meanwhile."""
        return self._walk(root, 0, END_OF_KEYS, 0)

    def _walk(self, root: int, begin: int, end: int, level: int) -> Iterator[tuple[int, "array[int]"]]:
        if level not in LEVELS:
            raise too_deep(root)
        node = self.tm.bm.read(root, BtreeNode)
        if level:
            check_keys(node, root, begin, end)
        if node.is_leaf:
            self._check_leaf(node, root)
            for i in range(node.nr_entries):
                yield node.keys[i], node.value(i)
        else:
            # Children have keys of their own: whatever leads where, no node is walked twice.
            for child, first, last in self._children(node, end):
                yield from self._walk(child, first, last, level + 1)

    # -- shadows and hooks

    def shadow(self, block_nr: int, value_type: ValueType) -> tuple[int, BtreeNode]:
        block_nr, node, shared = self.tm.shadow(block_nr, BtreeNode)
        if shared:
            if not node.is_leaf:
                self.inc_children(node.live_values())
            elif value_type.inc is not None:
                value_type.inc(node.live_values())
        return block_nr, node

    def shadow_child(self, parent: BtreeNode, i: int) -> BtreeNode:
        """The child at `i`, to be changed, its keys within what the parent says."""
        nr, original = parent.nr_entries, parent.values[i]
        parent.values[i], child = self.shadow(original, self.levels[-1])
        check_keys(child, original, parent.keys[i], parent.keys[i + 1] if i + 1 < nr else END_OF_KEYS)
        return child

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
        self._check_leaf(node, root)
        if not found:
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
        for _ in LEVELS:
            i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
            if i < 0 or (node.is_leaf and node.keys[i] != key):
                raise BadMetadata(f"metadata block {root}: btree: key {key} is missing")
            if node.is_leaf:
                self._check_leaf(node, root)
                return new_root, node, i
            node = self.shadow_child(node, i)
        raise too_deep(root)

    # -- deletion of whole trees

    def delete(self, root: int) -> Steps[None]:
        """Drop one reference of the tree; the last one takes the nodes with it, child after child."""
        return self._delete(root, 0, 0)

    def _delete(self, root: int, level: int, depth: int) -> Steps[None]:
        """`level` of the tree; `depth`: nodes passed within it."""
        tm = self.tm
        count = tm.sm.count(root)
        if not count:
            raise BadMetadata(f"metadata block {root}: a btree leads to it, and it is free")
        if count == 1:
            if depth not in LEVELS:
                raise too_deep(root)
            node = tm.bm.read(root, BtreeNode)
            last_level = level == len(self.levels) - 1
            if not node.is_leaf:
                for child in node.live_values():
                    yield from self._delete(child, level, depth + 1)
            elif not last_level:
                for child in node.live_values():
                    yield from self._delete(child, level + 1, 0)
            else:
                self._check_leaf(node, root)
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
        begin, end = 0, END_OF_KEYS
        for _ in LEVELS:
            original = block_nr
            block_nr, node = tree.shadow(block_nr, value_type)
            if not top:
                check_keys(node, original, begin, end)
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
            begin = node.keys[i]
            if i + 1 < node.nr_entries:
                end = node.keys[i + 1]
            block_nr, parent, top = node.values[i], node, False
        else:
            raise too_deep(block_nr)
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
            elif _nr_free(tree, parent, i - 1, node) >= SPACE_THRESHOLD:
                parent.values[i - 1], left = tree.shadow(sibling_nr, value_type)
                balance(left, node)
                parent.keys[i] = node.keys[0]
                return left if key < node.keys[0] else node
        if i < parent.nr_entries - 1:
            sibling_nr = parent.values[i + 1]
            if tree.tm.sm.is_shared(sibling_nr):
                any_shared = True
            elif _nr_free(tree, parent, i + 1, node) >= SPACE_THRESHOLD:
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
        _nr_free(self._tree, parent, i - 1, right)
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


def _nr_free(tree: Btree, parent: BtreeNode, i: int, sibling: BtreeNode) -> int:
    """Free slots of the child at `i`, which must be one that can stand beside `sibling`."""
    block_nr = parent.values[i]
    node = tree.tm.bm.read(block_nr, BtreeNode)
    check_keys(node, block_nr, parent.keys[i], parent.keys[i + 1] if i + 1 < parent.nr_entries else END_OF_KEYS)
    check_alike(node, sibling, block_nr)
    return node.max_entries - node.nr_entries


def check_alike(node: BtreeNode, sibling: BtreeNode, block_nr: int) -> None:
    """BadMetadata unless entries can move from one to the other."""
    if node.is_leaf is not sibling.is_leaf or node.value_size != sibling.value_size or node is sibling:
        raise BadMetadata(f"metadata block {block_nr}: btree node: not of its parent's other children's kind")


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
