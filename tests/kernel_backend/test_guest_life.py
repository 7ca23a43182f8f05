"""How guests begin and end: whatever ends their runner, nothing of them is left."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_backend import uml
from kernel_backend.channel import GuestFailed
from kernel_backend.runner import MIB, Guest

CHECKOUT = Path(__file__).parents[2]
NOBODY = 65534
IMAGES = (16 * MIB, 64 * MIB)

RUNNER = """
import sys, threading
from kernel_backend import channel
from kernel_backend.runner import Guest
from kernel_backend.uml import KERNELS, Process

def tell(pid):
    print(pid, flush=True)
    sys.stdin.read()

state = sys.argv[2]
if state == "booting":
    started = Process.__init__
    def start(process, *arguments):
        started(process, *arguments)
        tell(process.pid)
    Process.__init__ = start
guest = Guest(KERNELS[sys.argv[1]])
if state == "stuck":  # the thread that serves the channel waits for space, for ever
    metadata, data = (image.device for image in guest.images[:2])
    guest.create("p", f"0 128 thin-pool {metadata} {data} 128 0")
    guest.message("p", "create_thin 0")
    guest.create("t", "0 1280 thin /dev/mapper/p 0")
    thin = guest.open(guest.node("t"))
    event = guest.start("wait", "p", guest.info("p").event_nr)
    threading.Thread(target=guest.write_pattern, args=(thin, 0, 640 * 1024, 1), daemon=True).start()
    event.result()
tell(guest.pid)
"""


@pytest.fixture(params=sorted(uml.KERNELS))
def kernel(request: pytest.FixtureRequest) -> uml.GuestKernel:
    found = uml.KERNELS[request.param]
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


class Runner:
    """A process that holds a guest."""

    def __init__(self, kernel: uml.GuestKernel, state: str, temporary: Path) -> None:
        self.state = state
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, kernel.name, state],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        assert self.process.stdout is not None
        self.guest_pid = int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        if not uml.group_ends(self.guest_pid, 10):
            os.killpg(self.guest_pid, signal.SIGKILL)


@pytest.fixture(params=["booting", "idle", "stuck"])
def runner(request: pytest.FixtureRequest, kernel: uml.GuestKernel, tmp_path: Path) -> Iterator[Runner]:
    found = Runner(kernel, request.param, tmp_path)
    yield found
    found.close()


def test_a_killed_runner_takes_its_guest_along_even_one_that_boots_or_waits_for_space(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.process.kill()
    runner.process.wait()
    assert uml.group_ends(runner.guest_pid, 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if runner.state == "booting":
        uml.remove_leftovers()  # as the next guest does
    assert list(tmp_path.iterdir()) == []


def test_a_closed_guest_leaves_no_process_descriptor_or_file(
    kernel: uml.GuestKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nr_descriptors = len(os.listdir("/proc/self/fd"))
    with Guest(kernel, images=IMAGES) as guest:
        pid = guest.pid
        assert guest.ping(5) == 5
        assert list(tmp_path.iterdir()) == []
    assert uml.processes_of_group(pid) == []
    assert len(os.listdir("/proc/self/fd")) == nr_descriptors


def test_two_guests_live_side_by_side(kernel: uml.GuestKernel) -> None:
    with Guest(kernel, images=IMAGES) as one, Guest(kernel, images=IMAGES) as other:
        one.create("d", "0 128 error")
        assert [device.name for device in one.list()] == ["d"]
        assert other.list() == []


def test_a_killed_guest_fails_its_calls_and_leaves_its_images(kernel: uml.GuestKernel) -> None:
    with Guest(kernel, images=IMAGES) as guest:
        metadata, data = (image.device for image in guest.images)
        guest.create("p", f"0 131072 thin-pool {metadata} {data} 128 0")
        guest.message("p", "create_thin 5")
        waiting = guest.start("wait", "p", 0)
        guest.kill()
        with pytest.raises(GuestFailed, match="the guest is gone"):
            waiting.result()
        with pytest.raises(GuestFailed, match="the guest is gone"):
            guest.status("p")
        assert guest.thin_check(guest.images[0]).returncode == 0
        with Guest(kernel, images=[image.path for image in guest.images]) as successor:
            successor.create("p", f"0 131072 thin-pool {metadata} {data} 128 0")
            successor.create("t", "0 128 thin /dev/mapper/p 5")


def test_a_guest_that_does_not_boot_says_so_with_its_console(kernel: uml.GuestKernel) -> None:
    with pytest.raises(GuestFailed, match=r"boot: (?s:.*)console:\nToo few physical memory"):
        Guest(kernel, images=IMAGES, memory_mb=4)


def test_a_guest_whose_modules_are_not_there_names_the_module(kernel: uml.GuestKernel) -> None:
    without = dataclasses.replace(kernel, module_root="/nonexistent")
    with pytest.raises(GuestFailed, match=r"module md/dm-mod of [67]\.\S+: No such file"):
        Guest(without, images=IMAGES)


def test_an_image_that_is_not_there_ends_in_an_error_that_names_it(kernel: uml.GuestKernel) -> None:
    with Guest(kernel, images=["/nonexistent/image"]) as guest, pytest.raises(Exception, match="98:0"):
        guest.create("p", f"0 128 linear {guest.images[0].device} 0")


def test_a_kernel_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    absent = uml.GuestKernel("6.12", "./linux", "/nowhere", directory=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"run python3 -m kernel_backend\.fetch kernel-6\.12"):
        Guest(absent)


def test_what_a_runner_killed_during_the_boot_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "thinfs-guest-abc" / "agent").mkdir(parents=True)
    (tmp_path / "another").mkdir()
    uml.remove_leftovers()
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_a_command_may_take_longer_than_a_call(guest6_1: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def call(name: str, *arguments: object, own_thread: bool, timeout: float) -> tuple[int, str, str]:
        limits.append(timeout)
        return 0, "", ""

    with monkeypatch.context() as patch:
        patch.setattr(guest6_1._channel, "call", call)
        guest6_1.shell("true", timeout=300)
    assert limits[0] > 300


def test_an_ordinary_user_runs_guests(kernel: uml.GuestKernel) -> None:
    script = "import sys; from kernel_backend.runner import Guest; from kernel_backend.uml import KERNELS\n"
    script += "with Guest(KERNELS[sys.argv[1]]) as guest: print(guest.release)"
    command = [sys.executable, "-c", script, kernel.name]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
        allowed = subprocess.run([*command[:4], "test", "-r", str(CHECKOUT / "kernel_backend/runner.py")])
        if allowed.returncode:
            pytest.skip("the checkout cannot be read by an ordinary user")
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(kernel.name)
