"""SIGKILL of a server while a file system on its device is being frozen, or is frozen: the machine goes on.

The freeze is made to wait: what the file system has yet to write finds its pool full, which queues.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run
from tests.system.conftest import Server
from tests.system.images import make_pool
from tests.thin_tools import accepted
from thinfs.dead_server import end_connection

SIZE = 256 * MIB
SECONDS = 30.0


def until(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.02)


def agents_of(pid: int) -> list[int]:
    """The processes that make the server's calls on block devices."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"agent_process" in Path(f"/proc/{child}/cmdline").read_bytes()]


def threads_that_wait_for_the_kernel(pid: int) -> int:
    states = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            states.append(Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0])
    return states.count("D")


@pytest.fixture
def small(server: Server) -> Iterator[Volumes]:
    """A volume with a mounted ext4, larger than its pool of 32 MiB, which queues what finds no space."""
    need_block_devices()
    need("mkfs.ext4")
    files = make_pool(server.directory, data_bytes=32 * MIB, metadata_bytes=4 * MIB)
    made = Volumes(server, files, f"thinfs-{os.getpid()}-")
    try:
        made.create_pool()
        made.create_thin("t", SIZE)
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", made.node("t"))
        (made.mounted_at("t") / "kept").write_text("kept\n")
        run("sync", "-f", server.directory / "on-t")
        yield made
    finally:
        end_connection(str(server.mount))  # whatever happened: nobody waits for it
        until_unmounted(server.directory / "on-t")


def until_unmounted(directory: Path) -> None:
    until(
        f"{directory} is unmounted",
        lambda: (
            f" {directory} " not in Path("/proc/mounts").read_text()
            or subprocess.run(["umount", str(directory)], capture_output=True, check=False).returncode == 0
        ),
    )


def check_what_is_left(small: Volumes) -> None:
    """A next server starts at once; the mount of the dead device goes, and what was synced is there."""
    directory = small.directory / "on-t"
    small.server.start()
    until_unmounted(directory)
    small.create_pool("2 skip_block_zeroing error_if_no_space")
    small.activate("t", 0, SIZE)
    assert (small.mounted_at("t", "-o", "ro") / "kept").read_text() == "kept\n"
    run("umount", directory)
    small.server.stop()
    accepted(small.pool_files.metadata)


def test_a_kill_while_a_freeze_waits_for_its_own_server(small: Volumes) -> None:
    assert small.server.process is not None
    (agent,) = agents_of(small.server.process.pid)
    run("dd", "if=/dev/zero", f"of={small.directory}/on-t/dirty", "bs=1M", "count=64", "status=none")
    suspend = subprocess.Popen(
        [*small.server.command, "dmsetup", "suspend", small.name("t")],
        env=small.server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until("the freeze waits", lambda: threads_that_wait_for_the_kernel(agent) > 0)
        assert threads_that_wait_for_the_kernel(small.server.process.pid) == 0
        small.server.kill()
        until("the process for block devices ends", lambda: not Path(f"/proc/{agent}").exists())
        assert suspend.wait(SECONDS) != 0
    finally:
        suspend.kill()
        suspend.wait()
    check_what_is_left(small)


def test_a_kill_while_a_file_system_is_frozen_thaws_it(small: Volumes) -> None:
    assert small.server.process is not None
    (agent,) = agents_of(small.server.process.pid)
    small.dmsetup("suspend", small.name("t"))
    small.server.kill()
    until("the process for block devices ends", lambda: not Path(f"/proc/{agent}").exists())
    until_unmounted(small.directory / "on-t")  # a frozen one would be busy
    check_what_is_left(small)


def test_the_process_for_block_devices_is_started_anew_and_thaws_what_the_one_before_froze(small: Volumes) -> None:
    assert small.server.process is not None
    (agent,) = agents_of(small.server.process.pid)
    small.dmsetup("suspend", small.name("t"))
    os.kill(agent, 9)
    small.dmsetup("resume", small.name("t"))
    (small.directory / "on-t/after").write_text("written\n")
    run("sync", "-f", small.directory / "on-t")
    assert agents_of(small.server.process.pid) not in ([], [agent])
    run("umount", small.directory / "on-t")
    small.server.stop()
    assert not Path(f"/proc/{agent}").exists()


def test_a_file_system_that_was_frozen_and_unmounted_lazily_is_thawed_by_the_next_server(small: Volumes) -> None:
    """The process that would have thawed it is killed too; somebody waits to write."""
    assert small.server.process is not None
    agents = agents_of(small.server.process.pid)
    directory = small.directory / "on-t"
    small.dmsetup("suspend", small.name("t"))
    writer = subprocess.Popen(["touch", directory / "new"], stderr=subprocess.DEVNULL)
    until("the writer waits", lambda: threads_that_wait_for_the_kernel(writer.pid) > 0)
    try:
        for pid in agents:
            os.kill(pid, 9)
        small.server.kill()
        run("umount", "-l", directory)
        assert writer.poll() is None
        small.server.start()
        until("the writer is let go", lambda: writer.poll() is not None)
    finally:
        writer.kill()
    assert "was frozen by a suspend: thawed" in small.server.log.read_text()
    small.create_pool("2 skip_block_zeroing error_if_no_space")
    small.activate("t", 0, SIZE)
    assert (small.mounted_at("t") / "kept").read_text() == "kept\n"
    run("umount", directory)
    small.server.stop()
