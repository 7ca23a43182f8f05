"""A Backend at the other end of the control socket: the same calls, the same errors.

Promises: calls may run beside each other (each takes a connection of its own), a cancelled call is
cancelled in the server too. An open device has its connection for itself and is closed with it; its
size is that of its last answer.
"""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from thinfs.dm.backend import OpenDevice
from thinfs.dm.forwarding import ForwardingBackend
from thinfs.dm.verbs import VERBS, Json
from thinfs.errors import IOFailed, PermissionRefused, from_oserror
from thinfs.server.ownership import CREDENTIALS, check_listener
from thinfs.server.protocol import decode, encode, result_of


class Connection:
    """One connection: one call at a time. A call that does not come to its end closes it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.usable = True

    async def call(self, call: str, pieces: list[str] | None = None, /, **arguments: Json) -> Json:
        """The value of the answer; what comes before it in pieces is appended to `pieces`."""
        self.usable = False
        try:
            await self._stream.send_all(encode({"call": call, "args": arguments}))
            message = decode(await self._line())
            while pieces is not None and message.keys() == {"data"}:
                pieces.append(message["data"])
                message = decode(await self._line())
        except trio.BrokenResourceError:
            raise IOFailed(f"{call}: the server closed the connection") from None
        self.usable = True
        return result_of(message)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            data = await self._stream.receive_some()
            if not data:
                raise trio.BrokenResourceError
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


async def connect(path: str) -> Connection:
    """Only to a server of our own user or of root; PermissionRefused to another."""
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        raise from_oserror(error, path) from None
    try:
        check_listener(stream.socket.getsockopt(*CREDENTIALS), path)
    except PermissionError as error:
        await trio.aclose_forcefully(stream)
        raise PermissionRefused(str(error.strerror)) from None
    return Connection(stream)


class ControlClient(ForwardingBackend):
    """thinfs.dm.backend.Backend over the socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[Connection] = []

    async def _call(self, call: str, /, **arguments: Json) -> Json:
        connection = self._idle.pop() if self._idle else await connect(self._path)
        try:
            return await connection.call(call, **arguments)
        finally:
            if connection.usable:
                self._idle.append(connection)
            else:
                with trio.CancelScope(shield=True):
                    await connection.aclose()

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def _pass_on(self, verb: str, /, **arguments: Json) -> Any:
        return VERBS[verb].answer.from_json(await self._call(verb, **arguments))

    async def open(self, name: str) -> OpenDevice:
        connection = await connect(self._path)
        try:
            answer = await connection.call("open", name=name)
        except BaseException:
            await connection.aclose()
            raise
        return RemoteDevice(self, name, connection, answer["handle"], answer["size_bytes"])


class RemoteDevice:
    """An OpenDevice. I/O beside other I/O waits its turn, as the connection has one call at a time."""

    def __init__(self, client: ControlClient, name: str, connection: Connection, handle: int, size_bytes: int) -> None:
        self._client = client
        self._name = name
        self._connection = connection
        self._handle = handle
        self._size_bytes = size_bytes
        self._turn = trio.Lock()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    async def _call(self, call: str, pieces: list[str] | None = None, /, **arguments: Json) -> Json:
        async with self._turn:
            answer = await self._connection.call(call, pieces, handle=self._handle, **arguments)
        self._size_bytes = answer["size_bytes"]
        return answer

    async def read(self, offset: int, length: int) -> bytes:
        pieces: list[str] = []
        answer = await self._call("read", pieces, offset=offset, length=length)
        return b"".join(map(base64.b64decode, [*pieces, answer["data"]]))

    async def write(self, offset: int, data: bytes) -> None:
        await self._call("write", offset=offset, data=base64.b64encode(data).decode("ascii"))

    async def discard(self, offset: int, length: int) -> None:
        await self._call("discard", offset=offset, length=length)

    async def flush(self) -> None:
        await self._call("flush")

    async def aclose(self) -> None:
        with suppress(IOFailed), trio.CancelScope(shield=True):
            async with self._turn:
                if self._connection.usable:
                    await self._connection.call("close", handle=self._handle)
        await self._connection.aclose()


@asynccontextmanager
async def open_control_client(path: str) -> AsyncIterator[ControlClient]:
    client = ControlClient(path)
    try:
        yield client
    finally:
        await client.aclose()
