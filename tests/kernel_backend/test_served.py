"""`thinfs serve --backend kernel` with the drop-in before it, on a kernel that has dm-thin: a guest's."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernel_backend.runner import Guest

_SCRIPT = """
set -e
export THINFS_MOUNT=/run/served PYTHONDONTWRITEBYTECODE=1
thinfs() { "$PYTHON" -c 'from thinfs.cli.main import main; main()' "$@"; }
thinfs serve --backend kernel
thinfs dmsetup create p --table "0 2097152 thin-pool $METADATA $DATA 128 0"
thinfs dmsetup message p 0 "create_thin 0"
thinfs dmsetup create t --table "0 8192 thin /dev/mapper/p 0"
printf hello | dd of=/dev/mapper/t conv=notrunc,fsync status=none
thinfs dmsetup status
thinfs dmsetup message p 0 "create_thin 0" || true
thinfs dmsetup info -c --noheadings -o name,open,attr
thinfs stop
echo "stopped; $(ls /dev/mapper | tr '\\n' ' ')"
thinfs serve --backend kernel
thinfs dmsetup remove t
thinfs dmsetup remove p
thinfs dmsetup ls
thinfs stop
"""


def test_the_drop_in_drives_the_kernels_own_dm_thin_whose_devices_outlive_the_server(guest: Guest) -> None:
    environment = [
        f"PYTHON={sys.executable}",
        f"PYTHONPATH={Path(__file__).parents[2]}",
        f"METADATA={guest.images[0].device}",
        f"DATA={guest.images[1].device}",
    ]
    done = guest.shell(["env", *environment, "sh", "-c", _SCRIPT], timeout=120)  # a dozen interpreters, one slow CPU
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "p: 0 2097152 thin-pool 0 420/4096 1/16384 - rw no_discard_passdown queue_if_no_space - 1024 ",
        "t: 0 8192 thin 128 127",
        "p:1:L--w",
        "t:0:L--w",
        "stopped; control p t ",
        "No devices found",
    ]
    assert "device-mapper: message ioctl on p  failed: File exists" in done.stderr
    assert guest.thin_check(guest.images[0]).returncode == 0


def test_on_a_machine_without_dm_thin_the_server_says_in_one_line_what_to_load(tmp_path: Path) -> None:
    if "device-mapper" in Path("/proc/misc").read_text():
        pytest.skip("this machine has a device-mapper")
    command = [sys.executable, "-c", "from thinfs.cli.main import main; main()", "serve", "--backend", "kernel"]
    done = subprocess.run([*command, "--mount", tmp_path / "mnt"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "modprobe dm-mod" in done.stderr or "needs root" in done.stderr
