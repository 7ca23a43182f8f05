"""Another user in the directory where DIR lies: he listens on DIR.sock first, owns the lock, the log, DIR itself."""

import json
import os
import shutil
import signal
import socket
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import TOP, Machine

STRANGER = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user too")


@pytest.fixture
def shared() -> Iterator[Machine]:
    """No server runs; DIR would lie where anybody may write, as in /tmp."""
    directory = Path(tempfile.mkdtemp(prefix="thinfs-shared-", dir="/tmp"))
    directory.chmod(0o1777)
    environment = {**os.environ, "THINFS_MOUNT": str(directory / "dm"), "PYTHONPATH": str(TOP)}
    try:
        yield Machine(directory / "dm", environment)
    finally:
        shutil.rmtree(directory)


@contextmanager
def as_stranger(action: Callable[[int], None]) -> Iterator[int]:
    """`action(writer)` in a process of the stranger's, which then waits for its end; what it wrote can be read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            action(writer)
            os.close(writer)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        yield reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def listens(path: Path, question: str) -> Callable[[int], None]:
    """Bind `path`, say so, take one client, tell it `question`, and write down what it says."""

    def action(writer: int) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o777)
        os.write(writer, b"listening\n")
        client, _ = listener.accept()
        client.sendall(json.dumps({"need": question}).encode() + b"\n")
        while data := client.recv(65536):
            os.write(writer, data)

    return action


def until_closed(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, 65536), b""))


def test_the_drop_in_tells_a_stranger_nothing(shared: Machine) -> None:
    path = Path(f"{shared.mount_dir}.sock")
    with as_stranger(listens(path, "/etc/shadow")) as reader:
        assert os.read(reader, 65536) == b"listening\n"
        done = shared.dmsetup("ls")
        assert done.returncode == 1
        refusal = f"thinfs: {path}: who listens there is uid {STRANGER}, neither uid 0 nor root"
        assert done.stdout == f"{refusal}\nCommand failed.\n"
        assert until_closed(reader) == b""


@pytest.mark.parametrize("command", ["stop", "serve"])
def test_a_stranger_who_listens_is_neither_stopped_nor_taken_for_a_server(shared: Machine, command: str) -> None:
    path = Path(f"{shared.mount_dir}.sock")
    with as_stranger(listens(path, "x")) as reader:
        assert os.read(reader, 65536) == b"listening\n"
        done = shared.thinfs(command, *(["--if-needed"] if command == "serve" else []))
        assert done.returncode == 1
        assert done.stdout == (
            f"thinfs {command}: {path}: who listens there is uid {STRANGER}, neither uid 0 nor root\n"
        )
        assert until_closed(reader) == b""


@pytest.mark.parametrize("suffix", [".lock", ".log", ".sock", ""])
def test_what_a_stranger_has_put_there_is_not_used(shared: Machine, suffix: str) -> None:
    path = Path(f"{shared.mount_dir}{suffix}")
    if suffix == ".sock":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif suffix == "":
        path.mkdir()
    else:
        path.touch()
    os.chown(path, STRANGER, STRANGER)
    done = shared.thinfs("serve")
    assert done.returncode == 1
    assert f"{path}: belongs to uid {STRANGER}" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "READY" not in shared.log()
    assert os.stat(path).st_uid == STRANGER


def test_a_hard_link_and_a_fifo_are_no_log(shared: Machine) -> None:
    log = Path(f"{shared.mount_dir}.log")
    other = log.with_name("somebody's")
    other.write_text("of value\n")
    log.hardlink_to(other)
    assert "has 2 hard links" in shared.thinfs("serve").stdout
    assert other.read_text() == "of value\n"
    other.unlink()
    log.unlink()
    os.mkfifo(log)
    done = shared.thinfs("serve")
    assert done.returncode == 1
    assert str(log) in done.stdout and "Traceback" not in done.stdout


def test_the_server_is_not_started_from_the_directory_the_caller_is_in(shared: Machine) -> None:
    """A package of the stranger's, called as one of ours, is in the working directory."""
    (shared.mount_dir.parent / "thinfs").mkdir()
    (shared.mount_dir.parent / "thinfs/__init__.py").write_text("raise SystemExit('the code of a stranger')\n")
    (shared.mount_dir.parent / "trio.py").write_text("raise SystemExit('the code of a stranger')\n")
    environment = {name: value for name, value in shared.environment.items() if name != "PYTHONPATH"}
    alone = Machine(shared.mount_dir, environment)
    scripts = Path(sysconfig.get_path("scripts"))
    done = alone.run(str(scripts / "thinfs-dmsetup"), "ls")
    try:
        assert done.stdout == "No devices found\n"
    finally:
        alone.run(str(scripts / "thinfs"), "stop", "--force")
