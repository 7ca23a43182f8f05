"""A server of the test's own, with its drop-in and its mount, gone afterwards whatever happened."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_RUN = "from thinfs.cli.main import main; main()"


@dataclass(slots=True)
class Server:
    """`thinfs serve --foreground` on `mount`; start it again after a kill to see what is left."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """`thinfs`."""
        return [sys.executable, "-c", _RUN]

    @property
    def mount(self) -> Path:
        return self.directory / "mnt"

    def start(self) -> None:
        """Returns when the server says READY=1, as it would to systemd."""
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        self.environment = {**os.environ, "THINFS_MOUNT": str(self.mount), "THINFS_PURE": "0"}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log.open("ab") as log:
            ready.bind(str(notify))
            ready.settimeout(60)
            self.process = subprocess.Popen(
                [*self.command, "serve", "--mount", str(self.mount), "--foreground"],
                env={**self.environment, "NOTIFY_SOCKET": str(notify)},
                stdout=log,
                stderr=log,
            )
            assert b"READY=1" in ready.recv(4096), self.log.read_text()

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of thinfs, as a process of its own."""
        return subprocess.run(
            [*self.command, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )

    def dmsetup(self, *words: str) -> str:
        """What the drop-in printed; it must have succeeded."""
        done = self.run("dmsetup", *words)
        assert done.returncode == 0, f"dmsetup {words}: exit {done.returncode}: {done.stdout}"
        return done.stdout

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """SIGTERM, and the end of the process."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()
        self.process = None


@contextmanager
def running_server(directory: Path) -> Iterator[Server]:
    """A server of `directory`; neither it nor its mount is there afterwards, even if it never answered."""
    made = Server(directory)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.process.terminate()
            try:
                made.process.wait(30)
            except subprocess.TimeoutExpired:
                made.kill()
        # not os.path.ismount: the mount of a killed server cannot be looked at
        if f" {made.mount} " in Path("/proc/self/mounts").read_text():
            subprocess.run(["fusermount3", "-u", "-z", str(made.mount)], check=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path) as made:
        yield made
