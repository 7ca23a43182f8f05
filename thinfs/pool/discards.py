"""Discards: whole thin blocks are unmapped, and what nobody holds any more is passed down to the data device.

Promises: a discard is rounded inwards to whole blocks; the blocks of a passed-down run stay counted until the data
device has discarded them. Mirrors process_discard_bio and process_prepared_discard of dm-thin.
Source: docs/reference/behaviour.md, 6.3 and 6.4.
"""

from thinfs.bio import Bio
from thinfs.errors import IOFailed, ThinfsError
from thinfs.pool.modes import MODES
from thinfs.pool.pending import DataIO, Discard, DiscardRun, Pending
from thinfs.pool.space import Space
from thinfs.pool.state import PoolState
from thinfs.pool.thin import Thin
from thinfs.steps import Steps


class Discards:
    def __init__(self, state: PoolState, space: Space, pending: Pending) -> None:
        self._state = state
        self._space = space
        self._pending = pending

    def begin(self, thin: Thin, bio: Bio) -> None:
        """Take the discard on: what it unmaps is done in the next pass."""
        pending = self._pending
        block_bytes = thin.block_bytes
        begin = -(-bio.offset // block_bytes)
        end = (bio.offset + bio.length) // block_bytes
        if begin >= end or not MODES[self._state.mode].discards:
            bio.complete()
            return
        holder = pending.holder(thin.dev_id, begin, end)
        if holder is not None:
            holder.behind.append((thin, bio))
            return
        discard = Discard(thin, pending.hold(thin, begin, end, bio), bio)
        if not self._state.discard_passdown:
            pending.discards.append(discard)
            return
        while begin < end:
            try:
                run = thin.internal.find_mapped_range(begin, end)
            except ThinfsError as failure:
                discard.error = IOFailed(f"thin {thin.dev_id}: discard: {failure}")
                break
            if run is None:
                break
            thin_begin, thin_end, data_begin, shared = run
            begin = thin_end
            if any(data_begin <= block < data_begin + thin_end - thin_begin for block in pending.held_data):
                continue  # somebody is copying from it: the kernel gives up on such a range
            pending.discards.append(DiscardRun(thin, thin_begin, thin_end, data_begin, shared, discard))
            discard.remaining += 1
        if discard.remaining == 0:
            self._finish(discard)

    def unmap(self, discard: Discard | DiscardRun) -> Steps[None]:
        if isinstance(discard, Discard):
            try:
                yield from discard.thin.internal.remove_range(discard.cell.begin, discard.cell.end)
            except ThinfsError as failure:
                self._failed("remove_range", discard, failure)
            self._finish(discard)
        else:
            yield from self._unmap_and_pass_down(discard)

    def _failed(self, operation: str, discard: Discard, failure: ThinfsError) -> None:
        self._space.metadata_operation_failed(operation, failure)
        discard.error = IOFailed(f"thin {discard.thin.dev_id}: discard: {failure}")

    def _unmap_and_pass_down(self, run: DiscardRun) -> Steps[None]:
        """Remove a run, but keep its blocks counted until the data device has discarded them."""
        data, metadata = self._state.data, self._state.metadata
        try:
            yield from run.thin.internal.remove_range(run.thin_begin, run.thin_end)
            metadata.inc_data_blocks(run.data_begin, run.data_end)
        except ThinfsError as failure:
            self._failed("remove_range", run.parent, failure)
            self._finish_run(run.parent)
            return
        pieces = [(run.data_begin, run.data_end)]
        if run.shared:
            pieces = self._unshared_pieces(run.data_begin, run.data_end)
        job = data.chain(data.discard_blocks(pieces), tries_all=True)
        nr_bytes = (run.data_end - run.data_begin) * data.block_bytes
        self._pending.data_io.append(DataIO(nr_bytes, job, lambda _error: self._pending.passed_down.append(run)))

    def _unshared_pieces(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Sub-runs nobody else holds: count at most 1, which is the one just added.

        Nor blocks that another thin was copied away from in this transaction, where the kernel does not look: after a
        power cut its old mapping is back, and must not show discarded data. They are freed, and not passed down.
        """
        is_shared = self._state.metadata.data_block_is_shared
        pieces: list[tuple[int, int]] = []
        for block in range(begin, end):
            if is_shared(block) or block in self._pending.copied_from:
                continue
            if pieces and pieces[-1][1] == block:
                pieces[-1] = (pieces[-1][0], block + 1)
            else:
                pieces.append((block, block + 1))
        return pieces

    def drop_last_count(self, run: DiscardRun) -> None:
        """The data device has discarded the run: its blocks are free."""
        try:
            self._state.metadata.dec_data_blocks(run.data_begin, run.data_end)
        except ThinfsError as failure:
            self._failed("dec_data_blocks", run.parent, failure)
        self._finish_run(run.parent)

    def _finish_run(self, discard: Discard) -> None:
        discard.remaining -= 1
        if discard.remaining == 0:
            self._finish(discard)

    def _finish(self, discard: Discard) -> None:
        self._pending.release(discard.cell, discard.bio)
        discard.bio.complete(discard.error)
