"""Removal of keys from a tree of one level, with the kernel's rebalancing on the way down; mirrors dm-btree-remove.

Promises: the same merges and moves as the kernel, and siblings shadowed even where nothing moves: that is why a
removal costs more metadata blocks than an insert. A failed removal may have shadowed nodes: the root handed
back counts in any case. Source: docs/reference/format.md, 8.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from thinfs.errors import BadMetadata
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.persistent.btree import END_OF_KEYS, LEVELS, Btree, balance, check_alike, redistribute, too_deep
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.steps import Steps, drive

_REMOVALS_BETWEEN_YIELDS: Final = 256  # about a millisecond

DecSteps: TypeAlias = Callable[[BtreeNode, int], Steps[None]]


def remove(tree: Btree, root: int, key: int) -> tuple[int, bool]:
    """(new root, whether the key was there); the dropped value goes through the dec hook."""

    def dec(node: BtreeNode, i: int) -> Steps[None]:
        hook = tree.levels[-1].dec
        if hook is not None:
            hook(node.value(i))
        yield from ()

    return drive(remove_steps(tree, root, key, dec))


def remove_steps(tree: Btree, root: int, key: int, dec: DecSteps) -> Steps[tuple[int, bool]]:
    """`remove` with a dec hook that takes its time: the entry is there until the hook is done."""
    root, found, _ = _descend(tree, root, key)
    if found is None:
        return root, False
    node, i = found
    if i < 0 or node.keys[i] != key:
        return root, False
    yield from dec(node, i)
    node.delete_at(i)
    return root, True


def remove_leaves(tree: Btree, root: int, begin: int, end: int) -> Generator[int, None, tuple[int, int, int]]:
    """Remove the run of keys from `begin`, up to the first gap or `end`: (new root, how many, next key).

    `begin` is a key that is there: at least one goes, or it is BadMetadata, so that who comes again with the next key
    makes progress. Yields the present root now and then, at which the tree may be read.
    """
    nr_removed, dec, near = 0, tree.levels[-1].dec, None
    while True:  # `begin` grows
        if near is not None and begin < near.end:
            found, near = _descend_from(tree, near, begin)
        else:
            root, found, near = _descend(tree, root, begin)
        node, i = found if found is not None else (None, 0)
        i = max(i, 0)  # the nearest one counts (docs/reference/format.md, 8.1)
        if node is None or i >= node.nr_entries or not begin <= node.keys[i] < end:
            if not nr_removed:
                raise BadMetadata(f"metadata block {root}: btree: key {begin} is there, but not on its way")
            return root, nr_removed, begin
        if dec is not None:
            dec(node.value(i))
        begin = node.keys[i] + 1
        node.delete_at(i)
        nr_removed += 1
        if nr_removed % _REMOVALS_BETWEEN_YIELDS == 0:
            yield root


class _Fate(Enum):
    """What a rebalancing did; SETTLED: done again for a key that leads to the same child, it would do nothing."""

    SETTLED = auto()
    SHRUNK = auto()
    BELOW = auto()  # `key` lies below every child (ENODATA)


@dataclass(frozen=True, slots=True)
class _Near:
    """A leaf's parent to which the whole way is settled for the keys from the last one to `end`."""

    parent: BtreeNode
    end: int


_Found: TypeAlias = tuple[BtreeNode, int] | None  # leaf and index of the last key <= key; None where there is none


def _descend(tree: Btree, root: int, key: int) -> tuple[int, _Found, _Near | None]:
    """Shadow and rebalance down to the leaf: (new root, where, from where the next key may go on)."""
    value_type = tree.levels[-1]
    root, node = tree.shadow(root, value_type)
    settled, end, parent = True, END_OF_KEYS, None
    for _ in LEVELS:
        if node.is_leaf:
            break
        fate = _rebalance_children(tree, node, key)
        if fate is _Fate.BELOW:
            return root, None, None
        settled = settled and fate is _Fate.SETTLED
        if node.is_leaf:
            break
        i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
        if i < 0:
            return root, None, None
        parent, above = node, end
        if i + 1 < node.nr_entries:
            end = min(end, node.keys[i + 1])
        node = tree.shadow_child(node, i)
    else:
        raise too_deep(root)
    near = _Near(parent, above) if settled and parent is not None else None
    return root, (node, bisect_right(node.keys, key, 0, node.nr_entries) - 1), near


def _descend_from(tree: Btree, near: _Near, key: int) -> tuple[_Found, _Near | None]:
    """The last step of `_descend`, where those above would do nothing."""
    node = near.parent
    fate = _rebalance_children(tree, node, key)
    if fate is _Fate.BELOW:
        return None, None
    if not node.is_leaf:
        i = bisect_right(node.keys, key, 0, node.nr_entries) - 1
        if i < 0:
            return None, None
        node.values[i], node = tree.shadow(node.values[i], tree.levels[-1])
    found = node, bisect_right(node.keys, key, 0, node.nr_entries) - 1
    return found, near if fate is _Fate.SETTLED else None


def _rebalance_children(tree: Btree, parent: BtreeNode, key: int) -> _Fate:
    nr_before = parent.nr_entries
    if nr_before == 1:
        child_nr = parent.values[0]
        parent.become(tree.tm.bm.read(child_nr, BtreeNode))
        tree.tm.dec(child_nr)
        return _Fate.SHRUNK
    i = bisect_right(parent.keys, key, 0, nr_before) - 1
    if i < 0:
        return _Fate.BELOW
    first, last = max(i - 1, 0), min(i + 1, nr_before - 1)
    children = [_child(tree, parent, j) for j in range(first, last + 1)]
    for j in range(1, len(children)):
        check_alike(children[j], children[0], parent.values[first + j])
    if len(children) == 2:
        _rebalance_pair(tree.tm, parent, first, children[0], children[1])
    else:
        _rebalance_triple(tree.tm, parent, first, children[0], children[1], children[2])
    return _Fate.SETTLED if parent.nr_entries == nr_before else _Fate.SHRUNK


def _child(tree: Btree, parent: BtreeNode, i: int) -> BtreeNode:
    """To be changed; looked at when it becomes so, which is once for all the removals of a transaction."""
    original = parent.values[i]
    if original in tree.tm.exclusive:
        return tree.tm.bm.read(original, BtreeNode)
    return tree.shadow_child(parent, i)


def _drop_child(tm: TransactionManager, parent: BtreeNode, i: int) -> None:
    child_nr = parent.values[i]
    parent.delete_at(i)
    tm.dec(child_nr)


def _rebalance_pair(tm: TransactionManager, parent: BtreeNode, i: int, left: BtreeNode, right: BtreeNode) -> None:
    total = left.nr_entries + right.nr_entries
    if total < 2 * (left.max_entries // 3 + 1):
        redistribute((left, right), total)
        _drop_child(tm, parent, i + 1)
    else:
        balance(left, right)
        parent.keys[i + 1] = right.keys[0]


def _rebalance_triple(
    tm: TransactionManager, parent: BtreeNode, i: int, left: BtreeNode, center: BtreeNode, right: BtreeNode
) -> None:
    total = left.nr_entries + center.nr_entries + right.nr_entries
    if total < 4 * (left.max_entries // 3) + 1:
        nr_left = left.nr_entries + min(left.max_entries - left.nr_entries, center.nr_entries)
        redistribute((left, center, right), nr_left, 0)
        parent.keys[i + 2] = right.keys[0]
        _drop_child(tm, parent, i + 1)
        _rebalance_pair(tm, parent, i, left, right)
    else:
        nr_right, remainder = divmod(total, 3)
        nr_left = nr_right + (1 if remainder else 0)
        _into_thirds(left, center, right, nr_left, nr_right)
        parent.keys[i + 1] = center.keys[0]
        parent.keys[i + 2] = right.keys[0]


def _into_thirds(left: BtreeNode, center: BtreeNode, right: BtreeNode, nr_left: int, nr_right: int) -> None:
    """The poorer side is served first; only the stale entries that stay behind tell the order (seen)."""
    nr_center = left.nr_entries + center.nr_entries + right.nr_entries - nr_left - nr_right
    if left.nr_entries < right.nr_entries:
        if left.nr_entries + center.nr_entries < nr_left:
            redistribute((left, center, right), nr_left, 0)
        else:
            redistribute((left, center), nr_left)
        redistribute((center, right), nr_center)
    else:
        if right.nr_entries + center.nr_entries < nr_right:
            redistribute((left, center, right), nr_left + nr_center, 0)
        else:
            redistribute((center, right), center.nr_entries + right.nr_entries - nr_right)
        redistribute((left, center), nr_left)
