"""The directory of image files: FUSE requests on one side, mapped devices (`Image`) on the other.

Promises: what a block device would answer, wherever FUSE lets a regular file do so; requests run inline in
the trio thread and wait only where the Image waits. An error becomes an errno here: a ThinfsError its own, an
unknown exception EIO and a traceback in the log. Never: changes a size, makes or removes a file, keeps data,
touches a path (one in the mount would wait for the very thread that asks). Not in our hands: during a
synchronous write(2) the kernel locks the file, so one that waits for space holds up other writers and punches
of that file (not readers, not other files); behind a loop device with direct I/O it does not.
"""

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from thinfs.bio import Bio, Op
from thinfs.errors import (
    InvalidArgument,
    NoSpace,
    NotSupported,
    OtherError,
    PermissionRefused,
    ThinfsError,
)
from thinfs.fuse import allocation
from thinfs.fuse.binding import pyfuse3, route, unroute
from thinfs.fuse.image import Image, ImageSource
from thinfs.libc import FALLOC_FL_KEEP_SIZE
from thinfs.units import DATA_BLOCK_MIN_SECTORS, SECTOR_BYTES, sectors_to_bytes
from thinfs.waiting import do

log = logging.getLogger(__name__)

# The loop driver offers discard only where statfs works and takes f_bsize for its granularity; statfs knows no
# file, so it is the smallest data block a pool can have.
STATFS_BLOCK_BYTES: Final = sectors_to_bytes(DATA_BLOCK_MIN_SECTORS)


@dataclass(slots=True)
class _Node:
    """An inode that the kernel may know; kept until `drop`, so that it keeps its time when the kernel forgets it."""

    image: Image
    mtime_ns: int
    nr_open: int = 0


P = ParamSpec("P")
R = TypeVar("R")


def _as_fuse_error(name: str, error: Exception) -> Exception:
    if isinstance(error, pyfuse3.FUSEError):
        return error
    if isinstance(error, ThinfsError):
        log.debug("%s: %s", name, error)
        return pyfuse3.FUSEError(error.errno)
    log.error("%s: a bug", name, exc_info=error)
    return pyfuse3.FUSEError(errno.EIO)


def answered(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The one translation at this edge: only FUSEError (and cancellation) leaves a handler."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except Exception as error:
            raise _as_fuse_error(handler.__name__, error) from None

    return guarded


async def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise pyfuse3.FUSEError(errno.EPERM)


class ImageOperations(pyfuse3.Operations):
    """The handlers. Entries and attributes are never cached by the kernel, so names and sizes are always true."""

    # Written through: every write is known here when it returns, so a suspend and another process see it.
    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self, source: ImageSource, *, native: bool = False) -> None:
        self._source = source
        self._native = native  # reads, writes and flushes of open files go to thinfs.fuse.native
        self._nodes: dict[int, _Node] = {}
        self._handles: dict[int, _Node] = {}
        self._last_handle = 0
        self._start_ns = time.time_ns()
        self._uid, self._gid = os.getuid(), os.getgid()

    # ---- names and attributes ---------------------------------------------------------------------------------

    def _node(self, inode: int) -> _Node:
        try:
            return self._nodes[inode]
        except KeyError:
            raise OtherError(errno.ENOENT, f"inode {inode}: no such device") from None

    def _remember(self, image: Image) -> _Node:
        node = self._nodes.get(image.inode)
        if node is None:
            node = self._nodes[image.inode] = _Node(image, time.time_ns())
        return node

    def _attributes(self, node: _Node | None) -> pyfuse3.EntryAttributes:
        """Of the root directory where `node` is None."""
        entry = pyfuse3.EntryAttributes()
        entry.entry_timeout = entry.attr_timeout = 0
        entry.st_uid, entry.st_gid = self._uid, self._gid
        if node is None:
            entry.st_ino = pyfuse3.ROOT_INODE
            entry.st_mode = stat.S_IFDIR | 0o700
            entry.st_nlink = 2
            entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._start_ns
            return entry
        image = node.image
        entry.st_ino = image.inode
        entry.st_mode = stat.S_IFREG | (0o400 if image.read_only else 0o600)
        entry.st_nlink = 1
        entry.st_size = image.size_bytes
        entry.st_blksize = image.block_bytes
        entry.st_blocks = image.allocated_bytes // SECTOR_BYTES
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = max(node.mtime_ns, image.written_ns)
        return entry

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        image = self._source.lookup(os.fsdecode(name)) if parent_inode == pyfuse3.ROOT_INODE else None
        if image is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(self._remember(image))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        # Of a device that lives on, the time of its last write is kept.
        for inode, _ in inode_list:
            node = self._nodes.get(inode)
            if node is not None and self._is_gone(node):
                self._let_go(inode)

    def _is_gone(self, node: _Node) -> bool:
        return self._source.lookup(node.image.name) is not node.image

    def gone(self, name: str) -> int:
        """Let go of the removed device of that name; its inode, or 0. Handles that are open keep it."""
        for inode, node in self._nodes.items():
            if node.image.name == name and self._is_gone(node):
                self._let_go(inode)
                return inode
        return 0

    def _let_go(self, inode: int) -> None:
        del self._nodes[inode]
        if self._native:
            unroute(inode)

    def is_open(self, image: Image) -> bool:
        node = self._nodes.get(image.inode)
        return node is not None and node.nr_open > 0

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(None if inode == pyfuse3.ROOT_INODE else self._node(inode))

    @answered
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Sizes are fixed. O_TRUNC is ignored as on a block device: it arrives as size 0 without a handle.

        (So does truncate(2) to 0, which cannot be told apart.) Times other than the last write's are not kept.
        """
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise PermissionRefused(f"inode {inode}: mode and owner are fixed")
        if inode == pyfuse3.ROOT_INODE:
            return self._attributes(None)
        node = self._node(inode)
        if fields.update_size and not (attr.st_size == 0 and fh is None):
            image = node.image
            if attr.st_size != image.size_bytes:
                raise InvalidArgument(
                    f"{image.name}: truncate to {attr.st_size}: the size is fixed, {image.size_bytes} bytes"
                )
        return self._attributes(node)

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return 0

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """In the order of the inodes, which are also the positions: stable while devices come and go."""
        found = (self._source.lookup(name) for name in self._source.names())
        images = {image.inode: image for image in found if image is not None and image.inode > start_id}
        for inode in sorted(images):
            image = images[inode]
            attributes = self._attributes(self._remember(image))
            if not pyfuse3.readdir_reply(token, os.fsencode(image.name), attributes, inode):
                break

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = (self._source.lookup(name) for name in self._source.names())
        images = [image for image in found if image is not None]
        size = sum(image.size_bytes for image in images)
        allocated = sum(image.allocated_bytes for image in images)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = STATFS_BLOCK_BYTES
        answer.f_blocks = size // STATFS_BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = max(size - allocated, 0) // STATFS_BLOCK_BYTES
        answer.f_files, answer.f_ffree, answer.f_favail = len(images), 0, 0
        answer.f_namemax = 127  # DM_NAME_LEN without the final NUL
        return answer

    # pyfuse3 would answer ENOSYS. Permissions are the kernel's to check (default_permissions), so `access` is not
    # asked for; extended attributes stay ENOSYS, which the kernel remembers and answers EOPNOTSUPP itself.
    mknod = mkdir = unlink = rmdir = symlink = rename = link = create = _refuse

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(errno.EINVAL)

    # ---- I/O --------------------------------------------------------------------------------------------------

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self._node(inode)
        if node.image.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OtherError(errno.EROFS, f"{node.image.name}: the device is read-only")
        node.image.opened()
        # As of a block device: the first open finds an empty page cache (the data may have changed another way, as a
        # pool's own image does under its thins), later ones share it. Dropping it at each open would also wait for
        # the pages of writes that wait for space.
        if self._native:
            route(inode)
        keep_cache = node.nr_open > 0
        node.nr_open += 1
        self._last_handle += 1
        self._handles[self._last_handle] = node
        return pyfuse3.FileInfo(fh=self._last_handle, keep_cache=keep_cache)

    @property
    def has_handles(self) -> bool:
        return bool(self._handles)

    def opened(self, fh: int) -> _Node | None:
        return self._handles.get(fh)

    @answered
    async def release(self, fh: int) -> None:
        node = self._handles.pop(fh)
        node.nr_open -= 1
        node.image.closed()

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        image = self._handles[fh].image
        size = min(size, image.size_bytes - off)
        if size <= 0:
            return b""
        data = image.read_now(off, size)
        return bytes((await do(image, Bio(Op.READ, off, size))).data) if data is None else data

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Past the end: cut off there, ENOSPC if nothing remains, as a block device does."""
        node = self._handles[fh]
        image = node.image
        if image.read_only:  # by a reload, after it was opened
            raise PermissionRefused(f"{image.name}: the device is read-only")
        room = image.size_bytes - off
        if room < len(buf):
            if room <= 0:
                raise NoSpace(f"{image.name}: write at byte {off}, its size is {image.size_bytes}")
            buf = buf[:room]
        if not image.write_now(off, buf):
            await do(image, Bio(Op.WRITE, off, len(buf), buf))
        node.mtime_ns = time.time_ns()
        return len(buf)

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await do(self._handles[fh].image, Bio(Op.FLUSH))

    async def flush(self, fh: int) -> None:
        # close(2) promises nothing about durability. ENOSYS: the kernel does not ask again, and still writes back
        # what a mapping of the file has dirtied.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    # ---- what pyfuse3 does not know (see binding) ---------------------------------------------------------------

    def lseek(self, inode: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE; the kernel does the others itself."""
        try:
            image = self._node(inode).image
            if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
                raise InvalidArgument(f"{image.name}: lseek whence {whence}")
            if not 0 <= offset < image.size_bytes:
                raise pyfuse3.FUSEError(errno.ENXIO)
            if whence == os.SEEK_HOLE:
                return image.next_hole(offset)
            position = image.next_data(offset)
            if position is None:
                raise pyfuse3.FUSEError(errno.ENXIO)
            return position
        except Exception as error:
            raise _as_fuse_error("lseek", error) from None

    @answered
    async def fallocate(self, inode: int, mode: int, offset: int, length: int) -> None:
        """A range that would need a larger file is EFBIG; with KEEP_SIZE it is cut off at the end."""
        node = self._node(inode)
        image = node.image
        operation = allocation.OPERATIONS.get(mode)
        if operation is None:
            raise NotSupported(f"{image.name}: fallocate mode {mode:#x}")
        if image.read_only:
            raise PermissionRefused(f"{image.name}: the device is read-only")
        room = image.size_bytes - offset
        if length > room and not mode & FALLOC_FL_KEEP_SIZE:
            raise OtherError(
                errno.EFBIG, f"{image.name}: fallocate to {offset + length}, its size is {image.size_bytes}"
            )
        length = min(length, room)
        if length > 0:
            await operation(image, offset, length)
            node.mtime_ns = time.time_ns()
