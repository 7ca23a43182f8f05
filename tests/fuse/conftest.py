"""Real mounts of in-memory images, each served by a process of its own that no failure leaves behind."""

import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from thinfs.fuse.mountpoint import DEV_FUSE
from thinfs.mountinfo import mounted_on

MIB = 1 << 20
TIMEOUT = 30.0  # until a hanging server fails its test; nothing waits for it otherwise
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Server:
    """A memory_server process. Call it with a command and a device name."""

    def __init__(self, directory: str, devices: Sequence[str], prefix: Sequence[str] = ()) -> None:
        self.directory = directory
        self.prefix = tuple(prefix)
        self._buffer = b""
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.fuse.memory_server", directory, *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while b"\n" not in self._buffer:
            assert poll.poll(TIMEOUT * 1000), "the server does not answer"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, f"the server ended with status {self.process.wait()}"
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def __call__(self, do: str, name: str = "vol", **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "name": name, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.line())
        return answer

    def path(self, name: str = "vol") -> str:
        return os.path.join(self.directory, name)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A client of the same user as the server."""
        return subprocess.run([*self.prefix, *command], capture_output=True, text=True, timeout=TIMEOUT)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        while mounted_on(self.directory) is not None:
            lazily_unmount(self.directory, self.prefix)


def lazily_unmount(directory: str, prefix: Sequence[str] = ()) -> None:
    root = os.geteuid() == 0 and not prefix
    subprocess.run([*prefix, *(("umount", "-l") if root else ("fusermount3", "-u", "-z")), directory], check=True)


def why_not_fuse() -> str | None:
    if not os.access(DEV_FUSE, os.R_OK | os.W_OK):
        return f"{DEV_FUSE} may not be opened"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


@contextmanager
def scratch_directory(owner: int | None = None) -> Iterator[str]:
    """Not pytest's tmp_path: an ordinary user could not reach it."""
    directory = os.path.realpath(tempfile.mkdtemp(prefix="thinfs-test-"))
    try:
        if owner is not None:
            os.chown(directory, owner, -1)
        yield directory
    finally:
        os.rmdir(directory)


@pytest.fixture
def mountpoint_directory() -> Iterator[str]:
    with scratch_directory() as directory:
        yield directory


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start a server on a directory; the first line it prints is read and checked."""
    reason = why_not_fuse()
    if reason is not None:
        pytest.skip(f"FUSE is not usable: {reason}")
    with ExitStack() as stack:

        def start(directory: str, devices: Sequence[str], prefix: Sequence[str] = (), expect: str = "ready") -> Server:
            server = Server(directory, devices, prefix)
            stack.callback(server.close)
            assert server.line() == expect
            return server

        yield start


@pytest.fixture
def server(mountpoint_directory: str, start: Callable[..., Server]) -> Server:
    """`vol` of 16 MiB, `other` of 1 MiB, `odd` of one block and a half."""
    return start(mountpoint_directory, [f"vol={16 * MIB}", f"other={MIB}", "odd=100352"])


def as_nobody() -> tuple[str, ...]:
    """What runs a command as an ordinary user; skips where that cannot work."""
    if os.geteuid() != 0:
        pytest.skip("already run by an ordinary user")
    if os.stat(DEV_FUSE).st_mode & 0o006 != 0o006:
        pytest.skip(f"{DEV_FUSE} is not open to ordinary users; as root: chmod 0666 {DEV_FUSE}")
    for tool in ("setpriv", "fusermount3"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    user = pwd.getpwnam("nobody")
    prefix = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    probe = [*prefix, sys.executable, "-c", "import tests.fuse.memory_server"]
    if subprocess.run(probe, cwd=PROJECT, capture_output=True).returncode != 0:
        pytest.skip("an ordinary user cannot read this checkout")
    return prefix


@pytest.fixture
def ordinary_server(start: Callable[..., Server]) -> Iterator[Server]:
    prefix = as_nobody()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory(pwd.getpwnam("nobody").pw_uid))
        server = Server(directory, [f"vol={16 * MIB}"], prefix)
        stack.callback(server.close)
        assert server.line() == "ready"
        yield server
