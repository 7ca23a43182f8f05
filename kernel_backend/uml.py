"""User-Mode Linux as an ordinary process: which kernels there are, how one is started, how it ends.

Promises: images, shared memory and console are anonymous memory, and what the boot needs in the file system is
unlinked once it is up, so that nothing is left after any end of this process, SIGKILL included; a guest
ends with its runner (its agent sees the end of the channel) or by `kill`.
Never: needs root, a network, or a path that the caller must choose.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_backend import judges, xstate
from thinfs.dm import ioctl

PACKAGE: Final = Path(__file__).resolve().parent
_SPEC: Final = Path(ioctl.__file__).resolve().parents[1]  # thinfs
AGENT_PYTHON: Final = "/usr/bin/python3"  # the environment's own may be unreadable or hidden in the guest
_AGENT_FILES: Final = (
    "__init__", "guest_agent", "guest_loops", "batch", "device_mapper", "device_nodes", "control", "block_io",
)  # fmt: skip
_SPEC_FILES: Final = ("__init__", "dm/__init__", "dm/ioctl")  # of thinfs: standard library only
_HIDDEN: Final = ("/dev", "/proc", "/sys", "/run")  # the guest mounts its own there
_HELPERS_END_SECONDS: Final = 5.0
_PREFIX: Final = "thinfs-guest-"


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel that can be started. `directory` is where: an interpreter named there is found relative to it."""

    name: str
    program: str
    module_root: str
    directory: str | None = None
    libraries: str | None = None
    # Has it the driver that shows a file of the host as /dev/mmapper? If not, the shared memory is its last disk.
    mmapper: bool = True
    moves_on: bool = False  # its suite has other versions with time: then it cannot be had, and its tests are skipped

    @property
    def missing(self) -> str | None:
        """What to do about its absence, in a line; None when it is there."""
        program = os.path.join(self.directory or "/", self.program)
        if os.access(program, os.X_OK):
            return None
        if self.directory is None:
            return f"no kernel {self.name}: {program} is absent, apt-get install user-mode-linux"
        return f"no kernel {self.name}: {program} is absent, run python3 -m kernel_backend.fetch kernel-{self.name}"


def _judge(name: str, **other: bool) -> GuestKernel:
    place = judges.directory() / f"kernel-{name}"
    return GuestKernel(
        name, "./linux.uml", f"{place}/usr/lib/uml/modules", directory=str(place), libraries="lib", **other
    )


KERNEL_6_1: Final = _judge("6.1")
KERNEL_6_12: Final = _judge("6.12")
KERNEL_7_2: Final = _judge("7.2", mmapper=False, moves_on=True)
KERNELS: Final = {kernel.name: kernel for kernel in (KERNEL_6_1, KERNEL_6_12, KERNEL_7_2)}
# Whatever version this machine has, if any: no judge, but what must hold for every kernel holds for it.
INSTALLED: Final = GuestKernel("installed", "/usr/bin/linux.uml", "/usr/lib/uml/modules")


def disk_name(index: int) -> str:
    return f"ubd{chr(ord('a') + index)}"


def memory_file(name: str, size_bytes: int) -> int:
    """A descriptor of a sparse file in memory, which the guest opens as /proc/self/fd/N."""
    descriptor = os.memfd_create(name)
    os.truncate(descriptor, size_bytes)
    return descriptor


def _scratch_directory() -> str:
    """Where the guest finds its agent: not below what it hides."""
    for directory in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        real = os.path.realpath(directory)
        seen = not real.startswith(tuple(f"{hidden}/" for hidden in _HIDDEN)) and " " not in real
        if seen and os.access(real, os.W_OK | os.X_OK):
            return real
    raise FileNotFoundError("no directory for temporary files that a guest can see: set TMPDIR")


def _memory_directory() -> str:
    """Where UML makes the file of its memory (unlinked at once): it must be allowed to execute from it."""
    for directory in ("/dev/shm", tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if os.access(directory, os.W_OK | os.X_OK) and not os.statvfs(directory).f_flag & os.ST_NOEXEC:
            return directory
    raise FileNotFoundError("no directory for the guest's memory without noexec: set TMPDIR")


def remove_leftovers() -> None:
    """Boot directories of runners that died while their guest booted; a live one holds its lock."""
    for path in Path(_scratch_directory()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid():
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(lock)


def processes_of_group(group: int) -> list[int]:
    """Process ids of a process group, those that ended and were not reaped left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    found.append(int(entry))
    return found


def group_ends(group: int, timeout: float) -> bool:
    """Wait until no process of the group is left; none of them need be a child of this one."""
    deadline = time.monotonic() + timeout
    while pids := processes_of_group(group):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                os.close(handle)
                if not ended:
                    return False
    return True


def _boot_directory() -> tuple[str, int]:
    """A new directory and the lock on it; another runner's `remove_leftovers` may be quicker: then again."""
    while True:
        path = tempfile.mkdtemp(prefix=_PREFIX, dir=_scratch_directory())
        lock = -1
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path):
                return path, lock
        if lock >= 0:
            os.close(lock)


class Process:
    """A started guest: the process, its boot directory and its console."""

    def __init__(
        self, kernel: GuestKernel, channel: socket.socket, shared: int, images: Sequence[int | str], memory_mb: int
    ) -> None:
        """`images` are descriptors of memory files or paths, and become ubda, ubdb and so on (at most 8, or 7)."""
        if kernel.missing is not None:
            raise FileNotFoundError(kernel.missing)
        remove_leftovers()
        self._boot, self._lock = _boot_directory()
        self._console = memory_file("console", 0)
        self._reaped = False
        try:
            self._copy_agent()
            environment = self._environment(kernel)
            descriptors = [image for image in images if isinstance(image, int)]
            self._process = subprocess.Popen(
                self._command(kernel, channel.fileno(), shared, images, memory_mb),
                stdin=subprocess.DEVNULL,
                stdout=self._console,
                stderr=subprocess.STDOUT,
                pass_fds=(channel.fileno(), shared, *descriptors),
                start_new_session=True,  # one group to kill: helpers alone would hold the images' locks
                cwd=kernel.directory,
                env=environment,
            )
        except BaseException:
            self.finish_boot()
            os.close(self._console)
            raise

    def _copy_agent(self) -> None:
        """The checkout may have a path that a kernel command line cannot carry."""
        target = Path(self._boot, "agent", "kernel_backend")
        target.mkdir(parents=True)
        for name in _AGENT_FILES:
            shutil.copyfile(PACKAGE / f"{name}.py", target / f"{name}.py")
        spec = target.parent / "thinfs"
        (spec / "dm").mkdir(parents=True)
        for name in _SPEC_FILES:
            shutil.copyfile(_SPEC / f"{name}.py", spec / f"{name}.py")
        (target.parent / "__main__.py").write_text("from kernel_backend.guest_agent import main\n\nmain()\n")

    def _command(
        self, kernel: GuestKernel, channel: int, shared: int, images: Sequence[int | str], memory_mb: int
    ) -> list[str]:
        def path(image: int | str) -> str:
            return f"/proc/self/fd/{image}" if isinstance(image, int) else image

        size = os.fstat(shared).st_size
        disks = [path(image) for image in images]
        if kernel.mmapper:
            window = [f"iomem=mmapper,{path(shared)}", "thinfs.window=/dev/mmapper"]
        else:
            window = [f"thinfs.window=/dev/{disk_name(len(disks))}"]
            disks.append(path(shared))
        return [
            # `noreboot` stands before `init=`, which forgets the words for init that came before it
            kernel.program, "noreboot", f"mem={memory_mb}M", "rootfstype=hostfs", "rootflags=/", "ro",
            f"init={AGENT_PYTHON}", "con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{channel}",
            f"uml_dir={self._boot}", "umid=g", "selinux=0", "panic=-1", "pty.legacy_count=0", "random.trust_cpu=1",
            "quiet",
            "initcall_blacklist=raid6_select_algo,calibrate_xor_blocks,init_zswap,strp_dev_init",
            *window, f"thinfs.shared={size}",
            *(f"ubd{index}d={disk}" for index, disk in enumerate(disks)),
            "--", "-ISB", f"{self._boot}/agent",
        ]  # fmt: skip

    def _environment(self, kernel: GuestKernel) -> dict[str, str]:
        environment = {**os.environ, "TMPDIR": _memory_directory()}
        if kernel.libraries is not None:
            environment["LD_LIBRARY_PATH"] = kernel.libraries
        if xstate.needed():
            shim = Path(self._boot, "xstate_shim.so")
            xstate.build(shim)
            environment["LD_PRELOAD"] = str(shim)
        return environment

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def finish_boot(self) -> None:
        """Remove what only the boot needed, the agent's files and UML's own directory."""
        if self._lock >= 0:
            shutil.rmtree(self._boot, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def console(self) -> str:
        size = os.fstat(self._console).st_size
        return os.pread(self._console, size, 0).decode(errors="replace")

    def wait(self, timeout: float) -> None:
        """Wait for its own end, then see to its helpers; killed when it takes longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """The end of the process and its helpers at any point, as a power cut that keeps the page cache."""
        if self._reaped:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        group_ends(self.pid, _HELPERS_END_SECONDS)  # the helpers hold the locks of the images until then
        self._reaped = True
        self.finish_boot()

    def close(self) -> None:
        self.kill()
        if self._console >= 0:
            os.close(self._console)
            self._console = -1
