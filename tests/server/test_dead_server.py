"""A server that was killed while it waited for itself: the next one, and the drop-in, end its connection."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import SECONDS, TOP, Machine, machine, mounted
from thinfs.dead_server import end_connection, holds_on, let_go

__all__ = ["machine", "mounted"]


@pytest.fixture
def dead(mounted: Machine) -> Iterator[int]:
    """Its process id: it has been killed, and is not gone."""
    if os.geteuid() != 0:
        pytest.skip("mount(2) takes root")
    command = [sys.executable, "-m", "tests.server.stuck_server", str(mounted.mount_dir)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(mounted.environment), cwd=TOP)
    reaper = threading.Thread(target=server.wait)  # which a server in the background has not got
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "stuck\n"
        server.kill()
        reaper.start()
        yield server.pid
    finally:
        end_connection(str(mounted.mount_dir))
        server.kill()
        if reaper.ident is not None:
            reaper.join(SECONDS)
        assert server.stdout is not None
        server.stdout.close()
        subprocess.run(["umount", "-l", str(mounted.mount_dir)], capture_output=True, check=False)


def until_it_holds_on(pid: int) -> None:
    for _ in range(1000):
        if holds_on(pid):
            return
        threading.Event().wait(0.01)
    pytest.fail(f"{pid} did not hold on")


def test_the_next_server_ends_its_connection(dead: int, mounted: Machine) -> None:
    until_it_holds_on(dead)
    served = mounted.thinfs("serve")
    assert (served.stdout, served.returncode) == ("", 0)
    assert not Path(f"/proc/{dead}").exists()
    assert mounted.prints("ls") == "No devices found\n"


def test_the_drop_in_does_not_wait_for_its_answer(dead: int, mounted: Machine) -> None:
    until_it_holds_on(dead)
    assert mounted.prints("ls") == "No devices found\n"


def test_stop_says_that_there_is_no_server(dead: int, mounted: Machine) -> None:
    until_it_holds_on(dead)
    assert mounted.thinfs("stop").stdout == f"thinfs stop: {mounted.mount_dir}: no server\n"


def test_a_living_process_is_not_waited_for_and_its_mount_is_left(mounted: Machine) -> None:
    mounted.prints("ls")
    assert not let_go(mounted.pid(), str(mounted.mount_dir), grace_seconds=0, seconds=5)
    assert mounted.prints("ls") == "No devices found\n"
