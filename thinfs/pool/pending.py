"""What the worker of a pool has taken on and not finished: cells, queues and the thins that have bios for it.

Promises: a cell is held by one operation at a time, bios for its blocks wait behind it in order; who lets go of a
cell defers them again. Nothing here decides. Mirrors dm-bio-prison and the deferred lists of dm-thin.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from thinfs.bio import Bio
from thinfs.errors import ThinfsError
from thinfs.pool.thin import Thin
from thinfs.steps import Job


@dataclass(slots=True, eq=False)
class Cell:
    """Thin blocks [begin, end) of one device held by an operation; bios for them wait behind it."""

    dev_id: int
    begin: int
    end: int
    behind: list[tuple[Thin, Bio]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class NewMapping:
    """A data block on its way to become thin_block's; `overwrite`: the bio's data already fills it."""

    thin: Thin
    cell: Cell
    data_block: int
    bio: Bio
    overwrite: bool
    shared_block: int | None = None  # the block whose sharing is being broken
    error: ThinfsError | None = None


@dataclass(slots=True, eq=False)
class Discard:
    """A discard bio over whole thin blocks; done when its last run is."""

    thin: Thin
    cell: Cell
    bio: Bio
    remaining: int = 0
    error: ThinfsError | None = None


@dataclass(slots=True, eq=False)
class DiscardRun:
    """One mapped run of a passed-down discard."""

    thin: Thin
    thin_begin: int
    thin_end: int
    data_begin: int
    shared: bool
    parent: Discard

    @property
    def data_end(self) -> int:
        return self.data_begin + self.thin_end - self.thin_begin


@dataclass(slots=True)
class DataIO:
    """Data I/O to do at the end of the pass, and what then becomes of it."""

    nr_bytes: int
    job: Job
    finished: Callable[[ThinfsError | None], None]


class Pending:
    """The queues. `thins` are all that are active, in the order of activation."""

    def __init__(self) -> None:
        self.thins: dict[Thin, None] = {}
        self._begin_empty()

    def _begin_empty(self) -> None:
        self.with_bios: set[Thin] = set()  # the thins that have deferred bios
        self._held: dict[tuple[int, int], Cell] = {}  # cells of one block
        self._held_ranges: list[Cell] = []  # cells of discards
        self.held_data: dict[int, list[tuple[Thin, Bio]]] = {}  # data blocks whose sharing is being broken
        self.copied_from: set[int] = set()  # data blocks whose sharing was broken since the last commit
        self.mapped: list[NewMapping] = []
        self.discards: deque[DiscardRun | Discard] = deque()
        self.passed_down: deque[DiscardRun] = deque()
        self.flushes: list[Bio] = []  # wait for a commit
        self.forwarded: list[Bio] = []  # need only a flush of the data device
        self.data_io: list[DataIO] = []
        self._begun: dict[Bio, None] = {}  # held by an operation that has a cell

    def defer(self, thin: Thin, bios: Iterable[Bio]) -> None:
        """Queue bios for the next pass."""
        self.with_bios.add(thin)
        thin.deferred.extend(bios)

    @property
    def has_work(self) -> bool:
        return bool(
            self.with_bios or self.mapped or self.discards or self.passed_down or self.flushes or self.forwarded
        )

    # -- cells -------------------------------------------------------------------------------------------

    def holder(self, dev_id: int, begin: int, end: int) -> Cell | None:
        for cell in self._held_ranges:
            if cell.dev_id == dev_id and cell.begin < end and begin < cell.end:
                return cell
        if end - begin == 1:
            return self._held.get((dev_id, begin))
        for cell in self._held.values():
            if cell.dev_id == dev_id and begin <= cell.begin < end:
                return cell
        return None

    def hold(self, thin: Thin, begin: int, end: int, bio: Bio) -> Cell:
        """The cell of an operation that `bio` has begun."""
        cell = Cell(thin.dev_id, begin, end)
        self._begun[bio] = None
        if end - begin == 1:
            self._held[thin.dev_id, begin] = cell
        else:
            self._held_ranges.append(cell)
        return cell

    def release(self, cell: Cell, bio: Bio) -> None:
        """The operation is over: the bios behind its cell are processed in the next pass."""
        del self._begun[bio]
        if cell.end - cell.begin == 1:
            del self._held[cell.dev_id, cell.begin]
        else:
            self._held_ranges.remove(cell)
        for thin, behind in cell.behind:
            self.defer(thin, (behind,))

    # -- waiting for space -------------------------------------------------------------------------------

    def fail_waiting(self, error: type[ThinfsError]) -> None:
        for thin in self.thins:
            waiting, thin.waiting = thin.waiting, []
            for bio in waiting:
                bio.complete(error(f"thin {thin.dev_id}: no data block for byte {bio.offset}"))

    def requeue_waiting(self) -> None:
        for thin in self.thins:
            waiting, thin.waiting = thin.waiting, []
            if waiting:
                self.defer(thin, waiting)

    def fail_everything(self, error: ThinfsError) -> None:
        """After a bug in a pass: whatever was taken on ends with `error`, and no cell stays held."""
        behind = [pair for cell in (*self._held.values(), *self._held_ranges) for pair in cell.behind]
        behind += [pair for waiting in self.held_data.values() for pair in waiting]
        bios = [*self._begun, *self.flushes, *self.forwarded, *(bio for _, bio in behind)]
        for thin in self.thins:
            bios += thin.take_back()
        self._begin_empty()
        for bio in bios:
            if not bio.done:
                bio.complete(error)
