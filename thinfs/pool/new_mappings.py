"""Thin blocks that get a data block: provisioning, breaking of sharing, and the mapping once its data is in place.

Promises the kernel's choices: what is zeroed, what is copied, what is overwritten instead. A mapping is inserted only
after its data is there. Mirrors provision_block, break_sharing and process_prepared_mapping of dm-thin.
Source: docs/reference/behaviour.md, 6.1, 6.2, 7.
"""

from thinfs.bio import Bio, Op
from thinfs.errors import IOFailed, NoSpace, ThinfsError
from thinfs.pool.modes import PoolMode
from thinfs.pool.pending import DataIO, NewMapping, Pending
from thinfs.pool.space import Space
from thinfs.pool.state import PoolState
from thinfs.pool.thin import Thin
from thinfs.steps import Requests, Steps


class NewMappings:
    def __init__(self, state: PoolState, space: Space, pending: Pending) -> None:
        self._state = state
        self._space = space
        self._pending = pending

    def _allocate(self, thin: Thin, bio: Bio) -> Steps[int | None]:
        """A data block, or None when the bio has been queued or failed instead."""
        try:
            block = yield from self._space.alloc_data_block()
        except NoSpace:
            self.queue_or_fail(thin, bio)
        except ThinfsError as failure:
            bio.complete(IOFailed(f"thin {thin.dev_id}: allocation of a data block: {failure}"))
        else:
            return block
        return None

    def queue_or_fail(self, thin: Thin, bio: Bio) -> None:
        """For want of space it waits, or fails as the mode says."""
        error = self._space.unserviceable_error()
        if error is None:
            thin.waiting.append(bio)
        else:
            bio.complete(error)

    def provision(self, thin: Thin, thin_block: int, bio: Bio) -> Steps[None]:
        """A write or provision of a block that nothing is mapped to."""
        state = self._state
        if state.mode is not PoolMode.WRITE:
            self.queue_or_fail(thin, bio)
            return
        guard = state.settings.guard_blocks
        if guard and state.metadata.nr_free_data_blocks <= guard:
            # What is left is for the overwrites of shared blocks: a journal above goes on, new files are refused.
            bio.complete(
                NoSpace(f"thin {thin.dev_id}: {guard} free data blocks are left to overwrites (guard:{guard})")
            )
            return
        data_block = yield from self._allocate(thin, bio)
        if data_block is None:
            return
        overwrite = bio.op is Op.WRITE and bio.length == thin.block_bytes
        cell = self._pending.hold(thin, thin_block, thin_block + 1, bio)
        mapping = NewMapping(thin, cell, data_block, bio, overwrite)
        origin_bytes = max(0, min(thin.origin_size_bytes - thin_block * thin.block_bytes, thin.block_bytes))
        if origin_bytes:
            if overwrite:
                self._start_overwrite(mapping)
            else:
                self._start(mapping, thin.block_bytes, self._copy_from_origin(thin, thin_block, data_block))
        elif not state.zero_new_blocks and bio.op is not Op.PROVISION:
            mapping.overwrite = False
            self.insert(mapping)
        elif overwrite:
            self._start_overwrite(mapping)
        else:
            self._start(mapping, thin.block_bytes, state.data.zero(data_block))

    def _copy_from_origin(self, thin: Thin, thin_block: int, data_block: int) -> Requests:
        """Copy the part inside the origin; beyond its end zeroes, unless zeroing is skipped (seen)."""
        data, begin = self._state.data, thin_block * thin.block_bytes
        inside = min(thin.origin_size_bytes - begin, thin.block_bytes)
        assert thin.origin_below is not None
        yield from data.copy_in(thin.origin_below, begin, data_block, inside)
        if inside < thin.block_bytes and self._state.zero_new_blocks:
            yield from data.zero(data_block, inside)

    def break_sharing(self, thin: Thin, thin_block: int, shared_block: int, bio: Bio) -> Steps[None]:
        """A write or provision of a block that a snapshot may have too."""
        pending, data = self._pending, self._state.data
        if self._state.mode is not PoolMode.WRITE:
            self.queue_or_fail(thin, bio)
            return
        behind = pending.held_data.get(shared_block)
        if behind is not None:
            behind.append((thin, bio))
            return
        data_block = yield from self._allocate(thin, bio)
        if data_block is None:
            return
        pending.held_data[shared_block] = []
        overwrite = bio.op is Op.WRITE and bio.length == thin.block_bytes
        cell = pending.hold(thin, thin_block, thin_block + 1, bio)
        mapping = NewMapping(thin, cell, data_block, bio, overwrite, shared_block)
        if overwrite:
            self._start_overwrite(mapping)
        else:
            self._start(mapping, thin.block_bytes, data.copy_block(shared_block, data_block))

    def _start(self, mapping: NewMapping, nr_bytes: int, requests: Requests) -> None:
        def finished(error: ThinfsError | None) -> None:
            mapping.error = error
            self._pending.mapped.append(mapping)

        job = self._state.data.chain(requests, source_at_once=mapping.thin.at_once)
        self._pending.data_io.append(DataIO(nr_bytes, job, finished))

    def _start_overwrite(self, mapping: NewMapping) -> None:
        bio = mapping.bio
        self._start(mapping, bio.length, self._state.data.write_in_block(mapping.data_block, 0, bio.data))

    def _could_not_fill(self, mapping: NewMapping, why: ThinfsError) -> ThinfsError:
        """The allocated block stays counted, as in the kernel: one leaks per failed copy (seen). But a data file on a
        full file system, which the kernel does not have, would lose a block with each retry."""
        text = f"thin {mapping.thin.dev_id}: filling data block {mapping.data_block}: {why}"
        if not isinstance(why, NoSpace):
            return IOFailed(text)
        try:
            self._state.metadata.dec_data_blocks(mapping.data_block, mapping.data_block + 1)
        except ThinfsError as failure:
            self._space.metadata_operation_failed("dec_data_blocks", failure)
        return NoSpace(text)

    def insert(self, mapping: NewMapping) -> None:
        """Insert a mapping whose data is in place, and let its bio and those behind it go on."""
        thin, bio = mapping.thin, mapping.bio
        error: ThinfsError | None = None
        if mapping.error is not None:
            error = self._could_not_fill(mapping, mapping.error)
        else:
            try:
                thin.internal.insert_block(mapping.cell.begin, mapping.data_block)
            except ThinfsError as failure:
                self._space.metadata_operation_failed("insert_block", failure)
                error = IOFailed(f"thin {thin.dev_id}: mapping block {mapping.cell.begin}: {failure}")
        self._pending.release(mapping.cell, bio)
        if mapping.shared_block is not None:
            self._pending.copied_from.add(mapping.shared_block)
            for other, waiting in self._pending.held_data.pop(mapping.shared_block):
                self._pending.defer(other, (waiting,))
        if error is not None or mapping.overwrite or bio.op is Op.PROVISION:
            bio.complete(error)
        else:
            thin.write_in_place(bio, mapping.data_block)
