"""One request, the only form of I/O between the edges: it goes down by `submit(bio)` and is done now or later.

Promises: `complete` is called exactly once, with the error or None; whoever asked by `then` is told, at once if the
bio is done already. What must wait is held by whoever cannot do it now: nobody below the edges waits. Bytes
throughout. Never: knows a device's table, an event loop, a thread. Mirrors the kernel's struct bio.
"""

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol, TypeGuard

from thinfs.blockdev import BlockDevice, Buffer
from thinfs.errors import IOFailed, ThinfsError

log = logging.getLogger(__name__)


class Op(Enum):
    READ = auto()
    WRITE = auto()
    DISCARD = auto()
    FLUSH = auto()  # what was acknowledged before is durable; it has no extent
    ZERO = auto()  # the range reads as zeros; may unmap
    PROVISION = auto()  # later writes to the range need no space, contents unchanged


class Bio:
    """`data` is what to write; of a READ that is done without error, the `length` bytes read."""

    __slots__ = ("_told", "data", "done", "error", "length", "offset", "op")

    def __init__(self, op: Op, offset: int = 0, length: int = 0, data: Buffer = b"") -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.data = data
        self.done = False
        self.error: ThinfsError | None = None
        self._told: list[Callable[[], None]] | None = None

    def then(self, call: Callable[[], None]) -> None:
        """Call it when the bio is done, in the order of asking; at once if it is."""
        if self.done:
            call()
        elif self._told is None:
            self._told = [call]
        else:
            self._told.append(call)

    def complete(self, error: ThinfsError | None = None) -> None:
        """Tell whoever asked; a bio completed twice is a bug of the engine."""
        assert not self.done
        self.done = True
        self.error = error
        if self._told is not None:
            told, self._told = self._told, None
            for call in told:
                call()

    def follow(self, below: "Bio") -> None:
        """Complete as `below` does, now or later, with its data and its error."""

        def done() -> None:
            self.data = below.data
            self.complete(below.error)

        below.then(done)

    def __repr__(self) -> str:
        state = "done" if self.done and self.error is None else self.error if self.done else "under way"
        return f"Bio({self.op.name}, {self.offset}, {self.length}, {state})"


class Submits(Protocol):
    """Whatever a bio can be handed down to. A failure completes the bio with it; `submit` itself raises nothing."""

    def submit(self, bio: Bio) -> None: ...


class LowerDevice(Submits, Protocol):
    """A device whose I/O may have to wait: another mapped device, below a pool or below a target.

    `read` is for metadata alone, which nobody waits for in the middle of a change: Held where it would have to wait.
    """

    @property
    def label(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def supports_discard(self) -> bool: ...

    def read(self, offset: int, length: int) -> bytes: ...


class Held(ThinfsError):
    """A read that cannot be answered now: a device below is suspended. Never leaves the process: it is tried again."""


class Requeued(ThinfsError):
    """What a suspend without a flush took back. Never leaves the process: its device holds it until the resume."""


class Immediate:
    """A BlockDevice as something to submit to: every bio is done when `submit` returns."""

    __slots__ = ("device",)

    def __init__(self, device: BlockDevice) -> None:
        self.device = device

    def submit(self, bio: Bio) -> None:
        try:
            perform(self.device, bio)
        except ThinfsError as error:
            bio.complete(error)
        except Exception as error:
            log.exception("%r on %s: a bug", bio, self.device.label)
            bio.complete(IOFailed(f"{self.device.label}: {error!r}"))
        else:
            bio.complete()


def answers_at_once(device: BlockDevice | LowerDevice) -> TypeGuard[BlockDevice]:
    """Whether it is a file or a block device of the machine, which may be slow but never waits for this process."""
    return not hasattr(device, "submit")


def submitter(device: BlockDevice | LowerDevice) -> Submits:
    return Immediate(device) if answers_at_once(device) else device  # type: ignore[return-value]


def perform(device: BlockDevice, bio: Bio) -> None:
    """Do what the bio asks for on a device that answers at once; its errors are raised."""
    match bio.op:
        case Op.READ:
            bio.data = device.read(bio.offset, bio.length)
        case Op.WRITE:
            device.write(bio.offset, bio.data)
        case Op.DISCARD:
            device.discard(bio.offset, bio.length)
        case Op.FLUSH:
            device.flush()
        case Op.ZERO:
            for offset in range(bio.offset, bio.offset + bio.length, _ZERO_SLICE_BYTES):
                device.write(offset, bytes(min(_ZERO_SLICE_BYTES, bio.offset + bio.length - offset)))
        case Op.PROVISION:
            return


_ZERO_SLICE_BYTES = 1 << 20


class Split:
    """A bio done in pieces: it completes when the last of them has, with the first piece's error in their order.

    Register all pieces, submit them, then `seal`. A READ gets the joined data of its pieces.
    """

    __slots__ = ("_nr_open", "_parent", "_pieces")

    def __init__(self, parent: Bio) -> None:
        self._parent = parent
        self._pieces: list[Bio] = []
        self._nr_open = 1

    def piece(self, offset: int, length: int, data: Buffer = b"") -> Bio:
        """A piece of the parent's operation, for another device or another offset."""
        return self.add(Bio(self._parent.op, offset, length, data))

    def add(self, bio: Bio) -> Bio:
        self._pieces.append(bio)
        self._nr_open += 1
        bio.then(self.seal)
        return bio

    def seal(self) -> None:
        """One of those that were waited for is there: a piece, or the end of registering."""
        self._nr_open -= 1
        if self._nr_open:
            return
        error = next((piece.error for piece in self._pieces if piece.error is not None), None)
        if error is None and self._parent.op is Op.READ:
            self._parent.data = b"".join([piece.data for piece in self._pieces])
        self._parent.complete(error)
