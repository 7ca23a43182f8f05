"""The machines of the userspace backend: in process under a virtual clock, and a server with its mount.

Promises: in process, time passes only in `elapse`. The server lives for the session; a test finds it without
devices, and gets another one if an earlier test left it unfit.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import trio
import trio.testing

from thinfs.dm.backend import Backend, OpenDevice
from thinfs.errors import ThinfsError, from_oserror
from thinfs.server import paths
from thinfs.server.client import ControlClient, open_control_client
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

from . import faults
from .files import FileDisk
from .removal import remove_devices
from .workbench import Disk, Machine

T = TypeVar("T")

DEFAULT_NO_SPACE_TIMEOUT = 60


def scratch_directory() -> Path:
    """In memory where that is to be had: what is flushed to a disk there costs nothing."""
    memory = "/dev/shm"
    return Path(tempfile.mkdtemp(prefix="thinfs-suite-", dir=memory if os.access(memory, os.W_OK) else None))


class UserspaceMachine:
    kernel = (6, 1)

    def __init__(self, mapper: DeviceMapper, directory: Path) -> None:
        self._mapper = mapper
        self._directory = directory
        self._nr_disks = 0

    @property
    def backend(self) -> Backend:
        return self._mapper

    async def disk(self, size_bytes: int, *, discard: bool = False) -> Disk:
        self._nr_disks += 1
        return FileDisk(self._directory / f"disk{self._nr_disks}", size_bytes)

    async def elapse(self, seconds: float) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async def set_no_space_timeout(self, seconds: int) -> None:
        self._mapper.pools.no_space_timeout = seconds

    async def clean(self) -> None:
        await self._mapper.shut_down()


@contextlib.asynccontextmanager
async def userspace_machine() -> AsyncIterator[Machine]:
    directory = scratch_directory()
    try:
        with faults.installed():
            async with open_device_mapper() as mapper:
                yield UserspaceMachine(mapper, directory)
    finally:
        shutil.rmtree(directory)


class SuiteProcess:
    """A module of this package that serves until its standard input closes; it answers when this is made."""

    def __init__(
        self, directory: Path, log: Path, module: str, *words: str, environment: Mapping[str, str] = {}
    ) -> None:
        notify = directory / "notify"
        notify.unlink(missing_ok=True)
        package = str(__package__)
        root = str(Path(__file__).parents[package.count(".") + 1])
        search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("ab") as output:
            ready.bind(str(notify))
            ready.settimeout(60)
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{package}.{module}", *words],
                env={**os.environ, "NOTIFY_SOCKET": str(notify), "PYTHONPATH": search, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
            try:
                assert b"READY=1" in ready.recv(4096)
            except (TimeoutError, AssertionError):
                raise AssertionError(f"the server did not start: {log.read_text()}") from None

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


class ServerProcess:
    """A server of the suite's own: a directory, a process, a mount. `served_by`: native or pyfuse3."""

    def __init__(self, served_by: str) -> None:
        self._served_by = served_by
        self.directory = scratch_directory()
        self.mount = self.directory / "mnt"
        self.log = self.directory / "server.log"
        self.no_space_timeout = DEFAULT_NO_SPACE_TIMEOUT
        self.nr_disks = 0
        self._process: SuiteProcess | None = None

    def start(self) -> None:
        self._process = SuiteProcess(
            self.directory,
            self.log,
            "server_process",
            str(self.mount),
            str(self.no_space_timeout),
            self._served_by,
            environment={"THINFS_PURE": "0" if self._served_by == "native" else "1"},  # compiled, where that is there
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if os.path.ismount(self.mount):
            subprocess.run(["umount", "-l", str(self.mount)], check=False)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def server_process(served_by: str) -> Iterator[ServerProcess]:
    server = ServerProcess(served_by)
    try:
        server.start()
        yield server
    finally:
        server.close()


class MountedDevice:
    """Reads, writes and fsync go through the file in the mount, past the page cache. Discards go by the socket: a
    punched hole must read as zeros, where a discard leaves the edges alone and shows an origin again."""

    def __init__(self, path: Path, client: ControlClient) -> None:
        self._client = client
        self._path = path
        self._limiter = trio.CapacityLimiter(100)
        with _system_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)

    @property
    def size_bytes(self) -> int:
        return os.stat(self._fd).st_size

    async def read(self, offset: int, length: int) -> bytes:
        return await self._run(lambda: os.pread(self._fd, length, offset))

    async def write(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            piece = data[done:]
            done += await self._run(lambda piece=piece, done=done: os.pwrite(self._fd, piece, offset + done))  # type: ignore[misc]

    async def discard(self, offset: int, length: int) -> None:
        remote = await self._client.open(self._path.name)
        try:
            await remote.discard(offset, length)
        finally:
            await remote.aclose()

    async def flush(self) -> None:
        await self._run(lambda: os.fsync(self._fd))

    async def _run(self, call: Callable[[], T]) -> T:
        with _system_errors(self._path):
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def aclose(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(os.close, fd)


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_oserror(error, str(path)) from None


class MountedBackend:
    """Verbs by one control client, devices opened as files of the mount, their discards by the server's own."""

    def __init__(self, server: ServerProcess, client: ControlClient, verbs: ControlClient) -> None:
        self._server = server
        self._client = client
        self._verbs = verbs

    def __getattr__(self, name: str) -> object:
        return getattr(self._verbs, name)

    async def open(self, name: str) -> OpenDevice:
        return await trio.to_thread.run_sync(MountedDevice, self._server.mount / name, self._client)


class ServerMachine:
    kernel = (6, 1)

    def __init__(self, server: ServerProcess, client: ControlClient, verbs: ControlClient | None = None) -> None:
        """`verbs` is who is asked for all but I/O, if not the server itself."""
        self._server = server
        self._client = client
        self._backend = MountedBackend(server, client, verbs or client)

    @property
    def backend(self) -> Backend:
        return self._backend  # type: ignore[return-value]  # the rest of it is the client's

    async def disk(self, size_bytes: int, *, discard: bool = False) -> Disk:
        self._server.nr_disks += 1
        return FileDisk(self._server.directory / f"disk{self._server.nr_disks}", size_bytes)

    async def elapse(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def set_no_space_timeout(self, seconds: int) -> None:
        """A server takes it when it starts."""
        if seconds != self._server.no_space_timeout:
            self._server.no_space_timeout = seconds
            await self._client.aclose()
            await trio.to_thread.run_sync(self._server.restart)

    async def clean(self) -> None:
        try:
            await remove_devices(self.backend)
        except (ThinfsError, AssertionError):
            await self._client.aclose()
            await trio.to_thread.run_sync(self._server.restart)
            raise

    async def set_back(self) -> None:
        await self.set_no_space_timeout(DEFAULT_NO_SPACE_TIMEOUT)
        for path in self._server.directory.glob("disk*"):
            path.unlink()


@contextlib.asynccontextmanager
async def server_machine(server: ServerProcess) -> AsyncIterator[Machine]:
    async with open_control_client(paths.socket_path(str(server.mount))) as client:
        machine = ServerMachine(server, client)
        try:
            yield machine
        finally:
            with trio.CancelScope(shield=True):
                await machine.set_back()
