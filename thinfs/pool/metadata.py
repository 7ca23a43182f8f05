"""The metadata of one pool: devices, mappings, data blocks, transactions; mirrors the kernel's dm-thin-metadata.

Promises: every allocation decision of the kernel's; a commit that a crash at any point survives (blocks, flush,
superblock, flush); nothing written by opening. Blocking I/O of a commit is yielded as calls that touch encoded
bytes only (thinfs.steps). A change in read-only mode is PermissionRefused (EPERM, as the kernel's block manager);
after a failed abort everything is InvalidArgument. Never decides modes: pool/pool.py does.
Source: docs/reference/format.md, 9.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from thinfs.bio import Bio, Op, Submits, answers_at_once, submitter
from thinfs.errors import (
    BadMetadata,
    Busy,
    Exists,
    InvalidArgument,
    IOFailed,
    NoSuchThin,
    PermissionRefused,
    ThinfsError,
)
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, NO_SPACE_MAP, SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DeviceDetails
from thinfs.persistent import btree_remove
from thinfs.persistent.block_manager import write_and_flush
from thinfs.pool.served import Served
from thinfs.pool.thin_device import ThinDevice
from thinfs.pool.transaction import (
    Device,
    InCore,
    MetadataObjects,
    Transaction,
    nr_usable_metadata_blocks,
    open_existing,
    open_or_format,
)
from thinfs.steps import Chain, Requests, Steps, drive
from thinfs.units import MAX_U32, METADATA_RESERVE_MAX_BLOCKS

log = logging.getLogger(__name__)


class PoolMetadata:
    """`data` is the device that is flushed before a commit: what it makes last must not lead to lost data."""

    def __init__(self, device: Device, objects: MetadataObjects, superblock: Superblock, data: Device | None) -> None:
        self.device = device
        self.transaction = Transaction(device, objects, superblock)
        self.data = data
        self._writer = submitter(device)
        self.flag_due = False  # needs_check was set, and its write has not been tried yet
        self._flag_unwritten = False
        self._devices: dict[int, ThinDevice] = {}
        self._nr_came_in_core = 0
        self._adopt(superblock)

    @classmethod
    def open(
        cls,
        device: Device,
        data_block_size_sectors: int,
        *,
        format_allowed: bool = True,
        data: Device | None = None,
    ) -> "PoolMetadata":
        """`opening` on devices that answer at once."""
        return drive(cls.opening(device, data_block_size_sectors, format_allowed=format_allowed, data=data))

    @classmethod
    def opening(
        cls, device: Device, data_block_size_sectors: int, *, format_allowed: bool, data: Device | None
    ) -> Steps["PoolMetadata"]:
        """Open, or format where block 0 is blank. InvalidArgument, PermissionRefused, BadMetadata, IOFailed."""
        # A process killed within a commit leaves its superblock in the device's cache. Without this flush the blocks
        # that it freed would be written over while the one on stable storage still needs them.
        yield Chain([(submitter(device), Bio(Op.FLUSH))], blocks=answers_at_once(device))
        objects, superblock = yield from open_or_format(device, data_block_size_sectors, format_allowed=format_allowed)
        return cls(device, objects, superblock, data)

    def close(self) -> None:
        """`closing` on devices that answer at once."""
        drive(self.closing())

    def closing(self) -> Steps[None]:
        """Drop everything that was not committed."""
        if not self.transaction.failed:
            yield from self.write_flag()
        self.transaction.failed = True
        for served in self.served():
            served.forget_all()
        self._devices.clear()
        self.transaction.changed.clear()

    def served(self) -> list[Served]:
        """Of the thins in core whose I/O is served without the engine."""
        return [thin.served for thin in self._devices.values() if thin.served is not None]

    def _adopt(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self.transaction.adopt(superblock)
        self._transaction_id = superblock.trans_id
        self._flags = superblock.flags

    @property
    def objects(self) -> MetadataObjects:
        return self.transaction.objects

    @property
    def failed(self) -> bool:
        """An abort failed, or it is closed."""
        return self.transaction.failed

    # -- what may be done

    def begin_change(self) -> None:
        self.transaction.begin_change()

    @property
    def read_only(self) -> bool:
        return self.transaction.read_only

    def set_read_only(self) -> None:
        self.transaction.read_only = True

    def set_read_write(self) -> None:
        self.transaction.read_only = False

    @property
    def needs_check(self) -> bool:
        return bool(self._flags & FLAG_NEEDS_CHECK)

    def set_needs_check(self) -> None:
        """Set the flag; `write_flag` then puts it into the superblock on the device, all else of it as committed."""
        self.transaction.in_service = True
        self.transaction.check_usable()
        self._flags |= FLAG_NEEDS_CHECK
        self._superblock = replace(self._superblock, flags=self._flags)
        self._flag_unwritten = self.flag_due = True

    def write_flag(self) -> Steps[None]:
        """When it cannot be written now it is tried again at the close: the kernel's goes to the device then (seen)."""
        self.flag_due = False
        if self._flag_unwritten:
            last_write = [(0, self._superblock.build(SUPERBLOCK_LOCATION))]
            try:
                yield self._chain(write_and_flush(self._writer, last_write))
            except ThinfsError as failure:
                log.error("needs_check is not yet in the superblock: %s", failure)
            else:
                self._flag_unwritten = False

    def _chain(self, requests: Requests) -> Chain:
        return Chain(requests, blocks=answers_at_once(self.device))

    # -- the pool's numbers

    @property
    def data_block_size_sectors(self) -> int:
        return self._superblock.data_block_size

    @property
    def superblock(self) -> Superblock:
        """As last committed."""
        return self._superblock

    @property
    def time(self) -> int:
        return self.transaction.time

    @property
    def transaction_id(self) -> int:
        return self._transaction_id

    def set_transaction_id(self, current: int, new: int) -> None:
        self.begin_change()
        if current != self._transaction_id:
            raise InvalidArgument(
                f"set_transaction_id {current} {new}: mismatched transaction id, it is {self._transaction_id}"
            )
        self._transaction_id = new

    # -- devices

    def _in_core(self, dev_id: int) -> ThinDevice | None:
        thin = self._devices.get(dev_id)
        if thin is None:
            details = self.device_details(dev_id)
            if details is not None:
                thin = self._bring_in_core(dev_id, details)
        return thin

    def _bring_in_core(self, dev_id: int, details: DeviceDetails) -> ThinDevice:
        self._nr_came_in_core += 1
        thin = self._devices[dev_id] = ThinDevice(self.transaction, dev_id, details, self._nr_came_in_core)
        return thin

    def _drop(self, thin: InCore) -> None:
        del self._devices[thin.dev_id]
        thin.changed = False
        thin.leave_core()

    def device_details(self, dev_id: int) -> DeviceDetails | None:
        """As in the details tree: without what changed since the last commit."""
        self.transaction.check_usable()
        words = self.objects.details.lookup_words(self.transaction.details_root, dev_id)
        return None if words is None else DeviceDetails.from_words(*words)

    def devices(self) -> Iterator[tuple[int, DeviceDetails]]:
        """All of the details tree, by id; nothing may change meanwhile."""
        self.transaction.check_usable()
        for dev_id, words in self.objects.details.walk(self.transaction.details_root):
            yield dev_id, DeviceDetails.from_words(*words)

    def open_thin(self, dev_id: int) -> ThinDevice:
        thin = self._in_core(dev_id)
        if thin is None:
            raise NoSuchThin(f"thin {dev_id} does not exist")
        thin.open_count += 1
        return thin

    def close_thin(self, thin: ThinDevice) -> None:
        """The in-core device stays, as in the kernel, until a commit writes it or its deletion."""
        thin.open_count -= 1
        if not thin.open_count and thin.served is not None:
            thin.served.volume.close()
            thin.served = None

    def create_thin(self, dev_id: int) -> None:
        self.begin_change()
        if self.device_details(dev_id) is not None:
            raise Exists(f"create_thin {dev_id}: thin {dev_id} exists already")
        root = self.objects.bottom.empty()
        try:
            self.transaction.mapping_root, _ = self.objects.top.insert(self.transaction.mapping_root, (dev_id,), root)
        except ThinfsError:
            drive(self.objects.bottom.delete(root))
            raise
        self._new_device(dev_id)

    def create_snap(self, dev_id: int, origin_id: int) -> None:
        self.begin_change()
        if self.device_details(dev_id) is not None:
            raise Exists(f"create_snap {dev_id} {origin_id}: thin {dev_id} exists already")
        root = self.objects.top.lookup(self.transaction.mapping_root, origin_id)
        if root is None:
            raise NoSuchThin(f"create_snap {dev_id} {origin_id}: thin {origin_id} does not exist")
        self.objects.tm.inc(root)
        self.transaction.mapping_root, _ = self.objects.top.insert(self.transaction.mapping_root, (dev_id,), root)
        self.transaction.time = self.transaction.time + 1 & MAX_U32  # it wraps, as the kernel's
        snap = self._new_device(dev_id)
        origin = self._in_core(origin_id)
        if origin is None:
            raise NoSuchThin(f"create_snap {dev_id} {origin_id}: thin {origin_id} has no details")
        snap.snapshotted_time = self.transaction.time
        origin.was_snapshotted(self.transaction.time)
        snap.mapped_blocks = origin.mapped_blocks
        origin.changed = True

    def _new_device(self, dev_id: int) -> ThinDevice:
        """In core only; the record is written at the commit."""
        details = DeviceDetails(0, self._transaction_id, self.transaction.time, self.transaction.time)
        old = self._devices.get(dev_id)
        if old is not None:
            self._drop(old)
        thin = self._bring_in_core(dev_id, details)
        thin.changed = True
        return thin

    def delete_thin(self, dev_id: int) -> Steps[ThinfsError | None]:
        """What kept the tree of its mappings from being freed, if anything: the kernel goes on then, and fails at the
        commit (seen: without metadata space a delete answers 0). The caller must abort."""
        failure: ThinfsError | None = None
        self.begin_change()
        thin = self._in_core(dev_id)
        if thin is None:
            raise NoSuchThin(f"delete {dev_id}: thin {dev_id} does not exist")
        if thin.open_count:
            raise Busy(f"delete {dev_id}: thin {dev_id} is open")
        self._drop(thin)
        objects = self.objects

        def delete_subtree(node: BtreeNode, i: int) -> Steps[None]:
            nonlocal failure
            try:
                yield from objects.bottom.delete(node.values[i])
            except ThinfsError as error:
                failure = error

        self.transaction.details_root, found = btree_remove.remove(
            objects.details, self.transaction.details_root, dev_id
        )
        if found:
            self.transaction.mapping_root, found = yield from btree_remove.remove_steps(
                objects.top, self.transaction.mapping_root, dev_id, delete_subtree
            )
        if not found:
            raise NoSuchThin(f"delete {dev_id}: thin {dev_id} is incomplete")
        return failure

    # -- data blocks

    @property
    def nr_data_blocks(self) -> int:
        return self.objects.data_sm.nr_blocks

    @property
    def nr_free_data_blocks(self) -> int:
        return self.objects.data_sm.nr_free

    def alloc_data_block(self) -> int:
        self.begin_change()
        return self.objects.data_sm.new_block()

    def data_block_count(self, data_block: int) -> int:
        self.transaction.check_usable()
        return self.objects.data_sm.count(data_block)

    def data_block_is_shared(self, data_block: int) -> bool:
        return self.data_block_count(data_block) > 1

    def inc_data_blocks(self, begin: int, end: int) -> None:
        self.begin_change()
        self.objects.data_sm.inc(begin, end)

    def dec_data_blocks(self, begin: int, end: int) -> None:
        self.begin_change()
        self.objects.data_sm.dec(begin, end)

    def resize_data(self, nr_blocks: int) -> None:
        self.begin_change()
        old = self.objects.data_sm.ll.nr_blocks
        if nr_blocks < old:
            raise InvalidArgument(f"data space map: cannot shrink from {old} to {nr_blocks} blocks")
        if nr_blocks > old:
            self.objects.data_sm.extend(nr_blocks - old)

    # -- metadata blocks

    @property
    def nr_metadata_blocks(self) -> int:
        return self.objects.metadata_sm.nr_blocks

    @property
    def nr_usable_device_blocks(self) -> int:
        """What the metadata device offers at present."""
        return nr_usable_metadata_blocks(self.device)

    @property
    def metadata_reserve_blocks(self) -> int:
        """Hidden from the free count, so that a commit and a repair have something left."""
        return min(METADATA_RESERVE_MAX_BLOCKS, self.nr_metadata_blocks // 10)

    @property
    def raw_free_metadata_blocks(self) -> int:
        return self.objects.metadata_sm.nr_free

    @property
    def nr_free_metadata_blocks(self) -> int:
        return max(self.raw_free_metadata_blocks - self.metadata_reserve_blocks, 0)

    def resize_metadata(self, nr_blocks: int) -> None:
        self.begin_change()
        old = self.nr_metadata_blocks
        if nr_blocks < old:
            raise InvalidArgument(f"metadata space map: cannot shrink from {old} to {nr_blocks} blocks")
        if nr_blocks > old:
            self.objects.metadata_sm.extend(nr_blocks - old)

    def set_metadata_threshold(self, threshold: int, callback: Callable[[], None]) -> None:
        """Called within the allocation that crosses it: the callback must only take note."""
        self.transaction.check_usable()
        self.objects.metadata_sm.set_threshold(threshold, callback)

    # -- transactions

    @property
    def changed_this_transaction(self) -> bool:
        """Whether a device in core has changed since the last commit: what makes the worker commit."""
        return bool(self.transaction.changed)

    def commit(self) -> Steps[None]:
        """Whatever fails, the state on the device is the previous one; the caller then aborts.

        Source: docs/reference/format.md, 9.3.
        """
        self.transaction.check_usable()
        if not self.transaction.in_service:
            return
        if self.transaction.read_only:
            raise PermissionRefused(f"{self.device.label}: the pool's metadata is read-only")
        for served in self.served():
            served.before_commit()
        written = self._write_changed_details()
        objects = self.objects
        objects.data_sm.commit()
        objects.metadata_sm.commit()
        superblock = replace(
            self._superblock,
            time=self.transaction.time & 0xFFFFFFFF,
            data_mapping_root=self.transaction.mapping_root,
            device_details_root=self.transaction.details_root,
            trans_id=self._transaction_id,
            flags=self._flags,
            data_space_map_root=objects.data_sm.ll.root(),
            metadata_space_map_root=objects.metadata_sm.ll.root(),
        )
        # One chain, which costs one hop to a thread. A crash before the second flush ends leaves blocks that no
        # superblock leads to.
        writes, last_write = objects.bm.encode_dirty(), [(0, superblock.build(SUPERBLOCK_LOCATION))]
        requests = [
            *self._flush_of_data(),
            *write_and_flush(self._writer, writes),
            *write_and_flush(self._writer, last_write),
        ]
        at_once = answers_at_once(self.device) and (self.data is None or answers_at_once(self.data))
        yield Chain(requests, blocks=at_once)
        objects.bm.written()
        objects.bm.forget(SUPERBLOCK_LOCATION)
        objects.tm.committed()
        for thin in written:  # not before: should this fail, the abort must know whose changes it takes away
            thin.changed = False
        self._adopt(superblock)

    def _flush_of_data(self) -> list[tuple[Submits, Bio]]:
        return [] if self.data is None else [(submitter(self.data), Bio(Op.FLUSH))]

    def _write_changed_details(self) -> list[InCore]:
        """The devices written that stay in core."""
        written: list[InCore] = []
        # most recently opened first
        for thin in sorted(self.transaction.changed, key=lambda thin: thin.in_core_nr, reverse=True):
            if self._devices.get(thin.dev_id) is not thin:  # replaced, after its creation had been aborted
                thin.changed = False
                continue
            self.transaction.details_root, _ = self.objects.details.insert(
                self.transaction.details_root, (thin.dev_id,), *thin.details.words()
            )
            if thin.open_count:
                written.append(thin)
            else:
                self._drop(thin)
        return written

    def abort(self) -> None:
        """Back to the last commit (docs/reference/format.md, 9.4). When even that fails, nothing works any more."""
        self.transaction.in_service = True
        self.transaction.check_usable()
        for thin in self._devices.values():
            thin.aborted_with_changes = thin.changed
        for served in self.served():
            served.forget_all()
        try:
            self.transaction.objects, superblock = open_existing(self.device, self._superblock.data_block_size)
        except ThinfsError:
            self.transaction.failed = True
            raise
        self._adopt(superblock)

    # -- metadata snapshot: docs/reference/format.md, 9.6

    @property
    def held_root(self) -> int:
        """Block of the metadata snapshot, 0 = none."""
        return self._superblock.held_root

    def reserve_metadata_snap(self) -> Steps[None]:
        self.begin_change()
        yield from self.commit()
        tm = self.objects.tm
        tm.inc(SUPERBLOCK_LOCATION)
        held_root, copy, _ = tm.shadow(SUPERBLOCK_LOCATION, Superblock)
        if copy.held_root:
            tm.dec(held_root)
            raise Busy(f"reserve_metadata_snap: one is held already, in block {copy.held_root}")
        tm.bm.put(
            held_root,
            replace(copy, data_space_map_root=NO_SPACE_MAP, metadata_space_map_root=NO_SPACE_MAP),
        )
        tm.inc(copy.data_mapping_root)
        tm.inc(copy.device_details_root)
        self._superblock = replace(self._superblock, held_root=held_root)
        yield from self.commit()

    def release_metadata_snap(self) -> Steps[ThinfsError | None]:
        """The held root goes first; then what can be read below it is given back, and what cannot leaks.

        The error of a snapshot that could not be read itself is returned (docs/reference/behaviour.md, 10).
        """
        self.begin_change()
        held_root = self.held_root
        if not held_root:
            raise InvalidArgument("release_metadata_snap: none is held")
        objects = self.objects
        self._superblock = replace(self._superblock, held_root=0)
        failure: ThinfsError | None = None
        try:
            copy = objects.bm.read(held_root, Superblock)
            if copy.held_root:
                raise BadMetadata(f"metadata block {held_root}: a metadata snapshot that holds another")
        except (BadMetadata, IOFailed) as error:
            failure = error
        else:
            for tree, root in ((objects.mapping, copy.data_mapping_root), (objects.details, copy.device_details_root)):
                try:
                    yield from tree.delete(root)
                except (BadMetadata, IOFailed) as error:
                    log.error("release_metadata_snap: what is below block %d leaks: %s", root, error)
            objects.tm.dec(held_root)
        yield from self.commit()
        return failure
