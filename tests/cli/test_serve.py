"""thinfs serve and thinfs stop: starting, being one only, ending and leaving nothing."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import SECONDS, TOP, Machine
from thinfs.mountinfo import mounted_on

TABLE = "0 131072 thin-pool metadata data 128 32 1 skip_block_zeroing"


def make_pool_files(directory: Path) -> None:
    for name, size in (("metadata", 4 << 20), ("data", 64 << 20)):
        (directory / name).touch()
        os.truncate(directory / name, size)


def ended(machine: Machine) -> None:
    assert mounted_on(str(machine.mount_dir)) is None
    left = {path.name for path in machine.mount_dir.parent.iterdir()}
    assert left - {"metadata", "data"} <= {"dm.lock", "dm.log"}


def test_the_first_command_starts_the_server_and_the_devices_are_files(mounted: Machine) -> None:
    make_pool_files(mounted.mount_dir.parent)
    mounted.prints("create", "p", "--table", TABLE)
    mounted.prints("message", "p", "0", "create_thin 1")
    mounted.prints("create", "t", "--table", "0 65536 thin /dev/mapper/p 1")
    thin = mounted.mount_dir / "t"
    assert thin.stat().st_size == 65536 * 512
    with thin.open("r+b", buffering=0) as image:
        image.write(b"hello" + bytes(4091))
        os.fsync(image.fileno())
        assert "t                " in mounted.prints("info", "-c")
        refusal = mounted.dmsetup("remove", "t")
        assert refusal.stdout.splitlines()[0] == "device-mapper: remove ioctl on t  failed: Device or resource busy"
        stop = mounted.thinfs("stop")
        assert (stop.stdout, stop.returncode) == ("thinfs stop: in use: t (open 1 time)\n", 1)
    assert mounted.prints("status", "t") == "0 65536 thin 128 127\n"
    stop = mounted.thinfs("stop")
    assert (stop.stdout, stop.returncode) == ("", 0)
    ended(mounted)


def test_a_link_to_an_image_file_is_that_device(mounted: Machine) -> None:
    """Opened as a file of the machine it would wait for the very thread that reads it, for ever."""
    make_pool_files(mounted.mount_dir.parent)
    mounted.prints("create", "p", "--table", TABLE)
    mounted.prints("message", "p", "0", "create_thin 1")
    info = mounted.prints("create", "t", "--table", "0 65536 thin /dev/mapper/p 1")
    link = mounted.mount_dir.parent / "link"
    link.symlink_to(mounted.mount_dir / "t")
    mounted.prints("create", "l", "--table", f"0 2048 linear {link} 128")
    minor = mounted.prints("info", "-c", "--noheadings", "-o", "minor", "t").strip()
    assert mounted.prints("table", "l").split()[3].partition(":")[2] == minor, info
    with (mounted.mount_dir / "l").open("r+b", buffering=0) as image:
        image.write(b"through the link")
        os.fsync(image.fileno())
    with (mounted.mount_dir / "t").open("rb", buffering=0) as image:
        image.seek(65536)
        assert image.read(16) == b"through the link"
    refusal = mounted.dmsetup("load", "t", "--table", f"0 2048 linear {mounted.mount_dir.parent / 'link'} 0")
    assert refusal.returncode == 1
    assert "t: cannot stand on t" in refusal.stdout


def test_commands_that_start_the_server_together_start_one(mounted: Machine) -> None:
    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda _: mounted.prints("ls"), range(6)))
    assert outputs == ["No devices found\n"] * 6
    assert mounted.log().count("serving") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(mounted: Machine, number: signal.Signals) -> None:
    make_pool_files(mounted.mount_dir.parent)
    mounted.prints("create", "p", "--table", TABLE)
    mounted.prints("message", "p", "0", "create_thin 1")
    pidfd = os.pidfd_open(mounted.pid())
    signal.pidfd_send_signal(pidfd, number)
    signal_seen = mounted.run("flock", "--shared", f"{mounted.mount_dir}.lock", "true")
    os.close(pidfd)
    assert signal_seen.returncode == 0
    ended(mounted)
    mounted.prints("create", "p", "--table", TABLE)
    assert mounted.dmsetup("message", "p", "0", "create_thin 1").stdout.startswith(
        "device-mapper: message ioctl on p  failed: File exists\n"
    )


def test_a_killed_server_leaves_nothing_that_hinders_the_next(mounted: Machine) -> None:
    make_pool_files(mounted.mount_dir.parent)
    mounted.prints("create", "p", "--table", TABLE)
    pidfd = os.pidfd_open(mounted.pid())
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    mounted.run("flock", "--shared", f"{mounted.mount_dir}.lock", "true")
    mounted.prints("create", "p", "--table", TABLE)
    assert mounted.thinfs("stop").returncode == 0
    mounted.mount_dir.rmdir()  # made by the first, which could not remove it
    ended(mounted)


def test_a_second_server_is_refused_and_names_the_first(mounted: Machine) -> None:
    assert mounted.thinfs("serve").returncode == 0
    second = mounted.thinfs("serve")
    assert second.returncode == 1
    assert second.stdout == f"thinfs serve: {mounted.mount_dir}: served already, by process {mounted.pid()}\n"


def test_the_server_in_the_background_holds_none_of_its_starter_s_pipes(mounted: Machine) -> None:
    # `run` reads both streams to their end: it would wait for the server if that held them.
    assert mounted.thinfs("serve").stdout == ""


def test_in_the_foreground_the_service_manager_is_told_when_it_is_ready(mounted: Machine, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        manager.settimeout(SECONDS)
        command = [sys.executable, "-m", "thinfs.cli.main", "serve", "--foreground"]
        environment = {**mounted.environment, "NOTIFY_SOCKET": f"{tmp_path}/notify"}
        with subprocess.Popen(command, env=environment, cwd=TOP, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert manager.recv(100) == b"READY=1"
                assert mounted.prints("ls") == "No devices found\n"
                server.terminate()
                assert manager.recv(100) == b"STOPPING=1"
                assert server.wait(SECONDS) == 0
            finally:
                server.kill()
            assert server.stderr is not None
            assert "level=INFO logger=thinfs.server.daemon ended" in server.stderr.read()


def test_stop_without_a_server_says_so(machine: Machine) -> None:
    stop = machine.thinfs("stop")
    assert (stop.stdout, stop.returncode) == (f"thinfs stop: {machine.mount_dir}: no server\n", 1)


def test_a_directory_that_is_not_empty_is_refused_in_one_line(mounted: Machine) -> None:
    mounted.mount_dir.mkdir()
    (mounted.mount_dir / "file").touch()
    done = mounted.thinfs("serve")
    assert done.returncode == 1
    assert done.stdout.startswith(f"thinfs serve: {mounted.mount_dir}: not empty")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(("words", "status"), [((), 2), (("frobnicate",), 2), (("--help",), 0)])
def test_the_table_of_commands_is_shown(machine: Machine, words: tuple[str, ...], status: int) -> None:
    done = machine.thinfs(*words)
    assert done.returncode == status
    assert "  serve " in done.stdout
