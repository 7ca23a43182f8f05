"""Space and modes: who may allocate, what happens when there is none, and the commit that looks at what is left.

Promises the kernel's mode changes and events, in its order. The one place that changes a pool's mode. Mirrors
set_pool_mode, alloc_data_block and commit of dm-thin. Source: docs/reference/behaviour.md, 5.
"""

import logging
from typing import Final

from thinfs.errors import InvalidArgument, IOFailed, NoSpace, ThinfsError
from thinfs.pool.modes import MODES, PoolMode
from thinfs.pool.pending import Pending
from thinfs.pool.state import PoolState
from thinfs.steps import Steps
from thinfs.units import METADATA_BLOCK_BYTES

log = logging.getLogger(__name__)

METADATA_THRESHOLD_MAX_BLOCKS: Final = 1024


class Space:
    def __init__(self, state: PoolState, pending: Pending) -> None:
        self._state = state
        self._pending = pending
        self._low_water_signalled = False
        self.no_space_deadline: float | None = None

    # -- modes -------------------------------------------------------------------------------------------

    def set_mode(self, wanted: PoolMode) -> None:
        """Change mode as far as the kernel would: never out of FAIL, never to WRITE while needs_check."""
        state = self._state
        old = state.mode
        if wanted is PoolMode.WRITE and old is not PoolMode.FAIL and state.metadata.needs_check:
            log.error("unable to switch pool to write mode until repaired")
            wanted = old if old > wanted else PoolMode.READ_ONLY
        if old is PoolMode.FAIL:
            wanted = PoolMode.FAIL
        was_out_of_data_space = old is PoolMode.OUT_OF_DATA_SPACE
        state.mode = state.settings.mode = wanted
        for served in state.metadata.served():
            served.set_mode(wanted)
        self.no_space_deadline = None
        if MODES[wanted].metadata_writable:
            state.metadata.set_read_write()
        else:
            state.metadata.set_read_only()
        if wanted is PoolMode.WRITE:
            state.error_if_no_space = state.settings.error_if_no_space
        elif wanted is PoolMode.OUT_OF_DATA_SPACE:
            if not state.error_if_no_space and state.no_space_timeout:
                self.no_space_deadline = state.clock() + state.no_space_timeout
        else:
            self._pending.fail_waiting(NoSpace if was_out_of_data_space else IOFailed)
        if old is not wanted:
            self._report_mode()

    def _report_mode(self) -> None:
        description = MODES[self._state.mode].description
        if self._state.mode is PoolMode.OUT_OF_DATA_SPACE:
            description += " (error IO)" if self._state.error_if_no_space else " (queue IO)"
        log.warning("switching pool to %s mode", description)
        self._state.notify()

    def metadata_operation_failed(self, operation: str, error: ThinfsError) -> None:
        """Abort the transaction, remember needs_check, go read-only; FAIL if even the abort fails."""
        log.error("metadata operation %r failed: %s", operation, error)
        if self._state.mode < PoolMode.READ_ONLY:
            log.error("aborting current metadata transaction")
            try:
                self._state.metadata.abort()
                self._state.metadata.set_needs_check()
            except ThinfsError as failure:
                log.error("failed to abort the transaction or to set needs_check: %s", failure)
                self.set_mode(PoolMode.FAIL)
        self.set_mode(PoolMode.READ_ONLY)

    def unserviceable_error(self) -> ThinfsError | None:
        """What a bio gets that needs a block and cannot have one; None: it waits for space."""
        if self._state.mode is PoolMode.OUT_OF_DATA_SPACE:
            return NoSpace("the pool is out of data space") if self._state.error_if_no_space else None
        return IOFailed(f"the pool is in {MODES[self._state.mode].description} mode")

    def end_wait_if_due(self) -> None:
        """The wait for space is limited: after it everything that waits is ENOSPC."""
        state = self._state
        if self.no_space_deadline is None or state.clock() < self.no_space_deadline:
            return
        self.no_space_deadline = None
        if state.mode is PoolMode.OUT_OF_DATA_SPACE and not state.error_if_no_space:
            state.error_if_no_space = True
            self._report_mode()
            self._pending.fail_waiting(NoSpace)

    # -- data blocks -------------------------------------------------------------------------------------

    def alloc_data_block(self) -> Steps[int]:
        """A free data block; commits first if only fresh frees are left (docs/reference/behaviour.md, 5)."""
        metadata = self._state.metadata
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

    def rearm_low_water(self) -> None:
        self._low_water_signalled = False

    def _check_low_water(self, free: int) -> None:
        if free <= self._state.settings.low_water_blocks and not self._low_water_signalled:
            log.warning("reached low water mark for data device: sending event.")
            self._low_water_signalled = True
            self._state.notify()

    # -- commits -----------------------------------------------------------------------------------------

    def commit(self) -> Steps[None]:
        """Commit the metadata and look at the space that is left. Refused in the read-only modes."""
        state = self._state
        if not MODES[state.mode].metadata_writable:
            raise InvalidArgument(f"commit: the pool is in {MODES[state.mode].description} mode")
        # What was unmapped may be handed out again after the commit: nothing may still be on its way there.
        yield from state.data.drained()
        try:
            yield from state.metadata.commit()
        except ThinfsError as failure:
            self.metadata_operation_failed("commit", failure)
            raise
        self._pending.copied_from.clear()
        if state.metadata.nr_free_metadata_blocks == 0:
            log.error("No free metadata blocks.")
            self.set_mode(PoolMode.OUT_OF_METADATA_SPACE)
        if state.mode is PoolMode.OUT_OF_DATA_SPACE and state.metadata.nr_free_data_blocks > 0:
            self.set_mode(PoolMode.WRITE)
            self._pending.requeue_waiting()

    def commit_ignoring_errors(self) -> Steps[None]:
        """As the kernel commits after messages, on status and on suspend: the mode tells what went wrong."""
        if MODES[self._state.mode].metadata_writable:
            try:
                yield from self.commit()
            except ThinfsError as failure:
                log.error("commit failed: %s", failure)

    # -- metadata blocks ---------------------------------------------------------------------------------

    def register_metadata_threshold(self) -> None:
        """At each table load: an event when free metadata blocks fall to min(1024, a quarter)."""
        if self._state.mode is PoolMode.FAIL:
            raise InvalidArgument("thin-pool: Error registering metadata threshold: the pool is in fail mode")
        self._state.metadata.set_metadata_threshold(self.metadata_low_water_blocks(), self._metadata_low)

    def metadata_low_water_blocks(self) -> int:
        nr_blocks = self._state.metadata_device.size_bytes // METADATA_BLOCK_BYTES
        return min(METADATA_THRESHOLD_MAX_BLOCKS, nr_blocks // 4)

    def _metadata_low(self) -> None:
        log.warning("reached low water mark for metadata device: sending event.")
        self._state.notify()
