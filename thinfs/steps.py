"""How the synchronous engine lets a caller run its waiting I/O, without knowing an event loop.

A long operation is a generator. It yields a Job when it needs I/O done: the driver starts it, inline or (where it
`blocks`) in a thread, waits until it is done and resumes the generator with its error. It yields None between
slices of long computation: a driver may serve others there. The engine's state is consistent at every yield,
and only one Steps of a pool runs at a time; reads of the mappings may go on meanwhile.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

from thinfs.bio import Bio, Submits
from thinfs.errors import IOFailed, ThinfsError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Job(Protocol):
    """I/O to be started once. `error` may be set when it is done; `then` tells of that."""

    @property
    def blocks(self) -> bool:
        """Whether `start` does all of it, perhaps slowly, touches no state of the engine, and may run in a thread."""

    @property
    def done(self) -> bool: ...

    @property
    def error(self) -> ThinfsError | None: ...

    def start(self) -> None: ...

    def then(self, call: Callable[[], None]) -> None: ...


Steps: TypeAlias = Generator[Job | None, None, T]
Requests: TypeAlias = Iterable[tuple[Submits, Bio]]


class Completion:
    """Done once, with an error or None; whoever asks is told. Touched by one thread at a time."""

    __slots__ = ("_told", "done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: ThinfsError | None = None
        self._told: list[Callable[[], None]] | None = None

    def complete(self, error: ThinfsError | None = None) -> None:
        assert not self.done
        self.done, self.error = True, error
        if self._told is not None:
            told, self._told = self._told, None
            for call in told:
                call()

    def then(self, call: Callable[[], None]) -> None:
        """Call it when it is done; at once if it is."""
        if self.done:
            call()
        elif self._told is None:
            self._told = [call]
        else:
            self._told.append(call)


class Chain(Completion):
    """Bios one after the other, each submitted when the one before is done; the first error ends it.

    `requests` may be a generator that looks at what an earlier bio has read. With `tries_all` errors are ignored.
    `blocks` only where every device in it answers at once: it may then be started in a thread.
    """

    __slots__ = ("_next", "_tries_all", "blocks")

    def __init__(self, requests: Requests, *, blocks: bool, tries_all: bool = False) -> None:
        super().__init__()
        self._next = iter(requests)
        self._tries_all = tries_all
        self.blocks = blocks

    def start(self) -> None:
        try:
            for device, bio in self._next:
                device.submit(bio)
                if not bio.done:
                    bio.then(lambda bio=bio: self._go_on(bio))  # type: ignore[misc]
                    return
                if bio.error is not None and not self._tries_all:
                    self.complete(bio.error)
                    return
        except ThinfsError as error:
            self.complete(error)
        except Exception as error:
            log.exception("a chain of requests: a bug")
            self.complete(IOFailed(f"internal error: {error!r}"))
        else:
            self.complete()

    def _go_on(self, bio: Bio) -> None:
        if bio.error is not None and not self._tries_all:
            self.complete(bio.error)
        else:
            self.start()


class Together(Completion):
    """Jobs that block, one after the other in one thread; it has no error of its own: look at each."""

    __slots__ = ("_jobs",)
    blocks: Final = True

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__()
        self._jobs = jobs

    def start(self) -> None:
        for job in self._jobs:
            job.start()
        self.complete()


class Ends(Protocol):
    def then(self, call: Callable[[], None]) -> None: ...


class UnderWay(Completion):
    """What has been started already, bios or jobs; done when all of it is, whatever came of it."""

    __slots__ = ("_nr_open",)
    blocks: Final = False

    def __init__(self, started: Iterable[Ends]) -> None:
        super().__init__()
        waited_for = list(started)
        self._nr_open = len(waited_for) + 1
        for one in waited_for:
            one.then(self.start)

    def start(self) -> None:
        self._nr_open -= 1
        if self._nr_open == 0:
            self.complete()


def do_now(requests: Requests) -> None:
    """Requests to devices that answer at once; the first error is raised, and ends it."""
    chain = Chain(requests, blocks=True)
    chain.start()
    assert chain.done, "a device below holds its I/O, and nobody here can wait for it"
    if chain.error is not None:
        raise chain.error


def drive(steps: Steps[T]) -> T:
    """Run an operation to its end on the spot: what tests, tools and the crash simulation do.

    On devices that answer at once; a device that holds its I/O is an AssertionError.
    """
    error: ThinfsError | None = None
    while True:
        try:
            job = next(steps) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        if job is not None:
            job.start()
            assert job.done, "a device below holds its I/O, and nobody here can wait for it"
            error = job.error
