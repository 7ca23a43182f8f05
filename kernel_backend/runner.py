"""A guest for tests: the kernel's dm-thin as synchronous calls, its images as files of this process.

Promises: up when made or GuestFailed with the console's tail; nothing left when closed or when this process
ends in any way. Its device-mapper is as empty after `reset` as after the boot.
Calls are answered one after the other; `threaded` gives the same calls, each in a thread of the guest, for
what may wait (an event, a device that is suspended or out of space).
"""

import contextlib
import mmap
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final, Self

from kernel_backend import channel, judges, uml
from kernel_backend.calls import DeviceMapperCalls
from kernel_backend.channel import Channel, GuestFailed, Pending
from thinfs.errors import ThinfsError

MIB: Final = 1 << 20
DEFAULT_IMAGES: Final = (16 * MIB, 1024 * MIB, 64 * MIB, 1024 * MIB)
_BOOT_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 20.0
_CONSOLE_TAIL: Final = 2000


class _ChannelTransport:
    def __init__(self, link: Channel, *, own_thread: bool, timeout: float | None) -> None:
        self._link = link
        self._own_thread = own_thread
        self._timeout = timeout

    def call(self, name: str, *arguments: Any) -> Any:
        return self._link.call(name, *arguments, own_thread=self._own_thread, timeout=self._timeout)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        return self._link.read(handle, offset, length, own_thread=self._own_thread, timeout=self._timeout)

    def write(self, handle: int, offset: int, data: bytes) -> None:
        self._link.write(handle, offset, data, own_thread=self._own_thread, timeout=self._timeout)


class Image:
    """A disk of the guest, in this process's memory or a file: `path` here, `device` (`MAJ:MIN`) there."""

    def __init__(self, index: int, source: int | str) -> None:
        """`source` is a size in bytes, or the path of a file or block device."""
        self.device = f"98:{16 * index}"  # ubd: major 98, 16 minors a disk
        self.node = f"/dev/{uml.disk_name(index)}"
        self._descriptor = -1
        if isinstance(source, int):
            self._descriptor = uml.memory_file("image", source)
            self.argument: int | str = self._descriptor
            self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            self.argument = self.path = os.path.abspath(source)

    @property
    def size_bytes(self) -> int:
        with open(self.path, "rb") as file:
            return file.seek(0, os.SEEK_END)

    def blank(self) -> None:
        """Zeros all over, at once for an image in memory. Not while a device of the guest uses it."""
        size = self.size_bytes
        if self._descriptor >= 0:
            os.truncate(self._descriptor, 0)
            os.truncate(self._descriptor, size)
            return
        with open(self.path, "r+b") as file:
            for offset in range(0, size, MIB):
                file.seek(offset)
                file.write(bytes(min(MIB, size - offset)))

    def zero_superblock(self) -> None:
        """The first 4 KiB: what makes the next thin-pool table format the metadata."""
        with open(self.path, "r+b") as file:
            file.write(bytes(4096))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Guest(DeviceMapperCalls):
    def __init__(
        self,
        kernel: uml.GuestKernel = uml.KERNEL_6_1,
        *,
        images: Sequence[int | str] = DEFAULT_IMAGES,
        memory_mb: int = 192,
        boot_timeout: float = _BOOT_SECONDS,
        call_timeout: float = _CALL_SECONDS,
    ) -> None:
        self.kernel = kernel
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            self.images = [Image(index, source) for index, source in enumerate(images)]
            for image in self.images:
                stack.callback(image.close)
            shared = uml.memory_file("shared", channel.NR_SLOTS * channel.SLOT_BYTES)
            stack.callback(os.close, shared)
            memory = mmap.mmap(shared, 0)
            stack.callback(_close_memory, memory)
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            with theirs:
                self._process = uml.Process(
                    kernel, theirs, shared, [image.argument for image in self.images], memory_mb
                )
            stack.callback(self._process.close)
            self._channel = Channel(ours, memory, self.describe)
            stack.callback(self._channel.release)
            stack.callback(self._channel.close)
            self._channel.wait_until_up(boot_timeout)
            super().__init__(_ChannelTransport(self._channel, own_thread=False, timeout=call_timeout))
            self.threaded = DeviceMapperCalls(_ChannelTransport(self._channel, own_thread=True, timeout=None))
            try:
                self.release = str(self._call("set_up", kernel.module_root))
            except ThinfsError as error:
                raise GuestFailed(f"{error}\n{self.describe()}") from None
            self._process.finish_boot()
            self._stack = stack.pop_all()
        self.boot_seconds = time.monotonic() - begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def console(self) -> str:
        return self._process.console()

    def describe(self) -> str:
        """For the message of an error: whether it lives, and the end of its console."""
        state = "runs" if self.running else "has ended"
        return f"guest {self.kernel.name} (pid {self.pid}) {state}; console:\n{self.console()[-_CONSOLE_TAIL:]}"

    def close(self) -> None:
        """Power off: the agent does it when its channel ends."""
        self._channel.close()
        self._process.wait(5)
        self._stack.close()

    def kill(self) -> None:
        """SIGKILL, at whatever point it is. The images stay readable until `close`."""
        self._process.kill()

    def start(self, name: str, *arguments: Any) -> Pending:
        """Begin a call of the guest by its name there, positional arguments only: `start("wait", "p", 0)`."""
        return self._channel.start(name, *arguments)

    def ping(self, value: Any = None) -> Any:
        return self._call("ping", value)

    def shell(self, command: str | list[str], *, timeout: float = 50) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest: the host's programs, its own /dev. `timeout` is the only limit, in seconds."""
        answered_within = timeout + _CALL_SECONDS
        code, out, err = self._channel.call("shell", command, timeout, own_thread=False, timeout=answered_within)
        return subprocess.CompletedProcess(command, code, out, err)

    def kernel_log(self) -> list[str]:
        """Lines the guest's kernel logged since the last time: the texts of refused tables are there."""
        return [str(line) for line in self._call("kernel_log")]

    def set_parameter(self, module: str, parameter: str, value: str) -> str:
        return str(self._call("set_parameter", module, parameter, value))

    def loop_create(self, size_bytes: int) -> tuple[str, str]:
        """A loop device over the guest's memory, with discard: its path and its `MAJ:MIN`."""
        path, device = self._call("loop_create", size_bytes)
        return path, device

    def loop_resize(self, path: str, size_bytes: int) -> None:
        self._call("loop_resize", path, size_bytes)

    def loop_detach(self, path: str) -> None:
        self._call("loop_detach", path)

    def reset(self) -> None:
        """Remove all mapped devices and loops, forget all handles; stuck devices are failed first."""
        left = self._call("reset")
        if left:
            raise GuestFailed(f"reset: {', '.join(left)} cannot be removed\n{self.describe()}")

    def thin_check(self, image: Image, *options: str) -> subprocess.CompletedProcess[str]:
        """thin_check (judges.tool) on an image; the pool must have been removed."""
        return _host_tool("thin_check", *options, image.path)

    def thin_dump(self, image: Image, *options: str) -> str:
        """The metadata as XML; the pool must have been removed, or `-m` given and a snapshot reserved."""
        done = _host_tool("thin_dump", *options, image.path)
        if done.returncode:
            raise AssertionError(f"thin_dump {image.path}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout


def _close_memory(memory: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):
        memory.close()


def _host_tool(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [judges.tool(command[0]), *command[1:]], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
