"""The service that mounts a directory of image files and serves it until it is cancelled or unmounted.

Promises: ready when `task_status.started(Mount)` is called: the mount answers; at its end nothing is mounted
and what mappings of the files had dirtied was written. One mount a process, as pyfuse3 has one session.
Never: touches a path inside the mount from the trio thread, which would wait for itself; uses threads.
"""

import logging
import os
import select
from collections.abc import Callable
from typing import Final

import trio

from thinfs.errors import Busy, PermissionRefused
from thinfs.fuse import mountpoint
from thinfs.fuse.binding import connect, nr_sessions, pyfuse3, session_fd, verify
from thinfs.fuse.image import Image, ImageSource
from thinfs.fuse.native import NativeIO
from thinfs.fuse.operations import ImageOperations
from thinfs.libc import set_io_flusher, write_dirty_pages
from thinfs.mountinfo import mounted_on

log = logging.getLogger(__name__)

# A request that waits (a full pool that queues) holds a worker of pyfuse3 until it is answered. So their number
# has no limit of ours: what waits is bounded by the clients' threads and by max_background (see binding).
_MAX_TASKS: Final = 1_000_000
_READ_AHEAD_KIB: Final = 1024  # one request of the largest size; the default gives 256 KiB
_LAST_FLUSH_SECONDS: Final = 5.0
_SETTLE_ROUNDS: Final = 1000
_INVALIDATE_SECONDS: Final = 2.0

_serving = False


class Mount:
    """A mount that is being served: its hooks for whoever changes devices. Call them from the trio thread."""

    def __init__(self, directory: str, operations: ImageOperations, fd: int, *, native: bool) -> None:
        self.directory = directory
        self._operations = operations
        self._fd = fd
        self._native = native
        self._over = False

    async def device_gone(self, name: str) -> None:
        """After a removal or a renaming: watchers and the kernel's caches learn that `name` is no more.

        (Nobody is misled without it: names are looked up afresh.)
        """
        inode = self._operations.gone(name)
        await self._notify(pyfuse3.invalidate_entry, pyfuse3.ROOT_INODE, os.fsencode(name), inode)

    async def device_resized(self, image: Image) -> None:
        """After a reload has been resumed: nothing of the old table is cached. (Sizes are looked up afresh.)

        Pages of writes that wait for space cannot be dropped before they are written: it does not wait for those.
        """
        with trio.move_on_after(_INVALIDATE_SECONDS):
            await self._notify(pyfuse3.invalidate_inode, image.inode)

    async def flush_dirty(self, image: Image) -> None:
        """Before a suspend, while I/O still runs: pages dirtied through mappings of the file reach the image.

        They are the only dirty ones: write(2) is written through. It waits as long as those writes wait, so not
        for a suspend with noflush.
        """
        if self.may_be_dirty(image):
            await self._notify(_write_dirty_pages, os.path.join(self.directory, image.name))

    def may_be_dirty(self, image: Image) -> bool:
        """A mapping keeps its file open."""
        return self._operations.is_open(image)

    async def settle(self) -> None:
        """Requests that the kernel has queued up to now are begun.

        close(2) does not wait for its RELEASE, so without this a `remove` right after it may find the device
        open still. Bounded, for other clients may go on asking.
        """
        if self._over or not self._operations.has_handles:
            return
        if self._native:  # requests are handed over in the kernel's order, so what came before this one has begun
            await self._notify(os.statvfs, self.directory)
            return
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for _ in range(_SETTLE_ROUNDS):
            if not poll.poll(0):
                return
            await trio.lowlevel.checkpoint()

    async def _notify(self, function: Callable[..., object], *arguments: object) -> None:
        """In a thread: the kernel may first send writes and wait for our answers."""
        if self._over:
            return
        try:
            await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        except OSError as error:  # above all ENOENT: the kernel does not know it, or no longer
            log.debug("%s%r: %s", getattr(function, "__name__", function), arguments, error)

    async def _make_ready(self) -> None:
        """Return once the connection is initialised; then, as root, its readahead can be raised."""
        await trio.to_thread.run_sync(os.statvfs, self.directory, abandon_on_cancel=True)
        if os.geteuid() == 0:
            _raise_readahead(self.directory)

    async def _end(self) -> None:
        """Write back what mappings have dirtied, unless that must wait for something."""
        with trio.move_on_after(_LAST_FLUSH_SECONDS) as limit:
            await trio.to_thread.run_sync(pyfuse3.syncfs, self.directory, abandon_on_cancel=True)
        if limit.cancelled_caught:
            log.warning("%s: unmounted with writes still waiting", self.directory)


async def serve(
    source: ImageSource,
    directory: str,
    *,
    allow_other: bool = False,
    native: bool = True,
    task_status: trio.TaskStatus[Mount] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount on `directory` and serve; returns when it was unmounted from outside. A refusal is a ThinfsError.

    Files are for the server's own user alone, unless `allow_other`; modes are checked by the kernel either way. Not
    `native`: pyfuse3 reads and answers all requests itself, there are no serving threads.
    """
    global _serving
    if _serving:
        raise Busy(f"{directory}: this process serves a mount already")
    _serving = True
    try:
        resolved = await trio.to_thread.run_sync(lambda: mountpoint.prepare(directory, allow_other=allow_other))
        if os.geteuid() == 0:
            _become_io_flusher()
        await _serve(ImageOperations(source, native=native), resolved, allow_other, native, task_status)
    finally:
        _serving = False


async def _serve(
    operations: ImageOperations,
    directory: str,
    allow_other: bool,
    native: bool,
    task_status: trio.TaskStatus[Mount],
) -> None:
    ended = trio.Event()
    serving = trio.CancelScope(shield=True)  # requests are answered until the very end
    nurseries: list[trio.Nursery] = []  # of answer_requests: the session exists before it runs

    async def answer_requests() -> None:
        try:
            with serving:
                async with trio.open_nursery() as requests:
                    nurseries.append(requests)
                    if native_io is not None:
                        requests.start_soon(native_io.run)
                    await pyfuse3.main(max_tasks=_MAX_TASKS)
                    requests.cancel_scope.cancel()
        finally:
            ended.set()

    connect(operations, lambda *task: nurseries[0].start_soon(*task))
    native_io = NativeIO(operations.opened) if native else None
    try:
        fd = _open_session(operations, directory, allow_other, native_io)
    except BaseException:
        if native_io is not None:
            native_io.stop()
        raise
    mount = Mount(directory, operations, fd, native=native)
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(answer_requests)
            await mount._make_ready()
            task_status.started(mount)
            await ended.wait()
        finally:
            with trio.CancelScope(shield=True):
                if not ended.is_set():
                    await mount._end()
                serving.cancel()
                await ended.wait()  # no request is left that could be answered to a session that is closed
            mount._over = True
            if native_io is not None:
                native_io.stop()
            pyfuse3.close(unmount=True)


def _open_session(operations: ImageOperations, directory: str, allow_other: bool, native_io: NativeIO | None) -> int:
    options = {*pyfuse3.default_options, f"fsname={mountpoint.FS_NAME}", f"subtype={mountpoint.FS_NAME}"}
    options |= {"allow_other"} if allow_other else set()
    before = nr_sessions()
    try:
        pyfuse3.init(operations, directory, options)
    except RuntimeError as error:
        raise PermissionRefused(
            f"{directory}: mount refused ({error}; libfuse's own words are on standard error); "
            "in a container it takes --device /dev/fuse --cap-add SYS_ADMIN"
        ) from None
    try:
        verify(before)
        if native_io is not None:
            native_io.start(session_fd())
    except BaseException:
        pyfuse3.close(unmount=True)
        raise
    return session_fd()


def _write_dirty_pages(path: str) -> None:
    # Not invalidate_inode: that would also wait for the pages of a write(2) that waits for space.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write_dirty_pages(fd)
    finally:
        os.close(fd)


def _raise_readahead(directory: str) -> None:
    entry = mounted_on(directory)
    try:
        if entry is not None:
            with open(f"/sys/class/bdi/{entry.device}/read_ahead_kb", "w") as setting:
                setting.write(f"{_READ_AHEAD_KIB}\n")
    except OSError as error:
        log.info("%s: readahead stays as it is: %s", directory, error)


def _become_io_flusher() -> None:
    # Under memory pressure the kernel may write back a file system that stands on one of our own volumes.
    try:
        set_io_flusher()
    except OSError as error:
        log.info("PR_SET_IO_FLUSHER: %s", error)
