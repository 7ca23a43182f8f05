"""`python -m tests.server.fake_server DIR`: a whole server process over the fake backend, without a mount."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.dm.fake_backend import FakeBackend
from thinfs.server.daemon import Served, log_to_stderr, serve_until_end


@asynccontextmanager
async def fake(_directory: str) -> AsyncIterator[Served]:
    yield Served(FakeBackend(files=["/data", "/metadata"]))
    print("wound up", flush=True)


if __name__ == "__main__":
    log_to_stderr()
    serve_until_end(sys.argv[1], fake, lambda: print("ready", flush=True))
