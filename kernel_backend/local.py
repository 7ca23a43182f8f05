"""The device-mapper of this machine's own kernel: the calls of a guest's agent, made in place, as root.

Promises: links in /dev/mapper by udev where it runs, ours otherwise; an error that says what is to be loaded
or installed when dm-thin is not there. Never: loads modules, or touches devices it was not told of.
"""

import errno
import os
from collections.abc import Callable
from typing import Any

from kernel_backend.batch import OperationRunner
from kernel_backend.block_io import BlockIO
from kernel_backend.calls import DeviceMapperCalls
from kernel_backend.device_mapper import KernelDeviceMapper
from thinfs.dm.ioctl import CONTROL
from thinfs.errors import AccessDenied, BackingMissing, from_errno


class _LocalTransport:
    def __init__(self) -> None:
        try:
            self.mapper = KernelDeviceMapper()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise AccessDenied(f"{CONTROL}: the kernel's device-mapper needs root") from None
            raise BackingMissing(f"{CONTROL}: {error.strerror}; modprobe dm-mod") from None
        self.blocks = BlockIO()
        runner = OperationRunner(self.mapper, self.blocks)
        self._special: dict[str, Callable[..., Any]] = {"batch": runner.run}

    def call(self, name: str, *arguments: Any) -> Any:
        function = (
            self._special.get(name) or getattr(self.mapper, name, None) or getattr(self.blocks, name, None)
            if name not in ("open", "close")
            else getattr(self.blocks, name)
        )
        assert function is not None, name
        try:
            return function(*arguments)
        except OSError as error:
            words = " ".join(str(argument) for argument in arguments)
            number = error.errno or errno.EIO
            raise from_errno(number, f"{name} {words[:160]}: {error.strerror or os.strerror(number)}") from None

    def read(self, handle: int, offset: int, length: int) -> bytes:
        return bytes(self.call("read", handle, offset, length))

    def write(self, handle: int, offset: int, data: bytes) -> None:
        self.call("write", handle, offset, data)


class LocalDeviceMapper(DeviceMapperCalls):
    """Synchronous; `KernelBackend(LocalDeviceMapper())` is the seam."""

    def __init__(self) -> None:
        """Raises AccessDenied without root, BackingMissing without dm-thin."""
        transport = _LocalTransport()
        super().__init__(transport)
        self._mapper = transport.mapper
        if "thin-pool" not in {target.name for target in self.targets()}:
            self.close()
            raise BackingMissing(
                "thin-pool: no such target in this kernel; modprobe dm-thin-pool, from the package of the "
                f"modules of kernel {os.uname().release}"
            )

    def close(self) -> None:
        self._mapper.close()
