"""The zero target: reads as zeros, forgets what is written."""

from thinfs.bio import Bio, Op
from thinfs.blockdev import Buffer
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain


class ZeroTarget(Plain):
    def submit(self, bio: Bio) -> None:
        if bio.op is Op.DISCARD:
            super().submit(bio)
            return
        if bio.op is Op.READ:
            bio.data = bytes(bio.length)
        bio.complete()

    def read_now(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def write_now(self, offset: int, data: Buffer) -> bool:
        return True

    def allocated_bytes(self) -> int:
        return 0

    def next_data(self, offset: int, end: int) -> int | None:
        return None

    def next_hole(self, offset: int, end: int) -> int:
        return offset


async def load(loading: Loading) -> ZeroTarget:
    return ZeroTarget(loading.line)
