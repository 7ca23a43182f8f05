"""Backing files that fail on command, for the userspace backend: a marker beside the file says what fails.

Promises: with the marker `PATH.fail-reads` or `PATH.fail-writes` every such operation is EIO, as from the error and
flakey targets that the kernel's disks get in the same tests. Works across processes: the server's disks as well.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from thinfs.bio import answers_at_once
from thinfs.blockdev import BlockDevice, Buffer, HasDescriptor
from thinfs.errors import IOFailed
from thinfs.userspace import devices
from thinfs.userspace.backing import Backing, BackingDevices

FAIL_READS = ".fail-reads"
FAIL_WRITES = ".fail-writes"


class FaultyDevice:
    def __init__(self, device: BlockDevice, path: str) -> None:
        self._device = device
        self._path = path
        self.close = device.close

    def _may_fail(self, what: str) -> None:
        if os.path.exists(self._path + what):
            raise IOFailed(f"{self._path}: made to fail")

    @property
    def label(self) -> str:
        return self._device.label

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    @property
    def supports_discard(self) -> bool:
        return self._device.supports_discard

    def read(self, offset: int, length: int) -> bytes:
        self._may_fail(FAIL_READS)
        return self._device.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._may_fail(FAIL_WRITES)
        self._device.write(offset, data)

    def flush(self) -> None:
        self._may_fail(FAIL_WRITES)
        self._device.flush()

    def discard(self, offset: int, length: int) -> None:
        self._may_fail(FAIL_WRITES)
        self._device.discard(offset, length)


class ServableFaultyDevice(FaultyDevice):
    """Its descriptor may be used beside it, where nothing fails: for data devices whose I/O threads are to serve."""

    def __init__(self, device: BlockDevice, path: str) -> None:
        super().__init__(device, path)
        assert isinstance(device, HasDescriptor)
        self.fileno = device.fileno


class FaultyBackingDevices(BackingDevices):
    wrap: type[FaultyDevice] = FaultyDevice

    def acquire(self, path: str, *, read_only: bool = False) -> Backing:
        backing = super().acquire(path, read_only=read_only)
        if not isinstance(backing.device, FaultyDevice):
            assert answers_at_once(backing.device)
            backing.device = self.wrap(backing.device, os.path.abspath(path))
        return backing


class ServableBackingDevices(FaultyBackingDevices):
    wrap = ServableFaultyDevice


@contextlib.contextmanager
def installed(*, servable: bool = False) -> Iterator[None]:
    """Device-mappers opened meanwhile stand on files that can be made to fail; if `servable`, threads may use them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "BackingDevices", ServableBackingDevices if servable else FaultyBackingDevices)
        yield
