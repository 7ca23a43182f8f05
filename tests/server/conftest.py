"""A control server over a fake backend, on a real socket in a directory of the test."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.dm.fake_backend import FakeBackend
from thinfs.server.server import ControlServer, bind, serve_connections

__all__ = ["Client", "Running", "running"]


class Client:
    """A client that speaks lines, well formed or not."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def say(self, text: str) -> None:
        await self.stream.send_all(text.encode() + b"\n")

    async def line(self) -> Any:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def ask(self, call: str, **args: Any) -> Any:
        await self.say(json.dumps({"call": call, "args": args}))
        return await self.line()


@dataclass(frozen=True)
class Running:
    backend: FakeBackend
    server: ControlServer
    path: str
    stack: AsyncExitStack  # what is closed at the end of the test

    async def client(self) -> Client:
        return Client(await self.stack.enter_async_context(await trio.open_unix_socket(self.path)))


@pytest.fixture
async def running(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Running]:
    backend = FakeBackend()
    server = ControlServer(backend, "/run/thinfs")
    path = f"{tmp_path}/s"
    await nursery.start(serve_connections, server.handle, bind(path))
    async with AsyncExitStack() as stack:
        yield Running(backend, server, path, stack)
    nursery.cancel_scope.cancel()
