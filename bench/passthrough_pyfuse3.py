"""The binding's ceiling: the same pass-through as passthrough.c, on pyfuse3, with the settings thinfs serves with.

Usage: python -m bench.passthrough_pyfuse3 BACKING MOUNTPOINT
"""

import errno
import os
import signal
import stat
import sys
from collections.abc import Sequence

import pyfuse3
import trio

VOLUME_INODE = 2


class PassThrough(pyfuse3.Operations):
    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self, backing: int) -> None:
        self._backing = backing

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.entry_timeout = entry.attr_timeout = 0
        entry.st_ino, entry.st_uid, entry.st_gid = inode, os.getuid(), os.getgid()
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o700, 2
        else:
            entry.st_mode, entry.st_nlink = stat.S_IFREG | 0o600, 1
            entry.st_size, entry.st_blksize = os.fstat(self._backing).st_size, 65536
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if parent != pyfuse3.ROOT_INODE or name != b"volume":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(VOLUME_INODE)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=1)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 65536
        answer.f_namemax = 127
        return answer

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self._backing, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(self._backing, buf, off)

    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await trio.to_thread.run_sync(os.fdatasync, self._backing)


async def serve(backing: int, mountpoint: str) -> None:
    pyfuse3.init(PassThrough(backing), mountpoint, {*pyfuse3.default_options, "fsname=passthrough"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    break
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(serve, os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC), sys.argv[2])
