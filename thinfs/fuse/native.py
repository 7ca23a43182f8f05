"""The serving threads as the mount has them: their start and end, and the I/O that they leave to Python.

Promises: every request taken is answered, at once or when its bio is done, by the thread that runs this; an error
becomes an errno as in operations.py. What a volume may serve never comes here: see _volumes.c.
"""

import errno
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import trio

from thinfs.bio import Bio, Op
from thinfs.errors import ThinfsError
from thinfs.fuse import _fuseshim
from thinfs.fuse.image import Image

log = logging.getLogger(__name__)

_BATCHES_AT_ONCE: Final = 4  # before others get their turn


class Opened(Protocol):
    """What a handle of an open file leads to."""

    image: Image
    mtime_ns: int


def make_volume(fd: int, block_bytes: int) -> _fuseshim.Volume:
    """thinfs.pool.served.MakeVolume"""
    return _fuseshim.Volume(fd, block_bytes)


class NativeIO:
    """Of one session. `prepare` before it is opened, `start` then, `stop` before it is closed."""

    def __init__(self, opened: Callable[[int], Opened | None]) -> None:
        self._opened = opened
        self._fd = _fuseshim.prepare()

    def start(self, session_fd: int) -> None:
        if not _fuseshim.is_taken():
            raise RuntimeError("pyfuse3 reads its session past thinfs.fuse._fuseshim: serve with --no-native")
        _fuseshim.start(session_fd)

    def stop(self) -> None:
        """Nothing that was not taken yet is answered. Logs why, if the threads have ended the session themselves."""
        failure = _fuseshim.failure()
        if failure is not None:
            log.error("the serving threads have ended the session: %s", failure)
        _fuseshim.stop()
        log.info("requests served natively, by Python, by pyfuse3: %d, %d, %d", *_fuseshim.counts())

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            for _ in range(_BATCHES_AT_ONCE):
                requests = _fuseshim.take()
                if not requests:
                    break
                for request in requests:
                    self._begin(request)

    def _begin(self, request: _fuseshim.IORequest) -> None:
        node = self._opened(request.handle)
        try:
            if node is None:
                request.fail(errno.EBADF)
            elif request.operation == _fuseshim.READ:
                self._read(request, node.image)
            elif request.operation == _fuseshim.FLUSH:
                self._submit(request, node, Bio(Op.FLUSH))
            else:
                self._write(request, node)
        except Exception as error:
            _fail(request, error)

    def _read(self, request: _fuseshim.IORequest, image: Image) -> None:
        offset = request.offset
        length = min(request.length, image.size_bytes - offset)
        data = image.read_now(offset, length) if length > 0 else b""
        if data is not None:
            request.data(data)
            return
        bio = Bio(Op.READ, offset, length)
        image.submit(bio)
        bio.then(partial(_told, request, _finish_read, request, bio))

    def _write(self, request: _fuseshim.IORequest, node: Opened) -> None:
        """Past the end: cut off there, ENOSPC if nothing remains, as a block device does."""
        image, offset = node.image, request.offset
        data = memoryview(request)
        room = image.size_bytes - offset
        if image.read_only:  # by a reload, after it was opened
            request.fail(errno.EPERM)
            return
        if room <= 0:
            request.fail(errno.ENOSPC)
            return
        data = data[:room]
        if image.write_now(offset, data):
            node.mtime_ns = time.time_ns()
            request.written(len(data))
        else:
            self._submit(request, node, Bio(Op.WRITE, offset, len(data), data))

    def _submit(self, request: _fuseshim.IORequest, node: Opened, bio: Bio) -> None:
        node.image.submit(bio)
        bio.then(partial(_told, request, _finish, request, node, bio))


def _told(request: _fuseshim.IORequest, finish: Callable[..., None], *arguments: object) -> None:
    """Whoever completes a bio, deep in the engine, must not hear of what goes wrong with its answer."""
    try:
        finish(*arguments)
    except Exception as error:
        _fail(request, error)


def _finish(request: _fuseshim.IORequest, node: Opened, bio: Bio) -> None:
    if bio.error is not None:
        _fail(request, bio.error)
    elif bio.op is Op.FLUSH:
        request.done()
    else:
        node.mtime_ns = time.time_ns()
        request.written(bio.length)


def _finish_read(request: _fuseshim.IORequest, bio: Bio) -> None:
    if bio.error is not None:
        _fail(request, bio.error)
    else:
        request.data(bio.data)


def _fail(request: _fuseshim.IORequest, error: Exception) -> None:
    if isinstance(error, ThinfsError):
        log.debug("%s", error)
        request.fail(error.errno)
        return
    log.error("a request for inode %d: a bug", request.inode, exc_info=error)
    try:
        request.fail(errno.EIO)
    except (OSError, ValueError):
        return  # it was answered before, or the session is over
