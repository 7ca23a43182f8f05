"""The pool's worker: passes over deferred bios, in the kernel's order.

Promises that order within a pass: finished copies become mappings, discards unmap, passed-down discards drop their
last count, new bios of each thin by sector, then the commit. Data I/O started in a pass finishes before the next.
Source: docs/reference/behaviour.md, 5, 6.1-6.4, 7. Mirrors do_worker of dm-thin.
"""

from collections import deque
from typing import Final

from thinfs.bio import Bio, Op
from thinfs.errors import IOFailed, ThinfsError
from thinfs.pool.discards import Discards
from thinfs.pool.modes import MODES, PoolMode
from thinfs.pool.new_mappings import NewMappings
from thinfs.pool.pending import Pending
from thinfs.pool.space import Space
from thinfs.pool.state import PoolState
from thinfs.pool.thin import Thin
from thinfs.steps import Steps, Together, UnderWay

COMMIT_PERIOD_SECONDS: Final = 1.0
_INLINE_BYTES: Final = 1 << 20  # data I/O of a pass up to this size costs less than a hop to a thread


class Worker:
    """Everything here runs inside one Steps at a time."""

    def __init__(self, state: PoolState, space: Space, pending: Pending) -> None:
        self._state = state
        self._space = space
        self._pending = pending
        self._new_mappings = NewMappings(state, space, pending)
        self._discards = Discards(state, space, pending)
        self.last_commit = state.clock()

    def run(self) -> Steps[None]:
        """Pass after pass until nothing is left that could go on now."""
        while self._pending.has_work or self.commit_is_due():
            yield from self._one_pass()

    def commit_is_due(self) -> bool:
        """A change waits and a second has passed since the worker's last commit (no other commit counts)."""
        state = self._state
        return (
            state.metadata.changed_this_transaction
            and MODES[state.mode].metadata_writable
            and state.clock() >= self.last_commit + COMMIT_PERIOD_SECONDS
        )

    def _one_pass(self) -> Steps[None]:
        pending = self._pending
        if pending.mapped:
            mapped, pending.mapped = pending.mapped, []
            # blocks that were unmapped come before those that were shared, as the kernel inserts them (seen)
            for mapping in sorted(mapped, key=lambda mapping: mapping.shared_block is not None):
                self._new_mappings.insert(mapping)
        if pending.discards:
            discards, pending.discards = pending.discards, deque()
            for discard in discards:
                yield from self._discards.unmap(discard)
                yield None
        if pending.passed_down:
            passed_down, pending.passed_down = pending.passed_down, deque()
            for run in passed_down:
                self._discards.drop_last_count(run)
        if pending.with_bios:
            thins, pending.with_bios = sorted(pending.with_bios, key=lambda thin: thin.activation_nr), set()
            for thin in thins:
                bios, thin.deferred = deque(sorted(thin.deferred, key=lambda bio: bio.offset)), []
                while bios:
                    bio = bios.popleft()
                    try:
                        yield from self._process_bio(thin, bio)
                    except Exception:
                        pending.defer(thin, [bio, *bios])  # whoever takes the exception ends them
                        raise
        if pending.flushes or self.commit_is_due():
            yield from self._commit_pass()
        if pending.data_io or pending.forwarded:
            yield from self._run_data_io()

    def _commit_pass(self) -> Steps[None]:
        error: ThinfsError | None = None
        try:
            yield from self._space.commit()
        except ThinfsError as failure:
            error = IOFailed(f"flush: the commit failed: {failure}")
        self.last_commit = self._state.clock()
        flushes, self._pending.flushes = self._pending.flushes, []
        for bio in flushes:
            bio.complete(error)  # the commit has flushed the data device

    def _run_data_io(self) -> Steps[None]:
        pending, data = self._pending, self._state.data
        batch, pending.data_io = pending.data_io, []
        if batch:
            much = sum([item.nr_bytes for item in batch]) > _INLINE_BYTES
            in_thread = [item.job for item in batch if much and item.job.blocks]
            for item in batch:
                if not (much and item.job.blocks):
                    item.job.start()
            if in_thread:
                yield Together(in_thread)
            held_below = [item.job for item in batch if not item.job.done]
            if held_below:
                yield UnderWay(held_below)
            for item in batch:
                item.finished(item.job.error)
        if pending.forwarded:
            failure = None
            try:
                yield data.chain(data.flush())
            except ThinfsError as error:
                failure = error
            forwarded, pending.forwarded = pending.forwarded, []
            for bio in forwarded:
                bio.complete(failure)

    def _process_bio(self, thin: Thin, bio: Bio) -> Steps[None]:
        if self._state.mode is PoolMode.FAIL:
            bio.complete(IOFailed(f"thin {thin.dev_id}: the pool is in fail mode"))
        elif bio.op is Op.DISCARD:
            self._discards.begin(thin, bio)
        elif bio.op is Op.READ:
            thin.submit_read(bio)
        else:
            # an empty flush is a bio at sector 0 of the volume, and follows that block's fate
            thin_block = bio.offset // thin.block_bytes
            holder = self._pending.holder(thin.dev_id, thin_block, thin_block + 1)
            if holder is not None:
                holder.behind.append((thin, bio))
                return
            try:
                found = thin.internal.find_block(thin_block)
            except ThinfsError as failure:
                bio.complete(IOFailed(f"thin {thin.dev_id}: lookup of block {thin_block}: {failure}"))
                return
            if bio.op is Op.FLUSH:
                if found is None and self._state.mode is not PoolMode.WRITE:
                    self._new_mappings.queue_or_fail(thin, bio)
                else:
                    self._issue_flush(thin, bio)
            elif found is None:
                yield from self._new_mappings.provision(thin, thin_block, bio)
            elif found[1]:
                yield from self._new_mappings.break_sharing(thin, thin_block, found[0], bio)
            elif bio.op is Op.PROVISION:
                bio.complete()
            else:
                thin.write_in_place(bio, found[0])

    def _issue_flush(self, thin: Thin, bio: Bio) -> None:
        if not thin.internal.changed:
            self._pending.forwarded.append(bio)
        elif thin.internal.aborted_with_changes:
            bio.complete(IOFailed(f"thin {thin.dev_id}: flush: its changes were lost in an aborted transaction"))
        else:
            self._pending.flushes.append(bio)
