"""Server processes of their own for the command line: over the fake backend, or the real thing on FUSE."""

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
SECONDS = 60


@dataclass(frozen=True)
class Machine:
    """A directory DIR, and commands run with THINFS_MOUNT=DIR."""

    mount_dir: Path
    environment: Mapping[str, str]

    def run(self, *command: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Both streams together in `stdout`, as containerd reads them."""
        return subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(self.environment),
            cwd=cwd or self.mount_dir.parent,
            timeout=SECONDS,
        )

    def thinfs(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "thinfs.cli.main", *words)

    def dmsetup(self, *words: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "thinfs.cli.dmsetup", *words, stdin=stdin, cwd=cwd)

    def prints(self, *words: str, stdin: str = "", cwd: Path | None = None) -> str:
        done = self.dmsetup(*words, stdin=stdin, cwd=cwd)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def pid(self) -> int:
        return int(Path(f"{self.mount_dir}.lock").read_text())

    def log(self) -> str:
        path = Path(f"{self.mount_dir}.log")
        return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """No server runs."""
    mount_dir = tmp_path / "dm"
    environment = {**os.environ, "THINFS_MOUNT": str(mount_dir), "PYTHONPATH": str(TOP)}
    environment.pop("NOTIFY_SOCKET", None)
    return Machine(mount_dir, environment)


@pytest.fixture
def faked(machine: Machine) -> Iterator[Machine]:
    """A server over the fake backend runs."""
    command = [sys.executable, "-m", "tests.server.fake_server", str(machine.mount_dir)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(machine.environment), cwd=TOP)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield machine
        server.terminate()
        assert server.stdout.read() == "wound up\n"
        assert server.wait(SECONDS) == 0
        assert not Path(f"{machine.mount_dir}.sock").exists()
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


@pytest.fixture
def mounted(machine: Machine) -> Iterator[Machine]:
    """The real thing may be started; it is gone afterwards."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error.strerror}")
    try:
        yield machine
    finally:
        _end(machine)


def _end(machine: Machine) -> None:
    lock = Path(f"{machine.mount_dir}.lock")
    if not lock.exists() or not lock.read_text():
        return
    if machine.thinfs("stop", "--force").returncode != 0:
        try:
            pidfd = os.pidfd_open(machine.pid())
        except ProcessLookupError:
            return
        # A process of that number that is another one by now serves nothing of ours.
        if str(machine.mount_dir).encode() in Path(f"/proc/{machine.pid()}/cmdline").read_bytes():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    subprocess.run(["umount", "-l", str(machine.mount_dir)], capture_output=True, check=False)
