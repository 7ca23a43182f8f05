"""One thin in core, however many openers: its counters and its mappings; the dm_thin_device of dm-thin-metadata.

Promises: `find_block` on cached nodes takes a few microseconds and never changes anything; counters are the live
ones, changed before the commit and not rolled back by an abort while the device stays in core. Never allocates a
data block, never commits. Source: docs/reference/format.md, 8, 9.4, 9.5.
"""

from array import array
from collections.abc import Iterator

from thinfs.errors import NoSuchThin
from thinfs.ondisk.thin import TIME_BITS, TIME_MASK, DeviceDetails, pack_mapping
from thinfs.persistent import btree_remove
from thinfs.pool.served import Served
from thinfs.pool.transaction import Transaction
from thinfs.steps import Steps
from thinfs.units import MAX_U64

MappedRange = tuple[int, int, int, bool]  # thin_begin, thin_end, data_begin, shared


class ThinDevice:
    __slots__ = (
        "_root_aside", "_transaction", "aborted_with_changes", "creation_time", "dev_id", "in_core_nr", "mapped_blocks",
        "open_count", "served", "snapshotted_time", "transaction_id",
    )  # fmt: skip

    def __init__(self, transaction: Transaction, dev_id: int, details: DeviceDetails, in_core_nr: int) -> None:
        self._transaction = transaction
        self.dev_id = dev_id
        self.open_count = 0
        self.mapped_blocks = details.mapped_blocks
        self.transaction_id = details.transaction_id
        self.creation_time = details.creation_time
        self.snapshotted_time = details.snapshotted_time
        self.in_core_nr = in_core_nr  # a commit writes those that came last first
        self.aborted_with_changes = False
        self.served: Served | None = None  # who serves its I/O without the engine
        self._root_aside: int | None = None  # while a range is removed the top level does not hold the tree

    @property
    def changed(self) -> bool:
        """Since the last commit."""
        return self in self._transaction.changed

    @changed.setter
    def changed(self, changed: bool) -> None:
        if changed:
            self._transaction.changed.add(self)
        else:
            self._transaction.changed.discard(self)
        if self.served is not None:
            self.served.set_changed(changed)

    @property
    def details(self) -> DeviceDetails:
        return DeviceDetails(
            self.mapped_blocks & MAX_U64, self.transaction_id, self.creation_time, self.snapshotted_time
        )

    def _root(self) -> int | None:
        """The root of this device's tree; None where an abort took the device back, which then maps nothing."""
        transaction = self._transaction
        transaction.check_usable()
        if self._root_aside is not None:
            return self._root_aside
        return transaction.objects.top.lookup(transaction.mapping_root, self.dev_id)

    def find_block(self, thin_block: int) -> tuple[int, bool] | None:
        """(data_block, shared), or None where nothing is mapped. The hot path."""
        root = self._root()
        if root is None:
            return None
        mapping = self._transaction.objects.bottom.lookup(root, thin_block)
        if mapping is None:
            return None
        if self.served is not None:
            self.served.found(thin_block, lambda: self._leaf_of(root, thin_block))
        return mapping >> TIME_BITS, self.snapshotted_time > mapping & TIME_MASK

    def _leaf_of(self, root: int, thin_block: int) -> "tuple[array[int], array[int], int]":
        position = self._transaction.objects.bottom.next_position(root, thin_block)
        assert position is not None
        return position[0].keys, position[0].values, position[0].nr_entries

    def teach(self, thin_block: int) -> None:
        """A mapped block is being read: who serves it learns of it, and of its neighbours."""
        root = self._root()
        if self.served is not None and root is not None:
            self.served.found(thin_block, lambda: self._leaf_of(root, thin_block))

    def leave_core(self) -> None:
        """Another may stand for the same id from now on."""
        if self.served is not None:
            self.served.end()
            self.served = None

    def was_snapshotted(self, time: int) -> None:
        """All that it maps is shared from now on; `changed` is the caller's."""
        if self.served is not None:
            self.served.set_snapshotted_time(time)
        self.snapshotted_time = time

    def find_mapped_range(self, begin: int, end: int) -> MappedRange | None:
        """The first run in [begin, end), consecutive on both sides, with one shared flag."""
        bottom, root, snapshotted = self._transaction.objects.bottom, self._root(), self.snapshotted_time
        position = None if root is None else bottom.next_position(root, begin)
        if root is None or position is None:
            return None
        node, i = position
        thin_begin = node.keys[i]
        if thin_begin >= end:
            return None
        data_begin, shared = node.values[i] >> TIME_BITS, snapshotted > node.values[i] & TIME_MASK
        thin_end = thin_begin + 1
        to_data = data_begin - thin_begin
        while True:
            keys, values = node.keys, node.values
            for j in range(i + 1, node.nr_entries):
                mapping = values[j]
                if (
                    thin_end >= end
                    or keys[j] != thin_end
                    or mapping >> TIME_BITS != thin_end + to_data
                    or (snapshotted > mapping & TIME_MASK) != shared
                ):
                    return thin_begin, thin_end, data_begin, shared
                thin_end += 1
            if thin_end >= end or (position := bottom.next_position(root, thin_end)) is None:
                return thin_begin, thin_end, data_begin, shared
            node, i = position[0], position[1] - 1

    def mapped_runs(self, begin: int, end: int) -> Iterator[MappedRange]:
        """All runs of [begin, end), lazily: each is looked up afresh, so the tree may change meanwhile."""
        while begin < end and (found := self.find_mapped_range(begin, end)) is not None:
            yield found
            begin = found[1]

    def highest_mapped_block(self) -> int | None:
        """NoSuchThin where an abort took the device back: its status is `Error` (seen)."""
        root = self._root()
        if root is None:
            raise NoSuchThin(f"thin {self.dev_id}: it has no mapping tree")
        return self._transaction.objects.bottom.highest_key(root)

    def insert_block(self, thin_block: int, data_block: int) -> None:
        """Map, or remap: the data block mapped before loses a reference. `data_block` is allocated already."""
        transaction = self._transaction
        transaction.begin_change()
        mapping = pack_mapping(data_block, transaction.time)
        transaction.mapping_root, is_new = transaction.objects.mapping.insert(
            transaction.mapping_root, (self.dev_id, thin_block), mapping
        )
        self.changed = True
        if self.served is not None:
            self.served.mapped(thin_block, mapping, is_new=is_new)
        if is_new:
            self.mapped_blocks += 1

    def remove_range(self, begin: int, end: int) -> Steps[None]:
        """Unmap [begin, end): take the tree out of the top level, remove run by run, put it back."""
        if self.served is not None:
            self.served.before_removal(begin, end)
        try:
            yield from self._remove_range(begin, end)
        finally:
            self._root_aside = None
            if self.served is not None:
                self.served.after_removal()

    def _remove_range(self, begin: int, end: int) -> Steps[None]:
        transaction = self._transaction
        transaction.begin_change()
        objects = transaction.objects
        root = self._root()
        if root is None:
            raise NoSuchThin(f"thin {self.dev_id}: it has no mapping tree")
        # The extra reference turns the removal's "delete the subtree" into a mere decrement.
        objects.tm.inc(root)
        transaction.mapping_root, _ = btree_remove.remove(objects.top, transaction.mapping_root, self.dev_id)
        self._root_aside = root
        nr_removed = 0
        while begin < end:
            position = objects.bottom.next_position(root, begin)
            if position is None:
                break
            begin = position[0].keys[position[1]]
            if begin >= end:
                break
            removing = btree_remove.remove_leaves(objects.bottom, root, begin, end)
            while True:
                try:
                    self._root_aside = next(removing)
                except StopIteration as stop:
                    root, nr, begin = stop.value
                    break
                yield None
            self._root_aside = root
            nr_removed += nr
        self.mapped_blocks = self.mapped_blocks - nr_removed & MAX_U64  # wraps, as the kernel's, if its record is wrong
        self.changed = True
        transaction.mapping_root, _ = objects.top.insert(transaction.mapping_root, (self.dev_id,), root)
