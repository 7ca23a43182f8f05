"""pyfuse3 with FALLOCATE and LSEEK: the only module that imports it, `_fuseshim` first and RTLD_GLOBAL.

Promises: `pyfuse3` from here reaches libfuse through the extension, or the import fails in one line that says
what to do; `verify` proves it for a session. Never: works without the extension, for an image file without
holes and discards is not one. Reference: the FUSE front end notes, the two callbacks that pyfuse3 lacks.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

if "pyfuse3" in sys.modules:
    raise ImportError("pyfuse3 was imported before thinfs.fuse.binding: import it from there")

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL)
try:
    from thinfs.fuse import _fuseshim
except ImportError as error:
    raise ImportError(
        f"the extension thinfs.fuse._fuseshim is required and does not load ({error}); "
        "build it with `pip install -e .` (needs a C compiler, pkg-config and the libfuse 3 headers)"
    ) from error
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402  (must come after the extension)

__all__ = ["ExtendedOperations", "connect", "pyfuse3", "route", "session_fd", "unroute", "verify"]

route, unroute = _fuseshim.route, _fuseshim.unroute

# Requests of asynchronous I/O and readahead that the kernel may have under way for the whole mount. Those that
# wait for space count, so it is far above the default of 12. Of an ordinary user the kernel takes what
# /sys/module/fuse/parameters/max_user_bgreq allows.
_MAX_BACKGROUND = 4096


class ExtendedOperations(Protocol):
    """The two operations pyfuse3 does not know. They raise FUSEError and nothing else."""

    async def fallocate(self, inode: int, mode: int, offset: int, length: int) -> None: ...

    def lseek(self, inode: int, offset: int, whence: int) -> int: ...


def connect(operations: ExtendedOperations, start_soon: Callable[..., object]) -> None:
    """Serve the sessions opened from now on with `operations`; `start_soon` is that of a nursery."""

    def on_lseek(request: "_fuseshim.Request", inode: int, offset: int, whence: int) -> None:
        try:
            position = operations.lseek(inode, offset, whence)
        except pyfuse3.FUSEError as error:
            _fuseshim.reply_err(request, error.errno)
        else:
            _fuseshim.reply_lseek(request, position)

    def on_fallocate(request: "_fuseshim.Request", *arguments: int) -> None:
        start_soon(_answer, request, operations.fallocate, arguments)

    _fuseshim.configure(fallocate=on_fallocate, lseek=on_lseek, max_background=_MAX_BACKGROUND)


async def _answer(
    request: "_fuseshim.Request", handler: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]
) -> None:
    # Cancelled leaves the request unanswered, as pyfuse3 does: the connection is being closed then.
    try:
        await handler(*arguments)
    except pyfuse3.FUSEError as error:
        _fuseshim.reply_err(request, error.errno)
    else:
        _fuseshim.reply_err(request, 0)


def verify(nr_sessions_before: int) -> None:
    """After pyfuse3.init: the session went through the extension."""
    if nr_sessions() == nr_sessions_before:
        raise RuntimeError(
            "pyfuse3 opened its session past thinfs.fuse._fuseshim: image files would have no discard and no "
            "holes; is pyfuse3 linked statically, or was libfuse loaded with RTLD_DEEPBIND?"
        )


def nr_sessions() -> int:
    """Sessions opened through the extension so far."""
    return _fuseshim.nr_sessions()


def session_fd() -> int:
    """The descriptor of /dev/fuse of the session that pyfuse3.init has just opened."""
    return _fuseshim.session_fd()
