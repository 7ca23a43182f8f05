"""The thin-pool engine: modes, space, messages, status, suspend and resume, over metadata and a data device.

Promises the kernel's answers: errno, mode, event and allocation for every operation. Synchronous and
single-threaded; what must wait is yielded (thinfs.steps), one Steps of a pool at a time. Never: opens paths,
parses tables, knows names. Mirrors dm-thin's pool. Source: behaviour reference, sections 1, 3, 4 and 5.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.dm.message import (
    CreateSnap,
    CreateThin,
    Delete,
    PoolMessage,
    ReleaseMetadataSnap,
    ReserveMetadataSnap,
    SetTransactionId,
    parse_pool_message,
)
from thinfs.dm.status import ERROR, FAIL, PoolStatus, ThinStatus
from thinfs.errors import (
    Busy,
    Exists,
    InvalidArgument,
    IOFailed,
    NoSpace,
    NoSuchThin,
    NotSupported,
    PermissionRefused,
    ThinfsError,
)
from thinfs.pool.bio import Bio
from thinfs.pool.data_device import DataDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import MODES, Binding, PoolMode
from thinfs.pool.thin import Origin, Thin
from thinfs.pool.worker import COMMIT_PERIOD_SECONDS, Worker
from thinfs.steps import Steps
from thinfs.units import METADATA_BLOCK_BYTES

log = logging.getLogger("thinfs.pool")

NO_SPACE_TIMEOUT_SECONDS: Final = 60.0
METADATA_THRESHOLD_MAX_BLOCKS: Final = 1024

_REFUSALS: Final = (Exists, NoSuchThin, Busy, InvalidArgument, PermissionRefused)  # found before anything has changed


class Pool:
    """One pool: its metadata, its data device and the thins active on it.

    `clock` gives seconds, `notify` raises a dm event on the pool's device. `no_space_timeout` is read
    when the mode is entered; 0 means never (the kernel's module parameter, in seconds).
    """

    def __init__(
        self,
        metadata: PoolMetadata,
        metadata_device: BlockDevice,
        data_device: BlockDevice,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
        no_space_timeout: float = NO_SPACE_TIMEOUT_SECONDS,
    ) -> None:
        """`metadata` has been opened on `metadata_device`, with a flush of `data_device` before its commits."""
        self.block_size_sectors = metadata.data_block_size_sectors
        self.data = DataDevice(data_device, self.block_size_sectors)
        self.metadata_device = metadata_device
        self.metadata = metadata
        self.clock = clock
        self.no_space_timeout = no_space_timeout
        self.mode = PoolMode.WRITE
        self.suspended = True
        self.thins: dict[Thin, None] = {}  # active, in the order of activation
        self._nr_activations = 0
        self.zero_new_blocks = True
        self.discard_passdown = True
        self.error_if_no_space = False
        self._notify = notify
        self._worker = Worker(self)
        self._binding = Binding(frozenset(), 0, 0)
        self._low_water_signalled = False
        self._no_space_deadline: float | None = None

    @property
    def failed(self) -> bool:
        return self.mode is PoolMode.FAIL

    @property
    def discard_enabled(self) -> bool:
        """Whether the adopted table advertises discards."""
        return self._binding.discard_enabled

    # -- modes -------------------------------------------------------------------------------------------

    def set_mode(self, wanted: PoolMode) -> None:
        """Change mode as far as the kernel would: never out of FAIL, never to WRITE while needs_check."""
        old = self.mode
        if wanted is PoolMode.WRITE and old is not PoolMode.FAIL and self.metadata.needs_check:
            log.error("unable to switch pool to write mode until repaired")
            wanted = old if old > wanted else PoolMode.READ_ONLY
        if old is PoolMode.FAIL:
            wanted = PoolMode.FAIL
        was_out_of_data_space = old is PoolMode.OUT_OF_DATA_SPACE
        self.mode = self._binding.mode = wanted
        self._no_space_deadline = None
        if MODES[wanted].metadata_writable:
            self.metadata.set_read_write()
        else:
            self.metadata.set_read_only()
        if wanted is PoolMode.WRITE:
            self.error_if_no_space = self._binding.error_if_no_space
        elif wanted is PoolMode.OUT_OF_DATA_SPACE:
            if not self.error_if_no_space and self.no_space_timeout:
                self._no_space_deadline = self.clock() + self.no_space_timeout
        else:
            self._fail_waiting(NoSpace if was_out_of_data_space else IOFailed)
        if old is not wanted:
            self._report_mode()

    def _report_mode(self) -> None:
        description = MODES[self.mode].description
        if self.mode is PoolMode.OUT_OF_DATA_SPACE:
            description += " (error IO)" if self.error_if_no_space else " (queue IO)"
        log.warning("switching pool to %s mode", description)
        self._notify()

    def metadata_operation_failed(self, operation: str, error: ThinfsError) -> None:
        """Abort the transaction, remember needs_check in the superblock, go read-only; FAIL if even that fails."""
        log.error("metadata operation %r failed: %s", operation, error)
        if self.mode < PoolMode.READ_ONLY:
            log.error("aborting current metadata transaction")
            try:
                self.metadata.abort()
                self.metadata.set_needs_check()
            except ThinfsError as failure:
                log.error("failed to abort the transaction or to set needs_check: %s", failure)
                self.set_mode(PoolMode.FAIL)
        self.set_mode(PoolMode.READ_ONLY)

    def unserviceable_error(self) -> ThinfsError | None:
        """What a bio gets that needs a block and cannot have one; None: it waits for space."""
        if self.mode is PoolMode.OUT_OF_DATA_SPACE:
            return NoSpace("the pool is out of data space") if self.error_if_no_space else None
        return IOFailed(f"the pool is in {MODES[self.mode].description} mode")

    # -- bios --------------------------------------------------------------------------------------------

    def defer(self, thin: Thin, bios: Sequence[Bio]) -> None:
        """Queue bios for the worker's next pass."""
        self._worker.defer(thin, bios)

    def work(self) -> Steps[None]:
        """Let the worker do all it can: bios that then are not done wait for space."""
        deadline = self._no_space_deadline
        if deadline is not None and self.clock() >= deadline:
            self._no_space_timed_out()
        if not self.suspended:
            yield from self._worker.run()

    def next_deadline(self) -> float | None:
        """When `work` should run again though nothing arrives: a due commit or the no-space timeout."""
        deadlines = [] if self._no_space_deadline is None else [self._no_space_deadline]
        if not self.suspended and MODES[self.mode].metadata_writable and self.metadata.changed_this_transaction:
            deadlines.append(self._worker.last_commit + COMMIT_PERIOD_SECONDS)
        return min(deadlines, default=None)

    def _no_space_timed_out(self) -> None:
        self._no_space_deadline = None
        if self.mode is PoolMode.OUT_OF_DATA_SPACE and not self.error_if_no_space:
            self.error_if_no_space = True
            self._report_mode()
            self._fail_waiting(NoSpace)

    def _fail_waiting(self, error: type[ThinfsError]) -> None:
        for thin in self.thins:
            waiting, thin.waiting = thin.waiting, []
            for bio in waiting:
                bio.complete(error(f"thin {thin.dev_id}: no data block for byte {bio.offset}"))

    def _requeue_waiting(self) -> None:
        for thin in self.thins:
            waiting, thin.waiting = thin.waiting, []
            if waiting:
                self._worker.defer(thin, waiting)

    # -- space and commits -------------------------------------------------------------------------------

    def alloc_data_block(self) -> Steps[int]:
        """A free data block, committing first where only this transaction's frees are left (reference, 5)."""
        metadata = self.metadata
        free = metadata.nr_free_data_blocks
        self._check_low_water(free)
        if free == 0:
            yield from self.commit()
            if metadata.nr_free_data_blocks == 0:
                self.set_mode(PoolMode.OUT_OF_DATA_SPACE)
                raise NoSpace("the pool is out of data space")
        try:
            block = metadata.alloc_data_block()
        except NoSpace:
            self.set_mode(PoolMode.OUT_OF_DATA_SPACE)
            raise
        except ThinfsError as failure:
            self.metadata_operation_failed("alloc_data_block", failure)
            raise
        if metadata.nr_free_metadata_blocks == 0:
            yield from self.commit()  # before the reserve is eaten
        return block

    def _check_low_water(self, free: int) -> None:
        if free <= self._binding.low_water_blocks and not self._low_water_signalled:
            log.warning("reached low water mark for data device: sending event.")
            self._low_water_signalled = True
            self._notify()

    def commit(self) -> Steps[None]:
        """Commit the metadata and look at the space that is left. Refused in the read-only modes."""
        if not MODES[self.mode].metadata_writable:
            raise InvalidArgument(f"commit: the pool is in {MODES[self.mode].description} mode")
        try:
            yield from self.metadata.commit()
        except ThinfsError as failure:
            self.metadata_operation_failed("commit", failure)
            raise
        self._worker.copied_from.clear()
        if self.metadata.nr_free_metadata_blocks == 0:
            log.error("No free metadata blocks.")
            self.set_mode(PoolMode.OUT_OF_METADATA_SPACE)
        if self.mode is PoolMode.OUT_OF_DATA_SPACE and self.metadata.nr_free_data_blocks > 0:
            self.set_mode(PoolMode.WRITE)
            self._requeue_waiting()

    def _run_requeued(self) -> Steps[None]:
        """A commit outside the worker may have found space: who waited for it goes on, as in the kernel (seen)."""
        if self._worker.has_bios:
            yield from self.work()

    def _commit_ignoring_errors(self) -> Steps[None]:
        """As the kernel commits after messages, on status and on suspend: the mode tells what went wrong."""
        if MODES[self.mode].metadata_writable:
            try:
                yield from self.commit()
            except ThinfsError as failure:
                log.error("commit failed: %s", failure)

    def register_metadata_threshold(self) -> None:
        """At each table load: an event when free metadata blocks fall to min(1024, a quarter)."""
        if self.mode is PoolMode.FAIL:
            raise InvalidArgument("thin-pool: Error registering metadata threshold: the pool is in fail mode")
        self.metadata.set_metadata_threshold(self._metadata_low_water_blocks(), self._metadata_low)

    def _metadata_low_water_blocks(self) -> int:
        nr_blocks = self.metadata_device.size_bytes // METADATA_BLOCK_BYTES
        return min(METADATA_THRESHOLD_MAX_BLOCKS, nr_blocks // 4)

    def _metadata_low(self) -> None:
        log.warning("reached low water mark for metadata device: sending event.")
        self._notify()

    # -- messages and status -----------------------------------------------------------------------------

    def message(self, words: Sequence[str]) -> Steps[None]:
        """Carry out a message and commit. A read-only or failed pool answers NotSupported to any."""
        if not MODES[self.mode].messages:
            raise NotSupported(f"message {words[0]}: the pool is in {MODES[self.mode].description} mode")
        message = parse_pool_message(words)
        try:
            yield from self._carry_out(message)
        except _REFUSALS:
            raise
        except ThinfsError as failure:
            # The kernel leaves the half of it in the transaction, where the next commit would make it last.
            self.metadata_operation_failed(words[0], failure)
            raise
        yield from self._commit_ignoring_errors()
        yield from self._run_requeued()

    def _carry_out(self, message: PoolMessage) -> Steps[None]:
        metadata = self.metadata
        match message:
            case CreateThin(dev_id):
                metadata.create_thin(dev_id)
            case CreateSnap(dev_id, origin_id):
                metadata.create_snap(dev_id, origin_id)
            case Delete(dev_id):
                failure = yield from metadata.delete_thin(dev_id)
                if failure is not None:
                    self.metadata_operation_failed("delete", failure)
            case SetTransactionId(current, new):
                metadata.set_transaction_id(current, new)
            case ReserveMetadataSnap():
                yield from self._commit_ignoring_errors()
                yield from metadata.reserve_metadata_snap()
            case ReleaseMetadataSnap():
                yield from metadata.release_metadata_snap()

    def status(self, *, noflush: bool = False) -> Steps[str]:
        """The INFO parameters; commits first unless noflush or suspended."""
        if self.mode is PoolMode.FAIL:
            return FAIL
        if not noflush and not self.suspended:
            yield from self._commit_ignoring_errors()
        text = self._status_text()
        yield from self._run_requeued()
        return text

    def _status_text(self) -> str:
        metadata = self.metadata
        try:
            nr_metadata = metadata.nr_metadata_blocks
            nr_data = metadata.nr_data_blocks
            status = PoolStatus(
                transaction_id=metadata.transaction_id,
                used_metadata_blocks=nr_metadata - metadata.nr_free_metadata_blocks,
                nr_metadata_blocks=nr_metadata,
                used_data_blocks=nr_data - metadata.nr_free_data_blocks,
                nr_data_blocks=nr_data,
                held_root=metadata.held_root,
                mode=MODES[self.mode].status,
                discard=self._discard_status(),
                no_space="error_if_no_space" if self.error_if_no_space else "queue_if_no_space",
                needs_check=metadata.needs_check,
                metadata_low_water_blocks=self._metadata_low_water_blocks(),
            )
        except ThinfsError as failure:
            log.error("status: %s", failure)
            return ERROR
        return str(status)

    def _discard_status(self) -> str:
        if not self._binding.discard_enabled:
            return "ignore_discard"
        return "discard_passdown" if self.discard_passdown else "no_discard_passdown"

    def thin_status(self, thin: Thin) -> str:
        if self.mode is PoolMode.FAIL:
            return FAIL
        try:
            highest = thin.internal.highest_mapped_block()
        except ThinfsError as failure:
            log.error("thin %d: status: %s", thin.dev_id, failure)
            return ERROR
        size = self.block_size_sectors
        return str(
            ThinStatus(thin.internal.mapped_blocks * size, None if highest is None else (highest + 1) * size - 1)
        )

    # -- thins -------------------------------------------------------------------------------------------

    def open_thin(self, dev_id: int, origin: Origin | None = None) -> Thin:
        """Activate a thin; the same id may be active several times (reference, 2, in this order)."""
        if self.mode is PoolMode.FAIL:
            raise InvalidArgument("thin: Couldn't open thin device, Pool is in fail mode")
        try:
            internal = self.metadata.open_thin(dev_id)
        except NoSuchThin:
            raise NoSuchThin(f"thin: Couldn't open thin internal device: thin {dev_id} does not exist") from None
        if self.suspended:
            self.metadata.close_thin(internal)
            raise InvalidArgument("thin: Unable to activate thin device while pool is suspended")
        self._nr_activations += 1
        thin = Thin(self, internal, origin, self._nr_activations)
        self.thins[thin] = None
        return thin

    def close_thin(self, thin: Thin) -> None:
        del self.thins[thin]
        self.metadata.close_thin(thin.internal)

    # -- suspend and resume ------------------------------------------------------------------------------

    def preresume(self, binding: Binding) -> Steps[None]:
        """Adopt a table's features and mode, then grow what has grown (reference, 1, "Resume checks")."""
        self._binding, wanted = binding, binding.mode
        self.zero_new_blocks = binding.zero_new_blocks
        self.error_if_no_space = binding.error_if_no_space
        self.discard_passdown = binding.discard_passdown and self.data.supports_passdown
        if binding.discard_passdown and not self.discard_passdown:
            log.warning("Data device (%s) discard unsupported: Disabling discard passdown.", self.data.device.label)
        self.set_mode(wanted)
        try:
            grew_data = self._grow_data()
            grew_metadata = self._grow_metadata()
            if grew_metadata and not grew_data:  # which may have made the pool writable
                grew_data = self._grow_data()
        except ThinfsError:
            if self.mode is PoolMode.FAIL:  # a failed pool must still be resumable, to be looked at
                return
            raise
        if grew_data or grew_metadata:
            yield from self._commit_ignoring_errors()

    def _grow_data(self) -> bool:
        wanted, stored = self._binding.nr_data_blocks, self.metadata.nr_data_blocks
        if wanted < stored:
            raise InvalidArgument(f"pool target ({wanted} blocks) too small: expected {stored}")
        if wanted == stored:
            return False
        if self.metadata.needs_check:
            log.error("unable to grow the data device until repaired.")
            return False
        if not MODES[self.mode].metadata_writable:
            # The kernel grows in core, cannot commit, and at the next resume adds the difference once more: it then
            # hands out blocks past the end of the device (seen on 6.1). Here the growth waits.
            log.error("unable to grow the data device while the pool is read-only.")
            return False
        if stored:
            log.info("growing the data device from %d to %d blocks", stored, wanted)
        try:
            self.metadata.resize_data(wanted)
        except ThinfsError as failure:
            self.metadata_operation_failed("resize_data", failure)
            raise
        return True

    def _grow_metadata(self) -> bool:
        wanted = self.metadata.nr_usable_device_blocks
        stored = self.metadata.nr_metadata_blocks
        if wanted < stored:
            raise InvalidArgument(f"metadata device ({wanted} blocks) too small: expected {stored}")
        if wanted == stored:
            return False
        if self.metadata.needs_check:
            log.error("unable to grow the metadata device until repaired.")
            return False
        if self.mode >= PoolMode.READ_ONLY:
            log.error("unable to grow the metadata device while the pool is read-only.")
            return False
        log.info("growing the metadata device from %d to %d blocks", stored, wanted)
        if self.mode is PoolMode.OUT_OF_METADATA_SPACE:
            self.set_mode(PoolMode.WRITE)
        try:
            self.metadata.resize_metadata(wanted)
        except ThinfsError as failure:
            self.metadata_operation_failed("resize_metadata", failure)
            raise
        return True

    def resume(self) -> Steps[None]:
        """Let the worker run: low water mark re-armed, bios that waited for space tried again."""
        self._low_water_signalled = False
        self.suspended = False
        self._requeue_waiting()
        yield from self.work()

    def suspend(self) -> Steps[None]:
        """Finish what the worker can finish, cancel the no-space timer, commit."""
        if self.suspended:
            return
        yield from self.work()
        self.suspended = True
        self._no_space_deadline = None
        yield from self._commit_ignoring_errors()

    def close(self) -> Steps[None]:
        """Suspend, commit what is in service, and let go of the metadata; devices stay the caller's."""
        yield from self.suspend()
        self.metadata.close()
