"""One request to a thin volume, on its way through the pool's worker.

Promises: `complete` is called exactly once, with the error or None. Never larger than one data block,
but for a discard, which may span many, and a flush, which has no extent. Mirrors the kernel's struct bio.
"""

from collections.abc import Callable
from enum import Enum, auto

from thinfs.blockdev import Buffer
from thinfs.errors import ThinfsError


class Op(Enum):
    WRITE = auto()
    PROVISION = auto()  # map the block, contents unchanged: a write of nothing, zeroed whatever the pool skips
    DISCARD = auto()
    FLUSH = auto()


class Bio:
    """A write, provision, discard or flush; reads never wait for the worker and need no bio. Bytes throughout."""

    __slots__ = ("data", "done", "error", "length", "offset", "on_done", "op")

    def __init__(self, op: Op, offset: int = 0, length: int = 0, data: Buffer = b"") -> None:
        self.op = op
        self.offset = offset
        self.length = length
        self.data = data
        self.done = False
        self.error: ThinfsError | None = None
        self.on_done: Callable[[], None] | None = None

    def complete(self, error: ThinfsError | None = None) -> None:
        """Tell the submitter; a bio completed twice is a bug of the engine."""
        assert not self.done
        self.done = True
        self.error = error
        if self.on_done is not None:
            self.on_done()
