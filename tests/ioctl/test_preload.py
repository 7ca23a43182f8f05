"""What a program under `thinfs run` sees: the control node, numbers of devices, errors of pointers, signals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ioctl.conftest import Run
from tests.system.conftest import Server
from thinfs.ioctl.environment import preload_library

PYTHON = "/usr/bin/python3"

PRELUDE = """
import ctypes, os, signal, stat, sys, threading, time
from kernel_backend.control import Control
from thinfs.dm.ioctl import Header
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
"""


def python(run: Run, text: str) -> str:
    return run(sys.executable, "-c", PRELUDE + text).stdout


def test_dmsetup_finds_device_mapper_where_the_kernel_has_none(run: Run, server: Server) -> None:
    dmsetup = shutil.which("dmsetup", path="/usr/sbin:/sbin")
    if dmsetup is None:
        pytest.skip("dmsetup is not installed")
    assert "thin-pool        v1." in run(dmsetup, "targets").stdout
    run(dmsetup, "create", "pre-z", "--table", "0 8192 zero")
    assert run(dmsetup, "table", "pre-z").stdout == "0 8192 zero \n"
    assert server.dmsetup("table", "pre-z") == "0 8192 zero \n"
    run(dmsetup, "remove", "pre-z")
    assert server.dmsetup("ls") == "No devices found\n"


def test_the_control_node_is_a_character_device_and_the_listings_name_it(run: Run) -> None:
    out = python(
        run,
        """
info = os.stat("/dev/mapper/control")
print(stat.S_ISCHR(info.st_mode), os.major(info.st_rdev), os.minor(info.st_rdev))
fd = os.open("/dev/mapper/control", os.O_RDWR)
print(stat.S_ISCHR(os.fstat(fd).st_mode), os.access("/dev/mapper/control", os.W_OK))
for path in ("/proc/misc", "/proc/devices"):
    with open(path) as file:
        print([line.split()[1] for line in file if "device-mapper" in line])
""",
    )
    assert out.splitlines() == ["True 10 236", "True True", "['device-mapper']", "['device-mapper']"]


def test_a_wild_pointer_is_efault_and_another_file_s_ioctl_is_untouched(run: Run) -> None:
    out = python(
        run,
        """
import errno
fd = os.open("/dev/mapper/control", os.O_RDWR)
for pointer in (0, 16, 0x7fffffff0000):
    print(libc.ioctl(fd, 0xC138FD07, pointer), errno.errorcode[ctypes.get_errno()])
null = os.open("/dev/null", os.O_RDWR)
print(libc.ioctl(null, 0xC138FD07, 0), errno.errorcode[ctypes.get_errno()])
a, b = os.pipe()
print(libc.ioctl(a, 0xC138FD07, 0), errno.errorcode[ctypes.get_errno()])
""",
    )
    assert out.splitlines() == ["-1 EFAULT"] * 3 + ["-1 ENOTTY"] * 2


def test_a_wait_delays_neither_other_threads_nor_a_signal(run: Run) -> None:
    out = python(
        run,
        """
control = Control()
control.ioctl("create", "w")
control.load("w", "0 8 zero")
control.ioctl("suspend", "w")
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
ended = []
def wait():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    try:
        control.ioctl("wait", "w", event_nr=0)
    except OSError as error:
        ended.append(error.errno)
thread = threading.Thread(target=wait)
thread.start()
for _ in range(50):
    control.ioctl("status", "w")
print(thread.is_alive())
while thread.is_alive():
    signal.pthread_kill(thread.ident, signal.SIGUSR1)
    thread.join(0.05)
print(ended)
waiter = threading.Thread(target=lambda: ended.append(control.ioctl("wait", "w", event_nr=0).name))
waiter.start()
time.sleep(0.2)
control.ioctl("remove", "w")
waiter.join()
print(ended)
""",
    )
    assert out.splitlines() == ["True", "[4]", "[4, 'w']"]


def test_a_control_descriptor_is_inherited_and_outlives_the_server(run: Run, server: Server) -> None:
    """As dmeventd's and dockerd's do: the next ioctl goes to the next server."""
    program = """
import subprocess
control = Control()
os.set_inheritable(control._fd, True)
pid = os.fork()
if not pid:
    control.ioctl("create", "of-a-child")
    os._exit(0)
os.waitpid(pid, 0)
print(control.names(), flush=True)
sys.stdin.readline()
try:
    control.names()
except OSError as error:
    print(error.strerror, flush=True)
sys.stdin.readline()
print(control.names(), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-m", "thinfs.cli.main", "run", "--", sys.executable, "-c", PRELUDE + program],
        env=server.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "['of-a-child']\n"
        server.kill()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "No such device\n"
        server.start()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "[]\n"
    assert process.returncode == 0


def test_a_stat_of_a_device_has_the_number_that_its_table_s_users_write(run: Run, server: Server) -> None:
    server.dmsetup("create", "pre-n", "--table", "0 8192 zero")
    number = server.dmsetup("info", "-c", "--noheadings", "-o", "major,minor", "pre-n").strip()
    node = (
        f"/dev/mapper/{'pre-n'}"
        if os.geteuid() == 0 and os.path.exists("/dev/mapper/pre-n")
        else server.mount / "pre-n"
    )
    out = python(
        run,
        f"""
number = {number!r}
for info in (os.stat({str(node)!r}), os.fstat(os.open({str(node)!r}, os.O_RDONLY))):
    print(stat.S_ISBLK(info.st_mode), f"{{os.major(info.st_rdev)}}:{{os.minor(info.st_rdev)}}" == number)
minor = number.split(":")[1]
print(len(os.read(os.open(f"/dev/dm-{{minor}}", os.O_RDONLY), 512)))
os.mknod({str(server.directory / "made")!r}, stat.S_IFBLK | 0o600, os.makedev(*map(int, number.split(":"))))
print(os.stat({str(server.directory / "made")!r}).st_rdev == os.stat({str(node)!r}).st_rdev)
""",
    )
    assert out.splitlines() == ["True True", "True True", "512", "True"]
    assert os.readlink(server.directory / "made") in (os.path.realpath(node), str(node))


def test_the_holders_of_a_device_are_those_that_use_it(run: Run, server: Server) -> None:
    server.dmsetup("create", "pre-a", "--table", "0 8192 zero")
    server.dmsetup("create", "pre-b", "--table", "0 4096 linear /dev/mapper/pre-a 0")
    server.dmsetup("create", "pre-c", "--table", "0 4096 linear /dev/mapper/pre-a 4096")
    minors = [server.dmsetup("info", "-c", "--noheadings", "-o", "minor", f"pre-{name}").strip() for name in "abc"]
    out = python(
        run,
        f"""
for minor in {minors}:
    print(sorted(os.listdir(f"/sys/block/dm-{{minor}}/holders")))
try:
    os.listdir("/sys/block/nosuch/holders")
except FileNotFoundError:
    print("as it was")
""",
    )
    assert out.splitlines() == [f"['dm-{minors[1]}', 'dm-{minors[2]}']", "[]", "[]", "as it was"]


def test_print_env_is_what_a_unit_s_environment_file_takes(server: Server) -> None:
    out = server.run("run", "--print-env").stdout.splitlines()
    assert out[:2] == [f"THINFS_MOUNT={server.mount}", f"LD_PRELOAD={preload_library()}"]


def test_run_says_in_one_line_what_it_cannot_do(run: Run, server: Server, tmp_path: Path) -> None:
    assert run("nosuch-program", status=127).stdout == "thinfs run: nosuch-program: No such file or directory\n"
    plain = tmp_path / "plain"
    plain.write_text("no program\n")
    assert run(str(plain), status=126).stdout == f"thinfs run: {plain}: Permission denied\n"
    done = server.run("run")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "thinfs run: error: no command"


def test_a_server_started_from_under_the_library_is_not_under_it(tmp_path: Path) -> None:
    environment = {**os.environ, "THINFS_MOUNT": str(tmp_path / "m"), "LD_PRELOAD": preload_library()}
    thinfs = [sys.executable, "-m", "thinfs.cli.main"]
    subprocess.run([*thinfs, "serve"], env=environment, check=True, timeout=60)
    try:
        pid = (tmp_path / "m.lock").read_text().strip()
        assert "_preload" not in Path(f"/proc/{pid}/maps").read_text()
    finally:
        subprocess.run([*thinfs, "stop"], env=environment, check=True, timeout=60)
