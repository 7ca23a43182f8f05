"""The control server: answers calls on a Unix socket for one backend and one mount directory.

Promises: a connection's calls run one after the other, connections beside each other; a client that
is slow, malformed or gone harms its own connection only; its running call is cancelled when it goes,
and the devices it opened are closed. Never: imports userspace or fuse, decides about device-mapper.
"""

import logging
import os
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import trio

from thinfs.dm.backend import Backend, OpenDevice
from thinfs.errors import InvalidArgument, IOFailed, PermissionRefused, ThinfsError, from_oserror
from thinfs.server.ownership import check_owner
from thinfs.server.protocol import (
    MAX_LINE_BYTES,
    Malformed,
    Message,
    decode,
    encode,
    error_message,
    shown,
)
from thinfs.server.removal import Holder, nobody
from thinfs.server.requests import perform

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ControlServer:
    """What the connections share. `stopping` is set by the call `stop`: the owner then ends the process."""

    backend: Backend
    mount_dir: str
    holder: Holder = nobody
    # Before a call: closes of image files that the kernel has yet to deliver are delivered, so that open counts
    # are true.
    settle: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    devices_stay: bool = False  # they are a kernel's: `stop` leaves them, in use or not
    stopping: trio.Event = field(default_factory=trio.Event)

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; raises nothing of its client's doing."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(stream)
            connection = Connection(self, stream)
            stack.push_async_callback(connection.close_devices)
            try:
                await connection.serve()
            except Exception:
                log.exception("a connection ended by a bug of ours")


def bind(path: str) -> socket.socket:
    """A listening socket of mode 0600 at `path`, replacing the one that a server of ours left which ended badly."""
    try:
        check_owner(path)
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except PermissionError as error:
        raise PermissionRefused(str(error.strerror)) from None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno is None:  # "AF_UNIX path too long" comes without a number
            raise InvalidArgument(f"{path}: {error}") from None
        raise from_oserror(error, path) from None
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """`bind`, and the path is free again afterwards."""
    listener = bind(path)
    try:
        yield listener
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


async def serve_connections(
    handle: Callable[[trio.SocketStream], Awaitable[object]],
    listener: socket.socket,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections until cancelled."""
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
    await trio.serve_listeners(handle, listeners, task_status=task_status)


class Connection:
    """One client: its lines, its open devices, and the call that runs."""

    def __init__(self, server: ControlServer, stream: trio.abc.Stream) -> None:
        self.backend = server.backend
        self.mount_dir = server.mount_dir
        self.holder = server.holder
        self.devices_stay = server.devices_stay
        self._settle = server.settle
        self._stopping = server.stopping
        self._stop_asked = False
        self.devices: dict[int, OpenDevice] = {}
        self._next_handle = 1
        self._stream = stream
        self._send_lines, self._lines = trio.open_memory_channel[bytes](1)

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, nursery.cancel_scope)
            try:
                async for line in self._lines:
                    await self.send(await self._call(line))
                    if self._stop_asked:
                        break
            except trio.BrokenResourceError:
                pass  # the client went
            finally:
                if self._stop_asked:  # and the answer to that is sent
                    self._stopping.set()
            nursery.cancel_scope.cancel()

    async def send(self, *messages: Message) -> None:
        await self._stream.send_all(b"".join(map(encode, messages)))

    async def next_line(self) -> bytes:
        """The client's answer to a question put to it."""
        try:
            return await self._lines.receive()
        except trio.EndOfChannel:
            raise IOFailed("the client closed the connection instead of answering") from None

    async def _receive(self, scope: trio.CancelScope) -> None:
        buffer = bytearray()
        too_long = Malformed(f"a line of more than {MAX_LINE_BYTES} bytes")
        async with self._send_lines:
            try:
                async for data in self._stream:
                    buffer += data
                    while (end := buffer.find(b"\n")) >= 0:
                        line = bytes(buffer[:end])
                        del buffer[: end + 1]
                        await self._send_lines.send(line)
                    if len(buffer) > MAX_LINE_BYTES:
                        with suppress(trio.BusyResourceError):  # an answer is under way: it must do
                            await self.send(error_message(too_long))
                        scope.cancel()
                        return
            except trio.BrokenResourceError:
                pass
            if self._is_gone():
                scope.cancel()

    def _is_gone(self) -> bool:
        """Gone, or has it only said its last word (`nc -N`), and waits for the answer?"""
        if not isinstance(self._stream, trio.SocketStream):
            return True
        poll = select.poll()
        poll.register(self._stream.socket.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    async def _call(self, line: bytes) -> Message:
        name = "?"
        try:
            request = decode(line)
            call = request.get("call")
            if not isinstance(call, str):
                raise Malformed(f"unknown call: {shown(call)}")
            name = shown(call)
            await self._settle()
            return {"ok": await perform(self, call, request.get("args", {}))}
        except trio.BrokenResourceError:
            raise  # the client went while something was said to it
        except ThinfsError as error:
            log.warning("%s refused: %s (errno %d)", name, error, error.errno)
            return error_message(error)
        except Exception:
            log.exception("%s: a bug, answered EIO", name)
            return error_message(IOFailed(f"{name}: internal error, see the server's log"))

    def stop_server(self) -> None:
        self._stop_asked = True

    def add_device(self, device: OpenDevice) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self.devices[handle] = device
        return handle

    def device(self, handle: int) -> OpenDevice:
        if handle not in self.devices:
            raise InvalidArgument(f"handle {handle}: not open on this connection")
        return self.devices[handle]

    def forget_device(self, handle: int) -> None:
        del self.devices[handle]

    async def close_devices(self) -> None:
        with trio.CancelScope(shield=True):
            while self.devices:
                _, device = self.devices.popitem()
                try:
                    await device.aclose()
                except ThinfsError as error:
                    log.warning("closing a device of a client that went: %s", error)
