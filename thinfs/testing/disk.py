"""A disk in memory with a volatile cache and faults to order: what a pool under test stands on.

Promises: what was written is durable after a flush and lost at a `power_cut` before it; the n-th write from now on can
fail, all of them can, and every call can take its time. Satisfies thinfs.blockdev.BlockDevice.
"""

import time

from thinfs.blockdev import Buffer, MemoryDevice
from thinfs.errors import IOFailed


class Disk:
    def __init__(self, size_bytes: int, *, label: str = "disk") -> None:
        self.label = label
        self.delay_seconds = 0.0  # of every read, write, flush and discard
        self.nr_writes = 0
        self.nr_flushes = 0
        self._stable = MemoryDevice(size_bytes, label=label)
        self._present = MemoryDevice(size_bytes, label=label)
        self._unflushed: list[tuple[int, bytes]] = []
        self._fail_in = 0  # writes; 0: none fails
        self._fails = False

    # -- faults ------------------------------------------------------------------------------------------

    def fail_write(self, nth: int = 1) -> None:
        """The nth write from now on is EIO, that one only."""
        if nth < 1:
            raise ValueError(f"nth {nth}: counts from 1")
        self._fail_in = nth

    def fail(self) -> None:
        """From now on every call is EIO."""
        self._fails = True

    def work(self) -> None:
        """No fault any more."""
        self._fails, self._fail_in = False, 0

    def power_cut(self) -> None:
        """What was not flushed is gone. Whoever has the disk open must open it anew."""
        self._present = _copy(self._stable)
        self._unflushed.clear()

    def _call(self, what: str) -> None:
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        if self._fails:
            raise IOFailed(f"{self.label}: {what}: made to fail")

    # -- the device --------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        return self._present.size_bytes

    def resize(self, size_bytes: int) -> None:
        """As an operator grows a device under a pool."""
        self._present.resize(size_bytes)
        self._stable.resize(size_bytes)

    @property
    def supports_discard(self) -> bool:
        return True

    def read(self, offset: int, length: int) -> bytes:
        self._call("read")
        return self._present.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        self._call("write")
        self.nr_writes += 1
        if self._fail_in:
            self._fail_in -= 1
            if not self._fail_in:
                raise IOFailed(f"{self.label}: write at byte {offset}: made to fail")
        self._present.write(offset, data)
        self._unflushed.append((offset, bytes(data)))

    def flush(self) -> None:
        self._call("flush")
        self.nr_flushes += 1
        for offset, data in self._unflushed:
            self._stable.write(offset, data)
        self._unflushed.clear()

    def discard(self, offset: int, length: int) -> None:
        """Forgotten at once, and after a power cut as well."""
        self._call("discard")
        self._present.discard(offset, length)
        self._stable.discard(offset, length)

    def close(self) -> None:
        return


def _copy(device: MemoryDevice) -> MemoryDevice:
    copied = MemoryDevice(device.size_bytes, label=device.label)
    for offset in device.written_pages():
        copied.write(offset, device.read(offset, min(4096, device.size_bytes - offset)))
    return copied
