"""PID 1 of the guest: mounts, loads modules, and answers the runner's calls until the runner is gone.

Promises: one JSON line in, one JSON line out, an OSError as its errno; a call marked as its own thread never
delays another; the end of the channel powers the guest off at once, whatever else is stuck.
Never: imports beyond the standard library, or writes to the host's file system (the root is read-only).
A line `@OFFSET:LENGTH` stands for a request in shared memory: the serial line hangs above ~3000 outstanding
bytes and costs 1-3 us a byte (docs/reference/guest.md, "Channel").
"""

import ctypes
import errno
import json
import mmap
import os
import queue
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Sequence
from typing import Any, Final

from kernel_backend.batch import Operation, OperationRunner, Outcome
from kernel_backend.block_io import BlockIO
from kernel_backend.device_mapper import KernelDeviceMapper
from kernel_backend.guest_loops import Loops

MODULES: Final = (
    "md/dm-mod", "md/dm-bufio", "md/dm-bio-prison", "md/persistent-data/dm-persistent-data",
    "md/dm-thin-pool", "md/dm-flakey", "md/dm-log-writes", "md/dm-zero", "md/dm-delay", "md/dm-dust", "block/loop",
)  # fmt: skip
_ESSENTIAL: Final = 5
_MOUNTS: Final = (
    ("proc", "/proc", "proc", ""),
    ("sys", "/sys", "sysfs", ""),
    ("dev", "/dev", "devtmpfs", ""),
    ("run", "/run", "tmpfs", "size=90%"),
)
_POWER_OFF: Final = 0x4321FEDC
_FINIT_MODULE: Final = 313
_SECTOR_BYTES: Final = 512

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount_all() -> None:
    for source, target, kind, data in _MOUNTS:
        try:
            _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()))
        except OSError as error:
            if error.errno != errno.EBUSY:  # the kernel mounts devtmpfs itself
                raise


def _load_module(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.syscall(_FINIT_MODULE, fd, b"", 0))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    finally:
        os.close(fd)


def power_off() -> None:
    """Without sync: a suspended device would make it wait for ever, and a killed guest has none either."""
    _libc.reboot(_POWER_OFF)


class Threads:
    """As many threads as there are calls that wait; idle ones are kept, starting one costs 2 ms here."""

    def __init__(self, work: Callable[[int, str, list[Any]], None]) -> None:
        self._work = work
        self._idle: list[queue.SimpleQueue[tuple[int, str, list[Any]]]] = []

    def run(self, number: int, call: str, arguments: list[Any]) -> None:
        """From the serving thread only."""
        if self._idle:
            inbox = self._idle.pop()
        else:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), daemon=True).start()
        inbox.put((number, call, arguments))

    def _serve(self, inbox: queue.SimpleQueue[tuple[int, str, list[Any]]]) -> None:
        while True:
            self._work(*inbox.get())
            self._idle.append(inbox)


class MemoryWindow:
    """What host and guest both see, as memory: by UML's mmapper."""

    def __init__(self, path: str, size: int) -> None:
        self._memory = memoryview(mmap.mmap(os.open(path, os.O_RDWR | os.O_CLOEXEC), size))

    def get(self, at: int, length: int) -> memoryview:
        return self._memory[at : at + length]

    def put(self, at: int, data: bytes) -> None:
        self._memory[at : at + len(data)] = data


class DiskWindow:
    """The same as a disk, past the page cache; a slot belongs to one call, so what a whole sector adds hurts nobody."""

    def __init__(self, path: str) -> None:
        self._blocks = BlockIO()
        self._handle = self._blocks.open(path)

    def get(self, at: int, length: int) -> bytes:
        return self._blocks.read(self._handle, at, length + -length % _SECTOR_BYTES)[:length]

    def put(self, at: int, data: bytes) -> None:
        self._blocks.write(self._handle, at, data + bytes(-len(data) % _SECTOR_BYTES))


class Agent:
    """The calls the runner may make: public methods here, of KernelDeviceMapper, BlockIO and Loops."""

    def __init__(self, channel: int, window: "MemoryWindow | DiskWindow") -> None:
        self._channel = channel
        self._window = window
        self._send_lock = threading.Lock()
        self._kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._blocks = BlockIO()
        self._calls: dict[str, Callable[..., Any]] = {}
        self._threads = Threads(self._answer)
        self._offer(self, "ping", "set_up", "shell", "kernel_log", "batch", "read_shared", "write_shared")
        self._offer(self, "reset", "set_parameter")

    def _offer(self, owner: object, *names: str) -> None:
        for name in names or [n for n in dir(owner) if not n.startswith("_")]:
            self._calls[name] = getattr(owner, name)

    def ping(self, value: Any = None) -> Any:
        return value

    def set_up(self, module_root: str) -> str:
        """Load the modules below `module_root`/RELEASE; answers the kernel's release."""
        release = os.uname().release
        for index, module in enumerate(MODULES):
            try:
                _load_module(f"{module_root}/{release}/kernel/drivers/{module}.ko")
            except OSError as error:
                if index < _ESSENTIAL:
                    raise OSError(error.errno, f"module {module} of {release}: {error.strerror}") from None
        self._mapper = KernelDeviceMapper()
        self._loops = Loops("/run")
        self._offer(self._blocks)
        self._offer(self._mapper)
        self._offer(self._loops)
        # `open` and `close` are of block devices
        self._offer(self._blocks, "open", "close")
        return release

    def shell(self, command: str | list[str], timeout_seconds: float = 60) -> tuple[int, str, str]:
        import subprocess  # costs 20 ms of every boot, and few guests need it

        done = subprocess.run(
            command,
            shell=isinstance(command, str),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DM_DISABLE_UDEV": "1", "HOME": "/run"},
        )
        return done.returncode, done.stdout, done.stderr

    def kernel_log(self) -> list[str]:
        """What the kernel logged since the last time."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._kernel_log, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                continue  # records were overwritten before they were read
            lines.append(record.split(b";", 1)[1].split(b"\n", 1)[0].decode(errors="replace"))

    def set_parameter(self, module: str, parameter: str, value: str) -> str:
        """Set a module's parameter, say dm_thin_pool no_space_timeout; answers what it was."""
        path = f"/sys/module/{module}/parameters/{parameter}"
        with open(path) as file:
            before = file.read().strip()
        with open(path, "w") as file:
            file.write(value)
        return before

    def read_shared(self, handle: int, offset: int, length: int, at: int) -> None:
        self._window.put(at, self._blocks.read(handle, offset, length))

    def write_shared(self, handle: int, offset: int, length: int, at: int) -> None:
        self._blocks.write(handle, offset, self._window.get(at, length))

    def batch(self, operations: list[Operation]) -> list[Outcome]:
        return OperationRunner(self._mapper, self._blocks).run(operations)

    def reset(self) -> Sequence[str]:
        """Close, remove and detach everything; answers the devices that would not go."""
        self._blocks.close_all()
        left = self._mapper.remove_everything()
        self._loops.detach_all()
        return left

    def _answer(self, number: int, call: str, arguments: list[Any]) -> None:
        try:
            function = self._calls.get(call)
            if function is None:
                raise OSError(errno.ENOSYS, f"the guest has no call {call!r}")
            answer: list[Any] = [number, 0, function(*arguments)]
        except OSError as error:
            answer = [number, error.errno or errno.EIO, error.strerror or str(error)]
        except Exception as error:
            answer = [number, -1, f"{type(error).__name__}: {error}"]
        line = memoryview(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        with self._send_lock:
            while line:
                line = line[os.write(self._channel, line) :]

    def serve(self) -> None:
        pending = b""
        while True:
            try:
                received = os.read(self._channel, 65536)
            except OSError:
                return
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                if line.startswith(b"@"):
                    at, length = map(int, line[1:].split(b":"))
                    line = bytes(self._window.get(at, length))
                number, own_thread, call, arguments = json.loads(line)
                if own_thread:
                    self._threads.run(number, call, arguments)
                else:
                    self._answer(number, call, arguments)


def _power_off_on_hangup(channel: int) -> None:
    """In a thread of its own: the serving thread may sit in a write that waits for ever."""
    poll = select.poll()
    poll.register(channel, 0)  # POLLHUP and POLLERR are always reported
    poll.poll()
    power_off()


def main() -> None:
    try:
        _mount_all()
        with open("/proc/cmdline") as file:
            words = dict(word.partition("=")[::2] for word in file.read().split())
        path = words["thinfs.window"]
        size = int(words["thinfs.shared"])
        window = MemoryWindow(path, size) if path == "/dev/mmapper" else DiskWindow(path)
        channel = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        tty.setraw(channel, termios.TCSANOW)
        threading.Thread(target=_power_off_on_hangup, args=(channel,), daemon=True).start()
        agent = Agent(channel, window)
        os.write(channel, b'[0,0,"up"]\n')
        agent.serve()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    power_off()
