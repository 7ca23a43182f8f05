"""The pool's worker: passes over deferred bios that allocate, copy, zero, map, unmap and commit.

Promises the kernel's order within a pass: finished copies become mappings, discards unmap, passed-down
discards drop their last count, new bios of each thin by sector, then the commit. Data I/O started in a pass
finishes before the next. Source: behaviour reference, sections 5, 6.1-6.4, 7. Mirrors dm-thin's worker.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from thinfs.errors import IOFailed, NoSpace, ThinfsError
from thinfs.pool.bio import Bio, Op
from thinfs.pool.modes import MODES, PoolMode
from thinfs.pool.thin import Thin
from thinfs.steps import Steps

if TYPE_CHECKING:
    from thinfs.pool.pool import Pool

COMMIT_PERIOD_SECONDS: Final = 1.0
_INLINE_BYTES: Final = 1 << 20  # data I/O of a pass up to this size costs less than a hop to a thread


@dataclass(slots=True, eq=False)
class _Cell:
    """Thin blocks [begin, end) of one device held by an operation; bios for them wait behind it."""

    dev_id: int
    begin: int
    end: int
    behind: list[tuple[Thin, Bio]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _NewMapping:
    """A data block on its way to become thin_block's; `overwrite`: the bio's data already fills it."""

    thin: Thin
    cell: _Cell
    data_block: int
    bio: Bio
    overwrite: bool
    shared_block: int | None = None  # the block whose sharing is being broken
    error: ThinfsError | None = None


@dataclass(slots=True, eq=False)
class _DiscardRun:
    """One mapped run of a passed-down discard."""

    thin: Thin
    thin_begin: int
    thin_end: int
    data_begin: int
    shared: bool
    parent: "_Discard"

    @property
    def data_end(self) -> int:
        return self.data_begin + self.thin_end - self.thin_begin


@dataclass(slots=True, eq=False)
class _Discard:
    """A discard bio over whole thin blocks; done when its last run is."""

    thin: Thin
    cell: _Cell
    bio: Bio
    remaining: int = 0
    error: ThinfsError | None = None


@dataclass(slots=True)
class _DataIO:
    """Data I/O to do at the end of the pass, and what then becomes of it."""

    nr_bytes: int
    run: Callable[[], None]
    finished: Callable[[ThinfsError | None], None]


class Worker:
    """The deferred state of one pool. Everything here runs inside one Steps at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._with_bios: set[Thin] = set()  # the thins that have deferred bios
        self._held: dict[tuple[int, int], _Cell] = {}  # cells of one block
        self._held_ranges: list[_Cell] = []  # cells of discards
        self._held_data: dict[int, list[tuple[Thin, Bio]]] = {}  # data blocks whose sharing is being broken
        self.copied_from: set[int] = set()  # data blocks whose sharing was broken since the last commit
        self._mapped: list[_NewMapping] = []
        self._discards: deque[_DiscardRun | _Discard] = deque()
        self._passed_down: deque[_DiscardRun] = deque()
        self._flushes: list[tuple[Thin, Bio]] = []  # wait for a commit
        self._forwarded: list[Bio] = []  # need only a flush of the data device
        self._data_io: list[_DataIO] = []
        self.last_commit = pool.clock()

    def defer(self, thin: Thin, bios: Iterable[Bio]) -> None:
        """Queue bios for the next pass."""
        self._with_bios.add(thin)
        thin.deferred.extend(bios)

    @property
    def has_bios(self) -> bool:
        return bool(self._with_bios)

    # -- passes ------------------------------------------------------------------------------------------

    def run(self) -> Steps[None]:
        """Pass after pass until nothing is left that could go on now."""
        while self._has_work():
            yield from self._one_pass()

    def _has_work(self) -> bool:
        return bool(
            self._mapped
            or self._discards
            or self._passed_down
            or self._flushes
            or self._forwarded
            or self._with_bios
            or self.commit_is_due()
        )

    def commit_is_due(self) -> bool:
        """A change waits and a second has passed since the worker's last commit (no other commit counts)."""
        pool = self._pool
        return (
            pool.metadata.changed_this_transaction
            and MODES[pool.mode].metadata_writable
            and pool.clock() >= self.last_commit + COMMIT_PERIOD_SECONDS
        )

    def _one_pass(self) -> Steps[None]:
        mapped, self._mapped = self._mapped, []
        # blocks that were unmapped come before those that were shared, as the kernel inserts them (seen)
        for mapping in sorted(mapped, key=lambda mapping: mapping.shared_block is not None):
            self._process_mapped(mapping)
        discards, self._discards = self._discards, deque()
        for discard in discards:
            if isinstance(discard, _Discard):
                yield from self._unmap(discard)
            else:
                yield from self._unmap_and_pass_down(discard)
            yield None
        passed_down, self._passed_down = self._passed_down, deque()
        for run in passed_down:
            self._drop_last_count(run)
        thins, self._with_bios = sorted(self._with_bios, key=lambda thin: thin.activation_nr), set()
        for thin in thins:
            bios, thin.deferred = thin.deferred, []
            bios.sort(key=lambda bio: bio.offset)
            for bio in bios:
                yield from self._process_bio(thin, bio)
        yield from self._commit_pass()
        yield from self._run_data_io()

    def _commit_pass(self) -> Steps[None]:
        flushes, self._flushes = self._flushes, []
        if not flushes and not self.commit_is_due():
            return
        error: ThinfsError | None = None
        try:
            yield from self._pool.commit()
        except ThinfsError as failure:
            error = IOFailed(f"flush: the commit failed: {failure}")
        self.last_commit = self._pool.clock()
        for _, bio in flushes:
            bio.complete(error)  # the commit has flushed the data device

    def _run_data_io(self) -> Steps[None]:
        batch, self._data_io = self._data_io, []
        if batch:
            errors: list[ThinfsError | None] = []

            def run_all() -> None:
                for item in batch:
                    try:
                        item.run()
                        errors.append(None)
                    except ThinfsError as failure:
                        errors.append(failure)

            if sum(item.nr_bytes for item in batch) <= _INLINE_BYTES:
                run_all()
            else:
                yield run_all
            for item, error in zip(batch, errors, strict=True):
                item.finished(error)
        forwarded, self._forwarded = self._forwarded, []
        if forwarded:
            failure = None
            try:
                yield self._pool.data.flush
            except ThinfsError as error:
                failure = error
            for bio in forwarded:
                bio.complete(failure)

    # -- cells -------------------------------------------------------------------------------------------

    def _holder(self, dev_id: int, begin: int, end: int) -> _Cell | None:
        for cell in self._held_ranges:
            if cell.dev_id == dev_id and cell.begin < end and begin < cell.end:
                return cell
        if end - begin == 1:
            return self._held.get((dev_id, begin))
        for cell in self._held.values():
            if cell.dev_id == dev_id and begin <= cell.begin < end:
                return cell
        return None

    def _hold(self, thin: Thin, begin: int, end: int) -> _Cell:
        cell = _Cell(thin.dev_id, begin, end)
        if end - begin == 1:
            self._held[thin.dev_id, begin] = cell
        else:
            self._held_ranges.append(cell)
        return cell

    def _release(self, cell: _Cell) -> None:
        """Let the bios behind a cell be processed in the next pass."""
        if cell.end - cell.begin == 1:
            del self._held[cell.dev_id, cell.begin]
        else:
            self._held_ranges.remove(cell)
        for thin, bio in cell.behind:
            self.defer(thin, (bio,))

    # -- bios --------------------------------------------------------------------------------------------

    def _process_bio(self, thin: Thin, bio: Bio) -> Steps[None]:
        pool = self._pool
        if pool.mode is PoolMode.FAIL:
            bio.complete(IOFailed(f"thin {thin.dev_id}: the pool is in fail mode"))
        elif bio.op is Op.DISCARD:
            self._process_discard(thin, bio)
        else:
            # an empty flush is a bio at sector 0 of the volume, and follows that block's fate
            thin_block = bio.offset // thin.block_bytes
            holder = self._holder(thin.dev_id, thin_block, thin_block + 1)
            if holder is not None:
                holder.behind.append((thin, bio))
                return
            try:
                found = thin.internal.find_block(thin_block)
            except ThinfsError as failure:
                bio.complete(IOFailed(f"thin {thin.dev_id}: lookup of block {thin_block}: {failure}"))
                return
            if found is None:
                yield from self._provision(thin, thin_block, bio)
            elif found[1] and bio.op is not Op.FLUSH:
                yield from self._break_sharing(thin, thin_block, found[0], bio)
            elif bio.op is Op.FLUSH:
                self._issue_flush(thin, bio)
            else:
                self._write_and_complete(found[0], thin, bio)

    def _issue_flush(self, thin: Thin, bio: Bio) -> None:
        if not thin.internal.changed:
            self._forwarded.append(bio)
        elif thin.internal.aborted_with_changes:
            bio.complete(IOFailed(f"thin {thin.dev_id}: flush: its changes were lost in an aborted transaction"))
        else:
            self._flushes.append((thin, bio))

    def _write_and_complete(self, data_block: int, thin: Thin, bio: Bio) -> None:
        try:
            self._pool.data.write_in_block(data_block, bio.offset % thin.block_bytes, bio.data)
        except ThinfsError as failure:
            bio.complete(failure)
        else:
            bio.complete()

    def _allocate(self, thin: Thin, bio: Bio) -> Steps[int | None]:
        """A data block, or None when the bio has been queued or failed instead."""
        try:
            block = yield from self._pool.alloc_data_block()
        except NoSpace:
            self._queue_or_fail(thin, bio)
        except ThinfsError as failure:
            bio.complete(IOFailed(f"thin {thin.dev_id}: allocation of a data block: {failure}"))
        else:
            return block
        return None

    def _queue_or_fail(self, thin: Thin, bio: Bio) -> None:
        error = self._pool.unserviceable_error()
        if error is None:
            thin.waiting.append(bio)
        else:
            bio.complete(error)

    def _provision(self, thin: Thin, thin_block: int, bio: Bio) -> Steps[None]:
        pool = self._pool
        if pool.mode is not PoolMode.WRITE:
            self._queue_or_fail(thin, bio)
            return
        if bio.op is Op.FLUSH:
            self._issue_flush(thin, bio)
            return
        data_block = yield from self._allocate(thin, bio)
        if data_block is None:
            return
        overwrite = bio.length == thin.block_bytes
        mapping = _NewMapping(thin, self._hold(thin, thin_block, thin_block + 1), data_block, bio, overwrite)
        origin_bytes = max(0, min(thin.origin_size_bytes - thin_block * thin.block_bytes, thin.block_bytes))
        if origin_bytes:
            if overwrite:
                self._start_overwrite(mapping)
            else:
                self._start(mapping, thin.block_bytes, lambda: self._copy_from_origin(thin, thin_block, mapping))
        elif not pool.zero_new_blocks and bio.op is not Op.PROVISION:
            mapping.overwrite = False
            self._process_mapped(mapping)
        elif overwrite:
            self._start_overwrite(mapping)
        else:
            self._start(mapping, thin.block_bytes, lambda: pool.data.zero(data_block))

    def _copy_from_origin(self, thin: Thin, thin_block: int, mapping: _NewMapping) -> None:
        """Copy the part inside the origin; beyond its end zeroes, unless zeroing is skipped (seen)."""
        data, begin = self._pool.data, thin_block * thin.block_bytes
        inside = min(thin.origin_size_bytes - begin, thin.block_bytes)
        assert thin.origin is not None
        data.copy_in(thin.origin, begin, mapping.data_block, inside)
        if inside < thin.block_bytes and self._pool.zero_new_blocks:
            data.zero(mapping.data_block, inside)

    def _break_sharing(self, thin: Thin, thin_block: int, shared_block: int, bio: Bio) -> Steps[None]:
        pool = self._pool
        if pool.mode is not PoolMode.WRITE:
            self._queue_or_fail(thin, bio)
            return
        behind = self._held_data.get(shared_block)
        if behind is not None:
            behind.append((thin, bio))
            return
        data_block = yield from self._allocate(thin, bio)
        if data_block is None:
            return
        self._held_data[shared_block] = []
        overwrite = bio.length == thin.block_bytes
        mapping = _NewMapping(
            thin, self._hold(thin, thin_block, thin_block + 1), data_block, bio, overwrite, shared_block
        )
        if overwrite:
            self._start_overwrite(mapping)
        else:
            self._start(mapping, thin.block_bytes, lambda: pool.data.copy_block(shared_block, data_block))

    def _start(self, mapping: _NewMapping, nr_bytes: int, run: Callable[[], None]) -> None:
        def finished(error: ThinfsError | None) -> None:
            mapping.error = error
            self._mapped.append(mapping)

        self._data_io.append(_DataIO(nr_bytes, run, finished))

    def _start_overwrite(self, mapping: _NewMapping) -> None:
        data, bio, block = self._pool.data, mapping.bio, mapping.data_block
        self._start(mapping, bio.length, lambda: data.write_in_block(block, 0, bio.data))

    def _process_mapped(self, mapping: _NewMapping) -> None:
        """Insert a mapping whose data is in place, and let its bio and those behind it go on."""
        thin, bio = mapping.thin, mapping.bio
        error: ThinfsError | None = None
        if mapping.error is not None:
            # the allocated block stays counted, as in the kernel: one leaks per failed copy (seen)
            error = IOFailed(f"thin {thin.dev_id}: filling data block {mapping.data_block}: {mapping.error}")
        else:
            try:
                thin.internal.insert_block(mapping.cell.begin, mapping.data_block)
            except ThinfsError as failure:
                self._pool.metadata_operation_failed("insert_block", failure)
                error = IOFailed(f"thin {thin.dev_id}: mapping block {mapping.cell.begin}: {failure}")
        if error is not None or mapping.overwrite:
            bio.complete(error)
        else:
            self._write_and_complete(mapping.data_block, thin, bio)
        if mapping.shared_block is not None:
            self.copied_from.add(mapping.shared_block)
            for other, waiting in self._held_data.pop(mapping.shared_block):
                self.defer(other, (waiting,))
        self._release(mapping.cell)

    # -- discards ----------------------------------------------------------------------------------------

    def _process_discard(self, thin: Thin, bio: Bio) -> None:
        block_bytes = thin.block_bytes
        begin = -(-bio.offset // block_bytes)
        end = (bio.offset + bio.length) // block_bytes
        if begin >= end or not MODES[self._pool.mode].discards:
            bio.complete()
            return
        holder = self._holder(thin.dev_id, begin, end)
        if holder is not None:
            holder.behind.append((thin, bio))
            return
        discard = _Discard(thin, self._hold(thin, begin, end), bio)
        if not self._pool.discard_passdown:
            self._discards.append(discard)
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
            if any(data_begin <= block < data_begin + thin_end - thin_begin for block in self._held_data):
                continue  # somebody is copying from it: the kernel gives up on such a range
            self._discards.append(_DiscardRun(thin, thin_begin, thin_end, data_begin, shared, discard))
            discard.remaining += 1
        if discard.remaining == 0:
            self._finish_discard(discard)

    def _unmap(self, discard: _Discard) -> Steps[None]:
        try:
            yield from discard.thin.internal.remove_range(discard.cell.begin, discard.cell.end)
        except ThinfsError as failure:
            self._pool.metadata_operation_failed("remove_range", failure)
            discard.error = IOFailed(f"thin {discard.thin.dev_id}: discard: {failure}")
        self._finish_discard(discard)

    def _unmap_and_pass_down(self, run: _DiscardRun) -> Steps[None]:
        """Remove a run, but keep its blocks counted until the data device has discarded them."""
        metadata = self._pool.metadata
        try:
            yield from run.thin.internal.remove_range(run.thin_begin, run.thin_end)
            metadata.inc_data_blocks(run.data_begin, run.data_end)
        except ThinfsError as failure:
            self._pool.metadata_operation_failed("remove_range", failure)
            run.parent.error = IOFailed(f"thin {run.thin.dev_id}: discard: {failure}")
            self._finish_run(run.parent)
            return
        pieces = [(run.data_begin, run.data_end)]
        if run.shared:
            pieces = self._unshared_pieces(run.data_begin, run.data_end)
        data = self._pool.data

        def pass_down() -> None:
            for begin, end in pieces:
                data.discard_blocks(begin, end)

        nr_bytes = (run.data_end - run.data_begin) * data.block_bytes
        self._data_io.append(_DataIO(nr_bytes, pass_down, lambda _error: self._passed_down.append(run)))

    def _unshared_pieces(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Sub-runs nobody else holds: count at most 1, which is the one just added.

        Nor blocks that another thin was copied away from in this transaction, where the kernel does not look: after a
        power cut its old mapping is back, and must not show discarded data. They are freed, and not passed down.
        """
        is_shared = self._pool.metadata.data_block_is_shared
        pieces: list[tuple[int, int]] = []
        for block in range(begin, end):
            if is_shared(block) or block in self.copied_from:
                continue
            if pieces and pieces[-1][1] == block:
                pieces[-1] = (pieces[-1][0], block + 1)
            else:
                pieces.append((block, block + 1))
        return pieces

    def _drop_last_count(self, run: _DiscardRun) -> None:
        try:
            self._pool.metadata.dec_data_blocks(run.data_begin, run.data_end)
        except ThinfsError as failure:
            self._pool.metadata_operation_failed("dec_data_blocks", failure)
            run.parent.error = IOFailed(f"thin {run.thin.dev_id}: discard: {failure}")
        self._finish_run(run.parent)

    def _finish_run(self, discard: _Discard) -> None:
        discard.remaining -= 1
        if discard.remaining == 0:
            self._finish_discard(discard)

    def _finish_discard(self, discard: _Discard) -> None:
        discard.bio.complete(discard.error)
        self._release(discard.cell)
