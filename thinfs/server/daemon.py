"""The life of a server process: its lock, its way into the background, its readiness, its end.

Promises: one server for a directory (flock on DIR.lock, which the kernel drops with the process); whoever
started it learns that it answers, or in one line why not; it ends cleanly on SIGTERM, SIGINT and `stop`.
Never: knows what it serves: that is the `assembly`, which gives a backend and cleans up after itself.
"""

import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, NoReturn, TypeAlias

import trio

from thinfs.dead_server import holds_on, let_go
from thinfs.dm.backend import Backend
from thinfs.errors import Busy, PermissionRefused, ThinfsError, from_oserror
from thinfs.ioctl.door import Door
from thinfs.plain_text import plain
from thinfs.server import paths
from thinfs.server.ownership import CREDENTIALS, check_file, check_listener, listener_is_over
from thinfs.server.removal import Holder, nobody
from thinfs.server.server import ControlServer, listening, serve_connections

log = logging.getLogger(__name__)

_LONGEST_EVENT: Final = 4000  # characters
_GRACE_SECONDS: Final = 1.0  # for one that was killed a moment ago
_PREDECESSOR_SECONDS: Final = 10  # how long a server that is ending may take before a new one gives up


@dataclass(frozen=True, slots=True)
class Served:
    backend: Backend
    holder: Holder = nobody
    settle: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # see ControlServer
    devices_stay: bool = False  # see ControlServer
    show_holders: Callable[[int, Iterable[int]], str] | None = None  # see Door


Assembly: TypeAlias = Callable[[str], AbstractAsyncContextManager[Served]]


async def run(directory: str, assembly: Assembly, ready: Callable[[], None]) -> None:
    """Serve until a signal or `stop`. Calls are refused first, then the assembly winds up."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with assembly(directory) as served:
            server = ControlServer(served.backend, directory, served.holder, served.settle, served.devices_stay)
            door = Door(served.backend, served.settle, served.show_holders)
            with (
                listening(paths.socket_path(directory)) as control,
                listening(paths.ioctl_socket_path(directory)) as ioctls,
            ):
                async with trio.open_nursery() as nursery:
                    await nursery.start(serve_connections, server.handle, control)
                    await nursery.start(serve_connections, door.handle, ioctls)
                    ready()
                    notify_service_manager("READY=1")
                    log.info("serving %s", directory)
                    nursery.start_soon(_stop_on_signal, signals, server)
                    await server.stopping.wait()
                    notify_service_manager("STOPPING=1")
                    nursery.cancel_scope.cancel()
    log.info("ended")


async def _stop_on_signal(signals: object, server: ControlServer) -> None:
    async for number in signals:  # type: ignore[attr-defined]
        log.info("%s", signal.Signals(number).name)
        server.stopping.set()


def notify_service_manager(state: str) -> None:
    """sd_notify(3), where systemd or its like waits for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.sendto(state.encode("ascii"), address)


def answers(directory: str) -> bool:
    """Does a server of this directory accept connections? PermissionRefused where another user listens."""
    path = paths.socket_path(directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        credentials = probe.getsockopt(*CREDENTIALS)
        try:
            check_listener(credentials, path)
        except PermissionError as error:
            raise PermissionRefused(str(error.strerror)) from None
        return not listener_is_over(credentials)


@contextmanager
def starting(directory: str) -> Iterator[None]:
    """Of several that would start a server, one at a time is in here; the others wait.

    A POSIX record lock on the file whose flock is the server's: the two kinds do not see each other, and a
    child of fork does not inherit this one, so it ends with the starter.
    """
    descriptor = _open_lock(directory)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock(directory: str) -> int:
    """Be the server of this directory, for as long as the process lives. Waits for one that is just ending."""
    descriptor = _open_lock(directory)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if answers(directory):
                raise Busy(f"{directory}: served already, by process {_read_pid(descriptor)}") from None
            _end_dead_predecessor(directory, _read_pid(descriptor))
            with _limited(_PREDECESSOR_SECONDS, directory, descriptor):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor


def _end_dead_predecessor(directory: str, pid: str) -> None:
    """One that was killed while a thread of it waited for its own answer would hold the lock for ever."""
    if not pid.isdecimal() or not holds_on(int(pid)):
        return
    if let_go(int(pid), directory, grace_seconds=_GRACE_SECONDS, seconds=_PREDECESSOR_SECONDS):
        log.warning("%s: process %s was killed and held on to its mount: ended", directory, pid)
    else:
        raise Busy(f"{directory}: process {pid} was killed and holds on to its mount; as root: umount -f {directory}")


@contextmanager
def _limited(seconds: int, directory: str, descriptor: int) -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Busy(f"{directory}: process {_read_pid(descriptor)} holds {paths.lock_path(directory)}")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _open_lock(directory: str) -> int:
    return _open_own(paths.lock_path(directory), os.O_RDWR)


def _open_own(path: str, flags: int) -> int:
    """A lock or a log beside DIR, made if need be: our own, or it is refused."""
    try:
        # Not waiting: what stands there may be a FIFO.
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise from_oserror(error, path) from None
    try:
        check_file(descriptor, path)
    except PermissionError as error:
        os.close(descriptor)
        raise PermissionRefused(str(error.strerror)) from None
    return descriptor


def _read_pid(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"


def await_end(directory: str) -> None:
    """Returns when no server of this directory lives."""
    descriptor = _open_lock(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def serve_until_end(directory: str, assembly: Assembly, ready: Callable[[], None]) -> None:
    """Returns at the end of the server; raises a ThinfsError for what kept it from starting."""
    held = lock(directory)
    try:
        trio.run(run, directory, assembly, ready)
    except BaseExceptionGroup as group:
        raise _first_refusal(group) or group from None
    finally:
        os.close(held)


def _first_refusal(group: BaseExceptionGroup[BaseException]) -> ThinfsError | None:
    for error in group.exceptions:
        found = _first_refusal(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, ThinfsError):
            return found
    return None


def serve_in_background(directory: str, assembly: Assembly) -> str:
    """Returns "" in the starter once the server answers, or why it does not. The server never returns."""
    reader, writer = os.pipe()
    log_file = _open_log(directory)
    pid = os.fork()
    if pid:
        os.close(writer)
        os.close(log_file)
        os.waitpid(pid, 0)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
            answer = pipe.read()
        return "" if answer == "ready" else answer or f"the server died; see {paths.log_path(directory)}"
    status = 1
    try:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        _leave(log_file)
        status = _background(directory, assembly, writer)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _background(directory: str, assembly: Assembly, writer: int) -> int:
    waiting = [writer]

    def say(text: str) -> None:
        while waiting:
            os.write(waiting[0], text.encode("utf-8", "replace"))
            os.close(waiting.pop())

    try:
        serve_until_end(directory, assembly, lambda: say("ready"))
    except ThinfsError as error:
        log.error("%s", error)
        say(str(error))
        return 1
    except BaseException as error:
        log.exception("the server died of a bug")
        say(f"internal error: {error!r}; see {paths.log_path(directory)}")
        return 1
    return 0


def _open_log(directory: str) -> int:
    return _open_own(paths.log_path(directory), os.O_WRONLY | os.O_APPEND)


def _leave(log_file: int) -> None:
    """Nothing of the starter's is held: its terminal, its pipes (whose end somebody waits for), its directory."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    os.close(null)
    os.close(log_file)
    os.chdir("/")


class _OneLine(logging.Formatter):
    """What comes from outside in an event makes no line, and no control sequence, of its own; nor a long one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain(super().formatMessage(record), _LONGEST_EVENT)

    def formatException(self, ei: Any) -> str:
        return "\n".join("    " + plain(line, _LONGEST_EVENT) for line in super().formatException(ei).split("\n"))


def log_formatter() -> logging.Formatter:
    """One line an event, key=value, time in UTC."""
    formatter = _OneLine(
        "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter


def log_to_stderr() -> None:
    """Standard error is DIR.log in the background."""
    handler = logging.StreamHandler()
    handler.setFormatter(log_formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
