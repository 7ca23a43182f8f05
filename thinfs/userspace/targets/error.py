"""The error target: every request is EIO."""

from thinfs.bio import Bio
from thinfs.errors import IOFailed
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Plain


class ErrorTarget(Plain):
    supports_discard = True

    def submit(self, bio: Bio) -> None:
        bio.complete(IOFailed(f"error target: {bio.op.name.lower()} at byte {bio.offset}"))


async def load(loading: Loading) -> ErrorTarget:
    return ErrorTarget(loading.line)
