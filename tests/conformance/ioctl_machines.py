"""The engine behind its ioctl door: what the kernel backend asks of /dev/mapper/control, a server of thinfs answers.

Two servers: one of the engine, and under what `thinfs run` preloads one of "this machine's kernel" (ioctl_process),
which opens /dev/mapper/control and packs struct dm_ioctl. I/O goes through the first one's mount.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import trio

from thinfs.ioctl.environment import variables
from thinfs.server import paths
from thinfs.server.client import open_control_client

from .userspace_machines import ServerMachine, ServerProcess, SuiteProcess, server_process
from .workbench import Machine


@dataclass(frozen=True, slots=True)
class IoctlServers:
    engine: ServerProcess
    kernel: str  # the second one's directory


@contextlib.contextmanager
def ioctl_servers() -> Iterator[IoctlServers]:
    with server_process("pyfuse3") as engine:
        directory = str(engine.directory / "kernel")
        log = engine.directory / "kernel.log"
        added = variables(str(engine.mount), os.environ)
        process = SuiteProcess(engine.directory, log, "ioctl_process", directory, environment=added)
        try:
            yield IoctlServers(engine, directory)
        finally:
            process.stop()


@contextlib.asynccontextmanager
async def ioctl_machine(servers: IoctlServers) -> AsyncIterator[Machine]:
    async with (
        open_control_client(paths.socket_path(str(servers.engine.mount))) as client,
        open_control_client(paths.socket_path(servers.kernel)) as verbs,
    ):
        machine = ServerMachine(servers.engine, client, verbs)
        try:
            yield machine
        finally:
            with trio.CancelScope(shield=True):
                await machine.set_back()
