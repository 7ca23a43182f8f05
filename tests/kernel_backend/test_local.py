"""The backend of this machine's own kernel, run where a kernel with dm-thin is at hand: in a guest."""

import sys
from pathlib import Path

import pytest
import trio

from kernel_backend.local import LocalDeviceMapper
from kernel_backend.runner import Guest
from kernel_backend.uml import AGENT_PYTHON
from thinfs.errors import AccessDenied, BackingMissing

CHECKOUT = Path(__file__).parents[2]


def test_the_local_backend_drives_the_kernel_it_runs_on(guest: Guest) -> None:
    version = guest.shell([AGENT_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]).stdout.split()
    if version != [str(number) for number in sys.version_info[:2]]:
        pytest.skip(f"{AGENT_PYTHON} is Python {'.'.join(version)}, and trio is installed for another")
    metadata, data = guest.images[0].device, guest.images[1].device
    path = f"{CHECKOUT}:{Path(trio.__file__).parents[1]}"
    probe = f"{CHECKOUT}/tests/kernel_backend/local_probe.py"
    done = guest.shell(["env", f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", AGENT_PYTHON, probe, metadata, data])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 2097152 thin-pool 0 419/4096 0/16384 - rw no_discard_passdown queue_if_no_space - 1024 ",
        "message p delete 9 0: No data available",
        r"['a\\x20b', 'control', 'p']",
        "remove t False: Device or resource busy",
        "['control']",
    ]


def test_without_dm_thin_the_error_says_what_to_do() -> None:
    if "device-mapper" in Path("/proc/misc").read_text():  # a node may be left without a driver
        pytest.skip("this machine has a device-mapper")
    with pytest.raises((BackingMissing, AccessDenied), match=r"modprobe dm-mod|needs root"):
        LocalDeviceMapper()
