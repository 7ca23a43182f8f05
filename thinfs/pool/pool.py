"""The thin-pool engine: messages, status, suspend and resume, over metadata and a data device.

Promises the kernel's answers: errno, mode, event and allocation for every operation. Synchronous and
single-threaded; what must wait is yielded (thinfs.steps), one Steps of a pool at a time. An exception that is no
ThinfsError is a failed metadata operation: aborted, needs_check, read-only, every bio taken on fails. Never: opens
paths, parses tables, knows names. Mirrors dm-thin's pool. Source: docs/reference/behaviour.md, 1, 3, 4 and 5.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from thinfs.bio import Bio, LowerDevice
from thinfs.blockdev import BlockDevice, HasDescriptor
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
    NoSuchThin,
    NotSupported,
    PermissionRefused,
    ThinfsError,
)
from thinfs.pool.data_device import DataDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import MODES, PoolMode, PoolSettings
from thinfs.pool.pending import Pending
from thinfs.pool.served import MakeVolume, Served
from thinfs.pool.space import Space
from thinfs.pool.state import PoolState
from thinfs.pool.thin import Thin
from thinfs.pool.worker import COMMIT_PERIOD_SECONDS, Worker
from thinfs.steps import Steps

log = logging.getLogger(__name__)

T = TypeVar("T")

NO_SPACE_TIMEOUT_SECONDS: Final = 60.0

_REFUSALS: Final = (Exists, NoSuchThin, Busy, InvalidArgument, PermissionRefused)  # found before anything has changed


class Pool:
    """One pool: its metadata, its data device and the thins active on it.

    `clock` gives seconds, `notify` raises a dm event on the pool's device. `no_space_timeout` is read
    when the mode is entered; 0 means never (the kernel's module parameter, in seconds).
    """

    def __init__(
        self,
        metadata: PoolMetadata,
        metadata_device: BlockDevice | LowerDevice,
        data_device: BlockDevice | LowerDevice,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None] = lambda: None,
        no_space_timeout: float = NO_SPACE_TIMEOUT_SECONDS,
    ) -> None:
        """`metadata` has been opened on `metadata_device`, with a flush of `data_device` before its commits."""
        self.block_size_sectors = metadata.data_block_size_sectors
        self.data = DataDevice(data_device, self.block_size_sectors)
        self.metadata = metadata
        self.state = PoolState(
            metadata, metadata_device, self.data, clock=clock, notify=notify, no_space_timeout=no_space_timeout
        )
        self.pending = Pending()
        self.space = Space(self.state, self.pending)
        self.worker = Worker(self.state, self.space, self.pending)
        self._nr_activations = 0

    @property
    def mode(self) -> PoolMode:
        return self.state.mode

    @property
    def failed(self) -> bool:
        return self.state.mode is PoolMode.FAIL

    @property
    def suspended(self) -> bool:
        return self.state.suspended

    @property
    def discard_enabled(self) -> bool:
        """Whether the adopted table advertises discards."""
        return self.state.settings.discard_enabled

    # -- one operation at a time -------------------------------------------------------------------------

    def _operation(self, name: str, steps: Steps[T]) -> Steps[T]:
        """Every operation runs in here: a bug in one is a failed metadata operation, and ends what it had taken on."""
        failure: ThinfsError | None = None
        try:
            result = yield from steps
        except ThinfsError as error:
            failure = error
        except Exception as error:
            log.exception("%s: a bug", name)
            failure = self._broken(name, error)
        self.data.held = False
        if self.metadata.flag_due:
            yield from self.metadata.write_flag()
        if failure is not None:
            raise failure
        return result

    def _broken(self, name: str, error: Exception) -> ThinfsError:
        failure = IOFailed(f"{name}: internal error, see the log: {error!r}")
        self.space.metadata_operation_failed(name, failure)
        self.pending.fail_everything(failure)
        return failure

    def _hold_in_place(self) -> Steps[None]:
        """For the rest of the operation nothing begins in place, and nothing is under way: a snapshot is one moment."""
        if not self.data.at_once:
            self.data.held = True
            yield from self.data.drained()

    # -- bios --------------------------------------------------------------------------------------------

    def defer(self, thin: Thin, bios: Sequence[Bio]) -> None:
        """Queue bios for the worker's next pass."""
        self.pending.defer(thin, bios)
        self.state.wake()

    def work(self) -> Steps[None]:
        """Let the worker do all it can: bios that then are not done wait for space."""
        return self._operation("work", self._work())

    def _work(self) -> Steps[None]:
        self.space.end_wait_if_due()
        if self.state.suspended:
            return
        try:
            yield from self.worker.run()
        except ThinfsError as error:  # a pass answers for the errors it knows; this one has left it half done
            log.exception("the worker: an error that no bio has taken")
            self._broken("work", error)

    @property
    def has_work(self) -> bool:
        """Whether `work` would do something now."""
        return not self.state.suspended and (self.pending.has_work or self.worker.commit_is_due())

    def next_deadline(self) -> float | None:
        """When `work` should run again though nothing arrives: a due commit or the no-space timeout."""
        state, deadline = self.state, self.space.no_space_deadline
        deadlines = [] if deadline is None else [deadline]
        if not state.suspended and MODES[state.mode].metadata_writable and self.metadata.changed_this_transaction:
            deadlines.append(self.worker.last_commit + COMMIT_PERIOD_SECONDS)
        return min(deadlines, default=None)

    def _run_requeued(self) -> Steps[None]:
        """A commit outside the worker may have found space: who waited for it goes on, as in the kernel (seen)."""
        self.data.held = False
        if self.pending.with_bios:
            yield from self._work()

    def register_metadata_threshold(self) -> None:
        """At each table load: an event when free metadata blocks fall to min(1024, a quarter)."""
        self.space.register_metadata_threshold()

    # -- messages and status -----------------------------------------------------------------------------

    def message(self, words: Sequence[str]) -> Steps[None]:
        """Carry out a message and commit. A read-only or failed pool answers NotSupported to any."""
        return self._operation(words[0], self._message(words))

    def _message(self, words: Sequence[str]) -> Steps[None]:
        if not MODES[self.mode].messages:
            raise NotSupported(f"message {words[0]}: the pool is in {MODES[self.mode].description} mode")
        message = parse_pool_message(words)
        yield from self._hold_in_place()
        try:
            failed = yield from self._carry_out(message)
        except _REFUSALS:
            raise
        except ThinfsError as failure:
            # The kernel leaves the half of it in the transaction, where the next commit would make it last.
            self.space.metadata_operation_failed(words[0], failure)
            raise
        yield from self.space.commit_ignoring_errors()
        yield from self._run_requeued()
        if failed is not None:
            raise failed

    def _carry_out(self, message: PoolMessage) -> Steps[ThinfsError | None]:
        """What is raised has failed altogether; an error that is returned is answered, and the pool goes on."""
        metadata = self.metadata
        match message:
            case CreateThin(dev_id):
                metadata.create_thin(dev_id)
            case CreateSnap(dev_id, origin_id):
                metadata.create_snap(dev_id, origin_id)
            case Delete(dev_id):
                failure = yield from metadata.delete_thin(dev_id)
                if failure is not None:
                    self.space.metadata_operation_failed("delete", failure)
            case SetTransactionId(current, new):
                metadata.set_transaction_id(current, new)
            case ReserveMetadataSnap():
                yield from self.space.commit_ignoring_errors()
                yield from metadata.reserve_metadata_snap()
            case ReleaseMetadataSnap():
                return (yield from metadata.release_metadata_snap())
        return None

    def status(self, *, noflush: bool = False) -> Steps[str]:
        """The INFO parameters; commits first unless noflush or suspended."""
        return self._operation("status", self._status(noflush=noflush))

    def _status(self, *, noflush: bool) -> Steps[str]:
        if self.mode is PoolMode.FAIL:
            return FAIL
        if not noflush and not self.state.suspended:
            yield from self.space.commit_ignoring_errors()
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
                no_space="error_if_no_space" if self.state.error_if_no_space else "queue_if_no_space",
                needs_check=metadata.needs_check,
                metadata_low_water_blocks=self.space.metadata_low_water_blocks(),
            )
        except ThinfsError as failure:
            log.error("status: %s", failure)
            return ERROR
        return str(status)

    def _discard_status(self) -> str:
        if not self.discard_enabled:
            return "ignore_discard"
        return "discard_passdown" if self.state.discard_passdown else "no_discard_passdown"

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

    def open_thin(self, dev_id: int, origin: BlockDevice | LowerDevice | None = None) -> Thin:
        """Activate a thin; the same id may be active several times (docs/reference/behaviour.md, 2, in this order)."""
        if self.mode is PoolMode.FAIL:
            raise InvalidArgument("thin: Couldn't open thin device, Pool is in fail mode")
        try:
            internal = self.metadata.open_thin(dev_id)
        except NoSuchThin:
            raise NoSuchThin(f"thin: Couldn't open thin internal device: thin {dev_id} does not exist") from None
        if self.state.suspended:
            self.metadata.close_thin(internal)
            raise InvalidArgument("thin: Unable to activate thin device while pool is suspended")
        self._nr_activations += 1
        thin = Thin(self.state, internal, origin, self._nr_activations, self.defer)
        self.pending.thins[thin] = None
        return thin

    def serve(self, thin: Thin, make_volume: MakeVolume) -> None:
        """Let a volume serve the thin's I/O beside the engine, where its data is a file or block device, no more."""
        device, internal = self.data.device, thin.internal
        if thin.at_once and isinstance(device, HasDescriptor) and internal.served is None:
            internal.served = Served(
                make_volume(device.fileno(), self.data.block_bytes),
                snapshotted_time=internal.snapshotted_time,
                changed=internal.changed,
                mode=self.state.mode,
            )

    def close_thin(self, thin: Thin) -> None:
        del self.pending.thins[thin]
        self.metadata.close_thin(thin.internal)

    # -- suspend and resume ------------------------------------------------------------------------------

    def preresume(self, settings: PoolSettings) -> Steps[None]:
        """Adopt a table's features and mode, then grow what has grown (docs/reference/behaviour.md, 1.2)."""
        return self._operation("preresume", self._preresume(settings))

    def _preresume(self, settings: PoolSettings) -> Steps[None]:
        self.state.settings, wanted = settings, settings.mode
        self.state.zero_new_blocks = settings.zero_new_blocks
        self.state.error_if_no_space = settings.error_if_no_space
        self.state.discard_passdown = settings.discard_passdown and self.data.supports_passdown
        if settings.discard_passdown and not self.state.discard_passdown:
            log.warning("Data device (%s) discard unsupported: Disabling discard passdown.", self.data.device.label)
        self.space.set_mode(wanted)
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
            yield from self.space.commit_ignoring_errors()

    def _grow_data(self) -> bool:
        wanted, stored = self.state.settings.nr_data_blocks, self.metadata.nr_data_blocks
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
            self.space.metadata_operation_failed("resize_data", failure)
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
            self.space.set_mode(PoolMode.WRITE)
        try:
            self.metadata.resize_metadata(wanted)
        except ThinfsError as failure:
            self.space.metadata_operation_failed("resize_metadata", failure)
            raise
        return True

    def resume(self) -> Steps[None]:
        """Let the worker run: low water mark re-armed, bios that waited for space tried again."""
        return self._operation("resume", self._resume())

    def _resume(self) -> Steps[None]:
        self.space.rearm_low_water()
        self.state.suspended = False
        self.pending.requeue_waiting()
        yield from self._work()

    def suspend(self) -> Steps[None]:
        """Finish what the worker can finish, cancel the no-space timer, commit."""
        return self._operation("suspend", self._suspend())

    def _suspend(self) -> Steps[None]:
        if self.state.suspended:
            return
        yield from self._work()
        self.state.suspended = True
        self.space.no_space_deadline = None
        yield from self.space.commit_ignoring_errors()

    def close(self) -> Steps[None]:
        """Suspend, commit what is in service, and let go of the metadata; devices stay the caller's."""
        yield from self.suspend()
        yield from self.metadata.closing()
