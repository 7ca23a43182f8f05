"""fallocate(2) on an image: which mode does what.

Promises: the modes of the table, inside the size; the partial blocks at the edges of a punched range are
dealt with here and nowhere else. Never: checks the range or the permission (the caller has).
"""

from collections.abc import Awaitable, Callable
from typing import Final

from thinfs.bio import Bio, Op
from thinfs.fuse.image import Image
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from thinfs.waiting import do


async def _punch(image: Image, offset: int, length: int) -> None:
    """Discard whole blocks, then zero what still has data: the partial blocks at the edges, and the whole
    range where an external origin shows through or the pool's mode made the discard a no-op. This is the one
    place for that. It must read as zeros, not just be forgotten: the loop driver sends REQ_OP_WRITE_ZEROES as
    PUNCH_HOLE too. Holes are left alone, so nothing is provisioned at an edge that was not mapped."""
    await do(image, Bio(Op.DISCARD, offset, length))
    end = offset + length
    while offset < end:
        data = image.next_data(offset)
        if data is None or data >= end:
            return
        offset = min(image.next_hole(data), end)
        await do(image, Bio(Op.ZERO, data, offset - data))


async def _zero(image: Image, offset: int, length: int) -> None:
    await do(image, Bio(Op.ZERO, offset, length))


async def _provision(image: Image, offset: int, length: int) -> None:
    await do(image, Bio(Op.PROVISION, offset, length))


OPERATIONS: Final[dict[int, Callable[[Image, int, int], Awaitable[None]]]] = {
    0: _provision,
    FALLOC_FL_KEEP_SIZE: _provision,
    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: _punch,
    FALLOC_FL_ZERO_RANGE: _zero,
    FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE: _zero,
}
